"""Small fleets for tests: `node("a", gpus=8)`, `pod("p", gpus=1)`, `ledger([...], [...])`.

Everything not named has a value that keeps out of the way: nodes are large, ready and untainted, pods ask for
little. Amounts are quantities as people write them ("500m", "16Gi"); selectors are keyword arguments
(`app="web"`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gpufleet.fleet.nodes import Node
from gpufleet.fleet.pods import (
    GANG_LABELS_RULE,
    GangRef,
    HostPort,
    Pod,
    PodAffinityTerm,
    PodShape,
    PreferredNodes,
    SpreadConstraint,
    WeightedPodAffinityTerm,
)
from gpufleet.fleet.quantities import resource_amount
from gpufleet.fleet.selectors import (
    LabelSelector,
    NodeSelector,
    NodeSelectorTerm,
    Requirement,
    Taint,
    Toleration,
)
from gpufleet.fleet.snapshot import snapshot_of
from gpufleet.fleet.volumes import Claim, StorageClass, Volume
from gpufleet.scheduling.ledger import Ledger

HOST = "kubernetes.io/hostname"
ZONE = "topology.kubernetes.io/zone"
GPU = "nvidia.com/gpu"
PRODUCT = "nvidia.com/gpu.product"


def amounts(quantities: Mapping[str, int | str]) -> dict[str, int]:
    """Resource amounts as integers: millicores for cpu, whole units for the rest."""
    return {resource: resource_amount(resource, str(q)) for resource, q in quantities.items()}


def node(
    name: str = "a",
    *,
    gpus: int = 0,
    sick: int = 0,
    cpu: str = "64",
    memory: str = "512Gi",
    pods: int = 110,
    zone: str = "",
    labels: Mapping[str, str] | None = None,
    taints: Iterable[str | Taint] = (),
    unschedulable: bool = False,
    ready: bool = True,
    resources: Mapping[str, int | str] | None = None,
) -> Node:
    """A node with `gpus` that are healthy and others that are `sick`. It carries its hostname label, and its
    zone when one is named; `resources` adds or replaces.
    """
    allocatable: dict[str, int | str] = {"cpu": cpu, "memory": memory, "pods": pods}
    if gpus:
        allocatable[GPU] = gpus
    allocatable.update(resources or {})
    return Node(
        name=name,
        labels={HOST: name, **({ZONE: zone} if zone else {}), **(labels or {})},
        allocatable=amounts(allocatable),
        taints=tuple(taint(t) if isinstance(t, str) else t for t in taints),
        unschedulable=unschedulable,
        ready=ready,
        unhealthy={GPU: sick} if sick else {},
    )


def pod(
    name: str = "p",
    *,
    gpus: int = 0,
    cpu: str = "100m",
    memory: str = "128Mi",
    resources: Mapping[str, int | str] | None = None,
    namespace: str = "default",
    labels: Mapping[str, str] | None = None,
    node: str = "",
    nominated: str = "",
    priority: int = 0,
    created: float = 0.0,
    terminating: bool = False,
    preempts: bool = True,
    gates: Iterable[str] = (),
    owner: str = "",
    kind: str = "ReplicaSet",
    gang: GangRef | None = None,
    node_selector: Mapping[str, str] | None = None,
    node_affinity: NodeSelector | None = None,
    preferred_nodes: Iterable[PreferredNodes] = (),
    tolerations: Iterable[str | Toleration] = (),
    affinity: Iterable[PodAffinityTerm] = (),
    anti_affinity: Iterable[PodAffinityTerm] = (),
    preferred_pods: Iterable[WeightedPodAffinityTerm] = (),
    spread: Iterable[SpreadConstraint] = (),
    host_ports: Iterable[int | HostPort] = (),
    claims: Iterable[str] = (),
    inline_csi_drivers: Iterable[str] = (),
    resource_claims: bool = False,
    queue: str = "",
) -> Pod:
    """A pod; it runs when `node` names one, and has an owner of `kind` when `owner` names one."""
    asked: dict[str, int | str] = {"cpu": cpu, "memory": memory, "pods": 1}
    if gpus:
        asked[GPU] = gpus
    asked.update(resources or {})
    shape = PodShape(
        requests=tuple(sorted((r, n) for r, n in amounts(asked).items() if n)),
        node_selector=tuple(sorted((node_selector or {}).items())),
        node_affinity=node_affinity,
        preferred_nodes=tuple(preferred_nodes),
        tolerations=tuple(toleration(t) if isinstance(t, str) else t for t in tolerations),
        affinity=tuple(affinity),
        anti_affinity=tuple(anti_affinity),
        preferred_pods=tuple(preferred_pods),
        spread=tuple(spread),
        host_ports=tuple(HostPort(p) if isinstance(p, int) else p for p in host_ports),
        claims=tuple(claims),
        inline_csi_drivers=tuple(inline_csi_drivers),
        resource_claims=resource_claims,
    )
    return Pod(
        namespace=namespace,
        name=name,
        uid=f"uid-{namespace}-{name}",
        shape=shape,
        labels=labels or {},
        priority=priority,
        created=created,
        node=node,
        nominated_node=nominated,
        phase="Running" if node else "Pending",
        terminating=terminating,
        gates=tuple(gates),
        preempts=preempts,
        owner=f"uid-{owner}" if owner else "",
        owner_kind=kind if owner else "",
        owner_name=owner,
        gang=gang,
        queue=queue,
    )


def gang(name: str, minimum: int | None, rule: str = GANG_LABELS_RULE) -> GangRef:
    """Membership of a gang of `minimum` pods."""
    return GangRef(name, minimum, rule)


def ledger(nodes: Iterable[Node] = (), pods: Iterable[Pod] = (), **rest: object) -> Ledger:
    """The ledger of a snapshot with these nodes, pods and (`rest`) other fields of `Snapshot`."""
    return Ledger.build(snapshot_of(tuple(nodes), tuple(pods), **rest))


def taint(text: str) -> Taint:
    """A taint as kubectl writes it: `key=value:Effect` or `key:Effect`."""
    key_value, effect = text.rsplit(":", 1)
    key, _, value = key_value.partition("=")
    return Taint(key, effect, value)


def toleration(text: str) -> Toleration:
    """`key=value:Effect`; without a value it tolerates any, without an effect every one, `*` every taint."""
    if text == "*":
        return Toleration(operator="Exists")
    key_value, _, effect = text.partition(":")
    key, equals, value = key_value.partition("=")
    return Toleration(key, "Equal" if equals else "Exists", value, effect)


def selector(**labels: str) -> LabelSelector:
    """A label selector of equalities: `selector(app="web")`."""
    return LabelSelector(tuple(equal(key, value) for key, value in sorted(labels.items())))


def equal(key: str, *values: str) -> Requirement:
    """A requirement that a label has one of the values."""
    return Requirement(key, "In", values)


def nodes_where(*requirements: Requirement) -> NodeSelector:
    """A node selector of one term."""
    return NodeSelector((NodeSelectorTerm(requirements),))


def prefer_nodes(weight: int, *requirements: Requirement) -> PreferredNodes:
    """A preferred node affinity term."""
    return PreferredNodes(weight, NodeSelectorTerm(requirements))


def near(key: str = HOST, *, namespaces: Iterable[str] = ("default",), **labels: str) -> PodAffinityTerm:
    """A pod affinity term (or anti-affinity, by where it is used) over pods with these labels."""
    return PodAffinityTerm(key, selector(**labels), tuple(namespaces))


def prefer_near(weight: int, key: str = HOST, **labels: str) -> WeightedPodAffinityTerm:
    """A preferred pod affinity term; a negative weight keeps apart."""
    return WeightedPodAffinityTerm(weight, near(key, **labels))


def spread_over(
    key: str = ZONE, *, max_skew: int = 1, hard: bool = True, min_domains: int = 1, **labels: str
) -> SpreadConstraint:
    """A topology spread constraint over pods with these labels."""
    return SpreadConstraint(max_skew, key, hard, selector(**labels), min_domains)


def claim(
    name: str = "data",
    *,
    volume: str = "",
    modes: Iterable[str] = ("ReadWriteOnce",),
    size: str = "1Gi",
    storage_class: str | None = "disk",
    selected: str = "",
    phase: str = "",
    namespace: str = "default",
    **rest: object,
) -> Claim:
    """A claim; it is Bound when `volume` names one, Pending otherwise, unless `phase` says something else."""
    return Claim(
        namespace=namespace,
        name=name,
        uid=f"uid-{name}",
        phase=phase or ("Bound" if volume else "Pending"),
        request=resource_amount("storage", size),
        storage_class=storage_class,
        volume=volume,
        access_modes=tuple(modes),
        selected_node=selected,
        **rest,  # type: ignore[arg-type]
    )


def volume(
    name: str = "pv",
    *,
    size: str = "10Gi",
    node: str = "",
    storage_class: str = "disk",
    modes: Iterable[str] = ("ReadWriteOnce",),
    driver: str = "",
    **rest: object,
) -> Volume:
    """A volume; `node` ties it to one node, `driver` makes it a CSI volume whose handle is its name."""
    return Volume(
        name=name,
        capacity=resource_amount("storage", size),
        storage_class=storage_class,
        access_modes=tuple(modes),
        node_affinity=nodes_where(equal(HOST, node)) if node else None,
        csi_driver=driver,
        csi_handle=f"handle-{name}" if driver else "",
        **rest,  # type: ignore[arg-type]
    )


def waiting_class(
    name: str = "disk", *, provisioner: str = "disk.example.com", **rest: object
) -> StorageClass:
    """A storage class that waits for the first consumer."""
    return StorageClass(name, provisioner, waits=True, **rest)  # type: ignore[arg-type]


def storage(
    *, claims: Iterable[Claim] = (), volumes: Iterable[Volume] = (), classes: Iterable[StorageClass] = ()
) -> dict[str, object]:
    """The storage fields of a snapshot: `ledger(nodes, pods, **storage(claims=[...]))`."""
    return {
        "claims": {c.key: c for c in claims},
        "volumes": {v.name: v for v in volumes},
        "storage_classes": {c.name: c for c in classes},
    }
