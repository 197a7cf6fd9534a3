"""A replay: what is counted at which load, and a ledger that no placer can talk out of its sums."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from tests.unit.small_traces import node, pod

from gpufleet.simulator.books import MisplacedError, Placement
from gpufleet.simulator.replay import (
    Decision,
    Move,
    Outcome,
    allocation_percent,
    replay,
)
from gpufleet.simulator.traces import TracePod


class Scripted:
    """A placer that says what it was told to say."""

    def __init__(self, *decisions: Decision) -> None:
        self.decisions = list(decisions)
        self.asked: list[TracePod] = []

    def place(self, pod: TracePod) -> Decision:
        self.asked.append(pod)
        return self.decisions.pop(0)


def on(node: int, *devices: int) -> Decision:
    return Decision(Placement(node, devices))


NOWHERE = Decision(None)
NODES = [node("a", gpus=2, cpu=4, memory=4), node("b", gpus=2, model="G2", cpu=4, memory=4)]


def outcome(pods: Sequence[TracePod], *decisions: Decision) -> Outcome:
    return replay(NODES, pods, Scripted(*decisions))


# ----------------------------------------------------------------------------------------------- what counts


def test_allocation_is_averaged_over_the_arrivals_that_round_to_a_load() -> None:
    pods = [pod("p0"), pod("p1", gpus=0), pod("p2", gpus=2), pod("p3")]
    found = outcome(pods, on(0, 0), on(0), NOWHERE, on(1, 0))
    assert found.allocation_percent == {25: 25.0, 75: 25.0, 100: 50.0, 24: 25.0, 26: 25.0} | {
        74: 25.0,
        76: 25.0,
        99: 50.0,
    }
    assert (found.migrations, found.unplaced) == (0, 1)


def test_a_load_between_arrivals_takes_the_mean_of_its_neighbours() -> None:
    assert allocation_percent([(100, 100), (300, 200)], 10_000) == {0: 1.0, 1: 1.0, 2: 1.5, 3: 2.0}


def test_half_a_percent_rounds_to_the_even_load() -> None:
    found = allocation_percent([(5, 10), (15, 20)], 1000)
    assert found == {0: 1.0, 1: 1.5, 2: 2.0}


def test_pods_are_asked_for_one_by_one_in_their_order_and_progress_is_told() -> None:
    pods = [pod(f"p{number}", gpus=0, cpu=0, memory=0) for number in range(501)]
    placer = Scripted(*([NOWHERE] * 501))
    told: list[int] = []
    replay(NODES, pods, placer, told.append)
    assert placer.asked == pods
    assert told == [0, 500, 501]


# ---------------------------------------------------------------------------------------------------- ledger


@pytest.mark.parametrize(
    ("pods", "decisions"),
    [
        ([pod("p0", milli=600), pod("p1", milli=600)], [on(0, 1), on(0, 1)]),
        ([pod("p0", gpus=2)], [on(0, 1, 1)]),
        ([pod("p0", gpus=2)], [on(0, 1)]),
        ([pod("p0", gpus=0)], [on(0, 1)]),
        ([pod("p0", cpu=5)], [on(0, 0)]),
        ([pod("p0", memory=5)], [on(0, 0)]),
        ([pod("p0", models="G2")], [on(0, 0)]),
    ],
    ids=["device full", "device twice", "too few", "not asked for", "CPU", "memory", "model"],
)
def test_a_placement_that_is_impossible_is_refused(pods: list[TracePod], decisions: list[Decision]) -> None:
    with pytest.raises(MisplacedError):
        outcome(pods, *decisions)


def test_a_migration_makes_room_where_the_pod_was_and_is_counted() -> None:
    pods = [pod("p0", milli=600), pod("p1", cpu=4)]
    moved = Decision(Placement(0, (1,)), (Move(0, Placement(1, (0,))),))
    found = outcome(pods, on(0, 1), moved)
    assert (found.migrations, found.allocation_percent[40]) == (1, 40.0)
    with pytest.raises(MisplacedError):
        outcome(pods, on(0, 1), on(0, 1))


def test_a_migration_goes_only_where_there_is_room_and_only_of_what_runs() -> None:
    pods = [pod("p0", milli=600), pod("p1", milli=600), pod("p2", gpus=0)]
    full = Decision(None, (Move(0, Placement(1, (0,))),))
    with pytest.raises(MisplacedError):
        outcome(pods, on(0, 0), on(1, 0), full)
    with pytest.raises(MisplacedError, match="does not run"):
        outcome(pods, on(0, 0), NOWHERE, Decision(None, (Move(1, Placement(1, (0,))),)))


def test_a_pod_may_be_moved_to_another_device_of_its_node() -> None:
    pods = [pod("p0", milli=600), pod("p1")]
    found = outcome(pods, on(0, 0), Decision(Placement(0, (0,)), (Move(0, Placement(0, (1,))),)))
    assert found.unplaced == 0
