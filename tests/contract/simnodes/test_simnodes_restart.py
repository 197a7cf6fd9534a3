"""What survives when the process of the simulated nodes is killed, stopped, or given another fleet file."""

from __future__ import annotations

import asyncio
import signal

from tests.contract.simnodes.fleet import FLEET, Cluster, Opening, manifest, until

from gpufleet.kube.client import ApiError
from gpufleet.kube.gpunode import GPUNode
from gpufleet.kube.kinds import GPU_NODES, NODES
from gpufleet.kube.objects import Node, PartialObject

ASKS_FOR_5S = {"annotations": {"gpufleet.dev/sim-duration": "5s"}}


async def test_running_pods_keep_devices_start_time_and_status_across_a_crash(cluster: Opening) -> None:
    async with cluster as c:
        for name in ("a", "b"):
            await c.bind(manifest(name, 1), "gpu-0")
        await c.bind(manifest("shares", 2), "shared-0")
        for name in ("a", "b", "shares"):
            await c.ready(name)
        before = {name: await c.pod(name) for name in ("a", "b", "shares")}
        held = await c.devices("gpu-0")
        cluster.fleet.stop(signal.SIGKILL)
        await asyncio.to_thread(cluster.fleet.start)
        await asyncio.sleep(1.0)
        for name, seen in before.items():
            assert await c.pod(name) == seen, "not even a write"
        assert await c.devices("gpu-0") == held
        await c.bind(manifest("c", 2), "gpu-0")
        await c.ready("c")
        after = await c.devices("gpu-0")
        assert {**after, "c": ()} == {**held, "c": ()}
        assert not set(after["c"]) & {uuid for uuids in held.values() for uuid in uuids}


async def test_what_happened_while_nobody_played_is_caught_up_with(cluster: Opening) -> None:
    async with cluster as c:
        await c.bind(manifest("kept", 1), "gpu-0")
        await c.bind(manifest("deleted", 1), "gpu-0")
        await c.bind(manifest("forced", 1), "gpu-0")
        await c.bind(manifest("short", restartPolicy="Never", metadata=ASKS_FOR_5S), "cpu-0")
        for name in ("kept", "deleted", "forced", "short"):
            await c.ready(name)
        cluster.fleet.stop(signal.SIGKILL)
        await c.delete("deleted")
        await c.delete("forced", grace=0)
        await c.bind(manifest("new", 2), "gpu-0")
        await asyncio.sleep(3)
        await asyncio.to_thread(cluster.fleet.start)
        await c.gone("deleted")
        await c.ready("new")
        held = await until(lambda: _devices_of(c, "gpu-0", {"kept", "new"}))
        assert not set(held["kept"]) & set(held["new"])
        ended = (await c.phase("short", "Succeeded")).status.container_statuses[0].state.terminated
        assert ended is not None
        assert ended.started_at is not None


async def _devices_of(cluster: Cluster, node: str, pods: set[str]) -> dict[str, tuple[str, ...]] | None:
    held = await cluster.devices(node)
    return held if held.keys() == pods else None


async def test_a_crash_at_any_moment_of_a_rush_gives_no_device_to_two_pods(cluster: Opening) -> None:
    async with cluster as c:
        start = await c.client.list(GPU_NODES)
        rush = [asyncio.create_task(c.bind(manifest(f"p{n}", 1), f"gpu-{n % 2}")) for n in range(8)]
        await asyncio.sleep(0.08)
        cluster.fleet.stop(signal.SIGKILL)
        await asyncio.gather(*rush)
        await asyncio.to_thread(cluster.fleet.start)
        for number in range(8):
            await c.ready(f"p{number}")
        seen: dict[str, str] = {}
        counted = {"gpu-0": 0, "gpu-1": 0}

        def complete(version: GPUNode) -> bool:
            ours = [one for one in version.status.allocations if one.namespace == c.namespace]
            for one in ours:
                for uuid in one.devices:
                    assert seen.setdefault(uuid, one.pod_uid) == one.pod_uid, "a device had two holders"
            counted[version.metadata.name] = len(ours)
            return sum(counted.values()) == 8

        await c.history(GPU_NODES, start.resource_version, GPUNode, complete)


async def test_the_api_server_may_go_and_come_back(cluster: Opening) -> None:
    async with cluster as c:
        await c.bind(manifest("kept", 1), "gpu-0")
        await c.bind(manifest("short", restartPolicy="Never"), "cpu-0")
        await c.ready("kept")
        process = cluster.fleet.process
        assert process is not None
        cluster.fleet.plane.kill_server()
        await asyncio.sleep(4)
        await asyncio.to_thread(cluster.fleet.plane.start_server)
        assert process.poll() is None
        await c.phase("short", "Succeeded", within=30)
        await c.bind(manifest("new", 3), "gpu-0")
        await c.ready("new")
        held = await c.devices("gpu-0")
        assert not set(held["kept"]) & set(held["new"])


