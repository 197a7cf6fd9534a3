"""One simulated GPU as a value: what the steps of a timeline and the calls of a backend make of it.

Nothing changes between steps and calls: curves (`loads`) and counters are written down where they turn, and
read at any time from there. So the state at a time is a function of the steps until then, and going there in
one jump or in many gives the same value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import singledispatch

import msgspec
from msgspec.structs import replace

from gpufleet.devices import partitions
from gpufleet.devices.backend import Event, Process
from gpufleet.devices.inventory import GPU, GPUInstance
from gpufleet.devices.loads import Load, phase_of
from gpufleet.devices.timeline import (
    AddErrors,
    FindGPU,
    GPUStep,
    LoseGPU,
    RaiseXid,
    ResetGPU,
    SetLoad,
    SetRecovery,
    SetTemperature,
    Throttle,
)
from gpufleet.fleet.products import Product

_FIRST_PID = 4000
_PIDS_PER_GPU = 100
_THERMAL, _POWER = 0x60, 0x84


class Errors(msgspec.Struct, frozen=True):
    """Counts of memory errors: since the last reset and ever, rows remapped for them, replays on PCIe."""

    corrected: int = 0
    uncorrected: int = 0
    corrected_ever: int = 0
    uncorrected_ever: int = 0
    remapped_corrected: int = 0
    remapped_uncorrected: int = 0
    remap_failed: bool = False
    pcie_replays: int = 0


class Throttling(msgspec.Struct, frozen=True):
    """Clock event reasons since a time, and the seconds that heat and power held clocks down until then."""

    reasons: int = 0
    since: float = 0.0
    thermal_s: float = 0.0
    power_s: float = 0.0

    def at(self, now: float) -> Throttling:
        """The same reasons, written from a later time on."""
        elapsed = max(0.0, now - self.since)
        return Throttling(
            self.reasons,
            max(now, self.since),
            self.thermal_s + (elapsed if self.reasons & _THERMAL else 0.0),
            self.power_s + (elapsed if self.reasons & _POWER else 0.0),
        )


class SimulatedGPU(msgspec.Struct, frozen=True):
    """A GPU and everything that its driver could say of it.

    `scripted` are the loads in force by pid, whether or not their instance exists now; `whole` is the curve
    of the GPU and `parts` those of its GPU instances by id; `xids` is the last XID by GPU instance id (None:
    of the whole GPU).
    """

    gpu: GPU
    product: Product
    whole: Load = Load()
    parts: Mapping[int, Load] = {}
    scripted: Mapping[int, SetLoad] = {}
    errors: Errors = Errors()
    throttling: Throttling = Throttling()
    xids: Mapping[int | None, int] = {}
    temperature_offset_c: float = 0.0
    recovery: int = 0

    def shown(self) -> GPU:
        """The GPU as the driver lists it: of a lost one only index and uuid are sure."""
        return GPU(self.gpu.index, self.gpu.uuid, lost=self.gpu.lost) if self.gpu.lost else self.gpu

    def running(self) -> tuple[tuple[int, SetLoad], ...]:
        """The loads, with their pids, that have something to run on."""
        if self.gpu.lost:
            return ()
        whole = self.gpu.mig != "on"
        usable = {one.id for one in self.gpu.instances if one.compute}
        return tuple(
            (pid, load)
            for pid, load in sorted(self.scripted.items())
            if (whole if load.instance is None else load.instance in usable)
        )

    def processes(self) -> tuple[Process, ...]:
        """The processes on the GPU."""
        sizes = {one.id: one.compute[0].memory_mib for one in self.gpu.instances if one.compute}
        return tuple(
            Process(pid, round(load.memory * self.gpu.memory_mib))
            if load.instance is None
            else Process(pid, round(load.memory * sizes[load.instance]), load.instance, partitions.COMPUTE_ID)
            for pid, load in self.running()
        )

    def used_instances(self) -> frozenset[int]:
        """The GPU instances in which processes run."""
        return frozenset(load.instance for _, load in self.running() if load.instance is not None)

    def with_gpu(self, gpu: GPU, now: float) -> SimulatedGPU:
        """The state in which the GPU is cut, or listed, in another way from now on."""
        there = {None, *(one.id for one in gpu.instances)}
        xids = {unit: code for unit, code in self.xids.items() if unit in there}
        return replace(self, gpu=gpu, xids=xids).turned(now)

    def turned(self, now: float) -> SimulatedGPU:
        """The state whose curves go, from now on, where the running loads take them."""
        parts: dict[int, Load] = {}
        util = memory = 0.0
        running = [load for _, load in self.running()]
        for instance in self.gpu.instances:
            mine = [load for load in running if load.instance == instance.id]
            part_util, part_memory = _sum(mine)
            curve = self.parts.get(instance.id) or Load(since=now, phase=self.whole.phase)
            parts[instance.id] = curve.turned(now, part_util, part_memory)
            util += part_util * compute_share(self.gpu, instance)
            memory += part_memory * memory_share(self.gpu, instance)
        if not self.gpu.instances:
            util, memory = _sum(running)
        whole = self.whole.turned(now, min(1.0, util), min(1.0, memory))
        return replace(self, whole=whole, parts=parts)


def make_gpu(gpu: GPU, product: Product) -> SimulatedGPU:
    """An idle GPU at time 0."""
    return SimulatedGPU(gpu, product, Load(phase=phase_of(gpu.uuid))).turned(0.0)


def compute_share(gpu: GPU, instance: GPUInstance) -> float:
    """The part of the GPU's compute slices that an instance has."""
    return instance.slices / gpu.geometry.compute if gpu.geometry else 0.0


