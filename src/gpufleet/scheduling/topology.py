"""Topology: pods that belong together on nodes that are near to each other.

A wish says of pods which level of the topology (a node label) they must share, and which they had better
share; its parts (subgroups, segments) may say more about some of them. A domain is the nodes with one value
of the label. Of the domains in which all fit, the one with least room is taken, so that large ones stay
whole; where none has room for all, as few as possible are filled: those with most room first, and the last
one again the tightest. The same goes for nodes within a domain. Pods keep their order, so that neighbours in
rank are neighbours in the topology. Source: topology-aware scheduling of KAI and Kueue (best fit of domains);
where all items are alike, the largest bins first are the fewest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence

import msgspec

from gpufleet.fleet.demands import MILLI
from gpufleet.fleet.devices import WHOLE_RESOURCE
from gpufleet.fleet.gangs import Gang, Topology
from gpufleet.fleet.pods import Pod, PodShape
from gpufleet.fleet.reasons import Reason
from gpufleet.scheduling.gangs import Unit, subgroup_of
from gpufleet.scheduling.ledger import NodeAccount
from gpufleet.scheduling.placing import Placement, place_on
from gpufleet.scheduling.trial import Trial

TRIED = 64
"""So many domains are tried for a wish that must be in one, those that look best first."""

Nodes = Sequence[str]


class Wish(msgspec.Struct, frozen=True):
    """Pods that belong together. `needed` of them must be placed; `parts` are wishes about some of them;
    `anchors` are nodes where others of them run already.
    """

    pods: tuple[Pod, ...]
    topology: Topology
    needed: int = 1
    parts: tuple[Wish, ...] = ()
    anchors: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The label of the level that all must share; empty without."""
        return self.topology.required


def wish_of(unit: Unit, pods: Sequence[Pod], trial: Trial) -> Wish:
    """What the gang of a unit wishes for these of its pods."""
    gang = unit.near
    if gang is None:
        return Wish(tuple(pods), Topology())
    mates = trial.mates(pods[0].gang_key)
    anchors = tuple(sorted({mate.node for mate in mates}))
    parts: tuple[Wish, ...] = ()
    if gang.subgroups:
        parts = _subgroups(gang, "", pods, mates)
    elif gang.segment is not None:
        size, topology = gang.segment.size, gang.segment.topology
        slices = (tuple(pods[first : first + size]) for first in range(0, len(pods), size))
        parts = tuple(Wish(part, topology, len(part)) for part in slices)
    return Wish(tuple(pods), gang.topology, unit.needed, parts, anchors)


def _subgroups(gang: Gang, parent: str, pods: Sequence[Pod], mates: Sequence[Pod]) -> tuple[Wish, ...]:
    """The wishes of the subgroups below one of them, and of pods in none, as far as they have pods."""
    found = []
    for group in gang.subgroups:
        if group.parent == parent:
            names = {leaf for leaf, path in gang.paths.items() if group.name in path}
            own = tuple(pod for pod in pods if subgroup_of(pod) in names)
            nodes = tuple(sorted({mate.node for mate in mates if subgroup_of(mate) in names}))
            below = _subgroups(gang, group.name, own, mates) if own else ()
            if own:
                found.append(Wish(own, group.topology, 1, below, nodes))
    if not parent and (rest := tuple(pod for pod in pods if subgroup_of(pod) not in gang.paths)):
        found.append(Wish(rest, Topology()))
    return tuple(found)


def place_wish(wish: Wish, trial: Trial, nodes: Nodes | None = None) -> list[Placement]:
    """Place the pods of a wish on `nodes` (default: all), as many as fit; none unless `needed` of them do."""
    if nodes is None:
        nodes = trial.nodes
    if not wish.key:
        return _kept(wish, trial, nodes)
    best: tuple[int, Nodes] = (0, ())
    for domain in _candidates(wish, trial, nodes):
        mark = trial.mark()
        placements = _fill(wish, trial, domain)
        if len(placements) == len(wish.pods):
            return placements
        trial.rollback(mark)
        best = max(best, (len(placements), domain), key=lambda one: one[0])
    return _kept(wish, trial, best[1]) if best[0] >= wish.needed else []


