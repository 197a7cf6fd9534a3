"""Owners whose pods are a gang by the kind of the owner, unless something more explicit names another one.

- Job: none. But an Indexed one whose completions equal its parallelism and whose pods have a subdomain is one
  of its parallelism: they are made to find each other by name.
- JobSet: all of it, with a subgroup for each replicated job and in it one for each replica. Where one starts
  after another (`InOrder`, `dependsOn`) one replicated job suffices.
- LeaderWorkerSet: each group of `size` pods; with `LeaderReady` leader and workers one after the other.
- PyTorchJob, TFJob: all replicas, or `schedulingPolicy.minAvailable`, or down to `elasticPolicy.minReplicas`.
- MPIJob: the same, without the launcher where it waits for the workers.
- RayCluster: the head, and of each worker group `minReplicas`, or all where none is said and nothing scales.
- Deployment, StatefulSet, ReplicaSet, DaemonSet: none, their pods serve alone.

Source: the APIs of the kinds, and how KAI's pod grouper and the kinds' own support of Volcano count.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from gpufleet.fleet.gangs import Gang, Segment, SubGroup, Topology
from gpufleet.fleet.pods import GangRef
from gpufleet.kube import objects
from gpufleet.kube.conventions.stated import checked, number_in, ref_of, said, size_in
from gpufleet.kube.kinds import Kind
from gpufleet.kube.objects.meta import APIStruct, ObjectMeta

JOBSETS = Kind("jobset.x-k8s.io", "v1alpha2", "jobsets", "JobSet")
LEADER_WORKER_SETS = Kind("leaderworkerset.x-k8s.io", "v1", "leaderworkersets", "LeaderWorkerSet")
PYTORCH_JOBS = Kind("kubeflow.org", "v1", "pytorchjobs", "PyTorchJob")
TF_JOBS = Kind("kubeflow.org", "v1", "tfjobs", "TFJob")
MPI_JOBS_V1 = Kind("kubeflow.org", "v1", "mpijobs", "MPIJob")
MPI_JOBS = Kind("kubeflow.org", "v2beta1", "mpijobs", "MPIJob")
RAY_CLUSTERS = Kind("ray.io", "v1", "rayclusters", "RayCluster")

_OPERATORS = {
    "pytorchjob-controller": "PyTorchJob",
    "tfjob-controller": "TFJob",
    "mpijob-controller": "MPIJob",
    "mpi-operator": "MPIJob",
}
"""Which kind the operators of Kubeflow that make pods stand for."""

_LWS = "leaderworkerset.sigs.k8s.io/"
_JOBSET = "jobset.sigs.k8s.io/"
_TRAINING = "training.kubeflow.org/"


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


class LeaderWorkerSetSpec(APIStruct, frozen=True, kw_only=True):
    """What a LeaderWorkerSet asks for."""

    startup_policy: str = "LeaderCreated"
    leader_worker_template: LeaderWorkerTemplate = LeaderWorkerTemplate()


class LeaderWorkerSet(APIStruct, frozen=True, kw_only=True):
    """A LeaderWorkerSet."""

    metadata: ObjectMeta
    spec: LeaderWorkerSetSpec = LeaderWorkerSetSpec()


class ReplicaSpec(APIStruct, frozen=True, kw_only=True):
    """The pods of one role."""

    replicas: int | None = None


class SchedulingPolicy(APIStruct, frozen=True, kw_only=True):
    """What Kubeflow hands to a gang scheduler."""

    min_available: int | None = None
    queue: str = ""
    priority_class: str = ""
    schedule_timeout_seconds: int | None = None


class RunPolicy(APIStruct, frozen=True, kw_only=True):
    """How a job of Kubeflow runs."""

    scheduling_policy: SchedulingPolicy | None = None
    active_deadline_seconds: int | None = None


class ElasticPolicy(APIStruct, frozen=True, kw_only=True):
    """Between how many workers a PyTorchJob may have."""

    min_replicas: int | None = None
    max_replicas: int | None = None


class KubeflowSpec(APIStruct, frozen=True, kw_only=True):
    """What a job of Kubeflow asks for; one of the replica specs is set."""

    run_policy: RunPolicy = RunPolicy()
    elastic_policy: ElasticPolicy | None = None
    launcher_creation_policy: str = "AtStartup"
    pytorch_replica_specs: Mapping[str, ReplicaSpec] = {}
    tf_replica_specs: Mapping[str, ReplicaSpec] = {}
    mpi_replica_specs: Mapping[str, ReplicaSpec] = {}

    @property
    def replicas(self) -> dict[str, int]:
        """How many pods each role has, the role in lower case."""
        specs = self.pytorch_replica_specs or self.tf_replica_specs or self.mpi_replica_specs
        return {role.lower(): 1 if one.replicas is None else one.replicas for role, one in specs.items()}


class KubeflowJob(APIStruct, frozen=True, kw_only=True):
    """A PyTorchJob, TFJob or MPIJob."""

    kind: str = ""
    metadata: ObjectMeta
    spec: KubeflowSpec = KubeflowSpec()


class WorkerGroup(APIStruct, frozen=True, kw_only=True):
    """Workers of a RayCluster; a replica has `num_of_hosts` pods."""

    group_name: str = ""
    replicas: int | None = None
    min_replicas: int | None = None
    max_replicas: int | None = None
    num_of_hosts: int = 1
    suspend: bool | None = None


class RayClusterSpec(APIStruct, frozen=True, kw_only=True):
    """What a RayCluster asks for."""

    enable_in_tree_autoscaling: bool | None = None
    worker_group_specs: tuple[WorkerGroup, ...] = ()


class RayCluster(APIStruct, frozen=True, kw_only=True):
    """A RayCluster."""

    metadata: ObjectMeta
    spec: RayClusterSpec = RayClusterSpec()


def pod_gang(pod: objects.Pod) -> GangRef | None:
    """The gang that the labels of the pod's controller make it a member of."""
    meta = pod.metadata
    for reader in (_of_leader_worker_set, _of_job_set, _of_kubeflow, _of_ray):
        found = reader(meta)
        if found is not None:
            return found
    return None


