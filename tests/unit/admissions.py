"""Scheduler, kubelets and agents of a few nodes in one process, and the order in which things happen drawn by
chance: a kubelet admits the pods that were bound to it in any order, and what it gave is confirmed later.

The parts are the real ones: the decision, the agent's picks and its answers to the kubelet, its report, and
the values that the scheduler makes of that. What is simulated is the kubelet's choice of the next pod, and
time. A pod runs longer than its node takes to admit and confirm those that were bound beside it: else it
takes the knowledge with it that it has exchanged its devices with one of them.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import msgspec
from tests.unit.device_fleets import asking, quality
from tests.unit.fleets import node

from gpufleet.devices.backend import Link
from gpufleet.devices.inventory import Inventory
from gpufleet.devices.node_report import node_status
from gpufleet.devices.picks import Pick, Picks, swapped
from gpufleet.devices.plugin_config import PluginConfig
from gpufleet.devices.plugin_node import PluginNode
from gpufleet.devices.preferred_allocation import topology
from gpufleet.devices.resources import gpu_resources
from gpufleet.fleet.devices import NodeDevices, device_of
from gpufleet.fleet.nodes import Node
from gpufleet.fleet.plans import Bind
from gpufleet.fleet.pods import Pod
from gpufleet.fleet.snapshot import Snapshot, snapshot_of
from gpufleet.kube.device_values import node_devices
from gpufleet.kube.gpunode import GPUAllocation, GPUNode
from gpufleet.kube.objects import ObjectMeta
from gpufleet.scheduling.cycle import Policy, decide

_MOST_WAITING = 8


class Machine:
    """A node: its kubelet, and its agent with the device plugin."""

    def __init__(
        self, name: str, inventory: Inventory, links: dict[tuple[str, str], Link], config: PluginConfig
    ) -> None:
        self.name = name
        self.inventory = inventory
        start = PluginNode(topology=topology(inventory, links))
        self.plugin = start.derive(inventory, config, ())
        self.config = config
        self.picks = Picks()
        self.bound: list[Pod] = []
        self.held: dict[str, tuple[tuple[str, str, tuple[str, ...]], ...]] = {}
        """What the kubelet has given: by uid, (container, resource, ids)."""
        self.pods: dict[str, Pod] = {}
        self.confirmed: set[str] = set()
        self.beside: dict[str, frozenset[str]] = {}
        """By uid, the pods that were bound and not confirmed when the pod was given its devices."""

    @property
    def value(self) -> Node:
        """The node as the scheduler counts on it."""
        offered = gpu_resources(self.plugin.offer)
        return node(self.name, resources={one.name: one.healthy for one in offered})

    @property
    def devices(self) -> NodeDevices:
        """What the agent has reported, as the scheduler reads it."""
        status = node_status(
            self.inventory,
            {},
            frozenset(),
            gpu_resources(self.plugin.offer, self.config.shared_policy),
            [one for uid in sorted(self.confirmed & self.held.keys()) for one in self._allocations(uid)],
            (),
            self.plugin.topology,
        )
        return node_devices(GPUNode(metadata=ObjectMeta(name=self.name), status=status))

    def _allocations(self, uid: str) -> list[GPUAllocation]:
        return [
            GPUAllocation(
                namespace="default",
                pod=self.pods[uid].name,
                pod_uid=uid,
                container=container,
                resource=resource,
                devices=tuple(dict.fromkeys(device_of(one) for one in ids)),
                ids=ids if any("::" in one for one in ids) else (),
            )
            for container, resource, ids in self.held[uid]
        ]

    def bind(self, pod: Pod) -> None:
        """The pod's binding reaches the agent and the kubelet."""
        self.bound.append(pod)
        self.pods[pod.uid] = pod
        self.picks = self.picks.bound(
            Pick(pod.uid, one.container, one.resource, one.devices) for one in pod.picks
        )

    def admit(self, chance: random.Random) -> Pod | None:
        """The kubelet gives devices to one of the pods that are bound, whichever comes."""
        if not self.bound:
            return None
        pod = self.bound.pop(chance.randrange(len(self.bound)))
        given: list[tuple[str, str, tuple[str, ...]]] = []
        for claim in pod.device_claims:
            taken = {one for held in self.held.values() for _, _, ids in held for one in ids}
            taken |= {one for _, _, ids in given for one in ids}
            offered = self.plugin.offer.resource(claim.resource).devices
            available = [one.id for one in offered if one.healthy and one.id not in taken]
            chance.shuffle(available)
            advice = self.plugin.preferred(claim.resource, self.picks, available, (), claim.count)
            ids = tuple(list(dict.fromkeys([*advice, *available]))[: claim.count])
            assert len(ids) == claim.count, "the scheduler bound more than there is"
            self.picks = self.picks.used(claim.resource, ids)
            given.append((claim.container, claim.resource, ids))
        self.held[pod.uid] = tuple(given)
        self.beside[pod.uid] = frozenset(self.pods.keys() - self.confirmed)
        self._count_busy()
        return pod

    def confirm(self, uid: str) -> None:
        """The agent hears from the kubelet what a pod holds, and reports it."""
        self.confirmed.add(uid)
        for container, resource, ids in self.held.get(uid, ()):
            self.picks = self.picks.confirmed(uid, container, resource, ids)

    @property
    def ending(self) -> list[str]:
        """The pods that can be over now, by uid."""
        running = self.held.keys() & self.confirmed
        late = self.pods.keys() - self.confirmed
        return sorted(uid for uid in running if late.isdisjoint(self.beside[uid]))

    def end(self, uid: str) -> None:
        """A pod is over."""
        self.held.pop(uid, None)
        self.pods.pop(uid)
        self.confirmed.discard(uid)
        self.picks = self.picks.gone(uid)
        self._count_busy()

    def _count_busy(self) -> None:
        held = {device_of(one) for given in self.held.values() for _, _, ids in given for one in ids}
        busy = frozenset(
            gpu.uuid
            for gpu in self.inventory.gpus
            if gpu.uuid in held or any(c.uuid in held for one in gpu.instances for c in one.compute)
        )
        self.plugin = msgspec.structs.replace(self.plugin, busy=busy)


