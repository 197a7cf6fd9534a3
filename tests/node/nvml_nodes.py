"""Nodes whose NVML is the fake one: a host root with the library and the kernel's files, and a machine."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec.structs import replace
from tests.fakenvml.machine import FakeMachine
from tests.fakenvml.products import machine_of
from tests.fakenvml.statefile import MachineFile

from gpufleet.devices.boards import links_of, make_inventory
from gpufleet.devices.hostfiles import NVML, kernel_bus_id
from gpufleet.devices.inventory import Inventory
from gpufleet.devices.nvml import NvmlBackend
from gpufleet.devices.partitions import with_compute_instance, with_gpu_instance
from gpufleet.fleet.mig import cut, geometry_of, layout
from gpufleet.fleet.products import Product, find_product

BOUND_S = 10.0
"""How long a test waits for what should come at once."""

CLOCK_S = 1_000_000.0
"""What the clock of a machine shows when a test begins, where a test stops it."""


class NvmlNode:
    """A node with fake NVML; `machine` is what it shows, and `change` changes it under its readers."""

    def __init__(self, root: Path, library: Path, state: Path) -> None:
        self.root = root
        self.file = MachineFile(state)
        folder = root / "usr/lib/x86_64-linux-gnu"
        folder.mkdir(parents=True)
        (folder / NVML).symlink_to(library)
        self._open: list[NvmlBackend] = []

    @property
    def machine(self) -> FakeMachine:
        """The machine as it is now."""
        return self.file.machine

    def change(self, change: Callable[[FakeMachine], FakeMachine]) -> None:
        """Change the machine, at once for every process."""
        self.file.update(change)

    def show(self, product: Product, inventory: Inventory) -> None:
        """Show the GPUs of an inventory, and what the kernel's files say of them."""
        machine = self.root / "sys/class/dmi/id/product_name"
        machine.parent.mkdir(parents=True, exist_ok=True)
        machine.write_text(f"{inventory.machine}\n")
        for gpu in inventory.gpus:
            device = self.root / "sys/bus/pci/devices" / kernel_bus_id(gpu.pci_bus_id)
            device.mkdir(parents=True, exist_ok=True)
            (device / "class").write_text(f"0x{gpu.pci_class:06x}\n")
            (device / "numa_node").write_text(f"{gpu.numa_node}\n")
        self.change(lambda _: machine_of(product, inventory, links_of(product, inventory.gpus)))

    def backend(self, clock: Callable[[], float] = time.monotonic) -> NvmlBackend:
        """A backend for this node, which is closed when the test ends."""
        self._open.append(NvmlBackend(self.root, clock))
        return self._open[-1]

    def close(self) -> None:
        """Let calls that hang return, and close the backends."""
        self.change(lambda machine: machine.calm())
        for backend in self._open:
            backend.close()


def cut_node(product: str, count: int, name: str = "all-balanced") -> tuple[Product, Inventory]:
    """A product, and a node of it whose GPUs with MIG are cut in a layout."""
    found = find_product(product)
    inventory = make_inventory(found, count, node=f"{product}-node", machine="Test Server")
    if not found.mig:
        return found, inventory
    places = cut(geometry_of(found), layout(geometry_of(found), name))
    gpus = []
    for gpu in inventory.gpus:
        shown = replace(gpu, mig="on")
        for place in places:
            shown, made = with_gpu_instance(shown, place.profile, place.start)
            shown, _ = with_compute_instance(shown, made)
        gpus.append(shown)
    return found, replace(inventory, gpus=tuple(gpus))


def whole_node(product: str, count: int) -> tuple[Product, Inventory]:
    """A product, and a node of it without MIG instances."""
    found = find_product(product)
    return found, make_inventory(found, count, node=f"{product}-node", machine="Test Server")


def whole_h100(node: NvmlNode, count: int = 2) -> NvmlBackend:
    """The node shows whole H100; its backend."""
    node.show(*whole_node("h100", count))
    return node.backend()


def cut_h100(node: NvmlNode, count: int = 1) -> NvmlBackend:
    """The node shows H100 that are cut evenly; its backend."""
    node.show(*cut_node("h100", count))
    return node.backend()


def misbehave(
    node: NvmlNode, pattern: str, code: int, *, gpu: int | None = None, times: int | None = None
) -> None:
    """Let calls fail with an NVML code."""
    node.change(lambda machine: machine.fail(pattern, code, gpu=gpu, times=times))


def apart(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, in which `NvmlBackend` and `Path` are known."""
    begin = "from pathlib import Path\nfrom gpufleet.devices.nvml import NvmlBackend\n"
    return subprocess.run([sys.executable, "-c", begin + code], capture_output=True, text=True, timeout=60)


def elsewhere(node: NvmlNode, code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, in which `backend` is that of the node and `Path` is known."""
    return apart(f"backend = NvmlBackend(Path({str(node.root)!r}))\n{code}")


@contextmanager
def in_background(call: Callable[[], object]) -> Iterator[threading.Thread]:
    """A thread that makes a call, which has to end by the end of the block."""
    thread = threading.Thread(target=call)
    thread.start()
    yield thread
    thread.join(BOUND_S)
    assert not thread.is_alive()


def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + BOUND_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)
