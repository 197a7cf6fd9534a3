"""Pods as a scheduler sees them.

A `PodShape` is everything that decides where a pod fits, apart from who it is: pods of one template share one
shape, and a decision about a shape holds for all of them. A `Pod` adds identity, state and order.
Amounts follow `fleet.quantities`: CPU in millicores, all else in whole units.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

import msgspec

from gpufleet.fleet.demands import MILLI
from gpufleet.fleet.devices import DeviceClaim, DevicePick
from gpufleet.fleet.fractions import Fraction
from gpufleet.fleet.gangs import Gang
from gpufleet.fleet.selectors import LabelSelector, NodeSelector, NodeSelectorTerm, Toleration

SCHEDULER_NAME = "gpufleet"
KUBE_SCHEDULER_NAME = "default-scheduler"
GANG_LABEL = "gpufleet.dev/gang"
GANG_SIZE_LABEL = "gpufleet.dev/gang-size"
GANG_LABELS_RULE = "gpufleet.dev labels"
"""The rule of a gang that these two form."""

_MIG_PROFILE = re.compile(r"^nvidia\.com/mig-(\d+)g\.(\d+)gb")
_GIGABYTE, _WHOLE_GPU = 100, 100_000
_ANY = "0.0.0.0"  # noqa: S104 - compared, never bound


class HostPort(msgspec.Struct, frozen=True):
    """A port on the node; an empty or 0.0.0.0 address means every address."""

    port: int
    protocol: str = "TCP"
    address: str = ""

    def conflicts(self, other: HostPort) -> bool:
        """Whether both cannot be held on one node at once."""
        if self.port != other.port or self.protocol != other.protocol:
            return False
        mine, theirs = self.address or _ANY, other.address or _ANY
        return mine == theirs or _ANY in (mine, theirs)


class PreferredNodes(msgspec.Struct, frozen=True):
    """A preferred node affinity term with its weight (1..100)."""

    weight: int
    term: NodeSelectorTerm


class PodAffinityTerm(msgspec.Struct, frozen=True):
    """Pods that match `selector` in `namespaces`, seen per value of the node label `topology_key`.

    `selector` None matches no pod. `namespaces` is what the term names or, when it names nothing, the pod's
    own; `namespace_selector` adds namespaces by their labels (an empty selector adds all of them).
    matchLabelKeys and mismatchLabelKeys are already merged into the selector by the API server.
    """

    topology_key: str
    selector: LabelSelector | None
    namespaces: tuple[str, ...]
    namespace_selector: LabelSelector | None = None


class WeightedPodAffinityTerm(msgspec.Struct, frozen=True):
    """A preferred pod affinity term; the weight is negative for anti-affinity."""

    weight: int
    term: PodAffinityTerm


class SpreadConstraint(msgspec.Struct, frozen=True):
    """A topology spread constraint. `hard` is DoNotSchedule; policies are Honor or Ignore."""

    max_skew: int
    topology_key: str
    hard: bool
    selector: LabelSelector | None
    min_domains: int = 1
    node_affinity_policy: str = "Honor"
    node_taints_policy: str = "Ignore"


class PodShape(msgspec.Struct, frozen=True, cache_hash=True):
    """What decides where a pod fits. `requests` is the effective request, sorted, and has `pods`: 1; a
    `fraction` of GPUs comes on top of it.
    """

    requests: tuple[tuple[str, int], ...] = (("pods", 1),)
    node_selector: tuple[tuple[str, str], ...] = ()
    node_affinity: NodeSelector | None = None
    preferred_nodes: tuple[PreferredNodes, ...] = ()
    tolerations: tuple[Toleration, ...] = ()
    affinity: tuple[PodAffinityTerm, ...] = ()
    anti_affinity: tuple[PodAffinityTerm, ...] = ()
    preferred_pods: tuple[WeightedPodAffinityTerm, ...] = ()
    spread: tuple[SpreadConstraint, ...] = ()
    host_ports: tuple[HostPort, ...] = ()
    claims: tuple[str, ...] = ()
    inline_csi_drivers: tuple[str, ...] = ()
    resource_claims: bool = False
    fraction: Fraction | None = None


class GangRef(msgspec.Struct, frozen=True):
    """The gang that a pod belongs to. `rule` names the convention that formed it, for people.

    `minimum` and `stated` are what the pod itself says; an object that describes the gang (`Snapshot.gangs`)
    counts for more. `minimum` None means that the pod says nothing, or nothing that could be understood:
    `problem` then says why. `subgroup` is the pod's part of the gang, empty without; `described_by` is the
    key of the object's gang where it is not the pod's.
    """

    name: str
    minimum: int | None
    rule: str
    problem: str = ""
    subgroup: str = ""
    described_by: str = ""
    stated: Gang | None = None


class Pod(msgspec.Struct, frozen=True):
    """One pod. `phase` is Pending, Running, Succeeded or Failed; times are seconds since the epoch.

    `owner` is the uid of the controlling owner (empty for a bare pod), `owner_kind` and `owner_name` are for
    rules and for people. `preempts` is False for preemptionPolicy Never. `reported` is True while the pod's
    condition says that gpufleet could not place it. `device_claims` are what its containers ask for of GPUs,
    in the order in which a kubelet allocates, and `picks` what was picked for them when it was bound.
    `queue` is the queue that the pod itself names.
    """

    namespace: str
    name: str
    uid: str
    shape: PodShape
    labels: Mapping[str, str] = {}
    priority: int = 0
    created: float = 0.0
    scheduler: str = SCHEDULER_NAME
    node: str = ""
    nominated_node: str = ""
    phase: str = "Pending"
    terminating: bool = False
    gates: tuple[str, ...] = ()
    preempts: bool = True
    owner: str = ""
    owner_kind: str = ""
    owner_name: str = ""
    gang: GangRef | None = None
    reported: bool = False
    device_claims: tuple[DeviceClaim, ...] = ()
    picks: tuple[DevicePick, ...] = ()
    queue: str = ""

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"

    @property
    def finished(self) -> bool:
        """Whether the pod has ended and holds nothing on its node any more."""
        return self.phase in ("Succeeded", "Failed")

    @property
    def gang_key(self) -> str:
        """`namespace/gang`, or an empty string for a pod outside any gang."""
        return f"{self.namespace}/{self.gang.name}" if self.gang else ""

    @property
    def gang_object(self) -> str:
        """The key of the object that would describe the pod's gang; empty outside any gang."""
        return (self.gang.described_by or self.gang_key) if self.gang else ""

    @property
    def workload(self) -> str:
        """What people call what the pod belongs to: its owner `Kind/name`, its gang, or the pod itself."""
        if self.owner_name:
            return f"{self.owner_kind}/{self.owner_name}"
        return f"Gang/{self.gang.name}" if self.gang and self.gang.name else f"Pod/{self.name}"

    @property
    def gang_part(self) -> tuple[str, str]:
        """The gang and the owner of the pod: a gang may have several, and another one in its next run."""
        return self.gang_key, self.owner