class Outcome(msgspec.Struct):
    """What became of the picks: those kept, those swapped to nobody's harm, and those whose swap matters."""

    kept: int = 0
    swapped: int = 0
    harmed: int = 0

    @property
    def rate(self) -> float:
        """The share of picks that were not kept."""
        return (self.swapped + self.harmed) / max(1, self.kept + self.swapped + self.harmed)


class World:
    """A scheduler and its machines. `strangers` is the share of pods that others bind, without picks."""

    def __init__(
        self, machines: Sequence[Machine], resource: str, sizes: Sequence[int], *, strangers: float = 0.0
    ) -> None:
        self.machines = {machine.name: machine for machine in machines}
        self.resource, self.sizes, self.strangers = resource, sizes, strangers
        self.waiting: dict[str, Pod] = {}
        self.outcome = Outcome()
        self._number = 0

    def play(self, chance: random.Random, steps: int) -> Outcome:
        """Let things happen in whatever order, and look that nobody shares what is not shared."""
        happenings = (self._arrive, self._decide, self._admit, self._admit, self._confirm, self._end)
        for _ in range(steps):
            chance.choice(happenings)(chance)
            self._check()
        return self.outcome

    @property
    def snapshot(self) -> Snapshot:
        """What the scheduler sees."""
        pods = [pod for machine in self.machines.values() for pod in machine.pods.values()]
        return snapshot_of(
            tuple(machine.value for machine in self.machines.values()),
            (*pods, *self.waiting.values()),
            devices={name: machine.devices for name, machine in self.machines.items()},
        )

    def _arrive(self, chance: random.Random) -> None:
        for _ in range(chance.randint(1, 4) if len(self.waiting) < _MOST_WAITING else 0):
            self._number += 1
            size = chance.choice(self.sizes)
            new = asking(f"p{self._number:04}", size, resource=self.resource, created=self._number)
            self.waiting[new.key] = new

    def _decide(self, chance: random.Random) -> None:
        for action in decide(self.snapshot, Policy()).actions:
            if isinstance(action, Bind):
                stranger = chance.random() < self.strangers
                picks = () if stranger else action.picks
                pod = msgspec.structs.replace(self.waiting.pop(action.pod.key), node=action.node, picks=picks)
                self.machines[action.node].bind(pod)

    def _admit(self, chance: random.Random) -> None:
        machine = self._any(chance)
        pod = machine.admit(chance)
        if pod is None:
            return
        devices = machine.devices
        for pick, (_, resource, ids) in zip(pod.picks, machine.held[pod.uid], strict=False):
            got = tuple(device_of(one) for one in ids)
            if not swapped(Pick(pod.uid, pick.container, resource, pick.devices), ids):
                self.outcome.kept += 1
            elif quality(devices, resource, got) == quality(devices, resource, pick.devices):
                self.outcome.swapped += 1
            else:
                self.outcome.harmed += 1

    def _confirm(self, chance: random.Random) -> None:
        machine = self._any(chance)
        given = sorted(machine.held.keys() - machine.confirmed)
        if given:
            machine.confirm(chance.choice(given))

    def _end(self, chance: random.Random) -> None:
        machine = self._any(chance)
        if machine.ending:
            machine.end(chance.choice(machine.ending))

    def _any(self, chance: random.Random) -> Machine:
        return self.machines[chance.choice(sorted(self.machines))]

    def _check(self) -> None:
        for machine in self.machines.values():
            ids = Counter(one for given in machine.held.values() for _, _, ids in given for one in ids)
            assert all(count == 1 for count in ids.values()), "an id was given twice"
