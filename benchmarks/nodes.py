"""The nodes of a benchmark: those of the simulated kubelets, or mere objects that nobody plays."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from gpufleet.kube.client import Client
from gpufleet.kube.kinds import GPU_NODES, NODES
from gpufleet.kube.objects.meta import PartialObject

GPUS_PER_NODE = 8
PATIENCE_S = 300.0


async def create_nodes(client: Client, count: int) -> None:
    """Create ready nodes of 8 GPUs as objects only."""
    resources = {"cpu": "192", "memory": "2Ti", "pods": "110", "nvidia.com/gpu": str(GPUS_PER_NODE)}
    status = {
        "capacity": resources,
        "allocatable": resources,
        "conditions": [{"type": "Ready", "status": "True", "reason": "Benchmark", "message": "an object"}],
    }
    for index in range(count):
        name = f"gpu-{index:03}"
        metadata = {"name": name, "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}}
        await client.create(
            NODES, {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "status": status}
        )
        await client.patch(NODES, name, {"spec": {"taints": None}})


async def wait_for_nodes(client: Client, count: int) -> None:
    """Wait until every simulated node is published, ready and without a taint."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        nodes: list[dict[str, Any]] = (await client.list(NODES)).items
        published = (await client.list(GPU_NODES, type=PartialObject)).items
        if sum(map(is_ready, nodes)) == count == len(published):
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"{sum(map(is_ready, nodes))} of {count} nodes became ready")
        await asyncio.sleep(0.5)


def is_ready(node: dict[str, Any]) -> bool:
    """Whether a node takes pods."""
    conditions = {one["type"]: one["status"] for one in node.get("status", {}).get("conditions", ())}
    return conditions.get("Ready") == "True" and not node["spec"].get("taints")
