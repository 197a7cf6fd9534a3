"""Pools against the real API server: what it refuses, what the controller does to nodes and takes back."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import pytest
from tests.contract.servers import ControlPlane

from gpufleet.devices.controller import DevicesController
from gpufleet.devices.pool_records import RECORD_ANNOTATION
from gpufleet.kube.client import ApiError, Client
from gpufleet.kube.crds import establish
from gpufleet.kube.custom_resources import custom_resources
from gpufleet.kube.events import EventRecorder
from gpufleet.kube.gpunode_writes import create_gpu_node
from gpufleet.kube.kinds import EVENTS, GPU_NODES, GPU_POOLS, NODES
from gpufleet.kube.pool_writes import FIELD_MANAGER, ask_node, change_node

GPU_TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
H100 = "NVIDIA-H100-80GB-HBM3"
_numbers = itertools.count()


class Cluster:
    """Nodes and pools of one test, by names that no other test has."""

    def __init__(self, client: Client, plane: ControlPlane) -> None:
        self.client = client
        self._plane = plane
        self.id = f"pool-{os.getpid()}-{next(_numbers)}"

    def name(self, name: str) -> str:
        return f"{self.id}-{name}"

    async def node(self, name: str, **metadata: Any) -> str:
        """A node that pools of this test select by the label `group`; its name."""
        labels = {"group": self.id, **metadata.pop("labels", {})}
        spec = metadata.pop("spec", {})
        body = {"metadata": {"name": self.name(name), "labels": labels, **metadata}, "spec": spec}
        await self.client.create(NODES, body)
        return self.name(name)

    async def gpus(self, node: str, count: int = 2) -> None:
        """The GPUNode of a node, as its agent writes it."""
        uid = (await self.client.get(NODES, node))["metadata"]["uid"]
        await create_gpu_node(self.client, node, uid)
        devices = [
            {"index": n, "uuid": f"GPU-{n}", "product": H100, "memoryMib": 81559, "healthy": True}
            for n in range(count)
        ]
        status = {"devices": devices, "resources": [{"name": "nvidia.com/gpu", "capacity": 2, "healthy": 2}]}
        await self.client.patch(GPU_NODES, node, {"status": status}, subresource="status")

    async def pool(self, name: str, **spec: Any) -> str:
        body = {"metadata": {"name": self.name(name)}, "spec": {**self.selecting(), **spec}}
        await self.client.apply(GPU_POOLS, body, field_manager="test")
        return self.name(name)

    def selecting(self, **labels: str) -> dict[str, Any]:
        return {"nodeSelector": {"matchLabels": {"group": self.id, **labels}}}

    async def labels(self, node: str) -> dict[str, str]:
        found: dict[str, str] = (await self.client.get(NODES, node))["metadata"]["labels"]
        return found

    async def taints(self, node: str) -> list[dict[str, str]]:
        """The taints of a node apart from the one that the API server gives to nodes that are not Ready."""
        found = (await self.client.get(NODES, node))["spec"].get("taints", [])
        return [taint for taint in found if not taint["key"].startswith("node.kubernetes.io/")]

    async def desired(self, node: str) -> dict[str, Any]:
        found: dict[str, Any] = (await self.client.get(GPU_NODES, node))["spec"].get("desired", {})
        return found

    async def status(self, pool: str) -> dict[str, Any]:
        """The status of a pool once it is about the newest spec, else nothing."""
        found = await self.client.get(GPU_POOLS, pool)
        status: dict[str, Any] = found.get("status", {})
        return status if status.get("observedGeneration") == found["metadata"]["generation"] else {}

    async def condition(self, pool: str, kind: str) -> tuple[str, str]:
        for one in (await self.status(pool)).get("conditions", ()):
            if one["type"] == kind:
                return one["status"], one["reason"]
        return "", ""

    async def settled(self, pool: str) -> None:
        async def ready() -> bool:
            return (await self.condition(pool, "Ready"))[0] == "True"

        await until(ready)

    @contextlib.asynccontextmanager
    async def controlled(self) -> AsyncIterator[DevicesController]:
        """The controller of devices at work."""
        async with Client(self._plane.config) as client:
            recorder = EventRecorder(client, controller="gpufleet.dev/devices")
            controller = DevicesController(client, recorder)

            async def leading() -> None:
                pass

            async with asyncio.TaskGroup() as tasks:
                running = [tasks.create_task(controller.run(leading)), tasks.create_task(recorder.run())]
                try:
                    yield controller
                finally:
                    await recorder.flush(5.0)
                    for task in running:
                        task.cancel()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until something is true, for at most twenty seconds."""
    async with asyncio.timeout(20):
        while not await condition():
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def cluster(plane: ControlPlane) -> AsyncIterator[Cluster]:
    async with Client(plane.config) as client:
        await establish(client, custom_resources())
        found = Cluster(client, plane)
        try:
            yield found
        finally:
            for kind in (GPU_POOLS, GPU_NODES, NODES):
                for one in (await client.list(kind)).items:
                    if one["metadata"]["name"].startswith(found.id):
                        await client.delete(kind, one["metadata"]["name"], missing_ok=True)


