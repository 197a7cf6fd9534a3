"""KubeRay: a RayCluster is a gang of its head and, of each worker group, `minReplicas`; or of all `replicas`
where no minimum is said and nothing scales them. A replica has `numOfHosts` pods.

Source: kuberay ray-operator apis/ray/v1; the count is that of its own support of Volcano and of KAI.
"""

from __future__ import annotations

from gpufleet.fleet.gangs import Gang, SubGroup
from gpufleet.fleet.pods import GangRef
from gpufleet.kube import objects
from gpufleet.kube.conventions.owners import Template, topology_of
from gpufleet.kube.conventions.stated import checked
from gpufleet.kube.kinds import Kind
from gpufleet.kube.objects.meta import APIStruct, ObjectMeta

RAY_CLUSTERS = Kind("ray.io", "v1", "rayclusters", "RayCluster")
CLUSTER_KEY = "ray.io/cluster"


class WorkerGroup(APIStruct, frozen=True, kw_only=True):
    """Workers of a RayCluster; a replica has `num_of_hosts` pods."""

    group_name: str = ""
    replicas: int | None = None
    min_replicas: int | None = None
    max_replicas: int | None = None
    num_of_hosts: int = 1
    suspend: bool | None = None
    template: Template = Template()


class HeadGroup(APIStruct, frozen=True, kw_only=True):
    """The head of a RayCluster."""

    template: Template = Template()


class RayClusterSpec(APIStruct, frozen=True, kw_only=True):
    """What a RayCluster asks for."""

    enable_in_tree_autoscaling: bool | None = None
    head_group_spec: HeadGroup = HeadGroup()
    worker_group_specs: tuple[WorkerGroup, ...] = ()


class RayCluster(APIStruct, frozen=True, kw_only=True):
    """A RayCluster."""

    metadata: ObjectMeta
    spec: RayClusterSpec = RayClusterSpec()


def pod_gang(pod: objects.Pod) -> GangRef | None:
    """The gang that the labels of KubeRay make the pod a member of."""
    meta = pod.metadata
    name = meta.labels.get(CLUSTER_KEY)
    if name is None or "ray.io/node-type" not in meta.labels:
        return None
    return GangRef(f"raycluster/{name}", None, "RayCluster", subgroup=meta.labels.get("ray.io/group", ""))


def cluster_gangs(cluster: RayCluster) -> tuple[Gang, ...]:
    """The gang of a RayCluster."""
    spec = cluster.spec
    groups = [group for group in spec.worker_group_specs if not group.suspend]
    subgroups = [SubGroup("headgroup", topology=topology_of(spec.head_group_spec.template))]
    most = 1
    for group in groups:
        replicas = 0 if group.replicas is None else group.replicas
        scaled = spec.enable_in_tree_autoscaling or bool(group.min_replicas)
        fewest = group.min_replicas or 0 if scaled else replicas
        near = topology_of(group.template)
        subgroups.append(SubGroup(group.group_name, "", fewest * group.num_of_hosts, near))
        most += max(replicas, (group.max_replicas or 0) if scaled else 0) * group.num_of_hosts
    gang = Gang(
        f"{cluster.metadata.namespace}/raycluster/{cluster.metadata.name}",
        "RayCluster",
        maximum=most,
        subgroups=tuple(subgroups),
    )
    return (checked(gang, "minReplicas, replicas or numOfHosts"),)
