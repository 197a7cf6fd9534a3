"""A trial: the fleet as it would be after the actions chosen so far.

A decision places pods on a fork of the ledger; a gang or a preemption is tried between `mark` and `rollback`,
so a part that does not work out leaves no trace. Searches are shared between pods that ask the same question
and told of every change; those that count over the whole fleet are dropped on a rollback and prepared anew.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from gpufleet.fleet.pods import Pod
from gpufleet.scheduling.ledger import Ledger, NodeAccount
from gpufleet.scheduling.search import Search

_Entry = tuple[str, NodeAccount, dict[str, str], int, int]


class Trial:
    """A fork of a ledger with the searches that run on it.

    `state` names the state of the trial, `releases` the last time that room was freed: both are restored by a
    rollback, so what failed for a question fails again while they are the same.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger.fork()
        self.snapshot = ledger.snapshot
        self.state = 0
        self.releases = 0
        self._last_state = 0
        self._searches: dict[Hashable, Search] = {}
        self._journal: list[_Entry] = []
        self._labels_matter = any(account.anti_affine for account in ledger.accounts.values())

    def question(self, pod: Pod) -> Hashable:
        """What decides the answer for `pod`: pods with equal questions share one search."""
        shape = pod.shape
        labels_matter = self._labels_matter or bool(
            shape.affinity or shape.anti_affinity or shape.spread or shape.preferred_pods
        )
        labels = frozenset(pod.labels.items()) if labels_matter else None
        return (shape, pod.namespace, pod.owner, labels, pod.key if shape.claims else "")

    def search(self, pod: Pod) -> Search:
        """The search that answers for `pod`, shared with every pod that asks the same question."""
        question = self.question(pod)
        search = self._searches.get(question)
        if search is None:
            search = self._searches[question] = Search(pod, self.ledger)
        return search

    def place(self, pod: Pod, node: str) -> None:
        """Count `pod` on `node`."""
        self._note(node)
        account = self.ledger.place(pod, node)
        if pod.shape.anti_affinity and not self._labels_matter:
            # From here on the labels of other pods decide whether this one tolerates them.
            self._labels_matter = True
            self._searches.clear()
            return
        for search in self._searches.values():
            search.placed(pod, account)

    def remove(self, node: str, keys: Iterable[str]) -> None:
        """Stop counting pods on `node`."""
        self._note(node)
        self.releases = self.state
        self.ledger.remove(node, keys)
        self._changed(node)

    def mark(self) -> int:
        """A point to which `rollback` can return."""
        return len(self._journal)

    def rollback(self, mark: int) -> None:
        """Undo everything since `mark`."""
        while len(self._journal) > mark:
            node, account, promised, self.state, self.releases = self._journal.pop()
            self.ledger.accounts[node] = account
            self.ledger.promised_volumes.clear()
            self.ledger.promised_volumes.update(promised)
            self._changed(node)

    def _note(self, node: str) -> None:
        promised = dict(self.ledger.promised_volumes)
        self._journal.append((node, self.ledger.accounts[node], promised, self.state, self.releases))
        self._last_state += 1
        self.state = self._last_state

    def _changed(self, node: str) -> None:
        self._searches = {question: search for question, search in self._searches.items() if search.local}
        for search in self._searches.values():
            search.touched(node)
