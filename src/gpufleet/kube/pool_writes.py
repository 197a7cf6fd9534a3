"""The writes of pools: to nodes, which others own, to what is asked of agents, and to the pools' status.

A node is written only in the version that was decided upon: its taints are one list that several controllers
change, so each write is made from the whole list as it is. What is asked of agents is applied by a field
manager of our own, so that other rooms' fields stay theirs. Each function says whether it was written; an
object that changed or went away meanwhile is a case for the next decision.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from gpufleet.kube.client import Client
from gpufleet.kube.errors import ApiError
from gpufleet.kube.gpupool import GPUPool, GPUPoolStatus, pool_status_patch
from gpufleet.kube.kinds import GPU_NODES, GPU_POOLS, NODES
from gpufleet.kube.objects import PartialObject

FIELD_MANAGER = "gpufleet-pools"


async def change_node(
    client: Client,
    node: str,
    version: str,
    *,
    labels: Mapping[str, str | None],
    annotations: Mapping[str, str | None],
    taints: Mapping[str, str | None],
) -> bool:
    """Change labels, annotations and taints (by `key:effect`; None removes) in one write. Raises ApiError."""
    patch: dict[str, Any] = {
        "metadata": {"resourceVersion": version, "labels": dict(labels), "annotations": dict(annotations)}
    }
    if taints:
        found = await _unless_gone(client.get(NODES, node))
        if found is None or found["metadata"]["resourceVersion"] != version:
            return False
        patch["spec"] = {"taints": changed_taints(found["spec"].get("taints") or (), taints)}
    return await _unless_gone(client.patch(NODES, node, patch, type=PartialObject)) is not None


def changed_taints(
    present: Sequence[Mapping[str, Any]], changes: Mapping[str, str | None]
) -> list[dict[str, Any]]:
    """The list of taints with some (by `key:effect`) set to a value or removed; all others as they are."""
    left = dict(changes)
    found: list[dict[str, Any]] = []
    for taint in present:
        name = f"{taint['key']}:{taint['effect']}"
        if name not in left:
            found.append(dict(taint))
        elif (value := left.pop(name)) is not None:
            found.append(_valued(taint, value))
    for name, value in sorted(left.items()):
        if value is not None:
            key, _, effect = name.rpartition(":")
            found.append(_valued({"key": key, "effect": effect}, value))
    return found


async def ask_node(client: Client, node: str, uid: str, desired: Mapping[str, object]) -> bool:
    """Apply our part of the `spec.desired` of this very GPUNode. Raises ApiError."""
    body = {"metadata": {"name": node, "uid": uid}, "spec": {"desired": dict(desired)}}
    applied = client.apply(GPU_NODES, body, field_manager=FIELD_MANAGER, type=PartialObject)
    return await _unless_gone(applied) is not None


async def write_pool_status(client: Client, pool: GPUPool, status: GPUPoolStatus) -> bool:
    """Replace the status of a pool in the version that it is about. Raises ApiError."""
    meta = pool.metadata
    patch = {"metadata": {"resourceVersion": meta.resource_version}, **pool_status_patch(status)}
    written = client.patch(GPU_POOLS, meta.name, patch, subresource="status", type=PartialObject)
    return await _unless_gone(written) is not None


def _valued(taint: Mapping[str, Any], value: str) -> dict[str, Any]:
    rest = {key: what for key, what in taint.items() if key != "value"}
    return {**rest, "value": value} if value else rest


async def _unless_gone(write: Awaitable[Any]) -> Any | None:
    try:
        return await write
    except ApiError as error:
        if error.conflict or error.not_found:
            return None
        raise
