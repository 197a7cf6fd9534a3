"""Virtual time: waits that a hand can compute, gangs that start whole, and no GPU that is used twice."""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence

import pytest
from tests.unit.small_traces import node, pod

from gpufleet.fleet.demands import MILLI
from gpufleet.fleet.queues import Queue, Quota
from gpufleet.fleet.snapshot import Snapshot
from gpufleet.scheduling.ledger import Ledger
from gpufleet.simulator import cluster
from gpufleet.simulator.synthetic import synthetic_load
from gpufleet.simulator.timeline import JobRun, Step, Timeline, simulate
from gpufleet.simulator.traces import Job, Load, TraceNode, capacity_milli


def job(name: str, at: int, lasts: int, gpus: int = 1, pods: int = 1, **rest: object) -> Job:
    """A job; `milli` and `models` are those of its pods, all else is the job's."""
    wanted = {key: rest.pop(key) for key in ("milli", "models", "cpu") if key in rest}
    return Job(name, at, lasts, pods, pod(name, gpus=gpus, **wanted).request, **rest)  # type: ignore[arg-type]


def run(nodes: Sequence[TraceNode], *jobs: Job, until: int | None = None, interval: int = 0) -> Timeline:
    return simulate(Load(tuple(nodes), jobs), until, interval)


def times(timeline: Timeline) -> dict[str, tuple[int | None, int | None]]:
    return {one.job.name: (one.start_s, one.end_s) for one in timeline.runs}


ONE = [node("n", gpus=2)]
TWO = [node("a", gpus=2), node("b", gpus=2)]


# ------------------------------------------------------------------------------------------- computed by hand


def test_a_job_that_fits_starts_when_it_comes_and_ends_after_its_duration() -> None:
    timeline = run(ONE, job("a", 5, 10))
    assert times(timeline) == {"a": (5, 15)}
    assert timeline.steps == (Step(5, MILLI, 0), Step(15, 0, 0))
    assert (timeline.until_s, timeline.capacity_milli) == (15, 2 * MILLI)


def test_a_job_waits_until_another_one_has_made_room() -> None:
    timeline = run(ONE, job("a", 0, 100, gpus=2), job("b", 30, 10), job("c", 40, 20, gpus=2))
    assert times(timeline) == {"a": (0, 100), "b": (100, 110), "c": (110, 130)}
    assert [one.wait_s for one in timeline.runs] == [0, 70, 70]
    assert timeline.steps == (
        Step(0, 2000, 0), Step(30, 2000, 1000), Step(40, 2000, 3000), Step(100, 1000, 2000),
        Step(110, 2000, 0), Step(130, 0, 0),
    )  # fmt: skip


def test_parts_share_a_gpu_and_what_is_too_much_for_it_waits() -> None:
    one_gpu = [node("n", gpus=1)]
    jobs = [job("a", 0, 50, milli=600), job("b", 1, 10, milli=400), job("c", 2, 10, milli=500)]
    assert times(run(one_gpu, *jobs)) == {"a": (0, 50), "b": (1, 11), "c": (50, 60)}


def test_a_gang_starts_whole_and_holds_nothing_before() -> None:
    timeline = run(TWO, job("a", 0, 100, gpus=2), job("gang", 1, 10, gpus=2, pods=2), job("b", 2, 20, gpus=2))
    assert times(timeline) == {"a": (0, 100), "gang": (100, 110), "b": (2, 22)}
    assert max(step.allocated_milli for step in timeline.steps) == 4 * MILLI


def test_ends_and_arrivals_of_one_second_are_one_decision() -> None:
    timeline = run(ONE, job("a", 0, 10, gpus=2), job("b", 10, 5), job("c", 10, 5))
    assert times(timeline) == {"a": (0, 10), "b": (10, 15), "c": (10, 15)}
    assert timeline.decisions == 2


