"""Demands: what pods ask for as a mix counts it, and which of them are typical of a load."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import msgspec

MILLI = 1000
"""One whole GPU."""
COVERED_PERCENT = 95
"""Share of a load's pods whose shapes count as typical."""


class Demand(msgspec.Struct, frozen=True, order=True, cache_hash=True):
    """What a pod asks for: CPU, a number of devices, so much of each of them (0 to 1000), and the models that
    it may run on, as written (empty: any).
    """

    cpu_milli: int
    gpus: int
    gpu_milli: int
    models: tuple[str, ...] = ()

    @property
    def shares(self) -> bool:
        """Whether it asks for a part of one device."""
        return self.gpus == 1 and self.gpu_milli < MILLI

    @property
    def total_milli(self) -> int:
        """Milli-GPU of all its devices."""
        return self.gpus * self.gpu_milli

    def allows(self, model: str) -> bool:
        """Whether it may run on GPUs of this model."""
        return not self.models or model in self.models


class TypicalPod(msgspec.Struct, frozen=True, cache_hash=True):
    """A shape and how many pods of the load have it."""

    shape: Demand
    weight: int


def typical_pods(load: Iterable[Demand], percent: int = COVERED_PERCENT) -> tuple[TypicalPod, ...]:
    """The most frequent shapes that together are at least `percent` of the load, most frequent first; of
    equally frequent ones the larger first (CPU, then GPU of a device, devices, models).
    """
    counts = Counter(load)
    ranked = sorted(
        counts.items(),
        key=lambda one: (one[1], one[0].cpu_milli, one[0].gpu_milli, one[0].gpus, "|".join(one[0].models)),
        reverse=True,
    )
    total, covered = counts.total(), 0
    found = []
    for shape, count in ranked:
        if 100 * covered >= percent * total:
            break
        found.append(TypicalPod(shape, count))
        covered += count
    return tuple(found)
