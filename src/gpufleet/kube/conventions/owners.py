"""Owners whose pods are a gang by the kind of the owner, unless something more explicit names another one.

- Job: none. But an Indexed one whose completions equal its parallelism and whose pods have a subdomain is one
  of its parallelism: they are made to find each other by name.
- JobSet: all of it, with a subgroup for each replicated job and in it one for each replica. Where one starts
  after another (`InOrder`, `dependsOn`) one replicated job suffices.
- LeaderWorkerSet: each group of `size` pods; with `LeaderReady` leader and workers one after the other.
- Deployment, StatefulSet, ReplicaSet, DaemonSet: none, their pods serve alone.

The jobs of Kubeflow and RayClusters have files of their own.
Source: the APIs of the kinds, and how KAI's pod grouper and the kinds' own support of Volcano count.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from gpufleet.fleet.gangs import Gang, Segment, SubGroup, Topology
from gpufleet.fleet.pods import GangRef
from gpufleet.kube import objects
from gpufleet.kube.conventions import kai, kueue
from gpufleet.kube.conventions.stated import checked, number_in, ref_of, said, size_in
from gpufleet.kube.kinds import Kind
from gpufleet.kube.objects.meta import APIStruct, ObjectMeta

JOBSETS = Kind("jobset.x-k8s.io", "v1alpha2", "jobsets", "JobSet")
LEADER_WORKER_SETS = Kind("leaderworkerset.x-k8s.io", "v1", "leaderworkersets", "LeaderWorkerSet")

_LWS = "leaderworkerset.sigs.k8s.io/"
_JOBSET = "jobset.sigs.k8s.io/"
LEADER_WORKER_SET_KEY = _LWS + "name"
JOBSET_KEY = _JOBSET + "jobset-name"


class TemplateSpec(APIStruct, frozen=True, kw_only=True):
    """What of a pod template's spec tells a gang."""

    subdomain: str = ""


class Template(APIStruct, frozen=True, kw_only=True):
    """A pod template."""

    metadata: ObjectMeta = ObjectMeta()
    spec: TemplateSpec = TemplateSpec()


class JobSpec(APIStruct, frozen=True, kw_only=True):
    """What a Job asks for."""

    parallelism: int | None = None
    completions: int | None = None
    completion_mode: str = "NonIndexed"
    active_deadline_seconds: int | None = None
    template: Template = Template()

    @property
    def at_once(self) -> int:
        """How many pods run at the same time."""
        parallelism = 1 if self.parallelism is None else self.parallelism
        return parallelism if self.completions is None else min(parallelism, self.completions)


class Job(APIStruct, frozen=True, kw_only=True):
    """A Job of Kubernetes."""

    metadata: ObjectMeta
    spec: JobSpec = JobSpec()


class JobTemplate(APIStruct, frozen=True, kw_only=True):
    """The Job that a replicated job repeats."""

    metadata: ObjectMeta = ObjectMeta()
    spec: JobSpec = JobSpec()


class ReplicatedJob(APIStruct, frozen=True, kw_only=True):
    """Jobs of one template."""

    name: str
    replicas: int = 1
    depends_on: tuple[Mapping[str, str], ...] = ()
    template: JobTemplate = JobTemplate()


class StartupPolicy(APIStruct, frozen=True, kw_only=True):
    """In which order replicated jobs start."""

    startup_policy_order: str = "AnyOrder"


class JobSetSpec(APIStruct, frozen=True, kw_only=True):
    """What a JobSet asks for."""

    replicated_jobs: tuple[ReplicatedJob, ...] = ()
    startup_policy: StartupPolicy | None = None


class JobSet(APIStruct, frozen=True, kw_only=True):
    """A JobSet."""

    metadata: ObjectMeta
    spec: JobSetSpec = JobSetSpec()


class LeaderWorkerTemplate(APIStruct, frozen=True, kw_only=True):
    """One group."""

    size: int = 1
    worker_template: Template = Template()


class LeaderWorkerSetSpec(APIStruct, frozen=True, kw_only=True):
    """What a LeaderWorkerSet asks for."""

    startup_policy: str = "LeaderCreated"
    leader_worker_template: LeaderWorkerTemplate = LeaderWorkerTemplate()


class LeaderWorkerSet(APIStruct, frozen=True, kw_only=True):
    """A LeaderWorkerSet."""

    metadata: ObjectMeta
    spec: LeaderWorkerSetSpec = LeaderWorkerSetSpec()


def pod_gang(pod: objects.Pod) -> GangRef | None:
    """The gang that the labels of a LeaderWorkerSet or JobSet make the pod a member of."""
    found = _of_leader_worker_set(pod.metadata)
    return found if found is not None else _of_job_set(pod.metadata)


