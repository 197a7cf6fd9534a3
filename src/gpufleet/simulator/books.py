"""The books of a simulation: what is free on each node and where each pod runs, kept apart from who decides.

Who places is not trusted: every start and every end is booked here, and what cannot be ends the run.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

from gpufleet.fleet.demands import MILLI
from gpufleet.simulator.traces import Request, TraceNode


class Placement(NamedTuple):
    """A node by its place in the run's nodes, and devices of it; none for a pod without GPUs."""

    node: int
    devices: tuple[int, ...]


class MisplacedError(Exception):
    """A placer used more than a node has, or moved what does not run. A defect of the placer."""


class Books:
    """What is free on each node, and where each pod runs, by any name that the caller gives it."""

    def __init__(self, nodes: Sequence[TraceNode]) -> None:
        self._nodes = nodes
        self._cpu = [node.cpu_milli for node in nodes]
        self._memory = [node.memory_mib for node in nodes]
        self._gpus = [[MILLI] * node.gpus for node in nodes]
        self._running: dict[Hashable, tuple[Request, Placement]] = {}

    def start(self, pod: Hashable, request: Request, at: Placement) -> None:
        """Let a pod run; raises MisplacedError where it may not, or where it runs already."""
        node, devices, shape = self._nodes[at.node], self._gpus[at.node], request.shape
        if pod in self._running:
            raise MisplacedError(f"{pod} runs already and cannot be started on {node.name}")
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
        self._running[pod] = (request, at)

    def end(self, pod: Hashable) -> Request:
        """Free what a pod has, and say what that was; raises MisplacedError for one that does not run."""
        if pod not in self._running:
            raise MisplacedError(f"{pod} does not run, so it cannot be moved and cannot end")
        request, at = self._running.pop(pod)
        for device in at.devices:
            self._gpus[at.node][device] += request.shape.gpu_milli
        self._cpu[at.node] += request.shape.cpu_milli
        self._memory[at.node] += request.memory_mib
        return request

    def move(self, pod: Hashable, to: Placement) -> None:
        """Let a running pod run elsewhere; raises MisplacedError where it may not."""
        self.start(pod, self.end(pod), to)
