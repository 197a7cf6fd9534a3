"""The devices of a node, by resource: what there is, who holds it, and what is free.

A node says how many devices it offers under a resource's name, and which GPUs and MIG instances it has; which
of these a resource stands for follows from its name. `nvidia.com/gpu` are the GPUs without MIG mode, or all
instances where every GPU is cut and no instance has a name of its own (the MIG strategy `single`);
`nvidia.com/mig-<profile>` are the instances of a profile. What is offered several times as often as there are
devices is shared, also under the name `<resource>.shared`. Where the numbers do not fit that, nobody here
knows which devices are meant, and nothing is said about them.
Source: k8s-device-plugin, MIG strategies and renaming of shared resources.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from gpufleet.fleet.device_choice import SharePolicy
from gpufleet.fleet.links import Rows
from gpufleet.fleet.mig import MIG_RESOURCE_PREFIX, mig_resource

WHOLE_RESOURCE = "nvidia.com/gpu"
SHARED_SUFFIX = ".shared"
REPLICA_SEPARATOR = "::"


def device_of(device_id: str) -> str:
    """The UUID in a device id, without the number of the replica."""
    return device_id.partition(REPLICA_SEPARATOR)[0]


class DeviceClaim(msgspec.Struct, frozen=True, gc=False):
    """What a container asks for. Devices of a `reusable` claim (an init container's) serve the pod's later
    containers too.
    """

    container: str
    resource: str
    count: int
    reusable: bool = False


class DevicePick(msgspec.Struct, frozen=True, gc=False):
    """What a container should get: `devices` are UUIDs of GPUs or MIG instances, one for each device that it
    asks for (of a shared one, the same UUID once for each share).
    """

    container: str
    resource: str
    devices: tuple[str, ...]


class HeldDevices(msgspec.Struct, frozen=True, gc=False):
    """What a container of a pod holds of one resource, as in a `DevicePick`; `shared` says whether as shares
    of devices.
    """

    pod_uid: str
    container: str
    resource: str
    devices: tuple[str, ...]
    shared: bool = False


class Part(msgspec.Struct, frozen=True, gc=False):
    """A GPU or a MIG instance that a resource offers; `gpu` is the GPU that it is or lies on. One that is
    `leaving` is asked to make room for other instances, and like a sick one it goes to no new pod. One that
    is `carrying` fractions goes to nobody whole.
    """

    uuid: str
    gpu: str
    healthy: bool = True
    leaving: bool = False
    carrying: bool = False

    @property
    def usable(self) -> bool:
        """Whether a new pod may get it."""
        return self.healthy and not self.leaving


class NodeGPU(msgspec.Struct, frozen=True):
    """One GPU: itself, whether MIG mode is on, and its instances by profile, in the order of slices."""

    whole: Part
    mig: bool = False
    instances: tuple[tuple[str, Part], ...] = ()


class Offered(msgspec.Struct, frozen=True):
    """How many devices (or shares) of a resource a node offers, and how many of them to new pods."""

    capacity: int
    healthy: int
    policy: SharePolicy = "distributed"


class Pool(msgspec.Struct, frozen=True):
    """The devices that a resource stands for, each offered `replicas` times."""

    parts: tuple[Part, ...]
    replicas: int = 1
    policy: SharePolicy = "distributed"

    @property
    def whole(self) -> bool:
        """Whether pods get whole GPUs for themselves."""
        return self.replicas == 1 and all(part.uuid == part.gpu for part in self.parts)

    def free(self, held: Iterable[HeldDevices]) -> dict[str, int]:
        """How many shares of each device (of an unshared one: 1) new pods can get."""
        free = {part.uuid: self.replicas for part in self.parts if part.usable and not part.carrying}
        for one in held:
            for uuid in one.devices:
                if uuid in free:
                    free[uuid] -= 1 if one.shared else free[uuid]
                    if free[uuid] <= 0:
                        del free[uuid]
        return free


class NodeDevices(msgspec.Struct, frozen=True):
    """All devices of a node as its agent says it: its GPUs and how their pairs are linked, the devices of
    each resource of which that is known, and who holds what.
    """

    gpus: tuple[NodeGPU, ...] = ()
    links: Rows = ()
    pools: Mapping[str, Pool] = {}
    held: tuple[HeldDevices, ...] = ()


def pools_of(gpus: Iterable[NodeGPU], offered: Mapping[str, Offered]) -> dict[str, Pool]:
    """The devices of each resource that a node offers, without those of which it cannot be told."""
    found = ((resource, _pool(resource, tuple(gpus), offered)) for resource in offered)
    return {resource: pool for resource, pool in found if pool is not None}


def _pool(resource: str, gpus: tuple[NodeGPU, ...], all_offered: Mapping[str, Offered]) -> Pool | None:
    offered = all_offered[resource]
    original = resource.removesuffix(SHARED_SUFFIX)
    names = [name for name in (original, original + SHARED_SUFFIX) if name in all_offered]
    if not offered.capacity or sum(1 for name in names if all_offered[name].capacity) > 1:
        return None
    parts = _parts(original, gpus, named=any(one.startswith(MIG_RESOURCE_PREFIX) for one in all_offered))
    if not parts or offered.capacity % len(parts):
        return None
    replicas = offered.capacity // len(parts)
    healthy = sum(part.healthy for part in parts), sum(part.usable for part in parts)
    if offered.healthy not in (replicas * healthy[0], replicas * healthy[1]):
        return None
    return Pool(parts, replicas, offered.policy)


def _parts(resource: str, gpus: tuple[NodeGPU, ...], *, named: bool) -> tuple[Part, ...]:
    """What a resource stands for; `named` says whether instances have resources of their own."""
    instances = [one for gpu in gpus if gpu.mig for one in gpu.instances]
    if resource.startswith(MIG_RESOURCE_PREFIX):
        return tuple(part for profile, part in instances if mig_resource(profile) == resource)
    if resource != WHOLE_RESOURCE:
        return ()
    if not instances or named:
        return tuple(gpu.whole for gpu in gpus if not gpu.mig)
    return tuple(part for _, part in instances) if all(gpu.mig for gpu in gpus) else ()
