"""Which gang a pod is of: one table of precedence over all conventions, and the kinds that describe gangs.

The first rule that says something about a pod wins. What names a gang explicitly comes before what follows
from the kind of an owner; of objects that describe gangs of one name in a namespace the one whose kind stands
first counts. What is only said of a gang in passing (queue, priority, topology, time) is added from all
conventions, in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from gpufleet.fleet.gangs import Gang
from gpufleet.fleet.pods import GANG_LABEL, GANG_SIZE_LABEL, GangRef
from gpufleet.kube import kinds, objects
from gpufleet.kube.conventions import (
    coscheduling,
    kai,
    kubeflow,
    kueue,
    labels,
    native,
    owners,
    ray,
    slurm,
    volcano,
    yunikorn,
)
from gpufleet.kube.conventions.stated import filled, ref_of, said
from gpufleet.kube.kinds import Kind
from gpufleet.kube.objects import ObjectMeta

Reader = Callable[[objects.Pod], GangRef | None]

EXPLICIT: tuple[Reader, ...] = (
    lambda pod: labels.gang_of(pod.metadata),  # gpufleet.dev/gang
    native.pod_gang,                           # spec.schedulingGroup, spec.workloadRef
    kai.pod_gang,                              # pod-group-name
    volcano.pod_gang,                          # scheduling.k8s.io/group-name
    coscheduling.pod_gang,                     # scheduling.x-k8s.io/pod-group
    kueue.pod_gang,                            # kueue.x-k8s.io/pod-group-name
    yunikorn.pod_gang,                         # yunikorn.apache.org/task-group-name
)  # fmt: skip
"""What a pod itself may say, in the order in which it counts."""

INFERRED: tuple[Reader, ...] = (owners.pod_gang, kubeflow.pod_gang, ray.pod_gang)
"""What follows from the kind of its owner, by labels; it comes after all that is explicit."""

KEYS = frozenset({
    GANG_LABEL, GANG_SIZE_LABEL, kai.GROUP_ANNOTATION, *volcano.GROUP_ANNOTATIONS, volcano.JOB_KEY,
    volcano.MIN_MEMBER_ANNOTATION, *coscheduling.LABELS, kueue.GROUP_LABEL, yunikorn.GROUP_NAME,
    yunikorn.GROUPS, owners.LEADER_WORKER_SET_KEY, owners.JOBSET_KEY, kubeflow.JOB_KEY, ray.CLUSTER_KEY,
})  # fmt: skip
"""A pod whose metadata has none of these labels and annotations, and whose spec names no group, is of no gang
by itself. Most pods are, and this is asked of every one.
"""

DETAILS = (kai.with_labels, volcano.with_labels, kueue.with_labels, yunikorn.with_labels, slurm.with_labels)
"""What labels and annotations say of a gang in passing."""


class GangKind(NamedTuple):
    """A kind whose objects describe gangs. `prefix` is what the name of a gang has before that of the object;
    `type` is what is decoded of it.
    """

    kind: Kind
    type: type[Any]
    gangs: Callable[[Any], tuple[Gang, ...]]
    prefix: str = ""


def _owner(gangs: Callable[[Any], tuple[Gang, ...]]) -> Callable[[Any], tuple[Gang, ...]]:
    """The reader of an owner, with what its labels say in passing."""
    return lambda owner: tuple(with_details(gang, owner.metadata) for gang in gangs(owner))


def _kubeflow(kind: Kind) -> GangKind:
    gangs = _owner(partial(kubeflow.job_gangs, kind=kind.kind))
    return GangKind(kind, kubeflow.KubeflowJob, gangs, f"{kind.kind.lower()}/")


POD_GROUP_KINDS = (
    GangKind(native.POD_GROUPS, native.PodGroup, native.pod_group_gangs),
    GangKind(native.POD_GROUPS_1_36, native.PodGroup, native.pod_group_gangs),
    GangKind(native.WORKLOADS_1_35, native.Workload, native.workload_gangs),
    GangKind(kai.POD_GROUPS, kai.PodGroup, _owner(kai.pod_group_gangs)),
    GangKind(volcano.POD_GROUPS, volcano.PodGroup, _owner(volcano.pod_group_gangs)),
    GangKind(coscheduling.POD_GROUPS, coscheduling.PodGroup, _owner(coscheduling.pod_group_gangs)),
)
"""Objects that are there to describe a gang."""

OWNER_KINDS = (
    GangKind(volcano.JOBS, volcano.Job, _owner(volcano.job_gangs), volcano.JOB_PREFIX),
    GangKind(owners.JOBSETS, owners.JobSet, _owner(owners.job_set_gangs), "jobset/"),
    GangKind(
        owners.LEADER_WORKER_SETS,
        owners.LeaderWorkerSet,
        _owner(owners.leader_worker_set_gangs),
        "leaderworkerset/",
    ),
    _kubeflow(kubeflow.PYTORCH_JOBS),
    _kubeflow(kubeflow.TF_JOBS),
    _kubeflow(kubeflow.MPI_JOBS),
    _kubeflow(kubeflow.MPI_JOBS_V1),
    GangKind(ray.RAY_CLUSTERS, ray.RayCluster, _owner(ray.cluster_gangs), "raycluster/"),
)
"""Owners whose pods are a gang by their kind; their pods name them in labels."""

GANG_KINDS = (*POD_GROUP_KINDS, *OWNER_KINDS)
"""All of them, in the order in which they count. None of them need be served."""

JOBS = kinds.JOBS
"""Jobs of Kubernetes: a pod says only who its Job is, the Job says whether that is a gang (`job_gang`)."""


def gang_of(pod: objects.Pod) -> GangRef | None:
    """The gang that the pod names, or that its labels make it a member of; None when nothing does."""
    meta, spec = pod.metadata, pod.spec
    if (
        spec.scheduling_group is None
        and spec.workload_ref is None
        and KEYS.isdisjoint(meta.labels)
        and KEYS.isdisjoint(meta.annotations)
    ):
        return None
    for reader in EXPLICIT:
        found = reader(pod)
        if found is not None:
            return found
    if kai.groups_itself(pod.metadata):
        return None
    found = next((found for reader in INFERRED if (found := reader(pod)) is not None), None)
    if found is None or found.stated is None:
        return found
    return ref_of(found.name, with_details(found.stated, pod.metadata), found.subgroup, found.described_by)


def job_gang(job: owners.Job) -> Gang | None:
    """The gang that the pods of a Job of Kubernetes are, if something says so and they name no other one."""
    meta, spec = job.metadata, job.spec
    key = f"{meta.namespace}/job/{meta.name}"
    gang = _job_gang(job, key)
    if gang is None or kai.groups_itself(meta) or kai.groups_itself(spec.template.metadata):
        return None
    gang = with_details(with_details(gang, meta), spec.template.metadata)
    return filled(gang, time_limit_s=spec.active_deadline_seconds)


def _job_gang(job: owners.Job, key: str) -> Gang | None:
    annotations, spec = job.metadata.annotations, job.spec
    if volcano.MIN_MEMBER_ANNOTATION in annotations:
        return volcano.by_annotation(job.metadata, key)
    if kai.MIN_MEMBER_ANNOTATION in annotations:
        return kai.by_annotation(job.metadata, key, spec.at_once)
    if said(job.metadata, kueue.QUEUE_LABEL) and spec.at_once:
        return kueue.job_gang(job.metadata, key, spec.at_once)
    if slurm.MIN_NODES in annotations:
        return slurm.by_nodes(job.metadata, key)
    return owners.indexed_job_gang(job, key)


def with_details(gang: Gang, meta: ObjectMeta) -> Gang:
    """The gang with what labels and annotations say of it in passing, where nothing is said yet."""
    for details in DETAILS:
        gang = details(gang, meta)
    return gang
