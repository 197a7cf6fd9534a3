"""Queue objects of every convention, read as queues of one tree.

Names are shared: a pod may name a queue by one vendor's label that another vendor's object, or a `Queue` of
gpufleet, describes. Two objects of one name are therefore a mistake, and their pods are told so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from gpufleet.fleet.queues import Queue, QueueTree
from gpufleet.kube import kinds
from gpufleet.kube import queue as own
from gpufleet.kube.conventions.kai_queues import KaiQueue, kai_queue
from gpufleet.kube.conventions.kueue_queues import (
    COHORT_PREFIX,
    KueueObject,
    cluster_queue,
    cohort_queue,
    local_queue,
    with_cohorts,
)
from gpufleet.kube.conventions.volcano_queues import VolcanoQueue, volcano_queue


class QueueConvention(msgspec.Struct, frozen=True):
    """One kind of queue object: how it is decoded and read (None: no queue), and how its name starts."""

    kind: kinds.Kind
    type: type[Any]
    read: Callable[[Any], Queue | None]
    prefix: str = ""


CONVENTIONS = (
    QueueConvention(kinds.QUEUES, own.Queue, own.queue_value),
    QueueConvention(kinds.KAI_QUEUES, KaiQueue, kai_queue),
    QueueConvention(kinds.VOLCANO_QUEUES, VolcanoQueue, volcano_queue),
    QueueConvention(kinds.CLUSTER_QUEUES, KueueObject, cluster_queue),
    QueueConvention(kinds.LOCAL_QUEUES, KueueObject, local_queue),
    QueueConvention(kinds.COHORTS, KueueObject, cohort_queue, COHORT_PREFIX),
)


def unread_queue(convention: QueueConvention, key: str) -> Queue:
    """A queue whose object cannot be read: its pods wait, instead of running without limits."""
    text = f"its {convention.kind.kind} ({convention.kind.group}) cannot be read"
    return Queue(name=f"{convention.prefix}{key}", rule=convention.kind.resource, closed=text)


def queue_tree(queues: Iterable[Queue]) -> QueueTree:
    """The tree of queues of all conventions."""
    return QueueTree.of(with_cohorts(queues))
