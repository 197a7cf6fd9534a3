"""The agent's knowledge of who owns which part of its node, read from the cluster and the host, and kept."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from gpufleet.devices import agent_metrics as metrics
from gpufleet.devices.cluster_reading import read_cluster
from gpufleet.devices.host_facts import host_facts
from gpufleet.devices.ownership import Ownership, ownership
from gpufleet.devices.ownership_facts import Component, node_facts
from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube.client import Client

log = logging.getLogger("gpufleet.devices")

LOOK_S = 60.0


class Owners:
    """Who owns the parts of a node. `ours` are the resources that our plugin has registered, `mig_capable` is
    None while no driver could be asked.
    """

    def __init__(
        self,
        client: Client,
        node: str,
        host_root: Path,
        ours: Callable[[], Iterable[str]],
        mig_capable: Callable[[], bool | None],
    ) -> None:
        self.found: Ownership | None = None
        self._client, self._node, self._host_root = client, node, host_root
        self._ours, self._mig_capable = ours, mig_capable
        self._zero_since: dict[str, float] = {}
        self.moved: Callable[[Ownership, Iterable[str]], None] = lambda _now, _zero: None
        """Told of the owners that are new, with the resources at zero, before `follow` raises."""

    def does(self, part: Component) -> bool:
        """Whether a part is ours to run."""
        return self.found is not None and self.found.part(part).does == "run"

    async def look(self) -> None:
        """Find out who owns what now."""
        cluster = await read_cluster(self._client, self._node)
        host = await asyncio.to_thread(host_facts, self._host_root)
        capacity = cluster.node.status.capacity if cluster.node else {}
        facts = node_facts(
            cluster,
            host,
            ours=self._ours(),
            zero_for_s=self._zero_for(capacity),
            mig_capable=self._mig_capable(),
        )
        before, self.found = self.found, ownership(facts)
        metrics.PARTS.clear()
        for part in self.found.parts:
            metrics.PARTS.labels(part.component, part.owner, part.does).set(1)
            if before is None or before.part(part.component) != part:
                fields = {"part": part.component, "owner": part.owner, "does": part.does}
                log.info("%s", "; ".join(reason.message for reason in part.reasons), extra=fields)

    async def follow(self) -> None:
        """Look again and again. Raises GpufleetError (OwnersChanged) when a part of ours is somebody else's
        now, or the other way round: whoever starts the agent again starts it with the parts that are left.
        """
        while True:
            await asyncio.sleep(LOOK_S)
            before = self.found
            await self.look()
            if before is not None and self.found is not None and _does(before) != _does(self.found):
                self.moved(self.found, self._zero_since)
                raise GpufleetError(
                    reason="OwnersChanged",
                    message="the owner of a part of this node has changed",
                    hint="the agent starts again with the parts that are ours now",
                )

    def _zero_for(self, capacity: Mapping[str, str]) -> dict[str, float]:
        """For how many seconds each resource of the node has been at zero, as far as this agent saw it."""
        now = time.monotonic()
        zero = {name for name, text in capacity.items() if text == "0"}
        self._zero_since = {name: self._zero_since.get(name, now) for name in zero}
        return {name: now - since for name, since in self._zero_since.items()}


def _does(owners: Ownership) -> dict[str, str]:
    return {part.component: part.does for part in owners.parts}
