"""One node through both backends: the simulated one, and the real one on a fake NVML that is told the same.

A step of a timeline happens to both. What the simulated sensors say is mirrored into the fake's readings, so
that the samples of both agree exactly if the real backend asks for the right things in the right units.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial, singledispatch

from msgspec.structs import replace
from tests.fakenvml.gpu import FakeGPU, FakeProcess, Meter
from tests.fakenvml.machine import FakeMachine
from tests.node.nvml_nodes import CLOCK_S, NvmlNode

from gpufleet.devices.backend import Sample
from gpufleet.devices.clocks import ManualClock
from gpufleet.devices.inventory import ComputeInstance, GPUInstance, Inventory
from gpufleet.devices.nvml_gpm import _METRICS
from gpufleet.devices.simulated_backend import SimulatedBackend
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

GONE = "GPU is lost"
"""What NVML says of a lost GPU."""


class Pair:
    """`simulated` and `nvml` are two backends of the same GPUs, and `clock` is the time of both."""

    def __init__(self, node: NvmlNode, product: Product, inventory: Inventory) -> None:
        self.node = node
        self.product = product
        self.clock = ManualClock()
        node.show(product, inventory)
        node.change(lambda machine: replace(machine, clock_s=CLOCK_S))
        self.simulated = SimulatedBackend(product, inventory, self.clock)
        self.nvml = node.backend(self.clock.now)
        self.nvml.wait(0)

    def uuid(self, index: int) -> str:
        """The uuid of a GPU."""
        return self.node.machine.gpus[index].uuid

    def play(self, *steps: GPUStep) -> None:
        """Let steps happen now to both."""
        self.simulated.play([replace(step, at=self.clock.now()) for step in steps])
        for step in steps:
            self.node.change(partial(happen, step))

    def pass_time(self, seconds: float) -> None:
        """Move both clocks on."""
        self.clock.advance(seconds)
        now = CLOCK_S + self.clock.now()
        self.node.change(lambda machine: replace(machine, clock_s=now))

    def samples(self, seconds: float) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
        """What both say of the next seconds, the simulated one first."""
        before = CLOCK_S + self.clock.now()
        self.pass_time(seconds)
        simulated = self.simulated.sample()
        self.node.change(lambda machine: mirrored(machine, simulated, before))
        return simulated, self.nvml.sample()


def unnamed(inventory: Inventory) -> Inventory:
    """The inventory in which MIG devices are named by their place: their uuids are each driver's own."""
    gpus = []
    for gpu in inventory.gpus:
        instances = tuple(_unnamed(gpu.uuid, one) for one in gpu.instances)
        gpus.append(replace(gpu, instances=instances))
    return replace(inventory, gpus=tuple(gpus))


def _unnamed(gpu: str, instance: GPUInstance) -> GPUInstance:
    def named(one: ComputeInstance) -> ComputeInstance:
        assert one.uuid.startswith("MIG-")
        return replace(one, uuid=f"MIG-of-{gpu}-{instance.id}-{one.id}")

    return replace(instance, compute=tuple(named(one) for one in instance.compute))


@singledispatch
def happen(step: GPUStep, machine: FakeMachine) -> FakeMachine:
    """The machine after a step; what a step changes of the sensors alone is mirrored."""
    raise TypeError(type(step))


@happen.register(SetTemperature)
@happen.register(Throttle)
def _(step: SetTemperature | Throttle, machine: FakeMachine) -> FakeMachine:
    return machine


@happen.register
def _(step: SetLoad, machine: FakeMachine) -> FakeMachine:
    machine = machine.kill(step.pid)
    if not (step.util or step.memory):
        return machine
    gpu = machine.gpus[step.gpu]
    if step.instance is None:
        return machine.process(step.gpu, FakeProcess(step.pid, round(step.memory * gpu.memory_mib)))
    profile = next(gpu.profile_of(one) for one in gpu.instances if one.id == step.instance)
    memory = round(step.memory * profile.memory_mib)
    return machine.process(step.gpu, FakeProcess(step.pid, memory, step.instance, 0))


@happen.register
def _(step: AddErrors, machine: FakeMachine) -> FakeMachine:
    return machine.ecc(step.gpu, single=step.corrected, double=step.uncorrected)


@happen.register
def _(step: RaiseXid, machine: FakeMachine) -> FakeMachine:
    return machine.xid(step.gpu, step.code, step.instance, step.compute)


