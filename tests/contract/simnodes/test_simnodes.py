"""Simulated nodes against the real API server and controller-manager: nodes, pods and devices."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.contract.simnodes.fleet import (
    Cluster,
    Opening,
    encoded,
    is_ready,
    manifest,
    until,
)

from gpufleet.fleet.devices import DevicePick
from gpufleet.kube.conventions.picked_devices import annotated
from gpufleet.kube.gpunode import GPUNode
from gpufleet.kube.kinds import (
    GPU_NODES,
    LEASES,
    NODES,
    PERSISTENT_VOLUME_CLAIMS,
    PERSISTENT_VOLUMES,
    PODS,
)
from gpufleet.kube.objects import Node, PersistentVolume, PersistentVolumeClaim, Pod


async def test_nodes_register_with_labels_taints_resources_and_leases(cluster: Opening) -> None:
    async with cluster as c:
        node = await until(lambda: _node_where(c, "gpu-1", lambda n: len(n.spec.taints) == 1))
        labels = node.metadata.labels
        assert labels["nvidia.com/gpu.product"] == "NVIDIA-H100-80GB-HBM3"
        assert labels["topology.kubernetes.io/zone"] == "z1"
        assert (labels["gpufleet.dev/pool"], labels["gpufleet.dev/rack"]) == ("training", "r1")
        assert [(t.key, t.value, t.effect) for t in node.spec.taints] == [
            ("nvidia.com/gpu", "present", "NoSchedule")
        ], "the not-ready taint of admission is taken away once the node is Ready"
        assert node.status.allocatable["nvidia.com/gpu"] == "4"
        assert {x.type: x.status for x in node.status.conditions}["Ready"] == "True"
        assert node.status.node_info.kubelet_version == "v1.37.2"
        assert node.status.daemon_endpoints.kubelet_endpoint.port == cluster.fleet.kubelet_port
        lease = await c.client.get(LEASES, "gpu-1", "kube-node-lease")
        assert lease["spec"]["holderIdentity"] == "gpu-1"
        assert await until(lambda: _resources(c, "cut-0")) == {
            "nvidia.com/mig-1g.10gb": 2,
            "nvidia.com/mig-2g.20gb": 1,
            "nvidia.com/mig-3g.40gb": 1,
        }
        assert await until(lambda: _resources(c, "shared-0")) == {"nvidia.com/gpu": 2}
        await until(
            lambda: _node_where(c, "shared-0", lambda n: n.status.allocatable["nvidia.com/gpu"] == "2")
        )


async def _node_where(cluster: Cluster, name: str, holds: Any) -> Node | None:
    node = await cluster.client.get(NODES, name, type=Node)
    return node if holds(node) else None


async def _resources(cluster: Cluster, node: str) -> dict[str, int] | None:
    """What the GPUNode says that the node has; None while it says nothing yet."""
    resources = (await cluster.gpu_node(node)).status.resources
    return {one.name: one.capacity for one in resources} or None


async def test_a_pod_gets_the_devices_that_came_with_its_binding(cluster: Opening) -> None:
    async with cluster as c:
        await until(lambda: _resources(c, "gpu-0"))
        status = (await c.gpu_node("gpu-0")).status
        third, second = status.devices[2].uuid, status.devices[1].uuid
        picks = [DevicePick("main", "nvidia.com/gpu", (third, second))]
        await c.bind(manifest("p", 2), "gpu-0", annotated(picks))
        await c.ready("p")
        assert set((await c.devices("gpu-0"))["p"]) == {second, third}


async def test_devices_are_on_record_before_the_pod_is_reported_running(cluster: Opening) -> None:
    async with cluster as c:
        start = await c.client.list(GPU_NODES)
        await c.bind(manifest("p", 2), "gpu-0")
        pod = await c.ready("p")

        def holds(gpu_node: GPUNode) -> bool:
            return any(one.pod_uid == pod.metadata.uid for one in gpu_node.status.allocations)

        recorded = (await c.history(GPU_NODES, start.resource_version, GPUNode, holds))[-1]
        assert int(recorded.metadata.resource_version) < int(pod.metadata.resource_version)
        assert len((await c.devices("gpu-0"))["p"]) == 2


async def test_a_pod_is_ready_after_at_most_two_status_writes(cluster: Opening) -> None:
    async with cluster as c:
        probe = {"readinessProbe": {"httpGet": {"port": 80}}}
        created = await c.bind(manifest("p", 1, container=probe), "gpu-0")
        versions = await c.history(PODS, created.metadata.resource_version, Pod, is_ready)
        ours = [pod for pod in versions if pod.status.start_time]
        assert 1 <= len(ours) <= 2
        status = ours[-1].status
        assert status.container_statuses[0].started
        assert status.pod_ip.startswith("10.")
        assert status.observed_generation == ours[-1].metadata.generation


@pytest.mark.parametrize(
    ("body", "node", "reason"),
    [
        (manifest("x", container={"resources": {"requests": {"cpu": "5"}}}), "cpu-0", "OutOfcpu"),
        (manifest("x", nodeSelector={"gpufleet.dev/pool": "other"}), "cpu-0", "NodeAffinity"),
        (manifest("x", 5), "gpu-0", "OutOfnvidia.com/gpu"),
        (manifest("x", 1, resource="nvidia.com/mig-7g.80gb"), "cut-0", "UnexpectedAdmissionError"),
        (manifest("x", 1), "cpu-0", "UnexpectedAdmissionError"),
    ],
)
async def test_a_pod_that_does_not_fit_fails_as_on_a_real_node(
    cluster: Opening, body: dict[str, Any], node: str, reason: str
) -> None:
    async with cluster as c:
        await c.bind(body, node)
        pod = await c.phase("x", "Failed")
        assert (pod.status.reason, pod.status.message[:17]) == (reason, "Pod was rejected:")
        assert "x" not in await c.devices(node)
        await c.delete("x")
        await c.gone("x")


async def test_more_pods_than_devices_never_share_one(cluster: Opening) -> None:
    async with cluster as c:
        await asyncio.gather(*(c.bind(manifest(f"p{n}", 1), "gpu-1") for n in range(7)))

        async def settled() -> list[Pod] | None:
            pods = (await c.client.list(PODS, c.namespace, type=Pod)).items
            return pods if all(p.status.phase in ("Running", "Failed") for p in pods) else None

        pods = await until(settled)
        running = {p.metadata.name for p in pods if p.status.phase == "Running"}
        held = await c.devices("gpu-1")
        assert held.keys() == running
        assert len({uuid for uuids in held.values() for uuid in uuids}) == len(running) == 4
        assert {p.status.reason for p in pods if p.status.phase == "Failed"} == {"OutOfnvidia.com/gpu"}


async def test_mig_instances_are_exclusive_and_shares_are_not(cluster: Opening) -> None:
    async with cluster as c:
        for name in ("m1", "m2"):
            await c.bind(manifest(name, 1, resource="nvidia.com/mig-1g.10gb"), "cut-0")
            await c.bind(manifest(f"s{name}", 1), "shared-0")
        for name in ("m1", "m2", "sm1", "sm2"):
            await c.ready(name)
        cut, shared = await c.devices("cut-0"), await c.devices("shared-0")
        assert cut["m1"] != cut["m2"]
        assert all(uuid.startswith("MIG-") for uuids in cut.values() for uuid in uuids)
        assert shared["sm1"] == shared["sm2"]
        summary = (await c.gpu_node("cut-0")).status.summary
        assert summary is not None
        assert (summary.gpus, summary.allocated) == (1, 1)


async def test_pods_end_as_they_ask_to(cluster: Opening) -> None:
    async with cluster as c:
        duration = {"gpufleet.dev/sim-duration": "0.3s"}
        code = {**duration, "gpufleet.dev/sim-exit-code": "3"}
        never = {"restartPolicy": "Never"}
        await c.bind(manifest("good", 1, metadata={"annotations": duration}, **never), "gpu-0")
        await c.bind(manifest("bad", 1, metadata={"annotations": code}, **never), "gpu-0")
        await c.bind(manifest("default", 1, **never), "gpu-0")
        await c.bind(manifest("odd", metadata={"labels": {"gpufleet.dev/sim-duration": "soon"}}), "cpu-0")
        assert (await c.phase("good", "Succeeded")).status.container_statuses[0].state.terminated is not None
        bad = (await c.phase("bad", "Failed")).status.container_statuses[0].state.terminated
        assert bad is not None
        assert (bad.exit_code, bad.reason) == (3, "Error")
        await c.phase("default", "Succeeded")
        await until(lambda: c.free("gpu-0"))
        await c.phase("odd", "Running")
        await until(lambda: _event(c, "odd", "InvalidSimulation"))


async def _event(cluster: Cluster, pod: str, reason: str) -> bool:
    path = f"/apis/events.k8s.io/v1/namespaces/{cluster.namespace}/events"
    text = (await cluster.client.request("GET", path)).decode()
    return f'"reason":"{reason}"' in text and f'"name":"{pod}"' in text


async def test_a_failing_container_is_restarted_with_a_pause_that_is_reported(cluster: Opening) -> None:
    async with cluster as c:
        asks = {"gpufleet.dev/sim-duration": "0.1s", "gpufleet.dev/sim-exit-code": "1"}
        await c.bind(manifest("p", metadata={"annotations": asks}, restartPolicy="OnFailure"), "cpu-0")

        async def backing_off() -> Pod | None:
            pod = await c.pod("p")
            statuses = pod.status.container_statuses
            waiting = statuses[0].state.waiting if statuses else None
            crashing = waiting is not None and waiting.reason == "CrashLoopBackOff"
            return pod if crashing and statuses[0].restart_count >= 2 else None

        pod = await until(backing_off)
        last = pod.status.container_statuses[0].last_state.terminated
        assert last is not None
        assert last.exit_code == 1
        await until(lambda: _event(c, "p", "BackOff"))


async def test_init_containers_and_sidecars_come_first(cluster: Opening) -> None:
    async with cluster as c:
        inits = [{"name": "i", "image": "i:1"}, {"name": "s", "image": "s:1", "restartPolicy": "Always"}]
        await c.bind(manifest("p", initContainers=inits, restartPolicy="Never"), "cpu-0")
        pod = await c.ready("p")
        states = {s.name: s.state for s in pod.status.init_container_statuses}
        assert states["i"].terminated is not None
        assert states["i"].terminated.reason == "Completed"
        assert states["s"].running is not None
        done = await c.phase("p", "Succeeded")
        assert done.status.init_container_statuses[1].state.terminated is not None


async def test_deletion_is_graceful_and_ends_with_a_final_status(cluster: Opening) -> None:
    async with cluster as c:
        await c.bind(manifest("p", 1, terminationGracePeriodSeconds=5), "gpu-0")
        await c.ready("p")
        version = (await c.pod("p")).metadata.resource_version
        await c.delete("p")
        last = (await c.history(PODS, version, Pod, lambda pod: pod.status.phase == "Failed"))[-1]
        await c.gone("p")
        terminated = last.status.container_statuses[0].state.terminated
        assert terminated is not None
        assert (last.status.phase, terminated.exit_code) == ("Failed", 143)
        await until(lambda: c.free("gpu-0"))


async def test_a_forced_deletion_frees_the_devices_at_once(cluster: Opening) -> None:
    async with cluster as c:
        await c.bind(manifest("p", 4), "gpu-0")
        await c.ready("p")
        await c.delete("p", grace=0)
        await until(lambda: c.free("gpu-0"))
        await c.bind(manifest("q", 4), "gpu-0")
        await c.ready("q")


async def test_a_deadline_fails_the_pod(cluster: Opening) -> None:
    async with cluster as c:
        await c.bind(manifest("p", activeDeadlineSeconds=1), "cpu-0")
        assert (await c.phase("p", "Failed")).status.reason == "DeadlineExceeded"


def asking(name: str, cpu: str) -> dict[str, Any]:
    """A pod that asks for processors and may be resized."""
    return manifest(name, container={"resources": {"requests": {"cpu": cpu}, "limits": {"cpu": cpu}}})


async def resize(c: Cluster, name: str, cpu: str) -> None:
    """Ask for another amount of processors."""
    container = asking(name, cpu)["spec"]["containers"][0]
    patch = {"spec": {"containers": [{"name": "main", "resources": container["resources"]}]}}
    await c.client.patch(PODS, name, patch, c.namespace, strategy="strategic", subresource="resize")


async def granted(c: Cluster, name: str, cpu: str) -> bool:
    """Whether the pod has so much and asks for no more."""
    status = (await c.pod(name)).status
    actual = status.container_statuses[0].resources
    pending = any(x.type == "PodResizePending" for x in status.conditions)
    return not pending and actual is not None and actual.requests["cpu"] == cpu


async def deferred(c: Cluster, name: str) -> bool:
    """Whether the pod waits for what it asks for."""
    conditions = (await c.pod(name)).status.conditions
    return any(x.type == "PodResizePending" and x.reason == "Deferred" for x in conditions)


async def test_a_resize_is_granted_at_once_or_deferred_until_there_is_room(cluster: Opening) -> None:
    async with cluster as c:
        for name in ("p", "q"):
            await c.bind(asking(name, "1"), "cpu-0")
            await c.ready(name)
        await resize(c, "p", "2")
        await until(lambda: granted(c, "p", "2"))
        await resize(c, "p", "3500m")
        await until(lambda: deferred(c, "p"))
        await c.delete("q", grace=0)
        await until(lambda: granted(c, "p", "3500m"))


async def test_what_a_pod_gave_back_is_there_for_the_next_one_when_its_status_says_so(
    cluster: Opening,
) -> None:
    async with cluster as c:
        await c.bind(asking("p", "3"), "cpu-0")
        await c.bind(asking("q", "500m"), "cpu-0")
        await c.ready("p")
        await c.ready("q")
        await resize(c, "q", "2")
        await until(lambda: deferred(c, "q"))
        await resize(c, "p", "1")
        await until(lambda: granted(c, "p", "1"))
        await c.bind(asking("r", "1"), "cpu-0")
        await c.ready("r")
        await until(lambda: granted(c, "q", "2"))


async def test_a_quarantined_and_a_broken_gpu_are_not_offered_any_more(cluster: Opening) -> None:
    async with cluster as c:
        devices = (await c.gpu_node("gpu-1")).status.devices
        quarantine = {"spec": {"desired": {"quarantine": [devices[0].uuid]}}}
        broken = {"metadata": {"annotations": {"gpufleet.dev/sim-unhealthy": "1=Xid79"}}}
        await c.client.patch(GPU_NODES, "gpu-1", {**quarantine, **broken})

        async def offered(count: str) -> bool:
            node = await c.client.get(NODES, "gpu-1", type=Node)
            status = (await c.gpu_node("gpu-1")).status
            current = status.observed_generation == (await c.gpu_node("gpu-1")).metadata.generation
            return node.status.allocatable["nvidia.com/gpu"] == count and current

        await until(lambda: offered("2"))
        reasons = [d.reason for d in (await c.gpu_node("gpu-1")).status.devices]
        assert reasons == ["Quarantined", "Xid79", "", ""]
        await c.bind(manifest("p", 2), "gpu-1")
        await c.ready("p")
        assert set((await c.devices("gpu-1"))["p"]) == {devices[2].uuid, devices[3].uuid}
        healed = {"metadata": {"annotations": {"gpufleet.dev/sim-unhealthy": None}}}
        await c.client.patch(GPU_NODES, "gpu-1", {**healed, "spec": {"desired": {"quarantine": []}}})
        await until(lambda: offered("4"))


async def test_a_deleted_gpunode_comes_back_with_its_allocations(cluster: Opening) -> None:
    async with cluster as c:
        await c.bind(manifest("p", 1), "gpu-0")
        await c.ready("p")
        before = await c.devices("gpu-0")
        await c.client.delete(GPU_NODES, "gpu-0")
        await until(lambda: _same_devices(c, "gpu-0", before))


async def _same_devices(cluster: Cluster, node: str, wanted: dict[str, tuple[str, ...]]) -> bool:
    return await cluster.devices(node) == wanted


async def test_a_node_that_was_given_up_reports_ready_again(cluster: Opening) -> None:
    async with cluster as c:
        unknown = {"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"}
        patch = {"status": {"conditions": [unknown]}}
        await c.client.patch(NODES, "cpu-0", patch, strategy="strategic", subresource="status")
        await until(lambda: _node_where(c, "cpu-0", is_ready))


async def test_a_pod_whose_readiness_somebody_else_took_reports_it_again(cluster: Opening) -> None:
    async with cluster as c:
        await c.bind(manifest("p"), "cpu-0")
        await c.ready("p")
        patch = {"status": {"conditions": [{"type": "Ready", "status": "False"}]}}
        await c.client.patch(PODS, "p", patch, c.namespace, strategy="strategic", subresource="status")
        await c.ready("p")


async def test_claims_get_volumes_on_the_selected_node_and_lose_them_again(cluster: Opening) -> None:
    async with cluster as c:
        for name, mode in (("local", "ReadWriteOnce"), ("everywhere", "ReadWriteMany")):
            claim = {
                "metadata": {
                    "name": name,
                    "annotations": {"volume.kubernetes.io/selected-node": "cpu-0"},
                },
                "spec": {"accessModes": [mode], "resources": {"requests": {"storage": "1Gi"}}},
            }
            await c.client.create(PERSISTENT_VOLUME_CLAIMS, claim, c.namespace)

        async def bound() -> list[PersistentVolumeClaim] | None:
            claims = await c.client.list(PERSISTENT_VOLUME_CLAIMS, c.namespace, type=PersistentVolumeClaim)
            return claims.items if all(x.status.phase == "Bound" for x in claims.items) else None

        claims = {claim.metadata.name: claim for claim in await until(bound)}
        volumes = {
            name: await c.client.get(PERSISTENT_VOLUMES, claim.spec.volume_name, type=PersistentVolume)
            for name, claim in claims.items()
        }
        assert volumes["local"].spec.node_affinity is not None
        assert volumes["everywhere"].spec.node_affinity is None
        for name in claims:
            await c.client.delete(PERSISTENT_VOLUME_CLAIMS, name, c.namespace)

        async def reclaimed() -> bool:
            left = await c.client.list(PERSISTENT_VOLUMES, type=PersistentVolume)
            names = {volume.metadata.name for volume in volumes.values()}
            return not names & {volume.metadata.name for volume in left.items}

        await until(reclaimed)


async def test_metrics_and_health_are_served(cluster: Opening) -> None:
    async with cluster as c:
        await c.bind(manifest("p"), "cpu-0")
        await c.ready("p")
    text = cluster.fleet.answers("/metrics")
    assert "gpufleet_simnodes_status_patches_total" in text
    assert 'gpufleet_simnodes_container_starts_total{runtime="modelled"}' in text
    assert cluster.fleet.answers("/healthz") == "ok", encoded(text[:200])
