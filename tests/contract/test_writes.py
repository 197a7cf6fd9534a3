"""The writes of scheduling as the real API server takes them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from tests.contract.servers import ControlPlane

from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.pods import Pod
from gpufleet.fleet.volumes import Claim
from gpufleet.kube import objects, writes
from gpufleet.kube.client import Client
from gpufleet.kube.errors import ApiError
from gpufleet.kube.kinds import PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES, PODS, SERVICE_ACCOUNTS
from gpufleet.kube.storage_values import claim_value
from gpufleet.kube.values import DECISION_CONDITION, pod_value

LONG_AGO, NOW = 1_700_000_000.0, 1_800_000_000.0


async def waiting_pod(client: Client, namespace: str, name: str = "p") -> Pod:
    metadata = {"name": name, "namespace": namespace}
    await client.create(SERVICE_ACCOUNTS, {"metadata": metadata})
    body = {
        "metadata": metadata,
        "spec": {
            "containers": [{"name": "main", "image": "x"}],
            "schedulerName": "gpufleet",
            "serviceAccountName": name,
            "automountServiceAccountToken": False,
        },
    }
    return pod_value(await client.create(PODS, body, type=objects.Pod))


async def waiting_claim(client: Client, namespace: str) -> Claim:
    body = {
        "metadata": {"name": "c", "namespace": namespace},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    made = await client.create(PERSISTENT_VOLUME_CLAIMS, body, type=objects.PersistentVolumeClaim)
    return claim_value(made)


async def available_volume(client: Client, name: str) -> None:
    body: dict[str, Any] = {
        "metadata": {"name": name},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "capacity": {"storage": "1Gi"},
            "hostPath": {"path": "/nowhere"},
        },
    }
    await client.create(PERSISTENT_VOLUMES, body)


async def conditions(client: Client, pod: Pod) -> dict[str, dict[str, str]]:
    found = await client.get(PODS, pod.name, pod.namespace)
    return {condition["type"]: condition for condition in found["status"]["conditions"]}


async def report(client: Client, pod: Pod, message: str, now: float | None) -> None:
    await writes.report_pending(
        client, pod, reason="Unschedulable", code="InsufficientResource", message=message, now=now
    )


async def test_the_time_of_a_condition_stands_while_its_status_does(
    control_plane: ControlPlane, namespace: str
) -> None:
    async with Client(control_plane.config) as client:
        pod = await waiting_pod(client, namespace)
        await report(client, pod, "4 nodes", LONG_AGO)
        first = await conditions(client, pod)
        await report(client, pod, "5 nodes", None)
        second = await conditions(client, pod)
        for kind in ("PodScheduled", DECISION_CONDITION):
            assert (first[kind]["message"], second[kind]["message"]) == ("4 nodes", "5 nodes")
            assert first[kind]["lastTransitionTime"] == second[kind]["lastTransitionTime"]
        assert pod_value(await client.get(PODS, pod.name, namespace, type=objects.Pod)).reported
        await writes.report_bound(client, pod, message="on a", now=NOW)
        closed = (await conditions(client, pod))[DECISION_CONDITION]
        assert closed["status"] == "True"
        assert closed["lastTransitionTime"] != first[DECISION_CONDITION]["lastTransitionTime"]
        assert not pod_value(await client.get(PODS, pod.name, namespace, type=objects.Pod)).reported


async def test_a_victim_that_is_gone_or_replaced_needs_no_eviction(
    control_plane: ControlPlane, namespace: str
) -> None:
    async with Client(control_plane.config) as client:
        pod = await waiting_pod(client, namespace)
        await writes.evict(client, msgspec.structs.replace(pod, name="gone"), message="for q", now=NOW)
        earlier = msgspec.structs.replace(pod, uid="the-one-before")
        await writes.evict(client, earlier, message="for q", now=NOW)
        still = await client.get(PODS, pod.name, namespace)
        assert "deletionTimestamp" not in still["metadata"]
        assert "DisruptionTarget" not in {c["type"] for c in still["status"].get("conditions", ())}
        await writes.evict(client, pod, message="for q", now=NOW)
        with pytest.raises(ApiError) as gone:
            await client.get(PODS, pod.name, namespace)
        assert gone.value.not_found


async def test_a_node_is_selected_for_the_very_claim(control_plane: ControlPlane, namespace: str) -> None:
    async with Client(control_plane.config) as client:
        claim = await waiting_claim(client, namespace)
        with pytest.raises(ApiError) as refused:
            await writes.select_node(client, msgspec.structs.replace(claim, uid="the-one-before"), "a")
        assert "metadata.uid" in refused.value.message
        await writes.select_node(client, claim, "a")
        found = await client.get(PERSISTENT_VOLUME_CLAIMS, "c", namespace, type=objects.PersistentVolumeClaim)
        assert claim_value(found).selected_node == "a"


async def test_a_volume_is_reserved_for_one_claim(control_plane: ControlPlane, namespace: str) -> None:
    async with Client(control_plane.config) as client:
        claim = await waiting_claim(client, namespace)
        await available_volume(client, namespace)
        await writes.reserve_volume(client, namespace, claim)
        await writes.reserve_volume(client, namespace, claim)
        other = msgspec.structs.replace(claim, name="d", uid="another")
        with pytest.raises(GpufleetError) as taken:
            await writes.reserve_volume(client, namespace, other)
        assert taken.value.reason == "VolumeTaken"
        assert f"{namespace}/c" in taken.value.message
