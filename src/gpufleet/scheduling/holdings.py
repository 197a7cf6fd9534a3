"""What bound pods hold, by the queue they name, kept from decision to decision.

A cache of the snapshot: only nodes whose pods are others than last time are counted again (equal identity of
`pods_by_node[name]` means equality), so it equals a count of all (test_queue_holdings guards it).
"""

from __future__ import annotations

from collections.abc import Mapping

from gpufleet.fleet.pods import Pod
from gpufleet.fleet.queues import amounts_asked

Named = tuple[str, str, str]
"""The queue that pods name, their namespace, which counts where they name none, and their gang, whose object
may name another one.
"""


def named(pod: Pod) -> Named:
    """What says which queue a pod is in."""
    return pod.queue, pod.namespace, pod.gang_object


_Sums = dict[Named, list[int]]


class Holdings:
    """Follows the bound pods of one snapshot after the other."""

    def __init__(self) -> None:
        self._pods: dict[str, Mapping[str, Pod]] = {}
        self._by_node: dict[str, _Sums] = {}
        self._totals: _Sums = {}

    def of(self, pods_by_node: Mapping[str, Mapping[str, Pod]]) -> Mapping[Named, list[int]]:
        """Amounts in the order of `RESOURCES`, and the count of pods as the last one."""
        for node in self._pods.keys() - pods_by_node.keys():
            self._leave(node)
        for node, pods in pods_by_node.items():
            if self._pods.get(node) is not pods:
                self._leave(node)
                self._enter(node, pods)
        return self._totals

    def _leave(self, node: str) -> None:
        self._pods.pop(node, None)
        for who, sums in self._by_node.pop(node, {}).items():
            total = self._totals[who]
            for index, amount in enumerate(sums):
                total[index] -= amount
            if not total[-1]:
                del self._totals[who]

    def _enter(self, node: str, pods: Mapping[str, Pod]) -> None:
        found: _Sums = {}
        for pod in pods.values():
            sums = found.setdefault(named(pod), [0, 0, 0, 0])
            for index, amount in enumerate((*amounts_asked(pod.shape), 1)):
                sums[index] += amount
        for who, sums in found.items():
            total = self._totals.setdefault(who, [0, 0, 0, 0])
            for index, amount in enumerate(sums):
                total[index] += amount
        self._pods[node] = pods
        self._by_node[node] = found
