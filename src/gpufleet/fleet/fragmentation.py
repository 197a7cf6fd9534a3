"""Fragmentation: how much of a node's idle GPU the pods that usually come cannot use, and what a pod adds.

Typical pods are the most frequent shapes of a load. For one of them all idle GPU of a node is lost where it
fits nowhere (model, devices or CPU are missing) or wants no GPU; else only the devices with less idle than it
needs are. A node's fragmentation is the mean over typical pods, weighted by how often each comes. A pod is
scored by how much fragmentation falls when it is placed: 100 x sigmoid(fall / 1 GPU), cut to an integer, so
that near zero one point is 40 milli-GPU and small differences are ties.
Source: Weng et al., Beware of Fragmentation, USENIX ATC 2023, and their simulator.

Computed from the other side: a device with x milli idle is of use to the typical pods of n devices that need
at most min(x, idle of the n-th emptiest device) a device and no more CPU than is free. Their weights are sums
in a small table, so a device costs one look-up and not one for each typical pod. All amounts are integers:
fragmentation is in milli-GPU times `weight`.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpufleet.fleet.demands import MILLI, Demand, TypicalPod

Ints = NDArray[np.int64]

_STATES_KEPT = 1 << 16


class FreeNode(NamedTuple):
    """What is idle on one node: milli-CPU, and milli-GPU of each device."""

    model: str
    cpu_milli: int
    gpus_milli: tuple[int, ...]


class FreeNodes(NamedTuple):
    """The same for K nodes as columns: model (K, numbers of `Fragmentation.number`), milli-CPU (K), milli-GPU
    (K x devices; a device that a node does not have has 0 idle).
    """

    model: Ints
    cpu_milli: Ints
    gpus_milli: Ints


class DeviceScore(NamedTuple):
    """0 to 99, more is better, and the devices to take for it."""

    score: int
    devices: tuple[int, ...]


class Fragmentation:
    """Fragmentation and scores for a set of typical pods. `models` are the GPU models of the nodes."""

    def __init__(self, typical: Sequence[TypicalPod], models: Iterable[str]) -> None:
        wanting = [one for one in typical if one.shape.total_milli]
        self.weight = sum(one.weight for one in typical)
        """Weight of all typical pods; fragmentation in milli-GPU is an amount divided by it."""
        self._numbers = {model: number for number, model in enumerate(dict.fromkeys(models))}
        self._sizes = sorted({one.shape.gpus for one in wanting})
        self._cpus = sorted({one.shape.cpu_milli for one in wanting})
        millis = sorted({one.shape.gpu_milli for one in wanting})
        self._levels = np.searchsorted(millis, np.arange(MILLI + 1), side="right").astype(np.int64)
        self._level_list: list[int] = self._levels.tolist()
        self._falls = _falls(self.weight)
        table = self._weights(wanting, millis)
        self._table, self._shape = table.ravel(), table.shape
        self._rows: list[Any] = table.tolist()
        self._useful_kept = lru_cache(_STATES_KEPT)(self._useful_of_one)

    def number(self, model: str) -> int:
        """The number of a model in columns. KeyError for one that was not given."""
        return self._numbers[model]

    def amount(self, node: FreeNode) -> int:
        """The fragmentation of one node, in milli-GPU times `weight`."""
        return self.weight * sum(node.gpus_milli) - self._useful(node)

    def amounts(self, nodes: FreeNodes) -> Ints:
        """The fragmentation of each node (K), in milli-GPU times `weight`."""
        idle: Ints = nodes.gpus_milli.sum(axis=1)
        return self.weight * idle - self._useful_of_all(nodes)

    def score(self, pod: Demand, node: FreeNode) -> DeviceScore:
        """The score of a node on which the pod fits, and the devices: for a part of a device the first one
        with the best score, else the fullest ones with enough. ValueError where the pod does not fit.
        """
        fitting = [device for device, idle in enumerate(node.gpus_milli) if idle >= pod.gpu_milli]
        if len(fitting) < pod.gpus or node.cpu_milli < pod.cpu_milli:
            raise ValueError(f"{pod} does not fit on {node}")
        fullest = tuple(sorted(fitting, key=node.gpus_milli.__getitem__)[: pod.gpus])
        choices = [(device,) for device in fitting] if pod.shares else [fullest]
        before = self._useful(node)
        best = DeviceScore(-1, ())
        for devices in choices:
            left = list(node.gpus_milli)
            for device in devices:
                left[device] -= pod.gpu_milli
            after = self._useful(FreeNode(node.model, node.cpu_milli - pod.cpu_milli, tuple(left)))
            score = bisect_right(self._falls, self.weight * pod.total_milli - before + after)
            if score > best.score:
                best = DeviceScore(score, devices)
        return best

    def scores(self, pod: Demand, nodes: FreeNodes) -> Ints:
        """The scores (K) of nodes on all of which the pod fits."""
        before = self._useful_of_all(nodes)
        if pod.shares:
            rows, devices = _one_of_each_kind(nodes.gpus_milli, pod.gpu_milli)
            left = nodes.gpus_milli[rows]
            left[np.arange(len(rows)), devices] -= pod.gpu_milli
        else:
            rows = np.arange(len(before))
            left = _without_fullest(nodes.gpus_milli, pod) if pod.gpus else nodes.gpus_milli
        after = self._useful_of_all(FreeNodes(nodes.model[rows], nodes.cpu_milli[rows] - pod.cpu_milli, left))
        fall = self.weight * pod.total_milli - before[rows] + after
        found: Ints = np.searchsorted(self._falls, fall, side="right").astype(np.int64)
        if not pod.shares or not len(before):
            return found
        best: Ints = np.maximum.reduceat(found, np.searchsorted(rows, np.arange(len(before))))
        return best

    def _weights(self, wanting: Sequence[TypicalPod], millis: list[int]) -> Ints:
        """Weight of the typical pods by (model, free CPU, devices, idle): those that such a node suits."""
        shape = (len(self._numbers), len(self._cpus) + 1, len(self._sizes), len(millis) + 1)
        table = np.zeros(shape, dtype=np.int64)
        for one in wanting:
            pod, weight = one.shape, one.weight
            cpu, idle = self._cpus.index(pod.cpu_milli) + 1, millis.index(pod.gpu_milli) + 1
            for model, number in self._numbers.items():
                if pod.allows(model):
                    table[number, cpu, self._sizes.index(pod.gpus), idle] += weight
        summed: Ints = table.cumsum(axis=1).cumsum(axis=3)
        return summed

    def _useful(self, node: FreeNode) -> int:
        """Milli-GPU times weight that typical pods could use."""
        return self._useful_kept(self._numbers[node.model], bisect_right(self._cpus, node.cpu_milli), node[2])

    def _useful_of_one(self, model: int, cpu: int, gpus_milli: tuple[int, ...]) -> int:
        levels = [self._level_list[idle] for idle in gpus_milli]
        emptiest = sorted(levels, reverse=True)
        total = 0
        for size, weights in zip(self._sizes, self._rows[model][cpu], strict=True):
            if size > len(emptiest):
                break
            most = emptiest[size - 1]
            total += sum(
                idle * weights[min(level, most)] for idle, level in zip(gpus_milli, levels, strict=True)
            )
        return total

    def _useful_of_all(self, nodes: FreeNodes) -> Ints:
        _, cpus, sizes, levels = self._shape
        devices = nodes.gpus_milli.shape[1]
        possible = self._sizes[: bisect_right(self._sizes, devices)]
        level = self._levels[nodes.gpus_milli]
        most = np.sort(level, axis=1)[:, [devices - size for size in possible]]
        index = np.minimum(level[:, None, :], most[:, :, None])
        row = nodes.model * cpus + np.searchsorted(self._cpus, nodes.cpu_milli, side="right")
        index += row[:, None, None] * (sizes * levels) + (np.arange(len(possible)) * levels)[:, None]
        weights = self._table[index].sum(axis=1)
        found: Ints = (weights * nodes.gpus_milli).sum(axis=1)
        return found


def _falls(weight: int) -> list[int]:
    """The least fall of fragmentation (milli-GPU times weight) for each score from 1 to 99."""
    return [math.ceil(MILLI * weight * math.log(score / (100 - score))) for score in range(1, 100)]


def _one_of_each_kind(gpus_milli: Ints, need: int) -> tuple[Ints, Ints]:
    """(node, device) of the devices with enough idle, in order, and of devices of a node with equal idle only
    the first, because they score the same.
    """
    devices = gpus_milli.shape[1]
    earlier = np.tri(devices, k=-1, dtype=bool)
    same = (gpus_milli[:, :, None] == gpus_milli[:, None, :]) & earlier
    rows, found = np.nonzero((gpus_milli >= need) & ~same.any(axis=2))
    return rows, found


def _without_fullest(gpus_milli: Ints, pod: Demand) -> Ints:
    """What is left when the pod takes the fullest devices with enough; the first of equal ones."""
    fullest = np.where(gpus_milli >= pod.gpu_milli, gpus_milli, MILLI + 1).argsort(axis=1, kind="stable")
    taken = fullest[:, : pod.gpus]
    left = gpus_milli.copy()
    np.put_along_axis(left, taken, np.take_along_axis(left, taken, axis=1) - pod.gpu_milli, axis=1)
    return left
