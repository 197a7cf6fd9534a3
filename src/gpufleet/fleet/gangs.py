"""Gangs as values: what a convention says of pods that are placed together, whoever wrote it.

A gang needs `minimum` pods in all. Where it has subgroups they form a tree: a leaf is complete with `minimum`
of its pods, an inner one with `minimum` complete subgroups below it, the gang itself with `minimum_subgroups`
at its top. Who is not said to be in a subgroup counts for the gang alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec


class Topology(msgspec.Struct, frozen=True):
    """How near to each other pods are: the keys of the node labels of a level that they must share, and of
    one that they had better share. Empty when nothing is said.
    """

    required: str = ""
    preferred: str = ""


class SubGroup(msgspec.Struct, frozen=True):
    """A part of a gang. `minimum` counts pods in a leaf and subgroups in an inner one; `parent` is empty at
    the top.
    """

    name: str
    parent: str = ""
    minimum: int = 1
    topology: Topology = Topology()


class Segment(msgspec.Struct, frozen=True):
    """Slices of `size` pods, each of them within the topology."""

    size: int
    topology: Topology


class Gang(msgspec.Struct, frozen=True, cache_hash=True):
    """A gang as its object, or its pods, describe it. `key` is `namespace/name`, `rule` says in words which
    convention it comes from.

    `minimum` is None when what is said cannot be understood; `problem` then says why. `maximum` is how far an
    elastic gang may grow. `minimum_subgroups` None means all that are at the top. `priority_class` is a name
    and `priority` a number, as far as either is stated; `preemptible` None is not said. Times are in seconds:
    `time_limit_s` of the whole run, `schedule_timeout_s` for all to be placed, `stale_after_s` below the
    minimum until the rest is stopped (negative: never), `preemption_delay_s` before it evicts others.
    """

    key: str
    rule: str
    minimum: int | None = None
    problem: str = ""
    maximum: int | None = None
    subgroups: tuple[SubGroup, ...] = ()
    minimum_subgroups: int | None = None
    topology: Topology = Topology()
    segment: Segment | None = None
    queue: str = ""
    priority_class: str = ""
    priority: int | None = None
    preemptible: bool | None = None
    time_limit_s: int | None = None
    schedule_timeout_s: int | None = None
    stale_after_s: int | None = None
    preemption_delay_s: int | None = None

    @property
    def says_where(self) -> bool:
        """Whether it says anything of how near to each other its pods are to be."""
        return any(one != Topology() for one in self._topologies)

    @property
    def must_be_near(self) -> bool:
        """Whether some of its pods must share a level."""
        return any(one.required for one in self._topologies)

    @property
    def _topologies(self) -> tuple[Topology, ...]:
        segment = (self.segment.topology,) if self.segment else ()
        return (self.topology, *segment, *(group.topology for group in self.subgroups))

    @property
    def leaves(self) -> tuple[SubGroup, ...]:
        """The subgroups that have pods and no subgroups."""
        parents = {group.parent for group in self.subgroups}
        return tuple(group for group in self.subgroups if group.name not in parents)

    @property
    def paths(self) -> dict[str, tuple[str, ...]]:
        """Each leaf with its path: the subgroups above it and itself, from the top down."""
        parents = {group.name: group.parent for group in self.subgroups}
        found: dict[str, tuple[str, ...]] = {}
        for leaf in self.leaves:
            path: tuple[str, ...] = (leaf.name,)
            while above := parents[path[0]]:
                path = (above, *path)
            found[leaf.name] = path
        return found

    @property
    def optional_subgroups(self) -> bool:
        """Whether some subgroups may be left out, because fewer than there are suffice."""
        wanted = {group.name: group.minimum for group in self.subgroups}
        below = _children(self.subgroups)
        top = below.get("", ())
        inner = any(wanted[name] < len(groups) for name, groups in below.items() if name)
        return inner or (self.minimum_subgroups is not None and self.minimum_subgroups < len(top))


def missing(gang: Gang, counts: Mapping[str, int]) -> int:
    """The fewest pods that the gang's subgroups still need, where `counts` of each leaf are there."""
    lacks = missing_by_subgroup(gang, counts)
    top = [lacks[group.name] for group in gang.subgroups if not group.parent]
    wanted = len(top) if gang.minimum_subgroups is None else gang.minimum_subgroups
    return _cheapest(top, wanted)


def missing_by_subgroup(gang: Gang, counts: Mapping[str, int]) -> dict[str, int]:
    """The fewest pods that each subgroup still needs, where `counts` of each leaf are there."""
    below = _children(gang.subgroups)
    lacks: dict[str, int] = {}

    def of(group: SubGroup) -> int:
        if group.name in below:
            lacks[group.name] = _cheapest(map(of, below[group.name]), group.minimum)
        else:
            lacks[group.name] = max(0, group.minimum - counts.get(group.name, 0))
        return lacks[group.name]

    for group in below.get("", ()):
        of(group)
    return lacks


def cheapest_leaves(gang: Gang, counts: Mapping[str, int]) -> frozenset[str]:
    """Leaves that complete the gang with the fewest pods, where `counts` of each leaf are there."""
    lacks = missing_by_subgroup(gang, counts)
    below = _children(gang.subgroups)

    def of(name: str, wanted: int | None) -> Iterator[str]:
        for group in sorted(below.get(name, ()), key=lambda group: lacks[group.name])[:wanted]:
            if group.name in below:
                yield from of(group.name, group.minimum)
            else:
                yield group.name

    return frozenset(of("", gang.minimum_subgroups))


def incomplete(gang: Gang, counts: Mapping[str, int]) -> tuple[str, ...]:
    """The leaves with fewer pods than they need, or in a subgroup that is not complete, in order."""
    lacks = missing_by_subgroup(gang, counts)
    return tuple(leaf for leaf, path in gang.paths.items() if any(lacks[name] for name in path))


def tree_problem(subgroups: Sequence[SubGroup], minimum_subgroups: int | None = None) -> str:
    """Why subgroups are no tree that can be completed; empty when they are one."""
    names = Counter(group.name for group in subgroups)
    twice = next((name for name, count in names.items() if count > 1), None)
    if twice is not None:
        return f"there are two subgroups {twice}"
    parents = {group.name: group.parent for group in subgroups}
    below = _children(subgroups)
    for group in subgroups:
        if group.parent and group.parent not in parents:
            return f"subgroup {group.name} has the parent {group.parent}, which there is not"
        if _in_circle(group.name, parents):
            return f"subgroup {group.name} is above itself"
        if group.name in below and group.minimum > len(below[group.name]):
            return f"subgroup {group.name} needs {group.minimum} subgroups and has {len(below[group.name])}"
    top = len(below.get("", ()))
    if minimum_subgroups is not None and minimum_subgroups > top:
        return f"the gang needs {minimum_subgroups} subgroups and has {top}"
    return ""


def _children(subgroups: Iterable[SubGroup]) -> dict[str, list[SubGroup]]:
    below: dict[str, list[SubGroup]] = {}
    for group in subgroups:
        below.setdefault(group.parent, []).append(group)
    return below


def _cheapest(needs: Iterable[int], count: int) -> int:
    return sum(sorted(needs)[:count])


def _in_circle(name: str, parents: Mapping[str, str]) -> bool:
    above = parents.get(name, "")
    for _ in parents:
        if above in ("", name):
            break
        above = parents.get(above, "")
    return above != ""
