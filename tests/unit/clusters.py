"""Random small clusters as Kubernetes manifests, to ask gpufleet and kube-scheduler the same question.

A cluster is a function of its focus and its seed alone, on every version of Python: everything is drawn
through `random.Random.random`, whose sequence Python guarantees. Keys are those that peers/kube_scheduler.go
reads.
"""

from __future__ import annotations

from typing import Any

from tests.unit.cluster_storage import storage
from tests.unit.draws import HOST, NAMES, ZONE, Draw, Manifest

Cluster = dict[str, Any]

FOCUSES = ("nodes", "spread", "affinity", "volumes", "everything")
"""What a cluster is mostly about; `everything` has all of it at once."""

CORDON = "node.kubernetes.io/unschedulable"
EFFECTS = ("NoSchedule", "NoExecute", "PreferNoSchedule")


def cluster(focus: str, seed: int) -> Cluster:
    """One cluster: some nodes, pods on them, one incoming pod, and storage where the focus has it."""
    draw = Draw(seed)
    about = {focus} if focus != "everything" else {"nodes", "spread", "affinity", "volumes"}
    nodes = [_node(draw, about, name) for name in NAMES[: draw.number(1, 5)]]
    pods = [_pod(draw, about, f"r{i}", draw.one_of(NAMES[: len(nodes)])) for i in range(draw.number(0, 7))]
    result: Cluster = {
        "nodes": nodes,
        "pods": pods,
        "incoming": _pod(draw, about, "new", ""),
        "namespaces": [
            {"metadata": {"name": "default", "labels": {"team": "ml"}}},
            {"metadata": {"name": "other", "labels": draw.one_of(({}, {"team": "web"}))}},
        ],
    }
    if "volumes" in about:
        result |= storage(draw, nodes)
    return result


# nodes and pods


def _node(draw: Draw, about: set[str], name: str) -> Manifest:
    labels = {HOST: name} if draw.chance(0.9) else {}
    for key, probability, values in (
        (ZONE, 0.8, ("x", "y", "z")),
        ("rack", 0.6, ("r", "s")),
        ("num", 0.4, ("3", "5", "7", "10", "abc")),
        ("pool", 0.4, ("x", "y")),
    ):
        if draw.chance(probability):
            labels[key] = draw.one_of(values)
    spec: Manifest = {}
    allocatable = {"cpu": "99", "memory": "999Gi", "pods": "110"}
    if "nodes" in about:
        allocatable = {
            "cpu": draw.one_of(("2", "4", "8")),
            "memory": draw.one_of(("2Gi", "8Gi")),
            "pods": draw.one_of(("2", "5", "110")),
        }
        for resource, probability, amounts in (
            ("nvidia.com/gpu", 0.7, ("0", "4", "8")),
            ("nvidia.com/mig-1g.10gb", 0.3, ("3",)),
            ("ephemeral-storage", 0.5, ("10Gi",)),
        ):
            if draw.chance(probability):
                allocatable[resource] = draw.one_of(amounts)
        spec["unschedulable"] = draw.chance(0.1)
    if about & {"nodes", "spread"} and draw.chance(0.3):
        spec["taints"] = [_taint(draw) for _ in range(draw.number(1, 2))]
    return {
        "metadata": {"name": name, "labels": labels},
        "spec": spec,
        "status": {"allocatable": allocatable, "conditions": [{"type": "Ready", "status": "True"}]},
    }


def _taint(draw: Draw) -> Manifest:
    taint = {"key": draw.one_of(("gpu", "spot", CORDON)), "effect": draw.one_of(EFFECTS)}
    return {**taint, "value": draw.one_of(("a", "b", "5"))} if draw.chance(0.6) else taint


def _toleration(draw: Draw) -> Manifest:
    toleration: Manifest = {"operator": draw.one_of(("Exists", "Equal", "Equal"))}
    if toleration["operator"] == "Equal" or draw.chance(0.8):
        toleration["key"] = draw.one_of(("gpu", "spot", CORDON))
    if toleration["operator"] == "Equal" and draw.chance(0.8):
        toleration["value"] = draw.one_of(("a", "b", "5"))
    if draw.chance(0.5):
        toleration["effect"] = draw.one_of(EFFECTS)
    return toleration


