"""Room that is made for a pod stays its own until it is bound there."""

from __future__ import annotations

import msgspec
import pytest
from tests.unit.fleets import node, pod
from tests.unit.preemptors import URGENT, plan, running
from tests.unit.random_fleets import binds, evictions, nominations, reports


def test_pods_that_are_ending_make_room_for_free() -> None:
    pods = [running("ending", 2, priority=99, terminating=True), running("other", 2, "b"), URGENT]
    found = plan([node("a", gpus=2), node("b", gpus=2)], pods)
    assert not evictions(found)
    assert nominations(found) == {"urgent": "a"}
    assert reports(found) == {"urgent": ("WaitingForVictims",)}


def test_two_preemptors_never_share_the_same_room() -> None:
    pods = [running("v0", 2), running("v1", 2, "b")]
    first, second = (msgspec.structs.replace(URGENT, name=name, uid=name) for name in ("u1", "u2"))
    found = plan([node("a", gpus=2), node("b", gpus=2)], [*pods, first, second])
    assert nominations(found) == {"u1": "a", "u2": "b"}
    assert evictions(found) == {"v0": "default/u1", "v1": "default/u2"}


def test_two_preemptors_may_share_what_one_victim_leaves() -> None:
    first, second = (msgspec.structs.replace(URGENT, name=name, uid=name) for name in ("u1", "u2"))
    found = plan([node("a", gpus=4)], [running("v", 4), first, second])
    assert nominations(found) == {"u1": "a", "u2": "a"}
    assert evictions(found) == {"v": "default/u1"}


def test_nothing_is_bound_to_room_that_victims_have_not_left() -> None:
    """The leftover of a victim's room is free when the victim is gone, not when it was chosen."""
    found = plan([node("a", gpus=8)], [running("v", 8), pod("hi", gpus=1, priority=10), pod("lo", gpus=4)])
    assert evictions(found) == {"v": "default/hi"}
    assert not binds(found)


@pytest.mark.parametrize("priority", [0, 10])
def test_room_is_held_against_newcomers_of_lower_and_equal_priority(priority: int) -> None:
    waiting = msgspec.structs.replace(URGENT, nominated_node="a", created=5.0)
    newcomer = pod("newcomer", gpus=1, priority=priority, created=1.0)
    victim = running("victim", 1, terminating=True)
    found = plan([node("a", gpus=2)], [victim, waiting, newcomer])
    assert not binds(found)
    assert reports(found)["urgent"] == ("WaitingForVictims",)
    assert "HeldForNominated" in reports(found)["newcomer"]


def test_a_newcomer_of_higher_priority_takes_held_room() -> None:
    waiting = msgspec.structs.replace(URGENT, nominated_node="a")
    victim = running("victim", 1, terminating=True)
    found = plan([node("a", gpus=2)], [victim, waiting, pod("newcomer", gpus=1, priority=11)])
    assert binds(found) == {"newcomer": "a"}


def test_a_newcomer_that_never_preempts_takes_no_held_room_whatever_its_priority() -> None:
    waiting = msgspec.structs.replace(URGENT, nominated_node="a")
    victim = running("victim", 1, terminating=True)
    newcomer = pod("newcomer", gpus=1, priority=11, preempts=False)
    found = plan([node("a", gpus=2), node("b", gpus=1)], [victim, waiting, newcomer])
    assert binds(found) == {"newcomer": "b"}
    found = plan([node("a", gpus=2)], [victim, waiting, newcomer])
    assert not binds(found)
    assert "HeldForNominated" in reports(found)["newcomer"]


def test_the_pod_for_which_room_was_made_gets_it() -> None:
    waiting = msgspec.structs.replace(URGENT, nominated_node="b")
    found = plan([node("a", gpus=2), node("b", gpus=2)], [waiting])
    assert binds(found) == {"urgent": "b"}


def test_a_pod_whose_room_is_gone_looks_elsewhere_and_loses_its_nomination_at_last() -> None:
    waiting = msgspec.structs.replace(URGENT, nominated_node="a")
    taken = running("taken", 2, priority=99)
    assert binds(plan([node("a", gpus=2), node("b", gpus=2)], [taken, waiting])) == {"urgent": "b"}
    found = plan([node("a", gpus=2)], [taken, waiting])
    assert nominations(found) == {"urgent": ""}
    assert reports(found)["urgent"] == ("InsufficientResource", "NoVictims")
    assert nominations(plan([], [waiting])) == {"urgent": ""}