SELECTS = {"matchLabels": {"zone": "a"}}
MPS = {"mode": "mps", "replicas": 2}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"nodeSelector": {}}, "an empty selector would claim every node"),
        ({"nodeSelector": {"matchLabels": {}}}, "an empty selector would claim every node"),
        (
            {"nodeSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}},
            "In and NotIn need values",
        ),
        (
            {"nodeSelector": {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["x"]}]}},
            "Exists and DoesNotExist have none",
        ),
        ({"nodeSelector": {"matchLabels": {"zone": "-a"}}}, "should match"),
        ({"labels": {"gpufleet.dev/pool": "x"}}, "labels of gpufleet.dev are set by gpufleet"),
        ({"labels": {"a b": "x"}}, "a key of labels is not a label key"),
        ({"labels": {"a": "x y"}}, "should match"),
        ({"purpose": "fun"}, "Unsupported value"),
        ({"gpuTaint": True, "taints": [{**GPU_TAINT, "value": "true"}]}, "gpuTaint and taints both set"),
        ({"taints": [{"key": "a", "effect": "Never"}]}, "Unsupported value"),
        (
            {"taints": [{"key": "a", "effect": "NoExecute"}, {"key": "a", "effect": "NoExecute"}]},
            "Duplicate value",
        ),
        ({"sharing": {"mode": "timeSlicing"}}, "timeSlicing and mps need replicas"),
        ({"sharing": {"mode": "none", "replicas": 2}}, "none has none"),
        ({"sharing": {"mode": "none", "rename": True}}, "rename is for devices that are shared"),
        ({"sharing": {"mode": "timeSlicing", "replicas": 1}}, "greater than or equal to 2"),
        ({"sharing": {"mode": "mps", "replicas": 49}}, "MPS serves at most 48"),
        ({"sharing": MPS, "mig": {"layout": "all-balanced"}}, "MPS does not serve GPUs that are cut by MIG"),
        ({"sharing": MPS, "mig": {"dynamic": True}}, "MPS does not serve GPUs that are cut by MIG"),
        ({"mig": {}}, "exactly one of layout, profiles and dynamic"),
        ({"mig": {"layout": "all-balanced", "dynamic": True}}, "exactly one of layout, profiles and dynamic"),
        ({"mig": {"profiles": ["1g.10gb"], "dynamic": True}}, "exactly one of layout, profiles and dynamic"),
        ({"mig": {"layout": "balanced"}}, "should match"),
        ({"price": {"perGpuHourMicros": -1}}, "greater than or equal to 0"),
        ({"price": {"perGpuHourMicros": 1, "currency": "Euro"}}, "should match"),
        ({"disruption": "maybe"}, "Unsupported value"),
    ],
)
async def test_a_pool_that_makes_no_sense_is_refused(
    control_plane: ControlPlane, spec: dict[str, Any], words: str
) -> None:
    async with cluster(control_plane) as c:
        body = {"metadata": {"name": c.name("bad")}, "spec": {"nodeSelector": SELECTS, **spec}}
        with pytest.raises(ApiError) as caught:
            await c.client.create(GPU_POOLS, body)
        assert caught.value.status == 422
        assert words in caught.value.message


