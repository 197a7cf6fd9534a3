"""Queues in a decision: what each one holds, what it is entitled to, and who may not take more.

A pod counts in its queue and in all above from the moment it is bound, or room is held for it, until it has
ended. No queue takes more than its limit, whatever is free; pods that would make it so are told the
numbers. Pods that name no queue share one of their own. Pods whose queue is broken wait; where they run
already, they count as pods without a queue.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from gpufleet.fleet.pods import Pod
from gpufleet.fleet.queues import (
    NOTHING,
    QUEUE_LABEL,
    RESOURCES,
    UNQUEUED,
    Amounts,
    QueueTree,
    amounts_asked,
    amounts_of,
    told_amounts,
)
from gpufleet.fleet.reasons import Reason
from gpufleet.fleet.snapshot import Snapshot
from gpufleet.scheduling.fairshare import fair_shares
from gpufleet.scheduling.gangs import Unit
from gpufleet.scheduling.holdings import Holdings, Named, named

Held = list[int]
"""What a queue holds, in the order of `RESOURCES`; changed as a decision goes on."""


class _Guard(msgspec.Struct, frozen=True):
    """A queue with a limit on the way up from a leaf."""

    name: str
    limits: tuple[int | None, ...]
    held: Held


class Queues:
    """The queues of one decision. `held` changes by `take`; what was asked for and the shares stay."""

    def __init__(self, snapshot: Snapshot, waiting: Iterable[Unit], holdings: Holdings | None = None) -> None:
        self.tree: QueueTree = snapshot.queues
        self._namespaces = snapshot.namespaces
        self._gangs = snapshot.gangs
        self._names: dict[Named, str] = {}
        self._problems: dict[str, Reason | None] = {}
        own, self._running = self._bound((holdings or Holdings()).of(snapshot.pods_by_node))
        asked = self._sums(pod for unit in waiting for pod in unit.pods if self.problem(pod) is None)
        self.held: dict[str, Held] = self._with_below(own)
        self.asked = {
            name: own.get(name, NOTHING).plus(asked.get(name, NOTHING)) for name in {**own, **asked}
        }
        """What the pods of each queue hold and wait for, those of queues below not included."""
        self.capacity = _capacity(snapshot)
        self.shares = fair_shares(self.tree, self.asked, self.capacity)
        self._guards: dict[str, tuple[_Guard, ...]] = {}

    def requested(self) -> Mapping[str, Held]:
        """What the pods of each queue, and of those below, hold and wait for."""
        return self._with_below(self.asked)

    def running(self) -> dict[str, int]:
        """How many bound pods count in each queue and in those below."""
        sums = dict.fromkeys(self.tree.queues, 0)
        for name, count in self._running.items():
            for above in self.tree.paths[name]:
                sums[above] += count
        return sums

    def queue(self, pod: Pod) -> str:
        """The queue that a pod counts in."""
        return self._counted(self._named(named(pod)))

    def own_queue(self, pod: Pod) -> str:
        """The queue that a pod is in; empty for one that counts with those without."""
        name = self.queue(pod)
        return "" if name == UNQUEUED else name

    def problem(self, pod: Pod) -> Reason | None:
        """Why nothing can be placed in the pod's queue, whatever is free; None when it can."""
        name = self._named(named(pod))
        if not name:
            wanted = self._wanted(named(pod))
            return Reason("QueueNotFound", f"there is no queue {wanted}", wanted)
        if name not in self._problems:
            self._problems[name] = self._problem(name)
        return self._problems[name]

    def take(self, pods: Iterable[Pod]) -> None:
        """Count pods that get room, or for which it is held."""
        for pod in pods:
            for name in self.tree.paths[self.queue(pod)]:
                _add(self.held[name], amounts_asked(pod.shape))

    def refused(self, unit: Unit, pods: Sequence[Pod]) -> dict[str, Reason]:
        """The pods (`namespace/name`) that may not be placed because a queue would exceed its limit, with
        why.

        As many as possible are left, in order; if they are fewer than the unit needs, none is.
        """
        if not any(self._guarded(pod) for pod in pods):
            return {}
        added: dict[str, Held] = {}
        found: dict[str, Reason] = {}
        for pod in pods:
            need = amounts_asked(pod.shape)
            reason = self._over(pod, need, added, "")
            if reason is not None:
                found[pod.key] = reason
                continue
            for guard in self._guarded(pod):
                _add(added.setdefault(guard.name, [0, 0, 0]), need)
        if not found or unit.enough([pod for pod in pods if pod.key not in found]):
            return found
        if unit.gang:
            need = needed(unit, pods)
            whole = self._over(pods[0], need, {}, f"gang {unit.gang} ") or next(iter(found.values()))
            return {pod.key: whole for pod in pods}
        return found

    def exceeded(self, pods: Sequence[Pod]) -> dict[str, Amounts]:
        """The queues that would exceed their limits with these pods, with what they would hold then."""
        after: dict[str, Held] = {}
        limits: dict[str, tuple[int | None, ...]] = {}
        for pod in pods:
            for guard in self._guarded(pod):
                _add(after.setdefault(guard.name, list(guard.held)), amounts_asked(pod.shape))
                limits[guard.name] = guard.limits
        return {
            name: Amounts(*amounts)
            for name, amounts in after.items()
            if any(
                limit is not None and amount > limit
                for amount, limit in zip(amounts, limits[name], strict=True)
            )
        }

    def _problem(self, name: str) -> Reason | None:
        if name in self.tree.problems:
            return Reason("QueueInvalid", self.tree.problems[name], name)
        if not self.tree.is_leaf(name):
            below = ", ".join(self.tree.children[name])
            return Reason("QueueInvalid", f"pods wait in the queues below {name}: {below}", name)
        for above in self.tree.paths[name]:
            if closed := self.tree.queues[above].closed:
                return Reason("QueueClosed", f"queue {above} takes nobody in: {closed}", above)
        return None

    def _over(self, pod: Pod, need: Amounts, added: Mapping[str, Held], who: str) -> Reason | None:
        for guard in self._guarded(pod):
            more = added.get(guard.name, NOTHING)
            for index, limit in enumerate(guard.limits):
                have = guard.held[index] + more[index]
                if limit is not None and need[index] and have + need[index] > limit:
                    return _over_limit(guard.name, RESOURCES[index], need[index], have, limit, who)
        return None

    def _guarded(self, pod: Pod) -> tuple[_Guard, ...]:
        """The queues with limits that a pod counts in, its own first."""
        name = self.queue(pod)
        guards = self._guards.get(name)
        if guards is None:
            limits = {above: self._limits(above) for above in self.tree.paths[name]}
            guards = self._guards[name] = tuple(
                _Guard(above, limit, self.held[above])
                for above, limit in limits.items()
                if any(amount is not None for amount in limit)
            )
        return guards

    def _limits(self, name: str) -> tuple[int | None, ...]:
        return tuple(quota.limit for quota in self.tree.queues[name].quotas)

    def _wanted(self, who: Named) -> str:
        """The queue that a gang's object says, or else the pod, or its namespace."""
        queue, namespace, gang = who
        stated = self._gangs[gang].queue if gang in self._gangs else ""
        if stated:
            return f"{namespace}/{stated}"
        return queue or self._namespaces.get(namespace, {}).get(QUEUE_LABEL, "")

    def _named(self, who: Named) -> str:
        name = self._names.get(who)
        if name is None:
            name = self._names[who] = self.tree.find(self._wanted(who))
        return name

    def _counted(self, name: str) -> str:
        return name if name in self.tree.queues else UNQUEUED

    def _bound(self, holdings: Mapping[Named, Sequence[int]]) -> tuple[dict[str, Amounts], dict[str, int]]:
        """What bound pods hold and how many they are, by the queue they count in."""
        held: dict[str, Amounts] = {}
        counts: dict[str, int] = {}
        for who, (gpu, cpu, memory, count) in holdings.items():
            name = self._counted(self._named(who))
            held[name] = held.get(name, NOTHING).plus(Amounts(gpu, cpu, memory))
            counts[name] = counts.get(name, 0) + count
        return held, counts

    def _sums(self, pods: Iterable[Pod]) -> dict[str, Amounts]:
        """What pods ask for, by the queue they count in."""
        sums: dict[str, Held] = {}
        for pod in pods:
            _add(sums.setdefault(self.queue(pod), [0, 0, 0]), amounts_asked(pod.shape))
        return {name: Amounts(*amounts) for name, amounts in sums.items()}

    def _with_below(self, own: Mapping[str, Amounts]) -> dict[str, Held]:
        sums: dict[str, Held] = {name: [0, 0, 0] for name in self.tree.queues}
        for name, amounts in own.items():
            for above in self.tree.paths[name]:
                _add(sums[above], amounts)
        return sums


