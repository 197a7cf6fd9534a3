"""The machine that the fake NVML shows, what happens to it, and how its calls misbehave.

Everything is a value, and each change makes a new one; `MachineFile.update` puts it in force for every
process. Times are seconds since 1970 on the machine's clock.
"""

from __future__ import annotations

import uuid as uuids
from collections.abc import Mapping
from typing import Literal

import msgspec
from msgspec.structs import replace
from tests.fakenvml.gpu import FakeCompute, FakeGPU, FakeInstance, FakeProcess, Meter

EventKind = Literal["ecc-single", "ecc-double", "xid", "mig", "unavailable", "recovery"]

_NAMESPACE = uuids.UUID("0c9f8c0e-2d5b-5b7e-8a3f-67707566616b")


KEPT_EVENTS = 1000


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

    def gpu(self, index: int, /, **readings: object) -> FakeMachine:
        """With other readings of a GPU, by the names of `FakeGPU`'s fields."""
        gpus = list(self.gpus)
        gpus[index] = replace(gpus[index], **readings)
        return replace(self, gpus=tuple(gpus))

    def lose(self, index: int) -> FakeMachine:
        """With a GPU fallen off the bus: every call on it answers GPU_IS_LOST, its processes die, and the
        event comes first.
        """
        return self.gpu(index, lost=True, processes=()).event(index, "unavailable")

    def find(self, index: int) -> FakeMachine:
        """With a lost GPU back as it was."""
        return self.gpu(index, lost=False)

    def reset(self, index: int) -> FakeMachine:
        """With a GPU reset: it is back, pending modes are in force, volatile counters, processes, instances
        and the compute mode are gone, and the event tells when a recovery action is no longer asked for.
        """
        gpu = self.gpus[index]
        changed = self.gpu(
            index,
            lost=False,
            recovery_action=None if gpu.recovery_action is None else 0,
            mig=gpu.mig_pending,
            ecc=gpu.ecc_pending,
            ecc_single_volatile=0,
            ecc_double_volatile=0,
            remapped_pending=False,
            compute_mode=0,
            processes=(),
            instances=(),
        )
        return changed.event(index, "recovery", 0) if gpu.recovery_action else changed

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
        self,
        index: int,
        kind: EventKind,
        data: int = 0,
        instance: int | None = None,
        compute: int | None = None,
    ) -> FakeMachine:
        """With one more event, which waiting event sets receive; the last `KEPT_EVENTS` stay in the file."""
        number = self.events[-1].number + 1 if self.events else 1
        event = FakeEvent(number, index, kind, data, instance, compute)
        return replace(self, events=(*self.events[-KEPT_EVENTS + 1 :], event))

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
        width = 1 << (wanted.size - 1).bit_length()
        ident = max(one.size for one in gpu.profiles) // width - 1 + start // width
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
