"""How fast and how often: the token bucket of the client, and backoff for everything that is tried again.

Clocks and sleeps are arguments, so that tests need no waiting.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable


class TokenBucket:
    """At most `burst` requests at once and `qps` per second in the long run, in the order of asking.

    The balance may go negative: each caller books its token and then waits until the token has accrued, so
    callers are served in order without a queue.
    """

    def __init__(
        self,
        qps: float,
        burst: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        if qps <= 0 or burst < 1:
            raise ValueError(f"qps must be positive and burst at least 1, not {qps} and {burst}")
        self._qps = qps
        self._burst = float(burst)
        self._tokens = float(burst)
        self._clock = clock
        self._sleep = sleep
        self._updated = clock()

    def reserve(self) -> float:
        """Book one token; the seconds to wait before using it."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._updated) * self._qps) - 1.0
        self._updated = now
        return max(0.0, -self._tokens / self._qps)

    async def acquire(self) -> None:
        """Wait for one token."""
        delay = self.reserve()
        if delay > 0.0:
            await self._sleep(delay)


class Backoff:
    """Delays that grow by `factor` from `base` to `cap` seconds.

    With `jitter` "full" a delay is uniform in [0, step], which spreads many clients best; with "half" it is
    uniform in [step / 2, step], which guarantees a pause.
    """

    def __init__(
        self,
        base: float,
        cap: float,
        *,
        factor: float = 2.0,
        jitter: str = "full",
        rng: random.Random | None = None,
    ) -> None:
        self._base = base
        self._cap = cap
        self._factor = factor
        self._floor = 0.0 if jitter == "full" else 0.5
        self._rng = rng or random.Random()
        self._failures = 0

    def next(self) -> float:
        """The delay before the next try, in seconds."""
        step = min(self._cap, self._base * self._factor ** min(self._failures, 64))
        self._failures += 1
        return step * self._rng.uniform(self._floor, 1.0)

    def reset(self) -> None:
        """Start again from `base`."""
        self._failures = 0