def _pod(draw: Draw, about: set[str], name: str, node: str) -> Manifest:
    labels = {"app": draw.one_of(("web", "db"))} if draw.chance(0.85) else {}
    if draw.chance(0.4):
        labels["tier"] = draw.one_of(("1", "2"))
    elsewhere = draw.chance(0.25) and (node or "volumes" not in about)
    namespace = "other" if elsewhere else "default"
    metadata: Manifest = {"name": name, "namespace": namespace, "uid": f"u-{name}", "labels": labels}
    spec: Manifest = {"schedulerName": "default-scheduler"}
    spec["containers"] = [_container(draw, about, f"c{i}") for i in range(draw.number(1, 2))]
    if "nodes" in about:
        spec |= _pod_details(draw, about)
    affinity: Manifest = {}
    spec["affinity"] = affinity
    if not node:
        spec |= _node_wishes(draw, about, affinity)
    if not node and "spread" in about and draw.chance(0.7):
        spec["topologySpreadConstraints"] = _spread(draw)
    for key, wanted in (("podAffinity", not node), ("podAntiAffinity", True)):
        if wanted and "affinity" in about and draw.chance(0.4):
            terms = [_pod_term(draw) for _ in range(draw.number(1, 2))]
            affinity[key] = {"requiredDuringSchedulingIgnoredDuringExecution": terms}
    if "volumes" in about and draw.chance(0.4 if node else 0.7):
        claims = draw.some_of(("c0", "c1", "c2", "c3"), 2)
        spec["volumes"] = [{"name": c, "persistentVolumeClaim": {"claimName": c}} for c in claims]
    if node:
        spec["nodeName"] = node
        if draw.chance(0.15):
            metadata |= {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["example.com/slow"]}
    return {"metadata": metadata, "spec": spec, "status": {"phase": "Running" if node else "Pending"}}


def _container(draw: Draw, about: set[str], name: str) -> Manifest:
    requests: dict[str, str] = {}
    for resource, probability, amounts, focus in (
        ("cpu", 0.6, ("0", "500m", "1", "2"), about),
        ("memory", 0.5, ("0", "1Gi", "512Mi"), about),
        ("nvidia.com/gpu", 0.4, ("0", "1", "2", "4"), {"nodes"}),
        ("nvidia.com/mig-1g.10gb", 0.15, ("1", "2"), {"nodes"}),
        ("ephemeral-storage", 0.1, ("1Gi", "5Gi"), {"nodes"}),
    ):
        if focus & about and draw.chance(probability):
            requests[resource] = draw.one_of(amounts)
    container: Manifest = {"name": name, "image": "i", "resources": {"requests": requests}}
    if "nodes" in about and draw.chance(0.3):
        port = {
            "containerPort": 80,
            "hostPort": draw.one_of((80, 81)),
            "protocol": draw.one_of(("TCP", "UDP")),
        }
        if draw.chance(0.5):
            port["hostIP"] = draw.one_of(("10.0.0.1", "10.0.0.2", "0.0.0.0"))
        container["ports"] = [port]
    return container


def _pod_details(draw: Draw, about: set[str]) -> Manifest:
    details: Manifest = {}
    if draw.chance(0.25):
        initial = [_container(draw, about, f"i{i}") for i in range(draw.number(1, 2))]
        for container in initial:
            container.pop("ports", None)
            if draw.chance(0.5):
                container["restartPolicy"] = "Always"
        details["initContainers"] = initial
    if draw.chance(0.1):
        details["overhead"] = {"cpu": "100m", "memory": "64Mi"}
    if draw.chance(0.1):
        details["resources"] = {"requests": {"cpu": "3", "memory": "2Gi"}}
    if draw.chance(0.5):
        details["tolerations"] = [_toleration(draw) for _ in range(draw.number(1, 2))]
    return details


