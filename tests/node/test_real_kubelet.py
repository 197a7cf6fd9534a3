"""The device plugin and a real kubelet: pods in real containers get their devices, whatever restarts."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.contract.simnodes.fleet import Cluster, until
from tests.node.realnode import IMAGE, RealNode
from tests.unit.inventories import SEVEN, instance_of, node, uuid_of, whole

from gpufleet.devices.device_plugin import DevicePlugin, remembered
from gpufleet.devices.inventory import Inventory
from gpufleet.devices.plugin_config import PluginConfig
from gpufleet.devices.plugin_node import PluginNode
from gpufleet.devices.resources import offer
from gpufleet.kube.client import Client
from gpufleet.kube.kinds import NAMESPACES, NODES, PODS
from gpufleet.kube.kubelet.pod_resources import PodResources
from gpufleet.kube.objects import Node, Pod

GPU = "nvidia.com/gpu"
SLICE = "nvidia.com/mig-1g.10gb"
MIXED = PluginConfig(mig_strategy="mixed")
EIGHT = {uuid_of(number) for number in range(8)}


def asking(name: str, count: int, resource: str = GPU) -> dict[str, Any]:
    """A pod that prints its environment and stays."""
    container = {
        "name": "main",
        "image": IMAGE,
        "imagePullPolicy": "Never",
        "command": ["sh", "-c", "env; echo printed; exec sleep 100000"],
        "resources": {"limits": {resource: str(count)}},
    }
    spec = {"hostNetwork": True, "automountServiceAccountToken": False, "terminationGracePeriodSeconds": 0}
    return {"metadata": {"name": name}, "spec": {**spec, "containers": [container]}}


class OnNode:
    """What a test does with the node: pods in a namespace of its own, and plugins."""

    def __init__(self, real: RealNode, client: Client, namespace: str) -> None:
        self.real, self.client = real, client
        self.cluster = Cluster(client, namespace)
        self.resources = PodResources(real.pod_resources)

    @contextlib.asynccontextmanager
    async def plugin(self, inventory: Inventory) -> AsyncIterator[DevicePlugin]:
        """Our device plugin, running; the kubelet follows what it offers at first."""
        plugin = DevicePlugin(self.real.device_plugins)
        plugin.update(PluginNode(offer(inventory, MIXED), inventory, MIXED))
        running = asyncio.create_task(plugin.run())

        async def followed() -> bool:
            return all(plugin.registered.get(one.name) for one in plugin.node.offer.resources)

        try:
            await until(followed)
            yield plugin
        finally:
            running.cancel()
            await asyncio.wait([running])

    async def offers(self, resource: str, count: int) -> None:
        """Wait until the kubelet knows this number of healthy devices."""

        async def known() -> bool:
            with contextlib.suppress(Exception):
                found = {one.resource: one.ids for one in await self.resources.devices()}
                return len(found.get(resource, ())) == count
            return False

        await until(known)

    async def allocatable(self, resource: str, count: int) -> None:
        """Wait until the node's status says this number."""

        async def said() -> bool:
            found = await self.client.get(NODES, self.real.name, type=Node)
            return found.status.allocatable.get(resource) == str(count)

        await until(said)

    async def run(self, name: str, count: int, resource: str = GPU) -> dict[str, str]:
        """Start a pod on the node; its environment once it runs."""
        pod = await self.cluster.bind(asking(name, count, resource), self.real.name)
        folder = self.real.pod_logs / f"{self.cluster.namespace}_{name}_{pod.metadata.uid}" / "main"

        async def printed() -> str | None:
            found = await self.cluster.pod(name)
            assert found.status.phase != "Failed", found.status
            text = "".join(path.read_text() for path in folder.glob("*.log"))
            return text if "printed" in text else None

        lines = [line.split(" ", 3)[-1] for line in (await until(printed)).splitlines()]
        return dict(line.split("=", 1) for line in lines if "=" in line)

    async def held(self) -> dict[str, set[str]]:
        """Device ids by pod, as the kubelet says."""
        return {
            pod.name: {one for part in pod.containers for kind in part.devices for one in kind.ids}
            for pod in await self.resources.pods()
            if pod.namespace == self.cluster.namespace
        }

    async def clear(self) -> None:
        """Delete all pods and wait until they are gone."""
        listing = await self.client.list(PODS, self.cluster.namespace, type=Pod)
        for pod in listing.items:
            await self.cluster.delete(pod.metadata.name, grace=0)
            await self.cluster.gone(pod.metadata.name)
        await self.resources.close()