SENSIBLE: tuple[dict[str, Any], ...] = (
    {"sharing": MPS, "mig": {"layout": "all-disabled"}},
    {"sharing": {"mode": "timeSlicing", "replicas": 64}, "mig": {"profiles": ["1g.10gb+me"]}},
    {"mig": {"dynamic": True, "allowModeSwitch": True}, "disruption": "act"},
    {"gpuTaint": True, "taints": [{"key": "nvidia.com/gpu", "effect": "NoExecute"}]},
    {"price": {"perGpuHourMicros": 2_500_000}, "purpose": "inference", "labels": {"a.b/c": ""}},
)


async def test_a_pool_that_makes_sense_is_taken(control_plane: ControlPlane) -> None:
    async with cluster(control_plane) as c:
        for number, spec in enumerate(SENSIBLE):
            await c.pool(str(number), nodeSelector=SELECTS, **spec)
        cheap = await c.client.get(GPU_POOLS, c.name("4"))
        assert (cheap["spec"]["disruption"], cheap["spec"]["price"]["currency"]) == ("advise", "USD")
        long = {"metadata": {"name": "x" * 64}, "spec": {"nodeSelector": SELECTS}}
        with pytest.raises(ApiError, match="at most 63 characters"):
            await c.client.create(GPU_POOLS, long)


async def test_labels_and_taints_are_set_and_taken_back_to_what_they_were(
    control_plane: ControlPlane,
) -> None:
    before = {**GPU_TAINT, "value": "true"}
    async with cluster(control_plane) as c, c.controlled():
        node = await c.node("a", labels={"tier": "bronze"}, spec={"taints": [before]})
        pool = await c.pool("p", purpose="training", labels={"tier": "gold", "new": "1"}, gpuTaint=True)
        await c.settled(pool)
        assert await c.labels(node) == {
            "group": c.id,
            "tier": "gold",
            "new": "1",
            "gpufleet.dev/pool": pool,
            "gpufleet.dev/purpose": "training",
        }
        assert await c.taints(node) == [GPU_TAINT]
        status = await c.status(pool)
        assert (status["nodeCount"], status["readyNodes"], status["driftedNodes"]) == (1, 0, 0)
        await c.client.delete(GPU_POOLS, pool)

        async def undone() -> bool:
            return "gpufleet.dev/pool" not in await c.labels(node)

        await until(undone)
        assert await c.labels(node) == {"group": c.id, "tier": "bronze"}
        assert await c.taints(node) == [before]
        found = await c.client.get(NODES, node)
        assert RECORD_ANNOTATION not in found["metadata"].get("annotations", {})
        events = await told(c, node)
        assert {"PoolApplied", "PoolUndone"} <= events


async def test_two_pools_that_claim_one_node_are_refused_by_name_and_the_node_stays_as_it_is(
    control_plane: ControlPlane,
) -> None:
    async with cluster(control_plane) as c, c.controlled():
        node = await c.node("a", labels={"team": "x"})
        first = await c.pool("first", labels={"tier": "gold"})
        await c.settled(first)
        version = (await c.client.get(NODES, node))["metadata"]["resourceVersion"]
        second = await c.pool("second", **c.selecting(team="x"), labels={"tier": "silver"}, gpuTaint=True)

        async def disputed() -> bool:
            return all(
                [await c.condition(name, "Conflict") == ("True", "PoolConflict") for name in (first, second)]
            )

        await until(disputed)
        for name, rival in ((first, second), (second, first)):
            status = await c.status(name)
            message = next(one["message"] for one in status["conditions"] if one["type"] == "Conflict")
            assert node in message
            assert rival in message
            assert (status["contestedNodes"], status["nodeCount"]) == (1, 0)
            assert status["nodes"][0]["reasons"][0]["code"] == "PoolConflict"
        assert (await c.client.get(NODES, node))["metadata"]["resourceVersion"] == version
        await c.client.delete(GPU_POOLS, first)
        await c.settled(second)
        assert (await c.labels(node))["tier"] == "silver"


