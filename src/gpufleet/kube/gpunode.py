"""`GPUNode`: what the agent of a node says about its GPUs, and what the controller asks of it.

One object per node, of the node's name, and the only channel between agent and controller: `status` is
written by the node's agent alone, `spec.desired` by the controller alone. Everything that reads devices
(scheduler, `top`, exporter) reads it here, because the kubelet reports a changed device count up to ten
seconds late and never says which container holds which GPU. The lists of the status are atomic: they have one
writer, and the API server's bookkeeping of keyed lists costs half as much again for every write.

Rooms of the controller share `spec.desired` by server-side apply, each with a field manager of its own that
owns whole fields: pools have `pool`, `dynamic`, `allowModeSwitch`, `sharing` and, unless the pool's MIG is
dynamic, `mig`; where `dynamic` says so, `mig` is the scheduler's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from gpufleet.fleet.device_choice import SharePolicy
from gpufleet.kube.crds import Column, CustomResource, Rule
from gpufleet.kube.kinds import GPU_NODES
from gpufleet.kube.objects.meta import APIStruct, Condition, ObjectMeta

MAX_DEVICES = 64
MAX_INSTANCES = 8
MAX_RESOURCES = 32
MAX_ALLOCATIONS = 1024
MAX_PODS_DEVICES = 64
MAX_PODS_IDS = 1024
MAX_LINK_SCORE = 100_000

Uuid = Annotated[str, Meta(min_length=1, max_length=63, description="UUID of a GPU or of a MIG instance.")]
DeviceId = Annotated[
    str,
    Meta(min_length=1, max_length=80, description="Id of a device, as GPU-<uuid>::<number of the share>."),
]
MigProfile = Annotated[
    str,
    Meta(min_length=1, max_length=32, pattern=r"^[0-9a-z.+]+$", description="MIG profile, as 3g.40gb."),
]
SharingMode = Literal["none", "timeSlicing", "mps"]
MAX_REPLICAS = 64
"""How often a device may be offered: time-slicing has no limit of its own, MPS one of 48 clients."""

Time = Annotated[
    str, Meta(max_length=40, description="RFC 3339 time.", extra_json_schema={"format": "date-time"})
]


LinkScores = Annotated[
    tuple[Annotated[int, Meta(ge=0, le=MAX_LINK_SCORE, description="Score of a pair.")], ...],
    Meta(
        max_length=MAX_DEVICES - 1,
        description="Scores with GPU 0, 1, ...: 10 to 60 by the nearest common ancestor on PCIe (system, "
        "cpu, bridge, switches, switch, board), and 100 for each NVLink.",
    ),
]


class GPUInstance(APIStruct, frozen=True, kw_only=True):
    """One MIG instance of a GPU and where it lies."""

    uuid: Uuid
    profile: Annotated[str, Meta(max_length=32, description="MIG profile, for example 3g.40gb.")]
    start: Annotated[int, Meta(ge=0, le=15, description="First memory slice of the instance.")]
    size: Annotated[int, Meta(ge=1, le=16, description="Number of memory slices.")]
    healthy: Annotated[bool, Meta(description="Whether new pods may use the instance.")]


class GPUDevice(APIStruct, frozen=True, kw_only=True, omit_defaults=False):
    """One GPU: identity, health, and its readings at the last report."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            rule="!has(self.instances) || size(self.instances) == 0 || self.?migEnabled.orValue(false)",
            message="MIG instances exist only while MIG mode is on",
        ),
        Rule(
            rule="self.healthy || (has(self.reason) && size(self.reason) > 0)",
            message="a GPU that is not healthy needs a reason",
        ),
    )

    index: Annotated[
        int, Meta(ge=0, le=255, description="Index of the GPU on its node, as nvidia-smi counts.")
    ]
    uuid: Uuid
    product: Annotated[
        str, Meta(max_length=63, description="Product as in the label nvidia.com/gpu.product.")
    ]
    memory_mib: Annotated[int, Meta(ge=0, description="Total memory in MiB.")]
    healthy: Annotated[bool, Meta(description="Whether new pods may use the GPU.")]
    reason: Annotated[
        str, Meta(max_length=256, description="Why the GPU is not healthy; empty when it is.")
    ] = ""
    util_percent: Annotated[int, Meta(ge=0, le=100, description="Share of time that kernels ran.")] = 0
    memory_used_mib: Annotated[int, Meta(ge=0, description="Memory in use in MiB.")] = 0
    temperature_c: Annotated[int, Meta(ge=-50, le=200, description="Temperature in degrees Celsius.")] = 0
    power_w: Annotated[int, Meta(ge=0, le=5000, description="Power draw in watts.")] = 0
    fraction_milli: Annotated[
        int,
        Meta(
            ge=0,
            description="Milli-GPU that fractions take; 0 where there are none. Else nobody gets it whole.",
        ),
    ] = 0
    mig_enabled: Annotated[bool, Meta(description="Whether MIG mode is on.")] = False
    instances: Annotated[
        tuple[GPUInstance, ...], Meta(max_length=MAX_INSTANCES, description="MIG instances, by start slice.")
    ] = ()


