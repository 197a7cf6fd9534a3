"""What happens to simulated GPUs, and when: a timeline is a list of steps, each at a time.

Times are seconds since the backend began. A GPU is named by its index and a GPU instance by the id that the
driver gives it; without an instance a step is about the whole GPU. A file has one key:

    steps:
    - {at: 0,  do: load, gpu: 0, util: 0.8, memory: 0.5}
    - {at: 20, do: xid, gpu: 0, code: 79}
    - {at: 20, do: lost, gpu: 0}
    - {at: 60, do: reset, gpu: 0}
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import yaml
from msgspec import Meta

from gpufleet.devices.backend import REASONS
from gpufleet.fleet.errors import GpufleetError

Ratio = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(ge=0)]
Call = Literal[
    "all",
    "inventory",
    "links",
    "sample",
    "processes",
    "wait",
    "create_gpu_instance",
    "create_compute_instance",
    "destroy_compute_instance",
    "destroy_gpu_instance",
    "set_mig_mode",
    "set_exclusive",
    "recovery_action",
]
"""A method of the backend, or all of them."""

_HINT = "steps are `at` (seconds), `do` (load, xid, ecc, lost, reset, ...) and what the step takes"


class _Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="do", kw_only=True):
    at: Seconds


class _OnGPU(_Step, frozen=True, kw_only=True):
    gpu: Count


class SetLoad(_OnGPU, frozen=True, tag="load", kw_only=True):
    """A process keeps a GPU or GPU instance busy from now on; with neither util nor memory it ends.

    Both are parts (0..1) of the unit that it runs on. A step with the same `pid` on the same GPU replaces the
    earlier one; 0 stands for the unit's own number, so one load per unit needs none.
    """

    instance: Count | None = None
    util: Ratio = 0.0
    memory: Ratio = 0.0
    pid: Count = 0


class SetTemperature(_OnGPU, frozen=True, tag="temperature", kw_only=True):
    """The GPU is warmer than its load makes it, by degrees Celsius."""

    offset_c: float


class Throttle(_OnGPU, frozen=True, tag="throttle", kw_only=True):
    """Clocks are held down for reasons (NVML's clock event reasons, a bit mask); 0 ends it."""

    reasons: Count


class AddErrors(_OnGPU, frozen=True, tag="ecc", kw_only=True):
    """Memory errors are found: corrected, uncorrected, rows remapped for them, and replays on PCIe."""

    corrected: Count = 0
    uncorrected: Count = 0
    remapped_corrected: Count = 0
    remapped_uncorrected: Count = 0
    remap_failed: bool = False
    pcie_replays: Count = 0


class RaiseXid(_OnGPU, frozen=True, tag="xid", kw_only=True):
    """The driver reports an XID of the GPU or of an instance."""

    code: Annotated[int, Meta(gt=0)]
    instance: Count | None = None
    compute: Count | None = None


class SetRecovery(_OnGPU, frozen=True, tag="recovery", kw_only=True):
    """What would repair the GPU (NVML field 230), 0 for nothing."""

    action: Annotated[int, Meta(ge=0, le=7)]


class LoseGPU(_OnGPU, frozen=True, tag="lost", kw_only=True):
    """The GPU falls off the bus: it does not answer, and its processes die."""

    message: str = "the GPU has fallen off the bus"


class FindGPU(_OnGPU, frozen=True, tag="found", kw_only=True):
    """The GPU answers again, as it was."""


class ResetGPU(_OnGPU, frozen=True, tag="reset", kw_only=True):
    """The GPU is reset: it answers, without processes, instances, volatile errors and recovery action."""


class Hang(_Step, frozen=True, tag="hang", kw_only=True):
    """Calls that begin in the next seconds (of one GPU, where they name one) end only when these are over."""

    call: Call = "all"
    seconds: Seconds
    gpu: Count | None = None


class FailCall(_Step, frozen=True, tag="fail", kw_only=True):
    """The next calls (of one GPU, where they name one) fail with a reason of `backend.REASONS`."""

    call: Call
    reason: str = "DriverError"
    times: Annotated[int, Meta(ge=1)] = 1
    gpu: Count | None = None


GPUStep = (
    SetLoad | SetTemperature | Throttle | AddErrors | RaiseXid | SetRecovery | LoseGPU | FindGPU | ResetGPU
)
Step = GPUStep | Hang | FailCall


class Timeline(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Steps in the order of their times; those of one time in the order given."""

    steps: tuple[Step, ...] = ()

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.steps, key=lambda step: step.at))
        if ordered != self.steps:
            msgspec.structs.force_setattr(self, "steps", ordered)


NOTHING = Timeline()
"""The timeline in which nothing happens."""


def parse_timeline(text: str, source: str, gpus: int | None = None) -> Timeline:
    """The timeline of a YAML (or JSON) document from `source`, which is only named in messages.

    With `gpus`, steps may only name that many GPUs. Raises GpufleetError: InvalidYaml, InvalidTimeline.
    """
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        what = str(error).replace("\n", " ")
        raise GpufleetError(reason="InvalidYaml", message=f"{source}: {what}") from None
    try:
        timeline = msgspec.convert({} if data is None else data, Timeline)
    except msgspec.ValidationError as error:
        raise _invalid(source, str(error)) from None
    for step in timeline.steps:
        if gpus is not None and step.gpu is not None and step.gpu >= gpus:
            raise _invalid(source, f"there is no GPU {step.gpu} (at {step.at:g} s), the node has {gpus}")
        if isinstance(step, FailCall) and step.reason not in REASONS:
            raise _invalid(
                source, f"there is no reason {step.reason!r} (at {step.at:g} s), known: {', '.join(REASONS)}"
            )
    return timeline


def _invalid(source: str, what: str) -> GpufleetError:
    return GpufleetError(reason="InvalidTimeline", message=f"{source}: {what}", hint=_HINT)
