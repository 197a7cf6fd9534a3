"""Nodes whose NVML is the fake one: a host root with the library and the kernel's files, and a machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from tests.fakenvml.machine import FakeMachine
from tests.fakenvml.products import machine_of
from tests.fakenvml.statefile import MachineFile

from gpufleet.devices.boards import links_of
from gpufleet.devices.hostfiles import NVML, kernel_bus_id
from gpufleet.devices.inventory import Inventory
from gpufleet.devices.nvml import NvmlBackend
from gpufleet.fleet.products import Product

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
