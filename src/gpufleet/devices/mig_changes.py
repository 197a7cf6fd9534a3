"""MIG changes: the steps that lead from how the GPUs of a node are cut to how they should be, or what blocks.

A target says whether MIG mode is on and either which profiles the GPU has, wherever they lie, or exactly
which instances. The layout is chosen by `mig_planning`: instances that are in use are never touched, and no
other layout destroys fewer idle ones. A GPU instance that no compute instance fills can be used by nobody:
such an orphan (an error of the driver or a crash between two calls leaves one) is completed where the target
wants an instance there and destroyed elsewhere. So a change made from the inventory alone also finishes what
an earlier one began, and needs no journal.

A change is one transaction: when one GPU is blocked, no GPU has steps. Switches of MIG mode come first, for
they are what a driver refuses most.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from gpufleet.devices.backend import Process
from gpufleet.devices.inventory import GPU, GPUInstance, Inventory
from gpufleet.devices.partitions import obstacle
from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.mig import Geometry, Placement, summary
from gpufleet.fleet.mig_planning import GPUCut, MigPlan, relayout
from gpufleet.fleet.reasons import Reason

_INSTANCE = re.compile(r"(?P<profile>[^@]+)@(?P<start>\d+)", re.ASCII)


class MigTarget(msgspec.Struct, frozen=True):
    """How a GPU should be: MIG mode on or off, and the instances: `profiles` wherever they lie, or exactly
    `placements` unless they are None.
    """

    on: bool
    profiles: tuple[str, ...] = ()
    placements: tuple[Placement, ...] | None = None


OFF = MigTarget(on=False)
"""MIG mode off."""


class SwitchMode(msgspec.Struct, frozen=True):
    """Switch MIG mode of a GPU; one that `cancels` only takes back a switch that waits for a reset."""

    gpu: str
    on: bool
    cancels: bool = False


class DestroyCompute(msgspec.Struct, frozen=True):
    """Remove a compute instance, the MIG device `uuid`."""

    gpu: str
    placement: Placement
    instance: int
    compute: int
    uuid: str


class DestroyInstance(msgspec.Struct, frozen=True):
    """Remove a GPU instance, whose compute instances (`uuids`) are gone by then."""

    gpu: str
    placement: Placement
    instance: int
    uuids: tuple[str, ...]


class CreateInstance(msgspec.Struct, frozen=True):
    """Make a GPU instance."""

    gpu: str
    placement: Placement


class CreateCompute(msgspec.Struct, frozen=True):
    """Make the compute instance that fills a GPU instance; `instance` is None for one that is made before."""

    gpu: str
    placement: Placement
    instance: int | None = None


Step = SwitchMode | DestroyCompute | DestroyInstance | CreateInstance | CreateCompute
"""One call to the driver."""


class MigChange(msgspec.Struct, frozen=True):
    """The steps, or why there are none: `blocked` has a reason for everything that stands in the way.

    `planned` are the GPUs of the targets as they were, `layouts` their instances afterwards by uuid (of a
    blocked change: as they are). The steps in `switching` come first, those in `cutting` are possible once
    the modes are effective. `reasons` say what a change that is not blocked does.
    """

    planned: tuple[GPU, ...] = ()
    switching: tuple[Step, ...] = ()
    cutting: tuple[Step, ...] = ()
    layouts: Mapping[str, tuple[Placement, ...]] = {}
    blocked: tuple[Reason, ...] = ()
    reasons: tuple[Reason, ...] = ()

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps in their order."""
        return self.switching + self.cutting

    @property
    def done(self) -> bool:
        """Whether everything is as it should be."""
        return not self.blocked and not self.steps


def exact_target(geometry: Geometry, instances: Iterable[str]) -> MigTarget:
    """The target with exactly these instances, each as `profile@start`.

    Raises GpufleetError: BadMigInstance, UnknownMigProfile.
    """
    return MigTarget(on=True, placements=tuple(sorted(_placement(geometry, one) for one in instances)))


def _placement(geometry: Geometry, text: str) -> Placement:
    match = _INSTANCE.fullmatch(text)
    if match is None:
        raise GpufleetError(
            reason="BadMigInstance",
            message=f"{text!r} is no MIG instance",
            hint="write profile and first memory slice, as 3g.40gb@4",
        )
    profile = geometry.profile(match["profile"])
    return Placement(int(match["start"]), profile.size, profile.name)


def used(gpu: GPU, processes: Iterable[Process]) -> frozenset[str]:
    """The uuids of what processes use: MIG devices, or the GPU for processes on the whole of it."""
    found: set[str] = set()
    for process in processes:
        if process.instance is None:
            found.add(gpu.uuid)
        for instance in gpu.instances:
            if instance.id == process.instance:
                found |= {one.uuid for one in instance.compute if process.compute in (None, one.id)}
    return frozenset(found)


