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

from gpufleet.fleet.pods import Pod, gpus_requested
from gpufleet.fleet.reasons import Reason
from gpufleet.fleet.snapshot import Snapshot


class Unit(msgspec.Struct, frozen=True):
    """Pods that are decided together. `needed` of `pods` must be placed, else none is.

    `running` members are bound already; `problem` says why the unit cannot even be tried.
    """

    pods: tuple[Pod, ...]
    needed: int = 1
    minimum: int = 1
    running: int = 0
    gang: str = ""
    problem: Reason | None = None

    @property
    def nominated(self) -> bool:
        """Whether room is being made for a part of it."""
        return any(pod.nominated_node for pod in self.pods)

    @property
    def order(self) -> tuple[int, int, float, str]:
        """The place in the queue; smaller goes first."""
        return (
            -max(pod.priority for pod in self.pods),
            0 if self.nominated else 1 if self.running else 2,
            min(pod.created for pod in self.pods),
            self.gang or self.pods[0].key,
        )


def units(snapshot: Snapshot, responsible: Callable[[Pod], bool]) -> list[Unit]:
    """What waits for a decision, in the order in which it is taken.

    A pod that another scheduler owns, that is ending or that is gated is not decided about; gated members of
    a gang count as missing.
    """
    singles: list[Unit] = []
    gangs: defaultdict[str, list[Pod]] = defaultdict(list)
    for pod in snapshot.unbound.values():
        if pod.terminating or pod.gates or not responsible(pod):
            continue
        if pod.gang is None:
            singles.append(Unit((pod,)))
        else:
            gangs[pod.gang_key].append(pod)
    if gangs:
        running = running_members(snapshot, gangs)
        singles.extend(gang_unit(key, pods, running.get(key, ()), snapshot) for key, pods in gangs.items())
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


def gang_unit(key: str, members: Sequence[Pod], mates: Sequence[Pod], snapshot: Snapshot) -> Unit:
    """The unit of a gang of which `members` wait and `mates` are bound."""
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
        text = f"gang {key} needs {minimum} pods and {done + len(pods)} are there"
        evidence: dict[str, int | str] = {"need": minimum, "have": done + len(pods)}
        reason = Reason("GangIncomplete", text, key, evidence=evidence)
        return Unit(pods, minimum=minimum, gang=key, running=running, problem=reason)
    return Unit(pods, max(minimum - done, 1), minimum, running, key)


def _largest_first(pod: Pod) -> tuple[int, float, int, str]:
    return (-gpus_requested(pod.shape), pod.created, len(pod.name), pod.name)
