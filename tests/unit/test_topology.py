"""Gangs near to each other: in one domain where they must, in the fewest where they had better."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec
import pytest
from tests.unit.fleets import node, pod

from gpufleet.fleet.gangs import Gang, Segment, SubGroup, Topology
from gpufleet.fleet.nodes import Node
from gpufleet.fleet.plans import Bind, Plan, Unschedulable
from gpufleet.fleet.pods import GangRef, Pod
from gpufleet.fleet.snapshot import Snapshot, snapshot_of
from gpufleet.scheduling.cycle import Policy, decide

RACK, BLOCK = "rack", "block"
KEY = "default/g"


def racks(*sizes: Sequence[int], blocks: Mapping[int, str] | None = None) -> tuple[Node, ...]:
    """Nodes with so many GPUs, rack by rack."""
    return tuple(
        node(
            f"n{rack}-{index}",
            gpus=gpus,
            labels={RACK: f"r{rack}", BLOCK: (blocks or {}).get(rack, "b")},
        )
        for rack, size in enumerate(sizes)
        for index, gpus in enumerate(size)
    )


def member(index: int, gpus: int = 8, subgroup: str = "", on: str = "") -> Pod:
    found = pod(f"p{index:03}", gpus=gpus, node=on)
    return msgspec.structs.replace(found, gang=GangRef("g", None, "object", subgroup=subgroup))


def gang(minimum: int, required: str = "", preferred: str = "", **more: object) -> Gang:
    return msgspec.structs.replace(
        Gang(KEY, "object", minimum, topology=Topology(required, preferred)), **more
    )


def fleet(nodes: Sequence[Node], pods: Sequence[Pod], described: Gang) -> Snapshot:
    return snapshot_of(tuple(nodes), tuple(pods), gangs={KEY: described})


def placed(plan: Plan) -> dict[str, str]:
    return {action.pod.name: action.node for action in plan.actions if isinstance(action, Bind)}


def domains(found: Mapping[str, str], nodes: Sequence[Node], key: str = RACK) -> Counter[str]:
    labels = {one.name: one.labels[key] for one in nodes}
    return Counter(labels[name] for name in found.values())


def said(plan: Plan) -> list[str]:
    return [
        reason.message
        for action in plan.actions
        if isinstance(action, Unschedulable)
        for reason in action.reasons
        if reason.code == "TopologyUnsatisfied"
    ]


def test_a_gang_that_must_share_a_rack_takes_the_tightest_that_has_room() -> None:
    nodes = racks([8] * 5, [8] * 3, [8] * 4)
    found = placed(decide(fleet(nodes, [member(i) for i in range(3)], gang(3, RACK)), Policy()))
    assert domains(found, nodes) == {"r1": 3}


def test_none_is_bound_where_no_rack_has_room_for_all_and_the_text_says_how_many_it_lacks() -> None:
    nodes = racks([8, 8], [8, 8, 8])
    plan = decide(fleet(nodes, [member(i) for i in range(4)], gang(4, RACK)), Policy())
    assert not placed(plan)
    assert said(plan)[0] == (
        "4 pods of gang default/g must share one domain of rack; "
        "the roomiest of 2 domains has room for 3 of them"
    )


def test_what_is_left_of_a_gang_joins_the_rack_in_which_it_runs() -> None:
    nodes = racks([8, 8, 8], [8, 8])
    pods = [member(0, on="n0-0"), member(1), member(2)]
    found = placed(decide(fleet(nodes, pods, gang(3, RACK)), Policy()))
    assert domains(found, nodes) == {"r0": 2}


def test_a_rack_in_which_it_runs_and_that_is_full_is_named() -> None:
    nodes = racks([8, 8], [8, 8, 8])
    pods = [member(0, on="n0-0"), member(1), member(2)]
    plan = decide(fleet(nodes, pods, gang(3, RACK)), Policy())
    assert "r0 (rack), where its other pods run, has room for 1" in said(plan)[0]


def test_a_preferred_rack_is_left_only_for_what_does_not_fit_and_as_few_as_can_be_are_used() -> None:
    nodes = racks([8] * 2, [8] * 5, [8] * 3, [8] * 4)
    found = placed(decide(fleet(nodes, [member(i) for i in range(7)], gang(7, preferred=RACK)), Policy()))
    assert domains(found, nodes) == {"r1": 5, "r0": 2}


def test_a_preferred_rack_within_a_required_block() -> None:
    nodes = racks([8] * 3, [8] * 3, [8] * 5, blocks={0: "x", 1: "x", 2: "y"})
    pods = [member(i) for i in range(6)]
    found = placed(decide(fleet(nodes, pods, gang(6, BLOCK, RACK)), Policy()))
    assert domains(found, nodes, BLOCK) == {"x": 6}


def test_neighbours_in_rank_are_neighbours_in_the_topology() -> None:
    nodes = racks([8] * 4, [8] * 4)
    found = placed(decide(fleet(nodes, [member(i) for i in range(8)], gang(8, preferred=RACK)), Policy()))
    racks_by_rank = [found[f"p{i:03}"].split("-")[0] for i in range(8)]
    assert racks_by_rank in (["n0"] * 4 + ["n1"] * 4, ["n1"] * 4 + ["n0"] * 4)


def test_each_segment_shares_a_rack() -> None:
    nodes = racks([8] * 5, [8] * 2, [8] * 3)
    described = gang(8, segment=Segment(2, Topology(RACK)))
    found = placed(decide(fleet(nodes, [member(i) for i in range(8)], described), Policy()))
    assert len(found) == 8
    for first in range(0, 8, 2):
        assert len({found[f"p{i:03}"].split("-")[0] for i in (first, first + 1)}) == 1


def test_each_subgroup_shares_a_rack_of_its_own() -> None:
    nodes = racks([8] * 3, [8] * 3)
    groups = tuple(SubGroup(name, minimum=3, topology=Topology(RACK)) for name in "ab")
    pods = [member(i, subgroup="ab"[i % 2]) for i in range(6)]
    found = placed(decide(fleet(nodes, pods, gang(6, subgroups=groups)), Policy()))
    assert len(found) == 6
    for start in (0, 1):
        assert len({found[f"p{i:03}"].split("-")[0] for i in range(start, 6, 2)}) == 1


def test_nobody_is_evicted_for_a_gang_that_must_be_near_as_long_as_that_is_not_weighed() -> None:
    nodes = racks([8, 8], [8, 8])
    low = [pod(f"low{i}", gpus=8, node=one.name) for i, one in enumerate(nodes)]
    high = [msgspec.structs.replace(member(i), priority=10) for i in range(2)]
    plan = decide(fleet(nodes, [*low, *high], gang(2, RACK)), Policy())
    assert {type(action) for action in plan.actions} == {Unschedulable}


@pytest.mark.parametrize("required", [True, False])
def test_random_fleets_against_what_is_possible(required: bool) -> None:
    """A rack is found exactly when one has room; and the fewest racks are used, where pods are alike."""
    outcomes = Counter[bool]()
    for seed in range(200):
        draw = random.Random(seed)
        sizes = [[draw.choice([0, 2, 4, 8]) for _ in range(draw.randint(1, 4))] for _ in range(4)]
        gpus = draw.choice([1, 2, 4, 8])
        count = draw.randint(2, 8)
        nodes = racks(*sizes)
        room = sorted((sum(size // gpus for size in rack) for rack in sizes), reverse=True)
        wanted = gang(count, RACK) if required else gang(count, preferred=RACK)
        found = placed(decide(fleet(nodes, [member(i, gpus) for i in range(count)], wanted), Policy()))
        possible = room[0] >= count if required else sum(room) >= count
        assert bool(found) == possible, (seed, sizes, gpus, count)
        if found:
            fewest = next(k for k in range(1, 5) if sum(room[:k]) >= count)
            assert len(domains(found, nodes)) == fewest, (seed, sizes, gpus, count, found)
        outcomes[possible] += 1
    assert min(outcomes.values()) > 20, outcomes
