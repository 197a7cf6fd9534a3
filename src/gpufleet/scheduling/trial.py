"""A trial: the fleet as it would be after the actions chosen so far.

A decision places pods on a fork of the ledger; a gang or a preemption is tried between `mark` and `rollback`,
so a part that does not work out leaves no trace. Searches are shared between pods that ask the same question;
what has changed since then is told to a search when it is asked again.
Room that somebody's end will make is *held*: who ends goes on counting until it is gone, and the pod that the
room is for counts on top. The account is then overdrawn, so nobody else gets the room, and what is left over
of it is free only when it really is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator

import msgspec

from gpufleet.fleet.nodes import Node
from gpufleet.fleet.pods import Pod, PodAffinityTerm, PodShape
from gpufleet.scheduling.kept_searches import KeptSearches
from gpufleet.scheduling.ledger import Ledger, NodeAccount
from gpufleet.scheduling.scores import REPLICATED_KINDS
from gpufleet.scheduling.search import Search


class _Entry(msgspec.Struct, frozen=True):
    """What a rollback restores."""

    node: str
    account: NodeAccount
    promised: dict[str, str]
    held: str = ""


class Trial:
    """A fork of a ledger with the searches that run on it."""

    def __init__(self, ledger: Ledger, kept: KeptSearches | None = None) -> None:
        self.ledger = ledger.fork()
        self._kept = kept
        self.snapshot = ledger.snapshot
        self.nodes = sorted(ledger.accounts)
        """The names of all nodes, in order."""
        self._searches: dict[Hashable, Search] = {}
        self._told: list[Callable[[Search], None]] = []
        self._heard: dict[Hashable, int] = {}
        self._journal: list[_Entry] = []
        self._held: dict[str, set[str]] = {}
        self._hold_changes = 0
        self._held_from: dict[Hashable, tuple[int, str | None]] = {}
        self._gangs: dict[str, set[str]] | None = None
        self._gang_changes: Counter[str] = Counter()
        self._mates: dict[str, tuple[int, list[Pod]]] = {}
        self._replicas: Counter[str] | None = None
        self._refusing: set[PodShape] = set()
        self._told_apart_by: frozenset[str] = frozenset()
        self._own_keys: dict[PodShape, tuple[str, ...]] = {}
        for account in ledger.accounts.values():
            self._note_refusals(account.anti_affine)

    def search(self, pod: Pod) -> Search:
        """The search that answers for `pod`, shared with every pod that asks the same question.

        It knows the trial as it is now; after a change, ask for it again.
        """
        question = self.question(pod)
        search = self._searches.get(question)
        if search is None and self._kept is not None:
            search = self._kept.take(question, self.ledger, self._without_held)
            if search is not None:
                self._searches[question] = search
                self._heard[question] = len(self._told)
                return search
        if search is None or len(self._told) - self._heard[question] > len(self.nodes):
            asker = pod if self._owner(pod) else msgspec.structs.replace(pod, owner="")
            search = self._searches[question] = Search(asker, self.ledger, self._without_held)
        else:
            for tell in self._told[self._heard[question] :]:
                tell(search)
        self._heard[question] = len(self._told)
        return search

    def end_decision(self) -> None:
        """Leave the searches to the next decision."""
        if self._kept is not None:
            self._kept.keep(self._searches)

    def question(self, pod: Pod) -> Hashable:
        """What decides the answer for `pod`: pods with equal questions share one search."""
        shape = pod.shape
        who: Hashable = None
        if self._refusing or shape.affinity or shape.anti_affinity or shape.spread:
            labels = tuple(pod.labels.get(key) for key in self._keys(shape))
            who = (pod.namespace, labels)
        name = pod.key if shape.claims or shape.inline_csi_drivers else ""
        return (shape, who, self._owner(pod), name)

    def place(self, pod: Pod, node: str) -> None:
        """Count `pod` on `node`."""
        self._count(pod, node, held=False)

    def hold(self, pod: Pod, node: str) -> None:
        """Keep the room that will be free on `node` for `pod`."""
        self._count(pod, node, held=True)

    def end(self, node: str, keys: Collection[str]) -> None:
        """Count pods on `node` as terminating."""
        self._note(node)
        ending = [self.ledger.accounts[node].pods[key] for key in keys]
        account = self.ledger.end(node, keys)
        for pod in ending:
            self._gang_changes[pod.gang_key] += 1
        self._told.append(lambda search: search.ended(ending, account))

    def recut(self, node: str, value: Node) -> None:
        """Count a node with what its GPUs are asked to be cut into."""
        self._note(node)
        self.ledger.accounts[node] = msgspec.structs.replace(self.ledger.accounts[node], node=value)
        self._told.append(lambda search: search.outdate(node))

    def mark(self) -> int:
        """A point to which `rollback` can return."""
        return len(self._journal)

    def rollback(self, mark: int) -> None:
        """Undo everything since `mark`."""
        while len(self._journal) > mark:
            entry = self._journal.pop()
            before = self.ledger.accounts[entry.node]
            self.ledger.accounts[entry.node] = entry.account
            self.ledger.promised_volumes.clear()
            self.ledger.promised_volumes.update(entry.promised)
            if entry.held:
                self._release(entry.node, entry.held)
            self._changed(before, entry.account)

    def mates(self, gang: str) -> list[Pod]:
        """The pods of a gang that are placed and not terminating, by name."""
        if self._gangs is None:
            self._gangs = {}
            for account in self.ledger.accounts.values():
                for pod in account.pods.values():
                    if pod.gang is not None:
                        self._gangs.setdefault(pod.gang_key, set()).add(account.name)
        change, mates = self._mates.get(gang, (-1, []))
        if change != self._gang_changes[gang]:
            mates = [
                pod
                for node in self._gangs.get(gang, ())
                for pod in self.ledger.accounts[node].pods.values()
                if pod.gang_key == gang and not pod.terminating
            ]
            mates.sort(key=lambda pod: pod.key)
            self._mates[gang] = self._gang_changes[gang], mates
        return mates

    def gang_changes(self, gang: str) -> int:
        """A number that is another one whenever the pods of a gang have changed."""
        return self._gang_changes[gang]

    def held_from(self, pod: Pod) -> str | None:
        """A node where `pod` would fit but for the pods for which room is held there, or None."""
        question = self.question(pod)
        known, node = self._held_from.get(question, (-1, None))
        if known != self._hold_changes or (node is not None and not self._fits_without_held(pod, node)):
            node = next((node for node in self._held if self._fits_without_held(pod, node)), None)
            self._held_from[question] = self._hold_changes, node
        return node

    def held_on(self, node: str) -> frozenset[str]:
        """The pods (`namespace/name`) for which room is held on a node."""
        return frozenset(self._held.get(node, ()))

    def _fits_without_held(self, pod: Pod, node: str) -> bool:
        held = self._held.get(node, ())
        return bool(held) and self.search(pod).allows(self.ledger.accounts[node].without(held))

    def _count(self, pod: Pod, node: str, *, held: bool) -> None:
        self._note(node, held=pod.key if held else "")
        account = self.ledger.place(pod, node)
        self._note_refusals((pod,) if pod.shape.anti_affinity else ())
        if pod.gang is not None:
            self._gang_changes[pod.gang_key] += 1
            if self._gangs is not None:
                self._gangs.setdefault(pod.gang_key, set()).add(node)
        self._told.append(lambda search: search.placed(pod, account, held=held))
        if held:
            if not self._held:
                # From here on there is a difference between what is there and what is held.
                self._told.append(Search.outdate)
            self._held.setdefault(node, set()).add(pod.key)
            self._hold_changes += 1

    def _release(self, node: str, key: str) -> None:
        self._hold_changes += 1
        self._held[node].discard(key)
        if not self._held[node]:
            del self._held[node]

    def _note(self, node: str, held: str = "") -> None:
        promised = dict(self.ledger.promised_volumes)
        self._journal.append(_Entry(node, self.ledger.accounts[node], promised, held))

    def _changed(self, before: NodeAccount, after: NodeAccount) -> None:
        for pod in _differing(before, after):
            if pod.gang is not None:
                self._gang_changes[pod.gang_key] += 1
        self._told.append(lambda search: search.outdate(after.name))

    def firm(self, gang: str = "") -> Ledger:
        """The ledger without the pods for which room is only held, those of one gang excepted."""
        firm = self.ledger.fork()
        for node, held in self._held.items():
            pods = self.ledger.accounts[node].pods
            firm.remove(node, [key for key in held if not gang or pods[key].gang_key != gang])
        return firm

    def _without_held(self) -> Ledger | None:
        return self.firm() if self._held else None

    def _note_refusals(self, pods: Iterable[Pod]) -> None:
        """Whoever refuses others may tell them apart by namespace and labels, so questions must too."""
        new = {pod.shape for pod in pods} - self._refusing
        if not new:
            return
        keys = {key for shape in new for key in _label_keys(shape.anti_affinity)}
        if not self._refusing or not keys <= self._told_apart_by:
            self._own_keys.clear()
            self._searches.clear()
        self._refusing |= new
        self._told_apart_by |= keys

    def _keys(self, shape: PodShape) -> tuple[str, ...]:
        """The labels by which a pod of this shape could be told from another one."""
        keys = self._own_keys.get(shape)
        if keys is None:
            own = {*_label_keys(shape.affinity), *_label_keys(shape.anti_affinity)}
            own |= {r.key for c in shape.spread if c.selector is not None for r in c.selector.requirements}
            keys = self._own_keys[shape] = tuple(sorted(own | self._told_apart_by))
        return keys

    def _owner(self, pod: Pod) -> str:
        """The owner whose other replicas the pod is kept apart from; empty for the only one."""
        if not pod.owner or pod.owner_kind not in REPLICATED_KINDS or pod.gang is not None:
            return ""
        if self._replicas is None:
            self._replicas = Counter(other.owner for other in self.snapshot.pods() if other.owner)
        return pod.owner if self._replicas[pod.owner] > 1 else ""


def _label_keys(terms: Iterable[PodAffinityTerm]) -> Iterator[str]:
    for term in terms:
        if term.selector is not None:
            yield from (requirement.key for requirement in term.selector.requirements)


def _differing(before: NodeAccount, after: NodeAccount) -> Iterator[Pod]:
    for key, pod in after.pods.items():
        if before.pods.get(key) is not pod:
            yield pod
    for key, pod in before.pods.items():
        if key not in after.pods:
            yield pod
