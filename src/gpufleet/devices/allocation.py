"""Allocation: what a container gets so that it sees exactly the devices that it was given.

The ways are those of the config's `deviceListStrategy`, any number of them together: a variable with the
devices, mounts of /dev/null that name them, a CDI annotation, or CDI devices by name; `passDeviceSpecs` adds
the device nodes themselves. Devices are named by UUID or by index. A request that holds anything but healthy
devices that are offered now is refused: whoever asks for something else is out of date.
Source: k8s-device-plugin internal/plugin; /proc/driver/nvidia-caps for the nodes of MIG devices.
"""

from __future__ import annotations

import uuid as uuids
from collections.abc import Mapping, Sequence

import msgspec

from gpufleet.devices.inventory import GPU, Inventory
from gpufleet.devices.plugin_config import PluginConfig
from gpufleet.devices.resources import Device, Resource
from gpufleet.fleet.errors import GpufleetError

REASONS = {
    "DeviceNotOffered": "the resource has no such device now",
    "DeviceUnhealthy": "the GPU of the device is sick, or in quarantine",
    "DeviceCarriesFractions": "pods share the GPU of the device, and nobody gets it whole",
    "NoDevicesRequested": "the request is empty, or names a device twice",
    "TooManyReplicas": "a container may ask for one replica of a shared device",
    "MigCapabilityUnknown": "the driver does not list the access node of a MIG instance",
}
"""Why a request for devices is refused."""

VISIBLE_DEVICES = "NVIDIA_VISIBLE_DEVICES"
MOUNTED_DEVICES = "/var/run/nvidia-container-devices"
CDI_KIND = "nvidia.com/gpu"
CONTROL_NODES = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset")
"""Device nodes that every GPU container needs, where the node has them."""

_SPACE = uuids.UUID("0c2c6e31-9c0f-5c64-9b55-6770752e6361")


class Mount(msgspec.Struct, frozen=True):
    """A file or folder of the node in a container."""

    host_path: str
    container_path: str
    read_only: bool = False


class DeviceNode(msgspec.Struct, frozen=True):
    """A device node of the node in a container; `permissions` of r, w and m."""

    host_path: str
    container_path: str
    permissions: str = "rw"


class Grant(msgspec.Struct, frozen=True):
    """What a container gets: variables, mounts, device nodes, annotations and qualified CDI names."""

    envs: Mapping[str, str] = {}
    mounts: tuple[Mount, ...] = ()
    devices: tuple[DeviceNode, ...] = ()
    annotations: Mapping[str, str] = {}
    cdi_devices: tuple[str, ...] = ()

    def __or__(self, other: Grant) -> Grant:
        """Both; where both name a variable or an annotation, the other's."""
        return Grant(
            {**self.envs, **other.envs},
            self.mounts + other.mounts,
            self.devices + other.devices,
            {**self.annotations, **other.annotations},
            self.cdi_devices + other.cdi_devices,
        )


class DriverNodes(msgspec.Struct, frozen=True):
    """Device nodes of the driver: the control nodes that exist, and the minor numbers of MIG access nodes by
    their keys (`gpu0/gi1/access`, `gpu0/gi1/ci0/access`).
    """

    control: tuple[str, ...] = ()
    mig_minors: Mapping[str, int] = {}


def parse_mig_minors(text: str) -> dict[str, int]:
    """The content of /proc/driver/nvidia-caps/mig-minors: a key and a number per line; others are skipped."""
    rows = (line.split() for line in text.splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdecimal()}


def requested(resource: Resource, ids: Sequence[str], config: PluginConfig) -> tuple[Device, ...]:
    """The devices of a request, in the order of the resource. Raises GpufleetError (see `REASONS`)."""
    wanted = frozenset(ids)
    if not wanted or len(wanted) < len(ids):
        raise _refused(
            "NoDevicesRequested", f"{resource.name}: {len(ids)} ids, {len(wanted)} of them different"
        )
    devices = tuple(one for one in resource.devices if one.id in wanted)
    if len(devices) < len(wanted):
        unknown = sorted(wanted - {one.id for one in devices})
        raise _refused("DeviceNotOffered", f"{resource.name} has no device {', '.join(unknown)}")
    sick = [one.id for one in devices if not one.healthy]
    if sick:
        raise _refused("DeviceUnhealthy", f"{resource.name}: {', '.join(sick)} must not be used now")
    carrying = [one.id for one in devices if one.carrying]
    if carrying:
        raise _refused("DeviceCarriesFractions", f"{resource.name}: {', '.join(carrying)} carries fractions")
    shared = any(one.replica for one in devices)
    if config.sharing.fail_requests_greater_than_one and shared and len(devices) > 1:
        raise _refused(
            "TooManyReplicas",
            f"request for {resource.name}: {len(devices)} is too large, 1 is the most of a shared resource",
            "more replicas give no more of a GPU; unset failRequestsGreaterThanOne to allow them",
        )
    return devices


