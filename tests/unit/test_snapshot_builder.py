"""The live snapshot: whatever came in which order, what the informers say, and who hears of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.watched import Watched, devices, machine, manifest

from gpufleet.fleet.devices import DevicePick
from gpufleet.fleet.pods import Pod
from gpufleet.fleet.queues import NO_QUEUES, UNQUEUED
from gpufleet.kube import kinds, objects
from gpufleet.kube.conventions.picked_devices import DEVICES_ANNOTATION, annotated
from gpufleet.kube.conventions.queues import CONVENTIONS
from gpufleet.kube.decoding import Listing
from gpufleet.kube.errors import ApiError
from gpufleet.kube.gang_objects import GangObjects
from gpufleet.kube.gpunode import GPUAllocation, GPUDevice, GPUNode, GPUNodeStatus, GPUResource
from gpufleet.kube.informers import Change
from gpufleet.kube.snapshot import SnapshotBuilder, load_snapshot
from gpufleet.kube.values import DECISION_CONDITION


def test_a_snapshot_does_not_change_afterwards() -> None:
    watched = Watched()
    watched.pod(manifest(node="a"))
    watched.node(machine())
    before = watched.builder.snapshot()
    watched.pod(manifest(node="a", deleted=True))
    watched.node(None)
    assert not before.pods_by_node["a"]["default/p0"].terminating
    assert "a" in before.nodes


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
    assert watched.builder.snapshot().gang_successes == {("default/g", ""): {"": 1}}
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
            lambda w=watched: w.builder.nodes.gpu_node_changed(Change("a", None, devices(healthy=3))),  # type: ignore[misc]
            lambda w=watched: w.node(machine(gpus="8")),  # type: ignore[misc]
        ]
        for tell in told if devices_first else reversed(told):
            tell()
        assert watched.builder.snapshot().nodes["a"].allocatable["nvidia.com/gpu"] == 3
        watched.builder.nodes.gpu_node_changed(Change("a", None, None))
        assert watched.builder.snapshot().nodes["a"].allocatable["nvidia.com/gpu"] == 8


def test_devices_of_a_node_that_is_not_there_make_no_node() -> None:
    watched = Watched()
    watched.builder.nodes.gpu_node_changed(Change("a", None, devices()))
    assert not watched.builder.snapshot().nodes
    assert not watched.changes


def holding(uid: str) -> GPUNode:
    """A node of two GPUs, one of which a pod holds."""
    names = ("GPU-0", "GPU-1")
    gpus = tuple(
        GPUDevice(index=i, uuid=name, product="h100", memory_mib=1, healthy=True)
        for i, name in enumerate(names)
    )
    held = GPUAllocation(
        namespace="default",
        pod="p",
        pod_uid=uid,
        container="c",
        resource="nvidia.com/gpu",
        devices=("GPU-1",),
    )
    resource = GPUResource(name="nvidia.com/gpu", capacity=2, healthy=2)
    status = GPUNodeStatus(devices=gpus, resources=(resource,), allocations=(held,))
    return GPUNode(metadata=objects.ObjectMeta(name="a"), status=status)


def test_who_holds_which_device_is_in_the_snapshot_and_announced() -> None:
    watched = Watched()
    watched.node(machine(gpus="2"))
    watched.builder.nodes.gpu_node_changed(Change("a", None, holding("u1")))
    before = watched.changes
    (held,) = watched.builder.snapshot().devices["a"].held
    assert (held.pod_uid, held.devices) == ("u1", ("GPU-1",))
    watched.builder.nodes.gpu_node_changed(Change("a", None, holding("u1")))
    assert watched.changes == before
    watched.builder.nodes.gpu_node_changed(Change("a", None, holding("u2")))
    assert watched.changes == before + 1
    watched.builder.nodes.gpu_node_changed(Change("a", None, None))
    assert not watched.builder.snapshot().devices


def test_what_was_picked_is_read_from_a_bound_pod() -> None:
    picked = (DevicePick("main", "nvidia.com/gpu", ("GPU-1",)),)
    watched = Watched()
    watched.pod(manifest(node="a", annotations=annotated(picked)))
    assert watched.found().picks == picked
    watched.pod(manifest(node="a", annotations={DEVICES_ANNOTATION: "not ours"}))
    assert watched.found().picks == ()


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
    gangs = {source.kind for source in GangObjects(lambda _: None).sources}
    queues = {convention.kind for convention in CONVENTIONS}
    apart = gangs | queues
    watched = {source.kind.plural for source in SnapshotBuilder().sources if source.kind not in apart}
    assert watched == {*OBJECTS, "nodes", "gpunodes", "pods", "namespaces"}
    assert apart <= {source.kind for source in SnapshotBuilder().sources}


def test_queues_make_a_tree_that_stays_until_one_changes_and_announce_what_changed() -> None:
    watched = Watched()
    source = next(s for s in watched.builder.sources if s.kind is kinds.QUEUES)
    item = msgspec.convert({"metadata": {"name": "team"}, "spec": {"limit": {"gpu": 4}}}, source.type)
    source.handler(Change("team", None, item))
    source.handler(Change("team", item, item))
    tree = watched.builder.snapshot().queues
    assert (watched.changes, tree.queues["team"].gpu.limit) == (1, 4000)
    assert watched.builder.snapshot().queues is tree
    source.handler(Change("team", item, None))
    assert (watched.changes, watched.builder.snapshot().queues) == (2, NO_QUEUES)


def test_a_queue_that_cannot_be_read_is_closed_instead_of_without_limits() -> None:
    watched = Watched()
    kai = next(s for s in watched.builder.sources if s.kind is kinds.KAI_QUEUES)
    assert kai.unread is not None
    kai.unread("team", "")
    assert "cannot be read" in watched.builder.snapshot().queues.queues["team"].closed
    kai.unread("team", None)
    wrong = {"metadata": {"name": "other"}, "spec": {"preemptMinRuntime": "soon"}}
    kai.handler(Change("other", None, msgspec.convert(wrong, kai.type)))
    tree = watched.builder.snapshot().queues
    assert set(tree.queues) == {"other", UNQUEUED}
    assert "cannot be read" in tree.queues["other"].closed


class Refusing:
    """An API server that refuses some kinds, and has nothing of the others."""

    def __init__(self, status: int, *refused: str) -> None:
        self.status, self.refused = status, refused

    async def list(self, kind: kinds.Kind, **rest: object) -> Listing[object]:
        if kind.group in self.refused:
            raise ApiError(status=self.status, reason="Refused", message=f"no {kind.resource}")
        return Listing([], "1")


@pytest.mark.parametrize(
    ("status", "group", "loads"),
    [
        (404, "kueue.x-k8s.io", True),
        (403, "kueue.x-k8s.io", True),
        (404, "gpufleet.dev", True),
        (403, "gpufleet.dev", False),
        (500, "kueue.x-k8s.io", False),
    ],
)
def test_who_may_not_see_the_kinds_of_vendors_still_gets_a_snapshot(
    status: int, group: str, loads: bool
) -> None:
    client: Any = Refusing(status, group)
    if loads:
        assert asyncio.run(load_snapshot(client))[0].queues == NO_QUEUES
    else:
        with pytest.raises(ApiError):
            asyncio.run(load_snapshot(client))
