"""The nodes of a simulated cluster as columns: what is idle on each, and which kinds of pods run there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from gpufleet.fleet.demands import MILLI, Demand
from gpufleet.fleet.fragmentation import FreeNode, FreeNodes, Ints
from gpufleet.simulator.traces import Request, TraceNode


def models_of(nodes: Iterable[TraceNode]) -> tuple[str, ...]:
    """The GPU models of nodes, each once, in the order of their numbers in columns."""
    return tuple(dict.fromkeys(node.model for node in nodes))


def kind_of(shape: Demand) -> int:
    """The kind of a pod by its GPUs: 0 for a part of one, else how many."""
    return 0 if shape.shares else shape.gpus


class Columns(NamedTuple):
    """K nodes. `gpus_milli` is idle milli-GPU (K x devices), where `gpus` says how many devices a node really
    has; `kinds` counts the GPU pods of each kind (K x kinds).
    """

    model: Ints
    cpu_milli: Ints
    memory_mib: Ints
    gpus_milli: Ints
    gpus: Ints
    kinds: Ints

    @classmethod
    def empty(cls, nodes: Sequence[TraceNode]) -> Self:
        """The nodes before any pod runs."""
        numbers = {model: number for number, model in enumerate(models_of(nodes))}
        gpus = np.array([node.gpus for node in nodes], dtype=np.int64)
        devices = max((node.gpus for node in nodes), default=0)
        return cls(
            np.array([numbers[node.model] for node in nodes], dtype=np.int64),
            np.array([node.cpu_milli for node in nodes], dtype=np.int64),
            np.array([node.memory_mib for node in nodes], dtype=np.int64),
            np.where(np.arange(devices) < gpus[:, None], MILLI, 0).astype(np.int64),
            gpus,
            np.zeros((len(nodes), devices + 1), dtype=np.int64),
        )

    def at(self, nodes: NDArray[Any]) -> Self:
        """Some of the nodes (their numbers, or a mask), as a copy."""
        return type(self)(*(column[nodes] for column in self))

    @property
    def free(self) -> FreeNodes:
        """What is idle, for `Fragmentation`."""
        return FreeNodes(self.model, self.cpu_milli, self.gpus_milli)

    def free_node(self, node: int, models: Sequence[str]) -> FreeNode:
        """What is idle on one node; `models` by number."""
        return FreeNode(
            models[self.model[node]], int(self.cpu_milli[node]), tuple(self.gpus_milli[node].tolist())
        )

    def take(self, node: int, request: Request, devices: Sequence[int]) -> None:
        """Let a pod run on a node."""
        self._change(node, request, devices, -1)

    def give_back(self, node: int, request: Request, devices: Sequence[int]) -> None:
        """Let a pod that runs on a node end."""
        self._change(node, request, devices, 1)

    def _change(self, node: int, request: Request, devices: Sequence[int], sign: int) -> None:
        shape = request.shape
        self.cpu_milli[node] += sign * shape.cpu_milli
        self.memory_mib[node] += sign * request.memory_mib
        if shape.gpus:
            self.gpus_milli[node, list(devices)] += sign * shape.gpu_milli
            self.kinds[node, kind_of(shape)] -= sign
