"""The Queue on a real API server: what makes sense is read exactly, the rest is refused in words."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.contract.servers import ControlPlane

from gpufleet.cli.app import group
from gpufleet.fleet.queues import NO_QUEUES, UNQUEUED, Quota
from gpufleet.kube import kinds
from gpufleet.kube.client import ApiError, Client
from gpufleet.kube.crds import establish
from gpufleet.kube.custom_resources import custom_resources
from gpufleet.kube.kinds import QUEUES
from gpufleet.kube.queue import Queue, queue_value
from gpufleet.kube.snapshot import load_snapshot

GI = 1 << 30


@contextlib.asynccontextmanager
async def cluster(control_plane: ControlPlane) -> AsyncIterator[Client]:
    """A client of a cluster that serves queues; those are gone afterwards."""
    async with Client(control_plane.config) as client:
        await establish(client, custom_resources())
        try:
            yield client
        finally:
            for queue in (await client.list(QUEUES, type=Queue)).items:
                await client.delete(QUEUES, queue.metadata.name, missing_ok=True)


async def create(client: Client, name: str, **spec: Any) -> Queue:
    return await client.create(QUEUES, {"metadata": {"name": name}, "spec": spec}, type=Queue)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"guarantee": {"gpu": "four"}}, "spec.guarantee.gpu"),
        ({"guarantee": {"gpu": "0.1234"}}, "should match"),
        ({"limit": {"gpu": -1}}, "should be greater than or equal to 0"),
        ({"limit": {"memory": "64GB"}}, "spec.limit.memory"),
        ({"limit": {"gpu": 2.5}}, "must be of type"),
        ({"guarantee": {"gpu": "2.5"}, "limit": {"gpu": 2}}, "gpu: the guarantee is more than the limit"),
        ({"guarantee": {"memory": "1Ti"}, "limit": {"memory": "64Gi"}}, "memory: the guarantee is more"),
        ({"guarantee": {"gpu": 2}, "lendingLimit": {"gpu": 3}}, "only what is guaranteed can be lent"),
        ({"weight": -1}, "spec.weight"),
        ({"parent": "Team A"}, "spec.parent"),
        ({"parent": "bad"}, "a queue is not its own parent"),
    ],
)
async def test_a_queue_that_makes_no_sense_is_refused(
    control_plane: ControlPlane, spec: dict[str, Any], words: str
) -> None:
    async with cluster(control_plane) as client:
        with pytest.raises(ApiError) as caught:
            await create(client, "bad", **spec)
        assert caught.value.status == 422
        assert words in caught.value.message


async def test_a_name_that_no_label_can_hold_is_refused(control_plane: ControlPlane) -> None:
    async with cluster(control_plane) as client:
        with pytest.raises(ApiError, match="at most 63 characters"):
            await create(client, "x" * 64)


async def test_amounts_are_read_as_people_write_them(control_plane: ControlPlane) -> None:
    async with cluster(control_plane) as client:
        made = await create(
            client,
            "team",
            guarantee={"gpu": "2.5", "cpu": "10", "memory": "64Gi"},
            limit={"gpu": 8, "cpu": "20"},
            lendingLimit={"gpu": "500m"},
            weight=3,
            priority=-2,
        )
        value = queue_value(made)
        assert value.gpu == Quota(2500, 8000, 500, 3000)
        assert value.cpu == Quota(10_000, 20_000, None, 3000)
        assert value.memory == Quota(64 * GI, None, None, 3000)
        assert (value.parent, value.priority, value.created > 0) == ("", -2, True)


async def test_queues_are_part_of_a_snapshot_and_the_vendors_kinds_need_not_be_there(
    control_plane: ControlPlane,
) -> None:
    async with cluster(control_plane) as client:
        assert (await load_snapshot(client))[0].queues == NO_QUEUES
        await create(client, "research", limit={"gpu": 16})
        await create(client, "vision", parent="research", guarantee={"gpu": 4})
        await create(client, "lost", parent="gone")
        tree = (await load_snapshot(client))[0].queues
        assert tree.paths["vision"] == ("vision", "research")
        assert tree.guarantees["research"][0] == 4000
        assert tree.problems == {"lost": "queue lost names the parent gone, which does not exist"}


VENDORS = (kinds.KAI_QUEUES, kinds.VOLCANO_QUEUES, kinds.CLUSTER_QUEUES, kinds.LOCAL_QUEUES, kinds.COHORTS)


def permissive(kind: kinds.Kind) -> dict[str, Any]:
    """A definition of a vendor's kind that takes everything, where its owner is absent."""
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": kind.version, "served": True, "storage": True, "schema": {"openAPIV3Schema": anything}}
    names = {"plural": kind.plural, "singular": kind.kind.lower(), "kind": kind.kind}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": kind.resource,
            "annotations": {"api-approved.kubernetes.io": "unapproved, test"},
        },
        "spec": {
            "group": kind.group,
            "scope": "Namespaced" if kind.namespaced else "Cluster",
            "names": names,
            "versions": [version],
        },
    }


