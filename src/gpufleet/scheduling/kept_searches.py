"""Searches that are kept from one decision to the next.

A search has judged every node, and most nodes are as they were when the next decision begins. So it is taken
over: only nodes with another account are judged again. What its filters and scores were told about the fleet
as a whole when they were prepared (`Facts`) must still be so, else it is made anew; what counts over other
nodes is prepared anew anyway. Searches of pods with volumes are not kept. A plan is the same with and without
(test_kept_searches guards it).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING

import msgspec

from gpufleet.fleet.demands import TypicalPod
from gpufleet.fleet.mixes import PRODUCT_LABEL
from gpufleet.fleet.nodes import Node
from gpufleet.fleet.pods import is_gpu_resource

if TYPE_CHECKING:
    from gpufleet.scheduling.ledger import Ledger
    from gpufleet.scheduling.search import Search

MOST = 512
"""So many searches are kept at most."""

_NodeFacts = tuple[bool, bool, bool, str]


class Facts(msgspec.Struct, frozen=True):
    """What filters and scores that look at one node alone may also know of the fleet: whether there are nodes
    with pods that cannot be read, with soft taints, with and without GPUs, which products, and the mix.
    """

    nodes: frozenset[_NodeFacts]
    mix: tuple[TypicalPod, ...]


class KeptSearches:
    """The searches of the last decision that may serve the next one."""

    def __init__(self) -> None:
        self._searches: dict[Hashable, Search] = {}
        self._facts: Facts | None = None
        self._devices: object = None
        self._known: dict[str, tuple[Node, _NodeFacts]] = {}

    def begin(self, ledger: Ledger) -> None:
        """A decision begins: what is out of date is forgotten."""
        facts = Facts(frozenset(self._facts_of(ledger)), ledger.snapshot.mix)
        if facts != self._facts or len(self._searches) > MOST:
            self._searches.clear()
        if ledger.snapshot.devices is not self._devices:
            self._searches = {key: one for key, one in self._searches.items() if not one.pod.shape.fraction}
        self._facts, self._devices = facts, ledger.snapshot.devices

    def take(self, question: Hashable, ledger: Ledger, firm: Callable[[], Ledger | None]) -> Search | None:
        """The search for a question, brought to a ledger; None when it must be made anew."""
        search = self._searches.pop(question, None)
        return search if search is not None and search.rebase(ledger, firm) else None

    def keep(self, searches: Mapping[Hashable, Search]) -> None:
        """A decision has ended with these searches."""
        for question, search in searches.items():
            shape = search.pod.shape
            if not (shape.claims or shape.inline_csi_drivers):
                self._searches[question] = search

    def _facts_of(self, ledger: Ledger) -> set[_NodeFacts]:
        known: dict[str, tuple[Node, _NodeFacts]] = {}
        for name, account in ledger.accounts.items():
            before = self._known.get(name)
            node = account.node
            known[name] = before if before is not None and before[0] is node else (node, _facts(node))
        self._known = known
        return {facts for _, facts in known.values()}


def _facts(node: Node) -> _NodeFacts:
    return (
        bool(node.unread_pods),
        any(taint.effect == "PreferNoSchedule" for taint in node.taints),
        any(amount > 0 and is_gpu_resource(resource) for resource, amount in node.allocatable.items()),
        node.labels.get(PRODUCT_LABEL, ""),
    )
