"""What a test does with a real node: pods in a namespace of their own, and our device plugin beside them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from typing import Any

from tests.contract.simnodes.fleet import Cluster, until
from tests.node.realnode import IMAGE, RealNode

from gpufleet.devices.allocation import DriverNodes
from gpufleet.devices.device_plugin import DevicePlugin
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
NO_NODES = DriverNodes()

_numbers = itertools.count()


def asking(name: str, count: int, resource: str = GPU, script: str = "env") -> dict[str, Any]:
    """A pod that prints what a script finds and stays."""
    container = {
        "name": "main",
        "image": IMAGE,
        "imagePullPolicy": "Never",
        "command": ["sh", "-c", f"{script}; echo printed; exec sleep 100000"],
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
    async def plugin(
        self, inventory: Inventory, config: PluginConfig = MIXED, nodes: DriverNodes = NO_NODES
    ) -> AsyncIterator[DevicePlugin]:
        """Our device plugin, running; the kubelet follows what it offers at first."""
        plugin = DevicePlugin(self.real.device_plugins)
        plugin.update(PluginNode(offer(inventory, config), inventory, config, nodes=nodes))
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
        lines = await self.printed(name, count, resource)
        return dict(line.split("=", 1) for line in lines if "=" in line)

    async def printed(self, name: str, count: int, resource: str = GPU, script: str = "env") -> list[str]:
        """Start a pod on the node; the lines that a script prints in it."""
        pod = await self.cluster.bind(asking(name, count, resource, script), self.real.name)
        folder = self.real.pod_logs / f"{self.cluster.namespace}_{name}_{pod.metadata.uid}" / "main"

        async def printed() -> str | None:
            found = await self.cluster.pod(name)
            assert found.status.phase != "Failed", found.status
            text = "".join(path.read_text() for path in folder.glob("*.log"))
            return text if "printed" in text else None

        return [line.split(" ", 3)[-1] for line in (await until(printed)).splitlines()]

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


Opened = contextlib.AbstractAsyncContextManager[OnNode]


@contextlib.asynccontextmanager
async def opened(real: RealNode) -> AsyncIterator[OnNode]:
    """Work on a node in a new namespace; its pods are gone in the end."""
    async with Client(real.plane.config) as client:
        namespace = f"node-{next(_numbers)}"
        await client.create(NAMESPACES, {"metadata": {"name": namespace}})
        found = OnNode(real, client, namespace)
        try:
            yield found
        finally:
            await found.clear()
