"""Placement search: the best node for all pods that ask the same question.

Pods of one shape, namespace, owner and (where a selector could tell them apart) labels ask the same question,
so one search serves them all: each node is judged once and again only after something changed there. Where
every filter and score looks at one node alone, the best node is the top of a heap; otherwise the nodes that
pass the local filters are compared anew for each pod, against counts that are kept up to date by `placed` and
prepared anew after `outdate`.
A pod for which room is only held counts against others, never for them: where filters look at other nodes, a
node must pass both with and without such pods. Ties go to the first node by name, so that a decision is
reproducible.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator

from gpufleet.fleet.pods import Pod
from gpufleet.fleet.reasons import Reason
from gpufleet.scheduling.affinity import RequiredAffinity, refuses
from gpufleet.scheduling.filters import FILTERS
from gpufleet.scheduling.ledger import Ledger, NodeAccount
from gpufleet.scheduling.messages import Tally, node_reasons
from gpufleet.scheduling.placement import Block, Check, Score
from gpufleet.scheduling.scores import SCORES

_Scorer = tuple[Score, Callable[[NodeAccount], int]]
_Ranked = tuple[int, str]
"""The total of a node's scores, negative, and its name: the smallest is the best."""

_HEAP_FACTOR, _HEAP_LEAST = 4, 64
"""Beyond so many entries for each node the heap is made anew, without what is out of date."""

_TIERS = sorted({score.weight for score in SCORES}, reverse=True)


def _never() -> None:
    return None


