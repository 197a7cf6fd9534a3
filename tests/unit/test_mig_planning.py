"""MIG plans against brute force: a plan exactly when there is one, and none destroys less."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import combinations, product

import pytest

from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.mig import GEOMETRIES, Geometry, Placement
from gpufleet.fleet.mig_planning import GPUCut, MigPlan, plan, relayout
from gpufleet.fleet.mig_room import shape_of, weights_of

Layout = frozenset[Placement]
H100 = GEOMETRIES["h100-80gb"]
A30 = GEOMETRIES["a30-24gb"]


def legal(geometry: Geometry, instances: Layout) -> bool:
    """The rules of the hardware, written down a second time."""
    slices = [number for one in instances for number in range(one.start, one.start + one.size)]
    counts = Counter(one.profile for one in instances)
    return (
        len(slices) == len(set(slices))
        and sum(one.profile.endswith("+me") for one in instances) <= 1
        and all(count <= geometry.profiles[name].limit for name, count in counts.items())
    )


@cache
def layouts(name: str) -> tuple[Layout, ...]:
    """Every legal layout of a GPU, also the empty one."""
    geometry = GEOMETRIES[name]
    every = [
        Placement(start, profile.size, profile.name)
        for profile in geometry.profiles.values()
        for start in profile.starts
    ]
    found, new = {Layout()}, {Layout()}
    while new:
        new = {layout | {one} for layout in new for one in every if one not in layout}
        new = {layout for layout in new - found if legal(geometry, layout)}
        found |= new
    return tuple(sorted(found, key=sorted))


def profiles(layout: Layout) -> Counter[str]:
    return Counter(one.profile for one in layout)


def additions(gpu: GPUCut) -> dict[tuple[tuple[str, int], ...], tuple[int, int]]:
    """The least destruction (instances, slices) for each multiset of profiles that a GPU can be given."""
    busy, idle = Layout(gpu.busy), Layout(gpu.idle)
    found: dict[tuple[tuple[str, int], ...], tuple[int, int]] = {}
    for layout in layouts(gpu.geometry.name):
        if not busy <= layout:
            continue
        for kept in subsets(layout & idle):
            gone = idle - kept
            cost = (len(gone), sum(one.size for one in gone))
            added = tuple(sorted(profiles(layout - busy - kept).items()))
            found[added] = min(found.get(added, cost), cost)
    return found


def subsets(layout: Layout) -> Iterator[Layout]:
    members = sorted(layout)
    for chosen in product((False, True), repeat=len(members)):
        yield Layout(one for one, taken in zip(members, chosen, strict=True) if taken)


def least(gpus: Sequence[GPUCut], wanted: Counter[str]) -> tuple[int, int] | None:
    """The least destruction with which all GPUs together can be given what is wanted."""
    reached: dict[tuple[tuple[str, int], ...], tuple[int, int]] = {(): (0, 0)}
    for gpu in gpus:
        following: dict[tuple[tuple[str, int], ...], tuple[int, int]] = {}
        for (before, cost), (added, more) in product(reached.items(), additions(gpu).items()):
            both = Counter(dict(before)) + Counter(dict(added))
            if both <= wanted:
                key, paid = tuple(sorted(both.items())), (cost[0] + more[0], cost[1] + more[1])
                following[key] = min(following.get(key, paid), paid)
        reached = following
    return reached.get(tuple(sorted(wanted.items())))


def check(gpus: Sequence[GPUCut], found: MigPlan) -> tuple[int, int]:
    """Assert that a plan is possible and leaves instances in use alone; what it destroys."""
    for gpu, change in zip(gpus, found.gpus, strict=True):
        kept = Layout(gpu.instances) - Layout(change.destroy)
        assert Layout(change.destroy) <= Layout(gpu.idle)
        assert Layout(change.layout) == kept | Layout(change.create)
        assert legal(gpu.geometry, Layout(change.layout))
        assert all(one.start in gpu.geometry.profiles[one.profile].starts for one in change.create)
    gone = [one for change in found.gpus for one in change.destroy]
    return len(gone), sum(one.size for one in gone)


class Draw:
    """Random GPUs and wishes."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def gpu(self, geometry: Geometry) -> GPUCut:
        layout = self._random.choice(layouts(geometry.name))
        busy = tuple(sorted(one for one in layout if self._random.random() < 0.4))
        return GPUCut(geometry, busy, tuple(sorted(layout - set(busy))))

    def wanted(self, geometry: Geometry, most: int) -> list[str]:
        return self._random.choices(sorted(geometry.profiles), k=self._random.randint(0, most))

    def layout(self, geometry: Geometry) -> list[str]:
        return sorted(profiles(self._random.choice(layouts(geometry.name))).elements())