async def test_what_others_do_to_a_node_survives(control_plane: ControlPlane) -> None:
    theirs = {"key": "team", "value": "x", "effect": "NoExecute"}
    cordon = {"key": "maintenance", "effect": "NoSchedule"}
    async with cluster(control_plane) as c:
        async with c.controlled():
            node = await c.node("a", spec={"taints": [theirs]})
            pool = await c.pool("p", labels={"tier": "gold"}, gpuTaint=True)
            await c.settled(pool)
            mine = [cordon, {**GPU_TAINT, "value": "mine"}, theirs]
            patch = {"metadata": {"labels": {"tier": "mine"}}, "spec": {"taints": mine}}
            await c.client.patch(NODES, node, patch)

            async def drifted() -> bool:
                return (await c.status(pool)).get("driftedNodes") == 1

            await until(drifted)
            codes = [one["code"] for one in (await c.status(pool))["nodes"][0]["reasons"]]
            assert codes == ["PoolLabelDrift", "PoolTaintDrift"]
            await c.client.delete(GPU_POOLS, pool)

            async def undone() -> bool:
                return "gpufleet.dev/pool" not in await c.labels(node)

            await until(undone)
        assert (await c.labels(node))["tier"] == "mine"
        assert await c.taints(node) == mine


async def test_a_write_that_was_overtaken_changes_nothing(control_plane: ControlPlane) -> None:
    async with cluster(control_plane) as c:
        node = await c.node("a")
        version = (await c.client.get(NODES, node))["metadata"]["resourceVersion"]
        await c.client.patch(NODES, node, {"metadata": {"labels": {"their": "label"}}})
        for taints in ({}, {"nvidia.com/gpu:NoSchedule": "present"}):
            assert not await change_node(
                c.client, node, version, labels={"a": "b"}, annotations={}, taints=taints
            )
        assert not await change_node(c.client, c.name("x"), version, labels={}, annotations={}, taints={})
        assert not await ask_node(c.client, c.name("x"), "some-uid", {"pool": "p"})
        assert await c.labels(node) == {"group": c.id, "their": "label"}
        with pytest.raises(ApiError) as caught:
            await c.client.get(GPU_NODES, c.name("x"))
        assert caught.value.not_found


async def test_another_start_of_the_controller_changes_nothing(control_plane: ControlPlane) -> None:
    async with cluster(control_plane) as c:
        async with c.controlled():
            for name in ("a", "b"):
                await c.gpus(await c.node(name))
            pool = await c.pool("p", labels={"tier": "gold"}, gpuTaint=True, sharing={"mode": "none"})
            await c.settled(pool)
        before = await versions(c)
        async with c.controlled() as second:

            async def synced() -> bool:
                return second.synced

            await until(synced)
            marker = await c.pool("marker", **c.selecting(other="thing"))

            async def decided() -> bool:
                return await c.condition(marker, "Ready") == ("False", "PoolEmpty")

            await until(decided)
        after = await versions(c)
        assert {key: after[key] for key in before} == before


