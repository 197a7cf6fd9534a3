"""What people configure: ConfigMaps and Secrets that containers wait for as on a kubelet, and simulated
faults.
"""

from __future__ import annotations

from typing import Any

from tests.contract.simnodes.fleet import Cluster, Opening, manifest, until

from gpufleet.kube.kinds import CONFIG_MAPS, EVENTS, GPU_NODES, SECRETS
from gpufleet.kube.objects import Pod

TOKEN = {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "token", "key": "value"}}}


async def waiting(cluster: Cluster, name: str, word: str) -> Pod:
    """The pod once its container waits with a message that has this word."""

    async def told() -> Pod | None:
        pod = await cluster.pod(name)
        return pod if word in message_of(pod) else None

    return await until(told)


def message_of(pod: Pod) -> str:
    """Why the container waits."""
    statuses = pod.status.container_statuses
    state = statuses[0].state.waiting if statuses else None
    return f"{state.reason}: {state.message}" if state else ""


async def test_a_container_waits_for_the_secret_of_its_environment(cluster: Opening) -> None:
    async with cluster as c:
        await c.bind(manifest("p", 1, container={"env": [TOKEN]}), "gpu-0")
        pod = await waiting(c, "p", "not found")
        assert message_of(pod) == 'CreateContainerConfigError: secret "token" not found'
        assert pod.status.phase == "Pending"
        await c.client.create(
            SECRETS, {"metadata": {"name": "token"}, "stringData": {"other": "x"}}, c.namespace
        )
        pod = await waiting(c, "p", "couldn't find key")
        assert message_of(pod).endswith(f"couldn't find key value in Secret {c.namespace}/token")
        await c.client.patch(SECRETS, "token", {"stringData": {"value": "y"}}, c.namespace)
        await c.ready("p")
        assert (await c.pod("p")).status.container_statuses[0].restart_count == 0


async def test_a_container_waits_for_the_configmap_of_a_volume(cluster: Opening) -> None:
    async with cluster as c:
        volumes = [{"name": "settings", "configMap": {"name": "settings"}}]
        await c.bind(manifest("p", volumes=volumes), "cpu-0")
        pod = await waiting(c, "p", "not found")
        text = 'MountVolume.SetUp failed for volume "settings" : configmap "settings" not found'
        assert message_of(pod) == f"ContainerCreating: {text}"

        async def event() -> Any:
            found = (await c.client.list(EVENTS, c.namespace)).items
            return next((one for one in found if one["reason"] == "FailedMount"), None)

        assert (await until(event))["note"] == text
        await c.client.create(CONFIG_MAPS, {"metadata": {"name": "settings"}}, c.namespace)
        await c.ready("p")


async def test_what_is_optional_is_not_waited_for(cluster: Opening) -> None:
    async with cluster as c:
        reference = {**TOKEN["valueFrom"]["secretKeyRef"], "optional": True}  # type: ignore[index]
        container = {
            "env": [{"name": "TOKEN", "valueFrom": {"secretKeyRef": reference}}],
            "envFrom": [{"configMapRef": {"name": "nowhere", "optional": True}}],
        }
        volumes = [
            {"name": "a", "configMap": {"name": "nowhere", "optional": True}},
            {"name": "b", "secret": {"secretName": "nowhere", "optional": True}},
        ]
        await c.bind(manifest("p", container=container, volumes=volumes), "cpu-0")
        await c.ready("p")


async def test_a_pod_that_waits_can_be_deleted(cluster: Opening) -> None:
    async with cluster as c:
        await c.bind(manifest("p", 1, container={"env": [TOKEN]}), "gpu-0")
        await waiting(c, "p", "not found")
        await c.delete("p")
        await c.gone("p")
        await until(lambda: c.free("gpu-0"))


async def test_a_fault_that_makes_no_sense_is_told_on_the_gpunode(cluster: Opening) -> None:
    async with cluster as c:
        annotations = {"gpufleet.dev/sim-unhealthy": "9=foo"}
        await c.client.patch(GPU_NODES, "gpu-0", {"metadata": {"annotations": annotations}})
        [note] = await until(lambda: c.events("InvalidSimulation", "default"))
        assert "there is no GPU 9" in note
        healed = {"gpufleet.dev/sim-unhealthy": None}
        await c.client.patch(GPU_NODES, "gpu-0", {"metadata": {"annotations": healed}})