def test_there_are_as_many_layouts_as_the_hardware_has() -> None:
    plain = [
        layout for layout in layouts(H100.name) if not any(one.profile.endswith("+me") for one in layout)
    ]
    assert len(plain) == 723
    assert len({tuple(sorted(profiles(layout).items())) for layout in plain}) == 78


@pytest.mark.parametrize("geometry", [H100, A30], ids=lambda geometry: geometry.name)
def test_one_gpu_gets_a_plan_exactly_when_there_is_one_and_the_cheapest(geometry: Geometry) -> None:
    outcomes = Counter[str]()
    for seed in range(300):
        draw = Draw(seed)
        gpu, wanted = draw.gpu(geometry), draw.wanted(geometry, 4)
        found, best = plan([gpu], wanted), least([gpu], Counter(wanted))
        assert found.feasible == (best is not None), (seed, gpu, wanted)
        if best is not None:
            assert check([gpu], found) == best, (seed, gpu, wanted)
            assert profiles(Layout(found.gpus[0].create)) == Counter(wanted)
        outcomes["destroys" if best and best[0] else "fits" if best else "blocked"] += 1
    assert min(outcomes.values()) > 20, outcomes


def test_several_gpus_share_what_is_wanted_at_the_least_cost() -> None:
    outcomes = Counter[bool]()
    for seed in range(60):
        draw = Draw(seed)
        gpus = [draw.gpu(A30) for _ in range(3)] if seed % 2 else [draw.gpu(H100), draw.gpu(H100)]
        wanted = draw.wanted(gpus[0].geometry, 6)
        found, best = plan(gpus, wanted), least(gpus, Counter(wanted))
        assert found.feasible == (best is not None), (seed, gpus, wanted)
        if best is not None:
            assert check(gpus, found) == best, (seed, gpus, wanted)
            created = Counter(one.profile for change in found.gpus for one in change.create)
            assert created == Counter(wanted)
        outcomes[found.feasible] += 1
    assert min(outcomes.values()) > 5, outcomes


@pytest.mark.parametrize("geometry", [H100, A30], ids=lambda geometry: geometry.name)
def test_a_layout_is_reached_whenever_it_can_be_and_keeps_all_that_can_stay(geometry: Geometry) -> None:
    outcomes = Counter[bool]()
    for seed in range(200):
        draw = Draw(seed)
        gpu, target = draw.gpu(geometry), draw.layout(geometry)
        reachable = [
            layout
            for layout in layouts(geometry.name)
            if set(gpu.busy) <= layout and profiles(layout) == Counter(target)
        ]
        costs = [
            (len(gone), sum(one.size for one in gone))
            for layout in reachable
            for gone in [Layout(gpu.idle) - layout]
        ]
        found = relayout([gpu], [target])
        assert found.feasible == bool(reachable), (seed, gpu, target)
        if found.feasible:
            assert check([gpu], found) == min(costs), (seed, gpu, target)
            assert profiles(Layout(found.gpus[0].layout)) == Counter(target)
        outcomes[found.feasible] += 1
    assert min(outcomes.values()) > 20, outcomes


