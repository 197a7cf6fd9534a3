"""What would let a pod in whose queue does not: each remedy with the snapshot after it.

Limits that are raised, queues that are created or opened, and a queue below where pods may wait. `explain`
asks the decision about every one of them and offers those after which the pod is placed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from gpufleet.fleet.queues import RESOURCES, UNQUEUED, Amounts, Queue, QueueTree, told_amounts
from gpufleet.fleet.reasons import Reason
from gpufleet.fleet.snapshot import Snapshot
from gpufleet.scheduling.changes import Change
from gpufleet.scheduling.gangs import Unit
from gpufleet.scheduling.queues import Queues
from gpufleet.scheduling.remedies import Remedy

CURABLE_QUEUES = frozenset({"QueueOverLimit", "QueueNotFound", "QueueInvalid", "QueueClosed"})
"""Codes of reasons for which there may be a remedy here."""


def exceeds_limit(reasons: Iterable[Reason]) -> bool:
    """Whether a pod or gang asks for more than its queue may ever hold."""
    return any(
        reason.code == "QueueOverLimit" and int(reason.evidence["need"]) > int(reason.evidence["limit"])
        for reason in reasons
    )


def queue_remedies(snapshot: Snapshot, unit: Unit) -> Iterator[Remedy]:
    """What would cure the first pod whose queue cannot be used, or the limits that are in the way."""
    queues = Queues(snapshot, (unit,))
    for pod in unit.pods:
        reason = queues.problem(pod)
        if reason is not None:
            yield from _cured(snapshot, unit, reason)
            return
    least = queues.exceeded(unit.pods[: unit.needed])
    if not least:
        return
    yield _raised(snapshot, least)
    waiting = [pod for pod in snapshot.unbound.values() if not pod.terminating and not pod.gates]
    enough = {name: amounts for name, amounts in queues.exceeded(waiting).items() if name in least}
    if enough != least:
        yield _raised(snapshot, enough)


def _cured(snapshot: Snapshot, unit: Unit, reason: Reason) -> Iterator[Remedy]:
    tree, name = snapshot.queues, reason.subject
    if reason.code == "QueueNotFound":
        made = Queue(name=name.rpartition("/")[2], rule="made for this pod")
        yield Change("create-queue", f"create the queue {made.name}"), _with(snapshot, _and(tree, made))
    elif reason.code == "QueueClosed":
        opened = msgspec.structs.replace(tree.queues[name], closed="")
        yield Change("open-queue", f"open the queue {name}"), _with(snapshot, _and(tree, opened))
    elif name in tree.children:
        for child in tree.children[name]:
            pods = {pod.key: msgspec.structs.replace(pod, queue=child) for pod in unit.pods}
            changed = msgspec.structs.replace(snapshot, unbound={**snapshot.unbound, **pods})
            yield Change("name-queue", f"name the queue {child}"), changed


def _raised(snapshot: Snapshot, wanted: Mapping[str, Amounts]) -> Remedy:
    raised = [_with_room(snapshot.queues.queues[name], amounts) for name, amounts in sorted(wanted.items())]
    texts = [f"the limit of queue {queue.name} to {told}" for queue, told in raised]
    change = Change("raise-limit", f"raise {' and '.join(texts)}")
    return change, _with(snapshot, _and(snapshot.queues, *(queue for queue, _ in raised)))


def _with_room(queue: Queue, amounts: Amounts) -> tuple[Queue, str]:
    """The queue with limits that hold these amounts, and the limits that are others now."""
    quotas, told = [], []
    for resource, quota, amount in zip(RESOURCES, queue.quotas, amounts, strict=True):
        short = quota.limit is not None and amount > quota.limit
        quotas.append(msgspec.structs.replace(quota, limit=amount) if short else quota)
        if short:
            told.append(f"{told_amounts(resource, amount)[0]} {'GPUs' if resource == 'gpu' else resource}")
    gpu, cpu, memory = quotas
    return msgspec.structs.replace(queue, gpu=gpu, cpu=cpu, memory=memory), ", ".join(told)


def _and(tree: QueueTree, *changed: Queue) -> QueueTree:
    """The tree of the sound queues with others added or replaced."""
    queues = {name: queue for name, queue in tree.queues.items() if name != UNQUEUED}
    return QueueTree.of({**queues, **{queue.name: queue for queue in changed}}.values())


def _with(snapshot: Snapshot, tree: QueueTree) -> Snapshot:
    return msgspec.structs.replace(snapshot, queues=tree)
