"""Topology domains: nodes that share a value of a label, and the pods counted in each.

Spread and pod affinity both ask how many pods that match a selector run in each domain. During a decision the
counts change by one pod at a time, which is what keeps the lowest and the highest of them known without a
search.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from gpufleet.fleet.selectors import LabelSelector

LabelTest = Callable[[Mapping[str, str]], bool]


class Domains:
    """Pods counted per value of the node label `key`; `lowest` and `highest` are over all values seen."""

    __slots__ = ("_domains_at", "counts", "highest", "key", "lowest")

    def __init__(self, key: str, counts: dict[str, int]) -> None:
        self.key = key
        self.counts = counts
        self._domains_at = Counter(counts.values())
        self.lowest = min(counts.values(), default=0)
        self.highest = max(counts.values(), default=0)

    def add(self, value: str) -> None:
        """Count one more pod in a domain that was there from the start."""
        count = self._move(value, 1)
        if count == self.lowest and not self._domains_at[count]:
            self.lowest = count + 1
        self.highest = max(self.highest, count + 1)

    def remove(self, value: str) -> None:
        """Count one pod less in a domain."""
        count = self._move(value, -1)
        if count == self.highest and not self._domains_at[count]:
            self.highest = count - 1
        self.lowest = min(self.lowest, count - 1)

    def _move(self, value: str, by: int) -> int:
        """Change the count of a domain; the count before."""
        count = self.counts[value]
        self.counts[value] = count + by
        self._domains_at[count] -= 1
        self._domains_at[count + by] += 1
        return count


def label_test(selector: LabelSelector | None) -> LabelTest:
    """A fast form of `selector.matches`; None matches nothing."""
    if selector is None:
        return lambda labels: False
    requirements = selector.requirements
    if any(r.operator != "In" or len(r.values) != 1 for r in requirements):
        return selector.matches
    pairs = tuple((r.key, r.values[0]) for r in requirements)
    if len(pairs) == 1:
        ((key, value),) = pairs
        return lambda labels: labels.get(key) == value

    return lambda labels: all(labels.get(key) == value for key, value in pairs)