@happen.register
def _(step: SetRecovery, machine: FakeMachine) -> FakeMachine:
    same = machine.gpus[step.gpu].recovery_action == step.action
    return machine if same else machine.recover(step.gpu, step.action)


@happen.register
def _(step: LoseGPU, machine: FakeMachine) -> FakeMachine:
    return machine.lose(step.gpu)


@happen.register
def _(step: FindGPU, machine: FakeMachine) -> FakeMachine:
    return machine.find(step.gpu)


@happen.register
def _(step: ResetGPU, machine: FakeMachine) -> FakeMachine:
    return machine.reset(step.gpu)


_READINGS = {
    # DCGM field                           reading of the fake           its units per one of DCGM's
    "DCGM_FI_DEV_SM_CLOCK":               ("clock_sm",                   1),
    "DCGM_FI_DEV_MEM_CLOCK":              ("clock_memory",               1),
    "DCGM_FI_DEV_CLOCK_THROTTLE_REASONS": ("clock_event_reasons",        1),
    "DCGM_FI_DEV_GPU_TEMP":               ("temperature",                1),
    "DCGM_FI_DEV_MEMORY_TEMP":            ("temperature_memory",         1),
    "DCGM_FI_DEV_POWER_MGMT_LIMIT":       ("power_limit",                1000),
    "DCGM_FI_DEV_PCIE_REPLAY_COUNTER":    ("pcie_replays",               1),
    "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS":   ("remapped_correctable",   1),
    "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS": ("remapped_uncorrectable", 1),
    "DCGM_FI_DEV_GPU_UTIL":               ("util_gpu",                   1),
    "DCGM_FI_DEV_MEM_COPY_UTIL":          ("util_memory",                1),
    "DCGM_FI_DEV_ENC_UTIL":               ("util_encoder",               1),
    "DCGM_FI_DEV_DEC_UTIL":               ("util_decoder",               1),
    "DCGM_FI_PROF_PCIE_TX_BYTES":         ("pcie_tx",                    0.001),
    "DCGM_FI_PROF_PCIE_RX_BYTES":         ("pcie_rx",                    0.001),
    "DCGM_FI_DEV_FB_RESERVED":            ("reserved_mib",               1),
}  # fmt: skip


def mirrored(machine: FakeMachine, samples: Iterable[Sample], before: float) -> FakeMachine:
    """The machine whose sensors say what samples do, which cover the time since `before` on its clock."""
    index = {gpu.uuid: number for number, gpu in enumerate(machine.gpus)}
    now = machine.clock_s or 0.0
    for sample in samples:
        number = index[sample.uuid]
        gpu = machine.gpus[number]
        if "*" not in sample.missing:
            rates = {**gpu.gpm_rates, **_rates(gpu, sample, now - before, now)}
            readings = {} if sample.instance is not None else _whole(gpu, sample, now - before, now)
            machine = machine.gpu(number, gpm_rates=rates, **readings)
    return machine


def _whole(gpu: FakeGPU, sample: Sample, seconds: float, now: float) -> Mapping[str, object]:
    values = sample.values
    found: dict[str, object] = {
        name: round(values[field] * factor) for field, (name, factor) in _READINGS.items() if field in values
    }
    energy = values["DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"]
    found["power"] = Meter(values["DCGM_FI_DEV_POWER_USAGE"] * 1000, energy, now)
    found["remapped_failure"] = bool(values.get("DCGM_FI_DEV_ROW_REMAP_FAILURE"))
    found["violations"] = {
        0: int(values["DCGM_FI_DEV_POWER_VIOLATION"]),
        1: int(values["DCGM_FI_DEV_THERMAL_VIOLATION"]),
    }
    for name, meter in (("TX", gpu.nvlink_tx), ("RX", gpu.nvlink_rx)):
        rate = values.get(f"DCGM_FI_PROF_NVLINK_{name}_BYTES", 0.0) / 1024
        found[f"nvlink_{name.lower()}"] = Meter(0.0, meter.total + rate * seconds, now)
    return found


def _rates(
    gpu: FakeGPU, sample: Sample, seconds: float, now: float
) -> Mapping[tuple[int | None, int], Meter]:
    """GPM's meters after a mean over some seconds."""
    found = {}
    for field, metric, factor in _METRICS:
        key = sample.instance, int(metric)
        before = gpu.gpm_rates.get(key, Meter()).total
        found[key] = Meter(0.0, before + sample.values.get(field, 0.0) / factor * seconds, now)
    return found
