"""Pods: what they ask for, what runs in them, and how far they got."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from gpufleet.kube.objects.meta import APIStruct, Condition, LocalObjectReference, ObjectMeta
from gpufleet.kube.objects.placement import Affinity, Toleration, TopologySpreadConstraint
from gpufleet.kube.objects.storage import PersistentVolumeClaimTemplate


class ContainerResourceClaim(APIStruct, frozen=True, kw_only=True):
    """The pod's resource claim that a container uses."""

    name: str
    request: str = ""


class ResourceRequirements(APIStruct, frozen=True, kw_only=True):
    """Requests and limits: resource name to quantity string."""

    requests: Mapping[str, str] = {}
    limits: Mapping[str, str] = {}
    claims: tuple[ContainerResourceClaim, ...] = ()


class ContainerPort(APIStruct, frozen=True, kw_only=True):
    """A port of a container; `host_port` is 0 unless it is taken on the node."""

    container_port: int
    host_port: int = 0
    host_ip: str = msgspec.field(default="", name="hostIP")
    protocol: str = "TCP"
    name: str = ""


class KeySelector(APIStruct, frozen=True, kw_only=True):
    """A key of a ConfigMap or Secret."""

    key: str
    name: str = ""
    optional: bool = False


class FieldSelector(APIStruct, frozen=True, kw_only=True):
    """A field of the pod itself, e.g. `metadata.name`."""

    field_path: str
    api_version: str = ""


class ResourceFieldSelector(APIStruct, frozen=True, kw_only=True):
    """A request or limit of a container, e.g. `limits.cpu`."""

    resource: str
    container_name: str = ""
    divisor: str = ""


class EnvVarSource(APIStruct, frozen=True, kw_only=True):
    """Where the value of a variable comes from; one field is set."""

    field_ref: FieldSelector | None = None
    resource_field_ref: ResourceFieldSelector | None = None
    config_map_key_ref: KeySelector | None = None
    secret_key_ref: KeySelector | None = None


class EnvVar(APIStruct, frozen=True, kw_only=True):
    """An environment variable with a value or the source of one."""

    name: str
    value: str = ""
    value_from: EnvVarSource | None = None


class EnvReference(APIStruct, frozen=True, kw_only=True):
    """A ConfigMap or Secret whose keys become variables."""

    name: str = ""
    optional: bool = False


class EnvFromSource(APIStruct, frozen=True, kw_only=True):
    """All keys of a ConfigMap or Secret as variables."""

    prefix: str = ""
    config_map_ref: EnvReference | None = None
    secret_ref: EnvReference | None = None


class ExecAction(APIStruct, frozen=True, kw_only=True):
    """A command inside the container."""

    command: tuple[str, ...] = ()


class HTTPHeader(APIStruct, frozen=True, kw_only=True):
    """A header of an HTTP probe."""

    name: str
    value: str = ""


class HTTPGetAction(APIStruct, frozen=True, kw_only=True):
    """A GET request; `port` is a number or the name of a container port."""

    port: int | str
    path: str = ""
    host: str = ""
    scheme: str = "HTTP"
    http_headers: tuple[HTTPHeader, ...] = ()


class TCPSocketAction(APIStruct, frozen=True, kw_only=True):
    """A TCP connection; `port` is a number or the name of a container port."""

    port: int | str
    host: str = ""


class GRPCAction(APIStruct, frozen=True, kw_only=True):
    """A gRPC health check."""

    port: int
    service: str = ""


class Probe(APIStruct, frozen=True, kw_only=True):
    """A probe with the API's defaults (seconds)."""

    exec: ExecAction | None = None
    http_get: HTTPGetAction | None = None
    tcp_socket: TCPSocketAction | None = None
    grpc: GRPCAction | None = None
    initial_delay_seconds: int = 0
    period_seconds: int = 10
    timeout_seconds: int = 1
    success_threshold: int = 1
    failure_threshold: int = 3
    termination_grace_period_seconds: int | None = None


