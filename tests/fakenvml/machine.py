"""The machine that the fake NVML shows: plain values, and changes that make new values.

A reading that is None does not exist on the machine, and its NVML call answers NOT_SUPPORTED. Rates that NVML
also shows as a total (power and energy, NVLink traffic, GPM counters) are meters: changing a rate keeps what
was counted before, so totals and averages over time are exact. `MachineFile.update` passes the time.
Source: NVML API reference for the meaning and unit of each reading.
"""

from __future__ import annotations

import uuid as uuids
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec
from msgspec.structs import replace

EventKind = Literal["ecc-single", "ecc-double", "xid", "mig", "unavailable", "recovery"]
Switch = Literal["unsupported", "off", "on"]

_NAMESPACE = uuids.UUID("0c9f8c0e-2d5b-5b7e-8a3f-67707566616b")


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

    `compute` and `size` are compute and memory slices, `limit` is how many may exist, `media` whether it takes
    the media engines; memory in MiB, the rest counts of engines.
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
    kind: Literal["compute", "graphics", "mps"] = "compute"
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
    """One GPU. Memory in MiB, power in mW, clocks in MHz, PCIe rates in KB/s, temperatures in degrees Celsius.

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


class FakeEvent(msgspec.Struct, frozen=True):
    """An event; numbers grow. `data` is the XID or the recovery action; ids are None for the whole GPU."""

    number: int
    gpu: int
    kind: EventKind
    data: int = 0
    instance: int | None = None
    compute: int | None = None


class Hang(msgspec.Struct, frozen=True):
    """Calls of functions that match `pattern` (`*` is any text), on one GPU or all, take this long."""

    number: int
    pattern: str
    seconds: float
    gpu: int | None = None


class Failure(msgspec.Struct, frozen=True):
    """After `after` good calls in a process, `times` calls (None: all) return `code` and do nothing."""

    number: int
    pattern: str
    code: int
    gpu: int | None = None
    after: int = 0
    times: int | None = None


class Crash(msgspec.Struct, frozen=True):
    """The process that makes the `call`-th MIG write since it saw this rule dies; the rule goes with it."""

    number: int
    call: int
    when: Literal["before", "after"]


class FakeMachine(msgspec.Struct, frozen=True):
    """A machine with GPUs. `clock_s` stops its clock, None is real time.

    `levels` is NVML's topology level per pair of GPU indexes (lower first), `level` that of all other pairs.
    `p2p` overrides P2P status per (gpu, gpu, capability index). `root` is whether callers may write.
    """

    gpus: tuple[FakeGPU, ...] = ()
    driver: str = "570.133.20"
    nvml: str = "12.570.133.20"
    cuda: tuple[int, int] = (12, 8)
    root: bool = True
    loaded: bool = True
    clock_s: float | None = None
    births: int = 0
    level: int = 50
    levels: Mapping[tuple[int, int], int] = {}
    p2p: Mapping[tuple[int, int, int], int] = {}
    names: Mapping[int, str] = {}
    events: tuple[FakeEvent, ...] = ()
    rules: tuple[Hang | Failure | Crash, ...] = ()
    rule_count: int = 0

    @classmethod
    def load(cls, path: Path) -> FakeMachine:
        """The machine in a state file; raises ValueError for a line that it cannot read."""
        from tests.fakenvml import statefile

        return statefile.read(path)

    def write(self, path: Path) -> None:
        """Make this the machine in a state file, at once for every process."""
        from tests.fakenvml import statefile

        statefile.MachineFile(path).update(lambda _: self)

    def gpu(self, index: int, /, **readings: object) -> FakeMachine:
        """With other readings of a GPU, by the names of `FakeGPU`'s fields."""
        gpus = list(self.gpus)
        gpus[index] = replace(gpus[index], **readings)
        return replace(self, gpus=tuple(gpus))

    def lose(self, index: int) -> FakeMachine:
        """With a GPU fallen off the bus: every call on it answers GPU_IS_LOST."""
        return self.gpu(index, lost=True)

    def reset(self, index: int) -> FakeMachine:
        """With a GPU reset: it is back, pending modes are in force, volatile counters, processes and
        (with a changed MIG mode) instances are gone.
        """
        gpu = self.gpus[index]
        changed = gpu.mig != gpu.mig_pending
        return self.gpu(
            index,
            lost=False,
            recovery_action=None if gpu.recovery_action is None else 0,
            mig=gpu.mig_pending,
            ecc=gpu.ecc_pending,
            ecc_single_volatile=0,
            ecc_double_volatile=0,
            remapped_pending=False,
            processes=(),
            instances=() if changed else gpu.instances,
        )

    def power(self, index: int, milliwatts: float, now_s: float) -> FakeMachine:
        """With a GPU's power changed at a time; its energy counter keeps what it counted."""
        meter = self.gpus[index].power or Meter()
        return self.gpu(index, power=meter.turned(milliwatts, now_s))

    def nvlink(self, index: int, tx_kib: float, rx_kib: float, now_s: float) -> FakeMachine:
        """With a GPU's NVLink traffic (KiB/s) changed at a time."""
        gpu = self.gpus[index]
        tx, rx = gpu.nvlink_tx.turned(tx_kib, now_s), gpu.nvlink_rx.turned(rx_kib, now_s)
        return self.gpu(index, nvlink_tx=tx, nvlink_rx=rx)

    def load_gpm(
        self, index: int, values: Mapping[int, float], now_s: float, *, instance: int | None = None
    ) -> FakeMachine:
        """With GPM metrics (percent, MiB/s) of a GPU or GPU instance changed at a time, by metric id."""
        rates = dict(self.gpus[index].gpm_rates)
        for metric, rate in values.items():
            rates[instance, metric] = rates.get((instance, metric), Meter()).turned(rate, now_s)
        return self.gpu(index, gpm_rates=rates)

    def process(self, index: int, process: FakeProcess, name: str = "") -> FakeMachine:
        """With one more process on a GPU."""
        changed = self.gpu(index, processes=(*self.gpus[index].processes, process))
        return replace(changed, names={**self.names, process.pid: name}) if name else changed

    def kill(self, pid: int) -> FakeMachine:
        """Without a process on any GPU."""
        machine = replace(self, names={one: name for one, name in self.names.items() if one != pid})
        for index, gpu in enumerate(self.gpus):
            machine = machine.gpu(index, processes=tuple(p for p in gpu.processes if p.pid != pid))
        return machine

    def event(
        self, index: int, kind: EventKind, data: int = 0, instance: int | None = None, compute: int | None = None
    ) -> FakeMachine:
        """With one more event, which waiting event sets receive."""
        number = self.events[-1].number + 1 if self.events else 1
        return replace(self, events=(*self.events, FakeEvent(number, index, kind, data, instance, compute)))

    def xid(
        self, index: int, code: int, instance: int | None = None, compute: int | None = None
    ) -> FakeMachine:
        """With one more XID event."""
        return self.event(index, "xid", code, instance, compute)

    def recover(self, index: int, action: int) -> FakeMachine:
        """With a recovery action asked for: field 230 and its event."""
        return self.gpu(index, recovery_action=action).event(index, "recovery", action)

    def ecc(self, index: int, *, single: int = 0, double: int = 0) -> FakeMachine:
        """With more ECC errors in both counters, and an event of each kind."""
        gpu = self.gpus[index]
        changed = self.gpu(
            index,
            ecc_single_volatile=gpu.ecc_single_volatile + single,
            ecc_single_aggregate=gpu.ecc_single_aggregate + single,
            ecc_double_volatile=gpu.ecc_double_volatile + double,
            ecc_double_aggregate=gpu.ecc_double_aggregate + double,
        )
        changed = changed.event(index, "ecc-single") if single else changed
        return changed.event(index, "ecc-double") if double else changed

    def hang(self, pattern: str, seconds: float, gpu: int | None = None) -> FakeMachine:
        """With calls that hang; removing the rule (`calm`) frees those that hang already."""
        number = self.rule_count + 1
        return replace(self, rules=(*self.rules, Hang(number, pattern, seconds, gpu)), rule_count=number)

    def fail(
        self, pattern: str, code: int, *, gpu: int | None = None, after: int = 0, times: int | None = None
    ) -> FakeMachine:
        """With calls that fail with an NVML return code."""
        number = self.rule_count + 1
        rule = Failure(number, pattern, code, gpu, after, times)
        return replace(self, rules=(*self.rules, rule), rule_count=number)

    def crash(self, call: int, when: Literal["before", "after"] = "after") -> FakeMachine:
        """With a process that dies at its `call`-th MIG write (1 is the next), before or after the effect."""
        number = self.rule_count + 1
        return replace(self, rules=(*self.rules, Crash(number, call, when)), rule_count=number)

    def calm(self) -> FakeMachine:
        """Without calls that hang, fail or crash."""
        return replace(self, rules=())

    def cut(
        self, index: int, profile: str, start: int, *, compute: tuple[int, ...] | None = None
    ) -> FakeMachine:
        """With a GPU instance and compute instances of these slices in it (None: one that fills it).

        Raises ValueError where MIG is off, or the place is not one of the profile's or is taken.
        """
        gpu = self.gpus[index]
        wanted = gpu.profile(profile)
        if gpu.mig != "on" or start not in wanted.starts:
            raise ValueError(f"{profile} cannot lie at {start} while MIG is {gpu.mig}")
        for other in gpu.instances:
            size = gpu.profile_of(other).size
            if start < other.start + size and other.start < start + wanted.size:
                raise ValueError(f"{profile} at {start} overlaps instance {other.id}")
        slots = max(one.size for one in gpu.profiles)
        first, taken = slots // wanted.size - 1, {one.id for one in gpu.instances}
        ident = next(one for one in range(first, 2 * first + 1) if one not in taken)
        birth, offset, parts = self.births + 1, 0, []
        for number, slices in enumerate((wanted.compute,) if compute is None else compute):
            own = birth + 1 + number
            uuid = f"MIG-{uuids.uuid5(_NAMESPACE, f'{gpu.uuid}/{ident}/{number}/{own}')}"
            parts.append(FakeCompute(number, slices, offset, own, uuid))
            offset += slices
        if offset > wanted.compute:
            raise ValueError(f"{profile} has {wanted.compute} compute slices, not {offset}")
        instance = FakeInstance(ident, wanted.id, start, birth, tuple(parts))
        machine = self.gpu(index, instances=(*gpu.instances, instance))
        return replace(machine, births=birth + len(parts))