def plan_change(
    inventory: Inventory, targets: Mapping[str, MigTarget], *, busy: frozenset[str], may_switch: bool
) -> MigChange:
    """The change that gives each GPU of `targets` (by uuid) its target; all other GPUs are left alone.

    `busy` are uuids of MIG devices and GPUs that pods hold or processes use (`used`); without `may_switch` no
    MIG mode is switched. Raises GpufleetError (UnknownMigProfile).
    """
    parts = [_Part(gpu, targets[gpu.uuid], busy, may_switch) for gpu in inventory.gpus if gpu.uuid in targets]
    known = {part.gpu.uuid for part in parts}
    blocked = [reason for part in parts for reason in part.blocked]
    blocked += [
        Reason("MigGpuLost", f"there is no GPU {uuid}", uuid) for uuid in targets if uuid not in known
    ]
    planned = tuple(part.gpu for part in parts)
    if blocked:
        layouts = {gpu.uuid: tuple(one.placement for one in gpu.instances) for gpu in planned}
        return MigChange(planned, layouts=layouts, blocked=tuple(blocked))
    return MigChange(
        planned,
        tuple(step for part in parts for step in part.switching),
        tuple(step for part in parts for step in part.cutting),
        {part.gpu.uuid: part.layout for part in parts},
        reasons=tuple(reason for part in parts for reason in part.reasons),
    )


def way_back(before: GPU, now: GPU, busy: frozenset[str]) -> MigTarget:
    """The target that makes a GPU as it was before a change that failed, around what is in use by now.

    Instances that nobody could use before (orphans) do not come back.
    """
    held = [one.placement for one in now.instances if _in_use(now, one, busy)]
    back = list(held)
    if now.geometry is not None:
        for one in before.instances:
            if one.whole and not obstacle(now.geometry, one.placement, back):
                back.append(one.placement)
    return MigTarget(on=before.mig == "on" or bool(held), placements=tuple(sorted(back)))


