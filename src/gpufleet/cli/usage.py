"""Who uses which GPU: rows for `top` and sums for `status`, computed from GPUNode objects alone.

Pure. A GPU that is cut by MIG counts as allocated when any of its instances is held, and its readings are
those of the whole GPU, because the hardware reports them so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from gpufleet.fleet.mig import summary
from gpufleet.kube.conventions.labels import POOL_LABEL
from gpufleet.kube.gpunode import GPUDevice, GPUNode
from gpufleet.kube.objects import Node
from gpufleet.local.observed import node_ready


class Holder(msgspec.Struct, frozen=True, order=True):
    """A container that holds a GPU or a part of it."""

    namespace: str
    name: str
    container: str


class GPU(msgspec.Struct, frozen=True):
    """One physical GPU as `top gpus -o json` shows it. Scripts rely on these names."""

    node: str
    index: int
    uuid: str
    product: str
    memory_mib: int
    util_percent: int
    pods: tuple[Holder, ...]
    healthy: bool
    memory_used_mib: int = 0
    temperature_c: int = 0
    power_w: int = 0
    mig: str = ""
    """MIG instances with their count, as `2x1g.10gb,1x3g.40gb`; empty while MIG is off."""
    reason: str = ""
    fraction_milli: int = 0
    """Milli-GPU that fractions of pods take; 0 where there are none."""


class GPUCounts(msgspec.Struct, frozen=True):
    """Physical GPUs: `free` ones are healthy and held by nobody; an unhealthy one may still be held."""

    total: int | None
    allocated: int | None
    free: int | None
    unhealthy: int | None


class NodeUsage(msgspec.Struct, frozen=True):
    """One node as `top nodes -o json` shows it; sums and means over its GPUs."""

    node: str
    ready: bool
    pool: str
    product: str
    gpus: int
    allocated: int
    free: int
    unhealthy: int
    util_percent: int
    memory_mib: int
    memory_used_mib: int
    cordoned: bool = False


class PodUsage(msgspec.Struct, frozen=True):
    """One pod that holds GPUs as `top pods -o json` shows it; `devices` are UUIDs of GPUs or instances."""

    namespace: str
    name: str
    node: str
    resources: Mapping[str, int]
    devices: tuple[str, ...]
    util_percent: int
    memory_used_mib: int
    fraction_milli: int = 0
    """Milli-GPU of each device, where the pod has fractions."""


def gpus_of(nodes: Iterable[GPUNode]) -> list[GPU]:
    """Every GPU, by node and index."""
    found = [_gpu(node, device) for node in nodes for device in node.status.devices]
    return sorted(found, key=lambda gpu: (gpu.node, gpu.index))


def counts(gpus: Iterable[GPU]) -> GPUCounts:
    """How many GPUs there are and in which state."""
    known = list(gpus)
    return GPUCounts(
        total=len(known),
        allocated=sum(bool(gpu.pods) for gpu in known),
        free=sum(gpu.healthy and not gpu.pods for gpu in known),
        unhealthy=sum(not gpu.healthy for gpu in known),
    )


def nodes_of(gpu_nodes: Iterable[GPUNode], nodes: Iterable[Node]) -> list[NodeUsage]:
    """Every node of the cluster with its GPUs, by name."""
    by_name = {one.metadata.name: one for one in gpu_nodes}
    usages = []
    for node in nodes:
        reported = by_name.get(node.metadata.name)
        gpus = gpus_of([reported]) if reported else []
        state = counts(gpus)
        usages.append(
            NodeUsage(
                node=node.metadata.name,
                ready=node_ready(node),
                pool=node.metadata.labels.get(POOL_LABEL, ""),
                product=gpus[0].product if gpus else "",
                gpus=len(gpus),
                allocated=state.allocated or 0,
                free=state.free or 0,
                unhealthy=state.unhealthy or 0,
                util_percent=_mean([gpu.util_percent for gpu in gpus]),
                memory_mib=sum(gpu.memory_mib for gpu in gpus),
                memory_used_mib=sum(gpu.memory_used_mib for gpu in gpus),
                cordoned=node.spec.unschedulable,
            )
        )
    return sorted(usages, key=lambda usage: usage.node)


def pods_of(gpu_nodes: Iterable[GPUNode]) -> list[PodUsage]:
    """Every pod that holds a GPU or a part of one, by namespace and name."""
    return sorted(
        (_pod(node, pod) for node in gpu_nodes for pod in _holders(node)),
        key=lambda usage: (usage.namespace, usage.name),
    )


def _gpu(node: GPUNode, device: GPUDevice) -> GPU:
    parts = _parts(device)
    holders = {
        Holder(held.namespace, held.pod, held.container)
        for held in node.status.allocations
        if not parts.isdisjoint(held.devices)
    }
    return GPU(
        node=node.metadata.name,
        index=device.index,
        uuid=device.uuid,
        product=device.product,
        memory_mib=device.memory_mib,
        util_percent=device.util_percent,
        pods=tuple(sorted(holders)),
        healthy=device.healthy,
        memory_used_mib=device.memory_used_mib,
        temperature_c=device.temperature_c,
        power_w=device.power_w,
        mig=_layout(device) if device.mig_enabled else "",
        reason=device.reason,
        fraction_milli=device.fraction_milli,
    )


def _parts(device: GPUDevice) -> set[str]:
    return {device.uuid, *(instance.uuid for instance in device.instances)}


def _layout(device: GPUDevice) -> str:
    return summary(instance.profile for instance in device.instances) or "none"


def _holders(node: GPUNode) -> set[tuple[str, str]]:
    return {(held.namespace, held.pod) for held in node.status.allocations}


def _pod(node: GPUNode, pod: tuple[str, str]) -> PodUsage:
    resources: dict[str, int] = {}
    devices: list[str] = []
    milli = 0
    for held in node.status.allocations:
        if (held.namespace, held.pod) == pod:
            resources[held.resource] = resources.get(held.resource, 0) + len(held.device_ids)
            devices += held.devices
            milli = held.milli or milli
    used = [device for device in node.status.devices if not _parts(device).isdisjoint(devices)]
    return PodUsage(
        namespace=pod[0],
        name=pod[1],
        node=node.metadata.name,
        resources=resources,
        devices=tuple(devices),
        util_percent=_mean([device.util_percent for device in used]),
        memory_used_mib=sum(device.memory_used_mib for device in used),
        fraction_milli=milli,
    )


def _mean(values: list[int]) -> int:
    return round(sum(values) / len(values)) if values else 0
