"""Nodes, namespaces, leases, priorities and disruption budgets."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from gpufleet.kube.objects.meta import APIStruct, Condition, LabelSelector, ObjectMeta


class Taint(APIStruct, frozen=True, kw_only=True):
    """A taint; `effect` is NoSchedule, PreferNoSchedule or NoExecute."""

    key: str
    effect: str
    value: str = ""
    time_added: str | None = None


class NodeSpec(APIStruct, frozen=True, kw_only=True):
    """What the cluster wants of a node."""

    unschedulable: bool = False
    taints: tuple[Taint, ...] = ()
    provider_id: str = msgspec.field(default="", name="providerID")
    pod_cidr: str = msgspec.field(default="", name="podCIDR")


class NodeAddress(APIStruct, frozen=True, kw_only=True):
    """An address; `type` is InternalIP, ExternalIP, Hostname, ..."""

    type: str
    address: str


class NodeSystemInfo(APIStruct, frozen=True, kw_only=True):
    """What runs on the node."""

    architecture: str = ""
    operating_system: str = ""
    os_image: str = ""
    kernel_version: str = ""
    kubelet_version: str = ""
    container_runtime_version: str = ""
    machine_id: str = msgspec.field(default="", name="machineID")
    boot_id: str = msgspec.field(default="", name="bootID")


class DaemonEndpoint(APIStruct, frozen=True, kw_only=True):
    """A port that a daemon serves."""

    port: int = msgspec.field(default=0, name="Port")


class NodeDaemonEndpoints(APIStruct, frozen=True, kw_only=True):
    """The endpoints of the daemons of a node."""

    kubelet_endpoint: DaemonEndpoint = DaemonEndpoint()


class AttachedVolume(APIStruct, frozen=True, kw_only=True):
    """A volume attached to the node."""

    name: str
    device_path: str = ""


class NodeStatus(APIStruct, frozen=True, kw_only=True):
    """What the node reports; quantities are strings."""

    capacity: Mapping[str, str] = {}
    allocatable: Mapping[str, str] = {}
    conditions: tuple[Condition, ...] = ()
    addresses: tuple[NodeAddress, ...] = ()
    node_info: NodeSystemInfo = NodeSystemInfo()
    daemon_endpoints: NodeDaemonEndpoints = NodeDaemonEndpoints()
    volumes_attached: tuple[AttachedVolume, ...] = ()
    volumes_in_use: tuple[str, ...] = ()
    declared_features: tuple[str, ...] = ()


class Node(APIStruct, frozen=True, kw_only=True):
    """A node."""

    metadata: ObjectMeta
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()


class NamespaceStatus(APIStruct, frozen=True, kw_only=True):
    """`phase` is Active or Terminating."""

    phase: str = "Active"


class Namespace(APIStruct, frozen=True, kw_only=True):
    """A namespace."""

    metadata: ObjectMeta
    status: NamespaceStatus = NamespaceStatus()


class LeaseSpec(APIStruct, frozen=True, kw_only=True):
    """Who holds a lease and since when; times are RFC 3339 with microseconds."""

    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int = 0


class Lease(APIStruct, frozen=True, kw_only=True):
    """A lease: a node's heartbeat or a leader's claim."""

    metadata: ObjectMeta
    spec: LeaseSpec = LeaseSpec()


class PriorityClass(APIStruct, frozen=True, kw_only=True):
    """A named priority."""

    metadata: ObjectMeta
    value: int = 0
    global_default: bool = False
    preemption_policy: str = "PreemptLowerPriority"
    description: str = ""


class PodDisruptionBudgetSpec(APIStruct, frozen=True, kw_only=True):
    """How many of the selected pods must stay, as a number or a percentage."""

    selector: LabelSelector | None = None
    min_available: int | str | None = None
    max_unavailable: int | str | None = None
    unhealthy_pod_eviction_policy: str = ""


class PodDisruptionBudgetStatus(APIStruct, frozen=True, kw_only=True):
    """What the disruption controller counted; `disrupted_pods` maps names to eviction times."""

    disruptions_allowed: int = 0
    current_healthy: int = 0
    desired_healthy: int = 0
    expected_pods: int = 0
    disrupted_pods: Mapping[str, str] = {}
    observed_generation: int = 0


class PodDisruptionBudget(APIStruct, frozen=True, kw_only=True):
    """A disruption budget."""

    metadata: ObjectMeta
    spec: PodDisruptionBudgetSpec = PodDisruptionBudgetSpec()
    status: PodDisruptionBudgetStatus = PodDisruptionBudgetStatus()
