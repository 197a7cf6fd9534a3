"""The MIG manager's hands: carry out a change step by step, and put everything back when one step fails.

First it is made sure that the GPUs are as they were planned and that nothing which goes is in use; only then
the first step is taken, and before each destructive one it is asked again. When a step fails, the way back is
planned like any other change, with what was there before as its target: from the inventory, around what has
come into use since, and so that no GPU instance without a compute instance is left. Nothing is written down:
after a crash between any two calls the next change, planned from the inventory, finishes the work.

Calls block as long as the driver does, so all this runs on a thread of the caller that nothing waits for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, assert_never

import msgspec

from gpufleet.devices.backend import Backend, BackendError
from gpufleet.devices.inventory import GPU, Inventory
from gpufleet.devices.mig_changes import (
    CreateCompute,
    CreateInstance,
    DestroyCompute,
    DestroyInstance,
    MigChange,
    Step,
    SwitchMode,
    plan_change,
    used,
    way_back,
)
from gpufleet.fleet.mig import Placement
from gpufleet.fleet.reasons import Reason

RETURNS = 3
"""How often the way back is tried when the driver refuses that too."""

Status = Literal["done", "blocked", "failed", "reset-required"]
StillFree = Callable[[str], bool]
"""Whether no pod holds a MIG device or GPU (uuid) now."""


class Outcome(msgspec.Struct, frozen=True):
    """How it ended. `blocked`: something that may pass stood in the way (an instance in use, a change by
    somebody else); `failed`: the driver refused; `reset-required`: the modes are switched and wait for a
    reset. After `blocked` and `failed` the GPUs are as before if `restored`; else the reasons say so.
    """

    status: Status
    reasons: tuple[Reason, ...] = ()
    restored: bool = True


def carry_out(backend: Backend, change: MigChange, still_free: StillFree) -> Outcome:
    """Carry out a change; what the driver refuses is an outcome. Whatever else is raised, by `still_free`, is
    like a crash: the next change finishes the work.
    """
    if change.blocked:
        return Outcome("blocked", change.blocked)
    if change.done:
        return Outcome("done")
    work = _Work(backend, still_free)
    begun = False
    try:
        work.check(change)
        begun = True
        waiting = [step for step in change.switching if not work.take(step)]
        if waiting:
            return Outcome("reset-required", tuple(_waits(step) for step in waiting))
        for step in change.cutting:
            work.take(step)
    except _StoppedError as stopped:
        return _ended("blocked", stopped.reason, work.restore(change) if begun else ())
    except BackendError as error:
        reason = Reason("MigCallFailed", str(error))
        status: Status = "blocked" if error.reason == "GpuInUse" else "failed"
        return _ended(status, reason, work.restore(change) if begun else ())
    return Outcome("done", change.reasons)


def _ended(status: Status, reason: Reason, left: Sequence[GPU]) -> Outcome:
    if not left:
        return Outcome(status, (reason,))
    names = ", ".join(f"GPU {gpu.index}" for gpu in left)
    text = f"{names} could not be made as before"
    return Outcome(status, (reason, Reason("MigNotRestored", text, names)), restored=False)


def _waits(step: Step) -> Reason:
    text = f"MIG mode of {step.gpu} is switched, which takes effect when the GPU is reset"
    return Reason("MigResetRequired", text, step.gpu)


class _StoppedError(Exception):
    """A step is not taken, for it would harm somebody or is out of date."""

    def __init__(self, code: str, text: str, subject: str) -> None:
        super().__init__(text)
        self.reason = Reason(code, text, subject)


class _Work:
    """A change under way, with the ids of the GPU instances that it has made."""

    def __init__(self, backend: Backend, still_free: StillFree) -> None:
        self._backend = backend
        self._still_free = still_free
        self._made: dict[tuple[str, Placement], int] = {}

    def check(self, change: MigChange) -> None:
        """Raises _StoppedError unless the GPUs are as planned and what goes is free; raises BackendError."""
        inventory = self._backend.inventory()
        for planned in change.planned:
            now = inventory.gpu(planned.uuid)
            if now is None or _cut(now) != _cut(planned):
                text = f"GPU {planned.index} was changed by somebody else after the plan was made"
                raise _StoppedError("MigLayoutChanged", text, f"GPU {planned.index}")
        for step in change.steps:
            self._ask(step)

    def take(self, step: Step) -> bool:
        """Take a step; False for a switch that waits for a reset. Raises _StoppedError, BackendError."""
        self._ask(step)
        match step:
            case SwitchMode():
                return self._backend.set_mig_mode(step.gpu, step.on)
            case DestroyCompute():
                self._backend.destroy_compute_instance(step.gpu, step.instance, step.compute)
            case DestroyInstance():
                self._backend.destroy_gpu_instance(step.gpu, step.instance)
            case CreateInstance():
                made = self._backend.create_gpu_instance(
                    step.gpu, step.placement.profile, step.placement.start
                )
                self._made[step.gpu, step.placement] = made
            case CreateCompute():
                self._backend.create_compute_instance(step.gpu, self._instance(step))
            case _:
                assert_never(step)
        return True

    def _instance(self, step: CreateCompute) -> int:
        """The id of the GPU instance to fill; raises BackendError when it could not be made."""
        made = self._made.pop((step.gpu, step.placement), None) if step.instance is None else step.instance
        if made is None:
            raise BackendError(reason="NotFound", message=f"{step.placement.text} of {step.gpu} was not made")
        return made

    def _ask(self, step: Step) -> None:
        """Raises _StoppedError when what a step takes away is in use; raises BackendError."""
        match step:
            case SwitchMode(cancels=False):
                if self._backend.processes(step.gpu) or not self._still_free(step.gpu):
                    text = f"{step.gpu} is in use, so its MIG mode is not switched"
                    raise _StoppedError("MigGpuBusy", text, step.gpu)
            case DestroyCompute():
                self._ask_instance(step, (step.uuid,))
            case DestroyInstance():
                self._ask_instance(step, step.uuids)

    def _ask_instance(self, step: DestroyCompute | DestroyInstance, uuids: Iterable[str]) -> None:
        busy = any(one.instance == step.instance for one in self._backend.processes(step.gpu))
        if busy or not all(self._still_free(uuid) for uuid in uuids if uuid):
            text = f"{step.placement.text} of {step.gpu} has come into use"
            raise _StoppedError("MigInstanceBusy", text, step.gpu)

    def restore(self, change: MigChange) -> tuple[GPU, ...]:
        """Make the GPUs as they were before a change; those that are not, at least without orphans."""
        switched = frozenset(step.gpu for step in change.switching if isinstance(step, SwitchMode))
        left = change.planned
        for _ in range(RETURNS):
            left = self._round(left, switched, tidy=False)
        rest = left
        for _ in range(RETURNS):
            rest = self._round(rest, switched, tidy=True)
        return left

    def _round(self, gpus: tuple[GPU, ...], switched: frozenset[str], *, tidy: bool) -> tuple[GPU, ...]:
        """Try once to make GPUs as they were, or `tidy`: to rid them of orphans; those where it failed."""
        if not gpus:
            return ()
        try:
            inventory = self._backend.inventory()
        except BackendError:
            return gpus
        return tuple(gpu for gpu in gpus if not self._return(gpu, inventory, switched, tidy=tidy))

    def _return(self, before: GPU, inventory: Inventory, switched: frozenset[str], *, tidy: bool) -> bool:
        now = inventory.gpu(before.uuid)
        if now is None:
            return False
        try:
            busy = self._busy(now)
        except BackendError:
            return False
        target = way_back(now if tidy else before, now, busy)
        back = plan_change(
            inventory, {now.uuid: target}, busy=busy, may_switch=now.uuid in switched and not tidy
        )
        taken = [self._try(step) for step in back.steps]
        there = {one.placement for one in before.instances if one.whole}
        return not back.blocked and all(taken) and (tidy or there <= set(back.layouts[now.uuid]))

    def _busy(self, gpu: GPU) -> frozenset[str]:
        held = {one.uuid for part in gpu.instances for one in part.compute if one.uuid}
        return used(gpu, self._backend.processes(gpu.uuid)) | {
            uuid for uuid in held if not self._still_free(uuid)
        }

    def _try(self, step: Step) -> bool:
        """Take a step of the way back; others may still be possible when it is not."""
        try:
            self.take(step)
        except (BackendError, _StoppedError):
            return False
        return True


def _cut(gpu: GPU) -> tuple[object, ...]:
    """What a plan for a GPU depends on."""
    return gpu.mig, gpu.mig_pending, gpu.geometry, gpu.instances
