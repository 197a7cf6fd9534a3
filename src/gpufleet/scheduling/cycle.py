"""The decision: a snapshot in, a plan out.

Units (single pods and gangs) are taken in order: where there are queues, in turns between them. Each is
placed on a trial of the fleet; if it does not fit, room that is already being made for it is held, else the
cheapest victims are looked for, else the reasons are reported. What one unit takes, or what is held for it,
the next ones no longer see: nobody overtakes a pod for which others were evicted. A pod is bound only to
room that is free now: what evictions will free is counted as used until it is free. A pod whose last write
was refused pauses: nothing is written for it or for its gang, but its turn and its room stay its own. Pure:
no clock, no randomness, no I/O. Equal snapshots give equal plans.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import msgspec

from gpufleet.fleet.plans import Action, Bind, Evict, Nominate, Plan, Unschedulable
from gpufleet.fleet.pods import SCHEDULER_NAME, Pod
from gpufleet.fleet.reasons import Reason
from gpufleet.fleet.snapshot import Snapshot
from gpufleet.scheduling.budgets import Budgets
from gpufleet.scheduling.cuts import Cutting, Room
from gpufleet.scheduling.device_picks import DevicePicks
from gpufleet.scheduling.filters import pod_problem
from gpufleet.scheduling.gangs import Unit, gang_unit, subgroup_of, units
from gpufleet.scheduling.ledger import Ledger
from gpufleet.scheduling.messages import pod_reason
from gpufleet.scheduling.nominations import Nominations, Waiting
from gpufleet.scheduling.placing import Placement, hold
from gpufleet.scheduling.preemption import Choice
from gpufleet.scheduling.queue_order import Turns
from gpufleet.scheduling.queues import Queues
from gpufleet.scheduling.topology import unsatisfied, wish_of
from gpufleet.scheduling.trial import Trial
from gpufleet.scheduling.volumes import volume_waits

_NOT_HELPED_BY_CAPACITY = frozenset({
    "SchedulingGated", "GangIncomplete", "GangInvalid", "DynamicResources", "ClaimNotFound", "ClaimUnbound",
    "ClaimLost", "ClaimTerminating", "StorageClassNotFound", "WaitingForVolume", "WaitingForVictims",
    "WaitingForCut", "WaitingForDevices", "BindFailed", "QueueOverLimit", "QueueNotFound", "QueueInvalid",
    "QueueClosed",
})  # fmt: skip


class Policy(msgspec.Struct, frozen=True):
    """What a decision may assume beyond the snapshot: the scheduler names that gpufleet answers for."""

    schedulers: frozenset[str] = frozenset({SCHEDULER_NAME})

    def responsible(self, pod: Pod) -> bool:
        """Whether gpufleet decides about the pod."""
        return pod.scheduler in self.schedulers


def decide(
    snapshot: Snapshot,
    policy: Policy,
    ledger: Ledger | None = None,
    paused: Mapping[str, Reason] = MappingProxyType({}),
) -> Plan:
    """What to do now. `ledger` may be the one of an earlier snapshot that was brought up to date; `paused`
    says of pods (by `namespace/name`) why nothing may be written for them at the moment.
    """
    return consider(snapshot, policy, ledger, paused)[0]


def consider(
    snapshot: Snapshot,
    policy: Policy,
    ledger: Ledger | None = None,
    paused: Mapping[str, Reason] = MappingProxyType({}),
) -> tuple[Plan, Ledger]:
    """The plan of `decide`, and the ledger as it leaves the fleet: who is bound or waits for room is placed,
    and who is evicted is still there.
    """
    waiting = units(snapshot, policy.responsible)
    ledger = ledger or Ledger.build(snapshot)
    queues = Queues(snapshot, waiting, ledger.holdings) if snapshot.queues else None
    cycle = _Cycle(ledger, waiting, paused, policy.schedulers, queues)
    for unit in waiting if queues is None else Turns(queues, waiting):
        cycle.take(unit)
    cycle.trial.end_decision()
    return Plan(tuple(cycle.actions)), cycle.trial.ledger


class _Cycle:
    """One decision in progress."""

    def __init__(
        self,
        ledger: Ledger,
        waiting: Sequence[Unit],
        paused: Mapping[str, Reason],
        schedulers: frozenset[str],
        queues: Queues | None,
    ) -> None:
        self.schedulers = schedulers
        self.queues = queues
        ledger.searches.begin(ledger)
        self.trial = Trial(ledger, ledger.searches)
        self.paused = paused
        budgets = Budgets(ledger.snapshot.budgets)
        queue = queues.own_queue if queues is not None else _no_queue
        self.nominations = Nominations(self.trial, budgets, waiting, queue)
        self.cutting = Cutting(self.trial)
        self.picks = DevicePicks(self.trial.ledger)
        self.actions: list[Action] = []

    def take(self, unit: Unit) -> None:
        """Decide about one unit."""
        self.nominations.begin(unit)
        if unit.gang:
            mates = [mate for mate in self.trial.mates(unit.gang) if mate.node]
            if len(mates) != unit.running:
                # This decision has chosen victims from the gang since the queue was made.
                unit = gang_unit(unit.gang, unit.pods, mates, self.trial.snapshot)
        if unit.problem is not None:
            self._give_up(unit.pods, (unit.problem,))
            return
        pods = self._without_problems(unit)
        if self.queues is not None:
            pods = self._within_limits(unit, pods, self.queues)
        refusals = tuple(self.paused[pod.key] for pod in pods if pod.key in self.paused)
        if refusals:
            self.nominations.keep(unit, pods)
            self._count([pod for pod in pods if pod.nominated_node])
            self._report(pods, refusals)
        elif pods:
            self._settle(unit, pods)

    def _without_problems(self, unit: Unit) -> list[Pod]:
        """The pods that a node could help; none if those are fewer than the unit needs. The others are
        reported.
        """
        fine: list[Pod] = []
        reasons: list[Reason] = []
        for pod in unit.pods:
            reason = self._problem(pod)
            if reason is None:
                fine.append(pod)
            else:
                reasons.append(reason)
                self._give_up((pod,), reasons[-1:])
        if unit.enough(fine):
            return fine
        text = f"{len(fine)} of the {unit.needed} pods that gang {unit.gang} still needs can be placed at all"
        evidence: dict[str, int | str] = {"need": unit.needed, "have": len(fine)}
        incomplete = Reason("GangUnplaceable", text, unit.gang, evidence=evidence)
        self._give_up(fine, (incomplete, *{reason.message: reason for reason in reasons}.values()))
        return []

    def _problem(self, pod: Pod) -> Reason | None:
        """Why the pod cannot be placed whatever the node."""
        block = pod_problem(pod, self.trial.ledger, self.schedulers)
        if block is not None:
            return pod_reason(block, pod.key)
        return self.queues.problem(pod) if self.queues is not None else None

    def _within_limits(self, unit: Unit, pods: list[Pod], queues: Queues) -> list[Pod]:
        """The pods for which their queues have room; none if those are fewer than the unit needs. The others
        are reported.
        """
        refused = queues.refused(unit, pods)
        for pod in pods:
            if pod.key in refused:
                self._give_up((pod,), (refused[pod.key],))
        return [pod for pod in pods if pod.key not in refused]

    def _count(self, pods: Sequence[Pod]) -> None:
        """Pods get room, or it is held for them, so their queues have it."""
        if self.queues is not None:
            self.queues.take(pods)

    def _settle(self, unit: Unit, pods: Sequence[Pod]) -> None:
        """Bind the unit, or hold room that is being made for it, or report it."""
        mark = self.trial.mark()
        placements = self._place(unit, pods)
        if unit.enough([placement.pod for placement in placements]):
            self._bind(unit, placements, mark)
            placed = {placement.pod.key for placement in placements}
            short = unit.short([placement.pod for placement in placements])
            for pod in pods:
                if pod.key not in placed and subgroup_of(pod) in short:
                    text = f"subgroup {subgroup_of(pod)} does not fit whole; gang {unit.gang} runs without it"
                    self._give_up((pod,), (Reason("GangUnplaceable", text, unit.gang),))
                elif pod.key not in placed:
                    # The gang runs without it, so it is one pod like any other.
                    self._settle(Unit((pod,), near=unit.near), (pod,))
            return
        blame = self._partly(unit, pods, placements) if unit.gang and (unit.tree or not unit.surplus) else ()
        self.trial.rollback(mark)
        if unit.must_be_near:
            reason = unsatisfied(wish_of(unit, pods, self.trial), self.trial, pods[0].gang_key)
            self._give_up(pods, (reason, *blame) if unit.gang else (reason,))
        elif (rooms := self.cutting.rooms(unit, pods)) is not None:
            self._cut(unit, pods, rooms)
        elif (waiting := self.nominations.wait(unit, pods)) is not None:
            self._make_room(unit, pods, waiting)
        else:
            reasons = blame or self.trial.search(pods[0]).reasons()
            reasons += self.nominations.held_elsewhere(unit, pods)
            self._give_up(pods, (*reasons, _no_preemption(pods)))

    def _place(self, unit: Unit, pods: Sequence[Pod]) -> list[Placement]:
        """Place what fits of a unit. A subgroup that does not fit whole leaves its room to the others, if the
        gang can do without it.
        """
        mark = self.trial.mark()
        while True:
            placements = self.nominations.place(unit, pods)
            placed = [placement.pod for placement in placements]
            if len(unit.accepted(placed)) == len(placed):
                return placements
            short = set(unit.short(placed))
            culprit = next((name for pod in pods if (name := subgroup_of(pod)) in short), None)
            rest = [pod for pod in pods if subgroup_of(pod) != culprit]
            if culprit is None or not unit.enough(rest):
                return placements
            self.trial.rollback(mark)
            pods = rest

    def _bind(self, unit: Unit, placements: Sequence[Placement], mark: int) -> None:
        self._count([placement.pod for placement in placements])
        waits = {p.pod.key: volume_waits(p.pod, p.node, self.trial.snapshot, p.volumes) for p in placements}
        if any(waits.values()):
            self._await_volumes(placements, waits, mark)
            return
        picks, kept_back = self.picks.pick(placements)
        if kept_back is not None:
            self._report([p.pod for p in placements], (kept_back,))
            return
        gang: tuple[Reason, ...] = ()
        if unit.gang and not unit.surplus:
            who = f"{len(placements)} pods of gang {unit.gang} were placed together"
            if len(placements) == 1:
                who = f"the pod that gang {unit.gang} still needs was placed"
            text = f"{who} (minimum {unit.minimum})"
            gang = (Reason("GangPlaced", text, unit.gang),)
        self.actions += [
            Bind(p.pod, p.node, (*gang, p.reason), devices)
            for p, devices in zip(placements, picks, strict=True)
        ]

    def _cut(self, unit: Unit, pods: Sequence[Pod], rooms: Sequence[Room]) -> None:
        """Ask for what is cut for the unit, and keep the room for it."""
        self._count([room.pod for room in rooms])
        for room in rooms:
            self.actions += room.cuts
            if room.pod.nominated_node != room.node:
                self.actions.append(Nominate(room.pod, room.node, (room.reason,)))
            self._report((room.pod,), (room.reason,))
        served = {room.pod.key for room in rooms}
        for pod in pods:
            if pod.key not in served:
                text = f"gang {unit.gang} waits for GPUs that are cut, and there is none for this pod"
                self._give_up((pod,), (Reason("GangUnplaceable", text, unit.gang),))

    def _await_volumes(
        self, placements: Sequence[Placement], waits: Mapping[str, tuple[Reason, ...]], mark: int
    ) -> None:
        """Hold the room of pods until all their volumes are bound; `mark` is from before their placement."""
        self.trial.rollback(mark)
        for placement in placements:
            hold(placement.pod, placement.node, self.trial)
            self.actions += placement.volumes
        first = next(reasons for reasons in waits.values() if reasons)
        for placement in placements:
            self._report((placement.pod,), waits[placement.pod.key] or first)

    def _partly(self, unit: Unit, pods: Sequence[Pod], placements: Sequence[Placement]) -> tuple[Reason, ...]:
        """Why a gang is not placed, on the trial that still holds the part that was."""
        placed = {placement.pod.key for placement in placements}
        first = next((pod for pod in pods if pod.key not in placed), None)
        reasons = self.trial.search(first).reasons() if first else ()
        text = f"{len(placements)} of the {unit.needed} pods that gang {unit.gang} still needs fit at once"
        whose = ""
        if first is not None and len({pod.shape for pod in pods}) > 1:
            whose = f"for {first.name}"
        if placements:
            text += f"; with them placed no node is left {whose or 'for the next one'}"
            whose = f"with them placed, {whose}" if whose else "with them placed"
        if whose:
            reasons = tuple(
                msgspec.structs.replace(reason, message=f"{whose}: {reason.message}") for reason in reasons
            )
        evidence: dict[str, int | str] = {"need": unit.needed, "have": len(placements)}
        return (Reason("GangUnplaceable", text, unit.gang, evidence=evidence), *reasons)

    def _make_room(self, unit: Unit, pods: Sequence[Pod], waiting: Waiting) -> None:
        self._count([pod for pod, _ in waiting])
        self.actions += [
            Nominate(pod, choice.node, (_room(choice),))
            for pod, choice in waiting
            if choice.node != pod.nominated_node
        ]
        for pod, choice in waiting:
            self.actions += [_eviction(victim, pod, choice.node) for victim in choice.victims]
            self._report((pod,), (_room(choice),))
        served = {pod.key for pod, _ in waiting}
        for pod in pods:
            if pod.key in served:
                continue
            if unit.surplus:
                self._give_up((pod,), (*self.trial.search(pod).reasons(), _no_preemption((pod,))))
            else:
                text = f"gang {unit.gang} waits for room for {_pods(waiting)}, and there is none for this one"
                self._give_up((pod,), (Reason("GangUnplaceable", text, unit.gang), _no_preemption((pod,))))

    def _give_up(self, pods: Sequence[Pod], reasons: Sequence[Reason]) -> None:
        """Report pods for which nothing is being done; a nomination from before is void."""
        reasons = tuple(reasons)
        self.actions += [Nominate(pod, "", reasons) for pod in pods if pod.nominated_node]
        self._report(pods, reasons)

    def _report(self, pods: Sequence[Pod], reasons: tuple[Reason, ...]) -> None:
        helped = not any(reason.code in _NOT_HELPED_BY_CAPACITY for reason in reasons)
        self.actions += [Unschedulable(pod, reasons, helped) for pod in pods]


def _no_queue(pod: Pod) -> str:
    return ""


def _no_preemption(pods: Sequence[Pod]) -> Reason:
    if not any(pod.preempts for pod in pods):
        return Reason("PreemptionNever", "the pod's preemptionPolicy is Never")
    return Reason("NoVictims", "evicting pods of lower priority would not make room")


def _room(choice: Choice) -> Reason:
    if not choice.victims:
        return Reason("WaitingForVictims", f"room is held on {choice.node}", choice.node)
    count = len(choice.victims)
    what = "1 pod of lower priority makes" if count == 1 else f"{count} pods of lower priority make"
    return Reason("WaitingForVictims", f"{what} room on {choice.node}", choice.node)


def _eviction(victim: Pod, beneficiary: Pod, node: str) -> Evict:
    gone = "it"
    if victim.node != node:
        gone = f"other pods of gang {victim.gang_key}; the gang ends as a whole"
    text = (
        f"evicted for {beneficiary.key} (priority {beneficiary.priority} over {victim.priority}), "
        f"which fits on {node} without {gone}"
    )
    evidence: dict[str, int | str] = {"priority": victim.priority, "beneficiary": beneficiary.priority}
    return Evict(victim, node, beneficiary.key, (Reason("Preempted", text, victim.key, evidence=evidence),))


def _pods(things: Sequence[object]) -> str:
    return "1 pod" if len(things) == 1 else f"{len(things)} pods"
