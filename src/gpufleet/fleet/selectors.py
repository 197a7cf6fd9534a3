"""Label selectors, node selectors, taints and tolerations, with the semantics of Kubernetes.

A `LabelSelector` is the conjunction of its requirements; without requirements it matches everything, and
where Kubernetes says that an absent selector matches nothing, the absence is None and the caller's to handle.
A `NodeSelector` is the disjunction of its terms; a term without requirements matches nothing.
Source: k8s.io/apimachinery/pkg/labels, k8s.io/component-helpers/scheduling/corev1/nodeaffinity.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec

_INTEGER = re.compile("[+-]?[0-9]{1,64}")


class Requirement(msgspec.Struct, frozen=True):
    """One expression over a label: `operator` is In, NotIn, Exists, DoesNotExist, Gt or Lt."""

    key: str
    operator: str
    values: tuple[str, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether labels satisfy the requirement; NotIn and DoesNotExist hold where the key is absent."""
        value = labels.get(self.key)
        match self.operator:
            case "In":
                return value is not None and value in self.values
            case "NotIn":
                return value is None or value not in self.values
            case "Exists":
                return value is not None
            case "DoesNotExist":
                return value is None
            case "Gt" | "Lt":
                return value is not None and _compares(value, self.operator, self.values[:1])
            case _:
                return False


class LabelSelector(msgspec.Struct, frozen=True):
    """A conjunction of requirements (matchLabels are In requirements with one value)."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether all requirements hold."""
        return all(requirement.matches(labels) for requirement in self.requirements)


class NodeSelectorTerm(msgspec.Struct, frozen=True):
    """Requirements over a node's labels and fields (the only field is metadata.name)."""

    expressions: tuple[Requirement, ...] = ()
    fields: tuple[Requirement, ...] = ()

    def matches(self, name: str, labels: Mapping[str, str]) -> bool:
        """Whether the term matches; an empty term never does."""
        if not self.expressions and not self.fields:
            return False
        return all(r.matches(labels) for r in self.expressions) and all(
            r.matches({"metadata.name": name}) for r in self.fields
        )


class NodeSelector(msgspec.Struct, frozen=True):
    """A disjunction of terms."""

    terms: tuple[NodeSelectorTerm, ...] = ()

    def matches(self, name: str, labels: Mapping[str, str]) -> bool:
        """Whether any term matches."""
        return any(term.matches(name, labels) for term in self.terms)


class Taint(msgspec.Struct, frozen=True):
    """A taint; `effect` is NoSchedule, PreferNoSchedule or NoExecute."""

    key: str
    effect: str
    value: str = ""

    def __str__(self) -> str:
        return f"{self.key}={self.value}:{self.effect}" if self.value else f"{self.key}:{self.effect}"


class Toleration(msgspec.Struct, frozen=True):
    """A toleration; an empty key with Exists tolerates every taint, an empty effect every effect."""

    key: str = ""
    operator: str = "Equal"
    value: str = ""
    effect: str = ""

    def tolerates(self, taint: Taint) -> bool:
        """Whether this toleration covers the taint."""
        if self.effect and self.effect != taint.effect:
            return False
        if self.key and self.key != taint.key:
            return False
        match self.operator or "Equal":
            case "Exists":
                return True
            case "Equal":
                return bool(self.key) and self.value == taint.value
            case "Gt" | "Lt":
                return bool(self.key) and _compares(taint.value, self.operator, (self.value,))
            case _:
                return False


def untolerated(
    taints: Sequence[Taint],
    tolerations: Sequence[Toleration],
    effects: Sequence[str] = ("NoSchedule", "NoExecute"),
) -> Taint | None:
    """The first taint with one of `effects` that no toleration covers, or None."""
    for taint in taints:
        if taint.effect in effects and not any(t.tolerates(taint) for t in tolerations):
            return taint
    return None


def _compares(text: str, operator: str, limits: Sequence[str]) -> bool:
    """Gt or Lt of two decimal integers of 64 bits; False where one of them is not such a number."""
    numbers = [int(number) for number in (text, *limits) if _INTEGER.fullmatch(number)]
    if len(numbers) != 2 or not all(-(2**63) <= number < 2**63 for number in numbers):
        return False
    return numbers[0] > numbers[1] if operator == "Gt" else numbers[0] < numbers[1]
