"""The objects that every local fleet has before its first workload: custom resources and priority classes.

They are applied at every `up` by server-side apply, so that a newer gpufleet brings its newer resources, and
they are in the API server before anything that watches them starts.
"""

from __future__ import annotations

import asyncio
from typing import Any

from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube import crds
from gpufleet.kube.client import Client
from gpufleet.kube.kinds import CRDS, PRIORITY_CLASSES

FIELD_MANAGER = "gpufleet"

PRIORITIES = {
    "gpufleet-inference": (
        100_000,
        "PreemptLowerPriority",
        "Services that people wait for: they evict training and batch work when GPUs run out.",
    ),
    "gpufleet-training": (
        10_000,
        "PreemptLowerPriority",
        "Training jobs: they evict batch work and give way to inference.",
    ),
    "gpufleet-batch": (
        1_000,
        "Never",
        "Work that can wait: it evicts nothing and gives way to everything above it.",
    ),
}
"""Priority classes by name: value, preemption policy, description. Pods without a class have priority 0."""


def priority_classes() -> list[dict[str, Any]]:
    """The manifests of the priority classes."""
    return [
        {
            "apiVersion": PRIORITY_CLASSES.api_version,
            "kind": PRIORITY_CLASSES.kind,
            "metadata": {"name": name},
            "value": value,
            "preemptionPolicy": policy,
            "description": description,
        }
        for name, (value, policy, description) in PRIORITIES.items()
    ]


async def apply_builtin(client: Client, *, timeout_s: float = 60.0) -> None:
    """Apply every built-in object and wait until the API server serves the custom resources."""
    resources = crds.custom_resources()
    for resource in resources:
        await client.apply(CRDS, resource, field_manager=FIELD_MANAGER)
    for priority in priority_classes():
        await client.apply(PRIORITY_CLASSES, priority, field_manager=FIELD_MANAGER)
    try:
        async with asyncio.timeout(timeout_s):
            for resource in resources:
                await _established(client, resource["metadata"]["name"])
    except TimeoutError:
        raise GpufleetError(
            reason="Timeout",
            message=f"the API server did not establish gpufleet's custom resources within {timeout_s:.0f} s",
            hint="kubectl get customresourcedefinitions; then gpufleet up",
        ) from None


async def _established(client: Client, name: str) -> None:
    while True:
        found = await client.get(CRDS, name)
        conditions = found.get("status", {}).get("conditions", [])
        if any(one["type"] == "Established" and one["status"] == "True" for one in conditions):
            return
        await asyncio.sleep(0.05)
