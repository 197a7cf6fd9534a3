"""Recordings of live decisions: a folder with the last of them, each as two files.

`NUMBER.snapshot.json.gz` is what the decision read and `NUMBER.plan.json` its plan, the bytes that `gpufleet
decide` prints for the snapshot. NUMBER is when the process began and the decision's number in its log, so
that names sort by time. A thread writes them: a decision only hands values over, and where the disk does not
keep up, or refuses, decisions go on and are counted as not recorded.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.plan_text import plan_bytes
from gpufleet.fleet.plans import Plan
from gpufleet.scheduling import metrics
from gpufleet.scheduling.recording import Recording, to_bytes

log = logging.getLogger("gpufleet.scheduling")

SNAPSHOT, PLAN = ".snapshot.json.gz", ".plan.json"

BACKLOG = 16
"""How many decisions wait for the disk at most; each keeps its snapshot in memory."""


class Recordings:
    """Keeps the last `keep` decisions in `folder`, which is made; raises GpufleetError where it cannot be."""

    def __init__(self, folder: Path, keep: int) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            found = sorted(path.name.removesuffix(SNAPSHOT) for path in folder.glob(f"*{SNAPSHOT}"))
        except OSError as error:
            raise GpufleetError(
                reason="FileSystem",
                message=f"decisions cannot be recorded in {folder}: {error.strerror}",
                hint="name a folder with --record that this process may write to",
            ) from error
        self._folder = folder
        self._keep = keep
        self._began = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        self._kept = deque(found)
        self._slots = threading.BoundedSemaphore(BACKLOG)
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="recordings")

    def add(self, decision: int, recording: Recording, plan: Plan) -> None:
        """Record one decision; returns at once."""
        if not self._slots.acquire(blocking=False):
            metrics.NOT_RECORDED.inc()
            return
        self._writer.submit(self._write, f"{self._began}-{decision:08}", recording, plan)

    def close(self) -> None:
        """Wait until all that was added is written."""
        self._writer.shutdown(wait=True)

    def _write(self, number: str, recording: Recording, plan: Plan) -> None:
        try:
            # The snapshot is last: where it is there, its plan is, too.
            self._put(f"{number}{PLAN}", plan_bytes(plan))
            self._put(f"{number}{SNAPSHOT}", to_bytes(recording, compressed=True))
            self._kept.append(number)
            while len(self._kept) > self._keep:
                oldest = self._kept.popleft()
                for suffix in (SNAPSHOT, PLAN):
                    (self._folder / f"{oldest}{suffix}").unlink(missing_ok=True)
        except OSError as error:
            metrics.NOT_RECORDED.inc()
            log.warning("decision not recorded", extra={"folder": str(self._folder), "error": str(error)})
        finally:
            self._slots.release()

    def _put(self, name: str, data: bytes) -> None:
        unfinished = self._folder / f".{name}.{os.getpid()}"
        unfinished.write_bytes(data)
        unfinished.replace(self._folder / name)
