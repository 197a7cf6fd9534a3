"""An agent at work: fake NVML below it, a small kubelet beside it, a real API server above it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families
from tests.contract.servers import ControlPlane
from tests.contract.simnodes.fleet import until
from tests.node.fake_kubelet import FakeKubelet, Held
from tests.node.nvml_nodes import NvmlNode

from gpufleet.agent import Agent, Options, working
from gpufleet.devices.plugin_config_source import ConfigSource
from gpufleet.kube.client import ApiError, Client
from gpufleet.kube.gpunode import GPUNode
from gpufleet.kube.kinds import GPU_NODES, NODES, PODS
from gpufleet.kube.objects import Node, PartialObject, Pod

GPU = "nvidia.com/gpu"
DRIVER_FILES = {
    "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Release\n",
    "dev/nvidiactl": "",
}
_numbers = itertools.count()


class AgentWorld:
    """One node, its kubelet and its agent. Pods are bound to it by hand and admitted by the kubelet."""

    def __init__(self, client: Client, node: str, nvml: NvmlNode, kubelet: FakeKubelet) -> None:
        self.client, self.node, self.nvml, self.kubelet = client, node, nvml, kubelet
        self.agent: Agent
        self.task: asyncio.Task[None]

    @contextlib.asynccontextmanager
    async def running(self, **more: Any) -> AsyncIterator[Agent]:
        """An agent, ready, until the end of the block."""
        options = Options(
            node=self.node,
            host_root=self.nvml.root,
            plugin_folder=self.kubelet.plugins,
            pod_resources=self.kubelet.pod_socket,
            config=more.pop("config", ConfigSource(overrides={"mig_strategy": "mixed"})),
            exporter_port=0,
            exporter_address="127.0.0.1",
            metrics_port=0,
            sample_s=0.2,
            **more,
        )
        self.agent = Agent(self.client, self.nvml.backend(), options)
        async with working(self.agent, options) as task:
            self.task = task
            await self.until(lambda: self.agent.ready() or task.done())
            if task.done():
                task.result()
            yield self.agent

    async def until(self, condition: Callable[[], Any]) -> None:
        """Wait until something holds."""

        async def holds() -> bool:
            return bool(condition())

        await until(holds)

    async def gpu_node(self, good: Callable[[GPUNode], bool]) -> GPUNode:
        """The GPUNode once it is good."""

        async def found() -> GPUNode | None:
            try:
                one = await self.client.get(GPU_NODES, self.node, type=GPUNode)
            except ApiError:
                return None
            return one if good(one) else None

        return await until(found)

    async def labels(self, good: Callable[[Mapping[str, str]], bool]) -> Mapping[str, str]:
        """The labels of the Node once they are good."""

        async def found() -> Mapping[str, str] | None:
            node = await self.client.get(NODES, self.node, type=Node)
            return node.metadata.labels if good(node.metadata.labels) else None

        return await until(found)

    async def desire(self, **desired: Any) -> None:
        """What the controller asks."""
        await self.client.patch(GPU_NODES, self.node, {"spec": {"desired": desired}}, type=PartialObject)

    async def admit(self, pod: str, resource: str = GPU, count: int = 1) -> Held:
        """A pod is bound and gets its devices."""
        container = {"name": "main", "image": "x", "resources": {"limits": {resource: str(count)}}}
        body = {
            "metadata": {"name": pod},
            "spec": {"nodeName": self.node, "containers": [container], "automountServiceAccountToken": False},
        }
        await self.client.create(PODS, body, "default", type=Pod)
        return (await self.kubelet.admit(pod, {resource: count}))[0]

    async def finish(self, pod: str) -> None:
        """A pod ends and is gone."""
        self.kubelet.finish(pod)
        await self.client.delete(PODS, pod, "default", grace=0)

    async def scrape(self) -> Mapping[str, list[Any]]:
        """The exporter's page: samples by family name."""
        port = self.agent.exporter_port
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{port}/metrics") as page,
        ):
            text = await page.text()
        return {family.name: family.samples for family in text_string_to_metric_families(text)}


@contextlib.asynccontextmanager
async def world(plane: ControlPlane, nvml: NvmlNode, root: Path) -> AsyncIterator[AgentWorld]:
    """A Node object, a kubelet that runs, and no agent yet."""
    for path, text in DRIVER_FILES.items():
        (nvml.root / path).parent.mkdir(parents=True, exist_ok=True)
        (nvml.root / path).write_text(text)
    name = f"agent-{next(_numbers)}"
    kubelet = FakeKubelet(root)
    await kubelet.start()
    async with Client(plane.config) as client:
        await client.create(NODES, {"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}})
        found = AgentWorld(client, name, nvml, kubelet)
        try:
            yield found
        finally:
            for pod in (await client.list(PODS, "default", type=PartialObject)).items:
                await client.delete(PODS, pod.metadata.name, "default", grace=0, missing_ok=True)
            await client.delete(GPU_NODES, name, missing_ok=True)
            await client.delete(NODES, name, missing_ok=True)
            await kubelet.stop()
