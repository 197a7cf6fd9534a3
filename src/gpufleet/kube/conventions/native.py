"""The native gang API of Kubernetes in its three shapes, which exclude each other.

1.35: `Workload` v1alpha1; a pod names a group of it, and perhaps a replica, in `spec.workloadRef`. Each group
and each replica of it is a gang of its own. 1.36: `PodGroup` v1alpha2, named by
`spec.schedulingGroup.podGroupName`; a Workload only has templates there. 1.37: `PodGroup` v1beta1, the same
for a reader, and `CompositePodGroup` v1alpha3, which makes one gang of PodGroups: a tree. The policy `basic`
asks for no gang: one pod suffices.
Source: k8s.io/api scheduling/v1alpha1 of 1.35, v1alpha2 of 1.36, v1beta1 and v1alpha3 of 1.37.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from gpufleet.fleet.gangs import Gang, SubGroup, Topology
from gpufleet.fleet.pods import GangRef
from gpufleet.kube import objects
from gpufleet.kube.conventions.stated import checked
from gpufleet.kube.kinds import Kind
from gpufleet.kube.objects.meta import APIStruct, ObjectMeta

PODGROUP_RULE = "native PodGroup"
WORKLOAD_RULE = "native Workload"
COMPOSITE_RULE = "native CompositePodGroup"

POD_GROUPS = Kind("scheduling.k8s.io", "v1beta1", "podgroups", "PodGroup")
POD_GROUPS_1_36 = Kind("scheduling.k8s.io", "v1alpha2", "podgroups", "PodGroup")
WORKLOADS_1_35 = Kind("scheduling.k8s.io", "v1alpha1", "workloads", "Workload")
COMPOSITE_POD_GROUPS = Kind("scheduling.k8s.io", "v1alpha3", "compositepodgroups", "CompositePodGroup")

COMPOSITE_PREFIX = "compositepodgroup/"


class GangPolicy(APIStruct, frozen=True, kw_only=True):
    """All or nothing: so many pods, or of a composite group so many groups."""

    min_count: int = 0
    min_group_count: int = 0


class SchedulingPolicy(APIStruct, frozen=True, kw_only=True):
    """`gang`, or `basic`, which asks for nothing."""

    gang: GangPolicy | None = None


class TopologyKey(APIStruct, frozen=True, kw_only=True):
    """The key of the node label that all pods must share."""

    key: str = ""


class SchedulingConstraints(APIStruct, frozen=True, kw_only=True):
    """Where a group may be placed."""

    topology: tuple[TopologyKey, ...] = ()


class PodGroupSpec(APIStruct, frozen=True, kw_only=True):
    """What a PodGroup or a CompositePodGroup asks for."""

    scheduling_policy: SchedulingPolicy = SchedulingPolicy()
    scheduling_constraints: SchedulingConstraints | None = None
    priority_class_name: str = ""
    priority: int | None = None
    parent_composite_pod_group_name: str = ""

    @property
    def topology(self) -> Topology:
        """The level that all pods must share."""
        keys = self.scheduling_constraints.topology if self.scheduling_constraints is not None else ()
        return Topology(required=keys[0].key) if keys else Topology()


class PodGroup(APIStruct, frozen=True, kw_only=True):
    """A PodGroup or a CompositePodGroup."""

    metadata: ObjectMeta
    spec: PodGroupSpec = PodGroupSpec()


class WorkloadPodGroup(APIStruct, frozen=True, kw_only=True):
    """A group of a Workload of 1.35."""

    name: str
    policy: SchedulingPolicy = SchedulingPolicy()


class WorkloadSpec(APIStruct, frozen=True, kw_only=True):
    """The groups of a Workload; later versions have templates instead, which form no gang."""

    pod_groups: tuple[WorkloadPodGroup, ...] = ()


class Workload(APIStruct, frozen=True, kw_only=True):
    """A Workload."""

    metadata: ObjectMeta
    spec: WorkloadSpec = WorkloadSpec()


def pod_gang(pod: objects.Pod) -> GangRef | None:
    """The gang that the pod's spec names."""
    group, workload = pod.spec.scheduling_group, pod.spec.workload_ref
    if group is not None and group.pod_group_name:
        return GangRef(group.pod_group_name, None, PODGROUP_RULE)
    if workload is None or not workload.name:
        return None
    name = f"{workload.name}/{workload.pod_group}"
    described_by = f"{pod.metadata.namespace}/{name}"
    if workload.pod_group_replica_key:
        name = f"{name}/{workload.pod_group_replica_key}"
    return GangRef(name, None, WORKLOAD_RULE, described_by=described_by)


