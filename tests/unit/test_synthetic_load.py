"""The synthetic load has the statistics that it documents, and its tables are those of the public traces."""

from __future__ import annotations

import gzip
import os
from collections import Counter
from pathlib import Path
from statistics import median, quantiles

import pytest

from gpufleet.fleet.demands import MILLI
from gpufleet.fleet.errors import GpufleetError
from gpufleet.simulator.openb import find_traces, read_trace
from gpufleet.simulator.synthetic import (
    HOURS,
    LONGEST_S,
    NODE_GPUS,
    NODE_MODELS,
    SMALL_DURATION,
    SMALL_PERCENT,
    SMALL_SHAPES,
    TRAINING_SIZES,
    mean_gpu_seconds,
    synthetic_load,
)
from gpufleet.simulator.traces import Job, Load, capacity_milli

DAYS = 30


@pytest.fixture(scope="module")
def month() -> Load:
    return synthetic_load(400, DAYS, seed=42)


def gpus(job: Job) -> int:
    return job.pods * job.request.shape.gpus


def test_a_month_of_400_nodes_has_more_than_50_000_jobs_and_a_day_of_one_node_some(
    month: Load,
) -> None:
    assert len(month.jobs) > 50_000
    assert len(month.nodes) == 400
    assert 1 <= len(synthetic_load(1, 1, seed=1).jobs) < 50


def test_a_seed_makes_the_same_again_and_another_one_another() -> None:
    assert synthetic_load(5, 2, seed=1) == synthetic_load(5, 2, seed=1)
    assert synthetic_load(5, 2, seed=1).jobs != synthetic_load(5, 2, seed=2).jobs


def test_jobs_come_in_their_order_within_the_days(month: Load) -> None:
    times = [job.arrival_s for job in month.jobs]
    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] < DAYS * 86_400
    assert len({job.name for job in month.jobs}) == len(month.jobs)


@pytest.mark.parametrize("percent", [50, 90])
def test_the_load_is_as_asked_for(percent: int) -> None:
    asked = [synthetic_load(200, DAYS, seed, percent) for seed in range(4)]
    offered = sum(job.gpu_milliseconds for one in asked for job in one.jobs)
    capacity = sum(capacity_milli(one.nodes) for one in asked) * DAYS * 86_400
    assert 100 * offered / capacity == pytest.approx(percent, rel=0.05)


def test_the_mean_of_a_duration_is_that_of_what_is_drawn(month: Load) -> None:
    gpu_seconds = sum(job.gpu_milliseconds for job in month.jobs) / MILLI / len(month.jobs)
    assert gpu_seconds == pytest.approx(mean_gpu_seconds(), rel=0.06)


def test_gpus_of_jobs_are_as_frequent_as_documented(month: Load) -> None:
    found = Counter(gpus(job) for job in month.jobs)
    training = sum(size.jobs for size in TRAINING_SIZES)
    for size in TRAINING_SIZES[1:]:
        expected = len(month.jobs) * (100 - SMALL_PERCENT) / 100 * size.jobs / training
        assert found[size.gpus] == pytest.approx(expected, rel=0.05, abs=3 * expected**0.5)
    small = sum(shape.pods for shape in SMALL_SHAPES)
    without = sum(shape.pods for shape in SMALL_SHAPES if not shape.gpus)
    assert found[0] / len(month.jobs) == pytest.approx(SMALL_PERCENT / 100 * without / small, rel=0.05)


def test_durations_have_the_documented_medians_and_tenth_deciles(month: Load) -> None:
    small = [job.duration_s for job in month.jobs if not gpus(job)]
    assert median(small) == pytest.approx(SMALL_DURATION.median_s, rel=0.1)
    assert quantiles(small, n=10)[-1] == pytest.approx(6568, rel=0.15)
    for size, tenth in zip(TRAINING_SIZES[1:4], (433_510, 176_901, 118_708), strict=True):
        drawn = [job.duration_s for job in month.jobs if gpus(job) == size.gpus]
        assert median(drawn) == pytest.approx(size.duration.median_s, rel=0.12)
        assert quantiles(drawn, n=10)[-1] == pytest.approx(tenth, rel=0.15)
    assert max(job.duration_s for job in month.jobs) <= LONGEST_S


