"""The objects that every local fleet has before its first workload: custom resources, priority classes, the
policies that keep picks of devices the scheduler's and give pods their fractions of GPUs, and kinds of other
vendors that manifests name.

They are applied at every `up` by server-side apply, so that a newer gpufleet brings its newer resources, and
they are in the API server before anything that watches them starts.
"""

from __future__ import annotations

from typing import Any

from gpufleet.kube import crds
from gpufleet.kube.client import Client
from gpufleet.kube.custom_resources import custom_resources
from gpufleet.kube.fraction_policies import fraction_policies
from gpufleet.kube.kinds import PRIORITY_CLASSES, VALIDATING_POLICIES, VALIDATING_POLICY_BINDINGS
from gpufleet.kube.picks_policy import picks_policy, picks_policy_binding
from gpufleet.local.vendor_kinds import install_vendor_kinds
from gpufleet.scheduling.owners import answered_names

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


async def apply_builtin(client: Client) -> None:
    """Apply every built-in object and wait until the API server serves the custom resources."""
    for priority in priority_classes():
        await client.apply(PRIORITY_CLASSES, priority, field_manager=FIELD_MANAGER)
    await client.apply(VALIDATING_POLICIES, picks_policy(), field_manager=FIELD_MANAGER)
    await client.apply(VALIDATING_POLICY_BINDINGS, picks_policy_binding(), field_manager=FIELD_MANAGER)
    for kind, policy in fraction_policies(answered_names(())):
        await client.apply(kind, policy, field_manager=FIELD_MANAGER)
    await crds.establish(client, custom_resources())
    await install_vendor_kinds(client)
