"""What the GPUs of a node are: one plain value, whatever backend read it.

A GPU in MIG mode holds GPU instances (a run of memory slices), each with compute instances inside it; a MIG
device that a pod can use is a compute instance, and the ordinary case is one that fills its GPU instance. A
GPU instance whose compute instance could not be made has none, and shows up here all the same, which it does
not in NVML's own list of MIG devices.
Source: NVML API reference, MIG user guide.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from gpufleet.fleet.mig import Geometry, Placement

MigMode = Literal["unsupported", "off", "on"]


class Engines(msgspec.Struct, frozen=True):
    """Engines of a MIG device by kind."""

    copy: int = 0
    decoder: int = 0
    encoder: int = 0
    jpeg: int = 0
    ofa: int = 0


class ComputeInstance(msgspec.Struct, frozen=True):
    """A MIG device: what a pod can use. `slices` are compute slices, memory is that of its GPU instance."""

    id: int
    uuid: str
    slices: int
    multiprocessors: int = 0
    memory_mib: int = 0
    engines: Engines = Engines()


class GPUInstance(msgspec.Struct, frozen=True):
    """A GPU instance: `size` memory slices from `start`, and `slices` compute slices."""

    id: int
    profile: str
    start: int
    size: int
    slices: int
    compute: tuple[ComputeInstance, ...] = ()

    @property
    def whole(self) -> ComputeInstance | None:
        """The compute instance that fills the GPU instance; None when there is none."""
        return next((one for one in self.compute if one.slices == self.slices), None)

    @property
    def placement(self) -> Placement:
        """Where the instance lies."""
        return Placement(self.start, self.size, self.profile)


class GPU(msgspec.Struct, frozen=True):
    """One GPU as its driver names it (`name` has blanks). Memory in MiB; PCI ids as NVML prints them.

    `pci_device` is device id and vendor in one (0x233010DE), `pci_class` the class code (0x030200; 0 when
    unknown), `numa_node` is -1 without one, `clique` is `<cluster uuid>.<clique id>` or empty. `geometry` is
    what the GPU can be cut into, None without MIG. `lost` says why the driver does not answer for it; then
    only index and uuid are sure.
    """

    index: int
    uuid: str
    name: str = ""
    minor: int = 0
    serial: str = ""
    pci_bus_id: str = ""
    pci_device: int = 0
    pci_class: int = 0
    numa_node: int = -1
    memory_mib: int = 0
    capability: tuple[int, int] = (0, 0)
    mig: MigMode = "unsupported"
    mig_pending: bool = False
    geometry: Geometry | None = None
    instances: tuple[GPUInstance, ...] = ()
    clique: str = ""
    exclusive: bool = False
    lost: str = ""


class VirtualGPU(msgspec.Struct, frozen=True):
    """What a virtual machine with a vGPU knows of its host's driver."""

    host_driver_version: str = ""
    host_driver_branch: str = ""


class Inventory(msgspec.Struct, frozen=True):
    """All GPUs of a node, by index, with the versions of driver, NVML and CUDA (major, minor)."""

    driver: str = ""
    nvml: str = ""
    cuda: tuple[int, int] = (0, 0)
    machine: str = ""
    gpus: tuple[GPU, ...] = ()
    vgpu: VirtualGPU | None = None

    @property
    def profiles(self) -> frozenset[str]:
        """The profiles of all MIG instances."""
        return frozenset(one.profile for gpu in self.gpus for one in gpu.instances)

    def gpu(self, uuid: str) -> GPU | None:
        """The GPU of a uuid."""
        return next((gpu for gpu in self.gpus if gpu.uuid == uuid), None)
