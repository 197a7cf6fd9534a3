"""Boards: what a driver says of a product beyond its name and memory, and how the GPUs of a server are wired.

Source: public nvidia-smi dumps (names, clocks), the PCI id database and mig-parted's device filters (ids),
`nvidia-smi mig -lgip` and the tables of the MIG user guide (multiprocessors and engines of instances; those
of Blackwell's larger instances are inferred from its smallest), vendor's manuals of DGX and HGX servers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypedDict

import msgspec

from gpufleet.devices.backend import Link
from gpufleet.devices.inventory import GPU, Engines, Inventory
from gpufleet.devices.loads import stable_uuid
from gpufleet.fleet.mig import GEOMETRIES, Geometry
from gpufleet.fleet.products import Product

Wiring = Literal["switch", "quad", "pair", "none"]

_VENDOR = 0x10DE
_COMPUTE_CLASS, _DISPLAY_CLASS = 0x030200, 0x030000
_GROUP = 4


class Board(msgspec.Struct, frozen=True):
    """One product as its driver shows it: its name, PCI device id, clocks in MHz (idle and highest of the
    multiprocessors, of the memory), whether the memory is HBM (its temperature is known), and how NVLink
    joins the GPUs: through switches all with all, in quads, by a bridge in pairs, or not.
    """

    name: str
    device: int
    idle_mhz: int
    sm_mhz: int
    memory_mhz: int
    hbm: bool
    wiring: Wiring
    pci_class: int = _COMPUTE_CLASS


# fmt: off
_TABLE: tuple[tuple[str, int, int, int, int, bool, Wiring], ...] = (
    # driver's name                      id   idle    SM  memory   HBM   wiring
    ("NVIDIA GB200",                    0x2941, 120, 2062,  3996, True,  "switch"),
    ("NVIDIA B200",                     0x2901, 120, 1965,  3996, True,  "switch"),
    ("NVIDIA H200",                     0x2335, 345, 1980,  3201, True,  "switch"),
    ("NVIDIA H200 NVL",                 0x233B, 345, 1785,  3201, True,  "pair"),
    ("NVIDIA GH200 480GB",              0x2342, 345, 1980,  2619, True,  "none"),
    ("NVIDIA H100 80GB HBM3",           0x2330, 345, 1980,  2619, True,  "switch"),
    ("NVIDIA H100 NVL",                 0x2321, 345, 1785,  2619, True,  "pair"),
    ("NVIDIA H100 PCIe",                0x2331, 345, 1755,  1593, True,  "pair"),
    ("NVIDIA A100-SXM4-80GB",           0x20B2, 210, 1410,  1593, True,  "switch"),
    ("NVIDIA A100 80GB PCIe",           0x20B5, 210, 1410,  1512, True,  "pair"),
    ("NVIDIA A100-SXM4-40GB",           0x20B0, 210, 1410,  1215, True,  "switch"),
    ("NVIDIA A100-PCIE-40GB",           0x20F1, 210, 1410,  1215, True,  "pair"),
    ("NVIDIA A30",                      0x20B7, 210, 1440,  1215, True,  "pair"),
    ("NVIDIA A40",                      0x2235, 210, 1740,  7251, False, "pair"),
    ("NVIDIA A10G",                     0x2237, 210, 1710,  6251, False, "none"),
    ("NVIDIA A10",                      0x2236, 210, 1695,  6251, False, "none"),
    ("NVIDIA L4",                       0x27B8, 210, 2040,  6251, False, "none"),
    ("NVIDIA L40",                      0x26B5, 210, 2490,  9001, False, "none"),
    ("NVIDIA L40S",                     0x26B9, 210, 2520,  9001, False, "none"),
    ("NVIDIA RTX 6000 Ada Generation",  0x26B1, 210, 3105, 10001, False, "none"),
    ("Tesla T4",                        0x1EB8, 300, 1590,  5001, False, "none"),
    ("Tesla V100-SXM2-32GB",            0x1DB5, 135, 1530,   877, True,  "quad"),
    ("Tesla V100-SXM2-16GB",            0x1DB1, 135, 1530,   877, True,  "quad"),
    ("Tesla P100-PCIE-16GB",            0x15F8, 405, 1328,   715, True,  "none"),
)

_INSTANCES = {
    # generation, slots: per profile in the order of the geometry
    #   multiprocessors, engines: copy, decoder, encoder, jpeg, ofa
    ("ampere", 8): (
        (14, (1, 0, 0, 0, 0)), (14, (1, 1, 0, 1, 1)), (14, (1, 1, 0, 0, 0)), (28, (2, 1, 0, 0, 0)),
        (42, (3, 2, 0, 0, 0)), (56, (4, 2, 0, 0, 0)), (98, (7, 5, 0, 1, 1)),
    ),
    ("ampere", 4): (
        (14, (1, 0, 0, 0, 0)), (14, (1, 1, 0, 1, 1)), (28, (2, 2, 0, 0, 0)), (28, (2, 2, 0, 1, 1)),
        (56, (4, 4, 0, 1, 1)),
    ),
    ("hopper", 8): (
        (16, (1, 1, 0, 1, 0)), (16, (1, 1, 0, 1, 1)), (26, (1, 1, 0, 1, 0)), (32, (2, 2, 0, 2, 0)),
        (60, (3, 3, 0, 3, 0)), (64, (4, 4, 0, 4, 0)), (132, (8, 7, 0, 7, 1)),
    ),
    ("blackwell", 8): (
        (18, (2, 1, 0, 1, 0)), (18, (2, 1, 0, 1, 1)), (30, (2, 1, 0, 1, 0)), (36, (3, 1, 0, 1, 0)),
        (70, (6, 1, 0, 1, 0)), (72, (8, 1, 0, 1, 0)), (148, (16, 1, 0, 1, 1)),
    ),
}
# fmt: on
_GENERATIONS = {8: "ampere", 9: "hopper", 10: "blackwell"}

BOARDS: dict[str, Board] = {
    name.replace(" ", "-"): Board(
        name, device, idle, sm, memory, hbm, wiring, _DISPLAY_CLASS if " RTX " in name else _COMPUTE_CLASS
    )
    for name, device, idle, sm, memory, hbm, wiring in _TABLE
}
"""The board of every product by the product's label value."""


