"""What can be known of who supplies the parts of a GPU node, as one value, and how objects of a cluster
become that value.

A source that could not be read is not the same as an empty one: `Facts.read` names what was read, and the
decision (`devices.ownership`) takes what is missing as "may be somebody's". Pods are recognised container by
container, because one image carries the plugin, the labeller and the MPS daemon. A DaemonSet counts where its
selector and affinity match the node, whatever the taints, because a taint may go at any time.
Source: NVIDIA's device plugin and GPU operator manifests, DRA driver, the clouds' node documentation
(docs/concepts/ownership.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec

from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.pods import is_gpu_resource
from gpufleet.fleet.quantities import resource_amount
from gpufleet.kube import objects
from gpufleet.kube.objects.meta import APIStruct
from gpufleet.kube.values import node_selector

Component = Literal["driver", "toolkit", "device-plugin", "exporter", "labels", "mig-manager", "mps"]
Source = Literal["node", "pods", "daemonsets", "crds", "operators", "deviceclasses", "resourceslices", "host"]

OUR_NAME = "gpufleet"
"""What `app.kubernetes.io/part-of` or `app.kubernetes.io/name` of our own pods says."""

OPERATOR_CRDS = {"clusterpolicies.nvidia.com": "ClusterPolicy", "gpuclusters.nvidia.com": "GPUCluster"}
"""The custom resources by which a GPU operator is set up, and their kinds."""

DRA_DRIVER = "gpu.nvidia.com"
"""The DRA driver that hands out GPUs; `compute-domain.nvidia.com` hands out none."""


class Runner(msgspec.Struct, frozen=True):
    """A workload that runs a part on the node, or may start there. Of DRA the part is `dra`."""

    part: str
    who: str
    subject: str


class Operator(msgspec.Struct, frozen=True):
    """A custom resource of a GPU operator and which parts it has switched off."""

    kind: str
    name: str
    disabled: frozenset[str] = frozenset()


class HostFacts(msgspec.Struct, frozen=True):
    """What lies on the node itself; paths are those of the host.

    `driver` is the version of the loaded kernel module, `library` the folder of its NVML library, `gpus` the
    NVIDIA display devices on PCI, `sockets` the plugin sockets that answer and are not ours, `services` units
    that run a plugin, `cdi` specs for GPUs, `mps` pipe folders of MPS daemons that are not ours.
    """

    driver: str = ""
    library: str = ""
    gpus: int = 0
    toolkit: str = ""
    cdi: tuple[str, ...] = ()
    sockets: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    mps: tuple[str, ...] = ()


class Facts(msgspec.Struct, frozen=True):
    """Everything that decides who owns the parts of one node. What is not in `read` is unknown.

    `capacity` has the GPU resources of the node's status, `ours` those that this agent registered,
    `zero_for_s` for how many seconds the agent has seen a resource at zero. `extended_resources` maps GPU
    resources to the DeviceClass that serves them, `slices` names ResourceSlices of GPUs of the node.
    `mig_capable` is None while no driver could be asked.
    """

    node: str = ""
    read: frozenset[Source] = frozenset()
    labels: Mapping[str, str] = {}
    provider_id: str = ""
    os_image: str = ""
    conditions: frozenset[str] = frozenset()
    capacity: Mapping[str, int] = {}
    ours: frozenset[str] = frozenset()
    zero_for_s: Mapping[str, float] = {}
    runners: tuple[Runner, ...] = ()
    operators: tuple[Operator, ...] = ()
    extended_resources: Mapping[str, str] = {}
    slices: tuple[str, ...] = ()
    host: HostFacts = HostFacts()
    mig_capable: bool | None = None


class PodTemplate(APIStruct, frozen=True, kw_only=True):
    """The pods of a workload."""

    metadata: objects.ObjectMeta = objects.ObjectMeta()
    spec: objects.PodSpec = objects.PodSpec()


class DaemonSetSpec(APIStruct, frozen=True, kw_only=True):
    """What a DaemonSet runs."""

    template: PodTemplate = PodTemplate()


class DaemonSet(APIStruct, frozen=True, kw_only=True):
    """A DaemonSet."""

    metadata: objects.ObjectMeta
    spec: DaemonSetSpec = DaemonSetSpec()


class DeviceClassSpec(APIStruct, frozen=True, kw_only=True):
    """What a DeviceClass offers beside claims: an extended resource."""

    extended_resource_name: str = ""


class DeviceClass(APIStruct, frozen=True, kw_only=True):
    """A DeviceClass of resource.k8s.io."""

    metadata: objects.ObjectMeta
    spec: DeviceClassSpec = DeviceClassSpec()


class ResourceSliceSpec(APIStruct, frozen=True, kw_only=True):
    """Whose devices a slice lists and on which nodes they are."""

    driver: str = ""
    node_name: str = ""
    node_selector: objects.NodeSelector | None = None


class ResourceSlice(APIStruct, frozen=True, kw_only=True):
    """A ResourceSlice of resource.k8s.io."""

    metadata: objects.ObjectMeta
    spec: ResourceSliceSpec = ResourceSliceSpec()


class ClusterObjects(msgspec.Struct, frozen=True):
    """Objects of the cluster as they were read; None is what could not be read.

    An API that the cluster does not serve is an empty list. `crds` has the names of all
    CustomResourceDefinitions, `operators` the objects of `OPERATOR_CRDS` as they are.
    """

    node: objects.Node | None = None
    pods: Sequence[objects.Pod] | None = None
    daemon_sets: Sequence[DaemonSet] | None = None
    crds: Sequence[str] | None = None
    operators: Sequence[Mapping[str, Any]] | None = None
    device_classes: Sequence[DeviceClass] | None = None
    slices: Sequence[ResourceSlice] | None = None


def node_facts(
    cluster: ClusterObjects,
    host: HostFacts | None,
    *,
    ours: Iterable[str] = (),
    zero_for_s: Mapping[str, float] | None = None,
    mig_capable: bool | None = None,
) -> Facts:
    """The facts of one node; without the node itself, only those of its host."""
    if cluster.node is None:
        read: frozenset[Source] = frozenset({"host"}) if host is not None else frozenset()
        return Facts(read=read, host=host or HostFacts(), ours=frozenset(ours), mig_capable=mig_capable)
    node = cluster.node
    return Facts(
        node=node.metadata.name,
        read=frozenset(_read(cluster, host)),
        labels=node.metadata.labels,
        provider_id=node.spec.provider_id,
        os_image=node.status.node_info.os_image,
        conditions=frozenset(condition.type for condition in node.status.conditions),
        capacity={name: _count(name, text) for name, text in node.status.capacity.items() if _gpus(name)},
        ours=frozenset(ours),
        zero_for_s=zero_for_s or {},
        runners=tuple(dict.fromkeys(_runners(node, cluster.pods or (), cluster.daemon_sets or ()))),
        operators=tuple(_operators(cluster.crds, cluster.operators)),
        extended_resources={
            one.spec.extended_resource_name: one.metadata.name
            for one in cluster.device_classes or ()
            if _gpus(one.spec.extended_resource_name)
        },
        slices=tuple(one.metadata.name for one in cluster.slices or () if _lists_gpus_of(one, node)),
        host=host or HostFacts(),
        mig_capable=mig_capable,
    )


def _read(cluster: ClusterObjects, host: HostFacts | None) -> Iterator[Source]:
    sources: dict[Source, object] = {
        "node": cluster.node,
        "pods": cluster.pods,
        "daemonsets": cluster.daemon_sets,
        "crds": cluster.crds,
        "operators": cluster.operators,
        "deviceclasses": cluster.device_classes,
        "resourceslices": cluster.slices,
        "host": host,
    }
    for source, value in sources.items():
        if value is not None or (source == "operators" and not _crds_of_operators(cluster.crds)):
            yield source


_FOREIGN = ("nvidia.com/vgpu", "volcano.sh/vgpu", "aliyun.com/gpu", "k8s.amazonaws.com/vgpu")
"""Resources by which other plugins share NVIDIA GPUs."""


def _gpus(resource: str) -> bool:
    return is_gpu_resource(resource) or resource.startswith(_FOREIGN)


def _count(resource: str, text: str) -> int:
    """The amount of a resource; one that cannot be read counts as one, which is somebody's."""
    try:
        return resource_amount(resource, text)
    except GpufleetError:
        return 1


