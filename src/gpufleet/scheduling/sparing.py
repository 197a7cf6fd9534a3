"""Sparing: who need not end after all when others end for a gang.

The members of a gang choose their victims one after the other. When a whole gang ends for one of them, the
nodes that it leaves may serve another member, too, whose own victims then end for nothing. So once all have
chosen, victims are put back, the dearest first, as long as every member still fits: one that is in the way
moves to where others end anyway. Victims come back one by one, but those of a gang that cannot live without
each other come back together. What remains is minimal: nobody of it could be spared.

This is worked out on accounts as they will be once the victims are gone, by the filters that look at one node
alone. Where other nodes matter, too, each step is tried on the fleet itself, at most TRIES times.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeAlias

import msgspec

from gpufleet.fleet.pods import Pod
from gpufleet.scheduling.budgets import Budgets
from gpufleet.scheduling.gangs import gang_minimum
from gpufleet.scheduling.ledger import NodeAccount
from gpufleet.scheduling.preemption import Choice, Cost
from gpufleet.scheduling.search import Search
from gpufleet.scheduling.trial import Trial

TRIES = 20
"""How often the fleet itself is asked for one gang."""

Choices: TypeAlias = list[tuple[Pod, Choice]]
"""Pods, the nodes that they get and who must end there."""


def spared(choices: Choices, trial: Trial, budgets: Budgets, works: Callable[[Choices], bool]) -> Choices:
    """The choices of a gang's members with no more victims than they need, where each victim may end for each
    of them.

    On the trial the victims end and room is held for the members, and `budgets` is as before that. `works`
    tries choices on the trial. The answer is the very list that was given if nobody is spared and the trial
    is as it was.
    """
    if sum(bool(choice.victims) for _, choice in choices) < 2:
        return choices
    dearest = max(choice.cost.priority for _, choice in choices)
    if any(pod.priority <= dearest for pod, _ in choices):
        return choices
    return _Sparing(choices, trial, budgets, works).best()


class _State(msgspec.Struct, frozen=True):
    """Where each member goes, who ends, and the accounts of these nodes once the victims are gone."""

    places: dict[str, str]
    victims: dict[str, Pod]
    accounts: dict[str, NodeAccount]


class _Sparing:
    """The search for one gang."""

    def __init__(
        self, choices: Choices, trial: Trial, budgets: Budgets, works: Callable[[Choices], bool]
    ) -> None:
        self._choices = choices
        self._works = works
        self._pods = [pod for pod, _ in choices]
        self._searches: dict[str, tuple[Hashable, Search]] = {
            pod.key: (trial.question(pod), trial.search(pod)) for pod in self._pods
        }
        self._tries = TRIES
        self._local = all(search.checks_locally for _, search in self._searches.values())
        self._known: dict[tuple[Hashable, str], tuple[NodeAccount, bool]] = {}
        victims = {victim.key: victim for _, choice in choices for victim in choice.victims}
        self._protected = {v.key for v in budgets.broken_by(sorted(victims.values(), key=_least_dear))}
        gangs = {victim.gang_key for victim in victims.values() if victim.gang is not None}
        self._gangs = trial.snapshot.gangs
        self._alive = {gang: len(trial.mates(gang)) for gang in gangs}
        self._ended = _by_gang(victims.values())
        nodes = {choice.node for _, choice in choices} | {victim.node for victim in victims.values()}
        accounts = {node: _settled(trial.ledger.accounts[node]) for node in sorted(nodes)}
        self._adopt(_State({pod.key: choice.node for pod, choice in choices}, victims, accounts))

    def best(self) -> Choices:
        """The choices once nobody can be spared any more."""
        found = self._choices
        while (better := self._next()) is not None:
            found = better
        return found if self._tries == TRIES else list(found)

    def _next(self) -> Choices | None:
        """The choices without those who can be spared in one round; None when nobody can."""
        found: Choices | None = None
        for group in self._groups():
            if not all(victim.key in self._state.victims for victim in group):
                continue
            state = self._without(group)
            if state is None or not self._tries:
                continue
            choices = self._as_choices(state)
            if not self._local:
                self._tries -= 1
                if not self._works(choices):
                    continue
            self._adopt(state)
            found = choices
        return found

    def _adopt(self, state: _State) -> None:
        self._state = state
        self._members: dict[str, list[Pod]] = {}
        for pod in self._pods:
            self._members.setdefault(state.places[pod.key], []).append(pod)
        self._known_roomy: dict[Hashable, list[str]] = {}

    def _groups(self) -> list[Sequence[Pod]]:
        """Who can come back together, the dearest first."""
        victims = self._state.victims
        groups: list[Sequence[Pod]] = [(victim,) for victim in victims.values() if victim.gang is None]
        for gang, members in _by_gang(victims.values()).items():
            alive = self._alive[gang] + len(self._ended[gang]) - len(members)
            minimum = gang_minimum(gang, members, self._gangs)
            if (missing := minimum - alive) <= 1:
                groups += [(member,) for member in members]
            else:
                groups.append(members)
                if missing < len(members):
                    groups.append(sorted(members, key=self._is_in_the_way)[:missing])
        return sorted(groups, key=self._cost, reverse=True)

    def _is_in_the_way(self, victim: Pod) -> bool:
        return victim.node in self._members

    def _cost(self, group: Sequence[Pod]) -> Cost:
        broken = sum(victim.key in self._protected for victim in group)
        return Choice.of(group[0].node, tuple(group), broken).cost

    def _without(self, group: Sequence[Pod]) -> _State | None:
        """The state in which a group does not end, or None when a member then finds no room."""
        changed: dict[str, NodeAccount] = {}
        moved: dict[str, str] = {}
        homeless: list[Pod] = []
        for node in dict.fromkeys(victim.node for victim in group):
            changed[node], displaced = self._put_back(node, [v for v in group if v.node == node])
            homeless += displaced
        for pod in homeless:
            new = self._room_for(pod, changed)
            if new is None:
                return None
            changed[new] = changed.get(new, self._state.accounts[new]).with_pod(pod)
            moved[pod.key] = new
        gone = {victim.key for victim in group}
        return _State(
            {**self._state.places, **moved},
            {key: victim for key, victim in self._state.victims.items() if key not in gone},
            {**self._state.accounts, **changed},
        )

    def _put_back(self, node: str, group: Iterable[Pod]) -> tuple[NodeAccount, list[Pod]]:
        """A node with victims that do not end there, and the members who then have no room there."""
        here = self._members.get(node, [])
        account = self._state.accounts[node]
        if here:
            account = account.without(pod.key for pod in here)
        for victim in group:
            account = account.with_pod(victim)
        homeless = []
        for pod in here:
            if self._fits(pod, account):
                account = account.with_pod(pod)
            else:
                homeless.append(pod)
        return account, homeless

    def _room_for(self, pod: Pod, changed: dict[str, NodeAccount]) -> str | None:
        """A node with room for a member, one without another member first; `changed` nodes are as they would
        be.
        """
        roomy = [node for node in self._roomy(pod) if node not in changed]
        roomy += [node for node, account in changed.items() if self._fits(pod, account)]
        return min(roomy, key=lambda node: (node in self._members, node), default=None)

    def _roomy(self, pod: Pod) -> list[str]:
        """The nodes with room for one more pod that asks the same question."""
        question = self._searches[pod.key][0]
        nodes = self._known_roomy.get(question)
        if nodes is None:
            nodes = [node for node, account in self._state.accounts.items() if self._fits(pod, account)]
            self._known_roomy[question] = nodes
        return nodes

    def _fits(self, pod: Pod, account: NodeAccount) -> bool:
        question, search = self._searches[pod.key]
        known = self._known.get((question, account.name))
        if known is None or known[0] is not account:
            known = self._known[question, account.name] = account, search.allows(account)
        return known[1]

    def _as_choices(self, state: _State) -> Choices:
        """The choices of a state: who ends on a member's node ends for that member, and so does the rest of
        the gang.
        """
        left = dict(state.victims)
        ends_for: dict[str, list[Pod]] = {pod.key: [] for pod in self._pods}
        beneficiary: dict[str, Pod] = {}
        for pod in self._pods:
            for victim in [v for v in left.values() if v.node == state.places[pod.key]]:
                ends_for[pod.key].append(left.pop(victim.key))
                if victim.gang is not None:
                    beneficiary.setdefault(victim.gang_key, pod)
        for victim in left.values():
            ends_for[beneficiary.get(victim.gang_key, self._pods[0]).key].append(victim)
        return [(pod, Choice.of(state.places[pod.key], tuple(ends_for[pod.key]))) for pod in self._pods]


def _settled(account: NodeAccount) -> NodeAccount:
    """The account once everybody who is ending there is gone."""
    return account.without([key for key, pod in account.pods.items() if pod.terminating])


def _by_gang(victims: Iterable[Pod]) -> dict[str, list[Pod]]:
    gangs: dict[str, list[Pod]] = {}
    for victim in victims:
        if victim.gang is not None:
            gangs.setdefault(victim.gang_key, []).append(victim)
    return gangs


def _least_dear(victim: Pod) -> tuple[int, float, str]:
    return (victim.priority, -victim.created, victim.key)