def name_of(device: Device, config: PluginConfig) -> str:
    """What a device is called in a container's variables and in CDI."""
    return device.index if config.device_id_strategy == "index" else device.uuid


def grant(devices: Sequence[Device], inventory: Inventory, config: PluginConfig, nodes: DriverNodes) -> Grant:
    """What a container gets for these devices. Raises GpufleetError (MigCapabilityUnknown)."""
    names = tuple(dict.fromkeys(name_of(one, config) for one in devices))
    found = Grant(_flags(config))
    strategies = config.device_list_strategies
    if "cdi-annotations" in strategies or "cdi-cri" in strategies:
        found |= _cdi(devices, names, config)
    if "envvar" in strategies:
        found |= Grant({VISIBLE_DEVICES: ",".join(names), **_imex(config)})
    if "volume-mounts" in strategies:
        mounts = tuple(Mount("/dev/null", f"{MOUNTED_DEVICES}/{name}") for name in names)
        found |= Grant({VISIBLE_DEVICES: MOUNTED_DEVICES}, mounts)
    if config.pass_device_specs:
        paths = dict.fromkeys(path for one in devices for path in _paths(one, inventory, nodes))
        root = config.dev_root.rstrip("/")
        found |= Grant(devices=tuple(DeviceNode(root + path, path) for path in (*nodes.control, *paths)))
    return found


def _flags(config: PluginConfig) -> dict[str, str]:
    rows = (("GDRCOPY", config.gdrcopy), ("GDS", config.gds), ("MOFED", config.mofed))
    return {f"NVIDIA_{name}": "enabled" for name, on in rows if on}


def _imex(config: PluginConfig) -> dict[str, str]:
    channels = ",".join(str(channel) for channel in config.imex_channels)
    return {"NVIDIA_IMEX_CHANNELS": channels} if channels else {}


def _cdi(devices: Sequence[Device], names: Sequence[str], config: PluginConfig) -> Grant:
    """CDI names; the key of the annotation follows from the ids, so that no two requests share one."""
    qualified = tuple(f"{CDI_KIND}={name}" for name in names)
    cri = qualified if "cdi-cri" in config.device_list_strategies else ()
    if "cdi-annotations" not in config.device_list_strategies:
        return Grant(cdi_devices=cri)
    number = uuids.uuid5(_SPACE, ",".join(one.id for one in devices))
    key = f"{config.cdi_annotation_prefix}nvidia-device-plugin_{number}"
    return Grant(annotations={key: ",".join(qualified)}, cdi_devices=cri)


def _paths(device: Device, inventory: Inventory, nodes: DriverNodes) -> list[str]:
    """The nodes of one device: its GPU, and for a MIG device the access to both of its instances."""
    gpu = inventory.gpu(device.gpu)
    if gpu is None:
        raise _refused("DeviceNotOffered", f"the node has no GPU {device.gpu}")
    paths = [f"/dev/nvidia{gpu.minor}"]
    if device.instance:
        for key in access_keys(gpu, device.instance):
            if key not in nodes.mig_minors:
                raise _refused("MigCapabilityUnknown", f"the driver lists no node for {key}")
            paths.append(f"/dev/nvidia-caps/nvidia-cap{nodes.mig_minors[key]}")
    return paths


def access_keys(gpu: GPU, uuid: str) -> tuple[str, str]:
    """The keys of the access nodes of a MIG device. Raises GpufleetError (DeviceNotOffered)."""
    for instance in gpu.instances:
        for compute in instance.compute:
            if compute.uuid == uuid:
                key = f"gpu{gpu.minor}/gi{instance.id}"
                return f"{key}/access", f"{key}/ci{compute.id}/access"
    raise _refused("DeviceNotOffered", f"GPU {gpu.index} has no MIG device {uuid}")


def _refused(reason: str, message: str, hint: str = "") -> GpufleetError:
    return GpufleetError(reason=reason, message=message, hint=hint)
