"""Preferred allocation: which of the free devices of a resource a container should get.

Whole GPUs: the set whose pairs are best linked (`fleet.links`), where a pair scores by its nearest common
ancestor on PCIe and by its NVLinks. Replicas: devices that were not yet chosen first, then by the policy,
`distributed` (the least used device) or `packed` (the most used one). MIG instances: GPUs that are in use
first, and among them the fullest, so that whole GPUs stay free to be cut again (`fleet.device_choice`).
Source of the scores: go-gpuallocator's best-effort policy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from gpufleet.devices.backend import Link
from gpufleet.devices.inventory import Inventory
from gpufleet.devices.resources import Device, Resource
from gpufleet.fleet.device_choice import SharePolicy, packed, shares
from gpufleet.fleet.links import LinkTable, best_set, link_table

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
    """The links between the GPUs of a node; the GPUs stand in the table in this order."""

    gpus: tuple[str, ...] = ()
    table: LinkTable = LinkTable()

    def mask(self, uuids: Iterable[str]) -> int:
        """The set of these GPUs; those that the node does not have are left out."""
        wanted = frozenset(uuids)
        return self.table.mask(place for place, uuid in enumerate(self.gpus) if uuid in wanted)

    def members(self, mask: int) -> tuple[str, ...]:
        """The GPUs of a set."""
        return tuple(self.gpus[place] for place in self.table.places(mask))


def topology(inventory: Inventory, links: Mapping[tuple[str, str], Link]) -> Topology:
    """The topology of a node from the links of its pairs; a pair without one scores nothing."""
    gpus = tuple(gpu.uuid for gpu in inventory.gpus)
    pairs = {frozenset(pair): pair_score(link) for pair, link in links.items()}
    scores = tuple(tuple(pairs.get(frozenset((one, other)), 0) for other in gpus) for one in gpus)
    return Topology(gpus, link_table(scores, tuple(gpu.numa_node for gpu in inventory.gpus)))


def best_gpus(topology: Topology, free: Collection[str], must: Collection[str], size: int) -> tuple[str, ...]:
    """The best `size` of the `free` GPUs, `must` among them, by index; all of them when they are fewer."""
    return topology.members(best_set(topology.table, topology.mask(free), topology.mask(must), size))


def preferred(
    resource: Resource,
    available: Sequence[str],
    must: Sequence[str],
    size: int,
    *,
    topology: Topology,
    policy: SharePolicy = "distributed",
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
    policy: SharePolicy,
) -> tuple[str, ...]:
    """The lowest free replicas of the devices that should give one."""
    total, free = Counter(one.uuid for one in resource.devices), Counter(one.uuid for one in candidates)
    waiting: dict[str, list[str]] = {}
    for one in candidates:
        waiting.setdefault(one.uuid, []).append(one.id)
    here = Counter(one.uuid for one in chosen)
    return tuple(waiting[uuid].pop(0) for uuid in shares(free, total - free, here, size, policy))


def _packed_instances(
    resource: Resource, candidates: Sequence[Device], size: int, busy: Collection[str]
) -> tuple[str, ...]:
    total = Counter(one.gpu for one in resource.devices)
    return tuple(packed([(one.id, one.gpu) for one in candidates], total, busy, size))
