"""On the real openb trace our policies come out as published. The whole table is benchmarks/openb.py."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import pytest
from benchmarks.openb import LABELS, published

from gpufleet.fleet.demands import typical_pods
from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.fragmentation import Fragmentation
from gpufleet.simulator.columns import Columns, models_of
from gpufleet.simulator.openb import Trace, arrivals, find_traces, read_trace
from gpufleet.simulator.placing import PolicyPlacer
from gpufleet.simulator.policies import make_policy
from gpufleet.simulator.replay import replay
from gpufleet.simulator.runs import run
from gpufleet.simulator.traces import TraceNode, capacity_milli, demand_milli

SEEDS = (42, 43)
POINTS = 0.35


@pytest.fixture(scope="module")
def folder() -> Path:
    """The folder of the openb files; without it these tests are skipped."""
    try:
        return find_traces(None, os.environ, Path(__file__).parents[2])
    except GpufleetError as error:
        pytest.skip(f"the openb trace is not here: {error}")


@pytest.fixture(scope="module")
def default(folder: Path) -> Trace:
    return read_trace(folder, "default")


def fragmented_percent(trace: Trace, nodes: Sequence[TraceNode], columns: Columns) -> float:
    """Fragmentation of a cluster in percent of all its GPUs."""
    typical = typical_pods(pod.request.shape for pod in trace.pods)
    fragmentation = Fragmentation(typical, models_of(nodes))
    lost = int(fragmentation.amounts(columns.free).sum())
    return 100 * lost / fragmentation.weight / capacity_milli(nodes)


def test_the_trace_is_the_published_one(default: Trace) -> None:
    assert (len(default.nodes), len(default.pods)) == (1213, 8152)
    assert (capacity_milli(default.nodes), demand_milli(default.pods)) == (6_212_000, 6_086_800)


@pytest.mark.parametrize(("variant", "shapes"), [("default", 35), ("gpuspec33", 127)])
def test_there_are_as_many_typical_pods_as_published(folder: Path, variant: str, shapes: int) -> None:
    pods = read_trace(folder, variant).pods
    assert len(typical_pods(pod.request.shape for pod in pods)) == shapes


def test_an_empty_cluster_is_as_fragmented_as_published(default: Trace) -> None:
    found = fragmented_percent(default, default.nodes, Columns.empty(default.nodes))
    assert found == pytest.approx(13.9, abs=0.2)


def test_fgd_leaves_as_much_in_fragments_as_published(default: Trace) -> None:
    nodes, pods = arrivals(default, SEEDS[0])
    placer = PolicyPlacer(nodes, make_policy("fgd", nodes, default.pods, SEEDS[0]))
    replay(nodes, pods, placer)
    assert fragmented_percent(default, nodes, placer.columns) == pytest.approx(4.57, abs=0.4)


@pytest.mark.parametrize("policy", ["bestfit", "fgd"])
def test_a_policy_allocates_as_published(folder: Path, default: Trace, policy: str) -> None:
    table = published(folder.parent / "fgd_results")
    curves = [run(default, policy, seed).outcome.allocation_percent for seed in SEEDS]
    for load in (100, 130):
        theirs = mean(table["default", LABELS[policy], load])
        assert mean(curve[load] for curve in curves) == pytest.approx(theirs, abs=POINTS)
