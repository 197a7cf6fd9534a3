"""A replay: pods arrive one after the other and stay; what fits nowhere is gone for ever.

The allocation at arrived load x is the share of all GPUs that is allocated, averaged over the arrivals after
which the GPUs asked for so far, in percent of all GPUs, round to x (half to even). Pods without GPUs are
arrivals too. Source: Weng et al., USENIX ATC 2023, and the analysis of their results.

Who places is not trusted: a ledger of its own checks every placement and every migration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

from gpufleet.fleet.fragmentation import MILLI
from gpufleet.simulator.traces import Request, TraceNode, TracePod, capacity_milli

TOLD_EVERY = 500
"""Arrivals between two reports of progress."""


class Placement(NamedTuple):
    """A node by its place in the run's nodes, and devices of it; none for a pod without GPUs."""

    node: int
    devices: tuple[int, ...]


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


class MisplacedError(Exception):
    """A placer used more than a node has, or moved what does not run. A defect of the placer."""


class _Ledger:
    """What is free on each node, and where each arrival runs."""

    def __init__(self, nodes: Sequence[TraceNode]) -> None:
        self._nodes = nodes
        self._cpu = [node.cpu_milli for node in nodes]
        self._memory = [node.memory_mib for node in nodes]
        self._gpus = [[MILLI] * node.gpus for node in nodes]
        self._running: dict[int, tuple[Request, Placement]] = {}

    def start(self, arrival: int, request: Request, at: Placement) -> None:
        """Let an arrival run; raises MisplacedError where it may not."""
        node, devices, shape = self._nodes[at.node], self._gpus[at.node], request.shape
        if shape.gpus and not shape.allows(node.model):
            raise MisplacedError(f"{request} may not run on {node.model} of {node.name}")
        if len(set(at.devices)) != shape.gpus or len(at.devices) != shape.gpus:
            raise MisplacedError(f"{request} got devices {at.devices} of {node.name}")
        for device in at.devices:
            devices[device] -= shape.gpu_milli
        self._cpu[at.node] -= shape.cpu_milli
        self._memory[at.node] -= request.memory_mib
        if min(self._cpu[at.node], self._memory[at.node], *(devices[one] for one in at.devices)) < 0:
            raise MisplacedError(f"{request} does not fit on {at.devices} of {node.name}")
        self._running[arrival] = (request, at)

    def move(self, move: Move) -> None:
        """Let a running pod run elsewhere; raises MisplacedError where it may not."""
        if move.arrival not in self._running:
            raise MisplacedError(f"arrival {move.arrival} does not run and cannot be moved")
        request, at = self._running.pop(move.arrival)
        for device in at.devices:
            self._gpus[at.node][device] += request.shape.gpu_milli
        self._cpu[at.node] += request.shape.cpu_milli
        self._memory[at.node] += request.memory_mib
        self.start(move.arrival, request, move.to)


def replay(
    nodes: Sequence[TraceNode],
    pods: Sequence[TracePod],
    placer: Placer,
    tell: Callable[[int], None] = lambda arrived: None,
) -> Outcome:
    """Let the pods arrive in their order. `tell` hears now and then how many have. Raises MisplacedError when
    the placer's decisions are impossible.
    """
    ledger = _Ledger(nodes)
    arrived = allocated = migrations = unplaced = 0
    after: list[tuple[int, int]] = []
    for number, pod in enumerate(pods):
        if number % TOLD_EVERY == 0:
            tell(number)
        decision = placer.place(pod)
        for move in decision.moves:
            ledger.move(move)
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
