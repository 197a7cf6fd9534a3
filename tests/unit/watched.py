"""A live snapshot and what informers tell it: manifests of pods and nodes, and how often it changed."""

from __future__ import annotations

from typing import Any

import msgspec

from gpufleet.fleet.pods import Pod
from gpufleet.kube import objects
from gpufleet.kube.gpunode import GPUNode, GPUNodeStatus, GPUResource
from gpufleet.kube.informers import Change
from gpufleet.kube.snapshot import SnapshotBuilder


def manifest(
    name: str = "p0",
    uid: str = "1",
    *,
    node: str = "",
    nominated: str = "",
    phase: str = "Pending",
    deleted: bool = False,
    gang: bool = False,
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
) -> objects.Pod:
    """A pod as its informer shows it."""
    body: dict[str, Any] = {
        "metadata": {
            "name": name,
            "namespace": "default",
            "uid": uid,
            "annotations": annotations or {},
            "labels": {
                **(labels or {}),
                **({"gpufleet.dev/gang": "g", "gpufleet.dev/gang-size": "2"} if gang else {}),
            },
        },
        "spec": {"nodeName": node, "containers": [{"name": "main", "resources": {"requests": {"cpu": "1"}}}]},
        "status": {"phase": phase, "nominatedNodeName": nominated},
    }
    if deleted:
        body["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    return msgspec.convert(body, objects.Pod)


def machine(name: str = "a", *, gpus: str = "", ready: str = "True", heartbeat: str = "") -> objects.Node:
    """A node as its informer shows it."""
    body = {
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {
            "allocatable": {"cpu": "4", **({"nvidia.com/gpu": gpus} if gpus else {})},
            "conditions": [{"type": "Ready", "status": ready, "lastHeartbeatTime": heartbeat}],
        },
    }
    return msgspec.convert(body, objects.Node)


def devices(name: str = "a", healthy: int = 1) -> GPUNode:
    """What the agent of a node says about its GPUs."""
    resource = GPUResource(name="nvidia.com/gpu", capacity=8, healthy=healthy)
    return GPUNode(metadata=objects.ObjectMeta(name=name), status=GPUNodeStatus(resources=(resource,)))


class Watched:
    """A builder and how often it said that something changed."""

    def __init__(self) -> None:
        self.changes = 0
        self.builder = SnapshotBuilder(self._count)

    def _count(self) -> None:
        self.changes += 1

    def pod(self, new: objects.Pod | None, name: str = "p0") -> None:
        self.builder.pod_changed(Change(f"default/{name}", None, new))

    def node(self, new: objects.Node | None, name: str = "a") -> None:
        self.builder.nodes.node_changed(Change(name, None, new))

    def found(self, name: str = "p0") -> Pod:
        pod = self.builder.pod(f"default/{name}")
        assert pod is not None
        return pod
