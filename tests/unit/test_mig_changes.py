"""MIG changes: from any state to any target whenever the hardware allows it, at least cost, or reasons."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from functools import cache

import msgspec
import pytest
from tests.unit.test_mig_planning import Layout, layouts

from gpufleet.devices.backend import Process
from gpufleet.devices.inventory import GPU, ComputeInstance, GPUInstance, Inventory, MigMode
from gpufleet.devices.mig_changes import (
    OFF,
    CreateCompute,
    CreateInstance,
    DestroyCompute,
    DestroyInstance,
    MigChange,
    MigTarget,
    Step,
    SwitchMode,
    exact_target,
    plan_change,
    used,
    way_back,
)
from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.mig import GEOMETRIES, Geometry, Placement

H100 = GEOMETRIES["h100-80gb"]
A30 = GEOMETRIES["a30-24gb"]
GPU_0 = "GPU-0"


def instance(geometry: Geometry, placement: Placement, ident: int, parts: int = 1) -> GPUInstance:
    """A GPU instance that is whole (one part), an orphan (none), or shared by several compute instances."""
    slices = geometry.profiles[placement.profile].compute
    compute = tuple(
        ComputeInstance(number, f"MIG-{placement.text}-{number}", slices // parts) for number in range(parts)
    )
    return GPUInstance(ident, placement.profile, placement.start, placement.size, slices, compute)


def gpu(
    geometry: Geometry = H100,
    whole: Iterable[Placement] = (),
    orphans: Iterable[Placement] = (),
    mig: MigMode = "on",
    *,
    pending: bool = False,
) -> GPU:
    made = [(one, 1) for one in whole] + [(one, 0) for one in orphans]
    instances = tuple(
        instance(geometry, one, ident, parts) for ident, (one, parts) in enumerate(sorted(made), 1)
    )
    return GPU(0, GPU_0, "NVIDIA H100", mig=mig, mig_pending=pending, geometry=geometry, instances=instances)


def at(geometry: Geometry, *texts: str) -> list[Placement]:
    """Placements as `3g.40gb@4`."""
    return list(exact_target(geometry, texts).placements or ())


def uuids(placements: Iterable[Placement]) -> frozenset[str]:
    return frozenset(f"MIG-{one.text}-0" for one in placements)


def plan(one: GPU, target: MigTarget, busy: Iterable[str] = (), *, may_switch: bool = False) -> MigChange:
    return plan_change(
        Inventory(gpus=(one,)), {one.uuid: target}, busy=frozenset(busy), may_switch=may_switch
    )


def codes(change: MigChange) -> list[str]:
    return [reason.code for reason in change.blocked]


def after(one: GPU, steps: Iterable[Step]) -> tuple[set[Placement], set[Placement], list[Placement]]:
    """What is whole, what is an orphan, and which whole instances went, when the steps are taken in order."""
    parts = {part.placement: len(part.compute) for part in one.instances}
    usable = {part.placement for part in one.instances if part.whole}
    gone = []
    for step in steps:
        match step:
            case DestroyCompute():
                parts[step.placement] -= 1
                if step.placement in usable:
                    usable.remove(step.placement)
                    gone.append(step.placement)
            case DestroyInstance():
                assert parts.pop(step.placement) == 0, "a GPU instance goes after its compute instances"
            case CreateInstance():
                assert not any(step.placement.mask & other.mask for other in parts)
                parts[step.placement] = 0
            case CreateCompute():
                assert parts[step.placement] == 0
                parts[step.placement] = 1
                usable.add(step.placement)
            case SwitchMode():
                assert step.cancels or not parts, "a mode is switched when there are no instances"
    return usable, set(parts) - usable, gone


class Draw:
    """Random GPUs with busy, idle and orphaned instances."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def gpu(self, geometry: Geometry) -> tuple[GPU, frozenset[Placement]]:
        layout = self.random.choice(layouts(geometry.name))
        kinds = {
            one: self.random.choice(("busy", "busy", "idle", "idle", "orphan")) for one in sorted(layout)
        }
        orphans = [one for one, kind in kinds.items() if kind == "orphan"]
        busy = frozenset(one for one, kind in kinds.items() if kind == "busy")
        return gpu(geometry, layout - set(orphans), orphans), busy

    def layout(self, geometry: Geometry) -> Layout:
        return self.random.choice(layouts(geometry.name))


