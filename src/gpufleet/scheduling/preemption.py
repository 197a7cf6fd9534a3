"""Preemption: the fewest and cheapest pods whose end makes room for a pod of higher priority.

On each node all pods of lower priority are taken away; if the pod then fits, they are put back one by one as
long as it still fits, first those that a disruption budget protects, then by priority. Who cannot come back
is a victim, so the set is minimal: no victim can be spared. Two orders of equals are tried (those first that
hold much of what is missing, those first that hold little), and where neither is provably the smallest set on
a node with few candidates, all smaller sets are tried. Pods that are ending anyway make room for nothing and
cost nothing. A gang that would fall below its minimum ends as a whole (`gang_victims`). Nodes are compared by
`Cost`, and equals by the scores of placement, so that replicas are spread here too.

A node's choice is kept until something that it depends on changes, so that thousand pods that ask the same
question cost little more than one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from itertools import accumulate, combinations
from typing import Protocol

import msgspec

from gpufleet.fleet.pods import Pod, gpus_requested
from gpufleet.scheduling.affinity import all_terms_test
from gpufleet.scheduling.budgets import Budgets
from gpufleet.scheduling.gang_victims import GangVictims
from gpufleet.scheduling.ledger import Ledger, NodeAccount
from gpufleet.scheduling.search import Search
from gpufleet.scheduling.trial import Trial

CANDIDATES = 100
"""Nodes with victims compared per pod at least; beyond that a tenth of the fleet, as kube-scheduler does."""

EXACT = 10
"""Up to so many candidates on a node, all smaller sets of victims are tried."""

_LOWEST = -(2**31)
"""The lowest priority there is."""


class Cost(msgspec.Struct, frozen=True, order=True):
    """What the end of some pods costs; smaller is better, and a field decides over all below it.

    `priority` is the highest that is hurt, `priorities` the sum of all.
    """

    broken_budgets: int = 0
    priority: int = _LOWEST
    victims: int = 0
    gpus: int = 0
    priorities: int = 0


class Choice(msgspec.Struct, frozen=True):
    """A node and the pods that must end there (none when pods that are ending already make the room).

    `worth` is what the scores say of the node without them; larger is better.
    """

    node: str
    victims: tuple[Pod, ...]
    cost: Cost
    worth: int = 0

    @classmethod
    def of(cls, node: str, victims: tuple[Pod, ...], broken_budgets: int = 0) -> Choice:
        """The choice with its cost."""
        cost = Cost(
            broken_budgets,
            max((victim.priority for victim in victims), default=_LOWEST),
            len(victims),
            sum(gpus_requested(victim.shape) for victim in victims),
            sum(victim.priority for victim in victims),
        )
        return cls(node, victims, cost)

    @property
    def merit(self) -> tuple[Cost, int]:
        """What is compared between nodes: the cost, and between equals the worth. Smaller is better."""
        return self.cost, -self.worth


class Room(Protocol):
    """A node without the pods of lower priority, to which they come back while the pod still fits."""

    def spare(self, group: Sequence[Pod]) -> bool:
        """Put pods back if the pod still fits then; whether it does."""


class _Known(msgspec.Struct, frozen=True):
    """A choice for one node and what it depends on."""

    choice: Choice | None
    account: NodeAccount
    removable: tuple[Pod, ...]
    gangs: tuple[tuple[str, int], ...]
    budgets: tuple[tuple[int, int], ...]


class Preemption:
    """The search for victims on one trial. `queue` says in which queue a pod is: who is in one ends for
    nobody of another.
    """

    def __init__(self, trial: Trial, budgets: Budgets, queue: Callable[[Pod], str] = lambda pod: "") -> None:
        self._trial = trial
        self._budgets = budgets
        self._queue = queue
        self._gangs = GangVictims(trial)
        self._known: dict[Hashable, dict[str, _Known]] = {}
        self._limit = max(CANDIDATES, len(trial.nodes) // 10)

    def choose(self, pod: Pod) -> Choice | None:
        """The cheapest node and victims for `pod`, or None when no eviction of lower priority makes room."""
        search = self._trial.search(pod)
        choices = self._local_choices(pod, search)
        if search.checks_locally:
            return min(choices, key=_rank, default=None)
        best: Choice | None = None

        def promising(choice: Choice) -> tuple[tuple[Cost, int], int, str]:
            """Among equals, nodes that pods elsewhere do not rule out: no victim need change that."""
            return choice.merit, 1 if search.ruled_out(choice.node) else 0, choice.node

        for likely in sorted(choices, key=promising):
            if best is not None and best.merit <= likely.merit:
                break
            choice = self._verified(pod, likely)
            if choice is not None and (best is None or _rank(choice) < _rank(best)):
                best = choice
        return best

    def fits_after(self, pod: Pod, node: str, gone: Collection[Pod]) -> bool:
        """Whether `pod` fits on `node` once the pods `gone` are gone from there."""
        search = self._trial.search(pod)
        account = self._trial.ledger.accounts[node]
        if not search.allows(account.without(other.key for other in gone)):
            return False
        if search.checks_locally:
            return True
        if not search.ruled_out(node) and not pod.shape.affinity:
            # Whose end could rule a node out? Only that of pods which the pod must be near.
            return True
        return self._fits_without(pod, node, [other for other in gone if other.key in account.pods])

    def has_company(self, pod: Pod, node: str, gone: Collection[Pod], *, evicted: bool) -> bool:
        """Whether the pod is near those that it must be near once `gone` are gone, and without counting on
        anyone else for whom room is only held: two that wait for each other's company would wait for ever.

        Nobody may be evicted because the pod would then be the first of its group: whoever comes next would
        be that instead, and another eviction would follow.
        """
        if not pod.shape.affinity:
            return True
        ledger = self._trial.firm(pod.gang_key)
        _take_away(ledger, gone)
        wanted = all_terms_test(pod.shape.affinity, self._trial.snapshot.namespaces)
        if evicted and any(wanted(other) for other in gone):
            others = (other for account in ledger.accounts.values() for other in account.pods.values())
            if not any(wanted(other) for other in others):
                return False
        return Search(pod, ledger).blocked(node) is None

    def _fits_without(self, pod: Pod, node: str, gone: Collection[Pod]) -> bool:
        ledger = self._trial.ledger.fork()
        _take_away(ledger, gone)
        return Search(pod, ledger).blocked(node) is None

    def _local_choices(self, pod: Pod, search: Search) -> list[Choice]:
        """A choice for each node by the filters that look at one node alone; some nodes if that is all."""
        asked = (self._trial.question(pod), pod.priority, self._gangs.own(pod), self._queue(pod))
        known = self._known.setdefault(asked, {})
        limit = self._limit if search.checks_locally else len(self._trial.nodes)
        choices: list[Choice] = []
        for node in self._trial.nodes:
            entry = known.get(node)
            if entry is None or not self._holds_still(entry):
                entry = known[node] = self._examine(pod, search, self._trial.ledger.accounts[node])
            if entry.choice is not None:
                choices.append(entry.choice)
                if len(choices) == limit:
                    break
        return choices

    def _holds_still(self, entry: _Known) -> bool:
        return (
            self._trial.ledger.accounts[entry.account.name] is entry.account
            and all(self._trial.gang_changes(gang) == change for gang, change in entry.gangs)
            and (not entry.budgets or self._budgets.state(entry.removable) == entry.budgets)
        )

    def _examine(self, pod: Pod, search: Search, account: NodeAccount) -> _Known:
        lower, ending = self._lower(pod, account), _ending(account)
        choice = None
        if lower or ending:
            bare = account.without([other.key for other in (*lower, *ending)])
            if search.allows(bare):
                choice = self._cheapest(pod, account, lower, lambda: _LocalRoom(search, bare))
                choice = self._smaller(pod, account, lower, bare, choice)
                choice = msgspec.structs.replace(choice, worth=search.worth(bare))
        gangs = sorted({other.gang_key for other in lower if other.gang is not None})
        removable = self._gangs.completed(lower, pod.priority)
        return _Known(
            choice,
            account,
            removable,
            tuple((gang, self._trial.gang_changes(gang)) for gang in gangs),
            self._budgets.state(removable),
        )

    def _lower(self, pod: Pod, account: NodeAccount) -> list[Pod]:
        """The pods that may be evicted for `pod`: of its queue or of none, not of its own gang, and not
        placed by this very decision.
        """
        queue = self._queue(pod)
        return [
            other
            for other in account.pods.values()
            if other.priority < pod.priority
            and other.node
            and not other.terminating
            and not (pod.gang is not None and other.gang_key == pod.gang_key)
            and self._queue(other) in ("", queue)
        ]

    def _verified(self, pod: Pod, likely: Choice) -> Choice | None:
        """The choice for a node by all filters; the one by the local filters if the others agree."""
        account = self._trial.ledger.accounts[likely.node]
        ending = _ending(account)
        if self._makes_room(pod, likely, ending):
            return likely
        lower = self._lower(pod, account)
        if not self.fits_after(pod, likely.node, [*ending, *lower]):
            return None
        choice = self._cheapest(pod, account, lower, lambda: _WideRoom(self, pod, likely.node, ending, lower))
        return choice if self._makes_room(pod, choice, ending) else None

    def _makes_room(self, pod: Pod, choice: Choice, ending: Sequence[Pod]) -> bool:
        gone = [*ending, *choice.victims]
        return self.fits_after(pod, choice.node, gone) and self.has_company(
            pod, choice.node, gone, evicted=bool(choice.victims)
        )

    def _cheapest(self, pod: Pod, account: NodeAccount, lower: list[Pod], room: Callable[[], Room]) -> Choice:
        """The cheaper of two minimal sets of victims on a node where the pod fits once `lower` are gone."""
        short = _shortage(pod, account)
        weight = {other.key: _held_of(short, other) for other in lower}
        protected = {other.key for other in self._budgets.broken_by(sorted(lower, key=_least_dear))}

        def choice(sign: int) -> Choice:
            def order(other: Pod) -> tuple[int, int, int, float, str]:
                turn = 0 if other.key in protected else 1
                return (turn, -other.priority, sign * weight[other.key], other.created, other.key)

            victims = self._unspared(sorted(lower, key=order), room())
            return self._choice(account.name, victims, pod.priority)

        first = choice(1)
        return min(first, choice(-1), key=_rank) if len(set(weight.values())) > 1 else first

    def _smaller(
        self, pod: Pod, account: NodeAccount, lower: list[Pod], bare: NodeAccount, best: Choice
    ) -> Choice:
        """The cheapest of all smaller sets of victims, where there could be one and not too many to try."""
        # As many victims are cheaper only if they break fewer budgets.
        largest = len(best.victims) if best.cost.broken_budgets else len(best.victims) - 1
        smallest = 0 if best.cost.broken_budgets else _fewest(_shortage(pod, account), lower)
        if len(lower) > EXACT or largest < smallest:
            return best
        search = self._trial.search(pod)
        for size in range(min(len(lower), largest) + 1):
            for victims in combinations(lower, size):
                choice = self._choice(account.name, victims, pod.priority)
                if choice.cost < best.cost:
                    gone = {victim.key for victim in choice.victims}
                    if _LocalRoom(search, bare).spare([other for other in lower if other.key not in gone]):
                        best = choice
        return best

    def _choice(self, node: str, victims: Iterable[Pod], below: int) -> Choice:
        whole = self._gangs.completed(victims, below)
        return Choice.of(node, whole, len(self._budgets.broken_by(whole)))

    def _unspared(self, ordered: Sequence[Pod], room: Room) -> list[Pod]:
        """Who remains a victim after everyone was put back, in order, as long as the pod still fits."""
        victims = {other.key: other for other in ordered}
        for group in self._gangs.groups(ordered):
            if not all(other.key in victims for other in group):
                continue
            if not self._gangs.ends_anyway(group, victims.values()) and room.spare(group):
                for other in group:
                    del victims[other.key]
        return list(victims.values())


def _rank(choice: Choice) -> tuple[tuple[Cost, int], str]:
    """For a strict order: equals go by the name of the node."""
    return choice.merit, choice.node


def _take_away(ledger: Ledger, gone: Collection[Pod]) -> None:
    keys = {other.key for other in gone}
    for name, account in list(ledger.accounts.items()):
        if not keys.isdisjoint(account.pods):
            ledger.remove(name, keys)


def _ending(account: NodeAccount) -> list[Pod]:
    return [other for other in account.pods.values() if other.terminating]


class _LocalRoom:
    """`Room` by the filters that look at one node alone, from the account without lower priorities."""

    def __init__(self, search: Search, bare: NodeAccount) -> None:
        self._search = search
        self._account = bare

    def spare(self, group: Sequence[Pod]) -> bool:
        account = self._account
        for other in group:
            account = account.with_pod(other)
        if not self._search.allows(account):
            return False
        self._account = account
        return True


class _WideRoom:
    """`Room` by all filters, asked anew each time."""

    def __init__(
        self, preemption: Preemption, pod: Pod, node: str, ending: Iterable[Pod], lower: Iterable[Pod]
    ) -> None:
        self._preemption = preemption
        self._pod = pod
        self._node = node
        self._gone = {other.key: other for other in (*ending, *lower)}

    def spare(self, group: Sequence[Pod]) -> bool:
        keys = {other.key for other in group}
        gone = {key: other for key, other in self._gone.items() if key not in keys}
        if not self._preemption.fits_after(self._pod, self._node, list(gone.values())):
            return False
        self._gone = gone
        return True


def _shortage(pod: Pod, account: NodeAccount) -> dict[str, int]:
    """What the node lacks for the pod, by resource, once the pods that are ending are gone."""
    ending: dict[str, int] = {}
    for other in _ending(account):
        for resource, amount in other.shape.requests:
            ending[resource] = ending.get(resource, 0) + amount
    lacks = ((r, amount - account.free(r) - ending.get(r, 0)) for r, amount in pod.shape.requests)
    return {resource: lack for resource, lack in lacks if lack > 0}


def _held_of(short: dict[str, int], other: Pod) -> int:
    """How much of what is missing a pod holds, in thousandths, summed over resources."""
    return sum(amount * 1000 // short[r] for r, amount in other.shape.requests if r in short)


def _fewest(short: dict[str, int], lower: list[Pod]) -> int:
    """No fewer victims than this can make up for the shortage."""
    fewest = 0
    for resource, lack in short.items():
        held = sorted((dict(other.shape.requests).get(resource, 0) for other in lower), reverse=True)
        enough = (count for count, total in enumerate(accumulate(held), 1) if total >= lack)
        fewest = max(fewest, next(enough, len(held)))
    return fewest


def _least_dear(other: Pod) -> tuple[int, float, str]:
    return (other.priority, -other.created, other.key)
