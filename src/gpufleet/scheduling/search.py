"""Placement search: the best node for all pods that ask the same question.

Pods of one shape, namespace, owner and (where a selector could tell them apart) labels ask the same question,
so one search serves them all: each node is judged once and again only after something changed there. Where
every filter and score looks at one node alone, the best node is the top of a heap; otherwise the nodes that
pass the local filters are compared anew for each pod, against counts that are kept up to date by `placed`.
Ties go to the first node by name, so that a decision is reproducible.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

from gpufleet.fleet.pods import Pod
from gpufleet.fleet.reasons import Reason
from gpufleet.scheduling.filters import FILTERS
from gpufleet.scheduling.ledger import Ledger, NodeAccount
from gpufleet.scheduling.messages import node_reasons
from gpufleet.scheduling.placement import Block, Score
from gpufleet.scheduling.scores import SCORES

_Scorer = tuple[Score, Callable[[NodeAccount], int]]


class Search:
    """The search for one question against one ledger. `touched` and `placed` keep it true as the ledger
    changes.
    """

    def __init__(self, pod: Pod, ledger: Ledger) -> None:
        self._pod = pod
        self._ledger = ledger
        prepared = [(f, check) for f in FILTERS if (check := f.prepare(pod, ledger)) is not None]
        self._local_checks = [check for f, check in prepared if f.local]
        self._wide_checks = [check for f, check in prepared if not f.local]
        scorers = [(s, value) for s in SCORES if (value := s.prepare(pod, ledger)) is not None]
        self._local_scores: list[_Scorer] = [(s, value) for s, value in scorers if s.local]
        self._wide_scores: list[_Scorer] = [(s, value) for s, value in scorers if not s.local]
        self._verdicts: dict[str, Block | int] = {}
        self._heap: list[tuple[int, str]] = []
        self._stale: set[str] = set(ledger.accounts)
        self._reasons: tuple[Reason, ...] | None = None

    @property
    def local(self) -> bool:
        """Whether the answer for a node depends on that node alone."""
        return not self._wide_checks and not self._wide_scores

    def touched(self, node: str) -> None:
        """The account of `node` changed."""
        self._stale.add(node)
        self._reasons = None

    def placed(self, pod: Pod, account: NodeAccount) -> None:
        """`pod` was placed on a node, whose new account is given."""
        self.touched(account.name)
        for part in (*self._wide_checks, *(value for _, value in self._wide_scores)):
            note = getattr(part, "placed", None)
            if note is not None:
                note(pod, account)

    def best(self) -> str | None:
        """The best node that passes every filter, or None."""
        self._refresh()
        if not self.local:
            return self._best_of_all()
        while self._heap:
            negative, name = self._heap[0]
            if self._verdicts[name] == -negative:
                return name
            heapq.heappop(self._heap)
        return None

    def blocked(self, node: str) -> Block | None:
        """Why the pod cannot run on one node now, or None when it can."""
        return self._block(self._ledger.accounts[node])

    def allows(self, account: NodeAccount) -> bool:
        """Whether the pod fits on a node as `account` describes it; only for a local search."""
        return not isinstance(self._local_verdict(account), Block)

    def blocks(self) -> Iterator[tuple[str, Block]]:
        """Every node that is out, with the first filter that says so."""
        self._refresh()
        for name, verdict in self._verdicts.items():
            if isinstance(verdict, Block):
                yield name, verdict
            elif (block := self._wide_block(self._ledger.accounts[name])) is not None:
                yield name, block

    def reasons(self) -> tuple[Reason, ...]:
        """Why nodes are out, with counts; the same tuple until something changes."""
        if self._reasons is None:
            self._reasons = node_reasons(self.blocks())
        return self._reasons

    def reason(self, node: str) -> Reason:
        """Why `node` was chosen: the score that weighed most, or that nothing else fits."""
        self._refresh()
        account = self._ledger.accounts[node]
        if (
            self.local
            and sum(1 for verdict in self._verdicts.values() if not isinstance(verdict, Block)) == 1
        ):
            return Reason("OnlyFit", f"no other node fits than {node}", node)
        weighed = [
            (s.weight * value(account), s.name, s.reason)
            for s, value in (*self._local_scores, *self._wide_scores)
        ]
        if not weighed:
            return Reason("BestFit", f"{node} fits; no preference tells nodes apart", node)
        points, name, code = max(weighed)
        return Reason(code, f"{node} scores best by {name}", node, evidence={"points": points})

    def _refresh(self) -> None:
        for name in self._stale:
            account = self._ledger.accounts.get(name)
            if account is None:
                continue
            verdict = self._verdicts[name] = self._local_verdict(account)
            if not isinstance(verdict, Block):
                heapq.heappush(self._heap, (-verdict, name))
        self._stale.clear()

    def _local_verdict(self, account: NodeAccount) -> Block | int:
        for check in self._local_checks:
            block = check(account)
            if block is not None:
                return block
        return sum(score.weight * value(account) for score, value in self._local_scores)

    def _wide_block(self, account: NodeAccount) -> Block | None:
        for check in self._wide_checks:
            block = check(account)
            if block is not None:
                return block
        return None

    def _block(self, account: NodeAccount) -> Block | None:
        verdict = self._local_verdict(account)
        return verdict if isinstance(verdict, Block) else self._wide_block(account)

    def _best_of_all(self) -> str | None:
        best: tuple[int, str] | None = None
        for name, verdict in self._verdicts.items():
            if isinstance(verdict, Block):
                continue
            account = self._ledger.accounts[name]
            if self._wide_block(account) is not None:
                continue
            total = verdict + sum(score.weight * value(account) for score, value in self._wide_scores)
            if best is None or (-total, name) < best:
                best = (-total, name)
        return best[1] if best else None