def test_arrivals_follow_the_hours_of_the_day(month: Load) -> None:
    found = Counter(job.arrival_s // 3600 % 24 for job in month.jobs)
    for hour, weight in enumerate(HOURS):
        expected = len(month.jobs) * weight / sum(HOURS)
        assert found[hour] == pytest.approx(expected, abs=4.5 * expected**0.5)


def test_every_job_fits_on_empty_nodes_and_large_ones_are_gangs_of_whole_nodes(month: Load) -> None:
    least_cpu = min(node.cpu_milli for node in month.nodes)
    least_memory = min(node.memory_mib for node in month.nodes)
    for job in month.jobs:
        shape = job.request.shape
        assert shape.gpus <= NODE_GPUS
        assert shape.cpu_milli <= least_cpu
        assert job.request.memory_mib <= least_memory
        assert job.pods == 1 or shape.gpus == NODE_GPUS
    assert {job.pods for job in month.jobs} == {1, 2, 4}


def test_models_of_nodes_are_in_the_proportion_of_openb(month: Load) -> None:
    found = Counter(node.model for node in month.nodes)
    total = sum(weight for weight, *_ in NODE_MODELS)
    for weight, model, *_ in NODE_MODELS:
        assert found[model] == pytest.approx(400 * weight / total, abs=1)


@pytest.mark.parametrize("arguments", [(0, 1, 1, 90), (1, 0, 1, 90), (1, 1, 1, 0)])
def test_nothing_below_one_is_taken(arguments: tuple[int, int, int, int]) -> None:
    with pytest.raises(GpufleetError, match="must be at least 1"):
        synthetic_load(*arguments)


# -------------------------------------------------------------------------------------------- the real traces


@pytest.fixture(scope="module")
def traces() -> Path:
    """The folder of all traces; without it these tests are skipped."""
    try:
        return find_traces(None, os.environ, Path(__file__).parents[2]).parent
    except GpufleetError as error:
        pytest.skip(f"the traces are not here: {error}")


def test_small_shapes_and_nodes_are_those_of_openb(traces: Path) -> None:
    trace = read_trace(traces / "openb", "default")
    counts = Counter((one.request.shape, one.request.memory_mib) for one in trace.pods)
    frequent = [
        (shape.cpu_milli, shape.gpus, shape.gpu_milli, memory, count)
        for (shape, memory), count in counts.most_common(len(SMALL_SHAPES))
    ]
    tabled = [(one.cpu_milli, one.gpus, one.gpu_milli, one.memory_mib, one.pods) for one in SMALL_SHAPES]
    assert sorted(tabled) == sorted(frequent)
    assert sum(one.pods for one in SMALL_SHAPES) / len(trace.pods) == pytest.approx(0.8, abs=0.015)
    nodes = Counter(
        (one.model, one.cpu_milli, one.memory_mib) for one in trace.nodes if one.gpus == NODE_GPUS
    )
    for count, *rest in NODE_MODELS:
        assert nodes[tuple(rest)] == count  # type: ignore[index]


def test_training_sizes_are_those_of_philly(traces: Path) -> None:
    folder = traces / "gavel_philly"
    counts: Counter[int] = Counter()
    for path in folder.glob("seed0_*.trace.gz"):
        with gzip.open(path, "rt") as stream:
            counts.update(int(line.rstrip("\n").split("\t")[6]) for line in stream)
    assert counts.total() == 15_264
    assert {size.gpus: size.jobs for size in TRAINING_SIZES} == {
        number: counts[number] for number in (1, 2, 4, 8, 16, 32)
    }
