"""Which requests are tried again, and when.

One question decides: may the server have acted? A 429 or a 503 with Retry-After and a connection that was
never made say no, so every method waits and tries again. A lost connection, a time-out, 500, 502 and 504
say maybe: only reads are tried again; a write fails and its caller looks at what became of it.
"""

from __future__ import annotations

from gpufleet.kube.errors import ApiError, Unreachable
from gpufleet.kube.ratelimit import Backoff

CONNECT_TRIES = 3
_DID_NOT_ACT = (429, 503)
_MAYBE_ACTED = (500, 502, 503, 504)


class Retry:
    """The tries of one request; `reads` says that it changes nothing."""

    __slots__ = ("_backoff", "_reads", "_unconnected")

    def __init__(self, *, reads: bool) -> None:
        self._reads = reads
        self._backoff = Backoff(0.1, 5.0)
        self._unconnected = 0

    def delay(self, problem: ApiError | Unreachable) -> float | None:
        """Seconds to wait after `problem`, or None when it is final."""
        if isinstance(problem, Unreachable):
            if problem.permanent or (problem.sent and not self._reads):
                return None
            self._unconnected += not problem.sent
            return self._backoff.next() if self._unconnected < CONNECT_TRIES else None
        if problem.status in _DID_NOT_ACT and problem.retry_after is not None:
            return problem.retry_after + self._backoff.next()
        if self._reads and problem.status in _MAYBE_ACTED:
            return self._backoff.next()
        return None
