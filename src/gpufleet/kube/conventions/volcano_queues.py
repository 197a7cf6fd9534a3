"""Volcano's queues (`scheduling.volcano.sh/v1beta1`): weight, capability, deserved and guarantee.

`capability` is a hard cap, and a resource that it does not mention has none. `deserved` is what a queue is
entitled to and others may borrow; what `guarantee` names is reserved and lent to nobody, so it is at least
part of what the queue deserves. A queue without parent is below `root`, which Volcano creates itself and
which is the cluster. A queue that is Closed or Closing takes nobody in.
"""

from __future__ import annotations

from collections.abc import Mapping

from gpufleet.fleet.queues import UNIT_WEIGHT, Queue, Quota
from gpufleet.kube.conventions.queue_amounts import stated
from gpufleet.kube.objects.meta import APIStruct, ObjectMeta
from gpufleet.kube.times import parse_time

RULE = "Volcano Queue"
ROOT = "root"


class VolcanoGuarantee(APIStruct, frozen=True, kw_only=True):
    """What is reserved for a queue."""

    resource: Mapping[str, int | str] = {}


class VolcanoQueueSpec(APIStruct, frozen=True, kw_only=True):
    """What is asked for a queue of Volcano."""

    weight: int = 1
    capability: Mapping[str, int | str] = {}
    deserved: Mapping[str, int | str] = {}
    guarantee: VolcanoGuarantee = VolcanoGuarantee()
    parent: str = ""
    priority: int = 0


class VolcanoQueueStatus(APIStruct, frozen=True, kw_only=True):
    """Whether a queue of Volcano is open."""

    state: str = ""


class VolcanoQueue(APIStruct, frozen=True, kw_only=True):
    """A queue of Volcano."""

    metadata: ObjectMeta
    spec: VolcanoQueueSpec = VolcanoQueueSpec()
    status: VolcanoQueueStatus = VolcanoQueueStatus()


def volcano_queue(queue: VolcanoQueue) -> Queue | None:
    """The queue as decisions read it; None for the root. Raises GpufleetError (BadQuantity)."""
    spec, state = queue.spec, queue.status.state
    if queue.metadata.name == ROOT:
        return None
    reserved, deserved, most = stated(spec.guarantee.resource), stated(spec.deserved), stated(spec.capability)
    gpu, cpu, memory = (
        _quota(own or 0, part or 0, limit, spec.weight)
        for own, part, limit in zip(reserved, deserved, most, strict=True)
    )
    return Queue(
        name=queue.metadata.name,
        rule=RULE,
        parent="" if spec.parent == ROOT else spec.parent,
        gpu=gpu,
        cpu=cpu,
        memory=memory,
        priority=spec.priority,
        created=parse_time(queue.metadata.creation_timestamp),
        closed=f"its state is {state}" if state in ("Closed", "Closing") else "",
    )


def _quota(reserved: int, deserved: int, limit: int | None, weight: int) -> Quota:
    guarantee = max(reserved, deserved)
    lent = guarantee - reserved if reserved else None
    return Quota(guarantee, limit, lent, weight * UNIT_WEIGHT)
