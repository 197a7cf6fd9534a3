"""Work on keys, so many at a time: one reader of the queue, one task per key."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube.client import ApiError
from gpufleet.kube.workqueue import WorkQueue

log = logging.getLogger("gpufleet.local.simnodes")

_HOPELESS = (400, 403, 405, 413, 422)


class Workers:
    """Calls `work(key)` for every key of `queue`, at most `concurrency` at a time.

    A failed key is tried again with backoff, except where the API server will never accept it.
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
                log.warning("refused: %s", error.message, extra={"what": self._what, "key": key})
            else:
                self._again(key, error)
        except GpufleetError as error:
            self._again(key, error)
        except Exception:
            log.exception("failed", extra={"what": self._what, "key": key})
            self._queue.retry(key)
        finally:
            self._queue.done(key)
            self._slots.release()

    def _again(self, key: str, error: GpufleetError) -> None:
        delay = self._queue.retry(key)
        fields = {"what": self._what, "key": key, "reason": error.reason, "delay": round(delay, 3)}
        log.warning("trying again: %s", error.message, extra=fields)
