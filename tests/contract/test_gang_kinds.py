"""Kinds that describe gangs, from a real API server: the native PodGroup, and kinds that come later."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.contract.servers import ControlPlane

from gpufleet.kube import crds, informers
from gpufleet.kube.client import ApiError, Client
from gpufleet.kube.conventions import coscheduling, kai, native
from gpufleet.kube.informers import Informer
from gpufleet.kube.kinds import CRDS, GPU_NODES, PODS, Kind
from gpufleet.kube.snapshot import SnapshotBuilder, load_snapshot
from gpufleet.local.vendor_kinds import MARK, VENDOR_KINDS, definition, install_vendor_kinds
from gpufleet.scheduling.gangs import units


def plain_pod(name: str, **spec: Any) -> dict[str, Any]:
    container = {"name": "main", "image": "busybox", "resources": {"requests": {"cpu": "1"}}}
    return {"metadata": {"name": name}, "spec": {"containers": [container], **spec}}


@asynccontextmanager
async def watching(client: Client) -> AsyncIterator[SnapshotBuilder]:
    """A snapshot that follows the server."""
    builder = SnapshotBuilder()
    tasks = []
    for source in builder.sources:
        informer: Informer[Any] = Informer(client, source.kind, source.type, optional=source.optional)
        informer.subscribe(source.handler, source.unread)
        tasks.append(asyncio.create_task(informer.run()))
        await informer.synced()
    try:
        yield builder
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.02)


async def test_a_native_pod_group_and_its_pods_are_a_gang_of_the_snapshot(
    control_plane: ControlPlane, namespace: str
) -> None:
    async with Client(control_plane.config) as client:
        await client.create(
            native.POD_GROUPS,
            {"metadata": {"name": "train"}, "spec": {"schedulingPolicy": {"gang": {"minCount": 2}}}},
            namespace,
        )
        for name in ("w0", "w1"):
            group = {"schedulingGroup": {"podGroupName": "train"}}
            await client.create(PODS, plain_pod(name, **group), namespace)
        snapshot, _ = await load_snapshot(client)
        gang = snapshot.gangs[f"{namespace}/train"]
        assert (gang.minimum, gang.rule) == (2, native.PODGROUP_RULE)
        (unit,) = (one for one in units(snapshot, lambda pod: pod.namespace == namespace) if one.gang)
        assert (unit.gang, unit.needed, unit.problem) == (f"{namespace}/train", 2, None)
        assert [pod.name for pod in unit.pods] == ["w0", "w1"]


async def test_a_native_tree_of_groups_is_one_gang_with_topology(
    control_plane: ControlPlane, namespace: str
) -> None:
    async with Client(control_plane.config) as client:
        await client.create(
            native.COMPOSITE_POD_GROUPS,
            {
                "metadata": {"name": "job"},
                "spec": {
                    "workloadRef": {"workloadName": "llm", "templateName": "root"},
                    "schedulingPolicy": {"gang": {"minGroupCount": 2}},
                },
            },
            namespace,
        )
        for name, count in (("prefill", 1), ("decode", 2)):
            spec = {
                "parentCompositePodGroupName": "job",
                "workloadRef": {"workloadName": "llm", "templateName": name},
                "schedulingPolicy": {"gang": {"minCount": count}},
                "schedulingConstraints": {"topology": [{"key": "example.com/rack"}]},
            }
            await client.create(native.POD_GROUPS, {"metadata": {"name": name}, "spec": spec}, namespace)
        await client.create(PODS, plain_pod("p0", schedulingGroup={"podGroupName": "prefill"}), namespace)
        snapshot, builder = await load_snapshot(client)
        pod = builder.pod(f"{namespace}/p0")
        assert pod is not None
        assert pod.gang is not None
        assert (pod.gang.subgroup, pod.gang.rule) == ("prefill", native.COMPOSITE_RULE)
        gang = snapshot.gangs[pod.gang_key]
        assert (gang.minimum, gang.minimum_subgroups) == (3, 2)
        assert {(g.name, g.minimum, g.topology.required) for g in gang.subgroups} == {
            ("prefill", 1, "example.com/rack"), ("decode", 2, "example.com/rack"),
        }  # fmt: skip


async def test_a_kind_that_is_installed_later_is_watched_without_a_restart(
    control_plane: ControlPlane, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(informers, "UNSERVED_SECONDS", 0.2)
    (vendor,) = (one for one in VENDOR_KINDS if one.kind == coscheduling.POD_GROUPS)
    key = f"{namespace}/late"
    async with Client(control_plane.config) as client, watching(client) as builder:
        assert key not in builder.snapshot().gangs
        await crds.establish(client, [definition(vendor)])
        spec = {"metadata": {"name": "late"}, "spec": {"minMember": 3, "minResources": {"cpu": "1"}}}
        await client.create(coscheduling.POD_GROUPS, spec, namespace)
        await until(lambda: key in builder.snapshot().gangs)
        assert builder.snapshot().gangs[key].minimum == 3
        await client.delete(CRDS, vendor.kind.resource)
        await until(lambda: key not in builder.snapshot().gangs)
        await crds.establish(client, [definition(vendor)])
        await client.create(coscheduling.POD_GROUPS, spec, namespace)
        await until(lambda: key in builder.snapshot().gangs)


async def test_kinds_of_vendors_are_installed_and_those_that_are_there_stay(
    control_plane: ControlPlane, namespace: str
) -> None:
    theirs = definition(next(one for one in VENDOR_KINDS if one.kind == kai.POD_GROUPS))
    del theirs["metadata"]["labels"]
    theirs["spec"]["names"]["shortNames"] = ["theirs"]
    async with Client(control_plane.config) as client:
        await crds.establish(client, [theirs])
        for _ in range(2):
            await install_vendor_kinds(client)
        kept = await client.get(CRDS, kai.POD_GROUPS.resource)
        assert MARK not in kept["metadata"].get("labels", {})
        assert kept["spec"]["names"]["shortNames"] == ["theirs"]
        for vendor in VENDOR_KINDS:
            for version in (vendor.kind.version, *vendor.older):
                kind = Kind(
                    vendor.kind.group, version, vendor.kind.plural, vendor.kind.kind, vendor.kind.namespaced
                )
                await client.list(kind)
        queue = next(one.kind for one in VENDOR_KINDS if one.kind.kind == "ClusterQueue")
        made = await client.create(queue, {"metadata": {"name": "cq"}, "spec": {"anything": {"at": ["all"]}}})
        assert made["spec"] == {"anything": {"at": ["all"]}}
        await client.delete(queue, "cq")


class Narrow(Client):
    """A client of a user who may read what Kubernetes and gpufleet need, and no other kinds."""

    async def list(self, kind: Kind, namespace: str | None = None, **options: Any) -> Any:
        if kind.group not in ("", "storage.k8s.io", "policy", GPU_NODES.group):
            raise ApiError(status=403, reason="Forbidden", message=f"{kind.resource} is forbidden")
        return await super().list(kind, namespace, **options)


async def test_who_may_not_read_foreign_kinds_has_a_snapshot_without_them(
    control_plane: ControlPlane, namespace: str
) -> None:
    async with Narrow(control_plane.config) as client:
        label = {coscheduling.LABELS[0]: "group"}
        pod = plain_pod("w0")
        await client.create(PODS, {**pod, "metadata": {"name": "w0", "labels": label}}, namespace)
        snapshot, _ = await load_snapshot(client)
        assert snapshot.unbound[f"{namespace}/w0"].gang_key == f"{namespace}/group"
        assert not snapshot.gangs
