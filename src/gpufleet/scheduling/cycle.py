"""The decision: a snapshot in, a plan out.

Units (single pods and gangs) are taken in order. Each is placed on a trial of the fleet; if it does not fit,
room that is already being made for it is held, else the cheapest victims are looked for, else the reasons are
reported. What one unit takes, or what is held for it, the next ones no longer see: nobody overtakes a pod for
which others were evicted. Pure: no clock, no randomness, no I/O. Equal snapshots give equal plans.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import msgspec

from gpufleet.fleet.plans import Action, Bind, BindVolume, Evict, Nominate, Plan, SelectNode, Unschedulable
from gpufleet.fleet.pods import SCHEDULER_NAME, Pod
from gpufleet.fleet.reasons import Reason
from gpufleet.fleet.snapshot import Snapshot
from gpufleet.scheduling.filters import pod_problem
from gpufleet.scheduling.gangs import Unit, units
from gpufleet.scheduling.ledger import Ledger
from gpufleet.scheduling.messages import pod_reason
from gpufleet.scheduling.preemption import Budgets, Choice, choose
from gpufleet.scheduling.trial import Trial
from gpufleet.scheduling.volumes import volume_actions

_NOT_HELPED_BY_CAPACITY = frozenset({
    "SchedulingGated", "GangIncomplete", "GangInvalid", "DynamicResources", "ClaimNotFound", "ClaimUnbound",
    "ClaimLost", "StorageClassNotFound", "WaitingForVolume", "WaitingForVictims", "BindFailed",
})  # fmt: skip


class Policy(msgspec.Struct, frozen=True):
    """What a decision may assume beyond the snapshot: the scheduler names that gpufleet answers for."""

    schedulers: frozenset[str] = frozenset({SCHEDULER_NAME})

    def responsible(self, pod: Pod) -> bool:
        """Whether gpufleet decides about the pod."""
        return pod.scheduler in self.schedulers


class Placement(msgspec.Struct, frozen=True):
    """A pod, its node and why."""

    pod: Pod
    node: str
    reason: Reason


def decide(snapshot: Snapshot, policy: Policy, ledger: Ledger | None = None) -> Plan:
    """What to do now. `ledger` may be the one of an earlier snapshot that was brought up to date."""
    cycle = _Cycle(ledger or Ledger.build(snapshot))
    for unit in units(snapshot, policy.responsible):
        cycle.take(unit)
    return Plan(tuple(cycle.actions))


class _Cycle:
    """One decision in progress."""

    def __init__(self, ledger: Ledger) -> None:
        self.trial = Trial(ledger)
        self.budgets = Budgets(ledger.snapshot.budgets)
        self.actions: list[Action] = []
        self._hopeless: dict[Hashable, int] = {}

    def take(self, unit: Unit) -> None:
        """Decide about one unit."""
        if unit.problem is not None:
            self._report(unit.pods, (unit.problem,))
            return
        problems = {pod.key: block for pod in unit.pods if (block := pod_problem(pod, self.trial.ledger))}
        pods = tuple(pod for pod in unit.pods if pod.key not in problems)
        for pod in unit.pods:
            if pod.key in problems:
                self._report((pod,), (pod_reason(problems[pod.key], pod.key),))
        mark = self.trial.mark()
        placements = place(pods, self.trial)
        if len(placements) >= unit.needed:
            self._bind(unit, placements)
            self._report_unplaced(unit, pods, placements)
            return
        reasons = self._reasons(unit, pods, placements)
        self.trial.rollback(mark)
        if len(pods) < unit.needed or self._hold(unit, pods) or self._preempt(unit, pods, reasons):
            if len(pods) < unit.needed:
                self._report(pods, reasons)
            return
        self._report(pods, (*reasons, self._no_preemption(pods)))

    def _bind(self, unit: Unit, placements: Sequence[Placement]) -> None:
        waiting: list[SelectNode | BindVolume] = []
        unbound = False
        for placement in placements:
            waiting += volume_actions(placement.pod, placement.node, self.trial.ledger)
            unbound = unbound or self._claims_unbound(placement.pod)
        if waiting or unbound:
            self.actions += waiting
            text = "a node was chosen; the volume of a claim is not bound yet"
            self._report([p.pod for p in placements], (Reason("WaitingForVolume", text, unit.gang),))
            return
        gang: tuple[Reason, ...] = ()
        if unit.gang:
            text = f"{len(placements)} pods of gang {unit.gang} were placed together (minimum {unit.minimum})"
            gang = (Reason("GangPlaced", text, unit.gang),)
        self.actions += [Bind(p.pod, p.node, (*gang, p.reason)) for p in placements]

    def _claims_unbound(self, pod: Pod) -> bool:
        claims = self.trial.snapshot.claims
        return any(claims[f"{pod.namespace}/{name}"].phase != "Bound" for name in pod.shape.claims)

    def _report_unplaced(self, unit: Unit, pods: Sequence[Pod], placements: Sequence[Placement]) -> None:
        placed = {placement.pod.key for placement in placements}
        for pod in pods:
            if pod.key not in placed:
                self._report((pod,), self.trial.search(pod).reasons())

    def _reasons(
        self, unit: Unit, pods: Sequence[Pod], placements: Sequence[Placement]
    ) -> tuple[Reason, ...]:
        """Why the unit is not placed, on the trial that still holds the part that was."""
        if not self.trial.ledger.accounts:
            return (Reason("NoNodes", "the cluster has no nodes"),)
        placed = {placement.pod.key for placement in placements}
        first = next((pod for pod in pods if pod.key not in placed), None)
        reasons = self.trial.search(first).reasons() if first else ()
        if not unit.gang:
            return reasons
        text = f"{len(placements)} of the {unit.needed} pods that gang {unit.gang} still needs fit at once"
        evidence: dict[str, int | str] = {"need": unit.needed, "have": len(placements)}
        return (Reason("GangUnplaceable", text, unit.gang, evidence=evidence), *reasons)

    def _hold(self, unit: Unit, pods: Sequence[Pod]) -> bool:
        """Hold the nodes that the unit was nominated to while the pods that end there have not ended."""
        mark = self.trial.mark()
        held = 0
        for pod in pods:
            account = self.trial.ledger.accounts.get(pod.nominated_node)
            if account is None:
                continue
            ending = [key for key, other in account.pods.items() if other.terminating]
            if ending:
                self.trial.remove(account.name, ending)
            if self.trial.search(pod).blocked(account.name) is None:
                self.trial.place(pod, account.name)
                held += 1
        if held < unit.needed:
            self.trial.rollback(mark)
            return False
        for pod in pods:
            text = f"room is being made on {pod.nominated_node}; the pods evicted there have not ended yet"
            self._report((pod,), (Reason("WaitingForVictims", text, pod.nominated_node),))
        return True

    def _preempt(self, unit: Unit, pods: Sequence[Pod], reasons: tuple[Reason, ...]) -> bool:
        """Evict for the unit if that places all it needs; nothing is evicted otherwise.

        Pods are taken by falling priority, so nothing that this decision places can be a later victim: what
        found no victims finds none until room is freed (or, where other nodes count, until anything changes).
        """
        if not unit.gang:
            attempt = (self.trial.question(pods[0]), pods[0].priority, pods[0].preempts)
            local = self.trial.search(pods[0]).local
            moment = self.trial.releases if local else self.trial.state
            if self._hopeless.get(attempt) == moment:
                return False
            self._hopeless[attempt] = moment
        mark = self.trial.mark()
        choices: list[tuple[Pod, Choice]] = []
        for pod in pods:
            node = self.trial.search(pod).best()
            choice = Choice(node, ()) if node else self._victims(pod)
            if choice is None:
                continue
            self._make_room(pod, choice)
            choices.append((pod, choice))
        if len(choices) < unit.needed:
            self.trial.rollback(mark)
            return False
        seen: set[str] = set()
        self.actions += [Nominate(pod, choice.node, (_room(choice),)) for pod, choice in choices]
        for pod, choice in choices:
            self.budgets.spend(victim for victim in choice.victims if victim.key not in seen)
            for victim in choice.victims:
                if victim.key not in seen:
                    self.actions.append(_eviction(victim, pod, choice.node))
            seen.update(victim.key for victim in choice.victims)
            self._report((pod,), (_room(choice), *reasons))
        return True

    def _victims(self, pod: Pod) -> Choice | None:
        return choose(pod, self.trial, self.budgets) if pod.preempts else None

    def _make_room(self, pod: Pod, choice: Choice) -> None:
        account = self.trial.ledger.accounts[choice.node]
        gone = {victim.key for victim in choice.victims}
        gone |= {key for key, other in account.pods.items() if other.terminating}
        for victim in choice.victims:
            if victim.node != choice.node:
                self.trial.remove(victim.node, (victim.key,))
        self.trial.remove(choice.node, gone)
        self.trial.place(pod, choice.node)

    def _no_preemption(self, pods: Sequence[Pod]) -> Reason:
        if not any(pod.preempts for pod in pods):
            return Reason("PreemptionNever", "the pod's preemptionPolicy is Never")
        return Reason("NoVictims", "evicting pods of lower priority would not make room")

    def _report(self, pods: Sequence[Pod], reasons: tuple[Reason, ...]) -> None:
        helped = not any(reason.code in _NOT_HELPED_BY_CAPACITY for reason in reasons)
        self.actions += [Unschedulable(pod, reasons, helped) for pod in pods]


def place(pods: Sequence[Pod], trial: Trial) -> list[Placement]:
    """Place as many of `pods` as fit, in order, on the trial."""
    placements: list[Placement] = []
    for pod in pods:
        search = trial.search(pod)
        node = search.best()
        if node is None:
            continue
        placements.append(Placement(pod, node, search.reason(node)))
        trial.place(pod, node)
    return placements


def _room(choice: Choice) -> Reason:
    text = f"{len(choice.victims)} pods of lower priority make room on {choice.node}"
    return Reason("WaitingForVictims", text, choice.node)


def _eviction(victim: Pod, beneficiary: Pod, node: str) -> Evict:
    text = (
        f"evicted for {beneficiary.key} (priority {beneficiary.priority} over {victim.priority}), "
        f"which fits on {node} without it"
    )
    evidence: dict[str, int | str] = {"priority": victim.priority, "beneficiary": beneficiary.priority}
    return Evict(
        victim, victim.node, beneficiary.key, (Reason("Preempted", text, victim.key, evidence=evidence),)
    )
