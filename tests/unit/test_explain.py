"""`why` says what the decision says: the verdict, and the reasons for it."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from tests.unit.explanations import fleet, mended, why
from tests.unit.fleets import HOST, claim, gang, near, node, pod, storage, volume, waiting_class
from tests.unit.random_fleets import binds, examples, fleets, pods_of, reports

from gpufleet.fleet.pods import Pod
from gpufleet.fleet.reasons import CODES
from gpufleet.fleet.snapshot import Snapshot
from gpufleet.scheduling.cycle import Policy, decide
from gpufleet.scheduling.explain import explain
from gpufleet.scheduling.filters import FILTERS
from gpufleet.scheduling.ledger import Ledger

# properties


@examples(60)
@given(fleets(most_pods=4))
def test_the_verdict_is_the_decisions(snapshot: Snapshot) -> None:
    plan = decide(snapshot, Policy())
    for p in pods_of(snapshot):
        found = why(snapshot, p.name)
        if p.node:
            assert found.verdict == "running"
        elif p.name in binds(plan):
            assert (found.verdict, found.reasons[0].code) == ("soon", "Schedulable")
        else:
            codes = reports(plan)[p.name]
            assert tuple(reason.code for reason in found.reasons) == codes
            assert (found.verdict == "soon") == ("WaitingForVictims" in codes)
        assert {reason.code for reason in found.reasons} <= CODES.keys()
        assert msgspec.json.decode(msgspec.json.encode(found.as_json()))["verdict"] == found.verdict


@examples(80)
@given(fleets(most_pods=4, entangled=False))
def test_never_is_said_exactly_when_the_empty_fleet_has_no_room(snapshot: Snapshot) -> None:
    nodes = {name: mended(n) for name, n in snapshot.nodes.items()}
    empty = Ledger.build(Snapshot(nodes=nodes))
    for p in snapshot.unbound.values():
        found = why(snapshot, p.name)
        if p.gang or found.verdict not in ("never", "not-now"):
            continue
        checks = [c for rule in FILTERS if (c := rule.prepare(p, empty)) is not None]
        room = any(all(c(a) is None for c in checks) for a in empty.accounts.values())
        assert found.verdict == ("not-now" if room else "never")


# in words


def test_a_pod_that_is_not_there_has_no_explanation() -> None:
    assert explain(fleet(), "default/p", Policy()) is None


def test_a_running_pod_is_where_it_is() -> None:
    found = why(fleet(node("a"), pod("p", node="a")), "p")
    assert (found.verdict, found.node, found.reasons[0].code) == ("running", "a", "Bound")


def test_a_pod_that_is_ending_is_not_said_to_run() -> None:
    found = why(fleet(node("a"), pod("p", node="a", terminating=True)), "p")
    assert [reason.code for reason in found.reasons] == ["Terminating", "Bound"]
    assert found.node == "a"


def test_a_finished_pod_has_ended() -> None:
    ended = msgspec.structs.replace(pod("p", node="a"), phase="Failed")
    found = explain(fleet(node("a")), "default/p", Policy(), finished=ended)
    assert found is not None
    assert (found.verdict, found.reasons[0].code) == ("running", "Finished")


@pytest.mark.parametrize(
    ("waiting", "verdict", "code"),
    [
        (pod("p", terminating=True), "never", "Terminating"),
        (pod("p", gates=["wait"]), "not-now", "SchedulingGated"),
        (msgspec.structs.replace(pod("p"), scheduler="other"), "not-now", "OtherScheduler"),
        (pod("p", claims=["none"]), "not-now", "ClaimNotFound"),
        (pod("p", resource_claims=True), "not-now", "DynamicResources"),
        (pod("p", gang=gang("g", 2)), "not-now", "GangIncomplete"),
        (pod("p"), "soon", "Schedulable"),
    ],
)
def test_what_keeps_a_pod_back_by_itself(waiting: Pod, verdict: str, code: str) -> None:
    found = why(fleet(node("a"), waiting), "p")
    assert (found.verdict, found.reasons[0].code) == (verdict, code)


def test_a_pod_that_waits_for_its_volume_runs_soon() -> None:
    stored = storage(claims=[claim(selected="a")], classes=[waiting_class()])
    found = why(fleet(node("a"), pod("p", claims=["data"]), **stored), "p")
    assert (found.verdict, [reason.code for reason in found.reasons]) == ("soon", ["WaitingForVolume"])
    assert found.reasons[0].message == (
        "claim default/data waits for its volume on a: provisioner disk.example.com of storage class disk "
        "has not made it yet"
    )
    (change,) = found.changes
    assert (change.kind, "default/data" in change.message) == ("provide-volume", True)


def test_a_pod_that_waits_for_a_volume_that_exists_is_told_which() -> None:
    stored = storage(
        claims=[claim()],
        volumes=[volume("pv", claim="default/data", claim_uid="uid-data")],
        classes=[waiting_class()],
    )
    found = why(fleet(node("a"), pod("p", claims=["data"]), **stored), "p")
    assert found.reasons[0].message == "claim default/data waits to be bound to volume pv, for a"


def test_room_of_a_pod_that_waits_for_its_volume_is_held_and_for_whom_is_said() -> None:
    stored = storage(claims=[claim(selected="a")], classes=[waiting_class()])
    first = pod("first", gpus=8, claims=["data"])
    snapshot = fleet(node("a", gpus=8), first, pod("p", gpus=1, created=1.0), **stored)
    found = why(snapshot, "p")
    held = next(reason for reason in found.reasons if reason.code == "HeldForNominated")
    assert "is held for default/first" in held.message
    assert [holder.workload for holder in found.held_for] == ["Pod/first"]
    assert {change.message for change in found.changes} >= {
        "end Pod/first in default (1 pod)",
        "raise the priority above 0 (nobody would end)",
    }


def test_nobody_is_placed_near_a_pod_that_waits_for_its_volume() -> None:
    stored = storage(claims=[claim(selected="a")], classes=[waiting_class()])
    first = pod("first", claims=["data"], labels={"app": "db"})
    second = pod("second", created=1.0, affinity=[near(HOST, app="db")])
    plan = decide(fleet(node("a"), first, second, **stored), Policy())
    assert not binds(plan)
    assert reports(plan)["second"] == ("WaitingForVictims",)


@pytest.mark.parametrize("holders", [0, 1])
def test_a_volume_where_the_pod_may_not_go_is_never_the_fault_of_who_uses_it(holders: int) -> None:
    stored = storage(claims=[claim(volume="pv")], volumes=[volume(node="a", driver="disk")])
    waiting = pod("p", claims=["data"], node_selector={"kubernetes.io/hostname": "b"})
    users = [pod("user", claims=["data"], node="a")] * holders
    found = why(fleet(node("a"), node("b"), *users, waiting, **stored), "p")
    assert found.verdict == "never"
    codes = {reason.code for reason in found.reasons}
    assert codes == {"NodeSelectorMismatch", "VolumeNodeConflict", "NoVictims"}


@pytest.mark.parametrize(("healthy", "wanted"), [(0, 1), (2, 3)])
def test_gpus_that_are_sick_come_back_one_day(healthy: int, wanted: int) -> None:
    found = why(fleet(node("a", gpus=healthy, sick=4 - healthy), pod("p", gpus=wanted)), "p")
    assert (found.verdict, found.reasons[0].code) == ("not-now", "DeviceUnhealthy")
    assert "add 1 node like a (4 nvidia.com/gpu)" in {change.message for change in found.changes}


def test_a_pod_that_lacks_its_claim_and_is_too_large_never_runs() -> None:
    assert why(fleet(node("a", gpus=1), pod("p", gpus=2, claims=["data"])), "p").verdict == "never"


def test_a_pod_whose_node_is_gone_is_told_so() -> None:
    found = why(fleet(pod("p", node="gone")), "p")
    assert (found.verdict, [reason.code for reason in found.reasons]) == (
        "running",
        ["Bound", "NodeNotFound"],
    )


def test_room_that_evictions_made_is_withheld_from_a_pod_that_may_not_preempt() -> None:
    waiting = pod("later", gpus=4, nominated="a", priority=1)
    found = why(fleet(node("a", gpus=4), waiting, pod("p", gpus=4, priority=9, preempts=False)), "p")
    assert "HeldForNominated" in [reason.code for reason in found.reasons]


def test_a_pod_that_must_be_near_one_that_is_not_there_yet_may_still_run() -> None:
    found = why(fleet(node("a"), pod("p", affinity=[near(HOST, app="db")])), "p")
    assert found.verdict == "not-now"
