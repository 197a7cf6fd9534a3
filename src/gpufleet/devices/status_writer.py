"""Writing a node's `GPUNode`: what changed is gathered for a moment, and one write says all of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube.client import Client
from gpufleet.kube.gpunode import GPUNodeStatus
from gpufleet.kube.gpunode_writes import write_gpu_node_status
from gpufleet.kube.ratelimit import Backoff

log = logging.getLogger("gpufleet.devices")

GATHER_S = 0.04
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 15.0


class StatusWriter:
    """Writes what `status` says for a node; `node_uid` is that of its Node object."""

    def __init__(
        self, client: Client, node: str, node_uid: Callable[[], str], status: Callable[[], GPUNodeStatus]
    ) -> None:
        self._client = client
        self._node = node
        self._node_uid = node_uid
        self._status = status
        self._changed = asyncio.Event()
        self.written: GPUNodeStatus | None = None

    def changed(self) -> None:
        """Something that the status says is new."""
        self._changed.set()

    async def run(self) -> None:
        """Write until cancelled; what the server refuses is written again later."""
        pauses = Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        while True:
            await self._changed.wait()
            await asyncio.sleep(GATHER_S)
            self._changed.clear()
            status = self._status()
            if status == self.written:
                continue
            try:
                await write_gpu_node_status(self._client, self._node, self._node_uid(), status)
            except GpufleetError as error:
                log.warning("cannot write GPUNode: %s", error.message, extra={"reason": error.reason})
                self._changed.set()
                await asyncio.sleep(pauses.next())
            else:
                self.written = status
                pauses.reset()
