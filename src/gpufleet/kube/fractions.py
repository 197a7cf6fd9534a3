"""Fractions of GPUs in a `GPUNode`: which GPUs their agent keeps for fractions, and whether it can."""

from __future__ import annotations

from gpufleet.fleet.devices import WHOLE_RESOURCE
from gpufleet.kube.gpunode import GPUNode

FRACTIONS_CONDITION = "Fractions"
"""The condition of a GPUNode that is False while something is wrong with fractions on the node."""
NOT_WITHHELD = "FractionsNotWithheld"
"""Its reason where nobody can keep GPUs with fractions from pods that ask for whole ones."""


def carrying_gpus(node: GPUNode) -> tuple[str, ...]:
    """The healthy GPUs (UUIDs) that the agent gives to nobody whole, because they carry fractions."""
    return tuple(one.uuid for one in node.status.devices if one.fraction_milli and one.healthy)


def sick_gpus(node: GPUNode) -> tuple[str, ...]:
    """The GPUs (UUIDs) that no new pod may use."""
    return tuple(one.uuid for one in node.status.devices if not one.healthy)


def withheld_shares(node: GPUNode) -> dict[str, int]:
    """How many devices of each resource nobody gets because their GPUs carry fractions, beside the one that a
    ledger counts for each such GPU: shares, where it was shared otherwise after that.
    """
    whole = len(carrying_gpus(node))
    found = {one.name: one.carrying - whole * (one.name == WHOLE_RESOURCE) for one in node.status.resources}
    return {name: count for name, count in found.items() if count > 0}


def may_carry(node: GPUNode) -> bool:
    """Whether GPUs of the node can carry fractions, as far as its agent says."""
    return not any(
        one.type == FRACTIONS_CONDITION and one.status == "False" and one.reason == NOT_WITHHELD
        for one in node.status.conditions
    )
