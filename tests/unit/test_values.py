"""From manifests of pods, nodes and budgets as people write them to the values that decisions read."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from tests.unit.fleets import HOST, ZONE, equal, selector

from gpufleet.fleet.nodes import Node
from gpufleet.fleet.pods import (
    GangRef,
    HostPort,
    Pod,
    PodAffinityTerm,
    PodShape,
    PreferredNodes,
    SpreadConstraint,
    WeightedPodAffinityTerm,
)
from gpufleet.fleet.selectors import (
    LabelSelector,
    NodeSelector,
    NodeSelectorTerm,
    Requirement,
    Taint,
    Toleration,
)
from gpufleet.fleet.snapshot import DisruptionBudget
from gpufleet.kube import objects
from gpufleet.kube.conventions.labels import gang_of
from gpufleet.kube.gpunode import GPUNode
from gpufleet.kube.values import budget_value, node_value, pod_value


def pod(spec: dict[str, Any] | None = None, **parts: Any) -> Pod:
    metadata = {"name": "p", "namespace": "team", "uid": "u", **parts.pop("metadata", {})}
    body = {"metadata": metadata, "spec": {"containers": [{"name": "c"}], **(spec or {})}, **parts}
    return pod_value(msgspec.convert(body, objects.Pod))


def shape(spec: dict[str, Any], **parts: Any) -> PodShape:
    return pod(spec, **parts).shape


# who a pod is


def test_a_plain_pod() -> None:
    assert pod() == Pod("team", "p", "u", PodShape(), scheduler="")


def test_identity_state_and_order() -> None:
    found = pod(
        {
            "schedulerName": "gpufleet",
            "nodeName": "a",
            "priority": 7,
            "preemptionPolicy": "Never",
            "schedulingGates": [{"name": "one"}, {"name": "two"}],
        },
        metadata={
            "creationTimestamp": "1970-01-01T00:00:10Z",
            "deletionTimestamp": "1970-01-01T00:01:00Z",
            "labels": {"app": "web"},
            "ownerReferences": [
                {"apiVersion": "v1", "kind": "Other", "name": "o", "uid": "u0"},
                {"apiVersion": "v1", "kind": "ReplicaSet", "name": "web", "uid": "u1", "controller": True},
            ],
        },
        status={"phase": "Running", "nominatedNodeName": "b"},
    )
    assert (found.key, found.created, found.priority, found.scheduler) == ("team/p", 10.0, 7, "gpufleet")
    assert (found.node, found.nominated_node, found.phase) == ("a", "b", "Running")
    assert (found.terminating, found.gates, found.preempts) == (True, ("one", "two"), False)
    assert (found.owner, found.owner_kind, found.owner_name) == ("u1", "ReplicaSet", "web")
    assert found.labels == {"app": "web"}


def test_pods_of_one_template_share_one_shape() -> None:
    spec = {"nodeSelector": {"a": "b"}}
    assert pod(spec).shape is pod(spec, metadata={"name": "other"}).shape


@pytest.mark.parametrize(
    ("labels", "annotations", "minimum", "says"),
    [
        ({"gang": "g", "gang-size": "4"}, {}, 4, ""),
        ({}, {"gang": "g", "gang-size": "4"}, 4, ""),
        ({"gang": "g", "gang-size": "2"}, {"gang": "other", "gang-size": "9"}, 2, ""),
        ({"gang": "g"}, {"gang-size": "3"}, 3, ""),
        ({"gang": "g"}, {}, None, "gang-size is missing"),
        ({"gang": "g", "gang-size": "0"}, {}, None, "a whole number from 1 to 999999, not '0'"),
        ({"gang": "g", "gang-size": "two"}, {}, None, "a whole number from 1 to 999999, not 'two'"),
        ({"gang": "g", "gang-size": "-1"}, {}, None, "a whole number from 1 to 999999, not '-1'"),
        ({"gang": "g", "gang-size": "1000000"}, {}, None, "a whole number from 1 to 999999, not '1000000'"),
        ({"gang": "g"}, {"gang-size": "9" * 5000}, None, "a whole number from 1 to 999999, not '9999999999"),
        ({"gang": "g"}, {"gang-size": "two" * 5000}, None, "..."),
    ],
)
def test_a_gang_by_labels_or_annotations(
    labels: dict[str, str], annotations: dict[str, str], minimum: int | None, says: str
) -> None:
    def named(pairs: dict[str, str]) -> dict[str, str]:
        return {f"gpufleet.dev/{key}": value for key, value in pairs.items()}

    found = gang_of(objects.ObjectMeta(labels=named(labels), annotations=named(annotations)))
    assert found is not None
    assert (found.name, found.minimum) == ("g", minimum)
    assert says in found.problem
    assert bool(says) == bool(found.problem)


@pytest.mark.parametrize("labels", [{}, {"gpufleet.dev/gang": ""}])
def test_a_size_without_a_gang_is_a_slip_and_no_name_is_no_gang(labels: dict[str, str]) -> None:
    assert gang_of(objects.ObjectMeta(labels=labels)) is None
    found = gang_of(objects.ObjectMeta(labels={**labels, "gpufleet.dev/gang-size": "3"}))
    assert found is not None
    assert (found.name, found.minimum) == ("", None)
    assert found.problem == "gpufleet.dev/gang-size is '3' and gpufleet.dev/gang names no gang"


def test_a_gang_is_of_its_namespace() -> None:
    member = pod(metadata={"labels": {"gpufleet.dev/gang": "g", "gpufleet.dev/gang-size": "3"}})
    assert member.gang == GangRef("g", 3, "gpufleet.dev labels")
    assert member.gang_key == "team/g"


# where it may run


def test_nodes_that_a_pod_names() -> None:
    found = shape(
        {
            "nodeSelector": {"b": "2", "a": "1"},
            "affinity": {
                "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {
                        "nodeSelectorTerms": [
                            {
                                "matchExpressions": [{"key": ZONE, "operator": "In", "values": ["x", "y"]}],
                                "matchFields": [
                                    {"key": "metadata.name", "operator": "NotIn", "values": ["n"]}
                                ],
                            }
                        ]
                    },
                    "preferredDuringSchedulingIgnoredDuringExecution": [
                        {
                            "weight": 5,
                            "preference": {"matchExpressions": [{"key": "ssd", "operator": "Exists"}]},
                        }
                    ],
                }
            },
        }
    )
    assert found.node_selector == (("a", "1"), ("b", "2"))
    required = NodeSelectorTerm((equal(ZONE, "x", "y"),), (Requirement("metadata.name", "NotIn", ("n",)),))
    assert found.node_affinity == NodeSelector((required,))
    ssd = NodeSelectorTerm((Requirement("ssd", "Exists"),))
    assert found.preferred_nodes == (PreferredNodes(5, ssd),)


def test_tolerations() -> None:
    found = shape(
        {
            "tolerations": [
                {"key": "a", "operator": "Exists"},
                {"key": "b", "value": "c", "effect": "NoSchedule"},
            ]
        }
    )
    assert found.tolerations == (Toleration("a", "Exists"), Toleration("b", "", "c", "NoSchedule"))
    assert found.tolerations[1].tolerates(Taint("b", "NoSchedule", "c"))


def term(**more: Any) -> dict[str, Any]:
    return {"topologyKey": HOST, "labelSelector": {"matchLabels": {"app": "db"}}, **more}


def test_pods_that_a_pod_wants_near_or_far() -> None:
    required, preferred = (f"{w}DuringSchedulingIgnoredDuringExecution" for w in ("required", "preferred"))
    weighted = [{"weight": 3, "podAffinityTerm": term()}]
    found = shape(
        {
            "affinity": {
                "podAffinity": {required: [term()], preferred: weighted},
                "podAntiAffinity": {required: [term(topologyKey=ZONE)], preferred: weighted},
            }
        }
    )
    mine = PodAffinityTerm(HOST, selector(app="db"), ("team",))
    assert found.affinity == (mine,)
    assert found.anti_affinity == (PodAffinityTerm(ZONE, selector(app="db"), ("team",)),)
    assert found.preferred_pods == (WeightedPodAffinityTerm(3, mine), WeightedPodAffinityTerm(-3, mine))


@pytest.mark.parametrize(
    ("more", "namespaces", "others"),
    [
        ({}, ("team",), None),
        ({"namespaces": ["x", "y"]}, ("x", "y"), None),
        ({"namespaceSelector": {}}, (), LabelSelector()),
        ({"namespaceSelector": {"matchLabels": {"a": "b"}}}, (), selector(a="b")),
        ({"namespaces": ["x"], "namespaceSelector": {"matchLabels": {"a": "b"}}}, ("x",), selector(a="b")),
    ],
)
def test_the_namespaces_of_a_term(
    more: Any, namespaces: tuple[str, ...], others: LabelSelector | None
) -> None:
    required = {"requiredDuringSchedulingIgnoredDuringExecution": [term(**more)]}
    (found,) = shape({"affinity": {"podAffinity": required}}).affinity
    assert (found.namespaces, found.namespace_selector) == (namespaces, others)


def test_an_absent_selector_matches_nothing_and_an_empty_one_everything() -> None:
    terms = [{"topologyKey": HOST}, {"topologyKey": HOST, "labelSelector": {}}]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": terms}
    absent, empty = shape({"affinity": {"podAffinity": required}}).affinity
    assert absent.selector is None
    assert empty.selector == LabelSelector()


def test_topology_spread() -> None:
    constraint = {
        "maxSkew": 2,
        "topologyKey": ZONE,
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "web"}},
        "minDomains": 3,
        "nodeAffinityPolicy": "Ignore",
        "nodeTaintsPolicy": "Honor",
    }
    (hard,) = shape({"topologySpreadConstraints": [constraint]}).spread
    assert hard == SpreadConstraint(2, ZONE, True, selector(app="web"), 3, "Ignore", "Honor")
    soft = {"maxSkew": 1, "topologyKey": ZONE, "whenUnsatisfiable": "ScheduleAnyway"}
    assert shape({"topologySpreadConstraints": [soft]}).spread == (SpreadConstraint(1, ZONE, False, None),)


def test_label_keys_of_a_spread_take_the_pods_own_values_once() -> None:
    def constraint(labels: dict[str, str]) -> dict[str, Any]:
        return {
            "maxSkew": 1,
            "topologyKey": ZONE,
            "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": labels},
            "matchLabelKeys": ["hash", "absent"],
        }

    labelled = {"metadata": {"labels": {"app": "web", "hash": "1"}}}
    (plain,) = shape({"topologySpreadConstraints": [constraint({"app": "web"})]}, **labelled).spread
    merged_by_server = constraint({"app": "web", "hash": "1"})
    (merged,) = shape({"topologySpreadConstraints": [merged_by_server]}, **labelled).spread
    assert plain.selector == selector(app="web", hash="1") == merged.selector


def test_host_ports_of_containers_and_sidecars() -> None:
    def ports(*numbers: int) -> list[dict[str, Any]]:
        return [{"containerPort": 1, "hostPort": n} for n in numbers]

    found = shape(
        {
            "containers": [
                {"name": "c", "ports": [{"containerPort": 80}, *ports(8080)]},
                {
                    "name": "d",
                    "ports": [{"containerPort": 1, "hostPort": 53, "protocol": "UDP", "hostIP": "1.2.3.4"}],
                },
            ],
            "initContainers": [
                {"name": "i", "ports": ports(1111)},
                {"name": "s", "ports": ports(9090), "restartPolicy": "Always"},
            ],
        }
    )
    assert found.host_ports == (HostPort(8080), HostPort(53, "UDP", "1.2.3.4"), HostPort(9090))


def test_claims_and_volumes() -> None:
    found = shape(
        {
            "volumes": [
                {"name": "a", "persistentVolumeClaim": {"claimName": "data"}},
                {"name": "b", "persistentVolumeClaim": {"claimName": "data"}},
                {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}},
                {"name": "c", "csi": {"driver": "secrets.example.com"}},
                {"name": "d", "emptyDir": {}},
            ],
            "resourceClaims": [{"name": "gpu", "resourceClaimName": "x"}],
        }
    )
    assert found.claims == ("data", "p-scratch")
    assert found.inline_csi_drivers == ("secrets.example.com",)
    assert found.resource_claims


# nodes and budgets


def test_a_node() -> None:
    body = {
        "metadata": {"name": "a", "labels": {"x": "y"}},
        "spec": {
            "unschedulable": True,
            "taints": [
                {"key": "k", "effect": "NoSchedule", "value": "v"},
                {"key": "j", "effect": "NoExecute"},
            ],
        },
        "status": {
            "capacity": {"cpu": "2", "memory": "2Gi", "nvidia.com/gpu": "9", "pods": "110"},
            "allocatable": {"cpu": "1500m", "memory": "1Gi", "nvidia.com/gpu": "8", "pods": "110"},
            "conditions": [{"type": "DiskPressure", "status": "True"}, {"type": "Ready", "status": "True"}],
        },
    }
    raw = msgspec.convert(body, objects.Node)
    allocatable = {"cpu": 1500, "memory": 1 << 30, "nvidia.com/gpu": 8, "pods": 110}
    taints = (Taint("k", "NoSchedule", "v"), Taint("j", "NoExecute"))
    assert node_value(raw) == Node(
        "a", {"x": "y"}, allocatable, taints, True, True, unhealthy={"nvidia.com/gpu": 1}
    )
    status = {"resources": [{"name": "nvidia.com/gpu", "capacity": 8, "healthy": 7}]}
    devices = msgspec.convert({"metadata": {"name": "a"}, "status": status}, GPUNode)
    known = node_value(raw, devices)
    assert known.allocatable == {**allocatable, "nvidia.com/gpu": 7}
    assert known.unhealthy == {"nvidia.com/gpu": 1}, "the agent knows better than the kubelet"
    silent = msgspec.convert({"metadata": {"name": "a"}}, GPUNode)
    assert node_value(raw, silent) == node_value(raw)


@pytest.mark.parametrize("conditions", [[], [{"type": "Ready", "status": "Unknown"}]])
def test_a_node_that_does_not_say_that_it_is_ready_is_not(conditions: list[dict[str, str]]) -> None:
    raw = msgspec.convert({"metadata": {"name": "a"}, "status": {"conditions": conditions}}, objects.Node)
    assert not node_value(raw).ready


def test_a_budget_allows_what_its_status_says_unless_that_is_old() -> None:
    body: dict[str, Any] = {
        "metadata": {"name": "pdb", "namespace": "team", "generation": 2},
        "spec": {"selector": {"matchLabels": {"app": "db"}}},
        "status": {
            "observedGeneration": 2,
            "disruptionsAllowed": 1,
            "disruptedPods": {"p": "2026-01-01T00:00:00Z"},
        },
    }
    current = budget_value(msgspec.convert(body, objects.PodDisruptionBudget))
    assert current == DisruptionBudget("team", "pdb", selector(app="db"), 1, frozenset({"team/p"}))
    body["metadata"]["generation"] = 3
    assert budget_value(msgspec.convert(body, objects.PodDisruptionBudget)).allowed == 0
    del body["spec"]["selector"]
    assert budget_value(msgspec.convert(body, objects.PodDisruptionBudget)).selector is None


def reported(
    *gpus: tuple[bool, int], offered: tuple[int, int, int], name: str = "gpu", reason: str = ""
) -> Node:
    """A node with GPUs by health and milli-GPU, and a resource by capacity, healthy and carrying devices."""
    devices = [
        {
            "index": place,
            "uuid": f"GPU-{place}",
            "product": "",
            "memoryMib": 1,
            "healthy": healthy,
            "fractionMilli": milli,
        }
        for place, (healthy, milli) in enumerate(gpus)
    ]
    resource = {"name": f"nvidia.com/{name}"} | dict(
        zip(("capacity", "healthy", "carrying"), offered, strict=True)
    )
    condition = {"type": "Fractions", "status": "False" if reason else "True", "reason": reason}
    status = {"devices": devices, "resources": [resource], "conditions": [condition]}
    gpu_node = msgspec.convert({"metadata": {"name": "n"}, "status": status}, GPUNode)
    return node_value(msgspec.convert({"metadata": {"name": "n"}}, objects.Node), gpu_node)


def test_a_gpu_that_carries_fractions_is_named_and_left_in_the_count_for_the_ledger() -> None:
    node = reported((True, 500), (True, 0), (False, 300), offered=(3, 2, 1))
    assert (node.allocatable["nvidia.com/gpu"], node.carrying, node.sick) == (2, ("GPU-0",), ("GPU-2",))
    assert node.unhealthy == {"nvidia.com/gpu": 1}


def test_shares_of_a_gpu_that_still_carries_fractions_are_nobodys() -> None:
    node = reported((True, 500), (True, 0), offered=(8, 8, 4))
    assert node.allocatable["nvidia.com/gpu"] == 5
    assert not node.unhealthy
    renamed = reported((True, 500), (True, 0), name="gpu.shared", offered=(8, 8, 4))
    assert renamed.allocatable["nvidia.com/gpu.shared"] == 4


def test_a_node_may_carry_fractions_unless_its_agent_says_that_it_cannot_keep_gpus_for_them() -> None:
    assert reported((True, 0), offered=(1, 1, 0)).may_carry
    assert reported((True, 0), reason="FractionConflict", offered=(1, 1, 0)).may_carry
    assert not reported((True, 0), reason="FractionsNotWithheld", offered=(1, 1, 0)).may_carry
