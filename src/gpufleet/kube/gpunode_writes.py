"""Writing a `GPUNode`: the agent of a node, real or simulated, owns its status and makes the object if need
be.
"""

from __future__ import annotations

from gpufleet.kube.client import ApiError, Client
from gpufleet.kube.gpunode import GPUNodeStatus, status_patch
from gpufleet.kube.kinds import GPU_NODES
from gpufleet.kube.objects import PartialObject


async def create_gpu_node(client: Client, node: str, node_uid: str) -> None:
    """Create the empty GPUNode of a node, owned by its Node, unless it exists. Raises ApiError."""
    owner = {"apiVersion": "v1", "kind": "Node", "name": node, "uid": node_uid}
    body = {"metadata": {"name": node, "ownerReferences": [owner]}, "spec": {}}
    try:
        await client.create(GPU_NODES, body, type=PartialObject)
    except ApiError as error:
        if not error.already_exists:
            raise


async def write_gpu_node_status(client: Client, node: str, node_uid: str, status: GPUNodeStatus) -> None:
    """Replace the status, of an object that is made first where it is missing. Raises ApiError."""
    try:
        await _patch(client, node, status)
    except ApiError as error:
        if not error.not_found:
            raise
        await create_gpu_node(client, node, node_uid)
        await _patch(client, node, status)


async def _patch(client: Client, node: str, status: GPUNodeStatus) -> None:
    await client.patch(GPU_NODES, node, status_patch(status), subresource="status", type=PartialObject)