class Search:
    """The search for one question against one ledger; whoever changes the ledger must say so.

    `firm` gives the ledger without the pods for which room is only held, or None while there are none.
    """

    def __init__(self, pod: Pod, ledger: Ledger, firm: Callable[[], Ledger | None] = _never) -> None:
        self.pod = pod
        self._ledger = ledger
        self._firm = firm
        self._checks = _checks(pod, ledger, local=True)
        self._scores: list[_Scorer] | None = None
        self._wide: _Wide | None = None
        self._verdicts: dict[str, Block | int] = {}
        self._heap: list[_Ranked] = []
        self._judged: dict[str, NodeAccount] = {}
        self._stale: set[str] = set(ledger.accounts)
        self._reasons: tuple[Reason, ...] | None = None
        self._tally: Tally | None = None

    def rebase(self, ledger: Ledger, firm: Callable[[], Ledger | None]) -> bool:
        """Answer about another ledger, judging only nodes with another account anew; False, and the search is
        of no more use, when a node is gone.
        """
        accounts = ledger.accounts
        if not self._judged.keys() <= accounts.keys():
            return False
        self._ledger, self._firm = ledger, firm
        self._wide = None
        self._reasons = None
        judged = self._judged
        self._stale.update(name for name, account in accounts.items() if judged.get(name) is not account)
        return True

    @property
    def checks_locally(self) -> bool:
        """Whether a node passes or not by its own account alone."""
        return not self._now().checks

    def placed(self, pod: Pod, account: NodeAccount, *, held: bool = False) -> None:
        """`pod` was placed on a node, or room is held for it there; the node's new account is given."""
        self._touched(account.name)
        if self._wide is None:
            return
        if self._wide.blind and pod.shape.anti_affinity:
            namespaces = self._ledger.snapshot.namespaces
            if refuses(pod.shape, self.pod, namespaces):
                self._wide = None
                return
        self._wide.placed(pod, account, held=held)

    def ended(self, pods: Iterable[Pod], account: NodeAccount) -> None:
        """Pods on a node count as terminating from now on; the node's new account is given."""
        self._touched(account.name)
        if self._wide is not None:
            for pod in pods:
                self._wide.ended(pod, account)

    def outdate(self, *nodes: str) -> None:
        """Something changed, on these nodes, that `placed` does not tell: the fleet is counted anew."""
        self._stale.update(nodes)
        self._wide = None
        self._reasons = None

    def best(self, *, certain: bool = True) -> str | None:
        """The best node that passes every filter, or None. Not `certain`: held pods count as if placed."""
        self._refresh()
        wide = self._now()
        if wide.checks or wide.scores:
            best = min(self._fitting(wide, certain=certain), default=None)
        else:
            best = self._top()
        return best[1] if best is not None else None

    def choose(self) -> tuple[str, Reason] | None:
        """The best node and why it is better than the next best one; None when none passes every filter."""
        self._refresh()
        wide = self._now()
        if wide.checks or wide.scores:
            ranked = heapq.nsmallest(2, self._fitting(wide, certain=True))
            best, second = (*ranked, None, None)[:2]
        else:
            best, second = self._top_two()
        if best is None:
            return None
        if second is None:
            return best[1], Reason("OnlyFit", f"no other node fits than {best[1]}", best[1])
        return best[1], self._difference(best, second, wide)

    def blocked(self, node: str, *, certain: bool = True) -> Block | None:
        """Why the pod cannot run on one node, or None when it can. Not `certain`: as in `best`."""
        account = self._ledger.accounts[node]
        return self._locally_blocked(account) or self._now().block(account, certain=certain)

    def ruled_out(self, node: str) -> bool:
        """Whether a filter that looks at other nodes, too, keeps the pod off one node."""
        return self._now().block(self._ledger.accounts[node], certain=False) is not None

    def allows(self, account: NodeAccount) -> bool:
        """Whether the node passes the filters that look at one node alone, as `account` describes it."""
        return self._locally_blocked(account) is None

    def worth(self, account: NodeAccount) -> int:
        """What the local scores say of a node as `account` describes it."""
        return sum(score.weight * value(account) for score, value in self._scorers())

    def blocks(self) -> Iterator[tuple[str, Block]]:
        """Every node that is out, with the first filter that says so."""
        self._refresh()
        wide = self._now()
        for name, verdict in self._verdicts.items():
            if isinstance(verdict, Block):
                yield name, verdict
            elif (block := wide.block(self._ledger.accounts[name], certain=True)) is not None:
                yield name, block

    def reasons(self) -> tuple[Reason, ...]:
        """Why nodes are out, with counts; the same tuple until something changes."""
        if self._reasons is None:
            self._reasons = node_reasons(self.blocks()) if self._now().checks else self._counted().reasons()
        return self._reasons

    def _counted(self) -> Tally:
        """The nodes that are out by their own accounts; kept up to date once somebody has asked."""
        self._refresh()
        if self._tally is None:
            self._tally = Tally()
            for verdict in self._verdicts.values():
                if isinstance(verdict, Block):
                    self._tally.count(verdict)
        return self._tally

    def _difference(self, best: _Ranked, second: _Ranked, wide: _Wide) -> Reason:
        """What decided between two nodes: the highest tier in which they differ."""
        total, node = best
        next_total, other = second
        if total == next_total:
            return Reason("BestFit", f"{node} is the first by name of nodes that are equally good", node)
        tier = _deciding_tier(-total, -next_total)
        account, next_account = self._ledger.accounts[node], self._ledger.accounts[other]
        deciding = [scorer for scorer in (*self._scorers(), *wide.scores) if scorer[0].weight == tier]
        measured = [(value(account), value(next_account), score) for score, value in deciding]
        measure, next_measure, score = max(measured, key=_lead)
        text = f"{node} scores best by {score.name}: {measure} of 100, {other} has {next_measure}"
        return Reason(score.reason, text, node, evidence={"measure": measure, "next": next_measure})

    def _touched(self, node: str) -> None:
        self._stale.add(node)
        self._reasons = None

    def _refresh(self) -> None:
        for name in self._stale:
            account = self._ledger.accounts.get(name)
            if account is None:
                continue
            self._judged[name] = account
            before = self._verdicts.get(name)
            verdict = self._verdicts[name] = self._local_verdict(account)
            if self._tally is not None and before != verdict:
                if isinstance(before, Block):
                    self._tally.count(before, -1)
                if isinstance(verdict, Block):
                    self._tally.count(verdict)
            if not isinstance(verdict, Block):
                heapq.heappush(self._heap, (-verdict, name))
        self._stale.clear()
        if len(self._heap) > _HEAP_FACTOR * len(self._verdicts) + _HEAP_LEAST:
            fitting = ((name, one) for name, one in self._verdicts.items() if not isinstance(one, Block))
            self._heap = [(-one, name) for name, one in fitting]
            heapq.heapify(self._heap)

    def _local_verdict(self, account: NodeAccount) -> Block | int:
        block = self._locally_blocked(account)
        return self.worth(account) if block is None else block

    def _locally_blocked(self, account: NodeAccount) -> Block | None:
        return _first_block(self._checks, account)

    def _scorers(self) -> list[_Scorer]:
        if self._scores is None:
            self._scores = _scorers(self.pod, self._ledger, local=True)
        return self._scores

    def _now(self) -> _Wide:
        if self._wide is None:
            self._wide = _Wide(self.pod, self._ledger, self._firm())
        return self._wide

    def _top(self) -> _Ranked | None:
        """The top of the heap, freed from what is out of date."""
        while self._heap:
            negative, name = self._heap[0]
            if self._verdicts[name] == -negative:
                return self._heap[0]
            heapq.heappop(self._heap)
        return None

    def _top_two(self) -> tuple[_Ranked | None, _Ranked | None]:
        """The two best nodes. The best is looked at again later, as something is about to be placed there."""
        best = self._top()
        if best is None:
            return None, None
        self._stale.add(best[1])
        second: _Ranked | None = best
        while second == best:
            heapq.heappop(self._heap)
            second = self._top()
        return best, second

    def _fitting(self, wide: _Wide, *, certain: bool) -> Iterator[_Ranked]:
        """Every node that passes all filters, with its total."""
        accounts = self._ledger.accounts
        for name, verdict in self._verdicts.items():
            if isinstance(verdict, Block):
                continue
            account = accounts[name]
            if wide.block(account, certain=certain) is not None:
                continue
            total = verdict + sum(score.weight * value(account) for score, value in wide.scores)
            yield -total, name


