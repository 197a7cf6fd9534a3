"""Pod affinity: which pods want each other in one topology domain, and which refuse each other.

Required affinity holds in a domain where one pod matches all terms at once, for every term in that term's own
domain. When no pod anywhere does, the pod may be the first of its group: it then fits wherever the labels
exist, if it matches its own terms. Required anti-affinity works in both directions: the pod's own terms
against the pods there, and the terms of the pods there against it. Terminating pods count until they are
gone. Preferred terms raise or lower a node by the pods that match in its domain; the preferred terms of other
pods towards this one are not considered (kube-scheduler does), because they would make every score depend on
the whole fleet.
Source: k8s.io/kubernetes 1.37 pkg/scheduler/framework/plugins/interpodaffinity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from gpufleet.fleet.pods import Pod, PodAffinityTerm, PodShape
from gpufleet.scheduling.domains import Domains, label_test
from gpufleet.scheduling.ledger import Ledger, NodeAccount
from gpufleet.scheduling.placement import Block, Prepared, PreparedScore

PodTest = Callable[[Pod], bool]
Namespaces = Mapping[str, Mapping[str, str]]


def prepare_required(pod: Pod, ledger: Ledger) -> Prepared | None:
    """The filter of required affinity and anti-affinity; None while neither side has any about the other."""
    shape = pod.shape
    if shape.affinity or shape.anti_affinity or _is_refused(pod, ledger):
        return RequiredAffinity(pod, ledger)
    return None


def prepare_preferred(pod: Pod, ledger: Ledger) -> PreparedScore | None:
    """The score of the pod's own preferred terms."""
    return PreferredAffinity(pod, ledger) if any(t.weight for t in pod.shape.preferred_pods) else None


def term_test(term: PodAffinityTerm, namespaces: Namespaces) -> PodTest:
    """Whether a pod is one that the term means."""
    selected = label_test(term.selector)
    named = frozenset(term.namespaces)
    wanted = term.namespace_selector

    if wanted is None:
        return lambda pod: pod.namespace in named and selected(pod.labels)
    matching = named | {name for name, labels in namespaces.items() if wanted.matches(labels)}
    everywhere = not wanted.requirements
    return lambda pod: (everywhere or pod.namespace in matching) and selected(pod.labels)


def refuses(shape: PodShape, pod: Pod, namespaces: Namespaces) -> bool:
    """Whether pods of a shape refuse the pod in some topology domain."""
    return any(term_test(term, namespaces)(pod) for term in shape.anti_affinity)


def _is_refused(pod: Pod, ledger: Ledger) -> bool:
    shapes = {other.shape for account in ledger.accounts.values() for other in account.anti_affine}
    return any(refuses(shape, pod, ledger.snapshot.namespaces) for shape in shapes)


def all_terms_test(terms: Sequence[PodAffinityTerm], namespaces: Namespaces) -> PodTest:
    """Whether one pod is what every one of the terms means."""
    tests = [term_test(term, namespaces) for term in terms]
    return tests[0] if len(tests) == 1 else lambda pod: all(meant(pod) for meant in tests)