def needed(unit: Unit, pods: Sequence[Pod]) -> Amounts:
    """What the unit must get to be placed at all."""
    sums: Held = [0, 0, 0]
    for pod in pods[: unit.needed]:
        _add(sums, amounts_asked(pod.shape))
    return Amounts(*sums)


def _add(held: Held, amounts: Amounts) -> None:
    held[0] += amounts.gpu
    held[1] += amounts.cpu
    held[2] += amounts.memory


def _capacity(snapshot: Snapshot) -> Amounts:
    """What the nodes have that take pods: those that are ready and not cordoned."""
    sums: Held = [0, 0, 0]
    for node in snapshot.nodes.values():
        if node.ready and not node.unschedulable:
            _add(sums, amounts_of(node.allocatable))
    return Amounts(*sums)


def _over_limit(name: str, resource: str, need: int, have: int, limit: int, who: str) -> Reason:
    more, held, most = told_amounts(resource, need, have, limit)
    what = "GPUs" if resource == "gpu" else resource
    text = f"queue {name} may hold {most} {what} at most: {held} held, and {who or 'the pod '}needs {more}"
    evidence: dict[str, int | str] = {"resource": resource, "need": need, "have": have, "limit": limit}
    return Reason("QueueOverLimit", text, name, evidence=evidence)
