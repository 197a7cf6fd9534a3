"""Gangs: pods that are placed together or not at all, and the order in which pods are decided.

A unit of decision is one pod or one gang. A gang needs `minimum` pods in all; those already bound and those
that have succeeded count, so a gang whose member was replaced needs only the replacement. Successes count as
long as their owner has a pod of the gang that waits or runs: once all pods of an owner have ended, they were
an earlier run under the same name. Units are taken by priority, then units for which room is already being
made, then units that are partly bound, then by age.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from gpufleet.fleet.pods import Pod, gpu_share, gpus_requested
from gpufleet.fleet.reasons import Reason
from gpufleet.fleet.snapshot import Snapshot

_NAMED = 3
"""How many members that are kept back are named."""


class Unit(msgspec.Struct, frozen=True):
    """Pods that are decided together. `needed` of `pods` must be placed, else none is.

    `running` members are bound already; `surplus` says that the gang needs none of `pods`; `problem` says why
    the unit cannot even be tried.
    """

    pods: tuple[Pod, ...]
    needed: int = 1
    minimum: int = 1
    running: int = 0
    gang: str = ""
    surplus: bool = False
    problem: Reason | None = None

    @property
    def nominated(self) -> bool:
        """Whether room is being made for a part of it."""
        return any(pod.nominated_node for pod in self.pods)

    @property
    def order(self) -> tuple[int, int, float, int, str]:
        """The place in the queue; smaller goes first. Of equal age (the API server counts in seconds) the
        larger goes first: what is large fits only while there is much room.
        """
        return (
            -max(pod.priority for pod in self.pods),
            0 if self.nominated else 1 if self.running else 2,
            min(pod.created for pod in self.pods),
            -sum(gpu_share(pod.shape) for pod in self.pods),
            self.gang or self.pods[0].key,
        )


def units(snapshot: Snapshot, responsible: Callable[[Pod], bool]) -> list[Unit]:
    """What waits for a decision, in the order in which it is taken.

    A pod that another scheduler owns, that is ending or that is gated is not decided about; a gang counts
    such members as missing, and says so.
    """
    singles: list[Unit] = []
    gangs: defaultdict[str, list[Pod]] = defaultdict(list)
    kept_back: defaultdict[str, list[Pod]] = defaultdict(list)
    for pod in snapshot.unbound.values():
        if pod.terminating or pod.gates or not responsible(pod):
            if pod.gang is not None:
                kept_back[pod.gang_key].append(pod)
        elif pod.gang is None:
            singles.append(Unit((pod,)))
        else:
            gangs[pod.gang_key].append(pod)
    if gangs:
        running = running_members(snapshot, gangs)
        singles.extend(
            gang_unit(key, pods, running.get(key, ()), snapshot, kept_back.get(key, ()))
            for key, pods in gangs.items()
        )
    return sorted(singles, key=lambda unit: unit.order)


def running_members(snapshot: Snapshot, gangs: Iterable[str]) -> Mapping[str, list[Pod]]:
    """The pods of each gang that are bound and stay: not those that are terminating."""
    wanted = set(gangs)
    running: defaultdict[str, list[Pod]] = defaultdict(list)
    for pods in snapshot.pods_by_node.values():
        for pod in pods.values():
            if pod.gang is not None and not pod.terminating and pod.gang_key in wanted:
                running[pod.gang_key].append(pod)
    return running


def gang_unit(
    key: str,
    members: Sequence[Pod],
    mates: Sequence[Pod],
    snapshot: Snapshot,
    kept_back: Sequence[Pod] = (),
) -> Unit:
    """The unit of a gang of which `members` wait and `mates` are bound; `kept_back` are not decided about."""
    pods = tuple(sorted(members, key=_largest_first))
    running = len(mates)
    live = {pod.gang_part for pod in (*members, *mates)}
    done = running + sum(snapshot.gang_successes.get(part, 0) for part in live)
    minimums = {pod.gang.minimum for pod in members if pod.gang}
    minimum = minimums.pop() if len(minimums) == 1 else None
    if minimum is None:
        problem = next((pod.gang.problem for pod in members if pod.gang and pod.gang.problem), "")
        text = problem or f"the pods of gang {key} state different sizes"
        return Unit(pods, gang=key, running=running, problem=Reason("GangInvalid", text, key))
    if done + len(pods) < minimum:
        text = f"gang {key} needs {minimum} pods and {_there(done + len(pods), pods, kept_back)}"
        evidence: dict[str, int | str] = {"need": minimum, "have": done + len(pods)}
        reason = Reason("GangIncomplete", text, key, evidence=evidence)
        return Unit(pods, minimum=minimum, gang=key, running=running, problem=reason)
    return Unit(pods, max(minimum - done, 1), minimum, running, key, surplus=done >= minimum)


def _there(count: int, pods: Sequence[Pod], kept_back: Sequence[Pod]) -> str:
    """How many members there are, and what keeps those back that do not count."""
    if kept_back:
        names = sorted(kept_back, key=lambda pod: pod.name)
        told = [f"{pod.name} {_kept_back_by(pod)}" for pod in names[:_NAMED]]
        if len(names) > _NAMED:
            told.append(f"{len(names) - _NAMED} more are kept back, too")
        exist = count + len(kept_back)
        return f"{exist} exist, but {', '.join(told)}"
    there = "1 is there" if count == 1 else f"{count} are there"
    if count == 1 and pods[0].owner_kind == "StatefulSet":
        return (
            f"{there}; a StatefulSet makes the next one when it runs, unless podManagementPolicy is Parallel"
        )
    return there


def _kept_back_by(pod: Pod) -> str:
    if pod.terminating:
        return "is being deleted"
    return f"is gated by {', '.join(pod.gates)}" if pod.gates else f"is left to scheduler {pod.scheduler}"


def _largest_first(pod: Pod) -> tuple[int, float, int, str]:
    return (-gpus_requested(pod.shape), pod.created, len(pod.name), pod.name)