def names(layout: Layout) -> tuple[str, ...]:
    return tuple(sorted(one.profile for one in layout))


@cache
def by_profiles(geometry: str) -> dict[tuple[str, ...], list[Layout]]:
    """Every legal layout by the profiles that it has."""
    found: dict[tuple[str, ...], list[Layout]] = {}
    for layout in layouts(geometry):
        found.setdefault(names(layout), []).append(layout)
    return found


def cheapest(one: GPU, busy: frozenset[Placement], options: Iterable[Layout]) -> tuple[int, int] | None:
    """The least destruction of whole instances (number, slices) on the way to any of the layouts."""
    whole = {part.placement for part in one.instances if part.whole}
    costs = [
        (len(gone), sum(lost.size for lost in gone))
        for layout in options
        if busy <= layout
        for gone in [whole - layout]
    ]
    return min(costs, default=None)


@pytest.mark.parametrize("geometry", [H100, A30], ids=lambda geometry: geometry.name)
@pytest.mark.parametrize("exact", [False, True], ids=["free", "exact"])
def test_there_are_steps_exactly_when_a_layout_exists_and_they_destroy_the_least(
    geometry: Geometry, exact: bool
) -> None:
    outcomes = Counter[str]()
    for seed in range(400):
        draw = Draw(seed)
        (one, busy), wanted = draw.gpu(geometry), draw.layout(geometry)
        target = (
            MigTarget(on=True, placements=tuple(sorted(wanted)))
            if exact
            else MigTarget(on=True, profiles=names(wanted))
        )
        options = [wanted] if exact else by_profiles(geometry.name)[names(wanted)]
        change, best = plan(one, target, uuids(busy)), cheapest(one, busy, options)
        assert (not change.blocked) == (best is not None), (seed, change)
        usable, orphans, gone = after(one, change.steps)
        assert not busy & set(gone)
        if best is None:
            assert not change.steps
            assert set(codes(change)) == {"MigInstanceBusy"}
            outcomes["blocked"] += 1
            continue
        assert not orphans, (seed, change)
        assert Layout(usable) in options
        assert change.layouts == {GPU_0: tuple(sorted(usable))}
        assert (len(gone), sum(lost.size for lost in gone)) == best, (seed, change)
        assert change.done == (not change.steps)
        outcomes["destroys" if gone else "creates"] += 1
    assert min(outcomes[kind] for kind in ("blocked", "destroys", "creates")) > 10, outcomes


def test_an_orphan_is_completed_where_it_can_stay_and_destroyed_where_it_cannot() -> None:
    one = gpu(whole=at(H100, "3g.40gb@4"), orphans=at(H100, "1g.10gb@0", "2g.20gb@2"))
    change = plan(one, MigTarget(on=True, profiles=("1g.10gb", "3g.40gb")))
    assert [type(step) for step in change.steps] == [DestroyInstance, CreateCompute]
    assert change.steps[1] == CreateCompute(GPU_0, at(H100, "1g.10gb@0")[0], instance=1)


def test_an_orphan_never_costs_an_idle_instance_its_life() -> None:
    one = gpu(whole=at(H100, "3g.40gb@0"), orphans=at(H100, "3g.40gb@4"))
    change = plan(one, MigTarget(on=True, profiles=("3g.40gb",)))
    assert change.layouts == {GPU_0: tuple(at(H100, "3g.40gb@0"))}
    assert [type(step) for step in change.steps] == [DestroyInstance]


