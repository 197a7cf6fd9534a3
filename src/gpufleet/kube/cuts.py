"""GPUs that the scheduler may cut: from a `GPUNode` to values, and the wish for a layout back to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from gpufleet.fleet.cuts import MigGPU
from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.mig import GEOMETRIES, Placement
from gpufleet.fleet.products import find_product
from gpufleet.kube.client import Client
from gpufleet.kube.gpunode import GPUDevice, GPUNode, MigPlace, MigWish
from gpufleet.kube.kinds import GPU_NODES
from gpufleet.kube.objects import PartialObject

FIELD_MANAGER = "gpufleet-scheduling"
MIG_CONDITION = "MigApplied"
"""The condition of a GPUNode that is False while a GPU cannot be cut as it is asked to be."""


def cuttable_gpus(node: GPUNode) -> tuple[MigGPU, ...]:
    """The healthy GPUs of a node whose pool is cut as pods need it, by index; none of other nodes."""
    if not node.spec.desired.dynamic:
        return ()
    held = {uuid for one in node.status.allocations for uuid in one.devices}
    wishes = {wish.uuid: wish for wish in node.spec.desired.mig}
    stuck = _stuck(node)
    found = (_gpu(one, wishes.get(one.uuid), held, stuck) for one in node.status.devices if one.healthy)
    return tuple(gpu for gpu in found if gpu is not None)


def _stuck(node: GPUNode) -> bool:
    """Whether the agent has said that what is asked for now cannot be done now."""
    current = node.status.observed_generation >= node.metadata.generation
    return current and any(
        one.type == MIG_CONDITION and one.status == "False" for one in node.status.conditions
    )


def _gpu(device: GPUDevice, wish: MigWish | None, held: set[str], stuck: bool) -> MigGPU | None:
    geometry = geometry_name(device.product)
    if not geometry:
        return None
    places = {one.uuid: Placement(one.start, one.size, one.profile) for one in device.instances}
    gpu = MigGPU(
        uuid=device.uuid,
        index=device.index,
        geometry=geometry,
        enabled=device.mig_enabled,
        instances=tuple(sorted(places.values())),
        busy=tuple(sorted(place for uuid, place in places.items() if uuid in held)),
        held=device.uuid in held,
    )
    if wish is None:
        return gpu
    asked = gpu.cut(_placements(geometry, wish) if wish.enabled else None)
    if not stuck or not (asked.coming or asked.going):
        return asked
    return msgspec.structs.replace(gpu, blocked=True)


def geometry_name(product: str) -> str:
    """The name of a product's MIG geometry; empty for one that cannot be cut, or that nobody knows."""
    try:
        return find_product(product).mig
    except GpufleetError:
        return ""


def _placements(geometry: str, wish: MigWish) -> tuple[Placement, ...]:
    profiles = GEOMETRIES[geometry].profiles
    return tuple(
        sorted(
            Placement(one.start, profiles[one.profile].size, one.profile)
            for one in wish.instances
            if one.profile in profiles
        )
    )


def wish_for(uuid: str, layout: tuple[Placement, ...] | None) -> MigWish:
    """The wish for a layout of a GPU; None asks for MIG mode off."""
    instances = tuple(MigPlace(profile=one.profile, start=one.start) for one in layout or ())
    return MigWish(uuid=uuid, enabled=layout is not None, instances=instances)


def merged(wishes: Iterable[MigWish], wish: MigWish) -> tuple[MigWish, ...]:
    """The wishes of a node with another one for a GPU, ordered by uuid."""
    found: Mapping[str, MigWish] = {one.uuid: one for one in wishes} | {wish.uuid: wish}
    return tuple(found[uuid] for uuid in sorted(found))


async def write_wishes(client: Client, node: str, wishes: Iterable[MigWish]) -> None:
    """Ask the agent of a node for these layouts; they are the scheduler's field. Raises ApiError."""
    body = {"metadata": {"name": node}, "spec": {"desired": {"mig": [_body(wish) for wish in wishes]}}}
    await client.apply(GPU_NODES, body, field_manager=FIELD_MANAGER, type=PartialObject)


def _body(wish: MigWish) -> dict[str, object]:
    instances = [{"profile": one.profile, "start": one.start} for one in wish.instances]
    return {"uuid": wish.uuid, "enabled": wish.enabled, "instances": instances}
