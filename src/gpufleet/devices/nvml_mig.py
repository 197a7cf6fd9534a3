"""MIG through NVML: what a GPU can be cut into, what it is cut into, and how to cut it.

NVML lists MIG devices only where a compute instance exists, so GPU instances are listed by themselves, one
call per profile, and the compute instances in each; the MIG devices, which have the uuids, are joined on the
ids of both. Something that goes away between two of these calls is left out.
Source: NVML API reference (Multi Instance GPU Management); the rule of profile names is go-nvlib's, which
GPU Feature Discovery and the device plugin use.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping

import msgspec
import pynvml

from gpufleet.devices.backend import BackendError
from gpufleet.devices.inventory import ComputeInstance, Engines, GPUInstance
from gpufleet.devices.nvml_errors import existing, trying
from gpufleet.devices.nvml_handles import Handle
from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.mig import GEOMETRIES, Geometry, Profile
from gpufleet.fleet.products import find_product

_SUFFIXES = {
    # profile, as NVML's argument                     what the name ends with
    pynvml.NVML_GPU_INSTANCE_PROFILE_1_SLICE_REV1:   "+me",
    pynvml.NVML_GPU_INSTANCE_PROFILE_2_SLICE_REV1:   "+me",
    pynvml.NVML_GPU_INSTANCE_PROFILE_1_SLICE_GFX:    "+gfx",
    pynvml.NVML_GPU_INSTANCE_PROFILE_2_SLICE_GFX:    "+gfx",
    pynvml.NVML_GPU_INSTANCE_PROFILE_3_SLICE_GFX:    "+gfx",
    pynvml.NVML_GPU_INSTANCE_PROFILE_4_SLICE_GFX:    "+gfx",
    pynvml.NVML_GPU_INSTANCE_PROFILE_1_SLICE_NO_ME:  "-me",
    pynvml.NVML_GPU_INSTANCE_PROFILE_2_SLICE_NO_ME:  "-me",
    pynvml.NVML_GPU_INSTANCE_PROFILE_1_SLICE_ALL_ME: "+me.all",
    pynvml.NVML_GPU_INSTANCE_PROFILE_2_SLICE_ALL_ME: "+me.all",
}  # fmt: skip

_SHARED_ENGINES = pynvml.NVML_COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED


class Cuts(msgspec.Struct, frozen=True):
    """What one GPU can be cut into, and the id that NVML gives each profile."""

    geometry: Geometry
    ids: Mapping[str, int]


def profile_name(slices: int, memory_mib: int, total_bytes: int, suffix: str = "") -> str:
    """The name of a GPU instance profile: compute slices and memory of the instance, memory of the GPU.

    The gigabytes are the instance's eighths of the GPU's memory, both rounded up, then rounded half up.
    """
    gibibytes = -(-total_bytes // 2**30)
    eighths = -(-8 * memory_mib * 2**20 // total_bytes)
    return f"{slices}g.{(2 * eighths * gibibytes + 8) // 16}gb{suffix}"


def geometry_name(product: str) -> str:
    """What the geometry of a product is called: as in our table, or as a product that it does not know."""
    try:
        return find_product(product).mig or product
    except GpufleetError:
        return product


def known_geometry(product: str) -> Geometry | None:
    """The geometry of our table, for a driver that does not say."""
    return GEOMETRIES.get(geometry_name(product))


def read_cuts(handle: Handle, product: str, total_bytes: int) -> Cuts | None:
    """What a GPU can be cut into, None when NVML does not say; raises NVMLError."""
    if not total_bytes:
        return None
    profiles: dict[str, Profile] = {}
    ids: dict[str, int] = {}
    for kind in range(pynvml.NVML_GPU_INSTANCE_PROFILE_COUNT):
        info = existing(pynvml.nvmlDeviceGetGpuInstanceProfileInfo, handle, kind)
        if info is None:
            continue
        places = _placements(handle, info.id)
        if not places:
            continue
        name = profile_name(info.sliceCount, info.memorySizeMB, total_bytes, _SUFFIXES.get(kind, ""))
        starts = tuple(sorted(place.start for place in places))
        profiles[name] = Profile(name, info.sliceCount, places[0].size, starts, info.instanceCount)
        ids[name] = info.id
    if not profiles:
        return None
    slots = max(profile.size for profile in profiles.values())
    return Cuts(Geometry(geometry_name(product), slots, profiles), ids)


def _placements(handle: Handle, profile: int) -> list[pynvml.c_nvmlGpuInstancePlacement_t]:
    possible = pynvml.nvmlDeviceGetGpuInstancePossiblePlacements
    count = ctypes.c_uint(0)
    if existing(possible, handle, profile, None, ctypes.byref(count)) is None or not count.value:
        return []
    places = (pynvml.c_nvmlGpuInstancePlacement_t * count.value)()
    if existing(possible, handle, profile, places, ctypes.byref(count)) is None:
        return []
    return list(places[: count.value])


def read_instances(handle: Handle, cuts: Cuts) -> tuple[GPUInstance, ...]:
    """The GPU instances of a GPU by place; raises NVMLError.

    The uuid of a compute instance is empty while NVML does not list it as a MIG device.
    """
    devices = dict(mig_devices(handle))
    found = []
    for profile, instance, info in _gpu_instances(handle, cuts):
        compute = {one.id: one for one in _compute_instances(instance, info.id, devices)}
        start, size = info.placement.start, info.placement.size
        order = tuple(compute[number] for number in sorted(compute))
        found.append(GPUInstance(info.id, profile.name, start, size, profile.compute, order))
    return tuple(sorted(found, key=lambda one: (one.start, one.id)))


def instance_ids(handle: Handle, cuts: Cuts) -> tuple[int, ...]:
    """The ids of a GPU's instances by place, with or without compute instances; raises NVMLError."""
    places = [(info.placement.start, info.id) for _, _, info in _gpu_instances(handle, cuts)]
    return tuple(ident for _, ident in sorted(places))