class GPUAllocation(APIStruct, frozen=True, kw_only=True):
    """The devices of one resource that one container holds."""

    namespace: Annotated[str, Meta(max_length=63, description="Namespace of the pod.")]
    pod: Annotated[str, Meta(max_length=253, description="Name of the pod.")]
    pod_uid: Annotated[str, Meta(max_length=64, description="UID of the pod.")]
    container: Annotated[str, Meta(max_length=63, description="Name of the container.")]
    resource: Annotated[str, Meta(max_length=128, description="Resource asked for, as nvidia.com/gpu.")]
    devices: Annotated[
        tuple[Uuid, ...],
        Meta(
            min_length=1,
            max_length=MAX_PODS_DEVICES,
            description="UUIDs of the GPUs or MIG instances held; several containers hold a shared GPU.",
        ),
    ]
    ids: Annotated[
        tuple[DeviceId, ...],
        Meta(
            max_length=MAX_PODS_IDS,
            description="Device ids held where they are not the UUIDs: one for each share of a shared GPU.",
        ),
    ] = ()
    milli: Annotated[
        int, Meta(ge=0, description="Milli-GPU of each device, where it is a fraction; else 0.")
    ] = 0

    @property
    def device_ids(self) -> tuple[str, ...]:
        """The device ids, as many as the container asked for."""
        return self.ids or self.devices


class GPUResource(APIStruct, frozen=True, kw_only=True):
    """One resource that the node offers to pods."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(rule="self.healthy <= self.capacity", message="more devices are healthy than exist"),
        Rule(
            rule="!has(self.carrying) || self.carrying <= self.healthy",
            message="more devices carry fractions than are healthy",
        ),
    )

    name: Annotated[str, Meta(max_length=128, description="Resource name, as nvidia.com/gpu.")]
    capacity: Annotated[int, Meta(ge=0, description="Devices (or shares) that exist.")]
    healthy: Annotated[
        int, Meta(ge=0, description="Devices that new pods may use; trusted over Node.status.allocatable.")
    ]
    carrying: Annotated[
        int,
        Meta(ge=0, description="Healthy devices that carry fractions; the kubelet gives them to nobody."),
    ] = 0
    policy: Annotated[
        SharePolicy, Meta(description="Shares go to the least used device, or packed to the most used one.")
    ] = "distributed"

    @property
    def usable(self) -> int:
        """How many devices the kubelet may give to new pods."""
        return self.healthy - self.carrying


class GPUSummary(APIStruct, frozen=True, kw_only=True, omit_defaults=False):
    """Counts for people and printer columns."""

    product: Annotated[str, Meta(max_length=63, description="Product of most GPUs; empty without GPUs.")] = ""
    gpus: Annotated[int, Meta(ge=0, description="Physical GPUs.")]
    allocated: Annotated[int, Meta(ge=0, description="Physical GPUs of which a container holds a part.")]
    unhealthy: Annotated[int, Meta(ge=0, description="Physical GPUs that new pods may not use.")]
    mig: Annotated[
        str, Meta(max_length=256, description="MIG instances, as 2x1g.10gb,1x3g.40gb, or off.")
    ] = "off"


class StartPhase(APIStruct, frozen=True, kw_only=True):
    """One step of the agent's start and when it was reached."""

    name: Annotated[str, Meta(max_length=63, description="Registered, DevicesReady or Ready.")]
    time: Time


class SharingWish(APIStruct, frozen=True, kw_only=True, omit_defaults=False):
    """How the GPUs and MIG instances of a node are to be shared, in full."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            rule="self.mode == 'none' ? self.replicas == 1 : self.replicas >= 2",
            message="what is shared has at least 2 replicas, what is not has 1",
        ),
    )

    mode: Annotated[SharingMode, Meta(description="none, timeSlicing, or mps.")]
    replicas: Annotated[int, Meta(ge=1, le=MAX_REPLICAS, description="How often each device is offered.")]
    rename: Annotated[bool, Meta(description="Offer nvidia.com/gpu.shared instead of nvidia.com/gpu.")]
    fail_requests_greater_than_one: Annotated[
        bool, Meta(description="Refuse a container that asks for more than one replica.")
    ]


class MigPlace(APIStruct, frozen=True, kw_only=True):
    """A MIG instance and where it must lie."""

    profile: MigProfile
    start: Annotated[int, Meta(ge=0, le=15, description="First memory slice of the instance.")]


class MigWish(APIStruct, frozen=True, kw_only=True):
    """How one GPU is to be cut: exactly these instances, by placement or by profile, and no others."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            rule="!(has(self.instances) && size(self.instances) > 0 && has(self.profiles) && "
            "size(self.profiles) > 0)",
            message="instances and profiles exclude each other",
        ),
        Rule(
            rule="self.enabled || ((!has(self.instances) || size(self.instances) == 0) && "
            "(!has(self.profiles) || size(self.profiles) == 0))",
            message="MIG instances exist only while MIG mode is on",
        ),
    )

    uuid: Uuid
    enabled: Annotated[bool, Meta(description="Whether MIG mode is to be on.")]
    instances: Annotated[
        tuple[MigPlace, ...], Meta(max_length=MAX_INSTANCES, description="Instances at exact places.")
    ] = ()
    profiles: Annotated[
        tuple[MigProfile, ...],
        Meta(max_length=MAX_INSTANCES, description="Profiles of instances that may lie anywhere."),
    ] = ()


