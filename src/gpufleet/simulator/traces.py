"""What a trace is: nodes with GPUs, and pods in the order in which they arrive."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from gpufleet.fleet.fragmentation import MILLI, Demand


class TraceNode(NamedTuple):
    """One node when it is empty. `model` is that of all its GPUs."""

    name: str
    cpu_milli: int
    memory_mib: int
    gpus: int
    model: str


class Request(NamedTuple):
    """What a pod asks for."""

    shape: Demand
    memory_mib: int


class TracePod(NamedTuple):
    """One pod."""

    name: str
    request: Request

    @property
    def total_milli(self) -> int:
        """Milli-GPU of all its devices."""
        return self.request.shape.total_milli


def capacity_milli(nodes: Iterable[TraceNode]) -> int:
    """Milli-GPU of all nodes."""
    return MILLI * sum(node.gpus for node in nodes)


def demand_milli(pods: Iterable[TracePod]) -> int:
    """Milli-GPU that all pods ask for."""
    return sum(pod.total_milli for pod in pods)