def unsatisfied(wish: Wish, trial: Trial, gang: str) -> Reason:
    """Why a wish, or a part of it, that must be in one domain is not placed."""
    found = [_shortage(one, trial, gang) for one in _required(wish)]
    return max(found, key=lambda one: int(one.evidence["need"]) - int(one.evidence["have"]))


def _required(wish: Wish) -> Iterator[Wish]:
    if wish.key:
        yield wish
    for part in wish.parts:
        yield from _required(part)


def _shortage(wish: Wish, trial: Trial, gang: str) -> Reason:
    domains = _allowed(wish, trial, trial.nodes)
    rooms = _rooms(wish.pods, trial, trial.nodes)
    have = max((_fitting(wish.pods, rooms, nodes) for nodes in domains.values()), default=0)
    if not domains:
        which = f"no node has the label {wish.key}"
        if wish.anchors:
            which = f"the pods that run are not in one domain of {wish.key}"
    elif wish.anchors:
        which = f"{next(iter(domains))} ({wish.key}), where its other pods run, has room for {have} of them"
    else:
        which = f"the roomiest of {len(domains)} domains has room for {have} of them"
    text = f"{wish.needed} pods of gang {gang} must share one domain of {wish.key}; {which}"
    return Reason("TopologyUnsatisfied", text, gang, evidence={"need": wish.needed, "have": have})


def _kept(wish: Wish, trial: Trial, nodes: Nodes) -> list[Placement]:
    mark = trial.mark()
    placements = _fill(wish, trial, nodes)
    if len(placements) >= wish.needed:
        return placements
    trial.rollback(mark)
    return []


def _candidates(wish: Wish, trial: Trial, nodes: Nodes) -> Iterator[Nodes]:
    """The domains in which a wish may be, the tightest that should do first, then the roomiest."""
    domains = _allowed(wish, trial, nodes)
    rooms = _rooms(wish.pods, trial, nodes)
    fitting = {value: _fitting(wish.pods, rooms, names) for value, names in domains.items()}
    total = {
        value: sum(room.get(name, 0) for room in rooms.values() for name in names)
        for value, names in domains.items()
    }
    order = sorted(domains, key=lambda value: (-fitting[value], total[value], value))
    yield from (domains[value] for value in order[:TRIED] if fitting[value])


def _allowed(wish: Wish, trial: Trial, nodes: Nodes) -> dict[str, list[str]]:
    """The domains of the level that a wish must share: all, or that of the pods that run already."""
    domains = _domains(wish.key, trial, nodes)
    if not wish.anchors:
        return domains
    values = {trial.ledger.accounts[name].node.labels.get(wish.key) for name in wish.anchors}
    return {value: names for value, names in domains.items() if values == {value}}


def _fill(wish: Wish, trial: Trial, nodes: Nodes) -> list[Placement]:
    """Place as many pods as fit on these nodes, part by part."""
    if wish.parts:
        return [one for part in wish.parts for one in place_wish(part, trial, nodes)]
    rooms = _rooms(wish.pods, trial, nodes)
    placements: list[Placement] = []
    left = list(wish.pods)
    for node in _in_order(wish, trial, nodes, rooms):
        if not left:
            break
        left = _fill_node(wish, trial, node, left, placements)
    return placements


def _fill_node(
    wish: Wish, trial: Trial, node: str, pods: Sequence[Pod], placements: list[Placement]
) -> list[Pod]:
    """Place on one node what fits of the pods; those that are left. Pods that ask alike are refused alike."""
    refused: set[Hashable] = set()
    left: list[Pod] = []
    kinds = len({pod.shape for pod in pods})
    for index, pod in enumerate(pods):
        question = trial.question(pod)
        if question in refused:
            left.append(pod)
        elif trial.search(pod).blocked(node) is None:
            placements.append(place_on(pod, node, _reason(wish, trial, node), trial))
        else:
            refused.add(question)
            left.append(pod)
            if kinds == 1 and trial.search(pod).checks_locally:
                return [*left, *pods[index + 1 :]]
    return left


