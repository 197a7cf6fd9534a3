"""Prices: what the idle part of a GPU is worth when all GPUs are to be filled from one mix of pods.

Parts of 810 and 190 milli-GPU fill a GPU, but if hardly any pod asks for 190, then what a pod of 810 leaves
is worth little, and one that leaves 530 for a pod of 470 is worth more. Cutting all GPUs at best into the
parts that the mix asks for is a linear program (cutting stock); its prices say what a pod of each size gives
up that another one could have used, and the value of an idle part is the best set of pods that fits in it, at
their gain after these prices. The prices come from subgradient steps on the dual, averaged: exact enough, and
the same everywhere. Source: Gilmore and Gomory, 1961; bid-price control in revenue management.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache

from gpufleet.fleet.demands import MILLI, TypicalPod

GRAIN = 10
"""Parts are rounded up to so many milli-GPU."""
_CELLS = MILLI // GRAIN
_STEPS = 400

Values = tuple[int, ...]
"""The value (milli-GPU) of an idle part of 0, 10, 20, ... 1000 milli-GPU."""


def value_of(values: Values, idle_milli: int) -> int:
    """The value of an idle part."""
    return values[idle_milli // GRAIN]


@lru_cache(maxsize=64)
def part_values(mix: tuple[TypicalPod, ...]) -> Values:
    """The values of idle parts for a mix of pods."""
    sizes = _demand(mix)
    prices = dict.fromkeys(sizes, 0.0)
    total = dict.fromkeys(sizes, 0.0)
    stride = sum(sizes) / max(1, len(sizes)) / 2
    for step in range(_STEPS):
        _, cells = _best_fill(prices)
        filled = _parts_in(cells)
        length = stride / math.sqrt(step + 1)
        for size, wanted in sizes.items():
            price = prices[size] - (wanted - filled[size]) * length
            prices[size] = min(float(size), max(0.0, price))
            if step >= _STEPS // 2:
                total[size] += prices[size]
    kept = _STEPS - _STEPS // 2
    values, _ = _best_fill({size: price / kept for size, price in total.items()})
    return tuple(round(value * GRAIN) for value in values)


def _demand(mix: Iterable[TypicalPod]) -> dict[int, float]:
    """How many parts of each size (in cells) the mix asks for on each GPU when it fills all of them."""
    counts = Counter[int]()
    for one in mix:
        if one.shape.total_milli:
            counts[-(-one.shape.gpu_milli // GRAIN)] += one.weight * one.shape.gpus
    filled = sum(size * count for size, count in counts.items())
    return {size: counts[size] * _CELLS / filled for size in sorted(counts)}


def _best_fill(prices: Mapping[int, float]) -> tuple[list[float], list[int]]:
    """The most that pods gain in so many cells, and the size that comes first in them (0: a cell is left)."""
    gains = [(size, size - price) for size, price in prices.items() if price < size]
    values, first = [0.0] * (_CELLS + 1), [0] * (_CELLS + 1)
    for cells in range(1, _CELLS + 1):
        best, chosen = values[cells - 1], 0
        for size, gain in gains:
            if size > cells:
                break
            value = values[cells - size] + gain
            if value > best:
                best, chosen = value, size
        values[cells], first[cells] = best, chosen
    return values, first


def _parts_in(first: list[int]) -> Counter[int]:
    """The sizes that fill a whole GPU best."""
    found, cells = Counter[int](), _CELLS
    while cells > 0:
        found[first[cells]] += 1 if first[cells] else 0
        cells -= first[cells] or 1
    return found
