"""Simulated GPUs: the state of one node's devices as a value.

A state says what the devices are, which are sick or quarantined, and who holds what; every change makes a new
state. Readings (utilisation, memory, temperature, power) are a smooth function of who holds what and of the
time given, so they need no ticking. A device id is held by one pod at most; a time-sliced GPU has one id per
replica (`GPU-...::0`, as NVIDIA's device plugin names them). UUIDs follow from fleet, node and index.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from gpufleet.devices.loads import Load, phase_of, power_w, stable_uuid
from gpufleet.fleet import mig
from gpufleet.fleet.products import Product

GPU_RESOURCE = "nvidia.com/gpu"
SHARED_RESOURCE = "nvidia.com/gpu.shared"

_SHARE_LOAD = 0.4
_DRIVER_MEMORY = 0.006


class Instance(msgspec.Struct, frozen=True):
    """A MIG instance; `compute` is its share of the GPU's compute slices, memory in MiB."""

    uuid: str
    profile: str
    start: int
    size: int
    compute: float
    memory_mib: int


class Device(msgspec.Struct, frozen=True):
    """One GPU. `instances` is None while MIG mode is off; `fault` is empty while it is healthy."""

    index: int
    uuid: str
    product: Product
    instances: tuple[Instance, ...] | None = None
    replicas: int = 1
    fault: str = ""

    @property
    def mig_enabled(self) -> bool:
        """Whether MIG mode is on."""
        return self.instances is not None


class Holder(msgspec.Struct, frozen=True):
    """A pod that may hold devices."""

    namespace: str
    pod: str
    uid: str


class Claim(msgspec.Struct, frozen=True):
    """What a container asks for. Devices of a `reusable` claim serve the pod's later containers too."""

    container: str
    resource: str
    count: int
    reusable: bool = False


class Holding(msgspec.Struct, frozen=True):
    """The device ids that a container holds for one resource."""

    holder: Holder
    container: str
    resource: str
    ids: tuple[str, ...]

    @property
    def devices(self) -> tuple[str, ...]:
        """The UUIDs behind the ids: GPUs or MIG instances, each once."""
        return tuple(dict.fromkeys(device_of(one) for one in self.ids))


class Shortage(msgspec.Struct, frozen=True):
    """Why a claim got nothing: `available` is None when the node has no such resource at all."""

    resource: str
    wanted: int
    available: int | None


class Offer(msgspec.Struct, frozen=True):
    """A resource of the node: how many ids exist and how many of them may be used."""

    resource: str
    capacity: int
    healthy: int


class Reading(msgspec.Struct, frozen=True):
    """What sensors say: percent, MiB, degrees Celsius, watts."""

    util_percent: int
    memory_used_mib: int
    temperature_c: int
    power_w: int


def device_of(device_id: str) -> str:
    """The UUID of a device id, without the number of the replica."""
    return device_id.partition("::")[0]