def _crds_of_operators(crds: Sequence[str] | None) -> list[str]:
    return list(OPERATOR_CRDS) if crds is None else [name for name in crds if name in OPERATOR_CRDS]


_SPEC_KEYS = {
    "driver": "driver",
    "toolkit": "toolkit",
    "devicePlugin": "device-plugin",
    "dcgmExporter": "exporter",
    "gfd": "labels",
    "migManager": "mig-manager",
}
"""The key of a part in the spec of a ClusterPolicy; what has no `enabled` there is switched on."""


def _operators(crds: Sequence[str] | None, found: Sequence[Mapping[str, Any]] | None) -> Iterator[Operator]:
    if found is None:
        yield from (Operator(OPERATOR_CRDS[name], "") for name in crds or () if name in OPERATOR_CRDS)
        return
    for one in found:
        spec = one.get("spec") or {}
        off = {part for key, part in _SPEC_KEYS.items() if (spec.get(key) or {}).get("enabled") is False}
        yield Operator(str(one.get("kind")), one["metadata"]["name"], frozenset(off))


def _lists_gpus_of(one: ResourceSlice, node: objects.Node) -> bool:
    """Whether a slice lists GPUs that may be on the node; one that names no nodes may list any node's."""
    if one.spec.driver != DRA_DRIVER:
        return False
    if one.spec.node_selector is not None:
        return node_selector(one.spec.node_selector).matches(node.metadata.name, node.metadata.labels)
    return one.spec.node_name in ("", node.metadata.name)


