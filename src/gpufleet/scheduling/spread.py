"""Topology spread: how evenly the pods that a selector matches lie over the domains of a node label.

A hard constraint (DoNotSchedule) lets a pod into a domain while `pods there + the pod itself - the fewest
anywhere` stays within maxSkew. A soft one (ScheduleAnyway) prefers domains with fewer pods. Both count the
pods of the pod's own namespace that are not ending, on nodes that carry the topology keys of all constraints
of their kind and that the constraint's node policies admit. As in kube-scheduler, a selector without
requirements counts no pods: such a constraint never blocks.
Source: k8s.io/kubernetes 1.37 pkg/scheduler/framework/plugins/podtopologyspread. Other than there, a soft
constraint is scaled between its fewest and its most pods over the whole fleet, so that a score does not
depend on other filters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from gpufleet.fleet.nodes import Node
from gpufleet.fleet.pods import Pod, SpreadConstraint
from gpufleet.fleet.selectors import LabelSelector, untolerated
from gpufleet.scheduling.domains import Domains, LabelTest, label_test
from gpufleet.scheduling.ledger import Ledger, NodeAccount
from gpufleet.scheduling.nodeaffinity import selects
from gpufleet.scheduling.placement import Block, Prepared, PreparedScore


class _Count:
    """The pods that one constraint counts, by domain, and the nodes on which it counts them."""

    __slots__ = ("admitted", "counted", "domains", "selected")

    def __init__(self, constraint: SpreadConstraint, accounts: Iterable[NodeAccount], pod: Pod) -> None:
        self.selected = label_test(constraint.selector)
        self.counted: LabelTest = label_test(_never_empty(constraint.selector))
        self.admitted: set[str] = set()
        key = constraint.topology_key
        counts: dict[str, int] = {}
        for account in accounts:
            self.admitted.add(account.name)
            domain = account.node.labels[key]
            counts[domain] = counts.get(domain, 0) + _matching(account, pod.namespace, self.counted)
        self.domains = Domains(key, counts)

    def add(self, pod: Pod, account: NodeAccount) -> None:
        """Count a pod of the right namespace that was placed on a node."""
        if self._counts(pod, account):
            self.domains.add(account.node.labels[self.domains.key])

    def remove(self, pod: Pod, account: NodeAccount) -> None:
        """Count a pod of the right namespace no more that was not ending until now."""
        if self._counts(pod, account):
            self.domains.remove(account.node.labels[self.domains.key])

    def _counts(self, pod: Pod, account: NodeAccount) -> bool:
        return account.name in self.admitted and not pod.terminating and self.counted(pod.labels)


def prepare_hard(pod: Pod, ledger: Ledger) -> Prepared | None:
    """The filter of the constraints that say DoNotSchedule."""
    constraints = [constraint for constraint in pod.shape.spread if constraint.hard]
    return HardSpread(pod, constraints, ledger) if constraints else None


def prepare_soft(pod: Pod, ledger: Ledger) -> PreparedScore | None:
    """The score of the constraints that say ScheduleAnyway."""
    constraints = [constraint for constraint in pod.shape.spread if not constraint.hard]
    return SoftSpread(pod, constraints, ledger) if constraints else None


class HardSpread:
    """The hard constraints of one pod, prepared against one ledger."""

    __slots__ = ("_namespace", "_rules")

    def __init__(self, pod: Pod, constraints: Sequence[SpreadConstraint], ledger: Ledger) -> None:
        self._namespace = pod.namespace
        self._rules = [
            _Rule(constraint, count, pod)
            for constraint, count in zip(constraints, _counts(pod, constraints, ledger), strict=True)
        ]

    def __call__(self, account: NodeAccount) -> Block | None:
        """Why the pod cannot join the node's domains, or None."""
        labels = account.node.labels
        for rule in self._rules:
            domain = labels.get(rule.key)
            if domain is None:
                return rule.no_domain
            if rule.counts.get(domain, 0) > rule.most:
                return rule.too_many
        return None

    def placed(self, pod: Pod, account: NodeAccount) -> None:
        """Count a pod that was placed."""
        if pod.namespace == self._namespace:
            for rule in self._rules:
                rule.add(pod, account)

    def ended(self, pod: Pod, account: NodeAccount) -> None:
        """Count a pod no more that is ending from now on."""
        if pod.namespace == self._namespace:
            for rule in self._rules:
                rule.remove(pod, account)


