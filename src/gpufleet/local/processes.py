"""Processes of a fleet: started so that they outlive us, recognised again later, and ended for certain.

Two things identify a process. Its record (pid and start time) says which component it is, for a supervisor
that takes over from a killed one; a pid alone may have been given to somebody else. Its environment says
which fleet it belongs to (`GPUFLEET_FLEET`, inherited by all descendants), so that `down` finds what no
record names: a child started in the moment between a fork and its record, or a workload whose node was
killed.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec
import psutil

from gpufleet.local.layout import Layout, begin_run, write_atomic

FLEET_MARKER = "GPUFLEET_FLEET"
COMPONENT_MARKER = "GPUFLEET_COMPONENT"
_ROUNDING_S = 2.0
"""The kernel tells the time of its boot in whole seconds, so two readings of a start may differ by that much.
"""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Record(msgspec.Struct, frozen=True):
    """One process. `started` is when it started in seconds since the boot `boot`: the clock may be set while
    it runs (a virtual machine that was paused does that), the time since the boot stays true.
    """

    pid: int
    started: float
    boot: str = ""
    fingerprint: str = ""
    """What the process was started with (`Component.fingerprint`)."""

    @classmethod
    def of(cls, pid: int) -> Record | None:
        """The record of a running process, or None when there is none (a zombie has ended)."""
        try:
            process = psutil.Process(pid)
            with process.oneshot():
                # Of a program with threads the first one may be a zombie while others still hold its ports.
                if process.status() == psutil.STATUS_ZOMBIE and process.num_threads() <= 1:
                    return None
                return cls(pid, process.create_time() - psutil.boot_time(), _boot_id())
        except psutil.Error:
            return None

    @property
    def alive(self) -> bool:
        """Whether this very process still runs."""
        now = Record.of(self.pid)
        same_boot = now is not None and now.boot == self.boot
        return now is not None and same_boot and abs(now.started - self.started) < _ROUNDING_S


@functools.cache
def _boot_id() -> str:
    return _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""


def read_record(path: Path) -> Record | None:
    """The record kept in a file; None when there is none or it is damaged (the marker then finds the
    process).
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Record)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def write_record(path: Path, record: Record) -> None:
    """Keep a record in a file."""
    write_atomic(path, msgspec.json.encode(record))


def spawn(
    layout: Layout, component: str, argv: Iterable[str], environ: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start a component in its own session, marked, its output appended to its log.

    Raises OSError when the program cannot be started.
    """
    marked = {**environ, FLEET_MARKER: str(layout.root), COMPONENT_MARKER: component}
    with os.fdopen(begin_run(layout.log(component)), "wb") as output:
        return subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=layout.root,
            env=marked,
            start_new_session=True,
        )


def marked_processes(layout: Layout) -> dict[int, str]:
    """Pids of this user's processes that carry the marker of a fleet, with their component ("" for a
    workload).

    The caller and its ancestors are left out, so that `down` typed inside a workload's shell can finish.
    """
    marker, ours = str(layout.root), {os.getpid()}
    with contextlib.suppress(psutil.Error):
        ours.update(parent.pid for parent in psutil.Process().parents())
    found: dict[int, str] = {}
    for pid in psutil.pids():
        if pid in ours:
            continue
        try:
            environ = psutil.Process(pid).environ()
        except (psutil.Error, OSError):
            continue
        if environ.get(FLEET_MARKER) == marker:
            found[pid] = environ.get(COMPONENT_MARKER, "")
    return found


def end(
    records: Iterable[Record],
    *,
    grace_s: float,
    ask: signal.Signals = signal.SIGTERM,
    reap: Callable[[], object] = lambda: None,
    poll_s: float = 0.02,
) -> list[Record]:
    """Ask processes to end with the signal `ask`, then kill those that have not after `grace_s`; those that
    no signal could end.

    `reap` is called while waiting; the parent of the processes collects their exit codes there.
    """
    left = [record for record in records if record.alive]
    _signal(left, ask)
    left = _wait(left, grace_s, reap, poll_s)
    _signal(left, signal.SIGKILL)
    return _wait(left, 10.0, reap, poll_s)


def end_marked(layout: Layout, *, grace_s: float, keep: Iterable[int] = ()) -> int:
    """End every process that carries the marker of a fleet except the pids in `keep`; how many there were.

    Looks again until nothing is found, because a process may start another one while it is being ended.
    """
    kept, ended = set(keep), 0
    for attempt in range(5):
        records = [
            record for pid in marked_processes(layout) if pid not in kept and (record := Record.of(pid))
        ]
        if not records:
            break
        end(records, grace_s=grace_s if attempt == 0 else 0.5)
        ended += len(records)
    return ended


def _signal(records: Iterable[Record], number: signal.Signals) -> None:
    for record in records:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(record.pid, number)


def _wait(records: list[Record], seconds: float, reap: Callable[[], object], poll_s: float) -> list[Record]:
    deadline = time.monotonic() + seconds
    while records and time.monotonic() < deadline:
        reap()
        records = [record for record in records if record.alive]
        if records:
            time.sleep(poll_s)
    return records