def test_an_instance_shared_by_several_compute_instances_is_made_whole_when_it_is_idle() -> None:
    shared = instance(H100, at(H100, "2g.20gb@0")[0], 1, parts=2)
    one = msgspec.structs.replace(gpu(), instances=(shared,))
    target = MigTarget(on=True, profiles=("2g.20gb",))
    idle = plan(one, target)
    assert [type(step) for step in idle.steps] == [DestroyCompute, DestroyCompute, CreateCompute]
    assert codes(plan(one, target, {shared.compute[1].uuid})) == ["MigInstanceBusy"]


def test_what_is_there_already_needs_nothing() -> None:
    one = gpu(whole=at(H100, "1g.10gb@6", "3g.40gb@0"))
    change = plan(one, MigTarget(on=True, profiles=("3g.40gb", "1g.10gb")))
    assert change.done
    assert plan(gpu(mig="off"), OFF).done


def test_a_gpu_without_target_is_left_alone_even_with_an_orphan() -> None:
    other = msgspec.structs.replace(gpu(orphans=at(H100, "7g.80gb@0")), index=1, uuid="GPU-1")
    inventory = Inventory(gpus=(gpu(), other))
    change = plan_change(
        inventory, {GPU_0: MigTarget(on=True, profiles=("7g.80gb",))}, busy=frozenset(), may_switch=True
    )
    assert {step.gpu for step in change.steps} == {GPU_0}
    assert [one.uuid for one in change.planned] == [GPU_0]


def test_one_blocked_gpu_keeps_all_others_as_they_are() -> None:
    other = msgspec.structs.replace(gpu(), index=1, uuid="GPU-1")
    one = gpu(whole=at(H100, "7g.80gb@0"))
    targets = {uuid: MigTarget(on=True, profiles=("3g.40gb",)) for uuid in (GPU_0, "GPU-1")}
    change = plan_change(
        Inventory(gpus=(one, other)), targets, busy=uuids(at(H100, "7g.80gb@0")), may_switch=False
    )
    assert not change.steps
    assert change.blocked[0].message == "7g.80gb@0 on GPU 0 is in use and stands in the way"
    assert change.layouts == {GPU_0: tuple(at(H100, "7g.80gb@0")), "GPU-1": ()}


def test_a_mode_is_switched_only_when_the_pool_says_so() -> None:
    target = MigTarget(on=True, profiles=("3g.40gb",))
    assert codes(plan(gpu(mig="off"), target)) == ["MigModeSwitchNotAllowed"]
    assert codes(plan(gpu(), OFF)) == ["MigModeSwitchNotAllowed"]
    on = plan(gpu(mig="off"), target, may_switch=True)
    assert on.switching == (SwitchMode(GPU_0, on=True),)
    assert [type(step) for step in on.cutting] == [CreateInstance, CreateCompute]


def test_switching_off_destroys_what_is_idle_first_and_is_blocked_by_what_is_not() -> None:
    there = at(H100, "1g.10gb@0", "3g.40gb@4")
    change = plan(gpu(whole=there), OFF, may_switch=True)
    assert change.switching[-1] == SwitchMode(GPU_0, on=False)
    assert after(gpu(whole=there), change.steps)[:2] == (set(), set())
    assert codes(plan(gpu(whole=there), OFF, uuids(there[1:]), may_switch=True)) == ["MigInstanceBusy"]


def test_a_gpu_that_is_in_use_as_a_whole_is_not_switched() -> None:
    target = MigTarget(on=True)
    assert codes(plan(gpu(mig="off"), target, {GPU_0}, may_switch=True)) == ["MigGpuBusy"]


def test_a_switch_that_waits_for_a_reset_blocks_and_one_that_is_not_wanted_is_taken_back() -> None:
    pending = gpu(mig="off", pending=True)
    assert codes(plan(pending, MigTarget(on=True), may_switch=True)) == ["MigResetRequired"]
    assert plan(pending, OFF, may_switch=True).steps == (SwitchMode(GPU_0, on=False, cancels=True),)
    assert plan(pending, OFF).done


