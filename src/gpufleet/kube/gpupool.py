"""`GPUPool`: which nodes belong together, what they are for, and how their GPUs are labelled, shared and cut.

A pool owns no node: it claims those that its selector matches, whoever made them. The selector sees labels as
others set them, not those that pools set, so that a pool can neither claim nor lose a node by its own doing.
What a pool asks of devices reaches the agent as `spec.desired` of the node's GPUNode.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from gpufleet.kube.crds import Column, CustomResource, Rule
from gpufleet.kube.gpunode import MAX_INSTANCES, MAX_REPLICAS, MigProfile, SharingMode
from gpufleet.kube.kinds import GPU_POOLS
from gpufleet.kube.objects import LabelSelector, LabelSelectorRequirement
from gpufleet.kube.objects.meta import APIStruct, Condition, ObjectMeta

MAX_LABELS = 16
MAX_TAINTS = 8
MAX_REQUIREMENTS = 16
MAX_VALUES = 64
MAX_NODES_SHOWN = 128
MAX_REASONS = 4
MAX_PRODUCTS = 16
MAX_MPS_REPLICAS = 48
_NAME = "[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?"
_QUALIFIED = rf"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?{_NAME}$"

Purpose = Literal["inference", "training", "batch", "dev"]
LabelValue = Annotated[
    str, Meta(max_length=63, pattern=rf"^({_NAME})?$", description="Value of a label of the node.")
]
LabelKey = Annotated[
    str, Meta(min_length=1, max_length=317, pattern=_QUALIFIED, description="Key of a label of the node.")
]


class NodeRequirement(LabelSelectorRequirement, frozen=True, kw_only=True):
    """One expression over a label of the node."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            rule="self.operator in ['In', 'NotIn'] ? has(self.values) && size(self.values) > 0 : "
            "!has(self.values) || size(self.values) == 0",
            message="In and NotIn need values, Exists and DoesNotExist have none",
        ),
    )

    key: LabelKey
    operator: Annotated[
        Literal["In", "NotIn", "Exists", "DoesNotExist"],
        Meta(description="In, NotIn, Exists or DoesNotExist."),
    ]
    values: Annotated[
        tuple[LabelValue, ...], Meta(max_length=MAX_VALUES, description="Values for In and NotIn.")
    ] = ()


class NodeLabels(LabelSelector, frozen=True, kw_only=True):
    """Nodes by their labels: all requirements must hold."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            rule="(has(self.matchLabels) && size(self.matchLabels) > 0) || "
            "(has(self.matchExpressions) && size(self.matchExpressions) > 0)",
            message="an empty selector would claim every node of the cluster",
        ),
    )

    match_labels: Annotated[
        Mapping[str, LabelValue],
        Meta(max_length=MAX_REQUIREMENTS, description="Labels that a node must have, with these values."),
    ] = {}
    match_expressions: Annotated[
        tuple[NodeRequirement, ...],
        Meta(max_length=MAX_REQUIREMENTS, description="Expressions that must hold."),
    ] = ()


class PoolTaint(APIStruct, frozen=True, kw_only=True):
    """A taint of every node of the pool."""

    key: Annotated[
        str, Meta(min_length=1, max_length=317, pattern=_QUALIFIED, description="Key of the taint.")
    ]
    value: Annotated[
        str, Meta(max_length=63, pattern=rf"^({_NAME})?$", description="Value of the taint.")
    ] = ""
    effect: Annotated[
        Literal["NoSchedule", "PreferNoSchedule", "NoExecute"],
        Meta(description="NoSchedule, PreferNoSchedule or NoExecute."),
    ]


class PoolSharing(APIStruct, frozen=True, kw_only=True):
    """How each GPU, or each MIG instance, is offered to several containers."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            rule="self.mode == 'none' ? !has(self.replicas) : has(self.replicas)",
            message="timeSlicing and mps need replicas, none has none",
        ),
        Rule(
            rule=f"self.mode != 'mps' || !has(self.replicas) || self.replicas <= {MAX_MPS_REPLICAS}",
            message=f"MPS serves at most {MAX_MPS_REPLICAS} clients of one GPU",
        ),
        Rule(
            rule="self.mode != 'none' || !self.?rename.orValue(false)",
            message="rename is for devices that are shared",
        ),
    )

    mode: Annotated[SharingMode, Meta(description="none, timeSlicing (no isolation), or mps.")]
    replicas: Annotated[
        Annotated[int, Meta(ge=2, le=MAX_REPLICAS)] | None,
        Meta(description="How often each device is offered; mps: up to 48."),
    ] = None
    rename: Annotated[bool, Meta(description="Offer nvidia.com/gpu.shared instead of nvidia.com/gpu.")] = (
        False
    )
    fail_requests_greater_than_one: Annotated[
        bool | None,
        Meta(description="Refuse a container that asks for more than one replica; by default only mps does."),
    ] = None


