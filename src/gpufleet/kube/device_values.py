"""The devices of a node: from its `GPUNode` to values."""

from __future__ import annotations

from gpufleet.fleet.cuts import WHOLE
from gpufleet.fleet.devices import (
    REPLICA_SEPARATOR,
    HeldDevices,
    NodeDevices,
    NodeGPU,
    Offered,
    Part,
    device_of,
    pools_of,
)
from gpufleet.fleet.fractions import FRACTION_RESOURCE
from gpufleet.fleet.mig import Placement
from gpufleet.kube.cuts import cuttable_gpus
from gpufleet.kube.gpunode import GPUAllocation, GPUDevice, GPUNode


def node_devices(node: GPUNode) -> NodeDevices:
    """All devices of a node, who holds them, and how its GPUs are linked."""
    status = node.status
    leaving = _leaving(node)
    gpus = tuple(_gpu(one, leaving) for one in status.devices)
    offered = {one.name: Offered(one.capacity, one.healthy, one.policy) for one in status.resources}
    held = tuple(_held(one) for one in status.allocations if one.resource != FRACTION_RESOURCE)
    return NodeDevices(gpus, status.links, pools_of(gpus, offered), held)


def _gpu(device: GPUDevice, leaving: frozenset[str]) -> NodeGPU:
    return NodeGPU(
        whole=Part(
            device.uuid,
            device.uuid,
            device.healthy,
            device.uuid in leaving,
            carrying=device.fraction_milli > 0,
        ),
        mig=device.mig_enabled,
        instances=tuple(
            (one.profile, Part(one.uuid, device.uuid, one.healthy, one.uuid in leaving))
            for one in device.instances
        ),
    )


def _held(allocation: GPUAllocation) -> HeldDevices:
    ids = allocation.device_ids
    shared = any(REPLICA_SEPARATOR in one for one in ids)
    return HeldDevices(
        allocation.pod_uid,
        allocation.container,
        allocation.resource,
        tuple(device_of(one) for one in ids),
        shared,
    )


def _leaving(node: GPUNode) -> frozenset[str]:
    """The UUIDs of GPUs and instances that the scheduler has asked to go."""
    found = set[str]()
    devices = {one.uuid: one for one in node.status.devices}
    for gpu in cuttable_gpus(node):
        if not gpu.going:
            continue
        if WHOLE in gpu.going:
            found.add(gpu.uuid)
        layout = gpu.layout or ()
        found |= {
            one.uuid
            for one in devices[gpu.uuid].instances
            if Placement(one.start, one.size, one.profile) not in layout
        }
    return frozenset(found)