def _node_wishes(draw: Draw, about: set[str], affinity: Manifest) -> Manifest:
    if not about & {"nodes", "spread"}:
        return {}
    if draw.chance(0.25):
        terms = [_node_term(draw) for _ in range(draw.number(1, 2))]
        required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
        affinity["nodeAffinity"] = required
    if draw.chance(0.2):
        return {"nodeSelector": {draw.one_of((ZONE, "rack", "pool")): draw.one_of(("x", "y", "r", "s"))}}
    return {}


def _node_term(draw: Draw) -> Manifest:
    term: Manifest = {}
    if draw.chance(0.85):
        term["matchExpressions"] = [_node_requirement(draw) for _ in range(draw.number(1, 2))]
    if draw.chance(0.15):
        operator = draw.one_of(("In", "NotIn"))
        field = {"key": "metadata.name", "operator": operator, "values": [draw.one_of(NAMES[:3])]}
        term["matchFields"] = [field]
    return term


def _node_requirement(draw: Draw) -> Manifest:
    requirement: Manifest = {
        "key": draw.one_of((ZONE, "rack", "num", "pool")),
        "operator": draw.one_of(("In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt")),
    }
    if requirement["operator"] in ("In", "NotIn"):
        requirement["values"] = draw.some_of(("x", "y", "r", "s", "5", "10"), 3)
    if requirement["operator"] in ("Gt", "Lt"):
        requirement["values"] = [draw.one_of(("4", "5", "10"))]
    return requirement


# topology spread and pod affinity


def _selector(draw: Draw) -> Manifest:
    kind = draw.number(0, 9)
    if kind == 0:
        return {}
    if kind < 6:
        return {"matchLabels": {"app": draw.one_of(("web", "db"))}}
    if kind < 8:
        return {"matchLabels": {"app": draw.one_of(("web", "db")), "tier": draw.one_of(("1", "2"))}}
    expression: Manifest = {
        "key": draw.one_of(("app", "tier")),
        "operator": draw.one_of(("In", "NotIn", "Exists", "DoesNotExist")),
    }
    if expression["operator"] in ("In", "NotIn"):
        expression["values"] = draw.some_of(("web", "db", "1", "2"), 2)
    return {"matchExpressions": [expression]}


def _spread(draw: Draw) -> list[Manifest]:
    constraints: list[Manifest] = []
    for key in draw.some_of((HOST, ZONE, "rack"), 3):
        hard = draw.chance(0.75)
        constraint: Manifest = {
            "maxSkew": draw.one_of((1, 1, 2)),
            "topologyKey": key,
            "whenUnsatisfiable": "DoNotSchedule" if hard else "ScheduleAnyway",
        }
        if draw.chance(0.9):
            constraint["labelSelector"] = _selector(draw)
            if draw.chance(0.2) and "tier" not in str(constraint["labelSelector"]):
                constraint["matchLabelKeys"] = ["tier"]
        if hard and draw.chance(0.3):
            constraint["minDomains"] = draw.number(1, 3)
        for policy in ("nodeAffinityPolicy", "nodeTaintsPolicy"):
            if draw.chance(0.4):
                constraint[policy] = draw.one_of(("Honor", "Ignore"))
        constraints.append(constraint)
    return constraints


def _pod_term(draw: Draw) -> Manifest:
    term: Manifest = {"topologyKey": draw.one_of((HOST, ZONE, "rack"))}
    if draw.chance(0.95):
        term["labelSelector"] = _selector(draw)
    if draw.chance(0.3):
        term["namespaces"] = draw.some_of(("default", "other"), 2)
    if draw.chance(0.25):
        absent = {"matchExpressions": [{"key": "team", "operator": "DoesNotExist"}]}
        term["namespaceSelector"] = draw.one_of(
            ({}, {"matchLabels": {"team": "ml"}}, {"matchLabels": {"team": "web"}}, absent)
        )
    return term
