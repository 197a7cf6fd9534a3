"""Machines of products: what the fake shows for the GPUs that gpufleet's tables describe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from msgspec.structs import replace
from tests.fakenvml.gpu import (
    Fabric,
    FakeCompute,
    FakeGPU,
    FakeInstance,
    FakeProfile,
    Meter,
    Switch,
)
from tests.fakenvml.machine import FakeMachine

from gpufleet.devices.backend import Link
from gpufleet.devices.boards import BOARDS, attributes, links_of, make_inventory
from gpufleet.devices.inventory import GPU, GPUInstance, Inventory
from gpufleet.fleet.mig import Geometry, Profile
from gpufleet.fleet.products import Product

_HOPPER, _AMPERE = (9, 0), (8, 0)
_SWITCHES = 4
_LEVELS = {"board": 0, "switch": 10, "switches": 20, "bridge": 30, "cpu": 40, "system": 50}
_ARCHITECTURES = {(6, 0): 4, (7, 0): 5, (7, 5): 6, (8, 0): 7, (8, 9): 8, (9, 0): 9, (10, 0): 10}
_SHAPES = {
    # compute slices, memory slices, media: NVML's number and id of the profile, on GPUs with 8 memory slices
    (1, 1, False): (0, 19), (1, 1, True): (7, 20), (1, 2, False): (9, 15), (2, 2, False): (1, 14),
    (3, 4, False): (2, 9), (4, 4, False): (3, 5), (7, 8, False): (4, 0),
}  # fmt: skip
_SMALL_SHAPES = {
    # the same on GPUs with 4 memory slices
    (1, 1, False): (0, 14), (1, 1, True): (7, 21), (2, 2, False): (1, 5), (2, 2, True): (8, 6),
    (4, 4, False): (3, 0),
}  # fmt: skip


def machine(product: Product, count: int, *, node: str = "node", now_s: float = 0.0) -> FakeMachine:
    """`count` idle GPUs of a product, MIG mode off; they count energy from a time on."""
    inventory = make_inventory(product, count, node=node)
    made = machine_of(product, inventory, links_of(product, inventory.gpus))
    meter = Meter(100.0 * product.power_w, since_s=now_s)
    return replace(made, gpus=tuple(replace(gpu, power=meter) for gpu in made.gpus))


def machine_of(product: Product, inventory: Inventory, links: Mapping[tuple[str, str], Link]) -> FakeMachine:
    """The machine whose GPUs, all of one product, are those of an inventory, linked as given."""
    index = {gpu.uuid: gpu.index for gpu in inventory.gpus}
    return FakeMachine(
        gpus=tuple(_gpu(product, gpu, links, inventory) for gpu in inventory.gpus),
        driver=inventory.driver,
        nvml=inventory.nvml,
        cuda=inventory.cuda,
        levels={(index[one], index[other]): _LEVELS[link.pcie] for (one, other), link in links.items()},
    )


def _gpu(product: Product, gpu: GPU, links: Mapping[tuple[str, str], Link], inventory: Inventory) -> FakeGPU:
    board = BOARDS[product.name]
    profiles = _profiles(gpu) if gpu.geometry else ()
    pending: Switch = gpu.mig if not gpu.mig_pending else "off" if gpu.mig == "on" else "on"
    cluster, _, clique = gpu.clique.partition(".")
    ends = tuple(_ends(product, gpu, links, inventory))
    return FakeGPU(
        uuid=gpu.uuid,
        name=gpu.name,
        pci_bus_id=gpu.pci_bus_id,
        pci_device=gpu.pci_device,
        capability=gpu.capability,
        architecture=max(number for least, number in _ARCHITECTURES.items() if least <= gpu.capability),
        memory_mib=gpu.memory_mib,
        minor=gpu.minor,
        serial=gpu.serial,
        numa=gpu.numa_node,
        compute_mode=3 if gpu.exclusive else 0,
        mig=gpu.mig,
        mig_pending=pending,
        mig_reset=gpu.capability < _HOPPER,
        gpm=gpu.capability >= _HOPPER,
        temperature_memory=40 if board.hbm else None,
        power_limit=product.power_w * 1000,
        power=Meter(product.power_w * 100),
        clock_graphics=board.idle_mhz,
        clock_sm=board.idle_mhz,
        clock_memory=board.memory_mhz,
        clock_max_graphics=board.sm_mhz,
        clock_max_sm=board.sm_mhz,
        clock_max_memory=board.memory_mhz,
        remapped_correctable=0 if gpu.capability >= _AMPERE else None,
        remapped_uncorrectable=0 if gpu.capability >= _AMPERE else None,
        retired=() if gpu.capability < _AMPERE else None,
        retired_pending=False if gpu.capability < _AMPERE else None,
        violations={0: 0, 1: 0},
        nvlink_version=4 if ends else 0,
        links=ends,
        fabric=Fabric(cluster, int(clique)) if gpu.clique else None,
        profiles=profiles,
        instances=tuple(_instance(instance, profiles) for instance in gpu.instances),
    )


def _ends(
    product: Product, gpu: GPU, links: Mapping[tuple[str, str], Link], inventory: Inventory
) -> Iterator[str]:
    """Where each NVLink of a GPU ends: at the others, or at switches where they join all with all."""
    if BOARDS[product.name].wiring == "switch":
        yield from (f"00000000:{0xC4 + link % _SWITCHES:02X}:00.0" for link in range(product.nvlink))
        return
    for other in inventory.gpus:
        link = links.get((gpu.uuid, other.uuid)) or links.get((other.uuid, gpu.uuid))
        yield from (other.pci_bus_id for _ in range(link.nvlinks if link else 0))


def _profiles(gpu: GPU) -> tuple[FakeProfile, ...]:
    geometry = gpu.geometry
    return tuple(_profile(gpu, geometry, one) for one in geometry.profiles.values()) if geometry else ()


def _profile(gpu: GPU, geometry: Geometry, profile: Profile) -> FakeProfile:
    shapes = _SHAPES if geometry.slots > 4 else _SMALL_SHAPES
    enum, ident = shapes[profile.compute, profile.size, profile.media]
    has = attributes(gpu.capability, geometry, profile.name)
    return FakeProfile(
        enum=enum,
        id=ident,
        name=profile.name,
        compute=profile.compute,
        size=profile.size,
        limit=profile.limit,
        media=profile.media,
        memory_mib=gpu.memory_mib * profile.size // geometry.slots,
        multiprocessors=has["multiprocessors"],
        copy=has["engines"].copy,
        decoder=has["engines"].decoder,
        encoder=has["engines"].encoder,
        jpeg=has["engines"].jpeg,
        ofa=has["engines"].ofa,
        starts=profile.starts,
    )


def _instance(instance: GPUInstance, profiles: tuple[FakeProfile, ...]) -> FakeInstance:
    profile = next(one for one in profiles if one.name == instance.profile)
    compute, start = [], 0
    for one in instance.compute:
        compute.append(FakeCompute(one.id, one.slices, start, 0, one.uuid))
        start += one.slices
    return FakeInstance(instance.id, profile.id, instance.start, 0, tuple(compute))
