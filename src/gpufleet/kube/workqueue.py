"""A work queue of keys, with the semantics of client-go's.

A key that is queued is not queued again. A key that is being worked on is only marked, and queued once the
work is done, so no key is ever worked on twice at a time and no change is missed. A key that fails comes back
after a delay of its own that doubles, from 5 ms to 1000 s unless said otherwise, until it is forgotten.
Source: k8s.io/client-go/util/workqueue.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import random
import time
from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

BASE_DELAY = 0.005
MAX_DELAY = 1000.0


class WorkQueue(Generic[K]):
    """Keys to work on: `key = await queue.get()`, work, `queue.done(key)`, then `forget` or `retry` it.

    `clock` (seconds) and `rng` are arguments for the sake of tests. Belongs to one event loop.
    """

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, rng: random.Random | None = None
    ) -> None:
        self._clock = clock
        self._rng = rng or random.Random()
        self._ready: deque[K] = deque()
        self._dirty: set[K] = set()
        self._working: set[K] = set()
        self._delayed: list[tuple[float, int, K]] = []
        self._due: dict[K, float] = {}
        self._order = itertools.count()
        self._failures: dict[K, int] = {}
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        """How many keys wait to be worked on, the delayed ones not counted."""
        return len(self._ready)

    def add(self, key: K) -> None:
        """Queue a key, unless it is queued; while it is worked on, queue it for afterwards."""
        if key in self._dirty:
            return
        self._dirty.add(key)
        if key not in self._working:
            self._ready.append(key)
            self._wake.set()

    def add_after(self, key: K, seconds: float) -> None:
        """Queue a key later; of several delays of one key the one that ends first counts."""
        if seconds <= 0.0:
            self.add(key)
            return
        due = self._clock() + seconds
        if due < self._due.get(key, float("inf")):
            self._due[key] = due
            heapq.heappush(self._delayed, (due, next(self._order), key))
            self._wake.set()

    def retry(self, key: K, *, first: float = BASE_DELAY, longest: float = MAX_DELAY) -> float:
        """Queue a key that failed, after its own backoff between two delays; the delay, all in seconds."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        delay = min(longest, first * 2.0 ** min(failures, 64)) * self._rng.uniform(0.5, 1.0)
        self.add_after(key, delay)
        return delay

    def forget(self, key: K) -> None:
        """The key succeeded: its next failure starts again at the shortest delay."""
        self._failures.pop(key, None)

    def failures(self, key: K) -> int:
        """How often a key was retried since it was last forgotten."""
        return self._failures.get(key, 0)

    def done(self, key: K) -> None:
        """The work on a key has ended, well or badly; a key that was added meanwhile is queued now."""
        self._working.discard(key)
        if key in self._dirty:
            self._ready.append(key)
            self._wake.set()

    def take(self) -> tuple[K] | None:
        """The next key in a tuple, if one is ready now."""
        self._promote()
        if not self._ready:
            return None
        key = self._ready.popleft()
        self._dirty.discard(key)
        self._working.add(key)
        return (key,)

    async def get(self) -> K:
        """Wait for a key. Whoever gets it calls `done` with it."""
        while True:
            taken = self.take()
            if taken is not None:
                return taken[0]
            self._wake.clear()
            pause = self._delayed[0][0] - self._clock() if self._delayed else None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()

    def _promote(self) -> None:
        now = self._clock()
        while self._delayed and self._delayed[0][0] <= now:
            due, _, key = heapq.heappop(self._delayed)
            if self._due.get(key) == due:
                del self._due[key]
                self.add(key)
