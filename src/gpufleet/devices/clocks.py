"""Time for whoever waits: a clock that runs, and one that a test or a simulation moves."""

from __future__ import annotations

import threading
import time
from typing import Protocol


class Clock(Protocol):
    """Seconds, and waiting for them."""

    def now(self) -> float:
        """Seconds since any fixed moment; never goes back."""

    def wait(self, changed: threading.Condition, until: float) -> None:
        """Wait, holding `changed`, until it is notified or a time has come; it may return earlier."""


class RunningClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        """Seconds of the monotonic clock."""
        return time.monotonic()

    def wait(self, changed: threading.Condition, until: float) -> None:
        """Wait until notified or a time has come."""
        changed.wait(max(0.0, until - time.monotonic()))


class ManualClock:
    """A clock that stands still until somebody moves it; then everyone who waits looks again."""

    def __init__(self, now: float = 0.0) -> None:
        self._now = now
        self._waiting: set[threading.Condition] = set()
        self._lock = threading.Lock()

    def now(self) -> float:
        """The time that it was moved to."""
        with self._lock:
            return self._now

    def wait(self, changed: threading.Condition, until: float) -> None:
        """Wait until notified or the clock is moved, unless it shows the time already."""
        with self._lock:
            if self._now >= until:
                return
            self._waiting.add(changed)
        changed.wait()

    def advance(self, seconds: float) -> None:
        """Move on; wakes who waits."""
        with self._lock:
            self._now += seconds
            waiting, self._waiting = self._waiting, set()
        for changed in waiting:
            with changed:
                changed.notify_all()