def _of_leader_worker_set(meta: ObjectMeta) -> GangRef | None:
    name, index = meta.labels.get(LEADER_WORKER_SET_KEY), meta.labels.get(_LWS + "group-index")
    size = meta.annotations.get(_LWS + "size")
    if name is None or index is None or size is None:
        return None
    own = f"leaderworkerset/{name}-{index}"
    minimum, problem = size_in(size, _LWS + "size")
    part = number_in(meta.annotations.get(_LWS + "subgroup-size"))
    near = meta.annotations.get(_LWS + "subgroup-exclusive-topology", "")
    gang = Gang(
        f"{meta.namespace}/{own}",
        "LeaderWorkerSet",
        minimum,
        problem,
        topology=Topology(required=meta.annotations.get(_LWS + "exclusive-topology", "")),
        segment=Segment(part, Topology(required=near)) if part else None,
    )
    role = "leader" if meta.labels.get(_LWS + "worker-index", "0") == "0" else "workers"
    return ref_of(own, gang, role, described_by=f"{meta.namespace}/leaderworkerset/{name}")


def _of_job_set(meta: ObjectMeta) -> GangRef | None:
    name = said(meta, JOBSET_KEY)
    if name is None:
        return None
    part = f"{said(meta, _JOBSET + 'replicatedjob-name') or ''}-{said(meta, _JOBSET + 'job-index') or '0'}"
    return GangRef(f"jobset/{name}", None, "JobSet", subgroup=part)


def indexed_job_gang(job: Job, key: str) -> Gang | None:
    """The gang of an Indexed Job whose pods are made to find each other; None for every other one."""
    spec = job.spec
    if spec.completion_mode != "Indexed" or not spec.template.spec.subdomain or spec.at_once < 2:
        return None
    if spec.completions != spec.parallelism:
        return None
    return Gang(key, "Indexed Job", spec.at_once)


def job_set_gangs(job_set: JobSet) -> tuple[Gang, ...]:
    """The gang of a JobSet."""
    spec, exclusive = job_set.spec, "alpha.jobset.sigs.k8s.io/exclusive-topology"
    policy = spec.startup_policy
    in_order = policy is not None and policy.startup_policy_order == "InOrder"
    one_by_one = in_order or any(job.depends_on for job in spec.replicated_jobs)
    subgroups = []
    for job in spec.replicated_jobs:
        meta = job.template.metadata
        near = said(meta, exclusive) or said(job_set.metadata, exclusive) or ""
        whole = topology_of(job.template.spec.template)
        subgroups.append(SubGroup(job.name, minimum=job.replicas, topology=whole))
        subgroups += [
            SubGroup(f"{job.name}-{index}", job.name, job.template.spec.at_once, Topology(required=near))
            for index in range(job.replicas)
        ]
    key = f"{job_set.metadata.namespace}/jobset/{job_set.metadata.name}"
    most = sum(job.replicas * job.template.spec.at_once for job in spec.replicated_jobs)
    gang = Gang(
        key,
        "JobSet",
        maximum=most,
        subgroups=tuple(subgroups),
        minimum_subgroups=1 if one_by_one and subgroups else None,
    )
    return (checked(gang, "replicas or parallelism"),)


def leader_worker_set_gangs(lws: LeaderWorkerSet) -> tuple[Gang, ...]:
    """What holds for each group of a LeaderWorkerSet, under the key of the set."""
    size = lws.spec.leader_worker_template.size
    gang = Gang(f"{lws.metadata.namespace}/leaderworkerset/{lws.metadata.name}", "LeaderWorkerSet", size)
    if lws.spec.startup_policy == "LeaderReady" and size > 1:
        parts = (SubGroup("leader"), SubGroup("workers", minimum=size - 1))
        gang = msgspec.structs.replace(gang, minimum=1, subgroups=parts, minimum_subgroups=1)
    annotations = lws.metadata.annotations
    near = Topology(required=annotations.get(_LWS + "exclusive-topology", ""))
    if near == Topology():
        near = topology_of(lws.spec.leader_worker_template.worker_template)
    part = number_in(annotations.get(_LWS + "subgroup-size"))
    within = Topology(required=annotations.get(_LWS + "subgroup-exclusive-topology", ""))
    segment = Segment(part, within) if part else None
    return (
        checked(msgspec.structs.replace(gang, topology=near, segment=segment), "leaderWorkerTemplate.size"),
    )


def topology_of(template: Template) -> Topology:
    """What KAI's or else Kueue's annotations of a pod template ask for."""
    near = kai.topology_of(template.metadata)
    return near if near != Topology() else kueue.topology_of(template.metadata)
