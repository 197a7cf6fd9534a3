"""A replay: pods arrive one after the other and stay; what fits nowhere is gone for ever.

The allocation at arrived load x is the share of all GPUs that is allocated, averaged over the arrivals after
which the GPUs asked for so far, in percent of all GPUs, round to x (half to even). Pods without GPUs are
arrivals too. Source: Weng et al., USENIX ATC 2023, and the analysis of their results.

Who places is not trusted: a ledger of its own checks every placement and every migration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

from gpufleet.simulator.books import Books, Placement
from gpufleet.simulator.traces import TraceNode, TracePod, capacity_milli

TOLD_EVERY = 500
"""Arrivals between two reports of progress."""


class Move(NamedTuple):
    """A migration of a pod that runs, which is named by the number of its arrival."""

    arrival: int
    to: Placement


class Decision(NamedTuple):
    """What is decided when a pod arrives: migrations, made in their order, and then where the pod goes; None:
    nowhere.
    """

    placement: Placement | None
    moves: tuple[Move, ...] = ()


class Placer(Protocol):
    """Who decides. It knows the run's nodes and the arrivals so far, and nothing of those to come."""

    def place(self, pod: TracePod) -> Decision:
        """Decide about the next arrival."""


class Outcome(NamedTuple):
    """Allocated percent of all GPUs by arrived percent, migrations, and pods that were not placed."""

    allocation_percent: dict[int, float]
    migrations: int
    unplaced: int


def replay(
    nodes: Sequence[TraceNode],
    pods: Sequence[TracePod],
    placer: Placer,
    tell: Callable[[int], None] = lambda arrived: None,
) -> Outcome:
    """Let the pods arrive in their order. `tell` hears now and then how many have. Raises MisplacedError when
    the placer's decisions are impossible.
    """
    ledger = Books(nodes)
    arrived = allocated = migrations = unplaced = 0
    after: list[tuple[int, int]] = []
    for number, pod in enumerate(pods):
        if number % TOLD_EVERY == 0:
            tell(number)
        decision = placer.place(pod)
        for move in decision.moves:
            ledger.move(move.arrival, move.to)
        migrations += len(decision.moves)
        arrived += pod.total_milli
        if decision.placement is None:
            unplaced += 1
        else:
            ledger.start(number, pod.request, decision.placement)
            allocated += pod.total_milli
        after.append((arrived, allocated))
    tell(len(pods))
    return Outcome(allocation_percent(after, capacity_milli(nodes)), migrations, unplaced)


def allocation_percent(after: Iterable[tuple[int, int]], capacity: int) -> dict[int, float]:
    """Allocated percent by arrived percent, of (arrived, allocated) milli-GPU after each arrival. A load that
    no arrival rounds to has the mean of the loads one beside it, where there are any.
    """
    at: dict[int, list[float]] = {}
    for arrived, allocated in after:
        at.setdefault(round(100 * arrived / capacity), []).append(100 * allocated / capacity)
    found = {}
    for load in range(max(at, default=-1) + 1):
        near = at.get(load) or at.get(load - 1, []) + at.get(load + 1, [])
        if near:
            found[load] = sum(near) / len(near)
    return found
