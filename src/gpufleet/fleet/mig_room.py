"""MIG room: what still fits on a GPU beside the instances that it has, and where a new one costs least.

Which memory slices are free (a bit mask), and whether the media engines are, is all that decides what fits.
`packings` gives every maximal set of instances that fits at once; a set fits exactly when one of them covers
it. `best_start` and `arrange` choose among placements by what they leave: the memory slices that each profile
could still use, summed over the profiles. That is the idea of fragmentation gradient descent (Weng et al.,
USENIX ATC 2023) for one GPU: count what is left as the workloads would use it, and lose as little as
possible.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache

import msgspec

from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.mig import Geometry, Placement, Profile, summary
from gpufleet.fleet.multisets import covers, unit


class Shape(msgspec.Struct, frozen=True):
    """Where instances of a profile may lie, `starts` ascending; equal for all products of a family."""

    size: int
    starts: tuple[int, ...]
    media: bool

    def masks(self) -> Iterator[tuple[int, int]]:
        """Every start with the mask of its memory slices."""
        return ((start, ((1 << self.size) - 1) << start) for start in self.starts)


class Free(msgspec.Struct, frozen=True):
    """The free memory slices of a GPU as a bit mask, and whether its media engines are free."""

    slices: int
    media: bool = True

    def without(self, mask: int, media: bool) -> Free:
        """What is free when an instance takes the slices of `mask`, and perhaps the media engines."""
        return Free(self.slices & ~mask, self.media and not media)

    def takes(self, mask: int, media: bool) -> bool:
        """Whether an instance on the slices of `mask` fits."""
        return not mask & ~self.slices and (self.media or not media)


class Spot(msgspec.Struct, frozen=True):
    """A start for a new instance, and the usable slices (see `usable`) that the GPU loses by it."""

    start: int
    loss: int


def shape_of(profile: Profile) -> Shape:
    """The shape of a profile."""
    return Shape(profile.size, tuple(sorted(profile.starts)), profile.media)


def free_beside(geometry: Geometry, instances: Iterable[Placement]) -> Free:
    """What is free on a GPU with these instances."""
    free = Free((1 << geometry.slots) - 1)
    for instance in instances:
        free = free.without(instance.mask, geometry.profile(instance.profile).media)
    return free


@lru_cache(maxsize=8192)
def packings(free: Free, shapes: tuple[Shape | None, ...]) -> tuple[int, ...]:
    """Every maximal multiset of shapes that fits at once, counted by position; None fits nowhere."""
    if not free.slices:
        return (0,)
    lowest = free.slices & -free.slices
    found = set(packings(Free(free.slices ^ lowest, free.media), shapes))
    for index, shape in enumerate(shapes):
        if shape is None:
            continue
        for _, mask in shape.masks():
            if mask & -mask == lowest and free.takes(mask, shape.media):
                rest = packings(free.without(mask, shape.media), shapes)
                found.update(one + unit(index) for one in rest)
    return maximal(found)


def maximal(multisets: Iterable[int]) -> tuple[int, ...]:
    """Those multisets that no other one covers, largest numbers first."""
    kept: list[int] = []
    for one in sorted(set(multisets), reverse=True):
        if not any(covers(other, one) for other in kept):
            kept.append(one)
    return tuple(kept)


@lru_cache(maxsize=64)
def weights_of(shapes: tuple[Shape, ...]) -> tuple[tuple[int, ...], ...]:
    """What an instance of each shape weighs: its slices, and how many instances of each shape it rules out.

    What fits on a GPU at once never weighs more than the GPU holds, in any of these weights. On an empty GPU
    of every product the reverse holds too: what no weight forbids fits.
    """
    weights = [tuple(shape.size for shape in shapes)]
    weights += [tuple(_ruled_out(other, shape) for other in shapes) for shape in shapes if not shape.media]
    return tuple(dict.fromkeys(weights))


def _ruled_out(instance: Shape, shape: Shape) -> int:
    """How many starts of `shape` an instance takes at least, wherever it lies: those inside it, and also
    those it touches where it has the media engines, as a GPU has one such instance only.
    """
    return min(
        sum(bool(mask & taken) if instance.media else mask & taken == mask for _, mask in shape.masks())
        for _, taken in instance.masks()
    )


@lru_cache(maxsize=8192)
def usable(free: Free, weighted: tuple[tuple[Shape, int], ...]) -> int:
    """The memory slices that instances of each shape alone could use, times its weight, summed."""
    total = 0
    for shape, weight in weighted:
        left, count = free, 0
        for _, mask in shape.masks():
            if left.takes(mask, shape.media):
                left, count = left.without(mask, shape.media), count + 1
        total += weight * shape.size * count
    return total


def best_start(
    geometry: Geometry,
    instances: Sequence[Placement],
    profile: str,
    demand: Mapping[str, int] | None = None,
) -> Spot | None:
    """The start beside `instances` that leaves most; None when there is none. Ties go to the highest start.

    `demand` weighs profiles by how much they are asked for (default: all alike). Losses of GPUs of one
    geometry can be compared, so the best GPU for an instance is the one with the least loss.
    Raises GpufleetError (UnknownMigProfile).
    """
    wanted = geometry.profile(profile)
    if sum(one.profile == wanted.name for one in instances) >= wanted.limit:
        return None
    free, weighted = free_beside(geometry, instances), _weighted(geometry, demand)
    before = usable(free, weighted)
    spots = [
        Spot(start, before - usable(free.without(mask, wanted.media), weighted))
        for start, mask in shape_of(wanted).masks()
        if free.takes(mask, wanted.media)
    ]
    return min(spots, key=lambda spot: (spot.loss, -spot.start), default=None)


def arrange(
    geometry: Geometry, instances: Sequence[Placement], profiles: Sequence[str]
) -> tuple[Placement, ...]:
    """Placements for all `profiles` beside `instances` that leave most, by start. Ties go to the highest
    starts.

    Tries every placement; limits of profiles are the caller's. Raises GpufleetError (MigDoesNotFit).
    """
    wanted = sorted(map(geometry.profile, profiles), key=lambda one: (-one.size, one.name))
    weighted = _weighted(geometry, None)
    ratings = (
        (usable(free, weighted), placements)
        for placements, free in _arrangements(tuple(wanted), free_beside(geometry, instances), ())
    )
    best = max(ratings, default=None)
    if best is None:
        raise GpufleetError(
            reason="MigDoesNotFit",
            message=f"{summary(profiles)} does not fit beside {summary(one.profile for one in instances)}",
        )
    return tuple(sorted(best[1]))


def _arrangements(
    wanted: tuple[Profile, ...], free: Free, placed: tuple[Placement, ...]
) -> Iterator[tuple[tuple[Placement, ...], Free]]:
    if not wanted:
        yield placed, free
        return
    profile, rest = wanted[0], wanted[1:]
    above = placed[-1].start if placed and placed[-1].profile == profile.name else -1
    for start, mask in shape_of(profile).masks():
        if start > above and free.takes(mask, profile.media):
            one = Placement(start, profile.size, profile.name)
            yield from _arrangements(rest, free.without(mask, profile.media), (*placed, one))


def _weighted(geometry: Geometry, demand: Mapping[str, int] | None) -> tuple[tuple[Shape, int], ...]:
    return tuple(
        (shape_of(profile), 1 if demand is None else demand.get(profile.name, 0))
        for profile in geometry.profiles.values()
        if demand is not None or not profile.media
    )
