"""The six published policies: the score of a node for a pod, and the devices that the pod gets there.

Scores are integers from 0 to 100, and the highest wins; of equal ones the first node in the run's order. That
decides much: fresh random choices cost FGD five points on openb. A pod with whole devices gets the first idle
ones, a part of a device comes from the fullest device with enough, except where a policy says otherwise.
Source: Weng et al., USENIX ATC 2023, as their simulator computes them. They took the alignment of Tetris, the
clustering of Gandiva and the packing of Alibaba's clusters as what FGD is compared with.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from gpufleet.fleet.demands import MILLI, Demand, typical_pods
from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.fragmentation import Fragmentation, Ints
from gpufleet.simulator.columns import Columns, kind_of, models_of
from gpufleet.simulator.traces import TraceNode, TracePod

BEST = 100
LARGEST_CPU = 128_000
"""Milli-CPU of the largest node, by which CPU is set against GPU."""
LARGEST_GPU = 8 * MILLI


class Policy(Protocol):
    """How nodes are compared, and devices of a node."""

    def scores(self, shape: Demand, nodes: Columns) -> Ints:
        """The score of each node (K, at least one); the pod fits on all of them."""

    def pick(self, scores: Ints) -> int:
        """The node to take; scores of nodes where the pod does not fit are negative, and one does not."""

    def devices(self, shape: Demand, nodes: Columns, node: int) -> tuple[int, ...]:
        """The devices of a node on which the pod fits; empty for a pod without GPUs."""


class _First:
    """The first node with the best score; the fullest device for a part of one."""

    def pick(self, scores: Ints) -> int:
        """The first of the best."""
        return int(scores.argmax())

    def devices(self, shape: Demand, nodes: Columns, node: int) -> tuple[int, ...]:
        """The fullest device with enough, or the first idle ones."""
        return fullest_devices(shape, nodes.gpus_milli[node].tolist())


class DotProd(_First):
    """Tetris' alignment, turned around: low where both the pod and what is free are large."""

    def scores(self, shape: Demand, nodes: Columns) -> Ints:
        """100 x (1 - half of the product of request and free, each as a share of the largest node's)."""
        unit = (LARGEST_CPU // LARGEST_GPU) ** 2
        product = nodes.cpu_milli * shape.cpu_milli + unit * idle_milli(nodes) * shape.total_milli
        whole = 2 * LARGEST_CPU**2
        found: Ints = BEST * (whole - product) // whole
        return found


class BestFit(_First):
    """Where the least is left over."""

    def scores(self, shape: Demand, nodes: Columns) -> Ints:
        """100 x (1 - mean of the CPU and the GPU that are left, each as a share of the largest node's)."""
        cpu = nodes.cpu_milli - shape.cpu_milli
        gpu = idle_milli(nodes) - shape.total_milli
        whole = 2 * LARGEST_CPU
        found: Ints = BEST * (whole - cpu - LARGEST_CPU // LARGEST_GPU * gpu) // whole
        return found


class Clustering(_First):
    """Beside pods of the same kind (parts of a GPU, one GPU, two ...), and there on the fullest node."""

    def scores(self, shape: Demand, nodes: Columns) -> Ints:
        """From 75 where only this kind runs, 50 where others do too, 25 on an empty node, 0 beside others."""
        if not shape.gpus:
            return np.zeros(len(nodes.gpus), dtype=np.int64)
        kinds = (nodes.kinds > 0).sum(axis=1)
        same = nodes.kinds[:, kind_of(shape)] > 0
        quarters = np.where(same, np.where(kinds == 1, 3, 2), np.where(kinds == 0, 1, 0))
        within = BEST // 4 * (LARGEST_GPU - idle_milli(nodes)) // LARGEST_GPU
        found: Ints = within + BEST // 4 * quarters
        return found


class Packing(_First):
    """On devices in use before idle ones, on nodes in use before empty ones."""

    def scores(self, shape: Demand, nodes: Columns) -> Ints:
        """50 to 100 on devices in use, the fuller the better; 33 to 50 on idle devices of a node in use, the
        fewer the better; at most 33 on an empty node, the smaller the better.
        """
        if not shape.gpus:
            return np.zeros(len(nodes.gpus), dtype=np.int64)
        idle = (nodes.gpus_milli == MILLI).sum(axis=1)
        ranked = np.sort(np.where(nodes.gpus_milli >= shape.gpu_milli, nodes.gpus_milli, MILLI + 1), axis=1)
        taken = ranked[:, : shape.gpus]
        fresh = (taken == MILLI).sum(axis=1)
        left = (taken * 100 // MILLI).sum(axis=1) // 10
        used = np.where(
            fresh > 0, np.maximum(BEST // 2 - fresh, BEST // 3), np.maximum(BEST - left, BEST // 2)
        )
        found: Ints = np.where(idle == nodes.gpus, np.maximum(BEST // 3 - idle, idle), used)
        return found


class FGD(_First):
    """Where fragmentation falls most, or grows least."""

    def __init__(self, fragmentation: Fragmentation, models: Sequence[str]) -> None:
        self._fragmentation, self._models = fragmentation, models

    def scores(self, shape: Demand, nodes: Columns) -> Ints:
        """The score of `Fragmentation`, of the best device for a part of one."""
        return self._fragmentation.scores(shape, nodes.free)

    def devices(self, shape: Demand, nodes: Columns, node: int) -> tuple[int, ...]:
        """For a part of a device the first one with the best score."""
        if not shape.shares:
            return super().devices(shape, nodes, node)
        return self._fragmentation.score(shape, nodes.free_node(node, self._models)).devices


class Random:
    """Any node on which the pod fits, and any device for a part of one."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(f"policy/{seed}")

    def scores(self, shape: Demand, nodes: Columns) -> Ints:
        """All equal."""
        return np.zeros(len(nodes.gpus), dtype=np.int64)

    def pick(self, scores: Ints) -> int:
        """Any node that is possible."""
        return int(self._draw.choice(np.flatnonzero(scores >= 0)))

    def devices(self, shape: Demand, nodes: Columns, node: int) -> tuple[int, ...]:
        """Any device with enough, or the first idle ones."""
        idle = nodes.gpus_milli[node].tolist()
        if not shape.shares:
            return fullest_devices(shape, idle)
        return (self._draw.choice([device for device, left in enumerate(idle) if left >= shape.gpu_milli]),)


Maker = Callable[[Sequence[TraceNode], Sequence[TracePod], int], Policy]


def _fgd(nodes: Sequence[TraceNode], pods: Sequence[TracePod], _: int) -> Policy:
    models = models_of(nodes)
    return FGD(Fragmentation(typical_pods(pod.request.shape for pod in pods), models), models)


POLICIES: dict[str, Maker] = {
    "random": lambda nodes, pods, seed: Random(seed),
    "dotprod": lambda nodes, pods, seed: DotProd(),
    "clustering": lambda nodes, pods, seed: Clustering(),
    "packing": lambda nodes, pods, seed: Packing(),
    "bestfit": lambda nodes, pods, seed: BestFit(),
    "fgd": _fgd,
}
"""Makers of the published policies by name, of the nodes in their order, the pods of the trace as it was
published, and the seed.
"""


def make_policy(name: str, nodes: Sequence[TraceNode], pods: Sequence[TracePod], seed: int) -> Policy:
    """The policy of that name. Raises GpufleetError for one that does not exist."""
    if name not in POLICIES:
        raise GpufleetError(
            reason="UnknownPolicy",
            message=f"no such policy: {name}",
            hint=f"there are: {', '.join(POLICIES)}",
        )
    return POLICIES[name](nodes, pods, seed)


def idle_milli(nodes: Columns) -> Ints:
    """Idle milli-GPU of each node (K)."""
    idle: Ints = nodes.gpus_milli.sum(axis=1)
    return idle


def fullest_devices(shape: Demand, idle: Sequence[int]) -> tuple[int, ...]:
    """The fullest devices with enough, the first of equal ones. Whole devices are the first idle ones."""
    enough = [device for device, left in enumerate(idle) if left >= shape.gpu_milli]
    return tuple(sorted(enough, key=idle.__getitem__)[: shape.gpus])
