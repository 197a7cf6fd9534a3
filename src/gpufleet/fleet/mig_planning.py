"""MIG plans: which idle instances must go, and where new ones go, without touching one that a pod uses.

Two questions about GPUs that are cut already. `plan` adds instances, on whichever GPUs it costs least;
`relayout` gives each GPU exactly the profiles of a layout and keeps what it can. Both are exact: there is a
plan when any order of destroying and creating leads there, and no other plan destroys fewer idle instances;
among those, none destroys fewer memory slices. What then is still equal: GPUs with fewer free slices are
filled first, instances at lower starts are destroyed first, and new ones go where they leave most room
(`mig_room`). A GPU has at most seven instances, so all sets of them that may go are tried in the order of
their cost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import combinations
from typing import Literal, NamedTuple

import msgspec

from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.mig import Geometry, Placement, summary
from gpufleet.fleet.mig_covering import Way, cheapest
from gpufleet.fleet.mig_room import Free, arrange, free_beside, packings, shape_of, weights_of
from gpufleet.fleet.multisets import counts_of, covers, least, minus, multiset
from gpufleet.fleet.reasons import Reason

_INSTANCE = 1 << 20


class GPUCut(msgspec.Struct, frozen=True):
    """One GPU as it is cut now: the instances that pods use, and the idle ones."""

    geometry: Geometry
    busy: tuple[Placement, ...] = ()
    idle: tuple[Placement, ...] = ()

    @property
    def instances(self) -> tuple[Placement, ...]:
        """All instances, by start."""
        return tuple(sorted(self.busy + self.idle))


class GPUChange(msgspec.Struct, frozen=True):
    """What happens to one GPU, and all its instances afterwards, each by start."""

    destroy: tuple[Placement, ...]
    create: tuple[Placement, ...]
    layout: tuple[Placement, ...]


class Step(msgspec.Struct, frozen=True):
    """One call to the driver: the GPU by its position in the question."""

    action: Literal["destroy", "create"]
    gpu: int
    placement: Placement


class Blocker(msgspec.Struct, frozen=True):
    """A busy instance that must end before there is a plan."""

    gpu: int
    placement: Placement


class MigPlan(msgspec.Struct, frozen=True):
    """The change of each GPU in the order of the question; a plan that is not feasible changes nothing.

    `blocked_by` is the smallest set of busy instances without which there would be a plan; it is empty when
    there is a plan, and when there would be none on empty GPUs either.
    """

    feasible: bool
    gpus: tuple[GPUChange, ...]
    blocked_by: tuple[Blocker, ...] = ()
    reasons: tuple[Reason, ...] = ()

    @property
    def steps(self) -> tuple[Step, ...]:
        """The calls in their order: GPU by GPU, and on each what goes before what comes."""
        return tuple(
            step
            for gpu, change in enumerate(self.gpus)
            for step in (
                *(Step("destroy", gpu, one) for one in change.destroy),
                *(Step("create", gpu, one) for one in change.create),
            )
        )


def plan(gpus: Sequence[GPUCut], wanted: Sequence[str]) -> MigPlan:
    """Add instances of the profiles `wanted`, each on any of the GPUs that has the profile.

    Instances that exist do not count towards `wanted`. Raises GpufleetError (UnknownMigProfile).
    """
    names = [_known(gpus, name) for name in wanted]
    moves = _moves(gpus, names, busy_too=False)
    if moves is not None:
        return _feasible(gpus, moves)
    return _blocked(gpus, names, _moves(gpus, names, busy_too=True))


def relayout(gpus: Sequence[GPUCut], targets: Sequence[Sequence[str] | None]) -> MigPlan:
    """Cut each GPU into exactly the profiles of its target (None: leave it alone), keeping what can stay.

    There is a plan only when every GPU can have its target. Raises GpufleetError (UnknownMigProfile), and
    ValueError unless there is one target for each GPU.
    """
    named = [
        None if target is None else [gpu.geometry.profile(name).name for name in target]
        for gpu, target in zip(gpus, targets, strict=True)
    ]
    moves = [_move(gpu, names, busy_too=False) for gpu, names in zip(gpus, named, strict=True)]
    if all(moves):
        return _feasible(gpus, [move for move in moves if move])
    moves = [
        move or _move(gpu, names, busy_too=True) for move, gpu, names in zip(moves, gpus, named, strict=True)
    ]
    impossible = [name for move, names in zip(moves, named, strict=True) if not move for name in names or ()]
    return _blocked(gpus, impossible, None if impossible else [move for move in moves if move])


class _Move(NamedTuple):
    """What one GPU loses, and the profiles that it gets."""

    destroyed: tuple[Placement, ...]
    added: tuple[str, ...]


def _known(gpus: Sequence[GPUCut], name: str) -> str:
    """The name of a profile as the GPUs write it."""
    for gpu in gpus[:-1]:
        with suppress(GpufleetError):
            return gpu.geometry.profile(name).name
    if not gpus:
        raise GpufleetError(reason="NoGPU", message=f"there is no GPU for {name}")
    return gpus[-1].geometry.profile(name).name


def _removals(gpu: GPUCut, *, busy_too: bool) -> list[tuple[int, tuple[Placement, ...]]]:
    """Every set of instances that may go and its cost, cheapest first: the idle ones, each an instance and
    its slices; or with `busy_too` the busy ones, as if the idle ones were gone already.
    """
    gone = gpu.idle if busy_too else ()
    candidates = sorted(gpu.busy if busy_too else gpu.idle)
    sets = [chosen for count in range(len(candidates) + 1) for chosen in combinations(candidates, count)]
    return sorted(
        (len(chosen) if busy_too else sum(_INSTANCE + one.size for one in chosen), gone + chosen)
        for chosen in sets
    )


def _kept(gpu: GPUCut, destroyed: Sequence[Placement]) -> tuple[Placement, ...]:
    return tuple(one for one in gpu.instances if one not in destroyed)


def _move(gpu: GPUCut, target: Sequence[str] | None, *, busy_too: bool) -> _Move | None:
    """The cheapest way from what a GPU has to exactly the profiles of a target."""
    if target is None:
        return _Move((), ())
    names = Counter(target)
    if any(count > gpu.geometry.profile(name).limit for name, count in names.items()):
        return None
    for _, destroyed in _removals(gpu, busy_too=busy_too):
        kept = _kept(gpu, destroyed)
        held = Counter(one.profile for one in kept)
        missing = names - held
        if held <= names and _fit(gpu.geometry, kept, missing):
            return _Move(destroyed, tuple(missing.elements()))
    return None


def _fit(geometry: Geometry, kept: Sequence[Placement], missing: Counter[str]) -> bool:
    shapes = tuple(shape_of(geometry.profile(name)) for name in missing)
    need = multiset(missing.values())
    return any(covers(room, need) for room in packings(free_beside(geometry, kept), shapes))


def _moves(gpus: Sequence[GPUCut], names: Sequence[str], *, busy_too: bool) -> list[_Move] | None:
    """The cheapest way to add the profiles `names`: one move for each GPU."""
    kinds = tuple(sorted(set(names)))
    need = multiset(names.count(kind) for kind in kinds)
    order = sorted(range(len(gpus)), key=lambda index: (_free(gpus[index]).slices.bit_count(), index))
    known: dict[object, list[Way]] = {}
    ways = []
    for index in order:
        gpu = gpus[index]
        key = (id(gpu.geometry), gpu.busy, gpu.idle)
        if key not in known:
            known[key] = _ways(gpu, kinds, need, busy_too=busy_too)
        ways.append(known[key])
    chosen = cheapest(ways, need, _weights(gpus, kinds))
    if chosen is None:
        return None
    moves = {}
    for index, way in zip(order, chosen, strict=True):
        share = least(way.room, need)
        need = minus(need, share)
        counts = zip(kinds, counts_of(share, len(kinds)), strict=True)
        moves[index] = _Move(way.destroyed, tuple(kind for kind, count in counts for _ in range(count)))
    return [moves[index] for index in range(len(gpus))]


def _ways(gpu: GPUCut, kinds: tuple[str, ...], need: int, *, busy_too: bool) -> list[Way]:
    """The ways to use one GPU for what is needed; none has less room than one that costs as much or less."""
    profiles = [gpu.geometry.profiles.get(kind) for kind in kinds]
    shapes = tuple(profile and shape_of(profile) for profile in profiles)
    ways: list[Way] = []
    seen: set[int] = set()
    for cost, destroyed in _removals(gpu, busy_too=busy_too):
        kept = _kept(gpu, destroyed)
        held = Counter(one.profile for one in kept)
        limits = multiset(max(0, one.limit - held[one.name]) if one else 0 for one in profiles)
        most = least(limits, need)
        for room in packings(free_beside(gpu.geometry, kept), shapes):
            reached = least(room, most)
            if reached not in seen and not any(covers(way.room, reached) for way in ways):
                ways.append(Way(cost, destroyed, reached))
            seen.add(reached)
        if need in seen:
            break
    return ways


def _free(gpu: GPUCut) -> Free:
    return free_beside(gpu.geometry, gpu.instances)


def _weights(gpus: Sequence[GPUCut], kinds: Sequence[str]) -> list[tuple[int, ...]]:
    """What the wanted kinds weigh in slices, and in instances of each profile of the GPUs."""
    geometries = {id(gpu.geometry): gpu.geometry for gpu in gpus}.values()
    found = []
    for geometry in geometries:
        weights = weights_of(tuple(shape_of(one) for one in geometry.profiles.values()))
        place = {name: index for index, name in enumerate(geometry.profiles)}
        found += [tuple(one[place[kind]] if kind in place else 0 for kind in kinds) for one in weights]
    return list(dict.fromkeys(one for one in found if any(one))) or [()]


def _feasible(gpus: Sequence[GPUCut], moves: Sequence[_Move]) -> MigPlan:
    changes: list[GPUChange] = []
    reasons: list[Reason] = []
    for index, (gpu, move) in enumerate(zip(gpus, moves, strict=True)):
        kept = _kept(gpu, move.destroyed)
        created = arrange(gpu.geometry, kept, move.added)
        changes.append(GPUChange(move.destroyed, created, tuple(sorted(kept + created))))
        reasons += _told(index, changes[-1])
    return MigPlan(True, tuple(changes), reasons=tuple(reasons))


def _told(index: int, change: GPUChange) -> Iterator[Reason]:
    created = summary(one.profile for one in change.create)
    if change.destroy:
        slices = sum(one.size for one in change.destroy)
        yield Reason(
            "MigIdleDestroyed",
            f"{_listed(change.destroy)} on GPU {index} "
            + ("is idle and goes" if len(change.destroy) == 1 else "are idle and go")
            + (f" to make room for {created}" if created else "")
            + "; no plan destroys fewer",
            f"GPU {index}",
            evidence={"instances": len(change.destroy), "slices": slices},
        )
    elif change.create:
        yield Reason("MigRoomFree", f"{created} fits on GPU {index} beside what is there", f"GPU {index}")


def _blocked(gpus: Sequence[GPUCut], names: Sequence[str], moves: Sequence[_Move] | None) -> MigPlan:
    changes = tuple(GPUChange((), (), gpu.instances) for gpu in gpus)
    if moves is None:
        where = "the GPU" if len(gpus) == 1 else f"the {len(gpus)} GPUs"
        text = f"{summary(names)} does not fit on {where}, not even without the instances that are there"
        return MigPlan(False, changes, reasons=(Reason("MigDoesNotFit", text),))
    blockers = tuple(
        Blocker(index, one)
        for index, (gpu, move) in enumerate(zip(gpus, moves, strict=True))
        for one in move.destroyed
        if one in gpu.busy
    )
    reasons = tuple(
        Reason(
            "MigInstanceBusy",
            f"{one.placement.text} on GPU {one.gpu} is in use and stands in the way",
            f"GPU {one.gpu}",
        )
        for one in blockers
    )
    return MigPlan(False, changes, blockers, reasons)


def _listed(placements: Sequence[Placement]) -> str:
    return ", ".join(one.text for one in placements)
