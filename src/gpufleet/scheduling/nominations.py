"""Nominations: room that is made for pods, and how it stays theirs until they can be bound.

A pod for which others end is nominated to their node. In every decision until it is bound, the room is held
for it there: on top of who has not ended yet, so that nobody else counts on it. Where the room is free
already, units that come before the pod leave it alone, unless they may preempt and have a higher priority:
else an eviction would serve somebody else than its cause, and another one would follow.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial

from gpufleet.fleet.pods import Pod
from gpufleet.fleet.reasons import Reason
from gpufleet.scheduling.budgets import Budgets
from gpufleet.scheduling.gangs import Unit, subgroup_of
from gpufleet.scheduling.placing import Placement, hold, place, place_on
from gpufleet.scheduling.preemption import Choice, Preemption
from gpufleet.scheduling.sparing import spared
from gpufleet.scheduling.topology import place_wish, wish_of
from gpufleet.scheduling.trial import Trial

Waiting = list[tuple[Pod, Choice]]
"""Pods for which room is held, with the node and who must end there; nobody if that is under way already."""

_NAMED = 3
"""How many pods are named for which room is held."""


class Nominations:
    """Who waits for room in one decision."""

    def __init__(
        self,
        trial: Trial,
        budgets: Budgets,
        units: Iterable[Unit],
        queue: Callable[[Pod], str] = lambda pod: "",
    ) -> None:
        self._trial = trial
        self._budgets = budgets
        self._queue = queue
        self._preemption = Preemption(trial, budgets, queue)
        self._hopeless: set[Hashable] = set()
        self._outranked: set[Hashable] = set()
        self._later: dict[str, Pod] = {
            pod.key: pod for unit in units for pod in unit.pods if pod.nominated_node in trial.ledger.accounts
        }

    def begin(self, unit: Unit) -> None:
        """It is the unit's turn: from here on its room counts because it is held or taken."""
        for pod in unit.pods:
            self._later.pop(pod.key, None)

    def place(self, unit: Unit, pods: Sequence[Pod]) -> list[Placement]:
        """Place pods of a unit: where room was made for them, or else where none is being made for others."""
        mark = self._trial.mark()
        placements: list[Placement] = []
        if unit.nominated:
            placements = self._where_nominated(pods)
            if not unit.enough([placement.pod for placement in placements]):
                self._trial.rollback(mark)
                placements = []
        placed = {placement.pod.key for placement in placements}
        return placements + self._place_beside(unit, [pod for pod in pods if pod.key not in placed])

    def wait(self, unit: Unit, pods: Sequence[Pod]) -> Waiting | None:
        """Hold room for the unit and choose who must end for it; None, and nothing is held or chosen, if that
        does not make room for all that it needs.

        What found no room for one unit finds none for the next that asks the same at the same priority. What
        this decision's own evictions change in that, the next decision sees.
        """
        attempt = self._attempt(unit, pods)
        if not unit.nominated and attempt in self._hopeless:
            return None
        start = self._trial.mark()
        waiting = self._hold_again(pods)
        held = {pod.key for pod, _ in waiting}
        mark, spent = self._trial.mark(), self._budgets.mark()
        rest = [pod for pod in pods if pod.key not in held]
        respected = bool(rest) and self._hold_for_others(unit)
        inner = self._trial.mark()
        chosen: Waiting = []
        for pod in rest:
            choice = self._room_for(pod)
            if choice is not None:
                self._make_room(pod, choice)
                chosen.append((pod, choice))
        self._budgets.rollback(spent)
        served = [pod for pod, _ in (*waiting, *chosen)]
        kept = unit.accepted(served)
        if 0 < len(kept) < len(served):
            # Nobody ends for a part of a subgroup that cannot be whole.
            self._trial.rollback(start)
            return self.wait(unit, kept)
        if not kept:
            self._trial.rollback(start)
            self._hopeless.add(attempt)
            return None
        new = spared(chosen, self._trial, self._budgets, partial(self._works, inner))
        if respected or new is not chosen:
            self._trial.rollback(mark)
            for pod, choice in new:
                self._make_room(pod, choice)
        else:
            self._budgets.spend(victim for _, choice in new for victim in choice.victims)
        return waiting + new

    def keep(self, unit: Unit, pods: Sequence[Pod]) -> None:
        """Hold the room that was made, or is being made, for the unit; nobody is chosen to end.

        What it merely would have taken is free for others, as a write can be refused for ever.
        """
        if not unit.nominated:
            return
        mark = self._trial.mark()
        placements = self.place(unit, pods)
        self._trial.rollback(mark)
        if not unit.enough([placement.pod for placement in placements]):
            self._hold_again(pods)
            return
        for placement in placements:
            hold(placement.pod, placement.node, self._trial)

    def held_elsewhere(self, unit: Unit, pods: Sequence[Pod]) -> tuple[Reason, ...]:
        """That free room is held for others, where the unit could use it."""
        node = next((node for pod in pods if (node := self._trial.held_from(pod))), None)
        if node is not None:
            return (_held(node, self._trial.held_on(node)),)
        respected = self._respected(unit)
        if not respected:
            return ()
        search = self._trial.search(pods[0])
        nodes = (pod.nominated_node for pod in respected)
        node = next((node for node in nodes if search.blocked(node) is None), None)
        if node is None:
            return ()
        return (_held(node, [pod.key for pod in respected if pod.nominated_node == node]),)

    def _where_nominated(self, pods: Sequence[Pod]) -> list[Placement]:
        placements = []
        for pod in pods:
            node = pod.nominated_node
            if node in self._trial.ledger.accounts and self._trial.search(pod).blocked(node) is None:
                reason = Reason("RoomMade", f"room was made on {node}", node)
                placements.append(place_on(pod, node, reason, self._trial))
        return placements

    def _place_beside(self, unit: Unit, pods: Sequence[Pod]) -> list[Placement]:
        mark = self._trial.mark()
        placements = self._place_all(unit, pods)
        respected = self._respected(unit)
        taken = {placement.node for placement in placements}
        if not any(pod.nominated_node in taken for pod in respected):
            return placements
        self._trial.rollback(mark)
        attempt = self._attempt(unit, pods)
        if attempt in self._outranked:
            return []
        self._hold_for_others(unit)
        placements = self._place_all(unit, pods)
        self._trial.rollback(mark)
        if not placements:
            self._outranked.add(attempt)
        return [place_on(p.pod, p.node, p.reason, self._trial) for p in placements]

    def _place_all(self, unit: Unit, pods: Sequence[Pod]) -> list[Placement]:
        if unit.near is None or not pods:
            return place(pods, self._trial)
        return place_wish(wish_of(unit, pods, self._trial), self._trial)

    def _hold_again(self, pods: Sequence[Pod]) -> Waiting:
        """Hold the room that is being made for pods, where they fit once those that end there are gone."""
        waiting: Waiting = []
        for pod in pods:
            account = self._trial.ledger.accounts.get(pod.nominated_node)
            if account is None:
                continue
            choice = Choice.of(account.name, ())
            if self._will_fit(pod, choice):
                hold(pod, account.name, self._trial)
                waiting.append((pod, choice))
        return waiting

    def _will_fit(self, pod: Pod, choice: Choice) -> bool:
        """Whether the pod fits on its node once those that end there, and its victims, are gone."""
        there = self._trial.ledger.accounts[choice.node].pods.values()
        gone = [*(other for other in there if other.terminating), *choice.victims]
        return self._preemption.fits_after(pod, choice.node, gone) and self._preemption.has_company(
            pod, choice.node, gone, evicted=bool(choice.victims)
        )

    def _attempt(self, unit: Unit, pods: Sequence[Pod]) -> Hashable:
        """Units that ask this alike get the same answer, as room only shrinks while a decision goes on."""
        asked = (
            (self._trial.question(pod), pod.priority, pod.preempts, subgroup_of(pod) if unit.tree else "")
            for pod in pods
        )
        return (unit.needed, unit.nominated, unit.tree, unit.counted, *asked)

    def _hold_for_others(self, unit: Unit) -> bool:
        """Hold what the unit must leave to others; whether there is anything."""
        respected = self._respected(unit)
        for pod in respected:
            hold(pod, pod.nominated_node, self._trial)
        return bool(respected)

    def _respected(self, unit: Unit) -> list[Pod]:
        """The pods later in the queue that wait for room which the unit must not take.

        One that waits for room of its own leaves all other room alone, and so does one that never preempts.
        """
        if not self._later:
            return []
        if unit.nominated or not all(pod.preempts for pod in unit.pods):
            return list(self._later.values())
        lowest = min(pod.priority for pod in unit.pods)
        queue = self._queue(unit.pods[0])
        later = self._later.values()
        return [pod for pod in later if pod.priority >= lowest or self._queue(pod) not in ("", queue)]

    def _room_for(self, pod: Pod) -> Choice | None:
        """A node that has room for the pod beside what is held, or else one where others must end."""
        node = self._trial.search(pod).best(certain=False)
        if node is not None:
            return Choice.of(node, ())
        return self._preemption.choose(pod) if pod.preempts else None

    def _works(self, mark: int, choices: Waiting) -> bool:
        """Whether every pod fits on its node once all victims are gone; the trial is left that way."""
        self._trial.rollback(mark)
        for _, choice in choices:
            self._end(choice.victims)
        for pod, choice in choices:
            if not self._will_fit(pod, choice):
                return False
            hold(pod, choice.node, self._trial)
        return True

    def _make_room(self, pod: Pod, choice: Choice) -> None:
        self._budgets.spend(choice.victims)
        self._end(choice.victims)
        hold(pod, choice.node, self._trial)

    def _end(self, victims: Iterable[Pod]) -> None:
        nodes: dict[str, list[str]] = {}
        for victim in victims:
            nodes.setdefault(victim.node, []).append(victim.key)
        for node, keys in nodes.items():
            self._trial.end(node, keys)


def _held(node: str, keys: Iterable[str]) -> Reason:
    """That room on a node is held, and for whom."""
    names = sorted(keys)
    more = len(names) - _NAMED
    whom = ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
    which = "which comes first" if len(names) == 1 else "which come first"
    return Reason(
        "HeldForNominated", f"room, as on {node}, is held for {whom}, {which} or for which it was made", node
    )
