"""KAI Scheduler: PodGroups with a tree of subgroups, and what labels and annotations of owners say.

A pod names its PodGroup in the annotation `pod-group-name` and its subgroup in a label; with
`kai.scheduler/skip-podgrouper` nobody groups it by its owner. A leaf needs `minMember` pods (1 if not said),
an inner subgroup `minSubGroup` of those below it (all if not said). A priority of 100 or more makes a
workload non-preemptible unless `preemptibility` says otherwise; the numbers are those of KAI's own classes.
Source: KAI-Scheduler pkg/apis/scheduling/v2alpha2, pkg/common/constants, docs/priority.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from gpufleet.fleet.gangs import Gang, Segment, SubGroup, Topology
from gpufleet.fleet.pods import GangRef
from gpufleet.kube import objects
from gpufleet.kube.conventions.stated import checked, filled, number_in, said, seconds_in, size_in
from gpufleet.kube.kinds import Kind
from gpufleet.kube.objects.meta import APIStruct, ObjectMeta

RULE = "KAI PodGroup"
MIN_MEMBER_RULE = "KAI batch-min-member"
POD_GROUPS = Kind("scheduling.run.ai", "v2alpha2", "podgroups", "PodGroup")

GROUP_ANNOTATION = "pod-group-name"
SUBGROUP_LABEL = "kai.scheduler/subgroup-name"
SKIP_ANNOTATION = "kai.scheduler/skip-podgrouper"
MIN_MEMBER_ANNOTATION = "kai.scheduler/batch-min-member"
QUEUE_LABEL = "kai.scheduler/queue"
PRIORITY_LABEL = "priorityClassName"
PREEMPTIBILITY_LABEL = "kai.scheduler/preemptibility"

PRIORITIES = {"train": 50, "build-preemptible": 75, "build": 100, "inference": 125}
NOT_PREEMPTIBLE_FROM = 100


class TopologyConstraint(APIStruct, frozen=True, kw_only=True):
    """Levels of a Topology by their node labels."""

    required_topology_level: str = ""
    preferred_topology_level: str = ""


class PodGroupSubGroup(APIStruct, frozen=True, kw_only=True):
    """A subgroup of a PodGroup."""

    name: str
    parent: str | None = None
    min_member: int | None = None
    min_sub_group: int | None = None
    topology_constraint: TopologyConstraint | None = None


class PodGroupSpec(APIStruct, frozen=True, kw_only=True):
    """What a PodGroup asks for."""

    min_member: int | None = None
    min_sub_group: int | None = None
    queue: str = ""
    priority_class_name: str = ""
    preemptibility: str = ""
    topology_constraint: TopologyConstraint | None = None
    sub_groups: tuple[PodGroupSubGroup, ...] = ()
    preemption_delay: str | None = None
    staleness_grace_period: str | None = None


class PodGroup(APIStruct, frozen=True, kw_only=True):
    """A PodGroup of KAI."""

    metadata: ObjectMeta
    spec: PodGroupSpec = PodGroupSpec()


def pod_gang(pod: objects.Pod) -> GangRef | None:
    """The gang that the pod's annotation names."""
    name = said(pod.metadata, GROUP_ANNOTATION)
    if name is None:
        return None
    return GangRef(name, None, RULE, subgroup=pod.metadata.labels.get(SUBGROUP_LABEL, ""))


def groups_itself(meta: ObjectMeta) -> bool:
    """Whether a pod is of no gang but one that it names."""
    return said(meta, SKIP_ANNOTATION) == "true"


def pod_group_gangs(group: PodGroup) -> tuple[Gang, ...]:
    """The gang of a PodGroup."""
    spec = group.spec
    below = Counter(one.parent for one in spec.sub_groups if one.parent)
    gang = Gang(
        group.metadata.key,
        RULE,
        spec.min_member,
        subgroups=tuple(
            SubGroup(one.name, one.parent or "", _minimum(one, below), _topology(one.topology_constraint))
            for one in spec.sub_groups
        ),
        minimum_subgroups=spec.min_sub_group,
        topology=_topology(spec.topology_constraint),
        queue=spec.queue,
        priority_class=spec.priority_class_name,
        preemptible=_preemptible(spec.preemptibility),
        stale_after_s=seconds_in(spec.staleness_grace_period),
        preemption_delay_s=seconds_in(spec.preemption_delay),
    )
    return (_by_priority(with_labels(checked(gang, "spec.minMember or minSubGroup"), group.metadata)),)


def by_annotation(meta: ObjectMeta, key: str, at_once: int) -> Gang:
    """The gang of a Job that says how many pods it needs; `at_once` is how many it may have."""
    minimum, problem = size_in(meta.annotations[MIN_MEMBER_ANNOTATION], MIN_MEMBER_ANNOTATION)
    return Gang(key, MIN_MEMBER_RULE, minimum, problem, maximum=at_once)


def with_labels(gang: Gang, meta: ObjectMeta) -> Gang:
    """What KAI's labels and annotations of an owner, or of a pod, add to a gang."""
    found = meta.annotations
    segment = number_in(found.get("kai.scheduler/segment-size"))
    said_more = filled(
        gang,
        queue=meta.labels.get(QUEUE_LABEL),
        priority_class=meta.labels.get(PRIORITY_LABEL),
        preemptible=_preemptible(said(meta, PREEMPTIBILITY_LABEL) or ""),
        topology=topology_of(meta),
        segment=Segment(
            segment,
            Topology(
                found.get("kai.scheduler/segment-topology-required-placement", ""),
                found.get("kai.scheduler/segment-topology-preferred-placement", ""),
            ),
        )
        if segment
        else None,
        preemption_delay_s=seconds_in(found.get("kai.scheduler/preemption-delay")),
        stale_after_s=seconds_in(found.get("kai.scheduler/staleness-grace-period")),
    )
    return _by_priority(said_more) if QUEUE_LABEL in meta.labels else said_more


def topology_of(meta: ObjectMeta) -> Topology:
    """The topology that annotations of an owner or a pod template ask for."""
    return Topology(
        meta.annotations.get("kai.scheduler/topology-required-placement", ""),
        meta.annotations.get("kai.scheduler/topology-preferred-placement", ""),
    )


def _by_priority(gang: Gang) -> Gang:
    priority = PRIORITIES.get(gang.priority_class)
    preemptible = priority < NOT_PREEMPTIBLE_FROM if priority is not None else None
    return filled(gang, priority=priority, preemptible=preemptible)


def _preemptible(word: str) -> bool | None:
    return {"preemptible": True, "non-preemptible": False}.get(word)


def _minimum(one: PodGroupSubGroup, below: Mapping[str, int]) -> int:
    if one.name in below:
        return below[one.name] if one.min_sub_group is None else one.min_sub_group
    return 1 if one.min_member is None else one.min_member


def _topology(constraint: TopologyConstraint | None) -> Topology:
    if constraint is None:
        return Topology()
    return Topology(constraint.required_topology_level, constraint.preferred_topology_level)
