"""A timeline in numbers, each of them computed by hand."""

from __future__ import annotations

import pytest
from tests.unit.small_traces import pod

from gpufleet.simulator.timeline import JobRun, Step, Timeline
from gpufleet.simulator.traces import Job
from gpufleet.simulator.waits import SIZES, Waits, answer, size_of, summary, waits


def run(start: int | None, end: int | None = None, gpus: int = 1, milli: int = 1000, pods: int = 1) -> JobRun:
    return JobRun(Job("j", 10, 5, pods, pod("j", gpus=gpus, milli=milli).request), start, end)


@pytest.mark.parametrize(
    ("gpus", "milli", "pods", "size"),
    [
        (0, 0, 3, "none"), (1, 300, 1, "part"), (1, 1000, 1, "1"), (1, 500, 2, "1"), (1, 1000, 2, "2-7"),
        (7, 1000, 1, "2-7"), (8, 1000, 1, "8"), (4, 1000, 2, "8"), (8, 1000, 2, "9+"),
    ],
)  # fmt: skip
def test_a_size_is_that_of_all_pods_of_a_job(gpus: int, milli: int, pods: int, size: str) -> None:
    assert size in SIZES
    assert size_of(run(None, gpus=gpus, milli=milli, pods=pods)) == size


def test_waits_are_of_jobs_that_started_and_others_are_counted() -> None:
    runs = [run(10 + wait) for wait in range(1, 41)] + [run(None)]
    assert waits(runs) == Waits(41, 40, 1, 20.5, 38, 40)
    assert waits([run(13)]) == Waits(1, 1, 0, 3.0, 3, 3)
    assert waits([run(None)]) == Waits(1, 0, 1, None, None, None)


TIMELINE = Timeline(
    capacity_milli=2000,
    runs=(run(10, 20), run(14, None, gpus=1, milli=500), run(None, gpus=8)._replace(evictions=2)),
    steps=(Step(10, 1000, 0), Step(14, 1500, 8000), Step(20, 500, 8000)),
    until_s=30,
    decisions=4,
)


def test_utilisation_is_of_the_time_from_the_first_arrival_to_the_end() -> None:
    numbers = summary(TIMELINE)
    assert numbers.utilisation_percent == pytest.approx(100 * (1000 * 4 + 1500 * 6 + 500 * 10) / (2000 * 20))
    assert (numbers.jobs, numbers.ended, numbers.running, numbers.waiting) == (3, 1, 1, 1)
    assert (numbers.makespan_s, numbers.evictions) == (10, 2)
    assert numbers.waits == Waits(3, 2, 1, 2.0, 4, 4)
    assert list(numbers.waits_by_size) == ["part", "1", "8"]
    assert numbers.waits_by_size["8"] == Waits(1, 0, 1, None, None, None)


def test_a_timeline_without_jobs_has_numbers_too() -> None:
    numbers = summary(Timeline(1000, (), (), 0, 0))
    assert (numbers.utilisation_percent, numbers.makespan_s, numbers.waits_by_size) == (0.0, None, {})


def test_the_answer_has_every_job_and_every_step() -> None:
    found = answer(TIMELINE, 1.23456)
    assert found["allocation"] == [[10, 1000, 0], [14, 1500, 8000], [20, 500, 8000]]
    assert found["wait"] == {"jobs": 3, "started": 2, "waiting": 1, "mean_s": 2.0, "p95_s": 4, "longest_s": 4}
    assert found["runs"][0] == {
        "name": "j", "arrival_s": 10, "start_s": 10, "end_s": 20, "wait_s": 0, "gpu_milli": 1000,
        "evictions": 0, "lost_s": 0,
    }  # fmt: skip
    assert (found["seconds"], found["utilisation_percent"]) == (1.235, 45.0)