class SleepAction(APIStruct, frozen=True, kw_only=True):
    """A pause in seconds."""

    seconds: int = 0


class LifecycleHandler(APIStruct, frozen=True, kw_only=True):
    """What is done at a moment of a container's life."""

    exec: ExecAction | None = None
    http_get: HTTPGetAction | None = None
    sleep: SleepAction | None = None


class Lifecycle(APIStruct, frozen=True, kw_only=True):
    """The moments of a container's life that have handlers."""

    pre_stop: LifecycleHandler | None = None


class VolumeMount(APIStruct, frozen=True, kw_only=True):
    """Where a container sees a volume of its pod."""

    name: str
    mount_path: str
    sub_path: str = ""
    read_only: bool = False


class Container(APIStruct, frozen=True, kw_only=True):
    """A container; `restart_policy` Always marks an init container as a sidecar."""

    name: str
    image: str = ""
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    working_dir: str = ""
    env: tuple[EnvVar, ...] = ()
    env_from: tuple[EnvFromSource, ...] = ()
    ports: tuple[ContainerPort, ...] = ()
    resources: ResourceRequirements = ResourceRequirements()
    restart_policy: str = ""
    volume_mounts: tuple[VolumeMount, ...] = ()
    startup_probe: Probe | None = None
    readiness_probe: Probe | None = None
    liveness_probe: Probe | None = None
    lifecycle: Lifecycle | None = None


class ClaimVolumeSource(APIStruct, frozen=True, kw_only=True):
    """A PersistentVolumeClaim of the pod's namespace."""

    claim_name: str
    read_only: bool = False


class EphemeralVolumeSource(APIStruct, frozen=True, kw_only=True):
    """A claim made for the pod, named `<pod>-<volume>`."""

    volume_claim_template: PersistentVolumeClaimTemplate | None = None


class CSIVolumeSource(APIStruct, frozen=True, kw_only=True):
    """A volume that a CSI driver makes inside the pod's life."""

    driver: str
    volume_attributes: Mapping[str, str] = {}


class EmptyDirVolumeSource(APIStruct, frozen=True, kw_only=True):
    """A folder that lives as long as the pod; `medium` Memory counts against memory."""

    medium: str = ""
    size_limit: str = ""


class HostPathVolumeSource(APIStruct, frozen=True, kw_only=True):
    """A path of the node."""

    path: str
    type: str = ""


class ConfigMapVolumeSource(APIStruct, frozen=True, kw_only=True):
    """Files from a ConfigMap."""

    name: str = ""
    optional: bool = False


class SecretVolumeSource(APIStruct, frozen=True, kw_only=True):
    """Files from a Secret."""

    secret_name: str = ""
    optional: bool = False


class PodVolume(APIStruct, frozen=True, kw_only=True):
    """A volume of a pod; one source is set (sources that no decision reads are dropped)."""

    name: str
    persistent_volume_claim: ClaimVolumeSource | None = None
    ephemeral: EphemeralVolumeSource | None = None
    csi: CSIVolumeSource | None = None
    empty_dir: EmptyDirVolumeSource | None = None
    host_path: HostPathVolumeSource | None = None
    config_map: ConfigMapVolumeSource | None = None
    secret: SecretVolumeSource | None = None


class PodResourceClaim(APIStruct, frozen=True, kw_only=True):
    """A DRA claim of the pod: an existing one or a template for one."""

    name: str
    resource_claim_name: str | None = None
    resource_claim_template_name: str | None = None


class PodSchedulingGate(APIStruct, frozen=True, kw_only=True):
    """A gate that keeps the pod out of scheduling until it is removed."""

    name: str


class PodSchedulingGroup(APIStruct, frozen=True, kw_only=True):
    """The native PodGroup that the pod belongs to."""

    pod_group_name: str | None = None


class PodWorkloadReference(APIStruct, frozen=True, kw_only=True):
    """The native Workload that the pod belongs to, as Kubernetes 1.35 writes it."""

    name: str = ""
    pod_group: str = ""
    pod_group_replica_key: str = ""


