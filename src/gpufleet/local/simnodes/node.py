"""One simulated node: its devices, its pods, and whether it takes one more.

State without I/O. The kubelets (`kubelets`) tell it what happens and write what it says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from gpufleet.devices.clocks import Clock, RunningClock
from gpufleet.devices.exporter import ExportedNode
from gpufleet.devices.fraction_pods import (
    FractionPod,
    carrying,
    fraction_allocations,
    fraction_pod,
    fraction_problems,
)
from gpufleet.devices.picks import picks_of
from gpufleet.devices.sampling import Sampled
from gpufleet.devices.simulated_node import SimulatedGPUs, fault_problem
from gpufleet.fleet.devices import REPLICA_SEPARATOR
from gpufleet.fleet.nodes import Node
from gpufleet.fleet.pods import Pod
from gpufleet.fleet.quantities import resource_amount
from gpufleet.fleet.reasons import Reason
from gpufleet.kube import objects
from gpufleet.kube.gpunode import GPUAllocation, GPUNode, GPUNodeStatus
from gpufleet.kube.requests import device_claims
from gpufleet.kube.values import node_value, pod_value
from gpufleet.local.simnodes.admission import Rejection, device_rejection, refuses
from gpufleet.local.simnodes.device_manager import Holder, Holdings, Shortage
from gpufleet.local.simnodes.machines import POD_ADDRESSES_PER_NODE, Machine, pod_address, pod_ordinal

FAULTS_ANNOTATION = "gpufleet.dev/sim-unhealthy"
DEVICES_GONE = Rejection(
    "UnexpectedAdmissionError",
    "Pod was rejected: devices that were allocated to it before do not exist any more",
)
_FAULT = re.compile(r"(\d+)(?:=([^,]*))?")


def parse_faults(text: str) -> dict[int, str]:
    """Faults by GPU index of `0=Xid79,3`; parts that say nothing are left out."""
    matches = (_FAULT.fullmatch(part.strip()) for part in text.split(","))
    return {int(match[1]): match[2] or "Unhealthy" for match in matches if match}


def fault_problems(text: str, gpus: int) -> tuple[str, ...]:
    """What makes no sense in `0=Xid79,3` for a node of so many GPUs."""
    problems = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = _FAULT.fullmatch(part)
        if match is None:
            problems.append(f"{part!r} is no fault; write for example 0=Xid79,3")
        elif int(match[1]) >= gpus:
            problems.append(f"there is no GPU {match[1]}; the node has {gpus}, counted from 0")
        elif problem := fault_problem(match[2] or ""):
            problems.append(problem)
    return tuple(f"{FAULTS_ANNOTATION}: {problem}" for problem in problems)


class SimulatedNode:
    """A node. `present` says whether its Node object exists."""

    def __init__(self, machine: Machine, clock: Clock | None = None) -> None:
        self.machine = machine
        self.gpus = SimulatedGPUs(machine.product, machine.inventory, machine.config, clock or RunningClock())
        self.offered = self.gpus.resources
        """The resources of the GPUs that the Node object shows."""
        self.holdings = Holdings()
        self.page: ExportedNode | None = None
        """The node's page of metrics, where it has GPUs."""
        self.published = self.gpus.labels()
        """The labels about GPUs that the Node object has."""
        self.present = False
        self.uid = ""
        self.generation = 0
        self.faults = ""
        self.recording: set[str] = set()
        """Pods whose devices are not on record yet."""
        self._value = Node(machine.name, machine.labels, self._capacity())
        self._pods: dict[str, Pod] = {}
        self._fractions: dict[str, FractionPod] = {}
        self._addresses: dict[str, int] = {}
        self._next = 1

    @property
    def name(self) -> str:
        """The node's name."""
        return self.machine.name

    @property
    def pods(self) -> Iterable[str]:
        """The uids of the pods that count on the node."""
        return self._pods.keys()

    def observe(self, node: objects.Node | None) -> None:
        """Take over what the Node object says: labels and taints that others may have set."""
        self.present = node is not None
        if node is not None:
            self.uid = node.metadata.uid
            seen = node_value(node)
            self._value = Node(self.name, seen.labels, self._capacity(), seen.taints, seen.unschedulable)

    def obey(self, gpu_node: GPUNode) -> bool:
        """Take over faults and quarantine; whether the health of a device changed by that."""
        self.generation = gpu_node.metadata.generation
        self.faults = gpu_node.metadata.annotations.get(FAULTS_ANNOTATION, "")
        desired = gpu_node.spec.desired
        asked = self.gpus.ask(desired)
        changed = self.gpus.obey(parse_faults(self.faults), desired.quarantine)
        self._count_devices()
        return changed or asked

    @property
    def must_cut(self) -> bool:
        """Whether the controller asks for GPUs to be cut otherwise than they are."""
        return bool(self.gpus.to_cut(self._busy()))

    def cut(self) -> bool:
        """Cut the GPUs as the controller asks; whether anything changed."""
        changed = self.gpus.cut(self._busy())
        self._count_devices()
        return changed

    def _busy(self) -> frozenset[str]:
        held = frozenset(uuid for holding in self.holdings.all for uuid in holding.devices)
        return held | carrying(self._fractions.values())

    def look(self) -> bool:
        """Take in what has happened to the GPUs; whether what is offered or said of them changed."""
        changed = self.gpus.look()
        self._count_devices()
        return changed

    def status(self) -> GPUNodeStatus:
        """What the devices are and who holds them."""
        return self.gpus.status(self._allocations())

    def fraction_problems(self) -> tuple[Reason, ...]:
        """What is wrong with fractions of the node's GPUs."""
        held = self.holdings.allocations()
        return fraction_problems(tuple(self._fractions.values()), held, self.gpus.inventory)

    def _allocations(self) -> tuple[GPUAllocation, ...]:
        parts = fraction_allocations(self._fractions.values(), self.gpus.inventory)
        return self.holdings.allocations() + parts

    def measure(self) -> bool:
        """Read the sensors; whether a reading moved by more than people care about."""
        moved = self.gpus.measure()
        if self.page is not None:
            self.page.driver.answered(0.0)
            self.page.kubelet.answered(0.0)
            self.page.sampled(Sampled(self.gpus.samples))
        return moved

    def export(self) -> None:
        """Bring the page of metrics up to what the GPUs are and who holds them."""
        if self.page is not None:
            self.page.observed(self.gpus.inventory)
            self.page.held(self._allocations())

    def recall(self, gpu_node: GPUNode) -> None:
        """Cut the GPUs as they were, where the scheduler cuts them: the fleet file does not say it there."""
        if gpu_node.spec.desired.dynamic:
            self.gpus.recall(gpu_node.status.devices)
            self._count_devices()

    def restore(self, recorded: tuple[GPUAllocation, ...]) -> None:
        """Take over the allocations on record."""
        self._hold(self.holdings.restore(recorded, self.gpus.node.offer))

    def admit(self, pod: objects.Pod) -> Rejection | None:
        """Take a pod: count it and give it its devices. Nothing changes when it is refused."""
        value = _asking(pod)
        refusal = refuses(value, self._value, self._others(value)) or self.allocate(pod)
        if refusal is None:
            self._pods[value.uid] = value
            if self._carry(pod):
                self.recording.add(value.uid)
        return refusal

    def keep(self, pod: objects.Pod) -> None:
        """Count a pod that runs here already, or that was granted other resources, by its spec."""
        self._pods[pod.metadata.uid] = _asking(pod)
        self._carry(pod)

    def allocate(self, pod: objects.Pod) -> Rejection | None:
        """Give a pod its devices, unless it holds them; None when it has what it asks for."""
        uid, claims = pod.metadata.uid, device_claims(pod)
        held = self.holdings.of(uid)
        if not claims or sum(len(one.ids) for one in held) == sum(claim.count for claim in claims):
            return None
        if held:
            return DEVICES_GONE
        holder = Holder(pod.metadata.namespace, pod.metadata.name, uid)
        picks, self.gpus.picks = self.gpus.picks, self.gpus.picks.bound(picks_of(pod))
        after = self.holdings.allocate(holder, claims, self.gpus.node.offer, self._preferred)
        if isinstance(after, Shortage):
            self.gpus.picks = picks
            return device_rejection(after)
        self._hold(after)
        for one in after.of(uid):
            used = self.gpus.picks.used(one.resource, one.ids)
            self.gpus.picks = used.confirmed(uid, one.container, one.resource, one.ids)
        self.recording.add(uid)
        return None

    def release(self, uid: str) -> bool:
        """Stop counting a pod and free its devices and address; whether it held devices or parts of them."""
        self._pods.pop(uid, None)
        self._addresses.pop(uid, None)
        self.recording.discard(uid)
        before = self.holdings
        after = before.release(uid)
        if after is not before:
            self._hold(after)
        fraction = self._fractions.pop(uid, None)
        if fraction is not None:
            self._carried()
        return after is not before or fraction is not None

    def resize_refusal(self, pod: objects.Pod) -> Rejection | None:
        """Why the resources that a running pod asks for anew cannot be granted beside the others."""
        value = _asking(pod)
        return refuses(value, self._value, self._others(value))

    def can_ever_grant(self, pod: objects.Pod) -> bool:
        """Whether the pod's resources would fit on the empty node."""
        return refuses(_asking(pod), self._value, []) is None

    def held(self, uid: str, container: str) -> tuple[str, ...]:
        """The UUIDs that a container of a pod holds."""
        found = [uuid for one in self.holdings.of(uid) if one.container == container for uuid in one.devices]
        fraction = self._fractions.get(uid)
        if fraction is not None and fraction.container == container:
            found += fraction.devices
        return tuple(found)

    def address(self, pod: objects.Pod) -> str:
        """The next free address of the node for a pod; empty when the range is used up."""
        taken = set(self._addresses.values())
        for step in range(POD_ADDRESSES_PER_NODE):
            ordinal = (self._next + step) % POD_ADDRESSES_PER_NODE
            if ordinal not in taken:
                self._next = ordinal + 1
                self._addresses[pod.metadata.uid] = ordinal
                return pod_address(self.machine, ordinal)
        return ""

    def reserve(self, pod: objects.Pod) -> None:
        """Keep the address that a pod has already."""
        ordinal = pod_ordinal(self.machine, pod.status.pod_ip)
        if ordinal is not None:
            self._addresses[pod.metadata.uid] = ordinal

    def _others(self, pod: Pod) -> list[Pod]:
        return [other for uid, other in self._pods.items() if uid != pod.uid]

    def _capacity(self) -> Mapping[str, int]:
        plain = {name: resource_amount(name, text) for name, text in self.machine.capacity.items()}
        return plain | {one.name: one.usable for one in self.gpus.resources}

    def _count_devices(self) -> None:
        self._value = msgspec.structs.replace(self._value, allocatable=self._capacity())

    def _hold(self, holdings: Holdings) -> None:
        self.holdings = holdings
        self._occupy()

    def _carry(self, pod: objects.Pod) -> bool:
        """Take note of the fraction that a pod has; whether it has one."""
        fraction = fraction_pod(pod)
        if fraction is None:
            return False
        self._fractions[fraction.uid] = fraction
        self._carried()
        return True

    def _carried(self) -> None:
        self.gpus.carry(carrying(self._fractions.values()))
        self._count_devices()
        self._occupy()

    def _occupy(self) -> None:
        """Make busy what containers hold; those with fractions work like those with shares."""
        parts = (
            f"{uuid}{REPLICA_SEPARATOR}{number}"
            for number, one in enumerate(self._fractions.values())
            for uuid in one.devices
        )
        self.gpus.occupy((*(one for holding in self.holdings.all for one in holding.ids), *parts))

    def _preferred(
        self, resource: str, available: Sequence[str], must: Sequence[str], size: int
    ) -> Sequence[str]:
        return self.gpus.node.preferred(resource, self.gpus.picks, available, must, size)


def _asking(pod: objects.Pod) -> Pod:
    """The pod with what its spec asks for. What its status says of resources is our own word, and a kubelet
    commits an allocation before it says so: whoever reads the status finds the room.
    """
    return pod_value(msgspec.structs.replace(pod, status=objects.PodStatus()))