def memory_share(gpu: GPU, instance: GPUInstance) -> float:
    """The part of the GPU's memory slices that an instance has."""
    return instance.size / gpu.geometry.slots if gpu.geometry else 0.0


def advance(
    gpus: Sequence[SimulatedGPU], steps: Iterable[GPUStep]
) -> tuple[tuple[SimulatedGPU, ...], tuple[Event, ...]]:
    """What steps, in the order of their times, make of the GPUs of a node, and the events they raise.

    A step about a GPU that the node does not have does nothing.
    """
    state, events = {one.gpu.index: one for one in gpus}, list[Event]()
    for step in steps:
        if step.gpu in state:
            state[step.gpu], raised = _take(step, state[step.gpu])
            events.extend(raised)
    return tuple(state.values()), tuple(events)


Taken = tuple[SimulatedGPU, Sequence[Event]]


@singledispatch
def _take(step: GPUStep, gpu: SimulatedGPU) -> Taken:
    raise NotImplementedError(type(step))


@_take.register
def _(step: SetLoad, gpu: SimulatedGPU) -> Taken:
    unit = 0 if step.instance is None else step.instance + 1
    pid = step.pid or _FIRST_PID + _PIDS_PER_GPU * gpu.gpu.index + unit
    scripted = {other: load for other, load in gpu.scripted.items() if other != pid}
    if step.util or step.memory:
        scripted[pid] = step
    return replace(gpu, scripted=scripted).turned(step.at), ()


@_take.register
def _(step: SetTemperature, gpu: SimulatedGPU) -> Taken:
    return replace(gpu, temperature_offset_c=step.offset_c), ()


@_take.register
def _(step: Throttle, gpu: SimulatedGPU) -> Taken:
    return replace(gpu, throttling=replace(gpu.throttling.at(step.at), reasons=step.reasons)), ()


@_take.register
def _(step: AddErrors, gpu: SimulatedGPU) -> Taken:
    before, uuid = gpu.errors, gpu.gpu.uuid
    errors = Errors(
        before.corrected + step.corrected,
        before.uncorrected + step.uncorrected,
        before.corrected_ever + step.corrected,
        before.uncorrected_ever + step.uncorrected,
        before.remapped_corrected + step.remapped_corrected,
        before.remapped_uncorrected + step.remapped_uncorrected,
        before.remap_failed or step.remap_failed,
        before.pcie_replays + step.pcie_replays,
    )
    events = [Event("ecc-single", uuid)] if step.corrected else []
    events += [Event("ecc-double", uuid)] if step.uncorrected else []
    return replace(gpu, errors=errors), events


@_take.register
def _(step: RaiseXid, gpu: SimulatedGPU) -> Taken:
    xids = {**gpu.xids, step.instance: step.code}
    return replace(gpu, xids=xids), [Event("xid", gpu.gpu.uuid, step.code, step.instance, step.compute)]


@_take.register
def _(step: SetRecovery, gpu: SimulatedGPU) -> Taken:
    events = [Event("recovery", gpu.gpu.uuid, step.action)] if step.action != gpu.recovery else []
    return replace(gpu, recovery=step.action), events


@_take.register
def _(step: LoseGPU, gpu: SimulatedGPU) -> Taken:
    lost = replace(gpu, gpu=replace(gpu.gpu, lost=step.message), scripted={})
    return lost.turned(step.at), [Event("unavailable", gpu.gpu.uuid)]


@_take.register
def _(step: FindGPU, gpu: SimulatedGPU) -> Taken:
    return gpu.with_gpu(replace(gpu.gpu, lost=""), step.at), ()


@_take.register
def _(step: ResetGPU, gpu: SimulatedGPU) -> Taken:
    well = partitions.after_reset(replace(gpu.gpu, lost=""))
    errors = replace(gpu.errors, corrected=0, uncorrected=0)
    events = [Event("recovery", gpu.gpu.uuid, 0)] if gpu.recovery else []
    fresh = replace(gpu, scripted={}, errors=errors, recovery=0)
    return fresh.with_gpu(well, step.at), events


def _sum(loads: Iterable[SetLoad]) -> tuple[float, float]:
    util, memory = 0.0, 0.0
    for load in loads:
        util, memory = util + load.util, memory + load.memory
    return min(1.0, util), min(1.0, memory)