async def test_a_dynamic_pool_leaves_the_cuts_to_the_scheduler_until_it_is_not_dynamic_any_more(
    control_plane: ControlPlane,
) -> None:
    theirs = [{"uuid": "GPU-0", "enabled": True, "instances": [{"profile": "1g.10gb", "start": 6}]}]
    async with cluster(control_plane) as c, c.controlled():
        node = await c.node("a")
        await c.gpus(node)
        await c.client.patch(GPU_NODES, node, {"spec": {"desired": {"quarantine": ["GPU-1"]}}})
        pool = await c.pool("p", mig={"layout": "all-balanced"}, disruption="act")

        async def cut() -> bool:
            return len((await c.desired(node)).get("mig", ())) == 2

        await until(cut)
        await c.pool("p", mig={"dynamic": True}, disruption="act")

        async def dynamic() -> bool:
            return bool((await c.desired(node)).get("dynamic"))

        await until(dynamic)
        assert "mig" not in await c.desired(node), "the wishes of the layout are given up with their field"
        body = {"metadata": {"name": node}, "spec": {"desired": {"mig": theirs}}}
        await c.client.apply(GPU_NODES, body, field_manager="scheduler")
        await c.pool("p", mig={"dynamic": True}, sharing={"mode": "none"}, disruption="act")

        async def shared() -> bool:
            return "sharing" in await c.desired(node)

        await until(shared)
        desired = await c.desired(node)
        assert (desired["mig"], desired["quarantine"]) == (theirs, ["GPU-1"])
        assert owners(await c.client.get(GPU_NODES, node), "mig") == {"scheduler"}
        await c.client.delete(GPU_POOLS, pool)

        async def left() -> bool:
            return not (await c.desired(node)).get("pool")

        await until(left)
        assert await c.desired(node) == {"quarantine": ["GPU-1"], "mig": []}


async def test_a_pool_that_does_not_decode_takes_nothing_from_its_nodes(control_plane: ControlPlane) -> None:
    """A newer gpufleet may have written it: with an older schema the server would have refused it."""
    async with cluster(control_plane) as c:
        async with c.controlled():
            node = await c.node("a")
            await c.settled(await c.pool("p", labels={"tier": "gold"}))
        definition = next(one for one in custom_resources() if one["spec"]["names"]["kind"] == "GPUPool")
        loose = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        version = {**definition["spec"]["versions"][0], "schema": {"openAPIV3Schema": loose}}
        newer = {**definition, "spec": {**definition["spec"], "versions": [version]}}
        await establish(c.client, [newer])
        try:
            await c.client.patch(GPU_POOLS, c.name("p"), {"spec": {"disruption": {"newer": "form"}}})
            async with c.controlled():
                marker = await c.pool("marker", **c.selecting(other="thing"))

                async def decided() -> bool:
                    return await c.condition(marker, "Ready") == ("False", "PoolEmpty")

                await until(decided)
            assert (await c.labels(node))["tier"] == "gold"
        finally:
            await c.client.delete(GPU_POOLS, c.name("p"))
            await establish(c.client, custom_resources())


async def test_what_pools_ask_of_agents_is_owned_by_a_field_manager_of_their_own(
    control_plane: ControlPlane,
) -> None:
    async with cluster(control_plane) as c, c.controlled():
        node = await c.node("a")
        await c.gpus(node)
        await c.settled(await c.pool("p"))
        found = await c.client.get(GPU_NODES, node)
        assert owners(found, "pool") == {FIELD_MANAGER}
        assert owners(found, "quarantine") == set()


async def told(c: Cluster, node: str) -> set[str]:
    """The reasons of the Events about a node."""
    events = (await c.client.list(EVENTS, "default")).items
    return {one["reason"] for one in events if one.get("regarding", {}).get("name") == node}


async def versions(c: Cluster) -> Mapping[tuple[str, str], str]:
    """The resourceVersion of everything that this test has made."""
    return {
        (kind.plural, one["metadata"]["name"]): one["metadata"]["resourceVersion"]
        for kind in (NODES, GPU_NODES, GPU_POOLS)
        for one in (await c.client.list(kind)).items
        if one["metadata"]["name"].startswith(c.id)
    }


def owners(found: dict[str, Any], field: str) -> set[str]:
    """The field managers that own a field of `spec.desired`."""
    return {
        one["manager"]
        for one in found["metadata"]["managedFields"]
        if f"f:{field}" in one["fieldsV1"].get("f:spec", {}).get("f:desired", {})
    }
