"""Preferred allocation: which of the free devices of a resource a container should get.

Whole GPUs: the set whose pairs are best linked, where a pair scores by its nearest common ancestor on PCIe
and by its NVLinks. Among equals, the set that leaves the free rest best linked, then the one on the fewest
NUMA nodes, then the lowest indexes. This is exact: a table of the scores of all sets of GPUs is built once,
when the links are read, and each question only looks its candidates up (12,870 for 8 of 16 GPUs). With more
GPUs than `EXACT_GPUS` a set is grown by the best next GPU instead.

Replicas: devices that were not yet chosen first, then by the policy, `distributed` (the least used device) or
`packed` (the most used one). MIG instances: GPUs that are in use first, and among them the fullest, so that
whole GPUs stay free to be cut again.
Source of the scores: go-gpuallocator's best-effort policy.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from gpufleet.devices.backend import Link
from gpufleet.devices.inventory import Inventory
from gpufleet.devices.resources import Device, Resource

Policy = Literal["distributed", "packed"]
EXACT_GPUS = 16

PCIE_SCORES: Mapping[str, int] = {
    # nearest common ancestor of two GPUs
    "board":    60,
    "switch":   50,
    "switches": 40,
    "bridge":   30,
    "cpu":      20,
    "system":   10,
}  # fmt: skip
NVLINK_SCORE = 100


def pair_score(link: Link) -> int:
    """How well two GPUs reach each other."""
    return PCIE_SCORES[link.pcie] + NVLINK_SCORE * link.nvlinks


class Topology(msgspec.Struct, frozen=True):
    """The links between the GPUs of a node. `scores[i][j]` is the score of a pair.

    Sets of GPUs are bit masks in which the first GPU has the highest bit, so that of two sets of one size
    the greater mask has the lower indexes. `of_set` and `numa_nodes` have an entry per mask (the sum of the
    scores of its pairs, the number of its NUMA nodes) and are empty with more than `EXACT_GPUS` GPUs;
    `of_size` has all masks of a size.
    """

    gpus: tuple[str, ...]
    scores: tuple[tuple[int, ...], ...]
    of_set: tuple[int, ...] = ()
    numa_nodes: bytes = b""
    of_size: tuple[tuple[int, ...], ...] = ()

    def mask(self, uuids: Iterable[str]) -> int:
        """The set of these GPUs; those that the node does not have are left out."""
        wanted = frozenset(uuids)
        last = len(self.gpus) - 1
        return sum(1 << (last - place) for place, uuid in enumerate(self.gpus) if uuid in wanted)

    def members(self, mask: int) -> tuple[str, ...]:
        """The GPUs of a set."""
        last = len(self.gpus) - 1
        return tuple(uuid for place, uuid in enumerate(self.gpus) if mask >> (last - place) & 1)


def topology(inventory: Inventory, links: Mapping[tuple[str, str], Link]) -> Topology:
    """The topology of a node from the links of its pairs; a pair without one scores nothing."""
    gpus = tuple(gpu.uuid for gpu in inventory.gpus)
    pairs = {frozenset(pair): pair_score(link) for pair, link in links.items()}
    scores = tuple(tuple(pairs.get(frozenset((one, other)), 0) for other in gpus) for one in gpus)
    if len(gpus) > EXACT_GPUS:
        return Topology(gpus, scores)
    of_set = _of_sets(scores)
    by_size: list[list[int]] = [[] for _ in range(len(gpus) + 1)]
    for mask in range(len(of_set)):
        by_size[mask.bit_count()].append(mask)
    numa = _numa_counts([gpu.numa_node for gpu in inventory.gpus])
    return Topology(gpus, scores, of_set, numa, tuple(tuple(masks) for masks in by_size))


def _of_sets(scores: Sequence[Sequence[int]]) -> tuple[int, ...]:
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


def best_gpus(topology: Topology, free: Collection[str], must: Collection[str], size: int) -> tuple[str, ...]:
    """The best `size` of the `free` GPUs, `must` among them, by index; all of them when they are fewer."""
    include = topology.mask(must)
    available = topology.mask(free) | include
    size = max(size, include.bit_count())
    if available.bit_count() <= size:
        return topology.members(available)
    if not topology.of_set:
        return _grown(topology, available, include, size)
    taken = ~available
    sets = [mask for mask in topology.of_size[size] if not mask & taken and mask & include == include]
    sets = _greatest(sets, [topology.of_set[mask] for mask in sets])
    sets = _greatest(sets, [topology.of_set[available ^ mask] for mask in sets])
    sets = _greatest(sets, [-topology.numa_nodes[mask] for mask in sets])
    return topology.members(sets[-1])


def _greatest(sets: list[int], values: list[int]) -> list[int]:
    best = max(values)
    return [mask for mask, value in zip(sets, values, strict=True) if value == best]


def _grown(topology: Topology, available: int, include: int, size: int) -> tuple[str, ...]:
    """A good set on a node that is too large for exact search: the best of those grown from each start."""
    places = {uuid: place for place, uuid in enumerate(topology.gpus)}
    free = [places[uuid] for uuid in topology.members(available)]
    fixed = [places[uuid] for uuid in topology.members(include)]
    grown = [_grow(topology, start, free, size) for start in ([fixed] if fixed else [[one] for one in free])]
    _, best = max(grown, key=lambda found: (found[0], [-place for place in found[1]]))
    return tuple(topology.gpus[place] for place in best)


def _grow(
    topology: Topology, start: Sequence[int], free: Sequence[int], size: int
) -> tuple[int, tuple[int, ...]]:
    """The set that takes the best linked GPU next, from a start, with its score.

    Among equals, the GPU with the best links to all free ones: it opens the largest island.
    """
    scores = topology.scores
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


def preferred(
    resource: Resource,
    available: Sequence[str],
    must: Sequence[str],
    size: int,
    *,
    topology: Topology,
    policy: Policy = "distributed",
    busy: Collection[str] = (),
) -> tuple[str, ...]:
    """`size` ids of `available`, all of `must` among them; fewer when there are not enough.

    `busy` are GPUs on which anything of any resource is in use. Ids that are not of the resource are passed
    over: this is advice, and an error would cost the pod its life. GPUs that the topology does not know come
    after those that it does.
    """
    free = frozenset(available)
    kept = tuple(dict.fromkeys(must))
    candidates = [one for one in resource.devices if one.id in free and one.id not in kept]
    missing = min(size - len(kept), len(candidates))
    if missing <= 0:
        return kept
    chosen = [one for one in resource.devices if one.id in kept]
    if any(one.replica for one in candidates):
        return kept + _spread(resource, candidates, chosen, missing, policy)
    if any(one.instance for one in candidates):
        return kept + _packed_instances(resource, candidates, missing, busy)
    best = best_gpus(
        topology, [one.gpu for one in candidates], [one.gpu for one in chosen], len(chosen) + missing
    )
    ranked = sorted(candidates, key=lambda one: one.gpu not in best)
    return kept + tuple(one.id for one in ranked[:missing])


def _spread(
    resource: Resource,
    candidates: Sequence[Device],
    chosen: Sequence[Device],
    size: int,
    policy: Policy,
) -> tuple[str, ...]:
    """Replicas one by one: of a device that the container does not have yet, as the policy says."""
    here = _counted(one.uuid for one in chosen)
    free = _counted(one.uuid for one in candidates)
    total = _counted(one.uuid for one in resource.devices)
    waiting: dict[str, list[str]] = {}
    for one in candidates:
        waiting.setdefault(one.uuid, []).append(one.id)
    order = {uuid: place for place, uuid in enumerate(waiting)}
    sign = -1 if policy == "packed" else 1
    ids = []
    for _ in range(size):
        uuid = min(
            (uuid for uuid in waiting if waiting[uuid]),
            key=lambda one: (here.get(one, 0), sign * (total[one] - free[one]), order[one]),
        )
        ids.append(waiting[uuid].pop(0))
        here[uuid] = here.get(uuid, 0) + 1
        free[uuid] -= 1
    return tuple(ids)


def _packed_instances(
    resource: Resource, candidates: Sequence[Device], size: int, busy: Collection[str]
) -> tuple[str, ...]:
    """MIG instances of GPUs in use, those with the fewest free instances first, before those of idle GPUs."""
    free = _counted(one.gpu for one in candidates)
    total = _counted(one.gpu for one in resource.devices)
    idle = {gpu for gpu in free if gpu not in busy and free[gpu] == total[gpu]}
    place = {one.id: number for number, one in enumerate(resource.devices)}
    ranked = sorted(candidates, key=lambda one: (one.gpu in idle, free[one.gpu], place[one.id]))
    return tuple(one.id for one in ranked[:size])


def _counted(names: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return counts
