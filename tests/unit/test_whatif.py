"""What if: the answer is what the scheduler would do on the edited fleet, and nothing else is changed."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.device_fleets import asking as device_pod
from tests.unit.device_fleets import fleet, unpicked, whole
from tests.unit.fleets import GPU, gang, node, pod
from tests.unit.mig_fleets import MigFleet
from tests.unit.random_fleets import binds, examples, fleets, overcommitted

from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.nodes import Node
from gpufleet.fleet.pods import Pod
from gpufleet.fleet.snapshot import Snapshot, snapshot_of
from gpufleet.scheduling.cycle import Policy, decide
from gpufleet.scheduling.whatif import Added, Answer, Scenario, edited, what_if


def ask(*things: Node | Pod, **scenario: object) -> Answer:
    nodes = tuple(thing for thing in things if isinstance(thing, Node))
    pods = tuple(thing for thing in things if isinstance(thing, Pod))
    return what_if(snapshot_of(nodes, pods), Policy(), Scenario(**scenario))  # type: ignore[arg-type]


def told(answer: Answer) -> dict[str, tuple[str, str]]:
    """Pod name to its state (and node) before and after."""

    def shown(outcome: object) -> str:
        state, place = getattr(outcome, "state", ""), getattr(outcome, "node", "")
        return f"{state} {place}".strip()

    return {one.pod.removeprefix("default/"): (shown(one.before), shown(one.after)) for one in answer.changed}


def test_a_node_more_starts_what_waits_for_it() -> None:
    answer = ask(
        node("a", gpus=2),
        pod("there", gpus=2, node="a"),
        pod("p", gpus=2),
        pod("q", gpus=1),
        added=(Added("a", 1),),
    )
    assert told(answer) == {"p": ("pending", "placed a (new 1)")}
    assert (answer.before.nodes, answer.after.nodes) == (1, 2)
    assert [(use.total, use.used, use.free) for use in answer.before.gpus] == [(2, 2, 0)]
    assert [(use.nodes, use.total, use.used, use.free) for use in answer.after.gpus] == [(2, 4, 4, 0)]
    assert (answer.before.pods["pending"], answer.after.pods["pending"]) == (2, 1)
    assert answer.before.reasons["InsufficientResource"] == 2
    assert answer.changed[0].after is not None
    assert [reason.code for reason in answer.changed[0].after.reasons] == ["OnlyFit"]


def test_pods_of_a_removed_node_wait_or_run_elsewhere_and_those_without_owner_are_gone() -> None:
    answer = ask(
        node("a", gpus=4),
        node("b", gpus=2),
        pod("one", gpus=2, node="b", owner="rs"),
        pod("bare", gpus=1, node="b"),
        msgspec.structs.replace(pod("agent", node="b", owner="ds"), owner_kind="DaemonSet"),
        pod("two", gpus=3, node="b", owner="rs", priority=-1),
        removed=("b",),
    )
    assert told(answer) == {
        "one": ("running b", "placed a"),
        "two": ("running b", "pending"),
        "bare": ("running b", "gone"),
        "agent": ("running b", "gone"),
    }
    assert answer.after.pods["gone"] == 2


def test_evictions_are_shown_and_not_carried_out() -> None:
    new = pod("vip", gpus=1, priority=9)
    answer = ask(
        node("a", gpus=1),
        pod("low", gpus=1, node="a", owner="rs"),
        pod("next", gpus=1, priority=1),
        pods=(new,),
    )
    assert told(answer)["vip"] == ("", "soon a")
    (victim,) = [one for one in answer.changed if one.after is not None and one.after.state == "evicted"]
    assert victim.before is not None
    assert victim.before.beneficiary == "default/next"
    assert victim.after is not None
    assert victim.after.beneficiary == "default/vip"
    assert answer.after.gpus[0].used == 1


def test_new_pods_come_after_those_that_wait() -> None:
    answer = ask(node("a", gpus=1), pod("p", gpus=1, created=5.0), pods=(pod("new", gpus=1),))
    assert told(answer) == {"new": ("", "pending")}


def test_a_gang_starts_as_a_whole_or_not_at_all() -> None:
    members = [pod(f"g{number}", gpus=2, gang=gang("g", 3)) for number in range(3)]
    enough = ask(node("a", gpus=2), *members, added=(Added("a", 2),))
    assert {after.partition(" ")[0] for _, after in told(enough).values()} == {"placed"}
    assert told(ask(node("a", gpus=2), *members, added=(Added("a", 1),))) == {}


def test_what_is_left_to_others_stays_so() -> None:
    other = msgspec.structs.replace(pod("p", gpus=1), scheduler="volcano")
    answer = ask(node("a", gpus=1), other, added=(Added("a", 1),))
    assert told(answer) == {}
    assert answer.after.pods["other"] == 1


def test_a_copy_is_empty_healthy_and_open_and_has_devices_of_its_own() -> None:
    there = device_pod("there", 2)
    snapshot = fleet(whole(4, sick=[0]), unpicked(there))
    sick = msgspec.structs.replace(snapshot.nodes["a"], unschedulable=True, unhealthy={GPU: 1})
    snapshot = msgspec.structs.replace(snapshot, nodes={"a": sick})
    changed = edited(snapshot, Scenario(added=(Added("a", 1), Added("a", 1))))
    names = ["a", "a (new 1)", "a (new 2)"]
    assert list(changed.nodes) == names
    assert not changed.nodes[names[1]].unschedulable
    uuids = [part.uuid for name in names for part in changed.devices[name].pools[GPU].parts]
    assert len(set(uuids)) == len(uuids)
    assert all(part.usable for part in changed.devices[names[2]].pools[GPU].parts)
    waiting = tuple(device_pod(f"new{number}", 4) for number in range(3))
    states = what_if(snapshot, Policy(), Scenario((Added("a", 2),), (), waiting)).after.pods
    assert (states["placed"], states["pending"]) == (2, 1)


def test_gpus_that_would_be_cut_make_a_pod_start_soon() -> None:
    mig = MigFleet(1, 1).snapshot()
    new = pod("p", resources={"nvidia.com/mig-1g.10gb": 1})
    assert told(what_if(mig, Policy(), Scenario(pods=(new,)))) == {"p": ("", "soon n0")}


@pytest.mark.parametrize(
    ("scenario", "reason"),
    [
        (Scenario(removed=("x",)), "NotFound"),
        (Scenario(added=(Added("x", 1),)), "NotFound"),
        (Scenario(pods=(pod("p"),)), "AlreadyExists"),
    ],
)
def test_a_scenario_that_cannot_be_is_an_error_with_a_remedy(scenario: Scenario, reason: str) -> None:
    with pytest.raises(GpufleetError) as caught:
        what_if(snapshot_of((node("a"),), (pod("p"),)), Policy(), scenario)
    assert caught.value.reason == reason
    assert caught.value.hint


@given(fleets())
@examples(60)
def test_no_change_changes_nothing_and_everybody_has_an_outcome(snapshot: Snapshot) -> None:
    answer = what_if(snapshot, Policy(), Scenario())
    assert not answer.changed
    assert answer.before == answer.after
    assert sum(answer.before.pods.values()) == len(list(snapshot.pods()))


@given(fleets(), st.data())
@examples(100)
def test_the_answer_is_what_deciding_the_edited_fleet_says(snapshot: Snapshot, data: st.DataObject) -> None:
    names = sorted(snapshot.nodes)
    removed = tuple(sorted(data.draw(st.sets(st.sampled_from(names), max_size=1))))
    added = tuple(Added(name, 1) for name in data.draw(st.sets(st.sampled_from(names), max_size=2)))
    scenario = Scenario(added, removed)
    changed = edited(snapshot, scenario)
    answer = what_if(snapshot, Policy(), scenario)
    first = binds(decide(changed, Policy()))
    outcomes = {one.pod: one.after for one in answer.changed if one.after is not None}
    placed = {key.partition("/")[2]: one.node for key, one in outcomes.items() if one.state == "placed"}
    before = binds(decide(snapshot, Policy()))
    assert {
        name: place for name, place in first.items() if before.get(name) != place
    }.items() <= placed.items()
    pods = {one.key: one for one in changed.pods()}
    ends = [
        msgspec.structs.replace(pods[key], node=one.node)
        for key, one in outcomes.items()
        if one.state == "placed"
    ]
    kept = [one for one in pods.values() if one.node and one.node in changed.nodes]
    machines = [changed.nodes[one.node] for one in ends if one.node not in snapshot.nodes]
    assert not overcommitted(machines, [*kept, *ends])