def _gpu_instances(
    handle: Handle, cuts: Cuts
) -> Iterator[tuple[Profile, Handle, pynvml.c_nvmlGpuInstanceInfo_t]]:
    for name, ident in cuts.ids.items():
        profile = cuts.geometry.profiles[name]
        kind = pynvml.c_nvmlGpuInstance_t * profile.limit
        for instance in _members(pynvml.nvmlDeviceGetGpuInstances, handle, ident, kind):
            info = existing(pynvml.nvmlGpuInstanceGetInfo, instance)
            if info:
                yield profile, instance, info


def mig_devices(handle: Handle) -> Iterator[tuple[tuple[int, int], Handle]]:
    """The MIG devices of a GPU by the ids of GPU and compute instance; raises NVMLError."""
    for index in range(existing(pynvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
        device = existing(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, index)
        if device is None:
            continue
        instance = existing(pynvml.nvmlDeviceGetGpuInstanceId, device)
        compute = existing(pynvml.nvmlDeviceGetComputeInstanceId, device)
        if instance is not None and compute is not None:
            yield (instance, compute), device


def _compute_instances(
    instance: Handle, ident: int, devices: Mapping[tuple[int, int], Handle]
) -> Iterator[ComputeInstance]:
    for profile in _compute_profiles(instance):
        kind = pynvml.c_nvmlComputeInstance_t * profile.instanceCount
        for handle in _members(pynvml.nvmlGpuInstanceGetComputeInstances, instance, profile.id, kind):
            info = existing(pynvml.nvmlComputeInstanceGetInfo, handle)
            if info:
                yield _compute_instance(info.id, profile, devices.get((ident, info.id)))


def _compute_profiles(instance: Handle) -> Iterator[pynvml.c_nvmlComputeInstanceProfileInfo_v2_t]:
    for kind in range(pynvml.NVML_COMPUTE_INSTANCE_PROFILE_COUNT):
        info = existing(pynvml.nvmlGpuInstanceGetComputeInstanceProfileInfo, instance, kind, _SHARED_ENGINES)
        if info:
            yield info


def _members(
    call: Callable[..., object], owner: Handle, profile: int, kind: type[ctypes.Array[Handle]]
) -> list[Handle]:
    """The instances of one profile in their owner, of which there are at most the length of `kind`."""
    room = kind()
    count = ctypes.c_uint(len(room))
    if existing(call, owner, profile, room, ctypes.byref(count)) is None:
        return []
    return list(room[: count.value])


def _compute_instance(
    ident: int, profile: pynvml.c_nvmlComputeInstanceProfileInfo_v2_t, device: Handle
) -> ComputeInstance:
    uuid = existing(pynvml.nvmlDeviceGetUUID, device) if device else None
    has = existing(pynvml.nvmlDeviceGetAttributes, device) if uuid else None
    if has is None:
        return ComputeInstance(ident, "", profile.sliceCount, profile.multiprocessorCount)
    engines = Engines(
        copy=has.sharedCopyEngineCount,
        decoder=has.sharedDecoderCount,
        encoder=has.sharedEncoderCount,
        jpeg=has.sharedJpegCount,
        ofa=has.sharedOfaCount,
    )
    slices, memory_mib = has.computeInstanceSliceCount, has.memorySizeMB
    return ComputeInstance(ident, str(uuid), slices, has.multiprocessorCount, memory_mib, engines)


def create_gpu_instance(handle: Handle, gpu: str, cuts: Cuts, profile: str, start: int) -> int:
    """Make a GPU instance at a memory slice; its id. Raises BackendError."""
    shape = cuts.geometry.profiles.get(profile)
    if shape is None or start not in shape.starts:
        raise _impossible(gpu, cuts.geometry, profile, start)
    with trying(f"make a GPU instance {profile} at slice {start} of {gpu}"):
        place = pynvml.c_nvmlGpuInstancePlacement_t(start, shape.size)
        make = pynvml.nvmlDeviceCreateGpuInstanceWithPlacement
        instance = make(handle, cuts.ids[profile], ctypes.byref(place))
        return int(pynvml.nvmlGpuInstanceGetInfo(instance).id)


def _impossible(gpu: str, geometry: Geometry, profile: str, start: int) -> BackendError:
    shape = geometry.profiles.get(profile)
    offers = f"profiles: {', '.join(geometry.profiles)}"
    if shape:
        offers = f"first slices of {profile}: {', '.join(map(str, shape.starts))}"
    what = f"{gpu} cannot have an instance {profile} at slice {start}"
    return BackendError(reason="NotSupported", message=what, hint=offers)


def create_compute_instance(handle: Handle, gpu: str, instance: int) -> int:
    """Make the compute instance that fills a GPU instance; its id. Raises BackendError."""
    with trying(f"make a compute instance in GPU instance {instance} of {gpu}"):
        owner = pynvml.nvmlDeviceGetGpuInstanceById(handle, instance)
        widest = max(_compute_profiles(owner), key=lambda profile: profile.sliceCount, default=None)
        if widest is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        made = pynvml.nvmlGpuInstanceCreateComputeInstance(owner, widest.id)
        return int(pynvml.nvmlComputeInstanceGetInfo(made).id)


def destroy_compute_instance(handle: Handle, gpu: str, instance: int, compute: int) -> None:
    """Remove a compute instance. Raises BackendError."""
    with trying(f"remove compute instance {compute} of GPU instance {instance} of {gpu}"):
        owner = pynvml.nvmlDeviceGetGpuInstanceById(handle, instance)
        pynvml.nvmlComputeInstanceDestroy(pynvml.nvmlGpuInstanceGetComputeInstanceById(owner, compute))


def destroy_gpu_instance(handle: Handle, gpu: str, instance: int) -> None:
    """Remove a GPU instance. Raises BackendError."""
    with trying(f"remove GPU instance {instance} of {gpu}"):
        pynvml.nvmlGpuInstanceDestroy(pynvml.nvmlDeviceGetGpuInstanceById(handle, instance))


def set_mode(handle: Handle, gpu: str, on: bool) -> bool:
    """Switch MIG mode; whether it is in force at once. Raises BackendError.

    A switch that only waits for whoever uses the GPU is taken back, so that nothing happens later unasked.
    """
    what = f"switch MIG mode {'on' if on else 'off'} on {gpu}"
    wanted = pynvml.NVML_DEVICE_MIG_ENABLE if on else pynvml.NVML_DEVICE_MIG_DISABLE
    with trying(what):
        _, before = pynvml.nvmlDeviceGetMigMode(handle)
        activation = pynvml.nvmlDeviceSetMigMode(handle, wanted)
        if activation not in (pynvml.NVML_SUCCESS, pynvml.NVML_ERROR_RESET_REQUIRED):
            pynvml.nvmlDeviceSetMigMode(handle, before)
            raise pynvml.NVMLError(activation)
    return bool(activation == pynvml.NVML_SUCCESS)
