"""Preemption: the fewest and cheapest pods whose end makes room for a pod of higher priority.

On each node all pods of lower priority are taken away; if the pod then fits, they are put back one by one as
long as it still fits, first those that a disruption budget protects, then by priority. Who cannot come back
is a victim, so the set is minimal: no victim can be spared. Two orders of equals are tried (large requests
first, small ones first) and the cheaper result wins. Pods that are ending anyway make room for nothing and
cost nothing. A gang that would fall below its minimum ends as a whole: the rest of it would only hold GPUs.
Nodes are compared by broken budgets, then the highest priority hurt, then the number of victims, then GPUs
taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import msgspec

from gpufleet.fleet.pods import Pod, gpus_requested
from gpufleet.fleet.snapshot import DisruptionBudget
from gpufleet.scheduling.ledger import NodeAccount
from gpufleet.scheduling.trial import Trial

CANDIDATES = 100
"""Nodes examined per pod at least; beyond that a tenth of the fleet, as kube-scheduler does."""


class Choice(msgspec.Struct, frozen=True):
    """A node and the pods that must end there (none when pods that are ending already make the room)."""

    node: str
    victims: tuple[Pod, ...]
    broken_budgets: int = 0

    @property
    def cost(self) -> tuple[int, int, int, int, int, str]:
        """What is compared between nodes; smaller is better."""
        highest = max((victim.priority for victim in self.victims), default=-(2**31))
        gpus = sum(gpus_requested(victim.shape) for victim in self.victims)
        priorities = sum(victim.priority for victim in self.victims)
        return (self.broken_budgets, highest, len(self.victims), gpus, priorities, self.node)


class Budgets:
    """Disruption budgets during one decision: what may still be disrupted after the evictions chosen so far."""

    def __init__(self, budgets: Iterable[DisruptionBudget]) -> None:
        self._budgets = list(budgets)
        self._left = [budget.allowed for budget in self._budgets]

    def spend(self, victims: Iterable[Pod]) -> None:
        """Count evictions that were chosen."""
        for victim in victims:
            for index in self._protecting(victim):
                self._left[index] -= 1

    def broken_by(self, victims: Iterable[Pod]) -> int:
        """How many of these evictions a budget would forbid."""
        left = list(self._left)
        broken = 0
        for victim in victims:
            protecting = list(self._protecting(victim))
            for index in protecting:
                left[index] -= 1
            broken += any(left[index] < 0 for index in protecting)
        return broken

    def _protecting(self, pod: Pod) -> Iterator[int]:
        for index, budget in enumerate(self._budgets):
            if budget.selector is None or budget.namespace != pod.namespace or pod.key in budget.disrupted:
                continue
            if budget.selector.matches(pod.labels):
                yield index


def choose(pod: Pod, trial: Trial, budgets: Budgets) -> Choice | None:
    """The cheapest node and victims for `pod`, or None when no eviction of lower priority makes room."""
    best: Choice | None = None
    found = 0
    limit = max(CANDIDATES, len(trial.ledger.accounts) // 10)
    for node, account in sorted(trial.ledger.accounts.items()):
        removable = _removable(pod, account)
        if not removable or not _fits(pod, trial, node, removable):
            continue
        choice = _cheapest(pod, trial, account, removable, budgets)
        found += 1
        if best is None or choice.cost < best.cost:
            best = choice
        if found >= limit:
            break
    return best


def _removable(pod: Pod, account: NodeAccount) -> list[Pod]:
    return [other for other in account.pods.values() if other.terminating or other.priority < pod.priority]


def _fits(pod: Pod, trial: Trial, node: str, gone: Iterable[Pod]) -> bool:
    """Whether `pod` fits on `node` once the pods `gone` are gone."""
    keys = [other.key for other in gone]
    search = trial.search(pod)
    if search.local:
        return search.allows(trial.ledger.accounts[node].without(keys))
    mark = trial.mark()
    trial.remove(node, keys)
    fits = trial.search(pod).blocked(node) is None
    trial.rollback(mark)
    return fits


def _cheapest(pod: Pod, trial: Trial, account: NodeAccount, removable: list[Pod], budgets: Budgets) -> Choice:
    lower = [other for other in removable if not other.terminating]
    ending = [other for other in removable if other.terminating]

    def choice(order: Callable[[Pod], tuple[int, int, int, float]]) -> Choice:
        victims = list(lower)
        for candidate in sorted(lower, key=order):
            spared = [other for other in victims if other is not candidate]
            if _fits(pod, trial, account.name, [*ending, *spared]):
                victims = spared
        whole = with_gangs(victims, trial, pod.priority)
        return Choice(account.name, whole, budgets.broken_by(whole))

    def protected(other: Pod) -> int:
        return -budgets.broken_by([other])

    return min(
        choice(lambda o: (protected(o), -o.priority, -gpus_requested(o.shape), o.created)),
        choice(lambda o: (protected(o), -o.priority, gpus_requested(o.shape), o.created)),
        key=lambda result: result.cost,
    )


def with_gangs(victims: Iterable[Pod], trial: Trial, below: int) -> tuple[Pod, ...]:
    """The victims and the rest of each gang that would fall below its minimum without them.

    Only mates of a priority lower than `below` are added: preemption never reaches further up.
    """
    chosen = {victim.key: victim for victim in victims}
    for gang in sorted({victim.gang_key for victim in chosen.values() if victim.gang is not None}):
        mates = list(_running_mates(gang, trial))
        minimum = next((mate.gang.minimum for mate in mates if mate.gang is not None), None)
        left = sum(1 for mate in mates if mate.key not in chosen)
        if minimum is not None and left < minimum:
            chosen.update((mate.key, mate) for mate in mates if mate.priority < below)
    return tuple(chosen.values())


def _running_mates(gang: str, trial: Trial) -> Iterator[Pod]:
    for account in trial.ledger.accounts.values():
        for pod in account.pods.values():
            if pod.gang_key == gang and not pod.terminating:
                yield pod
