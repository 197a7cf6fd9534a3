"""Pools and nodes to decide about, and what a server makes of a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from gpufleet.devices.pool_records import RECORD_ANNOTATION, NodeView, node_view
from gpufleet.devices.pools import PoolPlan, PoolSnapshot, decide
from gpufleet.kube import objects
from gpufleet.kube.gpunode import GPUNode
from gpufleet.kube.gpupool import GPUPool
from gpufleet.kube.pool_writes import changed_taints

NOW = "2026-01-01T00:00:00Z"
LATER = "2026-01-02T00:00:00Z"
H100 = "NVIDIA-H100-80GB-HBM3"


def pool(name: str = "p", generation: int = 1, **spec: Any) -> GPUPool:
    """A pool of the nodes with the label zone=a, unless the spec says otherwise."""
    spec = {"nodeSelector": {"matchLabels": {"zone": "a"}}, **spec}
    metadata = {"name": name, "uid": f"uid-{name}", "generation": generation, "resourceVersion": "1"}
    return msgspec.convert({"metadata": metadata, "spec": spec}, GPUPool)


def node(
    name: str = "n",
    labels: Mapping[str, str] | None = None,
    taints: Sequence[Mapping[str, str]] = (),
    annotations: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """A Ready node as the server holds it, in zone a unless its labels say otherwise."""
    labels = {"zone": "a", **(labels or {})}
    return {
        "metadata": {
            "name": name,
            "uid": f"uid-{name}",
            "resourceVersion": "1",
            "labels": labels,
            "annotations": dict(annotations or {}),
        },
        "spec": {"taints": [dict(taint) for taint in taints]},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    }


def gpu_node(
    name: str = "n",
    cuts: Sequence[Sequence[str] | None] = (None, None),
    product: str = H100,
    resources: Mapping[str, int] | None = None,
    desired: Mapping[str, Any] | None = None,
) -> GPUNode:
    """A GPUNode with a GPU for each cut: the profiles that it has, None while MIG mode is off."""
    devices = [
        {
            "index": index,
            "uuid": f"GPU-{index}",
            "product": product,
            "memoryMib": 81559,
            "healthy": True,
            "migEnabled": cut is not None,
            "instances": [
                {"uuid": f"MIG-{index}-{at}", "profile": one, "start": at, "size": 1, "healthy": True}
                for at, one in enumerate(cut or ())
            ],
        }
        for index, cut in enumerate(cuts)
    ]
    offered = [{"name": key, "capacity": count, "healthy": count} for key, count in (resources or {}).items()]
    body = {
        "metadata": {"name": name, "uid": f"gpu-uid-{name}", "resourceVersion": "1"},
        "spec": {"desired": dict(desired or {})},
        "status": {"devices": devices, "resources": offered},
    }
    return msgspec.convert(body, GPUNode)


class World:
    """What the API server holds. Nodes are raw, as others write them."""

    def __init__(
        self,
        pools: Sequence[GPUPool] = (),
        nodes: Sequence[dict[str, Any]] = (),
        gpu_nodes: Sequence[GPUNode] = (),
        unread: frozenset[str] = frozenset(),
    ) -> None:
        self.pools = {one.metadata.name: one for one in pools}
        self.nodes = {one["metadata"]["name"]: one for one in nodes}
        self.gpu_nodes = {one.metadata.name: one for one in gpu_nodes}
        self.unread = unread

    def view(self, name: str) -> NodeView:
        return node_view(msgspec.convert(self.nodes[name], objects.Node))

    def labels(self, name: str = "n") -> dict[str, str]:
        found: dict[str, str] = self.nodes[name]["metadata"]["labels"]
        return found

    def taints(self, name: str = "n") -> list[dict[str, str]]:
        found: list[dict[str, str]] = self.nodes[name]["spec"]["taints"]
        return found

    def reasons(self, name: str = "p", of: str = "n") -> dict[str, str]:
        """The reasons that a pool's status gives for a node, by code."""
        nodes = {one.name: one for one in self.pools[name].status.nodes}
        return {reason.code: reason.message for reason in nodes[of].reasons}

    def conditions(self, name: str = "p") -> dict[str, tuple[str, str]]:
        return {one.type: (one.status, one.reason) for one in self.pools[name].status.conditions}

    def snapshot(self, *, backwards: bool = False) -> PoolSnapshot:
        names = sorted(self.nodes, reverse=backwards)
        pools = sorted(self.pools, reverse=backwards)
        return PoolSnapshot(
            tuple(self.pools[name] for name in pools),
            tuple(self.view(name) for name in names),
            self.gpu_nodes,
            self.unread,
        )

    def decide(self, now: str = NOW) -> PoolPlan:
        return decide(self.snapshot(), now)

    def settle(self, now: str = NOW) -> PoolPlan:
        """Decide and apply, and again for what the statuses say afterwards: then nothing is left to do."""
        plan = self.decide(now)
        self.apply(plan)
        self.apply(self.decide(now))
        assert self.decide(LATER).is_empty
        return plan

    def apply(self, plan: PoolPlan) -> None:
        for change in plan.nodes:
            body = self.nodes[change.node.name]
            _merge(body["metadata"]["labels"], change.labels)
            _merge(body["metadata"]["annotations"], change.annotations)
            body["spec"]["taints"] = changed_taints(body["spec"]["taints"], change.taints)
        for wanted in plan.desired:
            held = self.gpu_nodes[wanted.node]
            kept = {"mig": held.spec.desired.mig} if wanted.wish.mig is None else {}
            desired = {"quarantine": held.spec.desired.quarantine, **kept, **wanted.wish.body}
            body = {**msgspec.to_builtins(held), "spec": {"desired": msgspec.to_builtins(desired)}}
            self.gpu_nodes[wanted.node] = msgspec.convert(body, GPUNode)
        for written in plan.statuses:
            name = written.pool.metadata.name
            self.pools[name] = msgspec.structs.replace(self.pools[name], status=written.status)

    def others(self, name: str, key: str, value: str | None) -> None:
        """Somebody else writes a label, and a taint of that key."""
        _merge(self.labels(name), {key: value})
        body = self.nodes[name]
        body["spec"]["taints"] = changed_taints(body["spec"]["taints"], {f"{key}:NoSchedule": value})

    def record(self, name: str = "n") -> str:
        found: str = self.nodes[name]["metadata"]["annotations"].get(RECORD_ANNOTATION, "")
        return found


def _merge(held: dict[str, str], changes: Mapping[str, str | None]) -> None:
    for key, value in changes.items():
        if value is None:
            held.pop(key, None)
        else:
            held[key] = value
