"""What each queue is entitled to, holds and waits for: rows for people and for scripts.

The numbers are those that the decision works with, on the same snapshot, with one difference: every pod that
waits is counted, whichever scheduler decides about it.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from gpufleet.fleet.queues import RESOURCES, UNIT_WEIGHT, UNQUEUED, Amounts
from gpufleet.fleet.snapshot import Snapshot
from gpufleet.scheduling.gangs import Unit, units
from gpufleet.scheduling.queues import Queues


class ResourceRow(msgspec.Struct, frozen=True):
    """One resource of a queue, in thousandths (GPUs, cores) or bytes. None: a guarantee of all, or no limit.

    `guarantee` has what queues below add to it; `in_quota` is the part of the fair share that is guaranteed.
    """

    guarantee: int | None
    limit: int | None
    lending_limit: int | None
    weight_milli: int
    allocated: int
    requested: int
    in_quota: int
    fair_share: int


class QueueRow(msgspec.Struct, frozen=True):
    """One queue as `queues -o json` shows it. Scripts rely on these names.

    `depth` is 0 for a top queue; `problem` says why the queue cannot be used, or takes nobody in. Pods and
    amounts include the queues below.
    """

    name: str
    parent: str
    depth: int
    rule: str
    priority: int
    problem: str
    running: int
    waiting: int
    gpu_milli: ResourceRow
    cpu_milli: ResourceRow
    memory_bytes: ResourceRow

    @property
    def resources(self) -> tuple[ResourceRow, ResourceRow, ResourceRow]:
        """In the order of `RESOURCES`."""
        return self.gpu_milli, self.cpu_milli, self.memory_bytes


class QueueReport(msgspec.Struct, frozen=True):
    """All queues, each after the one above it, and what the nodes have together. `broken` says of every queue
    that is left out why.
    """

    capacity: Amounts
    queues: tuple[QueueRow, ...]
    broken: dict[str, str]

    def as_json(self) -> dict[str, object]:
        """The report for scripts."""
        gpu, cpu, memory = self.capacity
        capacity = {"gpu_milli": gpu, "cpu_milli": cpu, "memory_bytes": memory}
        rows = [msgspec.to_builtins(row) for row in self.queues]
        return {"capacity": capacity, "queues": rows, "broken": self.broken}


def queue_report(snapshot: Snapshot) -> QueueReport:
    """The report of a snapshot; without any queue there are no rows."""
    if not snapshot.queues:
        return QueueReport(Amounts(), (), {})
    waiting = units(snapshot, lambda pod: True)
    queues = Queues(snapshot, waiting)
    return QueueReport(
        queues.capacity, tuple(_rows(snapshot, queues, waiting)), dict(snapshot.queues.problems)
    )


def _rows(snapshot: Snapshot, queues: Queues, waiting: list[Unit]) -> Iterator[QueueRow]:
    tree, requested, running = snapshot.queues, queues.requested(), queues.running()
    pending = dict.fromkeys(tree.queues, 0)
    for unit in waiting:
        for pod in unit.pods:
            counted = queues.queue(pod)
            if counted == UNQUEUED and queues.problem(pod) is not None:
                continue
            for name in tree.paths[counted]:
                pending[name] += 1
    for name in _depth_first(snapshot):
        queue = tree.queues[name]
        rows = [
            ResourceRow(
                guarantee,
                quota.limit,
                quota.lending_limit,
                quota.weight,
                held,
                asked,
                share if guarantee is None else min(guarantee, share),
                share,
            )
            for quota, guarantee, held, asked, share in zip(
                queue.quotas,
                tree.guarantees[name],
                queues.held[name],
                requested[name],
                queues.shares[name],
                strict=True,
            )
        ]
        yield QueueRow(
            name,
            queue.parent,
            len(tree.paths[name]) - 1,
            queue.rule,
            queue.priority,
            queue.closed,
            running[name],
            pending[name],
            *rows,
        )


def _depth_first(snapshot: Snapshot) -> Iterator[str]:
    """Every queue after the one above it, by name; pods without a queue come last."""
    tree = snapshot.queues
    left = [UNQUEUED, *sorted((name for name in tree.children[""] if name != UNQUEUED), reverse=True)]
    while left:
        name = left.pop()
        yield name
        left += reversed(tree.children.get(name, ()))


def weight_of(row: ResourceRow) -> str:
    """A weight as people write it."""
    return f"{row.weight_milli / UNIT_WEIGHT:g}"


def resource_of(row: QueueRow, resource: str) -> ResourceRow:
    """The part of a row about one of `RESOURCES`."""
    return row.resources[RESOURCES.index(resource)]