class _Rule:
    """One hard constraint: a domain may hold at most `most` matching pods before this pod joins it."""

    __slots__ = ("_constraint", "_count", "_itself", "counts", "key", "most", "no_domain", "too_many")

    def __init__(self, constraint: SpreadConstraint, count: _Count, pod: Pod) -> None:
        self._constraint = constraint
        self._count = count
        self._itself = 1 if count.selected(pod.labels) else 0
        self.key = constraint.topology_key
        self.counts = count.domains.counts
        self.no_domain = Block("TopologySpreadExceeded", f"label {self.key} is missing")
        self.too_many = Block(
            "TopologySpreadExceeded",
            f"spread over {self.key} would differ by more than {constraint.max_skew}",
        )
        self.most = self._most()

    def add(self, pod: Pod, account: NodeAccount) -> None:
        self._count.add(pod, account)
        self.most = self._most()

    def remove(self, pod: Pod, account: NodeAccount) -> None:
        self._count.remove(pod, account)
        self.most = self._most()

    def _most(self) -> int:
        enough_domains = len(self.counts) >= self._constraint.min_domains
        fewest = self._count.domains.lowest if enough_domains else 0
        return self._constraint.max_skew + fewest - self._itself


class SoftSpread:
    """The soft constraints of one pod, prepared against one ledger."""

    __slots__ = ("_counts", "_namespace")

    def __init__(self, pod: Pod, constraints: Sequence[SpreadConstraint], ledger: Ledger) -> None:
        self._namespace = pod.namespace
        self._counts = _counts(pod, constraints, ledger)

    def __call__(self, account: NodeAccount) -> int:
        """100 where every domain has the fewest pods, 0 where each has the most or the node is in none."""
        labels = account.node.labels
        score = 0
        for count in self._counts:
            domains = count.domains
            domain = labels.get(domains.key)
            if domain is None:
                return 0
            span = domains.highest - domains.lowest
            if span:
                pods = domains.counts.get(domain, domains.highest)
                score += 100 * (domains.highest - pods) // span
        return score // len(self._counts)

    def placed(self, pod: Pod, account: NodeAccount) -> None:
        """Count a pod that was placed."""
        if pod.namespace == self._namespace:
            for count in self._counts:
                count.add(pod, account)

    def ended(self, pod: Pod, account: NodeAccount) -> None:
        """Count a pod no more that is ending from now on."""
        if pod.namespace == self._namespace:
            for count in self._counts:
                count.remove(pod, account)


def _counts(pod: Pod, constraints: Sequence[SpreadConstraint], ledger: Ledger) -> list[_Count]:
    keys = {constraint.topology_key for constraint in constraints}
    keyed = [account for account in ledger.accounts.values() if keys <= account.node.labels.keys()]
    selected = selects(pod.shape)
    return [
        _Count(constraint, [a for a in keyed if _admits(constraint, pod, selected, a.node)], pod)
        for constraint in constraints
    ]


def _admits(constraint: SpreadConstraint, pod: Pod, selected: Callable[[Node], bool], node: Node) -> bool:
    if constraint.node_affinity_policy == "Honor" and not selected(node):
        return False
    return constraint.node_taints_policy != "Honor" or untolerated(node.taints, pod.shape.tolerations) is None


def _matching(account: NodeAccount, namespace: str, counted: LabelTest) -> int:
    return sum(
        1
        for pod in account.pods.values()
        if pod.namespace == namespace and not pod.terminating and counted(pod.labels)
    )


def _never_empty(selector: LabelSelector | None) -> LabelSelector | None:
    return selector if selector is not None and selector.requirements else None
