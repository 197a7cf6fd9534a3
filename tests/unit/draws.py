"""What random clusters are drawn with: choices from one seed, and the names that manifests share.

Everything is drawn through `random.Random.random`, whose sequence Python guarantees.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")
Manifest = dict[str, Any]

HOST, ZONE = "kubernetes.io/hostname", "topology.kubernetes.io/zone"
NAMES = ("n0", "n1", "n2", "n3", "n4")


class Draw:
    """Choices from one seed."""

    def __init__(self, seed: int) -> None:
        self._next = random.Random(seed).random

    def chance(self, probability: float) -> bool:
        """True with a probability."""
        return self._next() < probability

    def number(self, lowest: int, highest: int) -> int:
        """A whole number, both ends included."""
        return lowest + int(self._next() * (highest - lowest + 1))

    def one_of(self, choices: Sequence[T]) -> T:
        """One of the choices."""
        return choices[int(self._next() * len(choices))]

    def some_of(self, choices: Sequence[T], most: int) -> list[T]:
        """One to `most` different choices."""
        left = list(choices)
        return [left.pop(self.number(0, len(left) - 1)) for _ in range(self.number(1, most))]
