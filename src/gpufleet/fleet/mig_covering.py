"""Sharing out MIG instances over several GPUs: the cheapest choice of one way per GPU that makes them all.

A way says what it costs on its GPU (what must be destroyed) and how many instances of each wanted profile it
then has room for. `cheapest` is exact. It goes from GPU to GPU and keeps, for each multiset of instances
that is still to be made, the cheapest choice that leads there; a choice that pays as much as another and
leaves more to be made is dropped, and so is one that cannot become better than the best choice known. A
relaxation shows the latter: it counts the wanted instances by one weight each (their slices, say) and asks
what that much weight costs at least on the GPUs that are left. A quick sweep that keeps few choices goes
first, so that there is a choice to be better than.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import mul
from typing import NamedTuple

from gpufleet.fleet.mig import Placement
from gpufleet.fleet.multisets import counts_of, covers, minus

_NEVER = 1 << 62
_FEW = 8


class Way(NamedTuple):
    """One way to use a GPU: its cost, the instances destroyed, the multiset of profiles that then fit."""

    cost: int
    destroyed: tuple[Placement, ...]
    room: int


def cheapest(
    ways: Sequence[Sequence[Way]], wanted: int, weights: Sequence[Sequence[int]]
) -> tuple[Way, ...] | None:
    """One way per GPU so that their room covers the multiset `wanted` at the least cost; None when none does.

    `weights` are the relaxations: what an instance of each wanted kind weighs. They make the search short;
    there is at least one, and every kind weighs something in one of them.
    """
    kinds = len(weights[0])
    need = counts_of(wanted, kinds)
    counts = {way.room: counts_of(way.room, kinds) for options in ways for way in options}
    gains = [{room: _weight(each, one) for room, each in counts.items()} for one in weights]
    wishes = [_weight(need, one) for one in weights]
    for wish, gain in zip(wishes, gains, strict=True):
        if wish > sum(max(gain[way.room] for way in options) for options in ways):
            return None
    bounds = [_Bound(ways, *each) for each in zip(weights, gains, wishes, strict=True)]
    search = _Search(ways, wanted, kinds, bounds)
    quick = search.sweep(below=_NEVER, width=_FEW)
    better = search.sweep(below=sum(way.cost for way in quick) if quick else _NEVER, width=None)
    return better or quick


class _Choice(NamedTuple):
    """Ways for the first GPUs, the last one first: what they cost, and what is still to be made after them.

    Choices for the same GPUs order by cost, then by what is left, which no two of them share.
    """

    cost: int
    left: int
    way: Way | None = None
    before: _Choice | None = None

    @property
    def ways(self) -> tuple[Way, ...]:
        found, choice = [], self
        while choice.way and choice.before:
            found.append(choice.way)
            choice = choice.before
        return tuple(reversed(found))


class _Search(NamedTuple):
    ways: Sequence[Sequence[Way]]
    wanted: int
    kinds: int
    bounds: Sequence[_Bound]

    def sweep(self, *, below: int, width: int | None) -> tuple[Way, ...] | None:
        """The cheapest choice that costs less than `below`; `width` is how many are kept at each GPU."""
        choices = [_Choice(0, self.wanted)]
        for index, options in enumerate(self.ways, start=1):
            found: dict[int, _Choice] = {}
            for before in choices:
                for way in options:
                    cost, left = before.cost + way.cost, minus(before.left, way.room)
                    if left not in found or cost < found[left].cost:
                        found[left] = _Choice(cost, left, way, before)
            choices = self._hopeful(found, index, below, width)
        return choices[0].ways if choices else None

    def _hopeful(self, found: dict[int, _Choice], index: int, below: int, width: int | None) -> list[_Choice]:
        rated = [
            (total, choice)
            for choice in found.values()
            if (total := choice.cost + self._least_more(index, choice.left, below - choice.cost)) < below
        ]
        if width is not None:
            rated = sorted(rated)[:width]
        kept: list[_Choice] = []
        for choice in sorted(choice for _, choice in rated):
            if not any(covers(choice.left, other.left) for other in kept):
                kept.append(choice)
        return kept

    def _least_more(self, index: int, left: int, enough: int) -> int:
        """What the GPUs from an index on cost at least; not looked at closer once it is `enough`."""
        counts, least = counts_of(left, self.kinds), 0
        for bound in self.bounds:
            least = max(least, bound.cost(index, counts))
            if least >= enough:
                break
        return least


class _Bound:
    """The least cost at which the GPUs from an index on have room for so much weight."""

    def __init__(
        self, ways: Sequence[Sequence[Way]], weights: Sequence[int], gains: Mapping[int, int], most: int
    ) -> None:
        self._weights = weights
        table = [0] + [_NEVER] * most
        self._tables = [table]
        for options in reversed(ways):
            steps = _frontier([(gains[way.room], way.cost) for way in options])
            table = [
                min(_NEVER, *(table[max(0, need - gain)] + cost for gain, cost in steps))
                for need in range(most + 1)
            ]
            self._tables.append(table)
        self._tables.reverse()

    def cost(self, index: int, counts: Sequence[int]) -> int:
        return self._tables[index][_weight(counts, self._weights)]


def _frontier(steps: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The pairs of gain and cost that no other pair beats."""
    kept: list[tuple[int, int]] = []
    for gain, cost in sorted(steps, key=lambda step: (step[1], -step[0])):
        if not kept or gain > kept[-1][0]:
            kept.append((gain, cost))
    return kept


def _weight(counts: Sequence[int], weights: Sequence[int]) -> int:
    weight: int = sum(map(mul, counts, weights))
    return weight