class NodeDevices(msgspec.Struct, frozen=True):
    """All GPUs of one node and who holds them. `shared_resource` is the name of time-sliced GPUs."""

    devices: tuple[Device, ...] = ()
    shared_resource: str = GPU_RESOURCE
    quarantined: frozenset[str] = frozenset()
    holdings: tuple[Holding, ...] = ()
    loads: Mapping[str, Load] = {}

    def offers(self) -> tuple[Offer, ...]:
        """Every resource with its number of ids, by name."""
        offers = []
        for resource, ids in sorted(self._ids().items()):
            healthy = sum(self._usable(device) for _, device in ids)
            offers.append(Offer(resource, len(ids), healthy))
        return tuple(offers)

    def why_unusable(self, device: Device) -> str:
        """Why no new pod may use a GPU; empty when one may."""
        return device.fault or ("Quarantined" if device.uuid in self.quarantined else "")

    def held(self, uid: str) -> tuple[Holding, ...]:
        """What the pod with this uid holds."""
        return tuple(holding for holding in self.holdings if holding.holder.uid == uid)

    def allocate(self, holder: Holder, claims: Sequence[Claim], now: float) -> NodeDevices | Shortage:
        """All claims of a pod or none: lowest index first, shared GPUs that are in use before idle ones."""
        ids = self._ids()
        taken = {one for holding in self.holdings for one in holding.ids}
        reusable: dict[str, list[str]] = {}
        holdings: list[Holding] = []
        for claim in claims:
            if claim.resource not in ids:
                return Shortage(claim.resource, claim.count, None)
            pool = reusable.setdefault(claim.resource, [])
            chosen = pool[: claim.count]
            free = [one for one, device in ids[claim.resource] if one not in taken and self._usable(device)]
            missing = claim.count - len(chosen)
            if missing > len(free):
                return Shortage(claim.resource, claim.count, len(free) + len(chosen))
            chosen += _pick(free, missing, taken)
            taken.update(chosen)
            if claim.reusable:
                reusable[claim.resource] = pool + [one for one in chosen if one not in pool]
            else:
                reusable[claim.resource] = [one for one in pool if one not in chosen]
            holdings.append(Holding(holder, claim.container, claim.resource, tuple(chosen)))
        return self._with(self.holdings + tuple(holdings), now)

    def restore(self, recorded: Iterable[tuple[Holder, str, str, Sequence[str]]], now: float) -> NodeDevices:
        """The state with holdings that were recorded (holder, container, resource, device ids).

        Ids that do not exist any more, or that another pod holds already, are left out.
        """
        known = {resource: {one for one, _ in ids} for resource, ids in self._ids().items()}
        owners = {one: holding.holder.uid for holding in self.holdings for one in holding.ids}
        holdings = list(self.holdings)
        for holder, container, resource, ids in recorded:
            exist = known.get(resource, set())
            kept = [one for one in ids if one in exist and owners.setdefault(one, holder.uid) == holder.uid]
            if kept:
                holdings.append(Holding(holder, container, resource, tuple(kept)))
        return self._with(tuple(holdings), now)

    def release(self, uid: str, now: float) -> NodeDevices:
        """The state in which the pod with this uid holds nothing."""
        kept = tuple(holding for holding in self.holdings if holding.holder.uid != uid)
        return self if len(kept) == len(self.holdings) else self._with(kept, now)

    def with_health(self, faults: Mapping[int, str], quarantined: Iterable[str]) -> NodeDevices:
        """The state with the given faults by GPU index (the rest healthy) and quarantined GPUs."""
        devices = tuple(
            msgspec.structs.replace(device, fault=faults.get(device.index, "")) for device in self.devices
        )
        return msgspec.structs.replace(self, devices=devices, quarantined=frozenset(quarantined))

    def reading(self, device: Device, now: float) -> Reading:
        """What the sensors of a GPU say at a time."""
        load = self.loads.get(device.uuid) or Load(phase=phase_of(device.uuid))
        util = load.utilisation(now)
        return Reading(
            util_percent=round(100 * util),
            memory_used_mib=round(device.product.memory_mib * (_DRIVER_MEMORY + 0.86 * load.at(now).memory)),
            temperature_c=round(load.temperature_c(now)),
            power_w=round(power_w(device.product.power_w, util)),
        )

    def settled(self, now: float) -> bool:
        """Whether readings change by little from now on, while nobody takes or releases a device."""
        return all(load.settled(now) for load in self.loads.values())

    def _ids(self) -> dict[str, list[tuple[str, Device]]]:
        """Every device id by resource, in the order in which they are given out."""
        ids: dict[str, list[tuple[str, Device]]] = {}
        for device in self.devices:
            if device.instances is not None:
                for instance in device.instances:
                    ids.setdefault(mig.mig_resource(instance.profile), []).append((instance.uuid, device))
            elif device.replicas == 1:
                ids.setdefault(GPU_RESOURCE, []).append((device.uuid, device))
            else:
                replicas = [(f"{device.uuid}::{number}", device) for number in range(device.replicas)]
                ids.setdefault(self.shared_resource, []).extend(replicas)
        return ids

    def _usable(self, device: Device) -> bool:
        return not self.why_unusable(device)

    def _with(self, holdings: tuple[Holding, ...], now: float) -> NodeDevices:
        loads = {}
        held = {one for holding in holdings for one in holding.ids}
        for device in self.devices:
            load = self.loads.get(device.uuid) or Load(since=now, phase=phase_of(device.uuid))
            target = _target(device, held)
            loads[device.uuid] = load.turned(now, target, target)
        return msgspec.structs.replace(self, holdings=holdings, loads=loads)


def _pick(free: Sequence[str], count: int, taken: Iterable[str]) -> list[str]:
    """`count` of the free ids: different GPUs before replicas of one, and GPUs in use before idle ones."""
    busy = {device_of(one) for one in taken}
    rounds: dict[str, int] = {}
    ranked = []
    for position, one in enumerate(free):
        device = device_of(one)
        rounds[device] = rounds.get(device, -1) + 1
        ranked.append((rounds[device], device not in busy, position, one))
    return [one for *_, one in sorted(ranked)[:count]]


def _target(device: Device, held: set[str]) -> float:
    """How busy (0..1) a GPU becomes when these ids are held."""
    if device.instances is not None:
        return min(1.0, sum(instance.compute for instance in device.instances if instance.uuid in held))
    if device.replicas == 1:
        return float(device.uuid in held)
    return min(1.0, _SHARE_LOAD * sum(device_of(one) == device.uuid for one in held))


def make_devices(
    fleet: str,
    node: str,
    product: Product,
    count: int,
    *,
    profiles: Sequence[str] | None = None,
    replicas: int = 1,
    renamed: bool = False,
) -> NodeDevices:
    """`count` idle GPUs of a product on a node, each cut into `profiles` (None: MIG off) or shared.

    Raises GpufleetError for profiles that the product does not have or that do not fit on it.
    """
    devices = tuple(
        Device(
            index,
            f"GPU-{stable_uuid(fleet, node, index)}",
            product,
            None if profiles is None else _instances(f"{fleet}/{node}", index, product, profiles),
            replicas,
        )
        for index in range(count)
    )
    return NodeDevices(devices, SHARED_RESOURCE if renamed else GPU_RESOURCE)


def _instances(where: str, index: int, product: Product, profiles: Sequence[str]) -> tuple[Instance, ...]:
    geometry = mig.geometry_of(product)
    return tuple(
        Instance(
            f"MIG-{stable_uuid(where, index, placement.start, placement.profile)}",
            placement.profile,
            placement.start,
            placement.size,
            geometry.profile(placement.profile).compute / geometry.compute,
            product.memory_mib * placement.size // geometry.slots,
        )
        for placement in mig.cut(geometry, profiles)
    )
