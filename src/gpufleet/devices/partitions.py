"""MIG of one GPU as a state machine: what the driver allows, and with which error it refuses.

A GPU instance takes a run of memory slices and starts empty; a compute instance makes it usable. Each change
is a function from a GPU to a GPU. Ids follow from the place, as a driver's do: slices are halved again and
again and the halves numbered, so an id comes back when the same place is cut again.
Source: NVML API reference (Multi Instance GPU Management), MIG user guide.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from gpufleet.devices.backend import BackendError
from gpufleet.devices.boards import attributes
from gpufleet.devices.inventory import GPU, ComputeInstance, GPUInstance
from gpufleet.devices.loads import stable_uuid
from gpufleet.fleet.mig import SWITCHES_AT_ONCE, Geometry, Placement

COMPUTE_ID = 0
"""The id of the compute instance that fills a GPU instance."""


def obstacle(geometry: Geometry, placement: Placement, beside: Iterable[Placement]) -> str:
    """Why an instance cannot be made beside others; empty when it can."""
    profile = geometry.profiles.get(placement.profile)
    if profile is None:
        return f"{geometry.name} has no profile {placement.profile}"
    if placement.start not in profile.starts or placement.size != profile.size:
        return f"{placement.profile} cannot start at memory slice {placement.start}"
    others = sorted(beside)
    for other in others:
        if other.mask & placement.mask:
            return f"memory slice {max(other.start, placement.start)} belongs to {label(other)}"
    if sum(other.profile == profile.name for other in others) >= profile.limit:
        return f"the GPU has {profile.limit} of {profile.name} already"
    media = next((other for other in others if other.profile.endswith("+me")), None)
    if profile.media and media is not None:
        return f"{label(media)} has the media engines"
    return ""


def label(placement: Placement) -> str:
    """An instance for people: `1g.10gb@3`."""
    return f"{placement.profile}@{placement.start}"


def with_gpu_instance(gpu: GPU, profile: str, start: int) -> tuple[GPU, int]:
    """The GPU with one more GPU instance, and its id.

    Raises BackendError: NotSupported without MIG or for an unknown profile or place, InsufficientResources.
    """
    geometry = _cuttable(gpu)
    shape = geometry.profiles.get(profile)
    if shape is None or start not in shape.starts:
        raise _error("NotSupported", gpu, f"there is no instance {profile} at memory slice {start}")
    wanted = Placement(start, shape.size, profile)
    blocked = obstacle(geometry, wanted, (instance.placement for instance in gpu.instances))
    if blocked:
        raise _error("InsufficientResources", gpu, f"{label(wanted)} does not fit: {blocked}")
    width = 1 << (shape.size - 1).bit_length()
    made = GPUInstance(
        geometry.slots // width - 1 + start // width, profile, start, shape.size, shape.compute
    )
    instances = tuple(sorted((*gpu.instances, made), key=lambda one: one.start))
    return msgspec.structs.replace(gpu, instances=instances), made.id


def with_compute_instance(gpu: GPU, instance: int) -> tuple[GPU, int]:
    """The GPU with the compute instance that fills a GPU instance, and its id.

    Raises BackendError: NotFound, InsufficientResources when the GPU instance has one already.
    """
    geometry, found = _cuttable(gpu), _instance(gpu, instance)
    if found.compute:
        raise _error("InsufficientResources", gpu, f"GPU instance {instance} has a compute instance already")
    made = ComputeInstance(
        COMPUTE_ID,
        f"MIG-{stable_uuid(gpu.uuid, instance, COMPUTE_ID)}",
        found.slices,
        memory_mib=gpu.memory_mib * found.size // geometry.slots,
        **attributes(gpu.capability, geometry, found.profile),
    )
    return _replaced(gpu, msgspec.structs.replace(found, compute=(made,))), made.id


def without_compute_instance(gpu: GPU, instance: int, compute: int, used: Iterable[int]) -> GPU:
    """The GPU without a compute instance; `used` are the GPU instances in which processes run.

    Raises BackendError: NotFound, GpuInUse.
    """
    _cuttable(gpu)
    found = _instance(gpu, instance)
    kept = tuple(one for one in found.compute if one.id != compute)
    if len(kept) == len(found.compute):
        raise _error("NotFound", gpu, f"GPU instance {instance} has no compute instance {compute}")
    if instance in used:
        raise _error("GpuInUse", gpu, f"a process uses compute instance {compute} of GPU instance {instance}")
    return _replaced(gpu, msgspec.structs.replace(found, compute=kept))


def without_gpu_instance(gpu: GPU, instance: int) -> GPU:
    """The GPU without an empty GPU instance.

    Raises BackendError: NotFound, GpuInUse while it holds a compute instance.
    """
    _cuttable(gpu)
    found = _instance(gpu, instance)
    if found.compute:
        raise _error("GpuInUse", gpu, f"GPU instance {instance} holds a compute instance")
    return msgspec.structs.replace(gpu, instances=tuple(one for one in gpu.instances if one != found))


def with_mode(gpu: GPU, on: bool, *, in_use: bool) -> GPU:
    """The GPU after a switch of MIG mode: at once from Hopper on, pending until a reset before.

    Raises BackendError: NotSupported, GpuInUse while processes run or instances exist.
    """
    if gpu.geometry is None:
        raise _error("NotSupported", gpu, "it has no MIG")
    if on == (gpu.mig == "on"):
        return msgspec.structs.replace(gpu, mig_pending=False)
    if in_use or gpu.instances:
        raise _error("GpuInUse", gpu, "processes or instances use it")
    if gpu.capability < SWITCHES_AT_ONCE:
        return msgspec.structs.replace(gpu, mig_pending=True)
    return msgspec.structs.replace(gpu, mig="on" if on else "off")


def after_reset(gpu: GPU) -> GPU:
    """The GPU after a reset: no instances, and the mode that was pending."""
    mode = gpu.mig
    if gpu.mig_pending:
        mode = "off" if gpu.mig == "on" else "on"
    return msgspec.structs.replace(gpu, mig=mode, mig_pending=False, instances=(), exclusive=False)


def _cuttable(gpu: GPU) -> Geometry:
    if gpu.geometry is None or gpu.mig != "on":
        raise _error("NotSupported", gpu, "MIG mode is off" if gpu.geometry else "it has no MIG")
    return gpu.geometry


def _instance(gpu: GPU, instance: int) -> GPUInstance:
    for found in gpu.instances:
        if found.id == instance:
            return found
    raise _error("NotFound", gpu, f"there is no GPU instance {instance}")


def _replaced(gpu: GPU, instance: GPUInstance) -> GPU:
    instances = tuple(instance if one.id == instance.id else one for one in gpu.instances)
    return msgspec.structs.replace(gpu, instances=instances)


def _error(reason: str, gpu: GPU, what: str) -> BackendError:
    return BackendError(reason=reason, message=f"{gpu.uuid}: {what}")
