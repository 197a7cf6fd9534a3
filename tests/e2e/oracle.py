"""Where a pod can run, worked out anew from the rules of Kubernetes: a judge for the reasons that we give.

Plain and slow, on manifests as they are, for one pod and one node at a time. It knows selectors, required
node affinity, taints, what a node offers, and whether claims exist; what it does not know (other pods,
volumes, spread) it does not judge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tests.e2e.invariants import amounts_of, requests_of

Object = Mapping[str, Any]


def blocks(pod: Object, node: Object) -> set[str]:
    """The codes of everything that keeps the pod off the node even if no other pod ran there."""
    spec, labels = pod["spec"], node["metadata"]["labels"]
    found = set()
    if any(labels.get(key) != value for key, value in spec.get("nodeSelector", {}).items()):
        found.add("NodeSelectorMismatch")
    if not _affinity_allows(spec, labels, node["metadata"]["name"]):
        found.add("NodeAffinityMismatch")
    if any(not _tolerated(taint, spec.get("tolerations", [])) for taint in _hard_taints(node)):
        found.add("UntoleratedTaint")
    offered = amounts_of(node)
    for resource, amount in requests_of(pod).items():
        if resource not in offered:
            found.add("ResourceNotOffered")
        elif amount > offered[resource]:
            found.add("ExceedsNodeCapacity")
    return found


def missing_claims(pod: Object, claims: Sequence[Object]) -> list[str]:
    """The names of the PersistentVolumeClaims that the pod names and that are not there."""
    namespace = pod["metadata"]["namespace"]
    there = {c["metadata"]["name"] for c in claims if c["metadata"]["namespace"] == namespace}
    named = [volume["persistentVolumeClaim"]["claimName"] for volume in pod["spec"].get("volumes", [])
             if "persistentVolumeClaim" in volume]  # fmt: skip
    return [name for name in named if name not in there]


def _hard_taints(node: Object) -> list[Object]:
    return [one for one in node["spec"].get("taints", []) if one["effect"] != "PreferNoSchedule"]


def _tolerated(taint: Object, tolerations: Sequence[Object]) -> bool:
    return any(
        one.get("key", taint["key"]) == taint["key"]
        and one.get("effect", taint["effect"]) == taint["effect"]
        and (one.get("operator") == "Exists" or one.get("value", "") == taint.get("value", ""))
        for one in tolerations
    )


def _affinity_allows(spec: Object, labels: Mapping[str, str], name: str) -> bool:
    required = (
        spec.get("affinity", {}).get("nodeAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution")
    )
    if required is None:
        return True
    return any(
        all(_holds(one, labels.get(one["key"])) for one in term.get("matchExpressions", []))
        and all(_holds(one, name) for one in term.get("matchFields", []))
        for term in required["nodeSelectorTerms"]
    )


def _holds(expression: Object, value: str | None) -> bool:
    values = expression.get("values", [])
    match expression["operator"]:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt":
            return value is not None and int(value) > int(values[0])
        case _:
            return value is not None and int(value) < int(values[0])