class GPUNodeDesired(APIStruct, frozen=True, kw_only=True):
    """What the controller asks of the node; empty means nothing."""

    pool: Annotated[str, Meta(max_length=63, description="GPUPool that the node belongs to.")] = ""
    dynamic: Annotated[
        bool, Meta(description="The scheduler cuts the GPUs as pods need it, and writes mig.")
    ] = False
    allow_mode_switch: Annotated[bool, Meta(description="MIG mode of a GPU may be switched.")] = False
    sharing: Annotated[
        SharingWish | None, Meta(description="How devices are shared; absent: as the node is configured.")
    ] = None
    mig: Annotated[
        tuple[MigWish, ...],
        Meta(max_length=MAX_DEVICES, description="How GPUs are cut; one that is not named is left alone."),
    ] = ()
    quarantine: Annotated[
        tuple[Uuid, ...],
        Meta(
            max_length=MAX_DEVICES,
            description="UUIDs of GPUs that no new pod may use.",
            extra_json_schema={"x-kubernetes-list-type": "set"},
        ),
    ] = ()


class GPUNodeSpec(APIStruct, frozen=True, kw_only=True):
    """The controller's side of the object."""

    desired: Annotated[
        GPUNodeDesired, Meta(description="Asked for by the controller, carried out by the agent.")
    ] = GPUNodeDesired()


class GPUNodeStatus(APIStruct, frozen=True, kw_only=True):
    """The agent's side of the object."""

    observed_generation: Annotated[
        int, Meta(ge=0, description="Generation of the spec that this status has taken into account.")
    ] = 0
    summary: Annotated[GPUSummary | None, Meta(description="Counts of what follows.")] = None
    devices: Annotated[
        tuple[GPUDevice, ...],
        Meta(
            max_length=MAX_DEVICES,
            description="The GPUs of the node, by index.",
        ),
    ] = ()
    resources: Annotated[
        tuple[GPUResource, ...],
        Meta(
            max_length=MAX_RESOURCES,
            description="What the node offers to pods, by resource name.",
        ),
    ] = ()
    allocations: Annotated[
        tuple[GPUAllocation, ...],
        Meta(
            max_length=MAX_ALLOCATIONS,
            description="Which container holds which device; written before the container runs.",
        ),
    ] = ()
    links: Annotated[
        tuple[LinkScores, ...],
        Meta(
            max_length=MAX_DEVICES,
            description="How well each GPU is linked with those before it, in the order of devices; absent "
            "where all pairs are alike.",
        ),
    ] = ()
    started: Annotated[Time | None, Meta(description="When the agent started.")] = None
    phases: Annotated[
        tuple[StartPhase, ...], Meta(max_length=16, description="The agent's start, step by step.")
    ] = ()
    conditions: Annotated[
        tuple[Condition, ...], Meta(max_length=16, description="Ready: the agent reports and may be trusted.")
    ] = ()


class GPUNode(APIStruct, frozen=True, kw_only=True):
    """The GPUs of one node: what they are, who holds them, and what is asked of them."""

    metadata: ObjectMeta
    spec: Annotated[GPUNodeSpec, Meta(description="Written by the controller.")] = GPUNodeSpec()
    status: Annotated[GPUNodeStatus, Meta(description="Written by the node's agent.")] = GPUNodeStatus()


def status_patch(status: GPUNodeStatus) -> Mapping[str, object]:
    """A merge patch of the whole status; lists that are empty are cleared instead of left as they were."""
    body = {
        field.encode_name: msgspec.to_builtins(getattr(status, field.name))
        for field in msgspec.structs.fields(GPUNodeStatus)
    }
    return {"status": body}


GPU_NODE = CustomResource(
    kind=GPU_NODES,
    type=GPUNode,
    short_names=("gpun",),
    columns=(
        Column("Product", "string", ".status.summary.product", "Product of most GPUs."),
        Column("GPUs", "integer", ".status.summary.gpus", "Physical GPUs."),
        Column(
            "Allocated", "integer", ".status.summary.allocated", "GPUs of which a container holds a part."
        ),
        Column("Unhealthy", "integer", ".status.summary.unhealthy", "GPUs that new pods may not use."),
        Column("MIG", "string", ".status.summary.mig", "MIG instances, or off."),
    ),
)