def test_what_blocks_is_the_fewest_instances_without_which_there_is_a_plan() -> None:
    blocked = 0
    for seed in range(100):
        draw = Draw(seed)
        gpu, wanted = draw.gpu(H100), draw.wanted(H100, 3)
        found = plan([gpu], wanted)
        if found.feasible:
            assert not found.blocked_by
            continue
        options = [
            len(gone)
            for gone in subsets(Layout(gpu.busy))
            if least([without(gpu, gone)], Counter(wanted)) is not None
        ]
        assert len(found.blocked_by) == min(options, default=0), (seed, gpu, wanted)
        named = Layout(blocker.placement for blocker in found.blocked_by)
        assert (least([without(gpu, named)], Counter(wanted)) is not None) == bool(options)
        blocked += bool(options)
    assert blocked > 10


def test_what_blocks_several_gpus_is_the_fewest_instances_over_all_of_them() -> None:
    blocked = Counter[int]()
    for seed in range(80):
        draw = Draw(seed)
        gpus = [draw.gpu(A30) for _ in range(3)]
        wanted = draw.wanted(A30, 7)
        found = plan(gpus, wanted)
        if found.feasible:
            continue
        busy = [(index, one) for index, gpu in enumerate(gpus) for one in gpu.busy]
        fewest = next(
            (
                count
                for count in range(len(busy) + 1)
                for gone in combinations(busy, count)
                if least(freed(gpus, gone), Counter(wanted)) is not None
            ),
            0,
        )
        named = [(blocker.gpu, blocker.placement) for blocker in found.blocked_by]
        assert len(named) == fewest, (seed, gpus, wanted)
        assert not named or least(freed(gpus, named), Counter(wanted)) is not None
        blocked[fewest] += 1
    assert len(blocked) >= 3, blocked


def freed(gpus: Sequence[GPUCut], gone: Sequence[tuple[int, Placement]]) -> list[GPUCut]:
    """The GPUs with some of the instances in use turned idle."""
    return [without(gpu, Layout(one for on, one in gone if on == index)) for index, gpu in enumerate(gpus)]


def without(gpu: GPUCut, gone: Layout) -> GPUCut:
    """One GPU with some of the instances in use turned idle."""
    busy = tuple(one for one in gpu.busy if one not in gone)
    return GPUCut(gpu.geometry, busy, tuple(sorted((*gpu.idle, *gone))))


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=lambda geometry: geometry.name)
def test_the_weights_say_what_fits_on_an_empty_gpu(geometry: Geometry) -> None:
    shapes = tuple(map(shape_of, geometry.profiles.values()))
    fitting = {
        tuple(profiles(layout)[name] for name in geometry.profiles) for layout in layouts(geometry.name)
    }
    weights = weights_of(shapes)
    holds = [max(weigh(one, weight) for one in fitting) for weight in weights]
    for counts in product(*(range(profile.limit + 2) for profile in geometry.profiles.values())):
        allowed = all(weigh(counts, weight) <= hold for weight, hold in zip(weights, holds, strict=True))
        assert allowed == (counts in fitting), counts


def weigh(counts: Sequence[int], weights: Sequence[int]) -> int:
    return sum(count * weight for count, weight in zip(counts, weights, strict=True))


def test_a_plan_destroys_on_a_gpu_before_it_creates() -> None:
    gpu = GPUCut(H100, idle=(Placement(0, 8, "7g.80gb"),))
    steps = plan([gpu], ["1g.10gb", "1g.10gb"]).steps
    assert [step.action for step in steps] == ["destroy", "create", "create"]


def test_an_unknown_profile_is_an_error_and_a_dot_may_stand_for_the_plus() -> None:
    with pytest.raises(GpufleetError, match=r"no MIG profile .1g\.5gb."):
        plan([GPUCut(H100)], ["1g.5gb"])
    (created,) = plan([GPUCut(H100)], ["1g.10gb.me"]).gpus[0].create
    assert created.profile == "1g.10gb+me"
