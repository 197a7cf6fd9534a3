"""The coscheduling plugin of scheduler-plugins: a label on pods, and a PodGroup of that name.

Source: scheduler-plugins apis/scheduling/v1alpha1; before 0.23 the label was of the group
`scheduling.sigs.k8s.io`.
"""

from __future__ import annotations

from gpufleet.fleet.gangs import Gang
from gpufleet.fleet.pods import GangRef
from gpufleet.kube import objects
from gpufleet.kube.conventions.stated import checked
from gpufleet.kube.kinds import Kind
from gpufleet.kube.objects.meta import APIStruct, ObjectMeta

RULE = "coscheduling PodGroup"
LABELS = ("scheduling.x-k8s.io/pod-group", "pod-group.scheduling.sigs.k8s.io")
POD_GROUPS = Kind("scheduling.x-k8s.io", "v1alpha1", "podgroups", "PodGroup")


class PodGroupSpec(APIStruct, frozen=True, kw_only=True):
    """What a PodGroup asks for."""

    min_member: int | None = None
    schedule_timeout_seconds: int | None = None


class PodGroup(APIStruct, frozen=True, kw_only=True):
    """A PodGroup of coscheduling."""

    metadata: ObjectMeta
    spec: PodGroupSpec = PodGroupSpec()


def pod_gang(pod: objects.Pod) -> GangRef | None:
    """The gang that the pod's label names."""
    name = next((name for label in LABELS if (name := pod.metadata.labels.get(label))), None)
    return GangRef(name, None, RULE) if name is not None else None


def pod_group_gangs(group: PodGroup) -> tuple[Gang, ...]:
    """The gang of a PodGroup."""
    spec = group.spec
    gang = Gang(group.metadata.key, RULE, spec.min_member, schedule_timeout_s=spec.schedule_timeout_seconds)
    return (checked(gang, "spec.minMember"),)
