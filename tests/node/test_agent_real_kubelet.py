"""The whole agent beside a real kubelet: GPU and MIG pods start in real containers with their devices."""

from __future__ import annotations

from pathlib import Path

from tests.contract.simnodes.fleet import until
from tests.node.agent_world import DRIVER_FILES
from tests.node.nvml_nodes import NvmlNode, whole_node
from tests.node.on_node import GPU, SLICE, OnNode, opened
from tests.node.realnode import RealNode

from gpufleet.agent import Agent, Options, working
from gpufleet.devices.plugin_config_source import ConfigSource
from gpufleet.kube.gpunode import GPUNode
from gpufleet.kube.kinds import GPU_NODES
from gpufleet.kube.objects import PartialObject


def options(real: RealNode, root: Path) -> Options:
    """An agent on the node, over a host root of its own."""
    for path, text in DRIVER_FILES.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return Options(
        node=real.name,
        host_root=root,
        plugin_folder=real.device_plugins,
        pod_resources=real.pod_resources,
        config=ConfigSource(overrides={"mig_strategy": "mixed"}),
        exporter_port=0,
        exporter_address="127.0.0.1",
        metrics_port=0,
        sample_s=0.5,
    )


async def record(node: OnNode) -> GPUNode:
    return await node.client.get(GPU_NODES, node.real.name, type=GPUNode)


async def test_gpu_and_mig_pods_start_in_real_containers_with_the_devices_on_record(
    real_node: RealNode,
    nvml_node: NvmlNode,
) -> None:
    product, inventory = whole_node("h100", 4)
    nvml_node.show(product, inventory)
    asked = options(real_node, nvml_node.root)
    async with opened(real_node) as node:
        agent = Agent(node.client, nvml_node.backend(), asked)
        async with working(agent, asked):

            async def ready() -> bool:
                return agent.ready()

            await until(ready, 60)
            await node.allocatable(GPU, 4)
            seen = set((await node.run("two", 2))["NVIDIA_VISIBLE_DEVICES"].split(","))

            async def recorded() -> bool:
                return {u for one in (await record(node)).status.allocations for u in one.devices} == seen

            await until(recorded)
            idle = next(gpu for gpu in inventory.gpus if gpu.uuid not in seen)
            places = [{"profile": "1g.10gb", "start": start} for start in (0, 1)]
            wish = {"uuid": idle.uuid, "enabled": True, "instances": places}
            desired = {"spec": {"desired": {"allowModeSwitch": True, "mig": [wish]}}}
            await node.client.patch(GPU_NODES, real_node.name, desired, type=PartialObject)
            await node.allocatable(SLICE, 2)
            part = (await node.run("part", 1, SLICE))["NVIDIA_VISIBLE_DEVICES"]
            made = {
                c.uuid for gpu in agent.plugin.node.inventory.gpus for i in gpu.instances for c in i.compute
            }
            assert part in made
            assert len(made) == 2
            assert await node.held() == {"two": seen, "part": {part}}
