"""Kueue's quotas (`kueue.x-k8s.io/v1beta2`): ClusterQueues with their LocalQueues, and cohorts that lend.

A LocalQueue is a queue without quota of its own below its ClusterQueue; pods name it, so it is called
`namespace/name`. A ClusterQueue is guaranteed its nominal quota and may hold as much as it may borrow on top:
without borrowingLimit everything its cohort has, without cohort nothing. A lendingLimit bounds what others
get of it, and a resource that it does not cover is refused. A cohort is called `cohort:name`: it has what
its members have together and its own quota on top, also where nobody made an object for it; the topmost
cannot borrow.

Quotas of several flavors are added up, as a flavor is a choice of nodes and not of a quota's owner.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from gpufleet.fleet.quantities import parse_quantity
from gpufleet.fleet.queues import UNIT_WEIGHT, Queue, QueueTree, Quota
from gpufleet.kube.conventions.queue_amounts import Stated, stated
from gpufleet.kube.objects.meta import APIStruct, ObjectMeta
from gpufleet.kube.times import parse_time

CLUSTER_QUEUE_RULE = "Kueue ClusterQueue"
LOCAL_QUEUE_RULE = "Kueue LocalQueue"
COHORT_RULE = "Kueue Cohort"
COHORT_PREFIX = "cohort:"


class KueueResource(APIStruct, frozen=True, kw_only=True):
    """The quota of one resource in one flavor."""

    name: str
    nominal_quota: int | str = 0
    borrowing_limit: int | str | None = None
    lending_limit: int | str | None = None


class KueueFlavor(APIStruct, frozen=True, kw_only=True):
    """The quotas of one flavor."""

    name: str = ""
    resources: tuple[KueueResource, ...] = ()


class KueueGroup(APIStruct, frozen=True, kw_only=True):
    """Resources that share flavors."""

    covered_resources: tuple[str, ...] = ()
    flavors: tuple[KueueFlavor, ...] = ()


class KueueSharing(APIStruct, frozen=True, kw_only=True):
    """The weight in fair sharing, a quantity."""

    weight: int | str | None = None


class KueueSpec(APIStruct, frozen=True, kw_only=True):
    """What is asked for a ClusterQueue, a LocalQueue or a Cohort; each has some of these."""

    resource_groups: tuple[KueueGroup, ...] = ()
    cohort_name: str = ""
    parent_name: str = ""
    cluster_queue: str = ""
    stop_policy: str | None = None
    fair_sharing: KueueSharing | None = None


class KueueObject(APIStruct, frozen=True, kw_only=True):
    """A ClusterQueue, a LocalQueue or a Cohort."""

    metadata: ObjectMeta
    spec: KueueSpec = KueueSpec()


class _Offer(msgspec.Struct, frozen=True):
    """What one flavor says of one resource, in the unit of `fleet.queues.Amounts`."""

    nominal: int
    borrowing: int | None
    lending: int | None


def cluster_queue(queue: KueueObject) -> Queue:
    """A ClusterQueue as decisions read it. Raises GpufleetError (BadQuantity)."""
    cohort = queue.spec.cohort_name
    weight = _weight(queue.spec)
    gpu, cpu, memory = (
        _quota(offers, weight, alone=not cohort) if offers else Quota(limit=0, weight=weight)
        for offers in _offers(queue.spec)
    )
    return _queue(queue, queue.metadata.name, CLUSTER_QUEUE_RULE, _cohort(cohort), (gpu, cpu, memory))


def local_queue(queue: KueueObject) -> Queue:
    """A LocalQueue as decisions read it. Raises GpufleetError (BadQuantity)."""
    quota = Quota(weight=_weight(queue.spec))
    return _queue(
        queue, queue.metadata.key, LOCAL_QUEUE_RULE, queue.spec.cluster_queue, (quota, quota, quota)
    )


def cohort_queue(cohort: KueueObject) -> Queue:
    """A Cohort as decisions read it, as if it could borrow. Raises GpufleetError (BadQuantity)."""
    weight = _weight(cohort.spec)
    gpu, cpu, memory = (
        msgspec.structs.replace(_quota(offers, weight, alone=False), includes_children=True, limit=None)
        for offers in _offers(cohort.spec)
    )
    parent = _cohort(cohort.spec.parent_name)
    return _queue(cohort, _cohort(cohort.metadata.name), COHORT_RULE, parent, (gpu, cpu, memory))


def with_cohorts(queues: Iterable[Queue]) -> list[Queue]:
    """All queues, with the cohorts that are only named, and the topmost ones bounded by what they have."""
    found = list(queues)
    known = {queue.name for queue in found}
    members = Quota(includes_children=True)
    for name in sorted({queue.parent for queue in found if queue.parent.startswith(COHORT_PREFIX)} - known):
        rule = f"{COHORT_RULE}, only named"
        found.append(Queue(name=name, rule=rule, gpu=members, cpu=members, memory=members))
    guarantees = QueueTree.of(found).guarantees
    return [
        _bounded(queue, guarantees[queue.name])
        if queue.name.startswith(COHORT_PREFIX) and not queue.parent and queue.name in guarantees
        else queue
        for queue in found
    ]


def _bounded(queue: Queue, limits: Sequence[int | None]) -> Queue:
    gpu, cpu, memory = (
        msgspec.structs.replace(quota, limit=limit) for quota, limit in zip(queue.quotas, limits, strict=True)
    )
    return msgspec.structs.replace(queue, gpu=gpu, cpu=cpu, memory=memory)


def _queue(
    source: KueueObject, name: str, rule: str, parent: str, quotas: tuple[Quota, Quota, Quota]
) -> Queue:
    policy = source.spec.stop_policy or "None"
    return Queue(
        name=name,
        rule=rule,
        parent=parent,
        gpu=quotas[0],
        cpu=quotas[1],
        memory=quotas[2],
        created=parse_time(source.metadata.creation_timestamp),
        closed="" if policy == "None" else f"its stopPolicy is {policy}",
    )


def _cohort(name: str) -> str:
    return f"{COHORT_PREFIX}{name}" if name else ""


def _weight(spec: KueueSpec) -> int:
    weight = spec.fair_sharing.weight if spec.fair_sharing is not None else None
    return UNIT_WEIGHT if weight is None else int(parse_quantity(str(weight)) * UNIT_WEIGHT)


def _offers(spec: KueueSpec) -> tuple[list[_Offer], list[_Offer], list[_Offer]]:
    """What the flavors say, by resource."""
    found: tuple[list[_Offer], list[_Offer], list[_Offer]] = ([], [], [])
    resources = (r for group in spec.resource_groups for flavor in group.flavors for r in flavor.resources)
    for resource in resources:
        nominal = _stated(resource.name, resource.nominal_quota)
        borrowing = _stated(resource.name, resource.borrowing_limit)
        lending = _stated(resource.name, resource.lending_limit)
        for index, amount in enumerate(nominal):
            if amount is not None:
                found[index].append(_Offer(amount, borrowing[index], lending[index]))
    return found


def _stated(name: str, quantity: int | str | None) -> Stated:
    return (None, None, None) if quantity is None else stated({name: quantity})


def _quota(offers: Sequence[_Offer], weight: int, *, alone: bool) -> Quota:
    """The quotas of all flavors together; `alone` without a cohort to borrow from."""
    nominal = sum(offer.nominal for offer in offers)
    borrowing = [0 if alone else offer.borrowing for offer in offers]
    known = [amount for amount in borrowing if amount is not None]
    limit = nominal + sum(known) if len(known) == len(borrowing) else None
    lending = None
    if any(offer.lending is not None for offer in offers):
        lending = sum(offer.nominal if offer.lending is None else offer.lending for offer in offers)
    return Quota(nominal, limit, lending, weight)
