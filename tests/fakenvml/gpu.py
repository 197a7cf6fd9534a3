"""A GPU that the fake NVML shows, as plain values.

A reading that is None does not exist on the GPU, and its NVML call answers NOT_SUPPORTED. Rates that NVML
also shows as a total (power and energy, NVLink traffic, GPM counters) are meters: changing a rate keeps what
was counted before, so totals and averages over time are exact.
Source: NVML API reference for the meaning and unit of each reading.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

Switch = Literal["unsupported", "off", "on"]
ProcessKind = Literal["compute", "graphics", "mps"]


class Meter(msgspec.Struct, frozen=True):
    """A rate in units per second since `since_s`, and the units counted before that."""

    rate: float = 0.0
    total: float = 0.0
    since_s: float = 0.0

    def at(self, now_s: float) -> float:
        """Units counted until a time."""
        return self.total + self.rate * max(0.0, now_s - self.since_s)

    def turned(self, rate: float, now_s: float) -> Meter:
        """The meter that runs at another rate from now on."""
        return Meter(rate, self.at(now_s), now_s)


class FakeProfile(msgspec.Struct, frozen=True):
    """A GPU instance profile: `enum` is NVML's argument, `id` what it calls the profile afterwards.

    `compute` and `size` are compute and memory slices, `limit` is how many may exist, `media` whether it
    takes the media engines; memory in MiB, the rest counts of engines.
    """

    enum: int
    id: int
    name: str
    compute: int
    size: int
    limit: int
    media: bool
    memory_mib: int
    multiprocessors: int
    copy: int
    decoder: int
    encoder: int
    jpeg: int
    ofa: int
    starts: tuple[int, ...]


class FakeCompute(msgspec.Struct, frozen=True):
    """A compute instance of `slices` compute slices from slice `start` of its GPU instance."""

    id: int
    slices: int
    start: int
    birth: int
    uuid: str


class FakeInstance(msgspec.Struct, frozen=True):
    """A GPU instance at a memory slice. `birth` tells it from an earlier one with the same id."""

    id: int
    profile: int
    start: int
    birth: int
    compute: tuple[FakeCompute, ...] = ()


class FakeProcess(msgspec.Struct, frozen=True):
    """A process on the GPU; `instance` and `compute` are None outside MIG. `kind` is the list it appears in.

    Memory is None where the driver does not say; the rest is utilisation in percent.
    """

    pid: int
    memory_mib: int | None = 0
    instance: int | None = None
    compute: int | None = None
    kind: ProcessKind = "compute"
    sm: int = 0
    memory: int = 0
    encoder: int = 0
    decoder: int = 0


class RetiredPage(msgspec.Struct, frozen=True):
    """A retired page; `cause` is NVML's (0 single bit errors, 1 a double bit error), time in microseconds."""

    cause: int
    address: int
    time_us: int = 0


class Fabric(msgspec.Struct, frozen=True):
    """NVLink fabric: `state` 3 is completed, `status` an NVML return code."""

    cluster: str
    clique: int
    state: int = 3
    status: int = 0
    health_mask: int = 0
    health_summary: int = 1


class FakeGPU(msgspec.Struct, frozen=True):
    """One GPU. Memory in MiB, power in mW, clocks in MHz, PCIe rates in KB/s, degrees Celsius.

    `mig_reset`: a change of MIG mode waits for a reset. `mig_query`: profiles are shown while MIG is off.
    `used_mib` is memory in use beside that of `processes`. `links` holds the PCI bus id that each NVLink ends
    at, empty for an inactive link. `fields` answers field values by (id, scope) before the built-in ones.
    """

    uuid: str
    name: str
    pci_bus_id: str
    pci_device: int
    capability: tuple[int, int]
    architecture: int
    memory_mib: int
    pci_subsystem: int = 0
    minor: int = 0
    serial: str = ""
    numa: int = -1
    brand: int = 14
    vbios: str = "96.00.00.00.01"
    reserved_mib: int = 0
    used_mib: int = 0
    compute_mode: int = 0
    lost: bool = False
    recovery_action: int | None = 0
    mig: Switch = "unsupported"
    mig_pending: Switch = "unsupported"
    mig_reset: bool = False
    mig_query: bool = False
    gpm: bool = False

    util_gpu: int | None = 0
    util_memory: int | None = 0
    util_encoder: int | None = 0
    util_decoder: int | None = 0
    util_jpeg: int | None = 0
    util_ofa: int | None = 0
    temperature: int | None = 35
    temperature_memory: int | None = 40
    threshold_shutdown: int | None = 92
    threshold_slowdown: int | None = 89
    threshold_memory: int | None = 95
    threshold_gpu: int | None = 87
    power_limit: int | None = 700_000
    clock_graphics: int | None = 345
    clock_sm: int | None = 345
    clock_memory: int | None = 2619
    clock_video: int | None = 765
    clock_max_graphics: int | None = 1980
    clock_max_sm: int | None = 1980
    clock_max_memory: int | None = 2619
    clock_max_video: int | None = 1545
    pcie_generation: int | None = 5
    pcie_width: int | None = 16
    pcie_max_generation: int | None = 5
    pcie_max_width: int | None = 16
    pcie_replays: int | None = 0
    pcie_tx: int | None = 0
    pcie_rx: int | None = 0
    ecc: Switch = "on"
    ecc_pending: Switch = "on"
    ecc_single_volatile: int = 0
    ecc_double_volatile: int = 0
    ecc_single_aggregate: int = 0
    ecc_double_aggregate: int = 0
    remapped_correctable: int | None = 0
    remapped_uncorrectable: int | None = 0
    remapped_pending: bool = False
    remapped_failure: bool = False
    retired_pending: bool | None = None
    clock_event_reasons: int | None = 1
    nvlink_version: int = 0

    power: Meter | None = Meter(70_000)
    nvlink_tx: Meter = Meter()
    nvlink_rx: Meter = Meter()
    links: tuple[str, ...] = ()
    fabric: Fabric | None = None
    profiles: tuple[FakeProfile, ...] = ()
    instances: tuple[FakeInstance, ...] = ()
    processes: tuple[FakeProcess, ...] = ()
    retired: tuple[RetiredPage, ...] | None = None
    violations: Mapping[int, int] = {}
    gpm_rates: Mapping[tuple[int | None, int], Meter] = {}
    fields: Mapping[tuple[int, int], int | float] = {}

    def profile(self, name: str) -> FakeProfile:
        """The profile of a name such as 1g.10gb; raises KeyError."""
        return {profile.name: profile for profile in self.profiles}[name]

    def profile_of(self, instance: FakeInstance) -> FakeProfile:
        """The profile of an instance."""
        return next(profile for profile in self.profiles if profile.id == instance.profile)