class Attributes(TypedDict):
    """What a compute instance that fills its GPU instance has of the GPU."""

    multiprocessors: int
    engines: Engines


def attributes(capability: tuple[int, int], geometry: Geometry, profile: str) -> Attributes:
    """Multiprocessors and engines of an instance of a profile, on a GPU of a compute capability with MIG."""
    rows = _INSTANCES[_GENERATIONS[capability[0]], geometry.slots]
    multiprocessors, (copy, decoder, encoder, jpeg, ofa) = rows[list(geometry.profiles).index(profile)]
    return Attributes(multiprocessors=multiprocessors, engines=Engines(copy, decoder, encoder, jpeg, ofa))


def make_inventory(
    product: Product,
    count: int,
    *,
    node: str,
    machine: str = "Simulated",
    driver: str = "580.95.05",
    cuda: tuple[int, int] = (13, 0),
    clique: str = "",
) -> Inventory:
    """`count` GPUs of a product as the driver of a two-socket server shows them: not cut, MIG mode off.

    Uuids and serial numbers follow from the node's name and the index; half of more than four GPUs is near
    each socket.
    """
    board = BOARDS[product.name]
    gpus = tuple(
        GPU(
            index,
            f"GPU-{stable_uuid(node, index)}",
            board.name,
            minor=index,
            serial=str(stable_uuid(node, index, "serial").int)[:13],
            pci_bus_id=f"00000000:{7 + 15 * index:02X}:00.0",
            pci_device=board.device << 16 | _VENDOR,
            pci_class=board.pci_class,
            numa_node=index * 2 // count if count > _GROUP else 0,
            memory_mib=product.memory_mib,
            capability=product.compute,
            mig="off" if product.mig else "unsupported",
            geometry=GEOMETRIES[product.mig] if product.mig else None,
            clique=clique,
        )
        for index in range(count)
    )
    return Inventory(driver, f"{cuda[0]}.{driver}", cuda, machine, gpus)


def links_of(product: Product, gpus: tuple[GPU, ...]) -> Mapping[tuple[str, str], Link]:
    """How each pair of a server's GPUs is linked: four share a PCIe host bridge, NVLink goes by the board."""
    wiring = BOARDS[product.name].wiring
    return {
        (one.uuid, other.uuid): Link(
            _pcie(one, other), _nvlinks(wiring, product.nvlink, one.index, other.index)
        )
        for one in gpus
        for other in gpus[one.index + 1 :]
    }


def _pcie(one: GPU, other: GPU) -> Literal["bridge", "cpu", "system"]:
    if one.numa_node != other.numa_node:
        return "system"
    return "bridge" if one.index // _GROUP == other.index // _GROUP else "cpu"


def _nvlinks(wiring: Wiring, links: int, one: int, other: int) -> int:
    if wiring == "switch":
        return links
    if wiring == "quad" and one // _GROUP == other // _GROUP:
        return links // (_GROUP - 1)
    if wiring == "pair" and one // 2 == other // 2:
        return links
    return 0