def test_models_and_cpu_are_respected() -> None:
    nodes = [node("a", model="T4", cpu=4), node("b", model="A100", cpu=64)]
    jobs = [
        job("picky", 0, 10, models="T4"),
        job("wide", 0, 10, cpu=50),
        job("late", 1, 5, gpus=2, cpu=3, models="T4"),
    ]
    timeline = run(nodes, *jobs)
    assert times(timeline) == {"picky": (0, 10), "wide": (0, 10), "late": (10, 15)}


def test_the_interval_delays_what_comes_soon_after_a_decision_and_nothing_else() -> None:
    jobs = [job("a", 0, 100), job("b", 4, 100), job("c", 50, 1, gpus=0)]
    assert [one.start_s for one in run(ONE, *jobs, interval=10).runs] == [0, 10, 50]
    assert [one.start_s for one in run(ONE, *jobs).runs] == [0, 4, 50]


def test_an_end_is_a_decision_only_where_somebody_waits() -> None:
    assert run(ONE, job("a", 0, 5), job("b", 1, 5)).decisions == 2


def test_it_ends_at_the_second_that_is_asked_for() -> None:
    timeline = run(ONE, job("a", 0, 100, gpus=2), job("b", 5, 1), job("c", 60, 1), until=50)
    assert times(timeline) == {"a": (0, None), "b": (None, None)}
    assert timeline.until_s == 50


def test_a_job_that_fits_nowhere_waits_for_ever_and_nobody_for_it() -> None:
    timeline = run(ONE, job("huge", 0, 1, gpus=3), job("gang", 0, 1, gpus=1, pods=3), job("a", 1, 5))
    assert times(timeline) == {"huge": (None, None), "gang": (None, None), "a": (1, 6)}


def test_jobs_without_gpus_are_there_to_their_end_though_no_gpu_changes_hands() -> None:
    timeline = run(ONE, job("a", 1, 5), job("cpu", 2, 50, gpus=0), job("late", 30, 1, gpus=0))
    assert times(timeline) == {"a": (1, 6), "cpu": (2, 52), "late": (30, 31)}
    assert timeline.until_s == 52
    assert timeline.steps == (Step(1, MILLI, 0), Step(6, 0, 0))


def test_no_jobs_are_an_empty_timeline() -> None:
    assert run(ONE) == Timeline(2 * MILLI, (), (), 0, 0)


def test_a_higher_priority_evicts_and_the_victim_begins_again() -> None:
    timeline = run(ONE, job("low", 0, 100, gpus=2), job("high", 30, 10, gpus=2, priority=5))
    low, high = timeline.runs
    assert (high.start_s, high.end_s, high.evictions) == (30, 40, 0)
    assert (low.start_s, low.end_s, low.evictions, low.lost_s) == (40, 140, 1, 30)


def test_a_gang_of_which_a_pod_is_evicted_stops_as_a_whole() -> None:
    timeline = run(TWO, job("gang", 0, 100, gpus=2, pods=2), job("high", 30, 10, priority=5))
    gang, high = timeline.runs
    assert (high.start_s, high.end_s) == (30, 40)
    assert (gang.start_s, gang.end_s, gang.evictions, gang.lost_s) == (40, 140, 1, 30)
    assert Step(30, MILLI, 4 * MILLI) in timeline.steps


def test_a_queue_holds_no_more_than_its_limit() -> None:
    queue = Queue(name="q", rule="test", gpu=Quota(limit=MILLI))
    jobs = (job("a", 0, 10, queue="q"), job("b", 1, 10, queue="q"), job("c", 1, 10))
    timeline = simulate(Load(tuple(TWO), jobs, (queue,)), None, 0)
    assert times(timeline) == {"a": (0, 10), "b": (10, 20), "c": (1, 11)}


# ------------------------------------------------------------------------------------------------- properties


