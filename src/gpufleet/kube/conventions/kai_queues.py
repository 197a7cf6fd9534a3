"""KAI's queues (`scheduling.run.ai/v2`): quota, limit and over-quota weight for each resource, as plain
numbers.

CPU is in millicores, memory in millions of bytes, GPUs are whole with a fraction. -1 is unlimited; a quota
that is not written is 0, and so is a limit: such a queue may hold nothing. A weight that is not written is
0, too. The priority of a queue is 100 where nothing is written.
"""

from __future__ import annotations

from gpufleet.fleet.queues import UNIT_WEIGHT, Queue, Quota
from gpufleet.kube.conventions.queue_amounts import exactly, seconds_of
from gpufleet.kube.objects.meta import APIStruct, ObjectMeta
from gpufleet.kube.times import parse_time

RULE = "KAI Queue"
_DEFAULT_PRIORITY = 100
_MILLI, _MEGABYTE = 1000, 10**6


class KaiResource(APIStruct, frozen=True, kw_only=True):
    """Quota, limit and weight of one resource."""

    quota: float = 0
    limit: float = 0
    over_quota_weight: float = 0


class KaiResources(APIStruct, frozen=True, kw_only=True):
    """CPU in millicores, memory in MB, whole GPUs."""

    cpu: KaiResource = KaiResource()
    memory: KaiResource = KaiResource()
    gpu: KaiResource = KaiResource()


class KaiQueueSpec(APIStruct, frozen=True, kw_only=True):
    """What is asked for a queue of KAI."""

    parent_queue: str = ""
    priority: int | None = None
    resources: KaiResources | None = None
    preempt_min_runtime: str | None = None
    reclaim_min_runtime: str | None = None


class KaiQueue(APIStruct, frozen=True, kw_only=True):
    """A queue of KAI."""

    metadata: ObjectMeta
    spec: KaiQueueSpec = KaiQueueSpec()


def kai_queue(queue: KaiQueue) -> Queue:
    """The queue as decisions read it. Raises GpufleetError (BadQuantity)."""
    spec = queue.spec
    resources = spec.resources or KaiResources()
    return Queue(
        name=queue.metadata.name,
        rule=RULE,
        parent=spec.parent_queue,
        gpu=_quota(resources.gpu, _MILLI),
        cpu=_quota(resources.cpu, 1),
        memory=_quota(resources.memory, _MEGABYTE),
        priority=_DEFAULT_PRIORITY if spec.priority is None else spec.priority,
        created=parse_time(queue.metadata.creation_timestamp),
        preempt_min_runtime=seconds_of(spec.preempt_min_runtime or "0s"),
        reclaim_min_runtime=seconds_of(spec.reclaim_min_runtime or "0s"),
    )


def _quota(resource: KaiResource, scale: int) -> Quota:
    weight = max(0, exactly(resource.over_quota_weight, UNIT_WEIGHT))
    return Quota(_bounded(resource.quota, scale), _bounded(resource.limit, scale), weight=weight)


def _bounded(number: float, scale: int) -> int | None:
    """None for -1, and what it is otherwise; KAI takes no other negative number."""
    return None if number < 0 else exactly(number, scale)
