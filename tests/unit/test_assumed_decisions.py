"""What was decided lies over what the informers say until they show it, or until it has failed."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from tests.unit.random_fleets import FACTOR
from tests.unit.watched import Watched, machine, manifest

from gpufleet.fleet.devices import DevicePick
from gpufleet.fleet.pods import Pod
from gpufleet.fleet.snapshot import Snapshot
from gpufleet.kube import objects
from gpufleet.kube.conventions.picked_devices import annotated
from gpufleet.kube.informers import Change
from gpufleet.kube.snapshot import SnapshotBuilder

NAMES = ("p0", "p1", "p2")
PICKED = (DevicePick("main", "nvidia.com/gpu", ("GPU-1",)),)
NODES = ("a", "b")

# a model


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
            picks=plain.picks if plain.node else decided.get("picks", plain.picks),
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
        new = manifest(
            name,
            uid,
            node=node,
            nominated=nominated,
            phase=phase,
            deleted=deleted,
            gang=gang,
            annotations=annotated(PICKED) if node == "a" else None,
        )
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
                {"node": "a", "picks": PICKED},
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
            void = {k: v for k, v in decided.items() if k == field or (field == "node" and k == "picks")}
            self.watched.builder.forget(pod, **void)
            self.decided[name] = {k: v for k, v in decided.items() if k not in void}

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
        assert snapshot.gang_successes == ({("default/g", ""): {"": succeeded}} if succeeded else {})
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
            fresh.nodes.node_changed(Change(name, None, node))
        assert self.watched.builder.snapshot() == fresh.snapshot()


TestFollows = Follows.TestCase
TestFollows.settings = settings(max_examples=60 * FACTOR, stateful_step_count=30, deadline=None)

# in words


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
