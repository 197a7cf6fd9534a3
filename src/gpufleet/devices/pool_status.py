"""What a pool says of itself: its nodes and GPUs, what is not as asked, and who else claims a node.

Two conditions: `Ready` is True when every node is as asked and nobody disputes one, `Conflict` is True when
another pool claims a node too. Lists are short enough for a fleet of a thousand nodes: those with reasons
come first, and the counts are of all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from gpufleet.fleet.reasons import Reason
from gpufleet.kube.gpunode import GPUDevice
from gpufleet.kube.gpupool import (
    MAX_NODES_SHOWN,
    MAX_PRODUCTS,
    MAX_REASONS,
    GPUPool,
    GPUPoolStatus,
    PoolDevices,
    PoolNode,
    PoolReason,
)
from gpufleet.kube.objects.meta import Condition

SHOWN_IN_MESSAGE = 3
MAX_MESSAGE = 256
ALARMING = frozenset({"PoolConflict", "PoolDrift", "PoolEmpty"})
"""Conditions that somebody should look at."""


class Member(msgspec.Struct, frozen=True):
    """A node that a pool claims. `rivals` are the other pools that do."""

    node: str
    ready: bool
    devices: tuple[GPUDevice, ...] = ()
    reasons: tuple[Reason, ...] = ()
    rivals: tuple[str, ...] = ()


def pool_status(pool: GPUPool, members: Sequence[Member], now: str) -> GPUPoolStatus:
    """The status of a pool; `now` (RFC 3339) is when a condition changes that does."""
    own = [member for member in members if not member.rivals]
    return GPUPoolStatus(
        observed_generation=pool.metadata.generation,
        node_count=len(own),
        ready_nodes=sum(member.ready for member in own),
        drifted_nodes=sum(bool(member.reasons) for member in own),
        contested_nodes=len(members) - len(own),
        gpus=sum(len(member.devices) for member in own),
        devices=_devices([device for member in own for device in member.devices]),
        nodes=_nodes(members),
        conditions=_conditions(pool, members, own, now),
    )


def turned(before: GPUPoolStatus, after: GPUPoolStatus) -> tuple[Reason, ...]:
    """What people should hear of: conditions that turned, have another reason, or are True from the start."""
    known = {one.type: (one.status, one.reason) for one in before.conditions}
    return tuple(
        Reason(one.reason, one.message)
        for one in after.conditions
        if known.get(one.type) != (one.status, one.reason) and (one.type in known or one.status == "True")
    )


def _devices(devices: Sequence[GPUDevice]) -> tuple[PoolDevices, ...]:
    counts = Counter(device.product for device in devices)
    sick = Counter(device.product for device in devices if not device.healthy)
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MAX_PRODUCTS]
    return tuple(PoolDevices(product=product, gpus=count, unhealthy=sick[product]) for product, count in most)


def _nodes(members: Sequence[Member]) -> tuple[PoolNode, ...]:
    shown = sorted(members, key=lambda one: (not one.reasons, one.node))[:MAX_NODES_SHOWN]
    return tuple(
        PoolNode(
            name=one.node,
            ready=one.ready,
            gpus=len(one.devices),
            reasons=tuple(
                PoolReason(code=reason.code, message=_cut(reason.message))
                for reason in one.reasons[:MAX_REASONS]
            ),
        )
        for one in shown
    )


def _conditions(
    pool: GPUPool, members: Sequence[Member], own: Sequence[Member], now: str
) -> tuple[Condition, ...]:
    contested = {one.node: f"{one.node} ({', '.join(one.rivals)})" for one in members if one.rivals}
    drifted = {one.node: f"{one.node} ({one.reasons[0].code})" for one in own if one.reasons}
    disputed = f"{_nodes_are(contested)} claimed by another pool too: {_first(contested)}"
    if contested:
        ready = ("False", "PoolConflict", disputed)
    elif drifted:
        ready = ("False", "PoolDrift", f"{_nodes_are(drifted)} not as asked: {_first(drifted)}")
    elif own:
        ready = ("True", "PoolSettled", "every node is as asked")
    else:
        ready = ("False", "PoolEmpty", "no node matches spec.nodeSelector")
    conflict = (
        ("True", "PoolConflict", disputed)
        if contested
        else ("False", "PoolUndisputed", "no other pool claims a node of this one")
    )
    before = {one.type: one for one in pool.status.conditions}
    return tuple(
        _condition(pool, kind, found, before.get(kind), now)
        for kind, found in (("Ready", ready), ("Conflict", conflict))
    )


def _condition(
    pool: GPUPool, kind: str, found: tuple[str, str, str], before: Condition | None, now: str
) -> Condition:
    status, reason, message = found
    same = before is not None and before.status == status and before.last_transition_time
    return Condition(
        type=kind,
        status=status,
        reason=reason,
        message=message,
        last_transition_time=before.last_transition_time if before is not None and same else now,
        observed_generation=pool.metadata.generation,
    )


def _nodes_are(nodes: Mapping[str, str]) -> str:
    return "1 node is" if len(nodes) == 1 else f"{len(nodes)} nodes are"


def _first(nodes: Mapping[str, str]) -> str:
    """The first few by name, and how many more there are."""
    texts = [nodes[name] for name in sorted(nodes)]
    more = len(texts) - SHOWN_IN_MESSAGE
    return ", ".join(texts[:SHOWN_IN_MESSAGE]) + (f" and {more} more" if more > 0 else "")


def _cut(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE else f"{text[: MAX_MESSAGE - 3]}..."
