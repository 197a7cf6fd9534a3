"""Whose turn it is: the order of units between queues, by KAI's rule.

At each level of the tree, from the top down, the queue goes first that is under its fair share; then one that
stays within its guarantee with what it places next; then the higher priority; then one that uses nothing of
which it has no share; then the smaller dominant share (the largest part of its share that it would hold of
any resource, then that it holds); then the smaller entitlement, the older queue, the name. Within a queue
the order of `gangs` stands.

What a queue holds changes as units are placed, and with it only its own place and that of those above: each
level is a heap, so a turn costs the depth of the tree. Quotients are cut to 32 binary digits, which orders
nothing the other way round.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator

from gpufleet.fleet.queues import UNQUEUED, Amounts
from gpufleet.scheduling.gangs import Unit
from gpufleet.scheduling.queues import Queues, needed

_PRECISION = 32

_Key = tuple[bool, bool, int, bool, int, int, int, float, str]


class Turns:
    """Iterates over units in the order in which it is their turn, while `queues` follow what is placed."""

    def __init__(self, queues: Queues, units: Iterable[Unit]) -> None:
        self._queues = queues
        self._tree = queues.tree
        self._waiting: dict[str, list[Unit]] = {}
        for unit in units:
            name = queues.queue(unit.pods[0])
            self._waiting.setdefault(name if self._tree.is_leaf(name) else UNQUEUED, []).append(unit)
        for waiting in self._waiting.values():
            waiting.reverse()
        self._guaranteed = [any(column) for column in zip(*self._stated(), strict=True)]
        """Of which resources anybody is guaranteed something; what nobody is, says nothing about anybody."""
        self._entitled = {name: self._entitlement(name) for name in self._tree.queues}
        self._heaps: dict[str, list[_Key]] = {name: [] for name in self._tree.children}
        for name in sorted(self._tree.queues, key=lambda name: -len(self._tree.paths[name])):
            need = self._next(name)
            if need is not None:
                heapq.heappush(self._heaps[self._tree.queues[name].parent], self._key(name, need))

    def __iter__(self) -> Iterator[Unit]:
        top = self._heaps.get("", [])
        while top:
            name = ""
            while name in self._heaps:
                name = self._heaps[name][0][-1]
            yield self._waiting[name].pop()
            for member in self._tree.paths[name]:
                heap, need = self._heaps[self._tree.queues[member].parent], self._next(member)
                if need is None:
                    heapq.heappop(heap)
                else:
                    heapq.heapreplace(heap, self._key(member, need))

    def _next(self, name: str) -> Amounts | None:
        """What the next unit of a queue needs; None when nobody waits there."""
        while (heap := self._heaps.get(name)) is not None:
            if not heap:
                return None
            name = heap[0][-1]
        waiting = self._waiting.get(name)
        return needed(waiting[-1], waiting[-1].pods) if waiting else None

    def _key(self, name: str, need: Amounts) -> _Key:
        queue, share = self._tree.queues[name], self._queues.shares[name]
        held, guarantees = self._queues.held[name], self._tree.guarantees[name]
        over = beyond = unshared = False
        dominant = before = 0
        rows = zip(held, need, share, guarantees, self._guaranteed, strict=True)
        for has, more, part, guarantee, matters in rows:
            with_it = has + more
            if more:
                over = over or has >= part
                beyond = beyond or (matters and guarantee is not None and with_it > guarantee)
            if part:
                dominant = max(dominant, (with_it << _PRECISION) // part)
                before = max(before, (has << _PRECISION) // part)
            elif with_it:
                unshared = True
        entitled = self._entitled[name]
        return (over, beyond, -queue.priority, unshared, dominant, before, entitled, queue.created, name)

    def _stated(self) -> Iterator[list[bool]]:
        for guarantees in self._tree.guarantees.values():
            yield [guarantee != 0 for guarantee in guarantees]

    def _entitlement(self, name: str) -> int:
        """The largest part of any resource of the fleet that the queue may hold undisturbed."""
        largest = 0
        rows = zip(
            self._queues.shares[name],
            self._tree.guarantees[name],
            self._tree.queues[name].quotas,
            self._queues.capacity,
            strict=True,
        )
        for share, guarantee, quota, capacity in rows:
            entitled = max(share, capacity if guarantee is None else guarantee)
            if quota.limit is not None:
                entitled = min(entitled, quota.limit)
            if capacity:
                largest = max(largest, (entitled << _PRECISION) // capacity)
        return largest
