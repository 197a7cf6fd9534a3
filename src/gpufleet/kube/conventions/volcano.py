"""Volcano: PodGroups with minimums of tasks, its Job, and the annotations of owners.

A pod names its PodGroup in the annotation `scheduling.k8s.io/group-name` and its task in
`volcano.sh/task-spec`. The minimums of tasks count only where they do not exceed the gang's own together, as
Volcano has it. `networkTopology` names tiers of HyperNodes and no node labels, and the subgroups of
`subGroupPolicy` follow from labels of pods: both are not read.
Source: volcano staging scheduling/v1beta1 and batch/v1alpha1, docs/design/min-avaiable-member-resource.md.
"""

from __future__ import annotations

from collections.abc import Mapping

from gpufleet.fleet.gangs import Gang, SubGroup
from gpufleet.fleet.pods import GangRef
from gpufleet.kube import objects
from gpufleet.kube.conventions.stated import checked, filled, ref_of, said, size_in, truth_in
from gpufleet.kube.kinds import Kind
from gpufleet.kube.objects.meta import APIStruct, ObjectMeta

RULE = "Volcano PodGroup"
JOB_RULE = "Volcano Job"
MIN_MEMBER_RULE = "Volcano group-min-member"
JOB_PREFIX = "job.batch.volcano.sh/"

POD_GROUPS = Kind("scheduling.volcano.sh", "v1beta1", "podgroups", "PodGroup")
JOBS = Kind("batch.volcano.sh", "v1alpha1", "jobs", "Job")

GROUP_ANNOTATIONS = ("scheduling.k8s.io/group-name", "scheduling.volcano.sh/group-name")
MIN_MEMBER_ANNOTATION = "scheduling.volcano.sh/group-min-member"
QUEUE_ANNOTATION = "scheduling.volcano.sh/queue-name"
TASK_KEY = "volcano.sh/task-spec"
JOB_KEY = "volcano.sh/job-name"


class PodGroupSpec(APIStruct, frozen=True, kw_only=True):
    """What a PodGroup asks for."""

    min_member: int | None = None
    min_task_member: Mapping[str, int] = {}
    queue: str = ""
    priority_class_name: str = ""


class PodGroup(APIStruct, frozen=True, kw_only=True):
    """A PodGroup of Volcano."""

    metadata: ObjectMeta
    spec: PodGroupSpec = PodGroupSpec()


class Task(APIStruct, frozen=True, kw_only=True):
    """The pods of one role in a Job."""

    name: str = ""
    replicas: int = 1
    min_available: int | None = None


class JobSpec(APIStruct, frozen=True, kw_only=True):
    """What a Job asks for."""

    min_available: int | None = None
    tasks: tuple[Task, ...] = ()
    queue: str = ""
    priority_class_name: str = ""


class Job(APIStruct, frozen=True, kw_only=True):
    """A Job of Volcano."""

    metadata: ObjectMeta
    spec: JobSpec = JobSpec()


def pod_gang(pod: objects.Pod) -> GangRef | None:
    """The gang that the pod's annotations name, or that its owner is by them."""
    meta = pod.metadata
    task = said(meta, TASK_KEY) or ""
    name, job = said(meta, *GROUP_ANNOTATIONS), said(meta, JOB_KEY)
    if name is not None:
        return GangRef(name, None, RULE, subgroup=task)
    if job is not None:
        return GangRef(f"{JOB_PREFIX}{job}", None, JOB_RULE, subgroup=task)
    owner = meta.controller
    if owner is None or MIN_MEMBER_ANNOTATION not in meta.annotations:
        return None
    name = f"{owner.kind.lower()}/{owner.name}"
    return ref_of(name, with_labels(by_annotation(meta, f"{meta.namespace}/{name}"), meta), task)


def by_annotation(meta: ObjectMeta, key: str) -> Gang:
    """The gang of an owner whose size stands in its annotation."""
    minimum, problem = size_in(meta.annotations[MIN_MEMBER_ANNOTATION], MIN_MEMBER_ANNOTATION)
    return Gang(key, MIN_MEMBER_RULE, minimum, problem)


def pod_group_gangs(group: PodGroup) -> tuple[Gang, ...]:
    """The gang of a PodGroup; it is in the queue `default` if it names none."""
    spec = group.spec
    gang = Gang(
        group.metadata.key,
        RULE,
        spec.min_member,
        subgroups=_tasks(spec.min_task_member, spec.min_member or 0),
        queue=spec.queue or "default",
        priority_class=spec.priority_class_name,
    )
    return (with_labels(checked(gang, "spec.minMember or minTaskMember"), group.metadata),)


def job_gangs(job: Job) -> tuple[Gang, ...]:
    """The gang of a Job: a task needs all its replicas unless it says less, and the Job all that its tasks
    need.
    """
    spec = job.spec
    tasks = {
        task.name: task.replicas if task.min_available is None else task.min_available for task in spec.tasks
    }
    minimum = sum(tasks.values()) if not spec.min_available else spec.min_available
    gang = Gang(
        f"{job.metadata.namespace}/{JOB_PREFIX}{job.metadata.name}",
        JOB_RULE,
        minimum,
        maximum=sum(task.replicas for task in spec.tasks),
        subgroups=_tasks(tasks, minimum),
        queue=spec.queue or "default",
        priority_class=spec.priority_class_name,
    )
    return (with_labels(checked(gang, "spec.minAvailable"), job.metadata),)


def with_labels(gang: Gang, meta: ObjectMeta) -> Gang:
    """What Volcano's annotations of an owner, or of a pod, add to a gang."""
    return filled(
        gang,
        queue=meta.annotations.get(QUEUE_ANNOTATION),
        preemptible=truth_in(said(meta, "volcano.sh/preemptable")),
    )


def _tasks(minimums: Mapping[str, int], together: int) -> tuple[SubGroup, ...]:
    if sum(minimums.values()) > together:
        return ()
    return tuple(SubGroup(name, minimum=minimum) for name, minimum in minimums.items())