def _of_leader_worker_set(meta: ObjectMeta) -> GangRef | None:
    name, index = meta.labels.get(_LWS + "name"), meta.labels.get(_LWS + "group-index")
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
    name = said(meta, _JOBSET + "jobset-name")
    if name is None:
        return None
    part = f"{said(meta, _JOBSET + 'replicatedjob-name') or ''}-{said(meta, _JOBSET + 'job-index') or '0'}"
    return GangRef(f"jobset/{name}", None, "JobSet", subgroup=part)


def _of_kubeflow(meta: ObjectMeta) -> GangRef | None:
    name = meta.labels.get(_TRAINING + "job-name")
    owner = meta.controller
    kind = _OPERATORS.get(meta.labels.get(_TRAINING + "operator-name", ""))
    if owner is not None and owner.kind in _OPERATORS.values():
        kind = owner.kind
    if name is None or kind is None:
        return None
    role = said(meta, _TRAINING + "replica-type", _TRAINING + "job-role") or ""
    return GangRef(f"{kind.lower()}/{name}", None, kind, subgroup=role)


def _of_ray(meta: ObjectMeta) -> GangRef | None:
    name = meta.labels.get("ray.io/cluster")
    if name is None or "ray.io/node-type" not in meta.labels:
        return None
    return GangRef(f"raycluster/{name}", None, "RayCluster", subgroup=meta.labels.get("ray.io/group", ""))


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
        subgroups.append(SubGroup(job.name, minimum=job.replicas))
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
    part = number_in(annotations.get(_LWS + "subgroup-size"))
    within = Topology(required=annotations.get(_LWS + "subgroup-exclusive-topology", ""))
    segment = Segment(part, within) if part else None
    return (
        checked(msgspec.structs.replace(gang, topology=near, segment=segment), "leaderWorkerTemplate.size"),
    )


def kubeflow_gangs(job: KubeflowJob, kind: str) -> tuple[Gang, ...]:
    """The gang of a PyTorchJob, TFJob or MPIJob. Roles are subgroups where all of them are needed."""
    spec, replicas = job.spec, job.spec.replicas
    policy = spec.run_policy.scheduling_policy or SchedulingPolicy()
    elastic = spec.elastic_policy
    most = sum(replicas.values())
    if kind == "MPIJob" and spec.launcher_creation_policy == "WaitForWorkersReady":
        replicas = {**replicas, "launcher": 0}
    if elastic is not None and elastic.min_replicas is not None and "worker" in replicas:
        replicas = {**replicas, "worker": elastic.min_replicas}
        most += (elastic.max_replicas or 0) - job.spec.replicas["worker"] if elastic.max_replicas else 0
    needed = sum(replicas.values())
    less = policy.min_available is not None and policy.min_available < needed
    gang = Gang(
        f"{job.metadata.namespace}/{kind.lower()}/{job.metadata.name}",
        kind,
        policy.min_available if policy.min_available is not None else needed,
        maximum=most,
        subgroups=() if less else tuple(SubGroup(role, minimum=count) for role, count in replicas.items()),
        queue=policy.queue,
        priority_class=policy.priority_class,
        schedule_timeout_s=policy.schedule_timeout_seconds,
        time_limit_s=spec.run_policy.active_deadline_seconds,
    )
    return (checked(gang, "runPolicy.schedulingPolicy.minAvailable"),)


def ray_cluster_gangs(cluster: RayCluster) -> tuple[Gang, ...]:
    """The gang of a RayCluster."""
    spec = cluster.spec
    groups = [group for group in spec.worker_group_specs if not group.suspend]
    subgroups = [SubGroup("headgroup")]
    most = 1
    for group in groups:
        replicas = 0 if group.replicas is None else group.replicas
        scaled = spec.enable_in_tree_autoscaling or bool(group.min_replicas)
        fewest = group.min_replicas or 0 if scaled else replicas
        subgroups.append(SubGroup(group.group_name, minimum=fewest * group.num_of_hosts))
        most += max(replicas, (group.max_replicas or 0) if scaled else 0) * group.num_of_hosts
    gang = Gang(
        f"{cluster.metadata.namespace}/raycluster/{cluster.metadata.name}",
        "RayCluster",
        maximum=most,
        subgroups=tuple(subgroups),
    )
    return (checked(gang, "minReplicas, replicas or numOfHosts"),)
