"""A pod whose last write was refused pauses: it keeps its turn, the room made for it and its reason, and
nothing is written for it.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.fleets import gang, node, pod
from tests.unit.random_fleets import binds, evictions, examples, fleets, nominations, reports

from gpufleet.fleet.plans import Bind, Plan, Unschedulable
from gpufleet.fleet.pods import Pod
from gpufleet.fleet.reasons import Reason
from gpufleet.fleet.snapshot import Snapshot, snapshot_of
from gpufleet.scheduling.cycle import Policy, decide


def plan(*things: object, paused: str) -> Plan:
    nodes = tuple(thing for thing in things if not isinstance(thing, Pod))
    pods = tuple(thing for thing in things if isinstance(thing, Pod))
    refusal = Reason("BindFailed", "may not", f"default/{paused}")
    return decide(snapshot_of(nodes, pods), Policy(), paused={f"default/{paused}": refusal})  # type: ignore[arg-type]


def test_it_is_told_what_the_server_said() -> None:
    found = plan(node("a", gpus=1), pod("p", gpus=1), paused="p")
    assert not binds(found)
    (report,) = [action for action in found.actions if isinstance(action, Unschedulable)]
    assert [(reason.code, reason.message) for reason in report.reasons] == [("BindFailed", "may not")]
    assert not report.helped_by_capacity


def test_room_that_was_made_for_it_is_not_given_to_one_that_comes_later() -> None:
    waiting = pod("p", gpus=1, priority=1, nominated="a")
    found = plan(node("a", gpus=1), waiting, pod("q", gpus=1), paused="p")
    assert not binds(found)
    assert "HeldForNominated" in reports(found)["q"]


def test_room_that_nobody_made_for_it_is_free_for_others() -> None:
    found = plan(node("a", gpus=1), pod("p", gpus=1, priority=1), pod("q", gpus=1), paused="p")
    assert binds(found) == {"q": "a"}


def test_it_takes_no_place_from_one_that_comes_earlier() -> None:
    found = plan(node("a", gpus=1), pod("p", gpus=1), pod("q", gpus=1, priority=1), paused="p")
    assert binds(found) == {"q": "a"}


def test_room_that_is_being_made_for_it_stays_its_own() -> None:
    ending = pod("v", gpus=1, node="a", terminating=True)
    high = pod("high", gpus=2, priority=9, nominated="a")
    found = plan(node("a", gpus=2), ending, high, pod("low", gpus=1), paused="high")
    assert not binds(found)
    assert not nominations(found), "the nomination stands"


def test_nobody_is_evicted_for_it() -> None:
    found = plan(node("a", gpus=1), pod("low", gpus=1, node="a"), pod("p", gpus=1, priority=1), paused="p")
    assert not evictions(found)


def test_its_gang_waits_with_it_and_knows_why() -> None:
    mates = [pod(f"w{index}", gpus=1, gang=gang("train", 4)) for index in range(4)]
    found = plan(node("a", gpus=8), *mates, paused="w0")
    assert not binds(found)
    assert set(reports(found).values()) == {("BindFailed",)}
    assert len(reports(found)) == 4


@examples(100)
@given(fleets(), st.data())
def test_whoever_pauses_nothing_is_done_for_it_and_everybody_is_answered(
    snapshot: Snapshot, data: st.DataObject
) -> None:
    keys = data.draw(st.sets(st.sampled_from(sorted(snapshot.unbound)))) if snapshot.unbound else set()
    found = decide(snapshot, Policy(), paused={key: Reason("BindFailed", "may not", key) for key in keys})
    names = {snapshot.unbound[key].name for key in keys}
    assert not names & (binds(found).keys() | nominations(found).keys())
    assert not keys & set(evictions(found).values())
    answered = [action.pod.key for action in found.actions if isinstance(action, Bind | Unschedulable)]
    assert sorted(answered) == sorted(snapshot.unbound)
