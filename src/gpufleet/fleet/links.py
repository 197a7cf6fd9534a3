"""How well the GPUs of a node are linked, and the best linked set of those that are free.

A pair of GPUs has a score (`devices.preferred_allocation` says how it comes about), a set the sum of those of
its pairs. The best set has the highest score; among equals, the one that leaves the free rest best linked,
then the one on the fewest NUMA nodes, then the one of the lowest places. This is exact: a table of the scores
of all sets is made once for all nodes of one kind, and each question only looks its candidates up (12,870 for
8 of 16 GPUs). With more GPUs than `EXACT_GPUS` a set is grown by the best next GPU instead.
Source of the idea that a set is worth the sum of its pairs: go-gpuallocator's best-effort policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import msgspec

EXACT_GPUS = 16

Rows = tuple[tuple[int, ...], ...]
"""Scores by place: row i has the scores of GPU i with each GPU before it. Empty where all pairs are alike."""


class LinkTable(msgspec.Struct, frozen=True, cache_hash=True):
    """The links between the GPUs of a node, by place. `scores[i][j]` is the score of a pair; `rows` has each
    once, and nothing where all pairs are `alike`.

    Sets of GPUs are bit masks in which the first GPU has the highest bit, so that of two sets of one size
    the greater mask has the lower places. `of_set` and `numa_nodes` have an entry per mask (the sum of the
    scores of its pairs, the number of its NUMA nodes) and are empty with more than `EXACT_GPUS` GPUs;
    `of_size` has all masks of a size.
    """

    scores: Rows = ()
    rows: Rows = ()
    of_set: tuple[int, ...] = ()
    numa_nodes: bytes = b""
    of_size: tuple[tuple[int, ...], ...] = ()

    @property
    def alike(self) -> bool:
        """Whether no pair is better linked than another."""
        return not self.rows

    def mask(self, places: Iterable[int]) -> int:
        """The set of these GPUs."""
        last = len(self.scores) - 1
        return sum(1 << (last - place) for place in places)

    def places(self, mask: int) -> tuple[int, ...]:
        """The GPUs of a set, in order."""
        return _places(mask, len(self.scores))

    def score(self, places: Sequence[int]) -> int:
        """The sum of the scores of all pairs of a set."""
        return sum(self.scores[one][other] for number, one in enumerate(places) for other in places[:number])


@lru_cache(maxsize=4096)
def _places(mask: int, count: int) -> tuple[int, ...]:
    return tuple(place for place in range(count) if mask >> (count - 1 - place) & 1)


@lru_cache(maxsize=32)
def link_table(scores: Rows, numa_nodes: tuple[int, ...]) -> LinkTable:
    """The table of a node; `scores` has a full row for each GPU, and a NUMA node of -1 is none."""
    rows = tuple(row[:place] for place, row in enumerate(scores))
    if len({score for row in rows for score in row}) < 2:
        rows = ()
    if len(scores) > EXACT_GPUS:
        return LinkTable(scores, rows)
    of_set = _of_sets(scores)
    by_size: list[list[int]] = [[] for _ in range(len(scores) + 1)]
    for mask in range(len(of_set)):
        by_size[mask.bit_count()].append(mask)
    numa = _numa_counts(numa_nodes)
    return LinkTable(scores, rows, of_set, numa, tuple(tuple(masks) for masks in by_size))


@lru_cache(maxsize=64)
def table_of(rows: Rows, gpus: int) -> LinkTable:
    """The table of a node of so many GPUs whose NUMA nodes nobody knows."""
    known = {(one, other): score for one, row in enumerate(rows) for other, score in enumerate(row)}
    known |= {(other, one): score for (one, other), score in known.items()}
    places = range(gpus)
    scores = tuple(tuple(known.get((one, other), 0) for other in places) for one in places)
    return link_table(scores, (-1,) * gpus)


def _of_sets(scores: Rows) -> tuple[int, ...]:
    """The sum of the pair scores of every set, by its mask."""
    sums = [0]
    for place in reversed(range(len(scores))):
        with_place = [0]
        for other in reversed(range(place + 1, len(scores))):
            with_place += [one + scores[place][other] for one in with_place]
        sums += [one + more for one, more in zip(sums, with_place, strict=True)]
    return tuple(sums)


def _numa_counts(numa_nodes: Sequence[int]) -> bytes:
    """The number of NUMA nodes of every set, by its mask; a GPU without one counts for none."""
    bits = {node: 1 << number for number, node in enumerate(sorted({*numa_nodes} - {-1}))}
    touched = [0]
    for node in reversed(numa_nodes):
        touched += [one | bits.get(node, 0) for one in touched]
    return bytes(one.bit_count() for one in touched)


@lru_cache(maxsize=4096)
def best_set(table: LinkTable, available: int, include: int, size: int) -> int:
    """The best `size` of the available GPUs, `include` among them; all of them when they are fewer."""
    available |= include
    size = max(size, include.bit_count())
    if available.bit_count() <= size:
        return available
    if not table.of_set:
        return table.mask(_grown(table, available, include, size))
    taken = ~available
    sets = [mask for mask in table.of_size[size] if not mask & taken and mask & include == include]
    sets = _greatest(sets, [table.of_set[mask] for mask in sets])
    sets = _greatest(sets, [table.of_set[available ^ mask] for mask in sets])
    sets = _greatest(sets, [-table.numa_nodes[mask] for mask in sets])
    return sets[-1]


def _greatest(sets: list[int], values: list[int]) -> list[int]:
    best = max(values)
    return [mask for mask, value in zip(sets, values, strict=True) if value == best]


def _grown(table: LinkTable, available: int, include: int, size: int) -> tuple[int, ...]:
    """A good set on a node that is too large for exact search: the best of those grown from each start."""
    free, fixed = table.places(available), table.places(include)
    if table.alike:
        others = [one for one in free if one not in fixed]
        return (*fixed, *others[: size - len(fixed)])
    starts: Iterator[tuple[int, ...]] = iter([fixed]) if fixed else ((one,) for one in free)
    grown = [_grow(table.scores, start, free, size) for start in starts]
    _, best = max(grown, key=lambda found: (found[0], [-place for place in found[1]]))
    return best


def _grow(scores: Rows, start: Sequence[int], free: Sequence[int], size: int) -> tuple[int, tuple[int, ...]]:
    """The set that takes the best linked GPU next, from a start, with its score.

    Among equals, the GPU with the best links to all free ones: it opens the largest island.
    """
    chosen, promise = list(start), {one: sum(scores[one][other] for other in free) for one in free}
    gains = {one: sum(scores[one][other] for other in start) for one in free}
    total = sum(scores[one][other] for one in start for other in start) // 2
    while len(chosen) < size:
        left = (one for one in free if one not in chosen)
        best = max(left, key=lambda one: (gains[one], promise[one], -one))
        total += gains[best]
        chosen.append(best)
        for one in free:
            gains[one] += scores[one][best]
    return total, tuple(sorted(chosen))
