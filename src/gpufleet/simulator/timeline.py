"""Time that passes: jobs arrive, run and end, and the live scheduler decides, in virtual seconds.

Arrivals and ends are events; those of one second are taken together, ends first. After a second in which
something changed the scheduler decides once, as `decide` does for a cluster, and what it binds runs from then
on: a job's duration begins when all its pods are bound, for several pods are a gang. It decides at
most every `interval_s`: an event that comes sooner waits for the rest of it, and one after a quiet time does
not wait. Between events nothing happens, so months cost what their events cost.

An evicted pod is gone at once. Its job stops as a whole and waits again, as if it had been made anew at that
second, with all of its duration still to do. The usual mix of pods is learned from those that are there.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import NamedTuple

from gpufleet.simulator.cluster import Cluster
from gpufleet.simulator.traces import Job, Load, capacity_milli

TOLD_EVERY = 50
"""Decisions between two reports of progress."""
INTERVAL_S = 1
"""Seconds between two decisions at least, where nothing else is said."""
_ROUNDS = 1000
"""Decisions that may follow each other in one second because each of them evicts somebody."""

Tell = Callable[[float], None]


class JobRun(NamedTuple):
    """A job and what became of it. `start_s` is when the run began that ended, or that goes on; None: it
    waits. `lost_s` are seconds for which it ran and was then evicted.
    """

    job: Job
    start_s: int | None = None
    end_s: int | None = None
    evictions: int = 0
    lost_s: int = 0

    @property
    def wait_s(self) -> int | None:
        """From its arrival to that start; None while it waits."""
        return None if self.start_s is None else self.start_s - self.job.arrival_s


class Step(NamedTuple):
    """From a second on so much is allocated, and jobs that ask for so much wait (milli-GPU)."""

    at_s: int
    allocated_milli: int
    queued_milli: int


class Timeline(NamedTuple):
    """A finished simulation. `runs` are in the order of arrival and leave out jobs that would have come after
    `until_s`, `steps` begin with the first event.
    """

    capacity_milli: int
    runs: tuple[JobRun, ...]
    steps: tuple[Step, ...]
    until_s: int
    decisions: int


class EndlessEvictionsError(Exception):
    """The scheduler evicts without end. A defect of it."""


def simulate(
    load: Load,
    until_s: int | None = None,
    interval_s: int = INTERVAL_S,
    tell: Tell = lambda share: None,
) -> Timeline:
    """Let the jobs of a load come, run and end until second `until_s`, or else until nothing happens more.
    `tell` hears now and then which share of the jobs' arrivals has passed, from 0 to 1. Raises MisplacedError
    when a decision is impossible.
    """
    clock = _Clock(load, interval_s)
    last = load.jobs[-1].arrival_s if load.jobs else 0
    for now in clock.moments(until_s):
        clock.pass_to(now)
        if clock.decisions % TOLD_EVERY == 0:
            tell(min(1.0, now / max(1, last if until_s is None else until_s)))
    tell(1.0)
    until = clock.now_s if until_s is None else until_s
    runs = tuple(run for run in clock.runs if run.job.arrival_s <= until)
    return Timeline(capacity_milli(load.nodes), runs, tuple(clock.steps), until, clock.decisions)


class _Clock:
    """The events to come and what has happened so far."""

    def __init__(self, load: Load, interval_s: int) -> None:
        self.runs = [JobRun(job) for job in load.jobs]
        self.steps: list[Step] = []
        self.decisions = 0
        self.now_s = 0
        self._cluster = Cluster(load)
        self._interval_s = interval_s
        self._arrived = 0
        self._ends: list[tuple[int, int, int]] = []
        """When a job ends, its number, and how often it had been evicted when that was foreseen."""
        self._undecided = False
        self._decide_from_s = 0
        self._allocated = self._queued = 0

    def moments(self, until_s: int | None) -> Iterator[int]:
        """The seconds at which something happens, one after the other, while it does."""
        while (now := self._next()) is not None and (until_s is None or now <= until_s):
            yield now

    def pass_to(self, now: int) -> None:
        """Let happen what happens at a second, and decide if it is time to."""
        self.now_s = now
        while self._ends and self._ends[0][0] <= now:
            _, number, evictions = heapq.heappop(self._ends)
            if self.runs[number].evictions == evictions:
                self._end(number, now)
        while self._arrived < len(self.runs) and self.runs[self._arrived].job.arrival_s <= now:
            self._queued += self.runs[self._arrived].job.total_milli
            self._cluster.add(self._arrived, now)
            self._arrived += 1
            self._undecided = True
        if self._undecided and now >= self._decide_from_s:
            self._decide(now)
        self._step(now)

    def _next(self) -> int | None:
        moments = [self._ends[0][0]] if self._ends else []
        if self._arrived < len(self.runs):
            moments.append(self.runs[self._arrived].job.arrival_s)
        if self._undecided:
            moments.append(self._decide_from_s)
        return min(moments, default=None)

    def _end(self, number: int, now: int) -> None:
        self.runs[number] = self.runs[number]._replace(end_s=now)
        self._allocated -= self.runs[number].job.total_milli
        self._cluster.stop(number)
        self._undecided = self._undecided or self._cluster.waiting

    def _decide(self, now: int) -> None:
        """Decide, and again as long as somebody was evicted, for whom others wait."""
        for _ in range(_ROUNDS):
            self.decisions += 1
            outcome = self._cluster.decide()
            for number in outcome.started:
                self._start(number, now)
            for number in outcome.evicted:
                self._evict(number, now)
            if not outcome.evicted:
                self._undecided = False
                self._decide_from_s = now + self._interval_s
                return
        raise EndlessEvictionsError(f"{_ROUNDS} decisions at second {now} evicted somebody each")

    def _start(self, number: int, now: int) -> None:
        run = self.runs[number] = self.runs[number]._replace(start_s=now)
        heapq.heappush(self._ends, (now + run.job.duration_s, number, run.evictions))
        self._move(run.job.total_milli)

    def _evict(self, number: int, now: int) -> None:
        run = self.runs[number]
        lost = now - (now if run.start_s is None else run.start_s)
        self.runs[number] = run._replace(start_s=None, evictions=run.evictions + 1, lost_s=run.lost_s + lost)
        self._cluster.stop(number)
        self._cluster.add(number, now)
        self._move(-run.job.total_milli)

    def _move(self, milli: int) -> None:
        """So much more is allocated, and waits no longer."""
        self._allocated += milli
        self._queued -= milli

    def _step(self, now: int) -> None:
        step = Step(now, self._allocated, self._queued)
        if not self.steps or self.steps[-1][1:] != step[1:]:
            self.steps.append(step)
