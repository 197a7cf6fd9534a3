"""Cut GPUs that nobody uses become whole again after a while, and none that somebody has or waits for."""

from __future__ import annotations

from tests.unit.fleets import pod
from tests.unit.mig_fleets import MigFleet

from gpufleet.fleet.mig import mig_resource
from gpufleet.scheduling.idle import IDLE_SECONDS, idle_since, merges

ONE, SEVEN = mig_resource("1g.10gb"), mig_resource("7g.80gb")


def cut_and_left(count: int = 1) -> MigFleet:
    """A node of two GPUs with `count` pods on instances, of which the first has ended."""
    fleet = MigFleet(1, 2)
    fleet.add(pod(f"p{number}", resources={SEVEN: 1}, created=number) for number in range(count))
    fleet.settle()
    fleet.end("default/p0")
    return fleet


def test_a_gpu_that_was_idle_long_enough_is_made_whole() -> None:
    snapshot = cut_and_left().snapshot()
    since = idle_since(snapshot, {}, 100.0)
    assert not merges(snapshot, since, 100.0 + IDLE_SECONDS - 1)
    since = idle_since(snapshot, since, 100.0 + IDLE_SECONDS)
    assert [merge.gpu for merge in merges(snapshot, since, 100.0 + IDLE_SECONDS)] == ["GPU-0-0"]


def test_a_gpu_that_was_used_meanwhile_begins_anew() -> None:
    fleet = cut_and_left()
    since = idle_since(fleet.snapshot(), {}, 0.0)
    fleet.add([pod("q", resources={SEVEN: 1})])
    fleet.settle()
    since = idle_since(fleet.snapshot(), since, 10.0)
    assert since == {}
    fleet.end("default/q")
    assert idle_since(fleet.snapshot(), since, 50.0) == {"GPU-0-0": 50.0}


def test_only_the_idle_one_of_two_alike_is_merged_and_none_while_it_is_unclear_which() -> None:
    fleet = cut_and_left(2)
    snapshot = fleet.snapshot()
    assert len(merges(snapshot, idle_since(snapshot, {}, 0.0), IDLE_SECONDS)) == 1
    fleet.held.clear()
    unclear = fleet.snapshot()
    assert not merges(unclear, idle_since(unclear, {}, 0.0), IDLE_SECONDS)


def test_nothing_is_merged_while_a_pod_waits_for_an_instance() -> None:
    fleet = cut_and_left()
    since = idle_since(fleet.snapshot(), {}, 0.0)
    fleet.add([pod("waits", resources={ONE: 1}, gates=("example.com/hold",))])
    assert not merges(fleet.snapshot(), since, IDLE_SECONDS)


def test_nothing_is_merged_where_the_mode_may_not_be_switched() -> None:
    fleet = MigFleet(1, 1, may_switch=False, enabled=True)
    fleet.add([pod("p", resources={ONE: 1})])
    fleet.settle()
    fleet.end("default/p")
    assert idle_since(fleet.snapshot(), {}, 0.0) == {}