def _in_order(
    wish: Wish, trial: Trial, nodes: Nodes, rooms: Mapping[PodShape, Mapping[str, int]]
) -> Iterator[str]:
    """The nodes to be filled one after the other."""
    (shape, count), *_ = Counter(pod.shape for pod in wish.pods).most_common(1)
    room = rooms[shape]
    preferred = wish.topology.preferred
    if not preferred:
        yield from _tightest([((name,), room.get(name, 0)) for name in nodes], count)
        return
    domains = _domains(preferred, trial, nodes)
    rest = [name for name in nodes if preferred not in trial.ledger.accounts[name].node.labels]
    sized = [(names, sum(room.get(name, 0) for name in names)) for names in domains.values()]
    for names, amount in _grouped(sized, count):
        yield from _tightest([((name,), room.get(name, 0)) for name in names], amount)
    yield from rest


def _tightest(sized: Sequence[tuple[Nodes, int]], count: int) -> Iterator[str]:
    for names, _ in _grouped(sized, count):
        yield from names


def _grouped(sized: Sequence[tuple[Nodes, int]], count: int) -> Iterator[tuple[Nodes, int]]:
    """Groups of nodes in the order in which they are filled, each with how many pods it should take; those
    without room come last, as the estimate may be wrong where pods differ.
    """
    left = sorted((group for group in sized if group[1]), key=lambda group: (group[1], group[0]))
    while left:
        enough = next((index for index, (_, room) in enumerate(left) if room >= count > 0), len(left) - 1)
        names, room = left.pop(enough)
        yield names, min(room, count) or room
        count = max(0, count - room)
    yield from ((names, 0) for names, room in sized if not room)


def _domains(key: str, trial: Trial, nodes: Iterable[str]) -> dict[str, list[str]]:
    """The nodes by value of a label; those without it are in no domain."""
    found: dict[str, list[str]] = {}
    for name in nodes:
        value = trial.ledger.accounts[name].node.labels.get(key)
        if value is not None:
            found.setdefault(value, []).append(name)
    return found


def _rooms(pods: Iterable[Pod], trial: Trial, nodes: Nodes) -> dict[PodShape, dict[str, int]]:
    """How many pods of each shape each node has room for, counted by what they ask for; nodes without any
    are left out.
    """
    found: dict[PodShape, dict[str, int]] = {}
    for pod in pods:
        if pod.shape not in found:
            search = trial.search(pod)
            accounts = (trial.ledger.accounts[name] for name in nodes if search.blocked(name) is None)
            found[pod.shape] = {account.name: max(1, _room(pod.shape, account)) for account in accounts}
    return found


def _room(shape: PodShape, account: NodeAccount) -> int:
    counts = [account.free(resource) // amount for resource, amount in shape.requests if amount > 0]
    if shape.fraction is not None and (milli := shape.fraction.on(account.node)):
        idle = [MILLI - used for used in account.carried.used.values()]
        parts = sum(free // milli for free in idle) + account.free(WHOLE_RESOURCE) * (MILLI // milli)
        counts.append(parts // shape.fraction.devices)
    return min(counts, default=1)


def _fitting(pods: Sequence[Pod], rooms: Mapping[PodShape, Mapping[str, int]], nodes: Nodes) -> int:
    """How many of the pods the nodes have room for, each shape for itself."""
    counts = Counter(pod.shape for pod in pods)
    return sum(min(n, sum(rooms[shape].get(name, 0) for name in nodes)) for shape, n in counts.items())


def _reason(wish: Wish, trial: Trial, node: str) -> Reason:
    key = wish.key or wish.topology.preferred
    value = trial.ledger.accounts[node].node.labels.get(key, "")
    if not value:
        return Reason("TopologyMatched", f"{node} is taken with the others, as near as there is room", node)
    return Reason("TopologyMatched", f"{node} is in {value} ({key}), where others of the gang are", node)
