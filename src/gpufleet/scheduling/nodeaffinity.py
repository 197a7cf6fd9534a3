"""Which nodes a pod names: nodeSelector, required and preferred node affinity.

Terms of a required affinity are alternatives; a node is out when each of them fails, and the block then says
what failed in each, because that is what its author must change.
Source: k8s.io/component-helpers/scheduling/corev1/nodeaffinity.
"""

from __future__ import annotations

from collections.abc import Callable

from gpufleet.fleet.nodes import Node
from gpufleet.fleet.pods import Pod, PodShape
from gpufleet.fleet.selectors import NodeSelectorTerm, Requirement
from gpufleet.scheduling.ledger import Ledger, NodeAccount
from gpufleet.scheduling.placement import Block, Check, Measure


def selects(shape: PodShape) -> Callable[[Node], bool]:
    """Whether a node matches the shape's nodeSelector and required node affinity."""
    pairs = shape.node_selector
    affinity = shape.node_affinity

    def selected(node: Node) -> bool:
        labels = node.labels
        for key, value in pairs:
            if labels.get(key) != value:
                return False
        return affinity is None or affinity.matches(node.name, labels)

    return selected


def prepare_node_selector(pod: Pod, ledger: Ledger) -> Check | None:
    """The nodeSelector: every label must have the value that the pod names."""
    blocks = [
        (key, value, Block("NodeSelectorMismatch", f"label {key} is not {value}"))
        for key, value in pod.shape.node_selector
    ]
    if not blocks:
        return None

    def check(account: NodeAccount) -> Block | None:
        labels = account.node.labels
        for key, value, block in blocks:
            if labels.get(key) != value:
                return block
        return None

    return check


def prepare_required(pod: Pod, ledger: Ledger) -> Check | None:
    """The required node affinity: one of its terms must match."""
    affinity = pod.shape.node_affinity
    if affinity is None:
        return None
    terms = [_conditions(term) for term in affinity.terms]
    blocks: dict[tuple[str, ...], Block] = {}

    def check(account: NodeAccount) -> Block | None:
        failures = []
        for conditions in terms:
            failure = _first_failure(conditions, account.node)
            if not failure:
                return None
            failures.append(failure)
        key = tuple(failures)
        block = blocks.get(key)
        if block is None:
            detail = ", and ".join(dict.fromkeys(failures)) or "the affinity names no node"
            block = blocks[key] = Block("NodeAffinityMismatch", detail)
        return block

    return check


def prepare_preferred(pod: Pod, ledger: Ledger) -> Measure | None:
    """Preferred node affinity: the weight of the terms that match, as a share of all weights."""
    terms = [(p.weight, p.term) for p in pod.shape.preferred_nodes if p.weight > 0]
    total = sum(weight for weight, _ in terms)
    if not total:
        return None

    def measure(account: NodeAccount) -> int:
        node = account.node
        won = 0
        for weight, term in terms:
            if term.matches(node.name, node.labels):
                won += weight
        return 100 * won // total

    return measure


_Condition = tuple[Requirement, bool, str]
"""A requirement, whether it is about fields, and what to say when it fails."""


def _conditions(term: NodeSelectorTerm) -> tuple[_Condition, ...]:
    return (
        *((r, False, _failure(f"label {r.key}", r)) for r in term.expressions),
        *((r, True, _failure("the node's name", r)) for r in term.fields),
    )


def _first_failure(conditions: tuple[_Condition, ...], node: Node) -> str:
    if not conditions:
        return "an empty term matches no node"
    labels = node.labels
    for requirement, of_fields, failure in conditions:
        if not requirement.matches({"metadata.name": node.name} if of_fields else labels):
            return failure
    return ""


def _failure(subject: str, requirement: Requirement) -> str:
    values = ", ".join(requirement.values)
    several = len(requirement.values) > 1
    match requirement.operator:
        case "In":
            return f"{subject} is not one of {values}" if several else f"{subject} is not {values}"
        case "NotIn":
            return f"{subject} is one of {values}" if several else f"{subject} is {values}"
        case "Exists":
            return f"{subject} is missing"
        case "DoesNotExist":
            return f"{subject} is set"
        case "Gt":
            return f"{subject} is not above {values}"
        case "Lt":
            return f"{subject} is not below {values}"
        case operator:
            return f"{subject} is asked for by the unknown operator {operator}"
