"""Whose share of a GPU is whose: the GPUs and GPU instances of a node with the containers that hold them.

A container that holds a GPU alone has all of it. Of one that is shared, by time-slicing or MPS, an amount is
divided by the replicas that each container holds, because NVML says no more; memory goes to the containers
whose processes have it, and only what belongs to no such process (the driver's own, that of an MPS server, of
processes that cannot be mapped) is divided by replicas. So the parts always sum to the value of the GPU. A
replica that nobody holds takes nothing. Who has fractions of a GPU has as much of it as of their sum. Under
MIG every GPU instance is an entity of its own, and compute instances count by their slices where several
share one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from gpufleet.devices.inventory import GPU, ComputeInstance, GPUInstance, Inventory
from gpufleet.devices.ledger import holders
from gpufleet.fleet.demands import MILLI
from gpufleet.fleet.devices import device_of
from gpufleet.kube.gpunode import GPUAllocation

Key = tuple[str, int | None]
"""A GPU's uuid, and the id of a GPU instance or None for the whole GPU."""

MemoryUse = Mapping[Key, Mapping[str, int]]
"""MiB that the processes of a pod (by its uid) have on a GPU or GPU instance, where that is known."""


class Holder(msgspec.Struct, frozen=True):
    """A container that holds a GPU or GPU instance; `weight` counts its replicas, times compute slices, or
    milli-GPU on a GPU that carries fractions.
    """

    namespace: str
    pod: str
    pod_uid: str
    container: str
    weight: int


class Entity(msgspec.Struct, frozen=True):
    """A GPU (`instance` None) or GPU instance, and who holds it."""

    gpu: GPU
    instance: GPUInstance | None = None
    holders: tuple[Holder, ...] = ()

    @property
    def key(self) -> Key:
        """What names it in a sample."""
        return self.gpu.uuid, None if self.instance is None else self.instance.id

    def shares(self) -> tuple[float, ...]:
        """The part (0..1) of the GPU that each holder has."""
        share = 1.0 if self.instance is None else self.instance.slices / _slices(self.gpu)
        return tuple(share * part for part in parts(self.holders))


def entities(inventory: Inventory, allocated: Iterable[GPUAllocation]) -> tuple[Entity, ...]:
    """All GPUs of a node, each followed by its GPU instances."""
    held = holders(allocated)
    found = []
    for gpu in inventory.gpus:
        found.append(Entity(gpu, None, _holders(held, ((gpu.uuid, 1),))))
        for instance in sorted(gpu.instances, key=lambda one: one.id):
            devices = tuple((one.uuid, one.slices) for one in instance.compute)
            found.append(Entity(gpu, instance, _holders(held, devices)))
    return tuple(found)


def unmapped(inventory: Inventory, allocated: Iterable[GPUAllocation]) -> tuple[str, ...]:
    """UUIDs of devices that containers hold and the node does not have."""
    known = {gpu.uuid for gpu in inventory.gpus}
    known |= {compute.uuid for compute in _compute_instances(inventory)}
    return tuple(sorted({device for one in allocated for device in one.devices} - known))


def parts(holding: tuple[Holder, ...]) -> tuple[float, ...]:
    """The part (0..1) of an amount that each holder has; they sum to 1."""
    total = sum(one.weight for one in holding)
    return tuple(one.weight / total for one in holding)


def memory_parts(holding: tuple[Holder, ...], used: float, known: Mapping[str, int]) -> tuple[float, ...]:
    """How much of `used` each holder has, where the processes of some pods are `known`; the sum is `used`."""
    pods: dict[str, int] = {}
    for one in holding:
        pods[one.pod_uid] = pods.get(one.pod_uid, 0) + one.weight
    own = [known.get(one.pod_uid, 0) * one.weight / pods[one.pod_uid] for one in holding]
    rest = used - sum(own)
    if rest < 0:
        return tuple(used * one / sum(own) for one in own)
    return tuple(one + rest * part for one, part in zip(own, parts(holding), strict=True))


def _holders(
    held: Mapping[str, tuple[GPUAllocation, ...]], devices: Iterable[tuple[str, int]]
) -> tuple[Holder, ...]:
    """Who holds any of the devices (uuid and slices), each container once."""
    weights: dict[tuple[str, str, str, str], int] = {}
    for uuid, slices in devices:
        there = held.get(uuid, ())
        unit = MILLI if any(one.milli for one in there) else 1
        for one in there:
            name = (one.namespace, one.pod, one.pod_uid, one.container)
            replicas = sum(device_of(device) == uuid for device in one.device_ids)
            weights[name] = weights.get(name, 0) + slices * (one.milli or unit * max(1, replicas))
    return tuple(Holder(*name, weight) for name, weight in sorted(weights.items()))


def _slices(gpu: GPU) -> int:
    """The compute slices that a GPU has."""
    return gpu.geometry.compute if gpu.geometry else sum(one.slices for one in gpu.instances)


def _compute_instances(inventory: Inventory) -> Iterable[ComputeInstance]:
    return (compute for gpu in inventory.gpus for one in gpu.instances for compute in one.compute)