class _Wide:
    """The filters and scores of one pod that count over the fleet, prepared for one moment."""

    def __init__(self, pod: Pod, ledger: Ledger, firm: Ledger | None) -> None:
        self._pod = pod
        self._ledger = ledger
        self.checks = _checks(pod, ledger, local=False)
        self._certain = _checks(pod, firm, local=False) if firm is not None else []
        self._scores: list[_Scorer] | None = None
        self.blind = not any(isinstance(check, RequiredAffinity) for check in self.checks)
        """Whether pods that refuse ours are not looked at, because there were none."""

    @property
    def scores(self) -> list[_Scorer]:
        """Prepared when first asked for: a pod that fits nowhere needs none."""
        if self._scores is None:
            self._scores = _scorers(self._pod, self._ledger, local=False)
        return self._scores

    def block(self, account: NodeAccount, *, certain: bool) -> Block | None:
        """Why a node is out, or None; if `certain`, it must also pass without the pods that are held."""
        block = _first_block(self.checks, account)
        return _first_block(self._certain, account) if block is None and certain else block

    def placed(self, pod: Pod, account: NodeAccount, *, held: bool) -> None:
        """Count a pod that was placed, or for which room is held."""
        scores = [value for _, value in self._scores or ()]
        for part in (*self.checks, *scores, *(() if held else self._certain)):
            note = getattr(part, "placed", None)
            if note is not None:
                note(pod, account)

    def ended(self, pod: Pod, account: NodeAccount) -> None:
        """Count a pod as terminating."""
        for part in (*self.checks, *(value for _, value in self._scores or ()), *self._certain):
            note = getattr(part, "ended", None)
            if note is not None:
                note(pod, account)


def _checks(pod: Pod, ledger: Ledger, *, local: bool) -> list[Check]:
    prepared = (f.prepare(pod, ledger) for f in FILTERS if f.local == local)
    return [check for check in prepared if check is not None]


def _scorers(pod: Pod, ledger: Ledger, *, local: bool) -> list[_Scorer]:
    prepared = ((s, s.prepare(pod, ledger)) for s in SCORES if s.local == local)
    return [(s, value) for s, value in prepared if value is not None]


def _deciding_tier(total: int, other: int) -> int:
    """The weight of the highest tier in which totals differ: what is below it cannot add up to its weight."""
    for weight in _TIERS:
        if total // weight != other // weight:
            return weight
    raise ValueError("the totals are equal")


def _lead(measured: tuple[int, int, Score]) -> int:
    return measured[0] - measured[1]


def _first_block(checks: list[Check], account: NodeAccount) -> Block | None:
    for check in checks:
        block = check(account)
        if block is not None:
            return block
    return None
