"""Nodes with GPUs as plain values, for tests of what the node makes of them."""

from __future__ import annotations

from collections.abc import Sequence

from gpufleet.devices.backend import Link
from gpufleet.devices.inventory import GPU, ComputeInstance, GPUInstance, Inventory
from gpufleet.fleet.mig import GEOMETRIES, cut

H100 = GEOMETRIES["h100-80gb"]
SEVEN = ("1g.10gb",) * 7


def uuid_of(index: int) -> str:
    """The UUID of a GPU, as long as a real one."""
    return f"GPU-00000000-0000-4000-8000-{index:012d}"


def instance_of(index: int, number: int) -> str:
    """The UUID of a MIG device: the GPU, and the number of its GPU instance (from 1)."""
    return f"MIG-00000000-0000-5000-8000-{index:06d}{number:06d}"


def gpu(index: int, profiles: Sequence[str] | None = None, numa_node: int = -1, lost: str = "") -> GPU:
    """An H100, cut into profiles unless they are None. Its minor number is not its index."""
    instances = tuple(
        GPUInstance(
            id=number,
            profile=place.profile,
            start=place.start,
            size=place.size,
            slices=H100.profile(place.profile).compute,
            compute=(ComputeInstance(0, instance_of(index, number), H100.profile(place.profile).compute),),
        )
        for number, place in enumerate(cut(H100, profiles or ()), 1)
    )
    if lost:
        return GPU(index, uuid_of(index), lost=lost)
    return GPU(
        index,
        uuid_of(index),
        "NVIDIA H100",
        index + 10,
        mig="off" if profiles is None else "on",
        numa_node=numa_node,
        instances=instances,
    )


def node(*cuts: Sequence[str] | None) -> Inventory:
    """A node whose GPUs are cut like this; the first half of them is on NUMA node 0, the others on 1."""
    half = (len(cuts) + 1) // 2
    return Inventory(gpus=tuple(gpu(i, cut, numa_node=int(i >= half)) for i, cut in enumerate(cuts)))


def whole(count: int) -> Inventory:
    """A node of uncut GPUs."""
    return node(*[None] * count)


def islands(count: int, size: int) -> dict[tuple[str, str], Link]:
    """GPUs in islands of NVLink; between islands the processors' bus."""
    return {
        (uuid_of(one), uuid_of(other)): Link("switches", 4)
        if one // size == other // size
        else Link("system")
        for one in range(count)
        for other in range(one + 1, count)
    }
