"""The real backend: the GPUs of this machine, by NVIDIA's management library.

NVML belongs to the driver and is loaded from the host's file system. Its calls may come from any thread; one
that hangs holds up its own thread and whoever wants the same thing: samples and events have a lock each.
Source: NVML API reference.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pynvml

from gpufleet.devices import nvml_mig
from gpufleet.devices.backend import Event, Link, Process, Sample
from gpufleet.devices.hostfiles import HostFiles
from gpufleet.devices.inventory import Inventory
from gpufleet.devices.nvml_errors import backend_error, trying
from gpufleet.devices.nvml_events import EventWatch
from gpufleet.devices.nvml_fields import read_fields
from gpufleet.devices.nvml_gpm import Key
from gpufleet.devices.nvml_handles import Handles, handle_of
from gpufleet.devices.nvml_inventory import InventoryReader
from gpufleet.devices.nvml_library import open_nvml
from gpufleet.devices.nvml_links import LinkReader
from gpufleet.devices.nvml_processes import read_processes
from gpufleet.devices.nvml_samples import SampleReader

_CLOSE_WITHIN_S = 1.0


class NvmlBackend:
    """The `Backend` of a machine with NVIDIA's driver, whose file system is at `root`.

    Raises BackendError (DriverNotLoaded, ...) where there is none. `clock` (seconds) paces GPM samples.
    """

    def __init__(self, root: Path = Path("/"), clock: Callable[[], float] = time.monotonic) -> None:
        host = HostFiles(root)
        open_nvml(host)
        handles = Handles()
        self._inventory = InventoryReader(host, handles)
        self._links = LinkReader(handles, self._inventory)
        self._samples = SampleReader(handles, self._inventory, clock)
        self._events = EventWatch(handles)
        self._sampling = threading.Lock()
        self._xids: dict[Key, int] = {}
        self._closed = False

    def inventory(self) -> Inventory:
        """What the GPUs are now."""
        return self._inventory.read()

    def links(self) -> Mapping[tuple[str, str], Link]:
        """How each pair of GPUs is linked; pairs with a lost GPU as they were seen last."""
        return self._links.read()

    def sample(self) -> tuple[Sample, ...]:
        """Readings of every GPU and GPU instance. Ratios over time cover the time since the last call."""
        with self._sampling:
            return self._samples.read(dict(self._xids))

    def processes(self, gpu: str) -> tuple[Process, ...]:
        """The processes that use a GPU."""
        handle = handle_of(gpu)
        with trying(f"list the processes of {gpu}"):
            return read_processes(handle)

    def wait(self, timeout_s: float) -> tuple[Event, ...]:
        """Events since the last call, as soon as there are any, or none after the timeout."""
        events = self._events.wait(timeout_s)
        for event in events:
            if event.kind == "xid":
                self._xids[event.uuid, event.instance] = event.code
        return events

    def create_gpu_instance(self, gpu: str, profile: str, start: int) -> int:
        """Make a GPU instance at a memory slice; its id."""
        handle = handle_of(gpu)
        made = nvml_mig.create_gpu_instance(handle, gpu, self._inventory.cuts(gpu, handle), profile, start)
        self._xids.pop((gpu, made), None)
        return made

    def create_compute_instance(self, gpu: str, instance: int) -> int:
        """Make the compute instance that fills a GPU instance; its id."""
        return nvml_mig.create_compute_instance(handle_of(gpu), gpu, instance)

    def destroy_compute_instance(self, gpu: str, instance: int, compute: int) -> None:
        """Remove a compute instance that nobody uses."""
        nvml_mig.destroy_compute_instance(handle_of(gpu), gpu, instance, compute)

    def destroy_gpu_instance(self, gpu: str, instance: int) -> None:
        """Remove a GPU instance without compute instances."""
        nvml_mig.destroy_gpu_instance(handle_of(gpu), gpu, instance)

    def set_mig_mode(self, gpu: str, on: bool) -> bool:
        """Switch MIG mode; whether it is effective at once, without a reset of the GPU."""
        return nvml_mig.set_mode(handle_of(gpu), gpu, on)

    def set_exclusive(self, gpu: str, on: bool) -> None:
        """Let one process at a time (an MPS server) use the GPU, or any number."""
        handle = handle_of(gpu)
        mode = pynvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS if on else pynvml.NVML_COMPUTEMODE_DEFAULT
        with trying(f"set the compute mode of {gpu}"):
            pynvml.nvmlDeviceSetComputeMode(handle, mode)

    def recovery_action(self, gpu: str) -> int | None:
        """What would repair the GPU, 0 for nothing (NVML field 230); None where the driver does not know."""
        handle = handle_of(gpu)
        what = f"ask what would repair {gpu}"
        with trying(what):
            (field,) = read_fields(handle, [pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION])
        if field.code in (pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_INVALID_ARGUMENT):
            return None
        if field.code:
            raise backend_error(field.code, what)
        return int(field.value)

    def close(self) -> None:
        """Give the driver back what was taken; while a call hangs in it, it keeps that."""
        if self._closed or not self._events.close() or not self._sampling.acquire(timeout=_CLOSE_WITHIN_S):
            return
        self._closed = True
        try:
            with trying("close NVML"):
                self._samples.close()
                pynvml.nvmlShutdown()
        finally:
            self._sampling.release()
