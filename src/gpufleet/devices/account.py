"""The agent's account of who holds which device: the kubelet is asked, and what it says is compared.

The kubelet is asked soon after every allocation and at an interval; nobody waits for its answer. A grant of
our plugin counts as held until the kubelet has had time to say so, so that nothing is taken from a container
that is about to start. A container that got other devices than the scheduler picked is told as a swap, and
the account follows what is true.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from gpufleet.devices import agent_metrics as metrics
from gpufleet.devices.ledger import BoundPod, allocations
from gpufleet.devices.picks import Pick, Picks, swapped
from gpufleet.fleet.devices import device_of
from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube.gpunode import GPUAllocation
from gpufleet.kube.kubelet.pod_resources import PodDevices, PodResources

log = logging.getLogger("gpufleet.devices")

INTERVAL_S = 5.0
SOON_S = 0.1
GRANT_S = 30.0
"""How long a grant counts as held while the kubelet does not list it: a pod that failed never holds it."""


class Account:
    """Who holds what. `changed` is called when that is new; `resources` names what our plugin offers.
    `fractions` are parts of GPUs, of which the kubelet knows nothing.
    """

    def __init__(
        self,
        kubelet: PodResources,
        resources: Callable[[], frozenset[str]],
        changed: Callable[[], None],
        *,
        interval_s: float = INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.held: tuple[GPUAllocation, ...] = ()
        self.fractions: tuple[GPUAllocation, ...] = ()
        self.pods: Mapping[str, BoundPod] = {}
        self._kubelet = kubelet
        self._resources = resources
        self._changed = changed
        self._heard: Callable[[Sequence[GPUAllocation], float], None] = lambda _held, _seconds: None
        self._failed: Callable[[str], None] = lambda _reason: None
        self._interval_s = interval_s
        self._clock = clock
        self._soon = asyncio.Event()
        self._grants: dict[str, float] = {}
        self._complaint = ""

    def tell(
        self, heard: Callable[[Sequence[GPUAllocation], float], None], failed: Callable[[str], None]
    ) -> None:
        """Who else wants every answer of the kubelet (with how long it took), and why one did not come."""
        self._heard, self._failed = heard, failed

    async def close(self) -> None:
        """End the connection to the kubelet."""
        await self._kubelet.close()

    def granted(self, ids: Iterable[str]) -> None:
        """The plugin has just given these device ids to a container."""
        now = self._clock()
        self._grants.update((device_of(one), now) for one in ids)
        self._soon.set()

    def look_soon(self) -> None:
        """A pod came or went."""
        self._soon.set()

    def holds(self, uuid: str) -> bool:
        """Whether a container holds a GPU or instance, or is about to."""
        return uuid in self.uuids

    @property
    def allocations(self) -> tuple[GPUAllocation, ...]:
        """What containers hold of the kubelet, and fractions."""
        return self.held + self.fractions

    @property
    def uuids(self) -> frozenset[str]:
        """All GPUs and instances that containers hold or are about to hold."""
        oldest = self._clock() - GRANT_S
        self._grants = {uuid: at for uuid, at in self._grants.items() if at >= oldest}
        return frozenset((*self._grants, *(uuid for one in self.allocations for uuid in one.devices)))

    async def run(self, picks: Callable[[], Picks], confirm: Callable[[Picks], None]) -> None:
        """Ask the kubelet until cancelled; `picks` are those of the plugin, `confirm` takes what is left."""
        while True:
            self._soon.clear()
            began = self._clock()
            try:
                listed = await self._kubelet.pods()
            except GpufleetError as error:
                self._failed(error.reason)
                if error.message != self._complaint:
                    log.warning("%s", error.message, extra={"reason": error.reason})
                self._complaint = error.message
            else:
                self._complaint = ""
                self._take(listed, self._clock() - began)
                confirm(self._confirmed(picks()))
            try:
                async with asyncio.timeout(self._interval_s):
                    await self._soon.wait()
                await asyncio.sleep(SOON_S)
            except TimeoutError:
                continue

    def _take(self, listed: Sequence[PodDevices], seconds: float) -> None:
        held = allocations(listed, self.pods.values(), self.held, self._resources())
        said = {uuid for one in held for uuid in one.devices}
        self._grants = {uuid: at for uuid, at in self._grants.items() if uuid not in said}
        self._heard(held + self.fractions, seconds)
        if held != self.held:
            self.held = held
            self._changed()

    def _confirmed(self, picks: Picks) -> Picks:
        for one in self.held:
            for pick in _own(picks, one):
                if swapped(pick, one.device_ids):
                    metrics.SWAPS.inc()
                    log.warning(
                        "a container got other devices than were picked for it",
                        extra={
                            "pod": f"{one.namespace}/{one.pod}",
                            "container": one.container,
                            "picked": pick.devices,
                            "held": one.device_ids,
                        },
                    )
                else:
                    metrics.PICKS_KEPT.inc()
                picks = picks.confirmed(one.pod_uid, one.container, one.resource, one.device_ids)
        known = {pod.uid for pod in self.pods.values() if not pod.over}
        for pick in (*picks.waiting, *picks.taken):
            if pick.uid not in known:
                picks = picks.gone(pick.uid)
        return picks


def _own(picks: Picks, held: GPUAllocation) -> list[Pick]:
    owner = (held.pod_uid, held.container)
    return [
        pick
        for pick in (*picks.waiting, *picks.taken)
        if pick.owner == owner and pick.resource == held.resource
    ]
