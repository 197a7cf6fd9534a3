"""Resources: what a node offers to the kubelet, device by device.

The MIG strategy says what a GPU in MIG mode is. `none`: a whole GPU, MIG is not looked at. `single`: its
instances are `nvidia.com/gpu`, which holds only where all GPUs have MIG on and all instances are of one
profile (else nothing is offered under that name). `mixed`: its instances are `nvidia.com/mig-<profile>`.
A MIG device is a compute instance that fills its GPU instance; a smaller one has no resource.

Sharing offers a device several times (`<id>::0`, `<id>::1`, ...), under another name where the config says
so. Health is a property of the GPU: a sick one takes all its instances and replicas with it. A GPU that the
driver has lost keeps the devices that it had, all of them unhealthy, so that capacity tells what is missing.
Source: k8s-device-plugin internal/rm, internal/lm; kubelet device plugin API v1beta1.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import msgspec

from gpufleet.devices.inventory import GPU, ComputeInstance, GPUInstance, Inventory
from gpufleet.devices.plugin_config import GPU_RESOURCE, PluginConfig, Sharing
from gpufleet.fleet.device_choice import SharePolicy
from gpufleet.fleet.devices import REPLICA_SEPARATOR
from gpufleet.fleet.mig import mig_resource
from gpufleet.kube.gpunode import GPUResource

REASONS = {
    "MigConfigInvalid": "the strategy `single` needs MIG on every GPU and instances of one profile only",
    "MigInstanceNotWhole": "no compute instance fills this GPU instance, so that no resource names it",
}
"""Why a device is not offered."""


class Device(msgspec.Struct, frozen=True):
    """A device as the kubelet names it. `gpu` and `instance` are UUIDs (`instance` is empty for a whole GPU),
    `index` is `0` or `0:3`: the GPU and its MIG device, counted by the ids of its instances. One that is
    `carrying` fractions of its GPU is well and given to nobody.
    """

    id: str
    gpu: str
    instance: str = ""
    index: str = ""
    numa_node: int = -1
    healthy: bool = True
    carrying: bool = False

    @property
    def usable(self) -> bool:
        """Whether a new pod may get it."""
        return self.healthy and not self.carrying

    @property
    def uuid(self) -> str:
        """What a container sees of it, whatever the number of its replicas."""
        return self.instance or self.gpu

    @property
    def replica(self) -> bool:
        """Whether others may hold the same GPU or instance."""
        return self.id != self.uuid


class Resource(msgspec.Struct, frozen=True):
    """An extended resource and its devices, in the order of GPUs and memory slices."""

    name: str
    devices: tuple[Device, ...] = ()


class Withheld(msgspec.Struct, frozen=True):
    """Something that is not offered; `gpu` is empty where it is about the node. Reasons are in `REASONS`."""

    reason: str
    message: str
    gpu: str = ""


class Offer(msgspec.Struct, frozen=True):
    """All resources of a node, by name, and what is not offered."""

    resources: tuple[Resource, ...] = ()
    withheld: tuple[Withheld, ...] = ()

    def resource(self, name: str) -> Resource:
        """The resource of a name; without devices when the node has none."""
        return next((one for one in self.resources if one.name == name), Resource(name))


def offer(
    inventory: Inventory, config: PluginConfig, sick: Collection[str] = (), before: Offer | None = None
) -> Offer:
    """What a node offers. `sick` are UUIDs of GPUs that no new pod may use, for whatever reason; `before` is
    the last offer, which knows the devices of a GPU that is lost by now.

    Raises GpufleetError (SharedDeviceNotFound) when the config shares a device that the node lacks.
    """
    single = _single(inventory) if config.mig_strategy == "single" else None
    lost = {gpu.uuid for gpu in inventory.gpus if gpu.lost}
    remembered = _remembered(before or Offer(), lost)
    known = {device.gpu for _, device in remembered}
    plain: dict[str, list[Device]] = {}
    for gpu in inventory.gpus:
        if gpu.uuid not in known and single is None:
            for name, device in _devices(gpu, config.mig_strategy, healthy=gpu.uuid not in sick):
                plain.setdefault(name, []).append(device)
    found: dict[str, list[Device]] = {}
    for original, devices in plain.items():
        for name, device in _replicas(original, devices, config.sharing):
            found.setdefault(name, []).append(device)
    if single is None:
        for name, device in remembered:
            found.setdefault(name, []).append(device)
    place = {gpu.uuid: position for position, gpu in enumerate(inventory.gpus)}
    return Offer(
        tuple(
            Resource(name, tuple(sorted(devices, key=lambda device: place[device.gpu])))
            for name, devices in sorted(found.items())
        ),
        ((single,) if single else ()) + _not_whole(inventory, config),
    )


def _single(inventory: Inventory) -> Withheld | None:
    """Why the strategy `single` can offer nothing; None when it can."""
    answering = [gpu for gpu in inventory.gpus if not gpu.lost]
    cut = [gpu for gpu in answering if gpu.mig == "on"]
    if not cut:
        return None
    if len(cut) < len(answering):
        return Withheld("MigConfigInvalid", f"MIG is on for {len(cut)} of {len(answering)} GPUs")
    empty = [str(gpu.index) for gpu in cut if not any(instance.whole for instance in gpu.instances)]
    if empty:
        return Withheld("MigConfigInvalid", f"no MIG device on GPU {', '.join(empty)}, where MIG is on")
    profiles = sorted({one.profile for gpu in cut for one in gpu.instances if one.whole})
    if len(profiles) > 1:
        return Withheld("MigConfigInvalid", f"MIG devices of several profiles: {', '.join(profiles)}")
    return None


def _not_whole(inventory: Inventory, config: PluginConfig) -> tuple[Withheld, ...]:
    if config.mig_strategy == "none":
        return ()
    return tuple(
        Withheld("MigInstanceNotWhole", f"GPU instance {one.id} ({one.profile}) of GPU {gpu.index}", gpu.uuid)
        for gpu in inventory.gpus
        for one in gpu.instances
        if one.whole is None
    )


def _devices(gpu: GPU, strategy: str, *, healthy: bool) -> Iterator[tuple[str, Device]]:
    """The devices of a GPU by resource, unshared."""
    healthy = healthy and not gpu.lost
    if strategy == "none" or gpu.mig != "on":
        yield GPU_RESOURCE, Device(gpu.uuid, gpu.uuid, "", str(gpu.index), gpu.numa_node, healthy)
        return
    numbers = {one.uuid: number for number, (_, one) in enumerate(_compute_instances(gpu))}
    for instance in sorted(gpu.instances, key=lambda one: (one.start, one.id)):
        if (whole := instance.whole) is not None:
            name = GPU_RESOURCE if strategy == "single" else mig_resource(instance.profile)
            index = f"{gpu.index}:{numbers[whole.uuid]}"
            yield name, Device(whole.uuid, gpu.uuid, whole.uuid, index, gpu.numa_node, healthy)


def _compute_instances(gpu: GPU) -> list[tuple[GPUInstance, ComputeInstance]]:
    """The MIG devices of a GPU as the driver counts them."""
    pairs = [(instance, compute) for instance in gpu.instances for compute in instance.compute]
    return sorted(pairs, key=lambda pair: (pair[0].id, pair[1].id))


def _replicas(name: str, devices: list[Device], sharing: Sharing) -> Iterator[tuple[str, Device]]:
    """The devices of a resource as they are offered, each with the name of the resource that it is in."""
    shared = sharing.of(name) if sharing.strategy != "none" else None
    chosen = shared.chosen([(device.index, device.id) for device in devices]) if shared else frozenset()
    for device in devices:
        if shared is None or device.id not in chosen:
            yield name, device
            continue
        for number in range(shared.replicas):
            yield (
                shared.resource,
                msgspec.structs.replace(device, id=f"{device.id}{REPLICA_SEPARATOR}{number}"),
            )


def _remembered(before: Offer, lost: Collection[str]) -> list[tuple[str, Device]]:
    return [
        (resource.name, msgspec.structs.replace(device, healthy=False, carrying=False))
        for resource in before.resources
        for device in resource.devices
        if device.gpu in lost
    ]


def gpu_resources(found: Offer, policy: SharePolicy = "distributed") -> tuple[GPUResource, ...]:
    """The resources of an offer as a `GPUNode` counts them; `policy` says how shares are handed out."""
    return tuple(
        GPUResource(
            name=one.name,
            capacity=len(one.devices),
            healthy=sum(device.healthy for device in one.devices),
            carrying=sum(device.healthy and device.carrying for device in one.devices),
            policy=policy,
        )
        for one in found.resources
    )
