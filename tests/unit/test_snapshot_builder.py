"""The live snapshot: whatever came in which order, what the informers say, and on top what was decided."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from tests.unit.random_fleets import FACTOR

from gpufleet.fleet.pods import Pod
from gpufleet.fleet.snapshot import Snapshot
from gpufleet.kube import objects
from gpufleet.kube.gpunode import GPUNode, GPUNodeStatus, GPUResource
from gpufleet.kube.informers import Change
from gpufleet.kube.snapshot import SnapshotBuilder
from gpufleet.kube.values import DECISION_CONDITION

NAMES = ("p0", "p1", "p2")
NODES = ("a", "b")


def manifest(
    name: str = "p0",
    uid: str = "1",
    *,
    node: str = "",
    nominated: str = "",
    phase: str = "Pending",
    deleted: bool = False,
    gang: bool = False,
    labels: dict[str, str] | None = None,
) -> objects.Pod:
    body: dict[str, Any] = {
        "metadata": {
            "name": name,
            "namespace": "default",
            "uid": uid,
            "labels": {
                **(labels or {}),
                **({"gpufleet.dev/gang": "g", "gpufleet.dev/gang-size": "2"} if gang else {}),
            },
        },
        "spec": {"nodeName": node, "containers": [{"name": "main", "resources": {"requests": {"cpu": "1"}}}]},
        "status": {"phase": phase, "nominatedNodeName": nominated},
    }
    if deleted:
        body["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    return msgspec.convert(body, objects.Pod)


def machine(name: str = "a", *, gpus: str = "", ready: str = "True", heartbeat: str = "") -> objects.Node:
    body = {
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {
            "allocatable": {"cpu": "4", **({"nvidia.com/gpu": gpus} if gpus else {})},
            "conditions": [{"type": "Ready", "status": ready, "lastHeartbeatTime": heartbeat}],
        },
    }
    return msgspec.convert(body, objects.Node)


def devices(name: str = "a", healthy: int = 1) -> GPUNode:
    resource = GPUResource(name="nvidia.com/gpu", capacity=8, healthy=healthy)
    return GPUNode(metadata=objects.ObjectMeta(name=name), status=GPUNodeStatus(resources=(resource,)))


class Watched:
    """A builder and how often it said that something changed."""

    def __init__(self) -> None:
        self.changes = 0
        self.builder = SnapshotBuilder(self._count)

    def _count(self) -> None:
        self.changes += 1

    def pod(self, new: objects.Pod | None, name: str = "p0") -> None:
        self.builder.pod_changed(Change(f"default/{name}", None, new))

    def node(self, new: objects.Node | None, name: str = "a") -> None:
        self.builder.node_changed(Change(name, None, new))

    def found(self, name: str = "p0") -> Pod:
        pod = self.builder.pod(f"default/{name}")
        assert pod is not None
        return pod


def without_phases(snapshot: Snapshot) -> Snapshot:
    """What a decision reads of a snapshot."""

    def plain(pods: Any) -> Any:
        return {key: msgspec.structs.replace(pod, phase="") for key, pod in pods.items()}

    return msgspec.structs.replace(
        snapshot,
        pods_by_node={name: plain(pods) for name, pods in snapshot.pods_by_node.items()},
        unbound=plain(snapshot.unbound),
    )


class Follows(RuleBasedStateMachine):
    """Informers say things, decisions are assumed and forgotten; a model keeps both apart and lays one over
    the other only when asked.
    """

    def __init__(self) -> None:
        super().__init__()
        self.watched = Watched()
        self.said: dict[str, objects.Pod] = {}
        self.decided: dict[str, dict[str, Any]] = {}
        self.machines: dict[str, objects.Node] = {}
        self.before = Snapshot()
        self.seen = 0

    def expected(self, name: str) -> Pod:
        builder = SnapshotBuilder()
        builder.pod_changed(Change(f"default/{name}", None, self.said[name]))
        plain = builder.pod(f"default/{name}")
        assert plain is not None
        decided = self.decided.get(name, {})
        return msgspec.structs.replace(
            plain,
            node=plain.node or decided.get("node", ""),
            nominated_node=decided.get("nominated_node", plain.nominated_node),
            terminating=plain.terminating or decided.get("terminating", False),
        )

    @rule(
        name=st.sampled_from(NAMES),
        uid=st.sampled_from("12"),
        node=st.sampled_from(["", "", *NODES]),
        nominated=st.sampled_from(["", "", *NODES]),
        phase=st.sampled_from(["Pending", "Running", "Succeeded", "Failed"]),
        deleted=st.booleans(),
        gang=st.booleans(),
    )
    def informer_shows(
        self, name: str, uid: str, node: str, nominated: str, phase: str, deleted: bool, gang: bool
    ) -> None:
        new = manifest(name, uid, node=node, nominated=nominated, phase=phase, deleted=deleted, gang=gang)
        decided = self.decided.get(name, {})
        if name in self.said and (self.said[name].metadata.uid != uid or phase in ("Succeeded", "Failed")):
            decided = {}
        if node:
            decided = {k: v for k, v in decided.items() if k == "terminating"}
        if decided.get("nominated_node") == nominated:
            decided = {k: v for k, v in decided.items() if k != "nominated_node"}
        if deleted:
            decided = {k: v for k, v in decided.items() if k != "terminating"}
        self.said[name], self.decided[name] = new, decided
        self.watched.pod(new, name)

    @rule(name=st.sampled_from(NAMES))
    def informer_shows_it_gone(self, name: str) -> None:
        self.said.pop(name, None)
        self.decided.pop(name, None)
        self.watched.pod(None, name)

    @rule(
        name=st.sampled_from(NAMES),
        decision=st.sampled_from(
            [
                {"node": "a"},
                {"node": "b"},
                {"nominated_node": "a"},
                {"nominated_node": ""},
                {"terminating": True},
            ]
        ),
    )
    def decision_is_assumed(self, name: str, decision: dict[str, Any]) -> None:
        pod = self.watched.builder.pod(f"default/{name}")
        if pod is None or pod.finished or (pod.node and "terminating" not in decision):
            return
        said = self.said[name]
        shown = {
            "nominated_node": said.status.nominated_node_name,
            "terminating": said.metadata.deletion_timestamp is not None,
        }
        self.decided[name] = {
            field: value
            for field, value in {**self.decided.get(name, {}), **decision}.items()
            if shown.get(field) != value
        }
        self.watched.builder.assume(pod, **decision)

    @rule(name=st.sampled_from(NAMES), field=st.sampled_from(["", "node", "nominated_node", "terminating"]))
    def write_fails(self, name: str, field: str) -> None:
        pod = self.watched.builder.pod(f"default/{name}")
        decided = self.decided.get(name, {})
        if pod is None:
            return
        if not field:
            self.decided[name] = {}
            self.watched.builder.forget(pod)
        elif field in decided:
            self.watched.builder.forget(pod, **{field: decided[field]})
            self.decided[name] = {k: v for k, v in decided.items() if k != field}

    @rule(name=st.sampled_from(NAMES))
    def late_failure_of_a_pod_that_was_replaced(self, name: str) -> None:
        other = SnapshotBuilder()
        other.pod_changed(Change(f"default/{name}", None, manifest(name, "older")))
        older = other.pod(f"default/{name}")
        assert older is not None
        self.watched.builder.forget(older)
        self.watched.builder.assume(older, node="a")

    @rule(name=st.sampled_from(NODES), ready=st.sampled_from(["True", "False"]), gone=st.booleans())
    def node_changes(self, name: str, ready: str, gone: bool) -> None:
        self.machines.pop(name, None)
        if not gone:
            self.machines[name] = machine(name, ready=ready)
        self.watched.node(self.machines.get(name), name)

    @invariant()
    def the_view_is_what_was_said_under_what_was_decided(self) -> None:
        snapshot = self.watched.builder.snapshot()
        there = {name: self.expected(name) for name in self.said}
        live = {p.key: p for p in there.values() if not p.finished}
        assert snapshot.unbound == {key: p for key, p in live.items() if not p.node}
        by_node: dict[str, dict[str, Pod]] = {}
        for key, p in live.items():
            if p.node:
                by_node.setdefault(p.node, {})[key] = p
        assert snapshot.pods_by_node == by_node
        succeeded = sum(p.phase == "Succeeded" and p.gang is not None for p in there.values())
        assert snapshot.gang_successes == ({("default/g", ""): succeeded} if succeeded else {})
        assert snapshot.nodes.keys() == self.machines.keys()

    @invariant()
    def a_change_is_announced_exactly_if_a_decision_could_care(self) -> None:
        now = self.watched.builder.snapshot()
        assert (self.watched.changes > self.seen) == (without_phases(now) != without_phases(self.before))
        for name, pods in now.pods_by_node.items():
            kept = self.before.pods_by_node.get(name)
            assert (kept is pods) == (kept == pods), "identity of a node's pods means equality"
        self.before, self.seen = now, self.watched.changes

    def teardown(self) -> None:
        """Once nothing is assumed any more, only the last objects count."""
        for name in self.said:
            pod = self.watched.builder.pod(f"default/{name}")
            assert pod is not None
            self.watched.builder.forget(pod)
        fresh = SnapshotBuilder()
        for name, said in self.said.items():
            fresh.pod_changed(Change(f"default/{name}", None, said))
        for name, node in self.machines.items():
            fresh.node_changed(Change(name, None, node))
        assert self.watched.builder.snapshot() == fresh.snapshot()


TestFollows = Follows.TestCase
TestFollows.settings = settings(max_examples=60 * FACTOR, stateful_step_count=30, deadline=None)


def test_a_snapshot_does_not_change_afterwards() -> None:
    watched = Watched()
    watched.pod(manifest(node="a"))
    watched.node(machine())
    before = watched.builder.snapshot()
    watched.pod(manifest(node="a", deleted=True))
    watched.node(None)
    assert not before.pods_by_node["a"]["default/p0"].terminating
    assert "a" in before.nodes


def test_an_assumed_binding_survives_unrelated_updates_of_its_pod() -> None:
    watched = Watched()
    watched.pod(manifest())
    watched.builder.assume(watched.found(), node="a")
    watched.pod(manifest(labels={"new": "label"}))
    assert watched.found().node == "a"
    assert watched.found().labels == {"new": "label"}
    assert not watched.builder.snapshot().unbound


def test_an_assumed_binding_is_dropped_when_it_is_confirmed() -> None:
    watched = Watched()
    watched.pod(manifest())
    pod = watched.found()
    watched.builder.assume(pod, node="a")
    watched.pod(manifest(node="a"))
    watched.builder.forget(pod, node="a")
    assert watched.found().node == "a"


def test_the_server_knows_better_where_a_pod_was_bound() -> None:
    watched = Watched()
    watched.pod(manifest())
    watched.builder.assume(watched.found(), node="a")
    watched.pod(manifest(node="b"))
    assert watched.found().node == "b"
    assert "a" not in watched.builder.snapshot().pods_by_node


def test_an_assumption_is_not_about_the_next_pod_of_the_name() -> None:
    watched = Watched()
    watched.pod(manifest(uid="1"))
    watched.builder.assume(watched.found(), node="a")
    watched.pod(manifest(uid="2"))
    assert watched.found().node == ""


def test_a_late_failure_takes_nothing_from_the_next_pod_of_the_name() -> None:
    watched = Watched()
    watched.pod(manifest(uid="1"))
    first = watched.found()
    watched.builder.assume(first, node="a")
    watched.pod(None)
    watched.pod(manifest(uid="2"))
    watched.builder.assume(watched.found(), node="b")
    watched.builder.forget(first, node="a")
    watched.builder.forget(first)
    assert watched.found().node == "b"


def test_a_failed_nomination_does_not_take_back_the_binding_that_followed() -> None:
    watched = Watched()
    watched.pod(manifest())
    pod = watched.found()
    watched.builder.assume(pod, nominated_node="a")
    watched.builder.assume(pod, node="a")
    watched.builder.forget(pod, nominated_node="a")
    assert (watched.found().node, watched.found().nominated_node) == ("a", "")


def test_a_failed_write_does_not_take_back_what_was_decided_anew() -> None:
    watched = Watched()
    watched.pod(manifest())
    pod = watched.found()
    watched.builder.assume(pod, nominated_node="a")
    watched.builder.assume(pod, nominated_node="b")
    watched.builder.forget(pod, nominated_node="a")
    assert watched.found().nominated_node == "b"


def test_a_decision_about_a_pod_that_is_gone_is_nobodys() -> None:
    watched = Watched()
    watched.pod(manifest())
    gone = watched.found()
    watched.pod(None)
    watched.builder.assume(gone, node="a")
    watched.pod(manifest(uid="1"))
    assert watched.found().node == ""


def test_a_victim_ends_from_the_moment_it_was_chosen() -> None:
    watched = Watched()
    watched.pod(manifest(node="a", phase="Running"))
    victim = watched.found()
    watched.builder.assume(victim, terminating=True)
    assert watched.found().terminating
    watched.pod(manifest(node="a", phase="Running", labels={"x": "y"}))
    assert watched.found().terminating
    watched.pod(manifest(node="a", phase="Running", deleted=True))
    watched.builder.forget(victim, terminating=True)
    assert watched.found().terminating


def test_a_nomination_that_is_cleared_elsewhere_is_gone_once_ours_was_confirmed() -> None:
    watched = Watched()
    watched.pod(manifest())
    watched.builder.assume(watched.found(), nominated_node="a")
    watched.pod(manifest(nominated="a"))
    watched.pod(manifest())
    assert watched.found().nominated_node == ""


def test_progress_of_a_pod_is_kept_and_announced_to_nobody() -> None:
    watched = Watched()
    watched.pod(manifest(node="a"))
    watched.builder.snapshot()
    changes = watched.changes
    watched.pod(manifest(node="a", phase="Running"))
    assert watched.changes == changes
    assert watched.found().phase == "Running"
    assert watched.builder.snapshot().pods_by_node["a"]["default/p0"].phase == "Running"
    watched.pod(manifest(node="a", phase="Succeeded"))
    assert watched.changes == changes + 1
    assert not watched.builder.snapshot().pods_by_node


def test_what_a_pod_was_told_is_kept_and_announced_to_nobody() -> None:
    """Else every report would be the cause of the next decision."""
    watched = Watched()
    watched.pod(manifest())
    changes = watched.changes
    condition = objects.Condition(type=DECISION_CONDITION, status="False")
    watched.pod(msgspec.structs.replace(manifest(), status=objects.PodStatus(conditions=(condition,))))
    assert watched.builder.snapshot().unbound["default/p0"].reported
    assert watched.changes == changes


def test_pods_that_end_are_gone_from_the_snapshot_but_can_be_asked_for() -> None:
    watched = Watched()
    watched.pod(manifest(node="a", phase="Failed"))
    assert "default/p0" in watched.builder
    assert watched.found().finished
    assert not list(watched.builder.snapshot().pods())


def test_members_of_a_gang_that_succeeded_are_counted_while_they_are_there() -> None:
    watched = Watched()
    watched.pod(manifest("p0", gang=True, phase="Succeeded"), "p0")
    watched.pod(manifest("p1", gang=True, phase="Failed"), "p1")
    assert watched.builder.snapshot().gang_successes == {("default/g", ""): 1}
    watched.pod(None, "p0")
    assert watched.builder.snapshot().gang_successes == {}


def unread_pods(watched: Watched, node: str = "a") -> tuple[str, ...]:
    return watched.builder.snapshot().nodes[node].unread_pods


def test_a_node_is_unaccounted_for_while_a_pod_on_it_cannot_be_read() -> None:
    watched = Watched()
    watched.builder.pod_unread("default/p1", "a")
    watched.node(machine())
    watched.builder.pod_unread("default/p0", "a")
    assert unread_pods(watched) == ("default/p0", "default/p1")
    watched.pod(manifest("p1", node="a"), "p1")
    watched.builder.pod_unread("default/p0", None)
    assert unread_pods(watched) == ()
    assert set(watched.builder.snapshot().pods_by_node["a"]) == {"default/p1"}


def test_a_pod_that_becomes_unreadable_where_nobody_knows_is_where_it_was_last() -> None:
    watched = Watched()
    watched.node(machine())
    watched.pod(manifest())
    watched.builder.assume(watched.found(), node="a")
    watched.builder.pod_unread("default/p0", "")
    watched.builder.pod_unread("default/p0", "")
    assert unread_pods(watched) == ("default/p0",)
    assert watched.builder.snapshot().pods_by_node == {}
    watched.pod(None)
    assert unread_pods(watched) == ()


def test_a_pod_that_cannot_be_translated_leaves_its_node_unaccounted_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(pod: objects.Pod) -> Pod:
        raise ValueError(pod.metadata.name)

    watched = Watched()
    watched.node(machine())
    with monkeypatch.context() as broken:
        broken.setattr("gpufleet.kube.snapshot.pod_value", fail)
        watched.pod(manifest(node="a"))
    assert unread_pods(watched) == ("default/p0",)
    watched.pod(manifest(node="a"))
    assert unread_pods(watched) == ()


def test_heartbeats_of_nodes_are_announced_to_nobody() -> None:
    watched = Watched()
    watched.node(machine(heartbeat="2026-01-01T00:00:00Z"))
    changes = watched.changes
    watched.node(machine(heartbeat="2026-01-01T00:00:10Z"))
    assert watched.changes == changes
    watched.node(machine(ready="Unknown"))
    assert watched.changes == changes + 1
    assert not watched.builder.snapshot().nodes["a"].ready


def test_healthy_devices_replace_the_kubelets_count_whichever_comes_first() -> None:
    for devices_first in (True, False):
        watched = Watched()
        told: list[Callable[[], None]] = [
            lambda w=watched: w.builder.gpu_node_changed(Change("a", None, devices(healthy=3))),  # type: ignore[misc]
            lambda w=watched: w.node(machine(gpus="8")),  # type: ignore[misc]
        ]
        for tell in told if devices_first else reversed(told):
            tell()
        assert watched.builder.snapshot().nodes["a"].allocatable["nvidia.com/gpu"] == 3
        watched.builder.gpu_node_changed(Change("a", None, None))
        assert watched.builder.snapshot().nodes["a"].allocatable["nvidia.com/gpu"] == 8


def test_devices_of_a_node_that_is_not_there_make_no_node() -> None:
    watched = Watched()
    watched.builder.gpu_node_changed(Change("a", None, devices()))
    assert not watched.builder.snapshot().nodes
    assert not watched.changes


def test_namespaces_count_by_their_labels() -> None:
    watched = Watched()

    def tell(labels: dict[str, str] | None) -> None:
        new = objects.Namespace(metadata=objects.ObjectMeta(name="n", labels=labels)) if labels else None
        watched.builder.namespace_changed(Change("n", None, new))

    tell({"a": "1"})
    tell({"a": "1"})
    assert watched.changes == 1
    tell({"a": "2"})
    assert watched.builder.snapshot().namespaces == {"n": {"a": "2"}}
    tell(None)
    tell(None)
    assert watched.changes == 3
    assert not watched.builder.snapshot().namespaces


OBJECTS: dict[str, Any] = {
    "persistentvolumeclaims": {"metadata": {"name": "x", "namespace": "default"}},
    "persistentvolumes": {"metadata": {"name": "x"}},
    "storageclasses": {"metadata": {"name": "x"}, "provisioner": "disk.example.com"},
    "csidrivers": {"metadata": {"name": "x"}},
    "csistoragecapacities": {
        "metadata": {"name": "x", "namespace": "default"},
        "storageClassName": "c",
        "capacity": "1Gi",
    },
    "csinodes": {"metadata": {"name": "x"}},
    "poddisruptionbudgets": {"metadata": {"name": "x", "namespace": "default"}},
}


@given(st.data())
def test_every_other_kind_is_a_table_that_announces_what_changed(data: st.DataObject) -> None:
    watched = Watched()
    tables = {
        source.kind.plural: source for source in watched.builder.sources if source.kind.plural in OBJECTS
    }
    assert tables.keys() == OBJECTS.keys()
    source = tables[data.draw(st.sampled_from(sorted(OBJECTS)))]
    item = msgspec.convert(OBJECTS[source.kind.plural], source.type)
    empty = watched.builder.snapshot()
    source.handler(Change(item.metadata.key, None, item))
    assert (watched.changes, watched.builder.snapshot() == empty) == (1, False)
    source.handler(Change(item.metadata.key, item, item))
    assert watched.changes == 1
    source.handler(Change(item.metadata.key, item, None))
    assert (watched.changes, watched.builder.snapshot() == empty) == (2, True)


def test_all_kinds_that_a_snapshot_has_are_watched() -> None:
    watched = {source.kind.plural for source in SnapshotBuilder().sources}
    assert watched == {*OBJECTS, "nodes", "gpunodes", "pods", "namespaces"}
