"""Disruption budgets during one decision: what may still be disrupted after the evictions chosen so far.

A budget is a wish that preemption keeps where it can: breaking one costs more than anything else.
"""

from __future__ import annotations

from collections.abc import Iterable

from gpufleet.fleet.pods import Pod
from gpufleet.fleet.snapshot import DisruptionBudget


class Budgets:
    """What each budget still allows. `spend` counts evictions, `mark` and `rollback` undo them."""

    def __init__(self, budgets: Iterable[DisruptionBudget]) -> None:
        self._budgets: dict[str, list[tuple[int, DisruptionBudget]]] = {}
        self._left: list[int] = []
        for budget in budgets:
            self._budgets.setdefault(budget.namespace, []).append((len(self._left), budget))
            self._left.append(budget.allowed)
        self._known: dict[str, tuple[int, ...]] = {}

    def spend(self, victims: Iterable[Pod]) -> None:
        """Count evictions that were chosen."""
        for victim in victims:
            for index in self._protecting(victim):
                self._left[index] -= 1

    def broken_by(self, victims: Iterable[Pod]) -> tuple[Pod, ...]:
        """The pods among `victims` that a budget would not let go after those before them."""
        left: dict[int, int] = {}
        broken = []
        for victim in victims:
            protecting = self._protecting(victim)
            for index in protecting:
                left[index] = left.get(index, self._left[index]) - 1
            if any(left[index] < 0 for index in protecting):
                broken.append(victim)
        return tuple(broken)

    def state(self, pods: Iterable[Pod]) -> tuple[tuple[int, int], ...]:
        """All that `broken_by` depends on for any part of `pods`: equal states give equal answers."""
        counts: dict[int, int] = {}
        for pod in pods:
            for index in self._protecting(pod):
                counts[index] = counts.get(index, 0) + 1
        return tuple((index, max(min(self._left[index], n), -1)) for index, n in sorted(counts.items()))

    def mark(self) -> tuple[int, ...]:
        """A point to which `rollback` can return."""
        return tuple(self._left)

    def rollback(self, mark: tuple[int, ...]) -> None:
        """Undo everything since `mark`."""
        self._left = list(mark)

    def _protecting(self, pod: Pod) -> tuple[int, ...]:
        known = self._known.get(pod.key)
        if known is None:
            known = self._known[pod.key] = tuple(
                index
                for index, budget in self._budgets.get(pod.namespace, ())
                if budget.selector is not None
                and pod.key not in budget.disrupted
                and budget.selector.matches(pod.labels)
            )
        return known