async def test_queues_of_every_vendor_are_read_where_they_are_served(
    control_plane: ControlPlane, namespace: str
) -> None:
    definitions = [permissive(kind) for kind in VENDORS]
    gpu = {"quota": 0.3, "limit": -1, "overQuotaWeight": 1}
    quota = [{"name": "nvidia.com/gpu", "nominalQuota": "8"}]
    async with cluster(control_plane) as client:
        await establish(client, definitions)
        try:
            await create_of(client, kinds.KAI_QUEUES, "kai", {"resources": {"gpu": gpu}})
            await create_of(client, kinds.VOLCANO_QUEUES, "root", {"weight": 1})
            await create_of(client, kinds.VOLCANO_QUEUES, "vc", {"capability": {"nvidia.com/gpu": 4}})
            group = {"coveredResources": ["nvidia.com/gpu"], "flavors": [{"name": "f", "resources": quota}]}
            shared = {"cohortName": "all", "resourceGroups": [group]}
            await create_of(client, kinds.CLUSTER_QUEUES, "cq", shared)
            await create_of(client, kinds.LOCAL_QUEUES, "lq", {"clusterQueue": "cq"}, namespace)
            await create_of(client, kinds.KAI_QUEUES, "odd", {"resources": {"gpu": {"quota": "many"}}})
            await create(client, "ours", limit={"gpu": 1})
            tree = (await load_snapshot(client))[0].queues
        finally:
            for definition in definitions:
                await client.delete(kinds.CRDS, definition["metadata"]["name"], missing_ok=True)
    assert tree.problems == {}
    assert tree.queues["kai"].gpu == Quota(300, None)
    assert (tree.queues["vc"].gpu.limit, tree.queues["vc"].parent) == (4000, "")
    assert tree.paths[f"{namespace}/lq"] == (f"{namespace}/lq", "cq", "cohort:all")
    assert tree.queues["cohort:all"].gpu.limit == 8000
    assert "cannot be read" in tree.queues["odd"].closed
    assert set(tree.queues) == {"kai", "vc", "cq", f"{namespace}/lq", "cohort:all", "odd", "ours", UNQUEUED}


async def create_of(
    client: Client, kind: kinds.Kind, name: str, spec: dict[str, Any], namespace: str | None = None
) -> None:
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    body = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata, "spec": spec}
    await client.create(kind, body)


def test_the_commands_show_the_queues_of_any_cluster(
    control_plane: ControlPlane, namespace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    token = next(iter(control_plane.tokens))
    kubeconfig = str(control_plane.write_kubeconfig(tmp_path / "config", {"token": token}))

    async def prepare() -> None:
        async with Client(control_plane.config) as client:
            await establish(client, custom_resources())
            await create(client, "research", limit={"gpu": 16})
            await create(client, "vision", parent="research", guarantee={"gpu": "2.5"})
            container = {"name": "c", "image": "i", "resources": {"limits": {"nvidia.com/gpu": "2"}}}
            metadata = {"name": "p", "namespace": namespace, "labels": {"gpufleet.dev/queue": "vision"}}
            await client.create(kinds.PODS, {"metadata": metadata, "spec": {"containers": [container]}})

    async def clear() -> None:
        async with cluster(control_plane):
            pass

    asyncio.run(prepare())
    try:
        group.main(["queues", "--kubeconfig", kubeconfig], standalone_mode=False)
        lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
        vision = next(line for line in lines if line[0] == "  vision")
        # The fair share depends on the nodes that other tests have left.
        assert vision[:5] + vision[6:] == ["  vision", "2.5", "-", "0", "2", "0", "1", "gpufleet Queue"]
        group.main(["fairshare", "--kubeconfig", kubeconfig, "-o", "json"], standalone_mode=False)
        data = json.loads(capsys.readouterr().out)
        rows = {row["name"]: row for row in data["queues"]}
        assert rows["research"]["gpu_milli"]["guarantee"] == 2500
        assert (rows["vision"]["waiting"], rows["vision"]["gpu_milli"]["requested"]) == (1, 2000)
    finally:
        asyncio.run(clear())
