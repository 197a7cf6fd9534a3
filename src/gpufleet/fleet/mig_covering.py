"""Sharing out MIG instances over several GPUs: the cheapest choice of one way per GPU that makes them all.

A way says what it costs on its GPU (what must be destroyed) and how many instances of each wanted profile it
then has room for. `cheapest` is exact: a depth-first search that takes the cheapest and fullest way first,
remembers what it paid for a state, and leaves a branch as soon as a relaxation shows that it cannot become
better. A relaxation counts the wanted instances by one weight each (their slices, say) and asks what that
much weight costs at least on the GPUs that are left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gpufleet.fleet.mig import Placement
from gpufleet.fleet.multisets import counts_of, least, minus

_NEVER = 1 << 62


class Way(NamedTuple):
    """One way to use a GPU: its cost, the instances destroyed, the multiset of profiles that then fit."""

    cost: int
    destroyed: tuple[Placement, ...]
    room: int


def cheapest(ways: Sequence[Sequence[Way]], wanted: int, sizes: Sequence[int]) -> tuple[Way, ...] | None:
    """One way per GPU so that their room covers the multiset `wanted` at the least cost; None when none does.

    `sizes` are the memory slices of each kind in `wanted`. Ties go to the way that makes most on the first
    GPU.
    """
    return _Search(ways, wanted, sizes).run()


class _Search:
    def __init__(self, ways: Sequence[Sequence[Way]], wanted: int, sizes: Sequence[int]) -> None:
        self._ways = ways
        self._wanted = wanted
        self._sizes = sizes
        self._bounds = [_Bound(ways, weights, wanted) for weights in _weights(sizes)]
        self._paid: dict[tuple[int, int], int] = {}
        self._best = _NEVER
        self._chosen: tuple[Way, ...] | None = None

    def run(self) -> tuple[Way, ...] | None:
        self._descend(self._wanted, 0, ())
        return self._chosen

    def _descend(self, left: int, cost: int, chosen: tuple[Way, ...]) -> None:
        index = len(chosen)
        if index == len(self._ways):
            if not left and cost < self._best:
                self._best, self._chosen = cost, chosen
            return
        least_more = max((bound.cost(index, left) for bound in self._bounds), default=0)
        if cost + least_more >= self._best:
            return
        if self._paid.get((index, left), _NEVER) <= cost:
            return
        self._paid[index, left] = cost
        for way in sorted(self._ways[index], key=lambda way: (way.cost, -self._filled(way, left))):
            self._descend(minus(left, way.room), cost + way.cost, (*chosen, way))

    def _filled(self, way: Way, left: int) -> int:
        return _weight(least(way.room, left), self._sizes)


class _Bound:
    """The least cost at which the GPUs from an index on have room for so much weight."""

    def __init__(self, ways: Sequence[Sequence[Way]], weights: Sequence[int], wanted: int) -> None:
        self._weights = weights
        most = _weight(wanted, weights)
        table = [0] + [_NEVER] * most
        self._tables = [table]
        for options in reversed(ways):
            steps = _frontier([(_weight(way.room, weights), way.cost) for way in options])
            table = [
                min(_NEVER, *(table[max(0, need - gain)] + cost for gain, cost in steps))
                for need in range(most + 1)
            ]
            self._tables.append(table)
        self._tables.reverse()

    def cost(self, index: int, left: int) -> int:
        return self._tables[index][_weight(left, self._weights)]


def _frontier(steps: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The pairs of gain and cost that no other pair beats."""
    kept: list[tuple[int, int]] = []
    for gain, cost in sorted(steps, key=lambda step: (step[1], -step[0])):
        if not kept or gain > kept[-1][0]:
            kept.append((gain, cost))
    return kept


def _weights(sizes: Sequence[int]) -> list[tuple[int, ...]]:
    """The relaxations: each kind alone, and all of them by slices, halves, quarters, ... of them."""
    each = [tuple(int(kind == other) for other in range(len(sizes))) for kind in range(len(sizes))]
    steps = sorted(set(sizes))
    return [*(tuple(size // step for size in sizes) for step in steps), *each]


def _weight(multiset: int, weights: Sequence[int]) -> int:
    return sum(
        count * weight for count, weight in zip(counts_of(multiset, len(weights)), weights, strict=True)
    )