class PodReadinessGate(APIStruct, frozen=True, kw_only=True):
    """A condition that must be True before the pod counts as ready."""

    condition_type: str


class PodSpec(APIStruct, frozen=True, kw_only=True):
    """What a pod asks for."""

    node_name: str = ""
    scheduler_name: str = ""
    priority: int = 0
    priority_class_name: str = ""
    preemption_policy: str = "PreemptLowerPriority"
    containers: tuple[Container, ...] = ()
    init_containers: tuple[Container, ...] = ()
    resources: ResourceRequirements | None = None
    overhead: Mapping[str, str] = {}
    node_selector: Mapping[str, str] = {}
    affinity: Affinity | None = None
    tolerations: tuple[Toleration, ...] = ()
    topology_spread_constraints: tuple[TopologySpreadConstraint, ...] = ()
    volumes: tuple[PodVolume, ...] = ()
    scheduling_gates: tuple[PodSchedulingGate, ...] = ()
    scheduling_group: PodSchedulingGroup | None = None
    workload_ref: PodWorkloadReference | None = None
    resource_claims: tuple[PodResourceClaim, ...] = ()
    readiness_gates: tuple[PodReadinessGate, ...] = ()
    restart_policy: str = "Always"
    termination_grace_period_seconds: int | None = None
    active_deadline_seconds: int | None = None
    host_network: bool = False
    hostname: str = ""
    subdomain: str = ""
    runtime_class_name: str = ""
    service_account_name: str = ""
    image_pull_secrets: tuple[LocalObjectReference, ...] = ()


class ContainerStateWaiting(APIStruct, frozen=True, kw_only=True):
    """Not running yet, or not any more until the next try."""

    reason: str = ""
    message: str = ""


class ContainerStateRunning(APIStruct, frozen=True, kw_only=True):
    """Running since `started_at`."""

    started_at: str | None = None


class ContainerStateTerminated(APIStruct, frozen=True, kw_only=True):
    """Ended with `exit_code`."""

    exit_code: int = 0
    signal: int = 0
    reason: str = ""
    message: str = ""
    started_at: str | None = None
    finished_at: str | None = None
    container_id: str = msgspec.field(default="", name="containerID")


class ContainerState(APIStruct, frozen=True, kw_only=True):
    """The state of a container; one field is set."""

    waiting: ContainerStateWaiting | None = None
    running: ContainerStateRunning | None = None
    terminated: ContainerStateTerminated | None = None


class ContainerStatus(APIStruct, frozen=True, kw_only=True):
    """What a container does. `allocated_resources` and `resources` are the node's view during a resize."""

    name: str
    image: str = ""
    image_id: str = msgspec.field(default="", name="imageID")
    container_id: str = msgspec.field(default="", name="containerID")
    ready: bool = False
    started: bool | None = None
    restart_count: int = 0
    state: ContainerState = ContainerState()
    last_state: ContainerState = ContainerState()
    allocated_resources: Mapping[str, str] = {}
    resources: ResourceRequirements | None = None


class PodStatus(APIStruct, frozen=True, kw_only=True):
    """How far a pod got. `resize` is the older form of the PodResizePending/InProgress conditions."""

    phase: str = "Pending"
    reason: str = ""
    message: str = ""
    conditions: tuple[Condition, ...] = ()
    container_statuses: tuple[ContainerStatus, ...] = ()
    init_container_statuses: tuple[ContainerStatus, ...] = ()
    nominated_node_name: str = ""
    host_ip: str = msgspec.field(default="", name="hostIP")
    pod_ip: str = msgspec.field(default="", name="podIP")
    start_time: str | None = None
    qos_class: str = ""
    resize: str = ""
    allocated_resources: Mapping[str, str] = {}
    resources: ResourceRequirements | None = None
    observed_generation: int = 0


class Pod(APIStruct, frozen=True, kw_only=True):
    """A pod."""

    metadata: ObjectMeta
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()
