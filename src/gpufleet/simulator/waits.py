"""What a finished timeline says: utilisation, waits by the size of jobs, and the whole of it as JSON.

A wait counts for jobs that have started; those that still wait at the end are counted apart, so a mean never
hides them. A percentile is the smallest wait that so many percent of the jobs do not exceed (nearest rank).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from gpufleet.fleet.demands import MILLI
from gpufleet.simulator.timeline import JobRun, Step, Timeline

SIZES = ("none", "part", "1", "2-7", "8", "9+")
"""Classes of jobs by the GPUs of all their pods: none, a part of one, and so many."""
TAIL_PERCENT = 95
_NODE_GPUS = 8


class Waits(NamedTuple):
    """How long jobs waited, in seconds; None while none of them has started."""

    jobs: int
    started: int
    waiting: int
    mean_s: float | None
    p95_s: int | None
    longest_s: int | None


class Summary(NamedTuple):
    """A timeline in numbers. `utilisation_percent` is of GPU-seconds from the first arrival to the end,
    `makespan_s` from the first arrival to the last end of a job (None: none ended).
    """

    jobs: int
    ended: int
    running: int
    waiting: int
    evictions: int
    utilisation_percent: float
    makespan_s: int | None
    waits: Waits
    waits_by_size: dict[str, Waits]


def size_of(run: JobRun) -> str:
    """The class of `SIZES` that a job is in."""
    gpus, part = divmod(run.job.total_milli, MILLI)
    if not gpus:
        return "part" if part else "none"
    if gpus == 1:
        return "1"
    return "2-7" if gpus < _NODE_GPUS else "8" if gpus == _NODE_GPUS else "9+"


def summary(timeline: Timeline) -> Summary:
    """A timeline in numbers."""
    runs = timeline.runs
    ends = [run.end_s for run in runs if run.end_s is not None]
    waiting = sum(run.start_s is None for run in runs)
    by_size = {size: [run for run in runs if size_of(run) == size] for size in SIZES}
    return Summary(
        jobs=len(runs),
        ended=len(ends),
        running=len(runs) - len(ends) - waiting,
        waiting=waiting,
        evictions=sum(run.evictions for run in runs),
        utilisation_percent=_utilisation(timeline),
        makespan_s=max(ends) - runs[0].job.arrival_s if ends else None,
        waits=waits(runs),
        waits_by_size={size: waits(some) for size, some in by_size.items() if some},
    )


def waits(runs: Sequence[JobRun]) -> Waits:
    """How long some jobs waited."""
    known = sorted(run.wait_s for run in runs if run.wait_s is not None)
    counts = len(runs), len(known), len(runs) - len(known)
    if not known:
        return Waits(*counts, None, None, None)
    rank = -(-TAIL_PERCENT * len(known) // 100)
    return Waits(*counts, sum(known) / len(known), known[rank - 1], known[-1])


def answer(timeline: Timeline, seconds: float) -> dict[str, Any]:
    """A timeline as JSON; `seconds` is how long it took to simulate."""
    numbers = summary(timeline)
    return {
        "jobs": numbers.jobs,
        "ended": numbers.ended,
        "running": numbers.running,
        "waiting": numbers.waiting,
        "evictions": numbers.evictions,
        "capacity_milli": timeline.capacity_milli,
        "until_s": timeline.until_s,
        "utilisation_percent": round(numbers.utilisation_percent, 3),
        "makespan_s": numbers.makespan_s,
        "wait": _waits_answer(numbers.waits),
        "wait_by_size": {size: _waits_answer(one) for size, one in numbers.waits_by_size.items()},
        "decisions": timeline.decisions,
        "seconds": round(seconds, 3),
        "allocation": [list(step) for step in timeline.steps],
        "runs": [_run_answer(run) for run in timeline.runs],
    }


def _waits_answer(waits: Waits) -> dict[str, Any]:
    mean = None if waits.mean_s is None else round(waits.mean_s, 3)
    return {**waits._asdict(), "mean_s": mean}


def _run_answer(run: JobRun) -> dict[str, Any]:
    return {
        "name": run.job.name,
        "arrival_s": run.job.arrival_s,
        "start_s": run.start_s,
        "end_s": run.end_s,
        "wait_s": run.wait_s,
        "gpu_milli": run.job.total_milli,
        "evictions": run.evictions,
        "lost_s": run.lost_s,
    }


def _utilisation(timeline: Timeline) -> float:
    if not timeline.steps or not timeline.capacity_milli:
        return 0.0
    length = timeline.until_s - timeline.steps[0].at_s
    used = sum(milli * lasted for milli, lasted in _allocated(timeline.steps, timeline.until_s))
    return 100 * used / (timeline.capacity_milli * length) if length else 0.0


def _allocated(steps: Sequence[Step], until_s: int) -> Iterable[tuple[int, int]]:
    """Allocated milli-GPU, and for how many seconds."""
    ends = [*(step.at_s for step in steps[1:]), until_s]
    return ((step.allocated_milli, end - step.at_s) for step, end in zip(steps, ends, strict=True))
