"""One command at a time on one fleet, and one supervisor: locks that end with the process that holds them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from gpufleet.fleet.errors import GpufleetError
from gpufleet.local.layout import Layout, file_errors


def take(path: Path) -> int | None:
    """The descriptor of a lock now held until it is closed, or None while somebody else holds it."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    with contextlib.suppress(BlockingIOError, FileNotFoundError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # `clean` removes the file: a lock on a removed file excludes nobody.
        if path.stat().st_ino == os.fstat(lock).st_ino:
            return lock
    os.close(lock)
    return None


@contextlib.contextmanager
def fleet_lock(layout: Layout, on_wait: Callable[[], object], *, wait_s: float = 900.0) -> Iterator[None]:
    """Hold the lock of a fleet, so that `up` and `down` never work on it at once.

    `on_wait` is called once when somebody else holds it; raises GpufleetError when they still do after
    `wait_s`.
    """
    path, deadline = layout.root / "lock", time.monotonic() + wait_s
    lock = _take(layout, path)
    if lock is None:
        on_wait()
    while lock is None:
        if time.monotonic() > deadline:
            raise GpufleetError(
                reason="FleetBusy",
                message=f"another gpufleet command is still working on fleet {layout.name}",
                hint="wait until it has finished, or end it; it holds the lock " + str(path),
            )
        time.sleep(0.1)
        lock = _take(layout, path)
    try:
        yield
    finally:
        os.close(lock)


def _take(layout: Layout, path: Path) -> int | None:
    with file_errors(path):
        layout.root.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        layout.root.mkdir(exist_ok=True, mode=0o700)
        # `down --purge` may take the folder away between the two lines.
        with contextlib.suppress(FileNotFoundError):
            return take(path)
    return None