def draw_load(seed: int, *, priorities: int = 1) -> Load:
    """A small fleet and more jobs than it has room for at once; each fits on it when it is empty."""
    draw = random.Random(seed)
    nodes = tuple(node(f"n{number}", gpus=4, model=draw.choice(["T4", "A100"])) for number in range(4))
    jobs = []
    for number in range(60):
        kind = draw.random()
        gpus, pods = (
            (draw.choice([0, 1, 1, 2, 4]), 1) if kind < 0.8 else (draw.choice([1, 4]), draw.randint(2, 4))
        )
        milli = draw.choice([MILLI, 100 * draw.randint(1, 9)]) if gpus == 1 else MILLI
        at, lasts = draw.randint(0, 300), draw.randint(1, 60)
        jobs.append(
            job(f"j{number}", at, lasts, gpus, pods, milli=milli, priority=draw.randrange(priorities))
        )
    return Load(nodes, tuple(sorted(jobs, key=lambda one: one.arrival_s)))


def most_at_once(runs: Sequence[JobRun]) -> int:
    """The most milli-GPU that finished jobs held at any time, by their own times alone."""
    changes = [(one.start_s or 0, 1, one.job.total_milli) for one in runs]
    changes += [(one.end_s or 0, 0, -one.job.total_milli) for one in runs]
    heapq.heapify(changes)
    held = most = 0
    while changes:
        held += heapq.heappop(changes)[2]
        most = max(most, held)
    return most


@pytest.mark.parametrize("priorities", [1, 3])
@pytest.mark.parametrize("seed", range(6))
def test_every_job_runs_for_its_duration_and_never_more_than_there_is(seed: int, priorities: int) -> None:
    """The books of `simulator.books` check each device as well: they end a run that uses one twice."""
    load = draw_load(seed, priorities=priorities)
    timeline = simulate(load, None, 0)
    assert len(timeline.runs) == 60
    for one in timeline.runs:
        assert one.start_s is not None
        assert one.start_s >= one.job.arrival_s + one.lost_s
        assert one.end_s == one.start_s + one.job.duration_s
        assert bool(one.evictions) >= bool(one.lost_s)
    assert most_at_once(timeline.runs) <= capacity_milli(load.nodes)
    assert timeline.steps[-1][1:] == (0, 0)
    assert any(one.wait_s for one in timeline.runs)


@pytest.mark.parametrize("seed", range(3))
def test_steps_are_what_the_times_of_the_jobs_say(seed: int) -> None:
    timeline = simulate(draw_load(seed), None, 0)
    for step in timeline.steps:
        at = step.at_s
        running = [one for one in timeline.runs if (one.start_s or 0) <= at < (one.end_s or 0)]
        waiting = [one for one in timeline.runs if one.job.arrival_s <= at < (one.start_s or 0)]
        assert step.allocated_milli == sum(one.job.total_milli for one in running)
        assert step.queued_milli == sum(one.job.total_milli for one in waiting)


@pytest.mark.parametrize("interval", [0, 7])
def test_the_same_load_gives_the_same_timeline(interval: int) -> None:
    load = synthetic_load(6, 3, seed=3, load_percent=150)
    until = 3 * 86_400
    first, again = (simulate(load, until, interval) for _ in range(2))
    assert first == again


class Rebuilt:
    """In place of the ledger: nothing is kept from one decision to the next."""

    @staticmethod
    def build(snapshot: Snapshot, previous: Ledger | None) -> Ledger:
        return Ledger.build(snapshot)


@pytest.mark.parametrize(
    "load",
    [draw_load(8, priorities=3), synthetic_load(16, 1, seed=2, load_percent=400)],
    ids=["priorities", "usual mix"],
)
def test_what_is_kept_between_decisions_changes_nothing(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = simulate(load, 86_400, 0)
    assert any(one.wait_s for one in kept.runs)
    monkeypatch.setattr(cluster, "Ledger", Rebuilt)
    assert simulate(load, 86_400, 0) == kept


def test_progress_goes_from_the_beginning_to_the_end() -> None:
    told: list[float] = []
    simulate(draw_load(1), None, 0, told.append)
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert len(told) > 1
