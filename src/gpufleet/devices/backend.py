"""The interface to the GPUs of one node. `nvml` reads real ones, `simulated` a model; nothing else differs.

Calls block and may hang as long as a driver does: whoever must not wait calls from a thread of its own and
keeps the last answer. Every method may raise `BackendError`, whose reason is one of `REASONS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

import msgspec

from gpufleet.devices.inventory import Inventory
from gpufleet.fleet.errors import GpufleetError

REASONS = {
    "DriverNotLoaded": "there is no NVIDIA driver, or no NVML library",
    "GpuInUse": "a process or another client holds the GPU or the instance",
    "GpuLost": "the GPU has fallen off the bus or does not answer",
    "InsufficientResources": "no slices are free for the instance",
    "InvalidState": "the driver refuses this in the state that the GPU is in",
    "NoPermission": "this needs root",
    "NotFound": "no such GPU, instance or event",
    "NotSupported": "the GPU or the driver cannot do this",
    "ResetRequired": "the GPU must be reset first",
    "Timeout": "the driver took too long",
    "DriverError": "anything else that the driver reports",
}
"""Every reason of a `BackendError`."""


class BackendError(GpufleetError):
    """A call to the driver failed."""


class Link(msgspec.Struct, frozen=True):
    """How two GPUs reach each other: their nearest common ancestor on PCIe, and NVLinks between them."""

    pcie: Literal["board", "switch", "switches", "bridge", "cpu", "system"]
    nvlinks: int = 0


class Event(msgspec.Struct, frozen=True):
    """Something that the driver reported of a GPU; `instance` and `compute` ids are None for the whole GPU.

    `code` is the number of an XID, or the recovery action (NVML field 230).
    """

    kind: Literal["xid", "ecc-single", "ecc-double", "recovery", "unavailable"]
    uuid: str
    code: int = 0
    instance: int | None = None
    compute: int | None = None


class Process(msgspec.Struct, frozen=True):
    """A process on a GPU; the ids of its MIG instance are None on a whole one. Memory in MiB."""

    pid: int
    memory_mib: int
    instance: int | None = None
    compute: int | None = None


class Sample(msgspec.Struct, frozen=True):
    """Readings of one GPU (`instance` None) or GPU instance by the name of a DCGM field; what cannot be read
    is absent, and `missing` says why.
    """

    uuid: str
    instance: int | None
    values: Mapping[str, float]
    missing: Mapping[str, str] = {}


class Backend(Protocol):
    """The GPUs of one node. GPUs are named by uuid, instances by their ids in it."""

    def inventory(self) -> Inventory:
        """What the GPUs are now."""

    def links(self) -> Mapping[tuple[str, str], Link]:
        """How each pair of GPUs is linked; the uuids of a pair in the order of their indexes."""

    def sample(self) -> tuple[Sample, ...]:
        """Readings of every GPU and GPU instance. Ratios over time cover the time since the last call."""

    def processes(self, gpu: str) -> tuple[Process, ...]:
        """The processes that use a GPU."""

    def wait(self, timeout_s: float) -> tuple[Event, ...]:
        """Events since the last call, as soon as there are any, or none after the timeout."""

    def create_gpu_instance(self, gpu: str, profile: str, start: int) -> int:
        """Make a GPU instance at a memory slice; its id."""

    def create_compute_instance(self, gpu: str, instance: int) -> int:
        """Make the compute instance that fills a GPU instance; its id."""

    def destroy_compute_instance(self, gpu: str, instance: int, compute: int) -> None:
        """Remove a compute instance that nobody uses."""

    def destroy_gpu_instance(self, gpu: str, instance: int) -> None:
        """Remove a GPU instance without compute instances."""

    def set_mig_mode(self, gpu: str, on: bool) -> bool:
        """Switch MIG mode; whether it is effective at once, without a reset of the GPU."""

    def set_exclusive(self, gpu: str, on: bool) -> None:
        """Let one process at a time (an MPS server) use the GPU, or any number."""

    def recovery_action(self, gpu: str) -> int | None:
        """What would repair the GPU, 0 for nothing (NVML field 230); None where the driver does not know."""

    def close(self) -> None:
        """Give the driver back what was taken; nothing is called afterwards."""