class _Part:
    """The share of one GPU in a change."""

    def __init__(self, gpu: GPU, target: MigTarget, busy: frozenset[str], may_switch: bool) -> None:
        self.gpu = gpu
        self._busy = busy
        self.switching: list[Step] = []
        self.cutting: list[Step] = []
        self.layout: tuple[Placement, ...] = ()
        self.reasons: list[Reason] = []
        self.blocked: list[Reason] = []
        forbidden = self._forbidden(target, may_switch)
        if forbidden is not None:
            self.blocked.append(forbidden)
        elif gpu.geometry is not None:
            self._plan(gpu.geometry, target, may_switch)

    def _forbidden(self, target: MigTarget, may_switch: bool) -> Reason | None:
        """What forbids any change of this GPU."""
        gpu = self.gpu
        if gpu.lost:
            return self._reason("MigGpuLost", f"GPU {gpu.index} does not answer: {gpu.lost}")
        if gpu.geometry is None:
            if not target.on and gpu.mig != "on":
                return None
            return self._reason("MigUnsupported", f"GPU {gpu.index} ({gpu.name}) cannot be cut by MIG")
        if target.on == (gpu.mig == "on"):
            return None
        mode = "on" if target.on else "off"
        if gpu.mig_pending:
            text = f"MIG mode of GPU {gpu.index} is to be {mode}, and will be once the GPU is reset"
            return self._reason("MigResetRequired", text)
        if not may_switch:
            text = (
                f"MIG mode of GPU {gpu.index} would have to be switched {mode}, which the pool does not allow"
            )
            return self._reason("MigModeSwitchNotAllowed", text)
        if gpu.uuid in self._busy:
            text = f"GPU {gpu.index} is in use, so its MIG mode cannot be switched {mode}"
            return self._reason("MigGpuBusy", text)
        return None

    def _plan(self, geometry: Geometry, target: MigTarget, may_switch: bool) -> None:
        wanted = self._wanted(geometry, target)
        if wanted is None:
            return
        destroyed, made = self._destroyed(wanted), self._made(wanted)
        if self.blocked:
            return
        self.layout = tuple(sorted(wanted))
        if target.on != (self.gpu.mig == "on"):
            self.switching = [*destroyed, SwitchMode(self.gpu.uuid, target.on)]
            self.cutting = made
        else:
            if self.gpu.mig_pending and may_switch:
                self.switching = [SwitchMode(self.gpu.uuid, target.on, cancels=True)]
            self.cutting = [*destroyed, *made]
        self._tell(destroyed, made)

    def _wanted(self, geometry: Geometry, target: MigTarget) -> frozenset[Placement] | None:
        """The layout to reach; None when there is none."""
        if not target.on:
            return frozenset()
        if target.placements is not None:
            if _legal(geometry, target.placements):
                return frozenset(target.placements)
            what = ", ".join(one.text for one in target.placements)
            self._block("MigDoesNotFit", f"GPU {self.gpu.index} cannot have {what} at once")
            return None
        found = _free_layout(geometry, self.gpu.instances, target.profiles, self._is_busy)
        if found.feasible:
            return frozenset(found.gpus[0].layout)
        for blocker in found.blocked_by:
            self._block_by(blocker.placement)
        if not found.blocked_by:
            text = (
                f"{summary(target.profiles)} does not fit on GPU {self.gpu.index}, not even when it is empty"
            )
            self._block("MigDoesNotFit", text)
        return None

    def _destroyed(self, wanted: frozenset[Placement]) -> list[Step]:
        """What goes: instances that are not wanted, and what stands in a wanted one without filling it."""
        steps: list[Step] = []
        for instance in self.gpu.instances:
            kept = instance.placement in wanted
            if kept and instance.whole:
                continue
            if self._is_busy(instance):
                self._block_by(instance.placement)
            at = (self.gpu.uuid, instance.placement, instance.id)
            steps += [DestroyCompute(*at, one.id, one.uuid) for one in instance.compute]
            if not kept:
                steps.append(DestroyInstance(*at, tuple(one.uuid for one in instance.compute)))
        return steps

    def _made(self, wanted: frozenset[Placement]) -> list[Step]:
        there = {one.placement: one for one in self.gpu.instances}
        steps: list[Step] = []
        for placement in sorted(wanted):
            instance = there.get(placement)
            if instance is None:
                steps.append(CreateInstance(self.gpu.uuid, placement))
                steps.append(CreateCompute(self.gpu.uuid, placement))
            elif not instance.whole:
                steps.append(CreateCompute(self.gpu.uuid, placement, instance.id))
        return steps

    def _is_busy(self, instance: GPUInstance) -> bool:
        return _in_use(self.gpu, instance, self._busy)

    def _tell(self, destroyed: Sequence[Step], made: Sequence[Step]) -> None:
        gone = [step.placement for step in destroyed if isinstance(step, DestroyInstance) and step.uuids]
        new = summary(step.placement.profile for step in made if isinstance(step, CreateCompute))
        where = f"on GPU {self.gpu.index}"
        if gone:
            what = ", ".join(one.text for one in gone)
            room = f" to make room for {new}" if new else ""
            text = f"{what} {where} {'is idle and goes' if len(gone) == 1 else 'are idle and go'}{room}"
            evidence = {"instances": len(gone), "slices": sum(one.size for one in gone)}
            self.reasons.append(self._reason("MigIdleDestroyed", text, evidence))
        elif new:
            self.reasons.append(self._reason("MigRoomFree", f"{new} fits {where} beside what is there"))

    def _block_by(self, placement: Placement) -> None:
        text = f"{placement.text} on GPU {self.gpu.index} is in use and stands in the way"
        self._block("MigInstanceBusy", text)

    def _block(self, code: str, text: str) -> None:
        self.blocked.append(self._reason(code, text))

    def _reason(self, code: str, text: str, evidence: Mapping[str, int] | None = None) -> Reason:
        return Reason(
            code, text, f"GPU {self.gpu.index}", evidence={"gpu": self.gpu.uuid, **(evidence or {})}
        )


def _in_use(gpu: GPU, instance: GPUInstance, busy: frozenset[str]) -> bool:
    return gpu.uuid in busy or any(one.uuid in busy for one in instance.compute)


def _legal(geometry: Geometry, placements: Sequence[Placement]) -> bool:
    """Whether a GPU can have exactly these instances."""
    return not any(obstacle(geometry, one, placements[:index]) for index, one in enumerate(placements))


def _free_layout(
    geometry: Geometry,
    instances: Sequence[GPUInstance],
    profiles: tuple[str, ...],
    is_busy: Callable[[GPUInstance], bool],
) -> MigPlan:
    """The plan for `profiles` wherever they lie. Orphans count as free slices, for to lose one costs nothing;
    one that can be kept at no cost is kept, so that it need only be completed.
    """
    busy = tuple(one.placement for one in instances if is_busy(one))
    idle = tuple(one.placement for one in instances if one.whole and one.placement not in busy)
    orphans = [one.placement for one in instances if one.placement not in (*busy, *idle)]
    best = relayout([GPUCut(geometry, busy, idle)], [profiles])
    for orphan in orphans if best.feasible else ():
        found = relayout([GPUCut(geometry, (*busy, orphan), idle)], [profiles])
        if found.feasible and _cost(found) == _cost(best):
            best, busy = found, (*busy, orphan)
    return best


def _cost(found: MigPlan) -> tuple[int, int]:
    gone = found.gpus[0].destroy
    return len(gone), sum(one.size for one in gone)
