"""What would cure a pod that no node is looked at for: its gates, scheduler, claims and gang."""

from __future__ import annotations

import msgspec
from tests.unit.explanations import fleet, messages, why
from tests.unit.fleets import gang, node, pod

from gpufleet.fleet.pods import GangRef


def test_a_gang_that_lacks_pods_is_told_how_to_be_complete() -> None:
    found = why(fleet(node("a"), pod("p", gang=gang("g", 2))), "p")
    assert [change.message for change in found.changes] == [
        "create 1 more pod of gang default/g like p",
        "set gpufleet.dev/gang-size to 1 on every pod of gang default/g",
    ]
    gated = pod("q", gang=gang("g", 2), gates=["ex.com/a"])
    found = why(fleet(node("a"), pod("p", gang=gang("g", 2)), gated), "p")
    assert found.changes[0].message == "remove the scheduling gates of q"
    disagreeing = [pod("p", gang=gang("g", 2)), pod("q", gang=gang("g", 3))]
    found = why(fleet(node("a"), *disagreeing), "p")
    assert [change.message for change in found.changes] == [
        "set gpufleet.dev/gang-size to 2 on every pod of gang default/g"
    ]


def test_a_size_without_a_gang_is_told_with_both_cures() -> None:
    slip = GangRef("", None, "label", "gpufleet.dev/gang-size is '2' and gpufleet.dev/gang names no gang")
    found = why(fleet(node("a"), pod("p", gang=slip)), "p")
    assert [reason.code for reason in found.reasons] == ["GangInvalid"]
    assert [change.message for change in found.changes] == [
        "remove gpufleet.dev/gang-size, or name the gang with gpufleet.dev/gang"
    ]


def test_what_is_behind_a_gate_is_told() -> None:
    found = why(fleet(node("a", gpus=1), pod("p", gpus=1, gates=["ex.com/a"])), "p")
    assert (found.verdict, [reason.code for reason in found.reasons]) == ("not-now", ["SchedulingGated"])
    assert [change.kind for change in found.changes] == ["remove-gates"]
    found = why(fleet(node("a", gpus=1), pod("p", gpus=2, gates=["ex.com/a"])), "p")
    codes = [reason.code for reason in found.reasons]
    assert (found.verdict, codes) == ("never", ["SchedulingGated", "ExceedsNodeCapacity", "NoVictims"])


def test_a_scheduler_name_and_a_claim_that_is_missing_are_offered_where_they_help() -> None:
    other = msgspec.structs.replace(pod("p", gpus=1), scheduler="mine")
    assert messages(fleet(node("a", gpus=1), other)) == {
        "change-scheduler": "create it again with schedulerName: gpufleet"
    }
    assert messages(fleet(node("a"), other)) == {}
    assert messages(fleet(node("a"), pod("p", claims=["data"]))) == {
        "create-claim": "create the PersistentVolumeClaim default/data"
    }