def is_gpu_resource(resource: str) -> bool:
    """Whether a resource stands for GPUs, MIG instances or shares (`nvidia.com/gpu*`, `nvidia.com/mig-*`)."""
    return resource.startswith(("nvidia.com/gpu", "nvidia.com/mig-"))


def gpus_requested(shape: PodShape) -> int:
    """How many GPU devices of any kind (whole, shared, MIG, a fraction) a shape asks for."""
    asked = sum(amount for resource, amount in shape.requests if is_gpu_resource(resource))
    return asked + (shape.fraction.devices if shape.fraction else 0)


def uses_gpus(shape: PodShape) -> bool:
    """Whether a shape asks for GPUs in any way."""
    return shape.fraction is not None or any(n and is_gpu_resource(name) for name, n in shape.requests)


@lru_cache(maxsize=4096)
def gpu_share(shape: PodShape) -> int:
    """How much of GPUs a shape asks for, to compare by: a whole GPU is more than any part of one, and of MIG
    instances and fractions that of more memory is more, then that of more compute slices.
    """
    asked = sum(amount * _share(resource) for resource, amount in shape.requests if is_gpu_resource(resource))
    return asked + (_part(shape.fraction) if shape.fraction else 0)


def _part(fraction: Fraction) -> int:
    if fraction.milli:
        return fraction.devices * fraction.milli * _WHOLE_GPU // MILLI
    return fraction.devices * fraction.memory_mib * _GIGABYTE // 1024


def _share(resource: str) -> int:
    match = _MIG_PROFILE.match(resource)
    return int(match[2]) * _GIGABYTE + int(match[1]) if match else _WHOLE_GPU