class PoolMig(APIStruct, frozen=True, kw_only=True):
    """How MIG cuts the GPUs: one of layout, profiles and dynamic."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            rule="(has(self.layout) ? 1 : 0) + (has(self.profiles) ? 1 : 0) + "
            "(self.?dynamic.orValue(false) ? 1 : 0) == 1",
            message="exactly one of layout, profiles and dynamic says how GPUs are cut",
        ),
    )

    layout: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=63,
            pattern=r"^all-[0-9a-z.+]+$",
            description="Layout of every GPU: all-disabled, all-enabled, all-balanced, or all-PROFILE.",
        ),
    ] = ""
    profiles: Annotated[
        tuple[MigProfile, ...],
        Meta(min_length=1, max_length=MAX_INSTANCES, description="Profiles of the instances of every GPU."),
    ] = ()
    dynamic: Annotated[bool, Meta(description="The scheduler cuts GPUs as pods need it.")] = False
    allow_mode_switch: Annotated[
        bool, Meta(description="MIG mode of an idle GPU may be switched, which may reset it.")
    ] = False


class Price(APIStruct, frozen=True, kw_only=True):
    """What one GPU costs."""

    per_gpu_hour_micros: Annotated[
        int,
        Meta(ge=0, le=10**12, description="Price of one GPU for one hour, in millionths of the currency."),
    ]
    currency: Annotated[
        str,
        Meta(
            pattern="^[A-Z]{3}$",
            description="ISO 4217 code, as USD.",
            extra_json_schema={"default": "USD"},
        ),
    ] = "USD"


class GPUPoolSpec(APIStruct, frozen=True, kw_only=True):
    """What is asked of the nodes of the pool."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            rule="!has(self.labels) || self.labels.all(key, !key.startsWith('gpufleet.dev/'))",
            message="labels of gpufleet.dev are set by gpufleet: use the name of the pool, and purpose",
            field_path=".labels",
        ),
        Rule(
            rule="!has(self.labels) || self.labels.all(key, size(key) <= 317 && "
            f"key.matches('{_QUALIFIED}'))",
            message="a key of labels is not a label key",
            field_path=".labels",
        ),
        Rule(
            rule="!has(self.sharing) || self.sharing.mode != 'mps' || !has(self.mig) || "
            "(has(self.mig.layout) && self.mig.layout == 'all-disabled')",
            message="MPS does not serve GPUs that are cut by MIG",
            field_path=".sharing",
        ),
        Rule(
            rule="!self.?gpuTaint.orValue(false) || !has(self.taints) || !self.taints.exists(taint, "
            "taint.key == 'nvidia.com/gpu' && taint.effect == 'NoSchedule')",
            message="gpuTaint and taints both set nvidia.com/gpu:NoSchedule",
            field_path=".taints",
        ),
    )

    node_selector: Annotated[
        NodeLabels, Meta(description="Which nodes; labels that pools set are not looked at.")
    ]
    purpose: Annotated[
        Purpose | None,
        Meta(
            description="inference, training, batch or dev; nodes get it as the label gpufleet.dev/purpose."
        ),
    ] = None
    labels: Annotated[
        Mapping[str, LabelValue], Meta(max_length=MAX_LABELS, description="Labels that every node gets.")
    ] = {}
    gpu_taint: Annotated[
        bool, Meta(description="Every node gets the usual taint nvidia.com/gpu=present:NoSchedule.")
    ] = False
    taints: Annotated[
        tuple[PoolTaint, ...],
        Meta(
            max_length=MAX_TAINTS,
            description="Taints that every node gets.",
            extra_json_schema={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["key", "effect"],
            },
        ),
    ] = ()
    sharing: Annotated[
        PoolSharing | None, Meta(description="How devices are shared; absent: as each node is configured.")
    ] = None
    mig: Annotated[
        PoolMig | None, Meta(description="How MIG cuts the GPUs; absent: they are left as they are.")
    ] = None
    price: Annotated[Price | None, Meta(description="What one GPU costs.")] = None
    disruption: Annotated[
        Literal["advise", "act"],
        Meta(
            description="advise: GPUs are not cut anew, only the status says what would be; act: they are.",
            extra_json_schema={"default": "advise"},
        ),
    ] = "advise"


