"""The scheduler on a trace: what the replay's own ledger allows, and nothing known of later arrivals."""

from __future__ import annotations

import random

import pytest

from gpufleet.fleet.demands import Demand
from gpufleet.simulator.live import LivePlacer, usual_mix
from gpufleet.simulator.replay import Decision, replay
from gpufleet.simulator.traces import Request, TraceNode, TracePod

NODES = (
    TraceNode("b", 32_000, 64_000, 4, "A"),
    TraceNode("a", 16_000, 64_000, 2, "B"),
    TraceNode("c", 64_000, 64_000, 8, "A"),
)


def load(seed: int, count: int) -> tuple[TracePod, ...]:
    draw = random.Random(seed)
    shapes = (
        Demand(2000, 1, 300), Demand(3000, 1, 700), Demand(4000, 1, 1000), Demand(6000, 2, 1000),
        Demand(3000, 1, 500, ("B",)), Demand(8000, 0, 0), Demand(1000, 2, 400),
    )  # fmt: skip
    return tuple(TracePod(f"p{i}", Request(draw.choice(shapes), 1000)) for i in range(count))


def decisions(pods: tuple[TracePod, ...], mix_of: tuple[TracePod, ...]) -> list[Decision]:
    placer = LivePlacer(NODES, pods, usual_mix(mix_of))
    return [placer.place(pod) for pod in pods]


@pytest.mark.parametrize("seed", range(8))
def test_every_decision_is_possible_and_what_is_refused_fits_nowhere(seed: int) -> None:
    pods = load(seed, 40)
    outcome = replay(NODES, pods, LivePlacer(NODES, pods, usual_mix(pods)))
    assert 0 < outcome.unplaced < 40
    assert outcome.migrations == 0


@pytest.mark.parametrize("seed", range(4))
def test_a_decision_does_not_depend_on_later_arrivals(seed: int) -> None:
    pods = load(seed, 30)
    every = decisions(pods, pods)
    assert every[:17] == decisions(pods[:17], pods)
    changed = (*pods[:17], *load(seed + 100, 13))
    assert every[:17] == decisions(changed, pods)[:17]


def test_the_mix_is_of_pods_with_gpus() -> None:
    assert all(one.shape.gpus for one in usual_mix(load(1, 50)))
