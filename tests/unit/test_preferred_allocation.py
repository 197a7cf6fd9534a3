"""Preferred allocation against brute force, and the policies for replicas and MIG instances."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.inventories import instance_of, islands, node, uuid_of, whole

from gpufleet.devices.backend import Link
from gpufleet.devices.inventory import Inventory
from gpufleet.devices.plugin_config import PluginConfig, SharedResource, Sharing
from gpufleet.devices.preferred_allocation import Topology, best_gpus, pair_score, preferred, topology
from gpufleet.devices.resources import Resource, offer
from gpufleet.fleet.device_choice import SharePolicy

Links = Mapping[tuple[str, str], Link]
EIGHT = tuple(uuid_of(index) for index in range(8))
NONE = Topology()
POLICIES: tuple[SharePolicy, ...] = ("distributed", "packed")
LEVELS = (Link("system"), Link("cpu"), Link("bridge"), Link("switches"), Link("switch"), Link("board"))


def linked(count: int, link: Callable[[int, int], Link]) -> Links:
    return {(uuid_of(a), uuid_of(b)): link(a, b) for a, b in combinations(range(count), 2)}


def pcie_tree(one: int, other: int) -> Link:
    """Two GPUs to a switch, two switches to a host bridge, a bridge to each processor."""
    if one // 2 == other // 2:
        return Link("switch")
    return Link("bridge") if one // 4 == other // 4 else Link("system")


def dgx1(one: int, other: int) -> Link:
    """The hybrid cube mesh of eight V100: one or two NVLinks between some pairs, none between others."""
    wires = {
        (0, 1): 1, (0, 2): 1, (0, 3): 2, (0, 4): 2, (1, 2): 2, (1, 3): 1, (1, 5): 2, (2, 3): 2, (2, 6): 1,
        (3, 7): 1, (4, 5): 1, (4, 6): 1, (4, 7): 2, (5, 6): 2, (5, 7): 1, (6, 7): 2,
    }  # fmt: skip
    level = 4 if one // 2 == other // 2 else 1 if one // 4 == other // 4 else 0
    return Link(LEVELS[level].pcie, wires.get((one, other), 0))


def anyhow(seed: int) -> Callable[[int, int], Link]:
    chance = random.Random(seed)
    return lambda one, other: Link(chance.choice(LEVELS).pcie, chance.choice([0, 0, 1, 4]))


def two_sockets(one: int, other: int) -> Link:
    """Four GPUs at each processor, and nothing but processors between any two."""
    return Link("cpu" if one // 4 == other // 4 else "system")


def switched(one: int, other: int) -> Link:
    """A DGX with NVLink switches: 18 links between any two, beside the PCIe of two processors."""
    return Link(pcie_tree(one, other).pcie, 18)


def quads(one: int, other: int) -> Link:
    """Two quads, one at each processor, three links between any two of a quad."""
    return Link(two_sockets(one, other).pcie, 3 if one // 4 == other // 4 else 0)


def bridged(one: int, other: int) -> Link:
    """Pairs with a bridge of NVLink on a PCIe tree of two processors."""
    return Link(pcie_tree(one, other).pcie, 12 if one // 2 == other // 2 else 0)


def crossed(one: int, other: int) -> Link:
    """Bridges that join GPUs of different processors: NVLink and PCIe say different things."""
    return Link(pcie_tree(one, other).pcie, 12 if one % 4 == other % 4 else 0)


MATRICES: dict[str, Links] = {
    "DGX with NVLink switches": linked(8, switched),
    "all to all": linked(8, lambda a, b: Link("system", 18)),
    "pairs of NVLink": islands(8, 2),
    "pairs on a PCIe tree": linked(8, bridged),
    "pairs across processors": linked(8, crossed),
    "quads": linked(8, quads),
    "two islands": islands(8, 4),
    "PCIe tree": linked(8, pcie_tree),
    "two sockets": linked(8, two_sockets),
    "cube mesh": linked(8, dgx1),
    "no links known": {},
    **{f"random {seed}": linked(8, anyhow(seed)) for seed in range(4)},
}


def score(links: Links, gpus: Collection[str]) -> int:
    return sum(pair_score(links[pair]) for pair in combinations(sorted(gpus), 2) if pair in links)


def subsets(gpus: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for size in range(len(gpus) + 1):
        yield from combinations(gpus, size)


def judged(
    inventory: Inventory, links: Links, free: Collection[str], chosen: Collection[str]
) -> tuple[int, int, int]:
    """What makes one choice better than another."""
    nodes = {gpu.numa_node for gpu in inventory.gpus if gpu.uuid in chosen}
    return score(links, chosen), score(links, set(free) - set(chosen)), -len(nodes)


@pytest.mark.parametrize("name", MATRICES)
def test_every_size_of_every_free_set_of_eight_gpus_is_the_best_that_there_is(name: str) -> None:
    inventory, links = whole(8), MATRICES[name]
    found = topology(inventory, links)
    for free in subsets(EIGHT):
        for size in range(1, len(free) + 1):
            chosen = best_gpus(found, free, (), size)
            every = list(combinations(free, size))
            best = max(judged(inventory, links, free, one) for one in every)
            first = next(one for one in every if judged(inventory, links, free, one) == best)
            assert chosen == first, (name, free, size)


@pytest.mark.parametrize("name", MATRICES)
def test_the_kubelet_is_told_the_best_of_every_free_set_whatever_the_size_of_the_node(name: str) -> None:
    """Through the answer to the kubelet, by the sum of pair scores alone, on nodes of one to eight GPUs."""
    for count in range(1, 9):
        inventory, gpus = whole(count), EIGHT[:count]
        links = {pair: link for pair, link in MATRICES[name].items() if set(pair) <= set(gpus)}
        resource = offer(inventory, PluginConfig()).resource("nvidia.com/gpu")
        found = topology(inventory, links)
        for free in subsets(gpus):
            for size in range(1, len(free) + 1):
                chosen = preferred(resource, free, (), size, topology=found)
                assert len(chosen) == len(set(chosen) & set(free)) == size
                optimum = max(score(links, one) for one in combinations(free, size))
                assert score(links, chosen) == optimum, (name, count, free, size)


@pytest.mark.parametrize("name", ["two islands", "cube mesh", "random 0"])
def test_what_must_be_included_is_and_the_rest_is_the_best_beside_it(name: str) -> None:
    six, links = EIGHT[:6], MATRICES[name]
    found = topology(whole(8), links)
    for free in subsets(six):
        for must in subsets(free):
            for size in range(max(1, len(must)), len(free) + 1):
                chosen = best_gpus(found, free, must, size)
                assert len(chosen) == size
                assert set(must) <= set(chosen) <= set(free)
                best = max(score(links, one) for one in combinations(free, size) if set(must) <= set(one))
                assert score(links, chosen) == best


def test_one_gpu_is_taken_where_it_breaks_no_island() -> None:
    found = topology(whole(8), islands(8, 4))
    assert best_gpus(found, (*EIGHT[:4], EIGHT[6]), (), 1) == (EIGHT[6],)


def test_among_equals_the_gpus_of_one_numa_node_are_taken() -> None:
    links = linked(8, lambda a, b: Link("system", 18))
    assert best_gpus(topology(whole(8), links), (*EIGHT[2:4], *EIGHT[4:7]), (), 3) == EIGHT[4:7]


def test_sixteen_gpus_are_exact_too() -> None:
    """Groups of different strength: the best eight are the two strongest fours."""
    strength = (1, 6, 2, 5)
    links = linked(16, lambda a, b: Link("bridge", strength[a // 4]) if a // 4 == b // 4 else Link("system"))
    sixteen = tuple(uuid_of(index) for index in range(16))
    found = topology(whole(16), links)
    assert best_gpus(found, sixteen, (), 8) == sixteen[4:8] + sixteen[12:16]
    assert best_gpus(found, sixteen, sixteen[:1], 8) == sixteen[0:1] + sixteen[4:8] + sixteen[12:15]


def test_a_node_with_more_gpus_gets_whole_islands_as_well() -> None:
    count = 24
    every = tuple(uuid_of(index) for index in range(count))
    found = topology(whole(count), islands(count, 4))
    free = every[1:]
    assert best_gpus(found, free, (), 4) == every[4:8]
    assert best_gpus(found, free, (), 8) == every[4:12]
    assert best_gpus(found, every, every[9:10], 4) == every[8:12]
    assert best_gpus(found, every[:2], (), 4) == every[:2]


def test_the_order_of_the_question_does_not_change_the_answer() -> None:
    found, chance = topology(whole(8), MATRICES["all to all"]), random.Random(1)
    resource = offer(whole(8), PluginConfig()).resource("nvidia.com/gpu")
    answers = set()
    for _ in range(20):
        asked = chance.sample(EIGHT, 8)
        answers.add(preferred(resource, asked, (), 3, topology=found))
    assert answers == {EIGHT[:3]}


def test_a_pair_scores_by_its_nearest_common_ancestor_and_its_nvlinks() -> None:
    assert [pair_score(one) for one in LEVELS] == [10, 20, 30, 40, 50, 60]
    assert pair_score(Link("system", 18)) == 1810


def replicated(gpus: int, replicas: int) -> Resource:
    config = PluginConfig(sharing=Sharing("time-slicing", (SharedResource("nvidia.com/gpu", replicas),)))
    return offer(whole(gpus), config).resource("nvidia.com/gpu")


def replica(gpu: int, number: int) -> str:
    return f"{uuid_of(gpu)}::{number}"


def test_distributed_replicas_go_to_the_least_used_gpu() -> None:
    resource = replicated(3, 3)
    available = [
        one.id for one in resource.devices if one.id not in (replica(0, 0), replica(1, 0), replica(1, 1))
    ]
    assert preferred(resource, available, (), 1, topology=NONE) == (replica(2, 0),)
    assert preferred(resource, available, (), 4, topology=NONE) == (
        replica(2, 0), replica(0, 1), replica(1, 2), replica(2, 1)
    )  # fmt: skip


def test_packed_replicas_go_to_the_most_used_gpu_and_to_different_ones_when_there_are_several() -> None:
    resource = replicated(3, 3)
    available = [
        one.id for one in resource.devices if one.id not in (replica(0, 0), replica(1, 0), replica(1, 1))
    ]
    assert preferred(resource, available, (), 1, topology=NONE, policy="packed") == (replica(1, 2),)
    assert preferred(resource, available, (), 2, topology=NONE, policy="packed") == (
        replica(1, 2),
        replica(0, 1),
    )


def test_a_second_replica_is_of_another_gpu_than_the_one_that_must_be_included() -> None:
    resource = replicated(2, 4)
    available = [one.id for one in resource.devices]
    chosen = preferred(resource, available, [replica(0, 2)], 2, topology=NONE, policy="packed")
    assert chosen == (replica(0, 2), replica(1, 0))


def test_instances_come_from_gpus_in_use_and_from_the_fullest_first() -> None:
    cut = ("1g.10gb",) * 7
    resource = offer(node(cut, cut, cut), PluginConfig(mig_strategy="mixed")).resources[0]
    used = {instance_of(1, 1), instance_of(2, 1), instance_of(2, 2), instance_of(2, 3)}
    available = [one.id for one in resource.devices if one.id not in used]
    chosen = preferred(resource, available, (), 5, topology=NONE)
    assert chosen == (*(instance_of(2, number) for number in (4, 5, 6, 7)), instance_of(1, 2))


def test_an_instance_of_a_gpu_that_another_profile_uses_comes_before_one_of_an_idle_gpu() -> None:
    cut = ("1g.10gb", "3g.40gb")
    inventory = node(cut, cut)
    resource = offer(inventory, PluginConfig(mig_strategy="mixed")).resource("nvidia.com/mig-1g.10gb")
    available = [one.id for one in resource.devices]
    (chosen,) = preferred(resource, available, (), 1, topology=NONE, busy={uuid_of(1)})
    assert chosen == available[1]


@given(st.data())
def test_an_answer_is_of_what_was_asked_for_and_no_more(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["whole", "replicas", "instances"]))
    if kind == "whole":
        resource = offer(whole(5), PluginConfig()).resource("nvidia.com/gpu")
    elif kind == "replicas":
        resource = replicated(3, 3)
    else:
        inventory = node(("1g.10gb",) * 4, ("1g.10gb",) * 3)
        resource = offer(inventory, PluginConfig(mig_strategy="mixed")).resources[0]
    every = [one.id for one in resource.devices]
    available = data.draw(st.lists(st.sampled_from([*every, "GPU-not-there"]), unique=True))
    must = data.draw(st.lists(st.sampled_from(available), unique=True)) if available else []
    must = [one for one in must if one in every]
    size = data.draw(st.integers(max(1, len(must)), 10))
    links = data.draw(st.sampled_from([topology(whole(5), islands(5, 2)), topology(whole(2), {}), NONE]))
    known = set(available) & set(every)
    for policy in POLICIES:
        chosen = preferred(resource, available, must, size, topology=links, policy=policy)
        assert len(chosen) == len(set(chosen)) == min(size, len(known))
        assert set(must) <= set(chosen) <= known