async def test_a_deleted_node_stays_deleted_until_the_next_start(cluster: Opening) -> None:
    async with cluster as c:
        await c.client.delete(NODES, "shared-0")
        await until(lambda: _absent(c, "shared-0"), within=40)
        cluster.fleet.stop(signal.SIGKILL)
        await asyncio.to_thread(cluster.fleet.start)
        await c.bind(manifest("p", 1), "shared-0")
        await c.ready("p")


async def test_a_deleted_node_comes_back_with_its_gpus_when_it_is_asked_to(cluster: Opening) -> None:
    async with cluster as c:
        await c.client.delete(NODES, "shared-0")
        await until(lambda: _absent(c, "shared-0"), within=40)
        process = cluster.fleet.process
        assert process is not None
        process.send_signal(signal.SIGHUP)
        await until(lambda: _reports(c, "shared-0"))
        await c.bind(manifest("p", 1), "shared-0")
        await c.ready("p")


async def _reports(cluster: Cluster, node: str) -> bool:
    return bool((await cluster.gpu_node(node)).status.devices)


async def test_what_people_did_to_a_node_stays(cluster: Opening) -> None:
    async with cluster as c:
        node = await c.client.get(NODES, "gpu-1", type=Node)
        taints = [{"key": t.key, "value": t.value, "effect": t.effect} for t in node.spec.taints]
        mine = {"key": "mine", "value": "x", "effect": "NoSchedule"}
        patch = {
            "metadata": {"labels": {"mine": "yes"}, "annotations": {"mine": "too"}},
            "spec": {"unschedulable": True, "taints": [*taints, mine]},
        }
        await c.client.patch(NODES, "gpu-1", patch)
        cluster.fleet.stop(signal.SIGKILL)
        await asyncio.to_thread(cluster.fleet.start)
        after = await c.client.get(NODES, "gpu-1", type=Node)
        assert (after.metadata.labels["mine"], after.metadata.annotations["mine"]) == ("yes", "too")
        assert after.spec.unschedulable
        assert "mine" in {t.key for t in after.spec.taints}
        undo = {"metadata": {"labels": {"mine": None}}, "spec": {"unschedulable": None, "taints": taints}}
        await c.client.patch(NODES, "gpu-1", undo)


async def test_a_changed_fleet_file_changes_what_it_owns_and_removes_what_left_it(cluster: Opening) -> None:
    async with cluster as c:
        changed = FLEET.replace("count: 2", "count: 1").replace("pool: training", "labels: {extra: x}")
        changed = changed.replace("nvidia.com/gpu=present:NoSchedule", "other=y:PreferNoSchedule")
        try:
            await _restart_with(cluster, changed)
            await until(lambda: _absent(c, "gpu-1"))
            node = await c.client.get(NODES, "gpu-0", type=Node)
            assert (node.metadata.labels["extra"], node.metadata.labels["gpufleet.dev/pool"]) == ("x", "gpu")
            assert {t.key for t in node.spec.taints} == {"other"}
        finally:
            await _restart_with(cluster, FLEET)
        node = await c.client.get(NODES, "gpu-0", type=Node)
        assert "extra" not in node.metadata.labels
        assert {t.key for t in node.spec.taints} == {"nvidia.com/gpu"}
        await c.bind(manifest("p", 4), "gpu-1")
        await c.ready("p")


async def _restart_with(cluster: Opening, fleet: str) -> None:
    await asyncio.to_thread(cluster.fleet.stop)
    cluster.fleet.fleet_file.write_text(fleet)
    await asyncio.to_thread(cluster.fleet.start)


async def _absent(cluster: Cluster, node: str) -> bool:
    for kind in (NODES, GPU_NODES):
        try:
            await cluster.client.get(kind, node, type=PartialObject)
        except ApiError as error:
            if error.not_found:
                continue
            raise
        return False
    return True


async def test_pods_that_no_longer_fit_the_devices_are_failed_not_shared(cluster: Opening) -> None:
    async with cluster as c:
        await c.bind(manifest("p", 4), "gpu-0")
        await c.ready("p")
        try:
            await _restart_with(cluster, FLEET.replace("gpusPerNode: 4", "gpusPerNode: 2"))
            pod = await c.phase("p", "Failed")
            assert pod.status.reason == "UnexpectedAdmissionError"
        finally:
            await _restart_with(cluster, FLEET)