class PoolReason(APIStruct, frozen=True, kw_only=True):
    """Why a node is not as its pool asks."""

    code: Annotated[str, Meta(max_length=63, description="Reason code.")]
    message: Annotated[str, Meta(max_length=256, description="What it is, for people.")]


class PoolDevices(APIStruct, frozen=True, kw_only=True, omit_defaults=False):
    """The GPUs of one product in the pool."""

    product: Annotated[str, Meta(max_length=63, description="Product as in nvidia.com/gpu.product.")]
    gpus: Annotated[int, Meta(ge=0, description="Physical GPUs.")]
    unhealthy: Annotated[int, Meta(ge=0, description="Physical GPUs that new pods may not use.")] = 0


class PoolNode(APIStruct, frozen=True, kw_only=True, omit_defaults=False):
    """One node that the pool claims."""

    name: Annotated[str, Meta(max_length=253, description="Name of the node.")]
    ready: Annotated[bool, Meta(description="Whether the node is Ready.")]
    gpus: Annotated[int, Meta(ge=0, description="Physical GPUs.")]
    reasons: Annotated[
        tuple[PoolReason, ...],
        Meta(max_length=MAX_REASONS, description="Why the node is not as the pool asks; none when it is."),
    ] = ()


class GPUPoolStatus(APIStruct, frozen=True, kw_only=True):
    """What the pool has, and what is not as asked."""

    observed_generation: Annotated[
        int, Meta(ge=0, description="Generation of the spec that this status is about.")
    ] = 0
    node_count: Annotated[int, Meta(ge=0, description="Nodes that the pool alone claims.")] = 0
    ready_nodes: Annotated[int, Meta(ge=0, description="Those of them that are Ready.")] = 0
    drifted_nodes: Annotated[int, Meta(ge=0, description="Those of them that are not as asked.")] = 0
    contested_nodes: Annotated[int, Meta(ge=0, description="Nodes that another pool claims too.")] = 0
    gpus: Annotated[int, Meta(ge=0, description="Physical GPUs of the nodes that the pool alone claims.")] = 0
    devices: Annotated[
        tuple[PoolDevices, ...], Meta(max_length=MAX_PRODUCTS, description="Those GPUs by product.")
    ] = ()
    nodes: Annotated[
        tuple[PoolNode, ...],
        Meta(
            max_length=MAX_NODES_SHOWN,
            description=f"Up to {MAX_NODES_SHOWN} claimed nodes, those with reasons first.",
        ),
    ] = ()
    conditions: Annotated[
        tuple[Condition, ...],
        Meta(
            max_length=8,
            description="Ready: every node is as asked; Conflict: another pool claims a node too.",
        ),
    ] = ()


class GPUPool(APIStruct, frozen=True, kw_only=True):
    """GPU nodes that belong together: what they are for, how they are labelled, shared and cut, and their
    price.
    """

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            rule="size(self.metadata.name) <= 63",
            message="the name is the value of a label, so it has at most 63 characters",
        ),
    )

    metadata: ObjectMeta
    spec: Annotated[GPUPoolSpec, Meta(description="What is asked.")]
    status: Annotated[GPUPoolStatus, Meta(description="What is.")] = GPUPoolStatus()


def pool_status_patch(status: GPUPoolStatus) -> Mapping[str, object]:
    """A merge patch of the whole status; what is empty is cleared instead of left as it was."""
    fields = msgspec.structs.fields(GPUPoolStatus)
    return {
        "status": {field.encode_name: msgspec.to_builtins(getattr(status, field.name)) for field in fields}
    }


GPU_POOL = CustomResource(
    kind=GPU_POOLS,
    type=GPUPool,
    short_names=("gpup",),
    columns=(
        Column("Purpose", "string", ".spec.purpose", "What the pool is for."),
        Column("Nodes", "integer", ".status.nodeCount", "Nodes that the pool alone claims."),
        Column("Ready", "integer", ".status.readyNodes", "Nodes that are Ready."),
        Column("GPUs", "integer", ".status.gpus", "Physical GPUs."),
        Column("Drifted", "integer", ".status.driftedNodes", "Nodes that are not as asked."),
        Column("Contested", "integer", ".status.contestedNodes", "Nodes that another pool claims too."),
        Column("Disruption", "string", ".spec.disruption", "Whether GPUs are cut anew, or only advised.", 1),
    ),
)