class RequiredAffinity:
    """Required affinity and anti-affinity around one pod, prepared against one ledger.

    Domains are kept as sets of label values: where matching pods are, and where the pod may not go. Both only
    grow while pods are placed.
    """

    __slots__ = (
        "_avoided",
        "_avoids",
        "_found",
        "_is_own_group",
        "_namespaces",
        "_pod",
        "_refused",
        "_refuses",
        "_wanted",
    )

    def __init__(self, pod: Pod, ledger: Ledger) -> None:
        self._pod = pod
        self._namespaces = ledger.snapshot.namespaces
        self._wanted = all_terms_test(pod.shape.affinity, self._namespaces)
        self._avoids = [(t.topology_key, term_test(t, self._namespaces)) for t in pod.shape.anti_affinity]
        self._is_own_group = self._wanted(pod)
        self._found: dict[str, set[str]] = {term.topology_key: set() for term in pod.shape.affinity}
        self._avoided: dict[str, set[str]] = {key: set() for key, _ in self._avoids}
        self._refused: dict[str, set[str]] = {}
        self._refuses: dict[PodShape, tuple[str, ...]] = {}
        looks_at_all = bool(self._found or self._avoids)
        for account in ledger.accounts.values():
            labels = account.node.labels
            for other in account.pods.values() if looks_at_all else account.anti_affine:
                self._count(other, labels)

    def __call__(self, account: NodeAccount) -> Block | None:
        """Why the pod may not join the node's domains, or None."""
        labels = account.node.labels
        if self._found:
            block = self._unmatched(labels)
            if block is not None:
                return block
        for key, values in self._avoided.items():
            if labels.get(key) in values:
                return Block("PodAntiAffinityConflict", f"a pod that it avoids is in the same {key}")
        for key, values in self._refused.items():
            if labels.get(key) in values:
                return Block("PodAntiAffinityConflict", f"a pod in the same {key} refuses it")
        return None

    def placed(self, pod: Pod, account: NodeAccount) -> None:
        """Take a pod into account that was placed."""
        self._count(pod, account.node.labels)

    def _unmatched(self, labels: Mapping[str, str]) -> Block | None:
        missing = ""
        for key, values in self._found.items():
            value = labels.get(key)
            if value is None:
                return Block("PodAffinityUnmatched", f"label {key} is missing")
            if value not in values:
                missing = missing or key
        if missing and not (self._is_own_group and not any(self._found.values())):
            return Block("PodAffinityUnmatched", f"no pod that it needs is in the same {missing}")
        return None

    def _count(self, other: Pod, labels: Mapping[str, str]) -> None:
        if self._found and self._wanted(other):
            _add(self._found, self._found, labels)
        for key, meant in self._avoids:
            if meant(other):
                _add(self._avoided, (key,), labels)
        if other.shape.anti_affinity:
            keys = self._keys_refusing(other.shape)
            _add(self._refused, keys, labels)

    def _keys_refusing(self, shape: PodShape) -> tuple[str, ...]:
        """The topology keys over which pods of a shape refuse this pod."""
        keys = self._refuses.get(shape)
        if keys is None:
            keys = self._refuses[shape] = tuple(
                term.topology_key
                for term in shape.anti_affinity
                if term_test(term, self._namespaces)(self._pod)
            )
            # Sorted, so that a node in two refused domains gets the same reason however they were found.
            known = {key: self._refused.get(key, set()) for key in (*self._refused, *keys)}
            self._refused = dict(sorted(known.items()))
        return keys


def _add(domains: dict[str, set[str]], keys: Iterable[str], labels: Mapping[str, str]) -> None:
    for key in keys:
        value = labels.get(key)
        if value is not None:
            domains[key].add(value)


class PreferredAffinity:
    """The preferred pod terms of one pod, prepared against one ledger.

    Each term is scaled between its fewest and its most pods in any domain before it is weighed, so that a
    term with many matches does not drown a heavier one with few; a term that is the same everywhere says
    nothing.
    """

    __slots__ = ("_terms", "_total")

    def __init__(self, pod: Pod, ledger: Ledger) -> None:
        accounts = ledger.accounts.values()
        self._terms = [
            (t.weight, *_count_term(t.term, accounts, ledger.snapshot.namespaces))
            for t in pod.shape.preferred_pods
            if t.weight
        ]
        self._total = sum(abs(weight) for weight, _, _ in self._terms)

    def __call__(self, account: NodeAccount) -> int:
        """100 where every liked pod is most frequent and every disliked one rarest."""
        labels = account.node.labels
        won = 0
        for weight, _, domains in self._terms:
            span = domains.highest - domains.lowest
            if span:
                pods = domains.counts[labels.get(domains.key, _NOWHERE)]
                better = pods - domains.lowest if weight > 0 else domains.highest - pods
                won += abs(weight) * 100 * better // span
        return won // self._total

    def placed(self, pod: Pod, account: NodeAccount) -> None:
        """Count a pod that was placed."""
        for _, meant, domains in self._terms:
            value = account.node.labels.get(domains.key)
            if value is not None and meant(pod):
                domains.add(value)


_NOWHERE = "(no label)"
"""Stands for the nodes without the label, which count no pods; no label value has parentheses."""


def _count_term(
    term: PodAffinityTerm, accounts: Iterable[NodeAccount], namespaces: Namespaces
) -> tuple[PodTest, Domains]:
    meant = term_test(term, namespaces)
    counts: dict[str, int] = {}
    for account in accounts:
        value = account.node.labels.get(term.topology_key)
        if value is None:
            counts[_NOWHERE] = 0
        else:
            counts[value] = counts.get(value, 0) + sum(1 for pod in account.pods.values() if meant(pod))
    return meant, Domains(term.topology_key, counts)
