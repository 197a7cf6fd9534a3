"""Subgroups of gangs: each is placed with its own minimum or not at all, and as many as the tree needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.explanations import why
from tests.unit.fleets import node, pod
from tests.unit.random_fleets import binds, evictions, nominations, reports

from gpufleet.fleet.gangs import Gang, SubGroup, incomplete, missing, tree_problem
from gpufleet.fleet.plans import Plan
from gpufleet.fleet.pods import GangRef, Pod
from gpufleet.fleet.snapshot import Snapshot, snapshot_of
from gpufleet.scheduling.cycle import Policy, decide

KEY = "default/train"
FLAT = (SubGroup("leader", minimum=1), SubGroup("workers", minimum=3))
TREE = (
    SubGroup("a", minimum=2),
    SubGroup("b", minimum=2),
    SubGroup("a1", "a", 1),
    SubGroup("a2", "a", 1),
    SubGroup("b1", "b", 2),
    SubGroup("b2", "b", 2),
)


def described(minimum: int = 1, subgroups: tuple[SubGroup, ...] = FLAT, groups: int | None = None) -> Gang:
    return Gang(KEY, "KAI PodGroup", minimum, subgroups=subgroups, minimum_subgroups=groups)


def member(name: str, subgroup: str, gpus: int = 8, **rest: object) -> Pod:
    ref = GangRef("train", None, "KAI PodGroup", subgroup=subgroup)
    return pod(name, gpus=gpus, gang=ref, **rest)  # type: ignore[arg-type]


def members(**counts: int) -> list[Pod]:
    return [member(f"{group}-{i}", group) for group, count in counts.items() for i in range(count)]


def fleet(machines: int, pods: Iterable[Pod], gang: Gang | None) -> Snapshot:
    nodes = tuple(node(f"n{i}", gpus=8) for i in range(machines))
    return snapshot_of(nodes, tuple(pods), gangs={KEY: gang} if gang else {})


def plan(machines: int, pods: Iterable[Pod], gang: Gang | None) -> Plan:
    return decide(fleet(machines, pods, gang), Policy())


def bound(found: Plan) -> Counter[str]:
    return Counter(name.rpartition("-")[0] for name in binds(found))


def test_the_minimum_of_the_object_counts_and_not_that_of_the_pods() -> None:
    four = [msgspec.structs.replace(p, gang=GangRef("train", 2, "x")) for p in members(workers=4)]
    assert not binds(plan(3, four, described(4, ())))
    assert len(binds(plan(4, four, described(4, ())))) == 4


def test_pods_of_a_gang_whose_object_is_absent_wait_and_say_for_what() -> None:
    found = plan(4, members(workers=2), None)
    assert not binds(found)
    assert reports(found)["workers-0"] == ("GangIncomplete",)
    told = why(fleet(4, members(workers=2), None), "workers-0")
    assert told.reasons[0].message == (
        "the KAI PodGroup that says how many pods gang default/train needs cannot be found"
    )
    assert [change.message for change in told.changes] == [
        "create the KAI PodGroup of gang default/train, with a minimum of 2"
    ]
    assert told.gang_rule == "KAI PodGroup"


def test_what_an_object_says_that_makes_no_sense_is_told() -> None:
    found = plan(4, members(workers=2), Gang(KEY, "KAI PodGroup", problem="minMember is -1"))
    assert reports(found)["workers-0"] == ("GangInvalid",)


def test_a_subgroup_that_lacks_pods_keeps_the_gang_back_and_is_named() -> None:
    told = why(fleet(9, members(workers=4), described(4)), "workers-0")
    assert told.reasons[0].message == "gang default/train needs 1 pod of subgroup leader and 0 are there"
    (change, *_) = told.changes
    assert change.message == "create 1 more pod of subgroup leader of gang default/train like workers-0"


def test_the_pods_that_a_subgroup_needs_come_before_those_that_it_could_do_without() -> None:
    assert bound(plan(4, members(workers=6, leader=1), described())) == {"workers": 3, "leader": 1}
    assert bound(plan(3, members(workers=6, leader=1), described())) == {}
    assert bound(plan(6, members(workers=6, leader=1), described())) == {"workers": 5, "leader": 1}


def test_of_subgroups_of_which_one_suffices_none_is_placed_in_part() -> None:
    gang = described(2, (SubGroup("a", minimum=2), SubGroup("b", minimum=4)), groups=1)
    found = plan(5, members(a=2, b=4), gang)
    assert bound(found) == {"a": 2}
    assert reports(found)["b-0"] == ("GangUnplaceable",)
    assert bound(plan(6, members(a=2, b=4), gang)) == {"a": 2, "b": 4}


def test_a_subgroup_that_cannot_be_whole_leaves_its_room_to_one_that_can() -> None:
    gang = described(2, (SubGroup("a", minimum=4), SubGroup("b", minimum=2)), groups=1)
    assert bound(plan(3, members(a=4, b=2), gang)) == {"b": 2}


def test_a_subgroup_that_comes_later_is_placed_whole_or_not_at_all() -> None:
    gang = described(2, (SubGroup("a", minimum=2), SubGroup("b", minimum=2)), groups=1)
    running = [member(f"a-{i}", "a", node=f"n{i}") for i in range(2)]
    assert bound(plan(3, [*running, *members(b=2)], gang)) == {}
    assert bound(plan(4, [*running, *members(b=2)], gang)) == {"b": 2}


def test_a_tree_counts_complete_groups_at_each_level() -> None:
    everything = members(a1=1, a2=1, b1=2, b2=2)
    assert len(binds(plan(6, everything, described(1, TREE)))) == 6
    assert not binds(plan(5, everything, described(1, TREE)))
    assert bound(plan(5, everything, described(1, TREE, groups=1))) == {"a1": 1, "a2": 1}


def test_a_replacement_of_a_subgroup_is_placed_alone_when_the_others_run() -> None:
    running = [member("leader-0", "leader", node="n0")]
    running += [member(f"workers-{i}", "workers", node=f"n{i + 1}") for i in range(2)]
    assert bound(plan(4, [*running, *members(x=0), member("workers-9", "workers")], described())) == {
        "workers": 1
    }


def test_members_that_succeeded_complete_their_subgroup() -> None:
    done = msgspec.structs.replace(member("leader-0", "leader", node="n9"), phase="Succeeded")
    assert bound(plan(3, [done, *members(workers=3)], described())) == {"workers": 3}


def test_nobody_ends_for_a_part_of_a_subgroup_that_cannot_be_whole() -> None:
    gang = described(2, (SubGroup("a", minimum=2), SubGroup("b", minimum=4)), groups=1)
    cheap = [pod(f"cheap-{i}", gpus=8, node=f"n{i}") for i in range(3)]
    fixed = [pod(f"fixed-{i}", gpus=8, node=f"n{i + 3}", priority=99) for i in range(2)]
    raised = [msgspec.structs.replace(p, priority=9) for p in members(a=2, b=4)]
    found = plan(5, [*cheap, *fixed, *raised], gang)
    assert len(evictions(found)) == 2
    assert set(nominations(found)) == {"a-0", "a-1"}
    assert not evictions(plan(5, [*cheap, *fixed, *(p for p in raised if p.name[0] == "b")], gang))


def test_a_subgroup_that_comes_later_and_does_not_fit_is_told_how_much_it_lacks() -> None:
    gang = described(2, (SubGroup("a", minimum=2), SubGroup("b", minimum=2)), groups=1)
    running = [member(f"a-{i}", "a", node=f"n{i}") for i in range(2)]
    told = why(fleet(3, [*running, *members(b=2)], gang), "b-0")
    assert told.verdict == "not-now"
    assert told.reasons[0].message.startswith(
        "1 of the 2 pods that gang default/train still needs fit at once"
    )
    assert any(change.kind == "add-nodes" for change in told.changes), told.changes


def test_a_subgroup_is_not_robbed_below_its_minimum() -> None:
    """Five run and two are needed, but the leader is one of one: who takes it ends the gang."""
    running = [member("leader-0", "leader", gpus=8, node="n0")]
    running += [member(f"workers-{i}", "workers", gpus=8, node=f"n{i + 1}") for i in range(3)]
    urgent = pod("urgent", gpus=8, priority=9)
    found = plan(4, [*running, urgent], described(2))
    assert len(evictions(found)) == 4
    spare = plan(5, [*running, member("workers-3", "workers", node="n4"), urgent], described(2))
    assert len(evictions(spare)) in (1, 5)


def test_a_pod_of_no_subgroup_counts_for_the_gang_alone() -> None:
    running = [member("leader-0", "leader", node="n0")]
    running += [member(f"workers-{i}", "workers", node=f"n{i + 1}") for i in range(3)]
    assert bound(plan(5, [*running, *members(other=1)], described())) == {"other": 1}
    assert bound(plan(5, [*running, member("none-0", "")], described())) == {"none": 1}
    assert bound(plan(4, [*members(leader=1, workers=3), member("none-0", "")], described(5))) == {}
    assert len(binds(plan(5, [*members(leader=1, workers=3), member("none-0", "")], described(5)))) == 5


@pytest.mark.parametrize(
    ("groups", "top", "words"),
    [
        ((SubGroup("a"), SubGroup("a")), None, "two subgroups a"),
        ((SubGroup("a", "b"),), None, "has the parent b, which there is not"),
        ((SubGroup("a", "b"), SubGroup("b", "a")), None, "above itself"),
        ((SubGroup("a", minimum=2), SubGroup("b", "a")), None, "needs 2 subgroups and has 1"),
        ((SubGroup("a"),), 2, "the gang needs 2 subgroups and has 1"),
        (TREE, 2, ""),
    ],
)
def test_trees_that_can_never_be_complete_are_told(
    groups: tuple[SubGroup, ...], top: int | None, words: str
) -> None:
    problem = tree_problem(groups, top)
    assert words in problem
    assert bool(problem) == bool(words)


@given(
    minimums=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    wanted=st.integers(0, 4),
    have=st.lists(st.integers(0, 5), min_size=4, max_size=4),
)
def test_what_is_missing_is_the_fewest_pods_that_complete_enough_groups(
    minimums: list[int], wanted: int, have: list[int]
) -> None:
    wanted = min(wanted, len(minimums))
    groups = tuple(SubGroup(f"g{i}", minimum=m) for i, m in enumerate(minimums))
    gang = described(1, groups, groups=wanted)
    counts = {f"g{i}": have[i] for i in range(len(groups))}
    lacks = sorted(max(0, m - have[i]) for i, m in enumerate(minimums))
    assert missing(gang, counts) == sum(lacks[:wanted])
    assert len(incomplete(gang, counts)) == sum(lack > 0 for lack in lacks)


@given(
    minimums=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    pods=st.lists(st.integers(0, 5), min_size=3, max_size=3),
    machines=st.integers(0, 9),
    wanted=st.none() | st.integers(1, 3),
)
def test_no_plan_leaves_a_subgroup_in_part(
    minimums: list[int], pods: list[int], machines: int, wanted: int | None
) -> None:
    wanted = None if wanted is None else min(wanted, len(minimums))
    groups = tuple(SubGroup(f"g{i}", minimum=m) for i, m in enumerate(minimums))
    counts = {f"g{i}": pods[i] for i in range(len(groups))}
    gang = described(1, groups, groups=wanted)
    placed = bound(plan(machines, members(**counts), gang))
    whole = sum(placed[group.name] >= group.minimum for group in groups)
    for group in groups:
        assert placed[group.name] == 0 or placed[group.name] >= group.minimum
    assert not placed or whole >= (len(groups) if wanted is None else wanted)
    best = sorted(m for i, m in enumerate(minimums) if pods[i] >= m)
    needed = len(groups) if wanted is None else wanted
    if len(best) >= needed and sum(best[:needed]) <= machines:
        assert placed, "there is room for the smallest groups that suffice"


@st.composite
def trees(draw: st.DrawFn) -> Gang:
    """A gang of up to three groups, each with up to three leaves; of each as many suffice as are drawn."""
    groups: list[SubGroup] = []
    count = draw(st.integers(1, 3))
    for index in range(count):
        leaves = draw(st.integers(1, 3))
        groups.append(SubGroup(f"g{index}", minimum=draw(st.integers(1, leaves))))
        groups += [SubGroup(f"g{index}l{i}", f"g{index}", draw(st.integers(1, 3))) for i in range(leaves)]
    return described(1, tuple(groups), groups=draw(st.integers(1, count)))


@given(trees(), st.integers(0, 12), st.data())
def test_a_tree_is_placed_exactly_if_there_is_room_for_its_cheapest_part(
    gang: Gang, machines: int, data: st.DataObject
) -> None:
    counts = {leaf.name: data.draw(st.integers(leaf.minimum, 4)) for leaf in gang.leaves}
    placed = bound(plan(machines, members(**counts), gang))
    assert bool(placed) == (missing(gang, {}) <= machines)
    if placed:
        assert not missing(gang, placed)
        assert not {leaf for leaf in incomplete(gang, placed) if placed[leaf]}
