"""Work on keys, so many at a time: one reader of the queue, one task per key."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube.client import ApiError
from gpufleet.kube.workqueue import WorkQueue
from gpufleet.local.simnodes import metrics

log = logging.getLogger("gpufleet.local.simnodes")

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0
_REMIND_EVERY = 12
_HOPELESS = (400, 403, 405, 413, 422)


class Workers:
    """Calls `work(key)` for every key of `queue`, at most `concurrency` at a time.

    A failed key is tried again after a pause that doubles up to five seconds (a node that is late is worse
    than a request too many), except where the API server will never accept it. The log has its first failure
    and, while it goes on, about one a minute.
    """

    def __init__(
        self, queue: WorkQueue[str], work: Callable[[str], Awaitable[None]], *, concurrency: int, what: str
    ) -> None:
        self._queue = queue
        self._work = work
        self._slots = asyncio.Semaphore(concurrency)
        self._what = what

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._slots.acquire()
                key = await self._queue.get()
                tasks.create_task(self._attend(key))

    async def _attend(self, key: str) -> None:
        try:
            await self._work(key)
            self._queue.forget(key)
        except ApiError as error:
            if error.status in _HOPELESS:
                self._queue.forget(key)
                metrics.FAILED_WRITES.labels(self._what).inc()
                log.warning("refused: %s", error.message, extra={"what": self._what, "key": key})
            else:
                self._again(key, error.message)
        except GpufleetError as error:
            self._again(key, error.message)
        except Exception as error:
            log.exception("failed", extra={"what": self._what, "key": key})
            self._again(key, repr(error))
        finally:
            self._queue.done(key)
            self._slots.release()

    def _again(self, key: str, problem: str) -> None:
        delay = self._queue.retry(key, first=_FIRST_PAUSE_S, longest=_LONGEST_PAUSE_S)
        failures = self._queue.failures(key)
        metrics.FAILED_WRITES.labels(self._what).inc()
        level = logging.WARNING if failures == 1 or failures % _REMIND_EVERY == 0 else logging.DEBUG
        fields = {"what": self._what, "key": key, "delay": delay, "failures": failures}
        log.log(level, "trying again: %s", problem, extra=fields)
