"""The snapshot: one consistent view of a cluster, the only thing that decisions read.

A snapshot is a value. Whoever builds it incrementally (`kube.snapshot`) replaces the inner mapping of a node
whenever a pod comes, goes or changes there, so identity of `pods_by_node[name]` means equality: caches may
rely on it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import msgspec

from gpufleet.fleet.demands import TypicalPod
from gpufleet.fleet.devices import NodeDevices
from gpufleet.fleet.gangs import Gang
from gpufleet.fleet.nodes import Node
from gpufleet.fleet.pods import Pod
from gpufleet.fleet.queues import NO_QUEUES, QueueTree
from gpufleet.fleet.selectors import LabelSelector
from gpufleet.fleet.volumes import AttachLimits, Claim, CSIDriver, StorageCapacity, StorageClass, Volume


class DisruptionBudget(msgspec.Struct, frozen=True):
    """A PodDisruptionBudget: which pods it protects and how many of them may be disrupted now.

    `selector` None protects no pod. `disrupted` names pods already counted in `allowed`.
    """

    namespace: str
    name: str
    selector: LabelSelector | None
    allowed: int
    disrupted: frozenset[str] = frozenset()


class Snapshot(msgspec.Struct, frozen=True):
    """A cluster at one moment. Keys are names, or `namespace/name` for namespaced objects.

    `pods_by_node` has every pod that is bound or assumed to be bound and has not finished, by node (also
    nodes that do not exist any more); `unbound` has every pod that is neither bound nor finished, whoever
    schedules it. `gang_successes` counts the pods that have succeeded by gang and owner (`Pod.gang_part`),
    and then by subgroup. `gangs` has what objects say of gangs, by `namespace/name`.
    `devices` says of nodes whose agent reports which devices there are and who holds them. `queues` are those
    of all conventions. `mix` are the pods that usually come, the most frequent first; empty as long as that
    is not known.
    """

    nodes: Mapping[str, Node] = {}
    devices: Mapping[str, NodeDevices] = {}
    pods_by_node: Mapping[str, Mapping[str, Pod]] = {}
    unbound: Mapping[str, Pod] = {}
    gang_successes: Mapping[tuple[str, str], Mapping[str, int]] = {}
    gangs: Mapping[str, Gang] = {}
    namespaces: Mapping[str, Mapping[str, str]] = {}
    claims: Mapping[str, Claim] = {}
    volumes: Mapping[str, Volume] = {}
    storage_classes: Mapping[str, StorageClass] = {}
    csi_drivers: Mapping[str, CSIDriver] = {}
    storage_capacities: tuple[StorageCapacity, ...] = ()
    attach_limits: Mapping[str, AttachLimits] = {}
    budgets: tuple[DisruptionBudget, ...] = ()
    mix: tuple[TypicalPod, ...] = ()
    queues: QueueTree = NO_QUEUES

    def pods(self) -> Iterator[Pod]:
        """Every pod, bound ones first."""
        for pods in self.pods_by_node.values():
            yield from pods.values()
        yield from self.unbound.values()


def snapshot_of(nodes: tuple[Node, ...] = (), pods: tuple[Pod, ...] = (), **rest: object) -> Snapshot:
    """A snapshot from plain collections; pods are sorted into bound and unbound, finished ones left out."""
    by_node: dict[str, dict[str, Pod]] = {}
    unbound: dict[str, Pod] = {}
    successes: dict[tuple[str, str], Counter[str]] = {}
    for pod in pods:
        if pod.finished:
            if pod.gang and pod.phase == "Succeeded":
                successes.setdefault(pod.gang_part, Counter())[pod.gang.subgroup] += 1
            continue
        (by_node.setdefault(pod.node, {}) if pod.node else unbound)[pod.key] = pod
    by_name = {node.name: node for node in nodes}
    return Snapshot(nodes=by_name, pods_by_node=by_node, unbound=unbound, gang_successes=successes, **rest)  # type: ignore[arg-type]