def _runners(
    node: objects.Node, pods: Sequence[objects.Pod], daemon_sets: Sequence[DaemonSet]
) -> Iterator[Runner]:
    name = node.metadata.name
    for pod in pods:
        if pod.spec.node_name == name and pod.status.phase not in ("Succeeded", "Failed"):
            yield from _parts(f"Pod {pod.metadata.key}", pod.metadata, pod.spec)
    for one in daemon_sets:
        template = one.spec.template
        if _selects(template.spec, node):
            meta = msgspec.structs.replace(
                template.metadata, name=one.metadata.name, namespace=one.metadata.namespace
            )
            yield from _parts(f"DaemonSet {one.metadata.key}", meta, template.spec)


def _selects(spec: objects.PodSpec, node: objects.Node) -> bool:
    labels = node.metadata.labels
    if any(labels.get(key) != value for key, value in spec.node_selector.items()):
        return False
    affinity = spec.affinity.node_affinity if spec.affinity else None
    required = affinity.required_during_scheduling_ignored_during_execution if affinity else None
    return required is None or node_selector(required).matches(node.metadata.name, labels)


_CONTAINERS = (
    # part            who                      in the container's name, image or command
    ("labels",        "gpu-feature-discovery", ("gpu-feature-discovery",)),
    ("mps",           "nvidia-plugin",         ("mps-control-daemon",)),
    ("mig-manager",   "mig-manager",           ("mig-manager", "mig-parted")),
    ("exporter",      "dcgm-exporter",         ("dcgm-exporter",)),
    ("toolkit",       "container-toolkit",     ("container-toolkit",)),
    ("driver",        "driver-container",      ("nvidia-driver", "nvidia/driver", "nvidia-gpu-driver")),
    ("dra",           "dra",                   ("dra-driver",)),
    ("device-plugin", "hami",                  ("hami",)),
    ("device-plugin", "volcano",               ("volcano-vgpu", "volcano-device-plugin")),
    ("device-plugin", "fake-gpu-operator",     ("fake-gpu-operator",)),
    ("device-plugin", "kubevirt",              ("kubevirt-gpu-device-plugin", "sandbox-device-plugin")),
    ("device-plugin", "gke",                   ("nvidia-gpu-device-plugin", "nvidia_gpu_device_plugin")),
    ("device-plugin", "nvidia-plugin",         ("k8s-device-plugin", "nvidia-device-plugin")),
)  # fmt: skip
"""Containers that run a part; the first row that matches counts."""

_OTHER_DEVICES = ("rdma", "sriov", "amd-gpu", "amdgpu", "intel", "neuron", "tpu", "habana")
_PLUGIN_FOLDER = "/var/lib/kubelet/device-plugins"


def _parts(subject: str, meta: objects.ObjectMeta, spec: objects.PodSpec) -> Iterator[Runner]:
    labels = meta.labels
    if OUR_NAME in (labels.get("app.kubernetes.io/part-of"), labels.get("app.kubernetes.io/name")):
        return
    sidecars = [one for one in spec.init_containers if one.restart_policy == "Always"]
    for container in (*spec.containers, *sidecars):
        part, who = _part(container, spec)
        if part:
            yield Runner(part, _deployed_by(meta) or who, subject)


def _part(container: objects.Container, spec: objects.PodSpec) -> tuple[str, str]:
    """The part that a container runs and who made it; two empty texts for none."""
    if container.name in ("config-manager", "compute-domains"):
        return "", ""
    texts = (container.name, container.image, *container.command, *container.args)
    text = " ".join(texts).lower()
    for part, who, marks in _CONTAINERS:
        if any(mark in text for mark in marks):
            return part, who
    return ("device-plugin", container.name) if _may_register(text, container, spec) else ("", "")


def _may_register(text: str, container: objects.Container, spec: objects.PodSpec) -> bool:
    """Whether an unknown container can reach the kubelet's plugin folder and speaks of GPUs."""
    folders = {
        volume.name
        for volume in spec.volumes
        if volume.host_path and volume.host_path.path.rstrip("/") == _PLUGIN_FOLDER
    }
    if not any(mount.name in folders for mount in container.volume_mounts):
        return False
    return ("gpu" in text or "nvidia" in text) and not any(mark in text for mark in _OTHER_DEVICES)


_OPERATOR_APPS = frozenset({
    "nvidia-driver-daemonset", "nvidia-container-toolkit-daemonset", "nvidia-device-plugin-daemonset",
    "nvidia-device-plugin-mps-control-daemon", "gpu-feature-discovery", "nvidia-dcgm-exporter",
    "nvidia-mig-manager",
})  # fmt: skip
"""Values of the label `app` of the GPU operator's pods."""


def _deployed_by(meta: objects.ObjectMeta) -> str:
    """Who deployed a pod, where that tells more than what runs in it; empty otherwise."""
    labels = meta.labels
    if labels.get("app.kubernetes.io/managed-by") == "gpu-operator" or labels.get("app") in _OPERATOR_APPS:
        return "nvidia-operator"
    if meta.namespace == "gke-managed-system" or labels.get("k8s-app") == "nvidia-gpu-device-plugin":
        return "gke"
    return ""
