"""What a trace is: nodes with GPUs, and pods in the order in which they arrive, or jobs that come and end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from gpufleet.fleet.demands import MILLI, Demand
from gpufleet.fleet.queues import Queue


class TraceNode(NamedTuple):
    """One node when it is empty. `model` is that of all its GPUs, `labels` are what it has beside that."""

    name: str
    cpu_milli: int
    memory_mib: int
    gpus: int
    model: str
    labels: tuple[tuple[str, str], ...] = ()


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


class Job(NamedTuple):
    """A job: when it comes, how long it lasts once all its pods run, and its pods, which are all alike."""

    name: str
    arrival_s: int
    duration_s: int
    pods: int
    request: Request
    priority: int = 0
    queue: str = ""

    @property
    def total_milli(self) -> int:
        """Milli-GPU of all pods."""
        return self.pods * self.request.shape.total_milli

    @property
    def gpu_milliseconds(self) -> int:
        """Milli-GPU x seconds of all pods."""
        return self.total_milli * self.duration_s


class Load(NamedTuple):
    """A fleet and the jobs that come to it, in the order of their arrival; names are unique."""

    nodes: tuple[TraceNode, ...]
    jobs: tuple[Job, ...]
    queues: tuple[Queue, ...] = ()


def capacity_milli(nodes: Iterable[TraceNode]) -> int:
    """Milli-GPU of all nodes."""
    return MILLI * sum(node.gpus for node in nodes)


def demand_milli(pods: Iterable[TracePod]) -> int:
    """Milli-GPU that all pods ask for."""
    return sum(pod.total_milli for pod in pods)