@pytest.fixture
def on_node(real_node: RealNode) -> contextlib.AbstractAsyncContextManager[OnNode]:
    """`async with on_node as node`."""

    @contextlib.asynccontextmanager
    async def opened() -> AsyncIterator[OnNode]:
        async with Client(real_node.plane.config) as client:
            namespace = f"node-{next(_numbers)}"
            await client.create(NAMESPACES, {"metadata": {"name": namespace}})
            found = OnNode(real_node, client, namespace)
            try:
                yield found
            finally:
                await found.clear()

    return opened()


_numbers = itertools.count()
Opened = contextlib.AbstractAsyncContextManager[OnNode]


async def test_pods_in_real_containers_get_gpus_of_their_own(on_node: Opened) -> None:
    async with on_node as node_, node_.plugin(whole(8)):
        await node_.allocatable(GPU, 8)
        first, second = await node_.run("two", 2), await node_.run("six", 6)
        seen = [set(env["NVIDIA_VISIBLE_DEVICES"].split(",")) for env in (first, second)]
        assert seen[0] | seen[1] == EIGHT
        assert [len(one) for one in seen] == [2, 6]
        assert await node_.held() == {"two": seen[0], "six": seen[1]}


async def test_a_pod_gets_a_mig_instance_that_appeared_while_the_plugin_ran(on_node: Opened) -> None:
    async with on_node as node_, node_.plugin(node(())) as plugin:
        await asyncio.sleep(1)
        cut = node(SEVEN)
        plugin.update(PluginNode(offer(cut, MIXED), cut, MIXED))
        await node_.allocatable(SLICE, 7)
        seen = (await node_.run("part", 1, SLICE))["NVIDIA_VISIBLE_DEVICES"]
        assert seen in {instance_of(0, number) for number in range(1, 8)}


async def test_a_sick_gpu_is_not_given_out_and_a_well_one_is(on_node: Opened) -> None:
    async with on_node as node_, node_.plugin(whole(2)) as plugin:
        await node_.offers(GPU, 2)
        plugin.update(PluginNode(offer(whole(2), MIXED, {uuid_of(0)}), whole(2), MIXED))
        await node_.offers(GPU, 1)
        assert (await node_.run("one", 1))["NVIDIA_VISIBLE_DEVICES"] == uuid_of(1)
        plugin.update(PluginNode(offer(whole(2), MIXED), whole(2), MIXED))
        await node_.offers(GPU, 2)
        assert (await node_.run("two", 1))["NVIDIA_VISIBLE_DEVICES"] == uuid_of(0)


async def _restarts(node_: OnNode, restarts: int) -> None:
    """A pod for each GPU, while plugin and kubelet are restarted in turn: each GPU is given once."""
    for turn in range(restarts):
        number = turn % 8
        async with node_.plugin(whole(8)):
            await node_.offers(GPU, 8)
            await node_.run(f"p{number}", 1)
            held = await node_.held()
            assert sum(map(len, held.values())) == len(held) == number + 1
            if turn % 2:
                node_.real.stop_kubelet(signal.SIGKILL if turn % 4 == 1 else signal.SIGTERM)
                node_.real.start_kubelet()
                await node_.offers(GPU, 8)
                await until(lambda held=held: _same(node_, held))  # type: ignore[misc]
                assert remembered(node_.real.device_plugins) >= {GPU}, "a kubelet deletes sockets only"
            if number == 7:
                assert set().union(*held.values()) == EIGHT
                for name in held:
                    await node_.cluster.delete(name, grace=0)
                    await node_.cluster.gone(name)


async def test_restarts_of_kubelet_and_plugin_lose_and_double_no_device(on_node: Opened) -> None:
    async with on_node as node_:
        await _restarts(node_, 8)


async def _same(node_: OnNode, held: dict[str, set[str]]) -> bool:
    """Whether the kubelet says this again: after its start it knows no pods for a moment."""
    return await node_.held() == held


@pytest.mark.full
@pytest.mark.timeout(900)
async def test_a_hundred_restarts_of_kubelet_and_plugin_lose_and_double_no_device(on_node: Opened) -> None:
    async with on_node as node_:
        await _restarts(node_, 100)
