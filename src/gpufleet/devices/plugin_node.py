"""What a device plugin answers from: one value for a node, and the answers to the kubelet's questions.

Whoever serves a kubelet (the device plugin over its sockets, a simulated kubelet in the same process) asks
the same value. It follows from what was observed of the GPUs, what is configured and what is asked of the
node (`derive`), and is replaced as a whole when one of them changes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from gpufleet.devices.allocation import DriverNodes, Grant, grant, requested
from gpufleet.devices.inventory import Inventory
from gpufleet.devices.picks import Picks
from gpufleet.devices.plugin_config import PluginConfig
from gpufleet.devices.preferred_allocation import Topology, preferred
from gpufleet.devices.resources import Device, Offer, offer


class PluginNode(msgspec.Struct, frozen=True):
    """All that the plugin answers from. `busy` are UUIDs of GPUs on which anything is in use."""

    offer: Offer = Offer()
    inventory: Inventory = Inventory()
    config: PluginConfig = PluginConfig()
    topology: Topology = Topology()
    nodes: DriverNodes = DriverNodes()
    busy: frozenset[str] = frozenset()

    def derive(
        self,
        inventory: Inventory,
        config: PluginConfig,
        sick: Collection[str],
        leaving: Collection[str] = (),
        carrying: Collection[str] = (),
    ) -> PluginNode:
        """The value after the GPUs or the configuration have changed; `sick` are GPUs that no new pod may
        use, `leaving` GPUs and instances that are about to go, `carrying` GPUs that carry fractions. Raises
        GpufleetError (SharedDeviceNotFound).
        """
        found = offer(inventory, config, sick, before=self.offer)
        if leaving or carrying:
            found = _without(found, leaving, carrying)
        return msgspec.structs.replace(self, offer=found, inventory=inventory, config=config)

    def preferred(
        self, resource: str, picks: Picks, available: Sequence[str], must: Sequence[str], size: int
    ) -> Sequence[str]:
        """The ids that a container should get: the scheduler's pick, or else the best linked devices; none
        that carry fractions, also when the kubelet has yet to hear of that.
        """
        carrying = {one.id for one in self.offer.resource(resource).devices if one.carrying}
        available = [one for one in available if one not in carrying]
        picked = picks.answer(resource, available, must, size)
        if picked is not None:
            return picked
        return preferred(
            self.offer.resource(resource),
            picks.spare(resource, available, size),
            must,
            size,
            topology=self.topology,
            policy=self.config.shared_policy,
            busy=self.busy,
        )

    def grant(self, resource: str, ids: Sequence[str]) -> tuple[tuple[Device, ...], Grant]:
        """The devices of these ids and what a container gets for them. Raises GpufleetError (`REASONS` of
        `allocation`).
        """
        devices = requested(self.offer.resource(resource), ids, self.config)
        return devices, grant(devices, self.inventory, self.config, self.nodes)


def _without(found: Offer, leaving: Collection[str], carrying: Collection[str]) -> Offer:
    """The offer in which devices that are about to go, or that carry fractions, are given to nobody."""

    def marked(one: Device) -> Device:
        healthy = one.healthy and one.uuid not in leaving and one.gpu not in leaving
        return msgspec.structs.replace(one, healthy=healthy, carrying=one.gpu in carrying)

    resources = tuple(
        msgspec.structs.replace(resource, devices=tuple(marked(one) for one in resource.devices))
        for resource in found.resources
    )
    return msgspec.structs.replace(found, resources=resources)