def test_switches_come_before_all_other_steps() -> None:
    first, second = gpu(), msgspec.structs.replace(gpu(mig="off"), index=1, uuid="GPU-1")
    target = MigTarget(on=True, profiles=("7g.80gb",))
    change = plan_change(
        Inventory(gpus=(first, second)), {GPU_0: target, "GPU-1": target}, busy=frozenset(), may_switch=True
    )
    assert change.steps[0] == SwitchMode("GPU-1", on=True)
    assert [step.gpu for step in change.cutting] == [GPU_0, GPU_0, "GPU-1", "GPU-1"]


@pytest.mark.parametrize(
    ("one", "target", "code"),
    [
        (GPU(0, GPU_0, "NVIDIA L4"), MigTarget(on=True), "MigUnsupported"),
        (GPU(0, GPU_0, lost="fallen off"), OFF, "MigGpuLost"),
        (gpu(), MigTarget(on=True, profiles=("3g.40gb",) * 3), "MigDoesNotFit"),
        (gpu(), exact_target(H100, ["3g.40gb@0", "1g.10gb@3"]), "MigDoesNotFit"),
        (gpu(), exact_target(H100, ["3g.40gb@2"]), "MigDoesNotFit"),
        (gpu(), exact_target(H100, ["1g.10gb+me@0", "1g.10gb+me@1"]), "MigDoesNotFit"),
        (gpu(), exact_target(A30, ["1g.6gb@0"]), "MigDoesNotFit"),
    ],
)
def test_what_can_never_be_is_a_reason(one: GPU, target: MigTarget, code: str) -> None:
    assert codes(plan(one, target, may_switch=True)) == [code]


def test_a_target_for_a_gpu_that_is_not_there_is_a_reason() -> None:
    change = plan_change(Inventory(), {GPU_0: OFF}, busy=frozenset(), may_switch=True)
    assert codes(change) == ["MigGpuLost"]


def test_a_gpu_without_mig_is_off_already() -> None:
    assert plan(GPU(0, GPU_0, "NVIDIA L4"), OFF).done


def test_exact_instances_are_written_as_profile_and_start() -> None:
    assert exact_target(H100, ["3g.40gb@4", "1g.10gb.me@0"]).placements == (
        Placement(0, 1, "1g.10gb+me"),
        Placement(4, 4, "3g.40gb"),
    )
    with pytest.raises(GpufleetError, match="BadMigInstance"):
        exact_target(H100, ["3g.40gb"])
    with pytest.raises(GpufleetError, match="UnknownMigProfile"):
        exact_target(H100, ["3g.20gb@4"])


def test_processes_use_their_compute_instance_or_the_whole_gpu() -> None:
    one = gpu(whole=at(H100, "1g.10gb@0", "3g.40gb@4"))
    assert used(one, [Process(1, 10, instance=2, compute=0)]) == {"MIG-3g.40gb@4-0"}
    assert used(one, [Process(1, 10, instance=1)]) == {"MIG-1g.10gb@0-0"}
    assert used(one, [Process(1, 10)]) == {GPU_0}


def test_the_way_back_goes_around_what_has_come_into_use() -> None:
    before = gpu(whole=at(H100, "7g.80gb@0"))
    now = gpu(whole=at(H100, "1g.10gb@0", "1g.10gb@1"), orphans=at(H100, "3g.40gb@4"))
    assert way_back(before, now, frozenset()) == exact_target(H100, ["7g.80gb@0"])
    held = way_back(before, now, uuids(at(H100, "1g.10gb@1")))
    assert held == exact_target(H100, ["1g.10gb@1"])


def test_the_way_back_does_not_make_orphans_again() -> None:
    before = gpu(whole=at(H100, "1g.10gb@0"), orphans=at(H100, "3g.40gb@4"))
    assert way_back(before, gpu(), frozenset()) == exact_target(H100, ["1g.10gb@0"])
    assert way_back(gpu(mig="off"), gpu(), frozenset()) == MigTarget(on=False, placements=())
