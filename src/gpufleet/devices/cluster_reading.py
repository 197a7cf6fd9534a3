"""Reading from the API server what tells who owns the parts of a node: `ClusterObjects`.

Every kind is read by itself, so that what an agent may not read, or what the server does not serve, leaves
the rest alone: what is not served is empty, what is refused is unknown.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, TypeVar

from gpufleet.devices.ownership_facts import (
    OPERATOR_CRDS,
    ClusterObjects,
    DaemonSet,
    DeviceClass,
    ResourceSlice,
)
from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube import objects
from gpufleet.kube.client import ApiError, Client
from gpufleet.kube.kinds import CRDS, NODES, PODS, Kind
from gpufleet.kube.objects import PartialObject

log = logging.getLogger("gpufleet.devices")

T = TypeVar("T")

DAEMON_SETS = Kind("apps", "v1", "daemonsets", "DaemonSet")
DEVICE_CLASSES = Kind("resource.k8s.io", "v1", "deviceclasses", "DeviceClass", namespaced=False)
RESOURCE_SLICES = Kind("resource.k8s.io", "v1", "resourceslices", "ResourceSlice", namespaced=False)
OPERATORS = {
    "clusterpolicies.nvidia.com": Kind(
        "nvidia.com", "v1", "clusterpolicies", "ClusterPolicy", namespaced=False
    ),
    "gpuclusters.nvidia.com": Kind("nvidia.com", "v1alpha1", "gpuclusters", "GPUCluster", namespaced=False),
}
"""The kinds of `OPERATOR_CRDS`."""


async def read_cluster(client: Client, node: str) -> ClusterObjects:
    """What the API server says of a node and of everything that may run a part on it. Never raises."""
    found, pods, daemon_sets, crds, classes, slices = await asyncio.gather(
        _node(client, node),
        _list(client, PODS, objects.Pod, fields=f"spec.nodeName={node}"),
        _list(client, DAEMON_SETS, DaemonSet),
        _list(client, CRDS, PartialObject),
        _list(client, DEVICE_CLASSES, DeviceClass),
        _list(client, RESOURCE_SLICES, ResourceSlice),
    )
    names = None if crds is None else [one.metadata.name for one in crds]
    return ClusterObjects(
        node=found,
        pods=pods,
        daemon_sets=daemon_sets,
        crds=names,
        operators=await _operators(client, names),
        device_classes=classes,
        slices=slices,
    )


async def _node(client: Client, name: str) -> objects.Node | None:
    try:
        return await client.get(NODES, name, type=objects.Node)
    except GpufleetError as error:
        log.warning("cannot read node %s: %s", name, error.message, extra={"reason": error.reason})
        return None


async def _operators(client: Client, crds: list[str] | None) -> list[dict[str, Any]] | None:
    wanted = [name for name in OPERATOR_CRDS if crds is None or name in crds]
    found: list[dict[str, Any]] = []
    for name in wanted:
        listed = await _list(client, OPERATORS[name], dict[str, Any])
        if listed is None:
            return None
        found += [{"kind": OPERATOR_CRDS[name], **one} for one in listed]
    return found


async def _list(client: Client, kind: Kind, type_: type[T], *, fields: str = "") -> list[T] | None:
    """All objects of a kind: none where it is not served, None where it could not be read."""
    try:
        return (await client.list(kind, fields=fields, type=type_)).items
    except ApiError as error:
        if error.not_found:
            return []
        log.warning("cannot read %s: %s", kind.resource, error.message, extra={"reason": error.reason})
    except GpufleetError as error:
        log.warning("cannot read %s: %s", kind.resource, error.message, extra={"reason": error.reason})
    return None
