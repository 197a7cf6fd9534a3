"""Gangs run as a whole or not at all, and the queue takes them in order."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import pytest
from tests.unit.fleets import HOST, ZONE, claim, gang, near, node, pod, storage, volume, waiting_class
from tests.unit.random_fleets import binds, evictions, nominations, reports

from gpufleet.fleet.nodes import Node
from gpufleet.fleet.plans import BindVolume, Evict, Plan, Unschedulable
from gpufleet.fleet.pods import GangRef, Pod
from gpufleet.fleet.snapshot import snapshot_of
from gpufleet.scheduling.cycle import Policy, decide
from gpufleet.scheduling.gangs import Unit, units


def member(name: str, size: int | None = 4, *, gpus: int = 8, **rest: object) -> Pod:
    return pod(name, gpus=gpus, gang=gang("train", size), **rest)  # type: ignore[arg-type]


def members(count: int, **rest: object) -> list[Pod]:
    return [member(f"w{index}", **rest) for index in range(count)]  # type: ignore[arg-type]


def machines(count: int, gpus: int = 8) -> list[Node]:
    return [node(f"n{index}", gpus=gpus) for index in range(count)]


def plan(nodes: Iterable[Node], pods: Iterable[Pod], **rest: object) -> Plan:
    return decide(snapshot_of(tuple(nodes), tuple(pods), **rest), Policy())


def queue(*pods: Pod) -> list[Unit]:
    return units(snapshot_of(pods=pods), Policy().responsible)


def succeeded(name: str, **rest: object) -> Pod:
    return msgspec.structs.replace(member(name, node="n9", **rest), phase="Succeeded")  # type: ignore[arg-type]


def told(found: Plan, name: str) -> list[str]:
    """The messages of the report about a pod."""
    (report,) = [a for a in found.actions if isinstance(a, Unschedulable) and a.pod.name == name]
    return [reason.message for reason in report.reasons]


# all or nothing


def test_a_gang_is_bound_whole() -> None:
    found = plan(machines(4), members(4))
    assert sorted(binds(found)) == ["w0", "w1", "w2", "w3"]
    assert len(set(binds(found).values())) == 4


def test_a_gang_binds_nothing_when_one_pod_does_not_fit() -> None:
    found = plan(machines(3), members(4))
    assert not binds(found)
    assert reports(found)["w0"] == ("GangUnplaceable", "InsufficientResource", "NoVictims")


def test_nodes_that_are_full_once_a_part_of_the_gang_is_placed_are_told_as_that() -> None:
    found = plan(machines(4), members(5, size=5))
    assert told(found, "w0")[:2] == [
        (
            "4 of the 5 pods that gang default/train still needs fit at once; "
            "with them placed no node is left for the next one"
        ),
        "with them placed: 4 nodes with too little nvidia.com/gpu free: 8 needed, at most 0 free",
    ]


def test_a_pod_that_its_gang_does_not_need_waits_like_any_other() -> None:
    running = [member(f"w{i}", 3, node=f"n{i}") for i in range(3)]
    found = plan(machines(3), [*running, member("w3", 3)])
    assert reports(found) == {"w3": ("InsufficientResource", "NoVictims")}
    (bind,) = plan(machines(4), [*running, member("w3", 3)]).actions
    assert [reason.code for reason in bind.reasons] == ["OnlyFit"]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (member("w1", 2, gates=["ex.com/a"]), "w1 is gated by ex.com/a"),
        (msgspec.structs.replace(member("w1", 2), scheduler="mine"), "w1 is left to scheduler mine"),
        (member("w1", 2, terminating=True), "w1 is being deleted"),
    ],
)
def test_members_that_are_there_and_kept_back_are_named(other: Pod, words: str) -> None:
    found = plan(machines(2), [member("w0", 2), other])
    assert told(found, "w0") == [f"gang default/train needs 2 pods and 2 exist, but {words}"]


def test_a_statefulset_that_makes_one_pod_at_a_time_is_told_as_the_likely_cause() -> None:
    found = plan(machines(2), [member("w0", 2, owner="train", kind="StatefulSet")])
    assert "podManagementPolicy" in told(found, "w0")[0]


def test_members_that_end_on_other_nodes_are_told_that_the_gang_ends_as_a_whole() -> None:
    running = [member(f"w{i}", 2, node=f"n{i}") for i in range(2)]
    found = plan(machines(2), [*running, pod("urgent", gpus=8, priority=10)])
    words = {a.pod.name: a.reasons[0].message for a in found.actions if isinstance(a, Evict)}
    assert words["w0"].endswith("which fits on n0 without it")
    assert words["w1"].endswith("without other pods of gang default/train; the gang ends as a whole")


def test_what_a_gang_that_does_not_fit_would_take_is_left_to_others() -> None:
    found = plan(machines(3), [*members(4), pod("single", gpus=8)])
    assert binds(found).keys() == {"single"}


def test_two_gangs_that_fit_one_at_a_time_do_not_share() -> None:
    second = [pod(f"x{i}", gpus=8, gang=gang("other", 2), created=9) for i in range(2)]
    found = plan(machines(3), [*members(2, size=2), *second])
    assert binds(found).keys() == {"w0", "w1"}


@pytest.mark.parametrize("nodes", [2, 3])
def test_members_that_run_already_count(nodes: int) -> None:
    running = [member("w0", 3, node="n0"), member("w1", 3, node="n1")]
    found = plan(machines(nodes), [*running, member("w2", 3)])
    assert binds(found) == ({"w2": "n2"} if nodes == 3 else {})


def test_members_that_have_succeeded_count_and_those_that_failed_or_are_ending_do_not() -> None:
    done = [succeeded("w0"), succeeded("w1")]
    assert binds(plan(machines(1), [*done, member("w2", 3)])).keys() == {"w2"}
    failed = msgspec.structs.replace(done[1], phase="Failed")
    assert reports(plan(machines(1), [done[0], failed, member("w2", 3)]))["w2"] == ("GangIncomplete",)
    ending = member("w1", 3, node="n0", terminating=True)
    assert reports(plan(machines(2), [done[0], ending, member("w2", 3)]))["w2"] == ("GangIncomplete",)


def test_members_that_succeeded_in_an_earlier_run_of_the_name_do_not_count() -> None:
    earlier = [succeeded(f"w{i}", owner="job1", kind="Job") for i in range(4)]
    waiting = [member(f"v{i}", owner="job2", kind="Job") for i in range(4)]
    assert binds(plan(machines(1), [*earlier, *waiting])) == {}
    assert len(binds(plan(machines(4), [*earlier, *waiting]))) == 4


def test_members_of_several_owners_that_succeeded_count_while_their_owner_has_one_left() -> None:
    driver = member("d0", owner="driver", kind="Job")
    running = member("w0", node="n0", owner="workers", kind="Job")
    done = [succeeded(f"w{i}", owner="workers", kind="Job") for i in (1, 2)]
    assert binds(plan(machines(2), [driver, running, *done])) == {"d0": "n1"}
    assert reports(plan(machines(2), [driver, *done]))["d0"] == ("GangIncomplete",)


def test_members_beyond_the_minimum_are_bound_if_they_fit_and_wait_alone_if_not() -> None:
    found = plan(machines(3), members(4, size=2))
    assert binds(found).keys() == {"w0", "w1", "w2"}
    assert reports(found) == {"w3": ("InsufficientResource", "NoVictims")}


def test_members_of_different_sizes_are_placed_largest_first() -> None:
    small = [pod(f"s{i}", gpus=2, gang=gang("train", 3)) for i in range(2)]
    found = plan([node("a", gpus=8), node("b", gpus=4)], [*small, member("large", 3)])
    assert binds(found) == {"large": "a", "s0": "b", "s1": "b"}


def test_members_that_must_be_near_each_other_are_placed_in_any_order() -> None:
    """The larger one is taken first and needs the smaller one nearby."""
    lead = member("lead", 2, gpus=1, labels={"role": "lead"})
    follower = member("follower", 2, gpus=8, affinity=[near(ZONE, role="lead")])
    nodes = [node("a", gpus=8, zone="x"), node("b", gpus=1, zone="x")]
    assert binds(plan(nodes, [lead, follower])).keys() == {"lead", "follower"}


def test_a_gang_with_anti_affinity_among_its_members_needs_as_many_nodes() -> None:
    apart = members(2, size=2, gpus=1, labels={"app": "t"}, anti_affinity=[near(HOST, app="t")])
    assert binds(plan(machines(2), apart)).keys() == {"w0", "w1"}
    assert not binds(plan(machines(1), apart))


def test_gangs_of_one_name_in_two_namespaces_are_two_gangs() -> None:
    other = msgspec.structs.replace(member("w1", 2), namespace="other")
    assert len(queue(member("w0", 2), other)) == 2


# incomplete and invalid


def test_an_incomplete_gang_says_how_many_are_missing() -> None:
    (unit,) = queue(*members(3))
    assert unit.problem is not None
    assert unit.problem.code == "GangIncomplete"
    assert unit.problem.evidence == {"need": 4, "have": 3}


def test_gated_and_foreign_members_are_missing() -> None:
    gated = member("w2", 3, gates=["wait"])
    (unit,) = queue(*members(2, size=3), gated)
    assert unit.problem is not None
    foreign = msgspec.structs.replace(gated, gates=(), scheduler="other")
    (unit,) = queue(*members(2, size=3), foreign)
    assert unit.problem is not None


def test_members_that_disagree_about_the_size_make_the_gang_invalid() -> None:
    found = plan(machines(4), [member("w0", 2), member("w1", 3), member("w2", 2)])
    assert not binds(found)
    assert set(reports(found).values()) == {("GangInvalid",)}


def test_a_size_that_was_not_understood_is_told_in_its_own_words() -> None:
    bad = msgspec.structs.replace(
        member("w0", 2), gang=GangRef("train", None, "label", "gang-size must be a number, not 'two'")
    )
    (unit,) = queue(bad, member("w1", 2))
    assert unit.problem is not None
    assert unit.problem.message == "gang-size must be a number, not 'two'"


def test_a_member_with_a_problem_of_its_own_keeps_the_gang_back() -> None:
    broken = msgspec.structs.replace(
        member("w1", 2), shape=msgspec.structs.replace(member("w1").shape, claims=("none",))
    )
    found = plan(machines(2), [member("w0", 2), broken])
    assert not binds(found)
    assert reports(found)["w1"] == ("ClaimNotFound",)
    assert reports(found)["w0"] == ("GangUnplaceable", "ClaimNotFound")
    told = [action for action in found.actions if isinstance(action, Unschedulable)]
    assert not any(action.helped_by_capacity for action in told), "no new node would help"


# preemption


def test_nothing_is_evicted_for_a_gang_that_would_not_fit_all_the_same() -> None:
    running = [pod(f"r{i}", gpus=8, node=f"n{i}", priority=9 * (i == 3)) for i in range(4)]
    found = plan(machines(4), [*running, *members(4, priority=5)])
    assert not evictions(found)
    assert not nominations(found)


def test_a_gang_takes_free_nodes_and_evicts_only_for_the_rest() -> None:
    running = [pod(f"r{i}", gpus=8, node=f"n{i}") for i in range(2)]
    found = plan(machines(4), [*running, *members(4, priority=5)])
    assert not binds(found)
    assert evictions(found).keys() == {"r0", "r1"}
    assert sorted(nominations(found).values()) == ["n0", "n1", "n2", "n3"]


def test_a_gang_that_waits_for_room_is_bound_when_all_of_it_is_free() -> None:
    waiting = [msgspec.structs.replace(m, nominated_node=f"n{i}") for i, m in enumerate(members(2, size=2))]
    ending = pod("ending", gpus=8, node="n1", terminating=True)
    newcomer = pod("newcomer", gpus=8, created=0)
    found = plan(machines(2), [*waiting, ending, newcomer])
    assert not binds(found)
    assert reports(found)["w0"] == reports(found)["w1"] == ("WaitingForVictims",)
    assert "HeldForNominated" in reports(found)["newcomer"]
    assert binds(plan(machines(2), [*waiting, newcomer])) == {"w0": "n0", "w1": "n1"}


def test_a_gang_that_lost_a_member_to_this_decision_is_looked_at_anew() -> None:
    """The pod above it ends the gang, so evicting for its last member would serve nobody."""
    running = [member(f"w{i}", 3, gpus=1, node=f"n{i}", priority=1) for i in range(2)]
    low = pod("low", gpus=1, node="n2")
    last = member("w2", 3, gpus=1, priority=1)
    found = plan(
        machines(3, gpus=1),
        [*running, low, last, pod("high", gpus=1, priority=2, node_selector={HOST: "n0"})],
    )
    assert evictions(found) == {"w0": "default/high", "w1": "default/high"}
    assert reports(found)["w2"] == ("GangIncomplete",)


def test_members_beyond_the_minimum_wait_for_room_in_the_same_decision() -> None:
    """A pod of lower priority after them must not evict for room that they would then take."""
    running = [pod("r0", gpus=8, node="n1"), pod("r1", gpus=8, node="n2", priority=1)]
    found = plan(machines(3), [*running, *members(2, size=1, priority=3), pod("after", gpus=8, priority=2)])
    assert binds(found).keys() == {"w0"}
    assert evictions(found) == {"r0": "default/w1", "r1": "default/after"}


# volumes


def test_a_gang_reserves_no_volume_unless_all_its_pods_get_theirs() -> None:
    claims = [claim(f"data{i}") for i in range(2)]
    pods = [pod(f"w{i}", gpus=1, gang=gang("train", 2), claims=[f"data{i}"]) for i in range(2)]
    stored = storage(
        claims=claims,
        volumes=[volume("pv0", node="n0")],
        classes=[waiting_class(provisioner="kubernetes.io/no-provisioner")],
    )
    found = plan(machines(2), pods, **stored)
    assert not [action for action in found.actions if isinstance(action, BindVolume)]
    assert reports(found)["w1"][0] == "GangUnplaceable"
    more = {**stored, "volumes": {v.name: v for v in [volume("pv0", node="n0"), volume("pv1", node="n1")]}}
    found = plan(machines(2), pods, **more)
    reserved = {a.claim: a.volume for a in found.actions if isinstance(a, BindVolume)}
    assert reserved == {"default/data0": "pv0", "default/data1": "pv1"}
    assert reports(found) == {"w0": ("WaitingForVolume",), "w1": ("WaitingForVolume",)}


# the queue


def test_the_queue_goes_by_priority_then_nomination_then_running_gangs_then_age_then_name() -> None:
    pods = [
        pod("young", created=5),
        pod("b-old", created=1),
        pod("a-old", created=1),
        pod("nominated", created=9, nominated="n0"),
        member("late", 2, created=9),
        member("there", 2, node="n0"),
        pod("urgent", priority=1, created=9),
    ]
    order = [unit.gang or unit.pods[0].name for unit in queue(*pods)]
    assert order == ["urgent", "nominated", "default/train", "a-old", "b-old", "young"]


def test_a_gang_stands_where_its_highest_priority_and_its_oldest_pod_do() -> None:
    pods = [
        member("w0", 2, priority=5, created=9),
        member("w1", 2, created=1),
        pod("p", priority=5, created=3),
    ]
    assert [unit.gang for unit in queue(*pods)] == ["default/train", ""]


def test_ending_gated_and_foreign_pods_are_not_decided_about() -> None:
    foreign = msgspec.structs.replace(pod("foreign"), scheduler="other")
    assert queue(pod("ending", terminating=True), pod("gated", gates=["g"]), foreign) == []


def test_members_are_taken_by_size_age_and_number() -> None:
    pods = [member(f"w{i}", 4, gpus=1) for i in (10, 9, 1)] + [member("large", 4, gpus=2)]
    assert [p.name for p in queue(*pods)[0].pods] == ["large", "w1", "w9", "w10"]


def test_a_mixed_gang_is_told_which_member_does_not_fit() -> None:
    members = [pod("gi0", gpus=1, gang=gang("g", 2)), pod("gi1", gpus=9, gang=gang("g", 2))]
    plan = decide(snapshot_of((node("a", gpus=8),), tuple(members)), Policy())
    told = next(a for a in plan.actions if isinstance(a, Unschedulable) and a.pod.name == "gi0")
    assert [reason.code for reason in told.reasons[:2]] == ["GangUnplaceable", "ExceedsNodeCapacity"]
    assert told.reasons[0].message.endswith("no node is left for gi1")
    assert told.reasons[1].message.startswith("with them placed, for gi1: 1 node too small: 9 ")