def pod_group_gangs(group: PodGroup) -> tuple[Gang, ...]:
    """The gang of a PodGroup. One that belongs to a CompositePodGroup is part of that one's gang, and cannot
    be understood without.
    """
    policy, spec = group.spec.scheduling_policy, group.spec
    gang = Gang(
        group.metadata.key,
        PODGROUP_RULE,
        policy.gang.min_count if policy.gang is not None else 1,
        topology=spec.topology,
        priority_class=spec.priority_class_name,
        priority=spec.priority,
    )
    parent = spec.parent_composite_pod_group_name
    if parent:
        problem = f"its CompositePodGroup {group.metadata.namespace}/{parent} cannot be seen"
        return (msgspec.structs.replace(gang, minimum=None, problem=problem),)
    return (checked(gang, "spec.schedulingPolicy.gang.minCount"),)


def workload_gangs(workload: Workload) -> tuple[Gang, ...]:
    """The gangs of a Workload of 1.35, one for each of its groups."""
    return tuple(
        checked(
            Gang(
                f"{workload.metadata.key}/{group.name}",
                WORKLOAD_RULE,
                group.policy.gang.min_count if group.policy.gang is not None else 1,
            ),
            f"podGroups[{group.name}].policy.gang.minCount",
        )
        for group in workload.spec.pod_groups
    )


def composite_gangs(
    groups: Mapping[str, PodGroup], composites: Mapping[str, PodGroup]
) -> tuple[dict[str, Gang], dict[str, GangRef]]:
    """The gangs of CompositePodGroups by key, and for each PodGroup below one the reference of its pods.

    Inner groups need `minGroupCount` of the groups below them, with the policy `basic` none.
    """
    gangs: dict[str, Gang] = {}
    refs: dict[str, GangRef] = {}
    for root in composites.values():
        if root.spec.parent_composite_pod_group_name:
            continue
        namespace, name = root.metadata.namespace, root.metadata.name
        inner = _below(name, namespace, composites)
        parents = {"": name} | {COMPOSITE_PREFIX + one.metadata.name: one.metadata.name for one in inner}
        leaves = [
            (group, own)
            for own, parent in parents.items()
            for group in groups.values()
            if group.metadata.namespace == namespace and group.spec.parent_composite_pod_group_name == parent
        ]
        subgroups = [_inner(one, name) for one in inner]
        subgroups += [
            SubGroup(group.metadata.name, own, _pods(group), group.spec.topology) for group, own in leaves
        ]
        gang = Gang(
            f"{namespace}/{COMPOSITE_PREFIX}{name}",
            COMPOSITE_RULE,
            subgroups=tuple(subgroups),
            minimum_subgroups=_groups(root),
            topology=root.spec.topology,
            priority_class=root.spec.priority_class_name,
            priority=root.spec.priority,
        )
        gangs[gang.key] = checked(gang, "a minCount or minGroupCount")
        for group, _ in leaves:
            own = group.metadata.name
            refs[group.metadata.key] = GangRef(
                f"{COMPOSITE_PREFIX}{name}", None, COMPOSITE_RULE, subgroup=own
            )
    return gangs, refs


def _below(root: str, namespace: str, composites: Mapping[str, PodGroup]) -> list[PodGroup]:
    found: list[PodGroup] = []
    parents = {root}
    while parents:
        level = [
            one
            for one in composites.values()
            if one.metadata.namespace == namespace and one.spec.parent_composite_pod_group_name in parents
        ]
        found += level
        parents = {one.metadata.name for one in level}
    return found


def _inner(group: PodGroup, root: str) -> SubGroup:
    parent = group.spec.parent_composite_pod_group_name
    above = "" if parent == root else COMPOSITE_PREFIX + parent
    name = COMPOSITE_PREFIX + group.metadata.name
    return SubGroup(name, above, _groups(group), group.spec.topology)


def _groups(group: PodGroup) -> int:
    policy = group.spec.scheduling_policy
    return policy.gang.min_group_count if policy.gang is not None else 0


def _pods(group: PodGroup) -> int:
    policy = group.spec.scheduling_policy
    return policy.gang.min_count if policy.gang is not None else 0
