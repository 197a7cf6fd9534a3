"""The jobs of Kubeflow's training operator and MPI operator: gangs of all their replicas.

`schedulingPolicy.minAvailable` asks for less, and an elastic PyTorchJob for `minReplicas` workers. Roles are
subgroups where all of them are needed. A launcher that is made when the workers are ready is not waited for.
Source: training-operator pkg/apis/kubeflow.org/v1, mpi-operator pkg/apis/kubeflow/v2beta1.
"""

from __future__ import annotations

from collections.abc import Mapping

from gpufleet.fleet.gangs import Gang, SubGroup, Topology
from gpufleet.fleet.pods import GangRef
from gpufleet.kube import objects
from gpufleet.kube.conventions.owners import Template, topology_of
from gpufleet.kube.conventions.stated import checked, said
from gpufleet.kube.kinds import Kind
from gpufleet.kube.objects.meta import APIStruct, ObjectMeta

PYTORCH_JOBS = Kind("kubeflow.org", "v1", "pytorchjobs", "PyTorchJob")
TF_JOBS = Kind("kubeflow.org", "v1", "tfjobs", "TFJob")
MPI_JOBS_V1 = Kind("kubeflow.org", "v1", "mpijobs", "MPIJob")
MPI_JOBS = Kind("kubeflow.org", "v2beta1", "mpijobs", "MPIJob")

_TRAINING = "training.kubeflow.org/"
JOB_KEY = _TRAINING + "job-name"
_OPERATORS = {
    "pytorchjob-controller": "PyTorchJob",
    "tfjob-controller": "TFJob",
    "mpijob-controller": "MPIJob",
    "mpi-operator": "MPIJob",
}
"""Which kind the operators of Kubeflow that make pods stand for."""


class ReplicaSpec(APIStruct, frozen=True, kw_only=True):
    """The pods of one role."""

    replicas: int | None = None
    template: Template = Template()


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
        return {role.lower(): 1 if one.replicas is None else one.replicas for role, one in self.roles.items()}

    @property
    def roles(self) -> Mapping[str, ReplicaSpec]:
        """The pods of each role."""
        return self.pytorch_replica_specs or self.tf_replica_specs or self.mpi_replica_specs


class KubeflowJob(APIStruct, frozen=True, kw_only=True):
    """A PyTorchJob, TFJob or MPIJob."""

    kind: str = ""
    metadata: ObjectMeta
    spec: KubeflowSpec = KubeflowSpec()


def pod_gang(pod: objects.Pod) -> GangRef | None:
    """The gang that the labels of an operator make the pod a member of."""
    meta = pod.metadata
    name = meta.labels.get(JOB_KEY)
    owner = meta.controller
    kind = _OPERATORS.get(meta.labels.get(_TRAINING + "operator-name", ""))
    if owner is not None and owner.kind in _OPERATORS.values():
        kind = owner.kind
    if name is None or kind is None:
        return None
    role = said(meta, _TRAINING + "replica-type", _TRAINING + "job-role") or ""
    return GangRef(f"{kind.lower()}/{name}", None, kind, subgroup=role)


def job_gangs(job: KubeflowJob, kind: str) -> tuple[Gang, ...]:
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
    near = {role.lower(): topology_of(one.template) for role, one in spec.roles.items()}
    less = policy.min_available is not None and policy.min_available < needed
    gang = Gang(
        f"{job.metadata.namespace}/{kind.lower()}/{job.metadata.name}",
        kind,
        policy.min_available if policy.min_available is not None else needed,
        maximum=most,
        subgroups=()
        if less
        else tuple(SubGroup(role, "", count, near.get(role, Topology())) for role, count in replicas.items()),
        queue=policy.queue,
        priority_class=policy.priority_class,
        schedule_timeout_s=policy.schedule_timeout_seconds,
        time_limit_s=spec.run_policy.active_deadline_seconds,
    )
    return (checked(gang, "runPolicy.schedulingPolicy.minAvailable"),)
