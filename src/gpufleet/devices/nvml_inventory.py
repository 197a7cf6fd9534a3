"""The GPUs of a node as NVML and the kernel's files show them.

What cannot change while the driver is loaded is read once per GPU; the minor number is not among it (a switch
of MIG mode may change it). A GPU that does not answer is reported as lost with its index and uuid, and the
others are read all the same. Source: NVML API reference.
"""

from __future__ import annotations

import ctypes
import uuid as uuids

import msgspec
import pynvml

from gpufleet.devices.hostfiles import HostFiles
from gpufleet.devices.inventory import GPU, GPUInstance, Inventory, MigMode, VirtualGPU
from gpufleet.devices.nvml_errors import GONE, backend_error, known, trying
from gpufleet.devices.nvml_handles import Handle, Handles, Listed
from gpufleet.devices.nvml_mig import Cuts, known_geometry, read_cuts, read_instances
from gpufleet.fleet.mig import Geometry

_EXCLUSIVE = (pynvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS, pynvml.NVML_COMPUTEMODE_EXCLUSIVE_THREAD)


class Identity(msgspec.Struct, frozen=True):
    """What does not change of a GPU while its driver is loaded."""

    name: str
    serial: str
    pci_bus_id: str
    pci_device: int
    pci_class: int
    numa_node: int
    capability: tuple[int, int]
    vgpu: VirtualGPU | None


class InventoryReader:
    """Reads inventories. For any thread: what two threads read at once, both keep."""

    def __init__(self, host: HostFiles, handles: Handles) -> None:
        self._host = host
        self._handles = handles
        self._machine = host.machine()
        self._identities: dict[str, Identity] = {}
        self._cuts: dict[tuple[str, bool], Cuts] = {}

    def read(self) -> Inventory:
        """What the GPUs are now; raises BackendError when no driver answers."""
        with trying("read the versions of the driver"):
            cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()
            driver, nvml = pynvml.nvmlSystemGetDriverVersion(), pynvml.nvmlSystemGetNVMLVersion()
        gpus = tuple(self._gpu(listed) for listed in self._handles.all())
        hosts = (self._identities[gpu.uuid].vgpu for gpu in gpus if gpu.uuid in self._identities)
        return Inventory(
            driver=driver,
            nvml=nvml,
            cuda=(cuda // 1000, cuda % 1000 // 10),
            machine=self._machine,
            gpus=gpus,
            vgpu=next((host for host in hosts if host is not None), None),
        )

    def identity(self, listed: Listed) -> Identity:
        """What does not change of a GPU; raises NVMLError."""
        identity = self._identities.get(listed.uuid)
        if identity is None:
            identity = self._identities[listed.uuid] = _identity(listed.handle, self._host)
        return identity

    def cuts(self, uuid: str, handle: Handle) -> Cuts:
        """What a GPU with MIG mode on can be cut into; raises BackendError."""
        with trying(f"read the MIG profiles of {uuid}"):
            name = known("", pynvml.nvmlDeviceGetName, handle)
            cuts = self._known_cuts(uuid, handle, name, on=True)
        if cuts is None:
            raise backend_error(pynvml.NVML_ERROR_NOT_SUPPORTED, f"cut {uuid}")
        return cuts

    def _gpu(self, listed: Listed) -> GPU:
        if listed.handle is None:
            return GPU(listed.index, listed.uuid, lost=listed.error)
        try:
            return self._answering(listed)
        except pynvml.NVMLError as error:
            return GPU(listed.index, listed.uuid, lost=str(error))

    def _answering(self, listed: Listed) -> GPU:
        handle, identity = listed.handle, self.identity(listed)
        mode, pending = _mig_mode(handle)
        geometry, instances = self._partitions(listed, identity.name, mode)
        return GPU(
            index=listed.index,
            uuid=listed.uuid,
            name=identity.name,
            minor=known(0, pynvml.nvmlDeviceGetMinorNumber, handle),
            serial=identity.serial,
            pci_bus_id=identity.pci_bus_id,
            pci_device=identity.pci_device,
            pci_class=identity.pci_class,
            numa_node=identity.numa_node,
            memory_mib=_total_bytes(handle) >> 20,
            capability=identity.capability,
            mig=mode,
            mig_pending=pending,
            geometry=geometry,
            instances=instances,
            clique=read_clique(handle),
            exclusive=known(None, pynvml.nvmlDeviceGetComputeMode, handle) in _EXCLUSIVE,
        )

    def _partitions(
        self, listed: Listed, name: str, mode: MigMode
    ) -> tuple[Geometry | None, tuple[GPUInstance, ...]]:
        if mode == "unsupported":
            return None, ()
        on = mode == "on"
        try:
            cuts = self._known_cuts(listed.uuid, listed.handle, name, on)
        except pynvml.NVMLError as error:
            if on or error.value in GONE:
                raise
            cuts = None
        if cuts is None:
            return known_geometry(name), ()
        return cuts.geometry, read_instances(listed.handle, cuts) if on else ()

    def _known_cuts(self, uuid: str, handle: Handle, name: str, on: bool) -> Cuts | None:
        cuts = self._cuts.get((uuid, on))
        if cuts is None:
            cuts = read_cuts(handle, name, _total_bytes(handle))
            if cuts is not None:
                self._cuts[uuid, on] = cuts
        return cuts


def _identity(handle: Handle, host: HostFiles) -> Identity:
    pci = pynvml.nvmlDeviceGetPciInfo(handle)
    bus_id = str(pci.busId)
    major, minor = known((0, 0), pynvml.nvmlDeviceGetCudaComputeCapability, handle)
    return Identity(
        name=pynvml.nvmlDeviceGetName(handle),
        serial=known("", pynvml.nvmlDeviceGetSerial, handle),
        pci_bus_id=bus_id,
        pci_device=pci.pciDeviceId,
        pci_class=host.pci_class(bus_id),
        numa_node=host.numa_node(bus_id),
        capability=(major, minor),
        vgpu=host.vgpu(bus_id),
    )


def _total_bytes(handle: Handle) -> int:
    memory = known(None, pynvml.nvmlDeviceGetMemoryInfo, handle)
    return int(memory.total) if memory else 0


def _mig_mode(handle: Handle) -> tuple[MigMode, bool]:
    """The mode in force, and whether another one waits for a reset."""
    modes = known(None, pynvml.nvmlDeviceGetMigMode, handle)
    if modes is None:
        return "unsupported", False
    current, pending = modes
    return ("on" if current == pynvml.NVML_DEVICE_MIG_ENABLE else "off"), current != pending


def mig_is_on(handle: Handle) -> bool:
    """Whether MIG mode is in force; raises NVMLError."""
    return _mig_mode(handle)[0] == "on"


def read_clique(handle: Handle) -> str:
    """The NVLink clique of a GPU whose fabric is up, else empty; raises NVMLError."""
    fabric = pynvml.c_nvmlGpuFabricInfo_v2_t()
    if known(None, pynvml.nvmlDeviceGetGpuFabricInfoV, handle, ctypes.byref(fabric)) is None:
        fabric = pynvml.c_nvmlGpuFabricInfo_t()
        if known(None, pynvml.nvmlDeviceGetGpuFabricInfo, handle, ctypes.byref(fabric)) is None:
            return ""
    up = fabric.state == pynvml.NVML_GPU_FABRIC_STATE_COMPLETED and fabric.status == pynvml.NVML_SUCCESS
    cluster = bytes(fabric.clusterUuid)
    return f"{uuids.UUID(bytes=cluster)}.{fabric.cliqueId}" if up and any(cluster) else ""
