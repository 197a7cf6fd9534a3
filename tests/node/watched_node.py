"""A node whose GPUs are watched: fake NVML, observer, device plugin and a kubelet, wired as in the agent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from tests.node.fake_kubelet import FakeKubelet
from tests.node.nvml_nodes import NvmlNode

from gpufleet.devices.device_plugin import DevicePlugin
from gpufleet.devices.observer import Observed, Observer
from gpufleet.devices.plugin_config import PluginConfig


class WatchedNode:
    """The parts of the node. `gpus` are the UUIDs of its GPUs by index."""

    def __init__(self, nvml: NvmlNode, kubelet: FakeKubelet, plugin: DevicePlugin) -> None:
        self.nvml = nvml
        self.kubelet = kubelet
        self.plugin = plugin
        self.gpus = [gpu.uuid for gpu in plugin.node.inventory.gpus]

    def offered(self) -> dict[int, tuple[int, int]]:
        """How many devices of each GPU the kubelet knows, and how many of them it may give out."""
        known = [one for devices in self.kubelet.devices.values() for one in devices.values()]
        health = {one.ID: one.health == "Healthy" for one in known}
        found = dict.fromkeys(range(len(self.gpus)), (0, 0))
        for resource in self.plugin.node.offer.resources:
            for device in resource.devices:
                index = self.gpus.index(device.gpu)
                every, well = found[index]
                found[index] = every + (device.id in health), well + health.get(device.id, False)
        return found

    async def until(self, offered: dict[int, tuple[int, int]]) -> None:
        """Wait until the kubelet knows this of the devices."""
        await self.kubelet.until(lambda: self.offered() == offered)


@asynccontextmanager
async def watched(
    nvml: NvmlNode, root: Path, config: PluginConfig, clock: Callable[[], float] = time.monotonic
) -> AsyncIterator[WatchedNode]:
    """The node, once the kubelet knows its devices; `root` has a path short enough for sockets."""
    kubelet, loop = FakeKubelet(root), asyncio.get_running_loop()
    plugin, seen = DevicePlugin(kubelet.plugins), asyncio.Event()

    def see(observed: Observed) -> None:
        plugin.update(plugin.node.derive(observed.inventory, config, observed.health))
        seen.set()

    def hand_over(observed: Observed) -> None:
        loop.call_soon_threadsafe(see, observed)

    observer = Observer(nvml.backend(), hand_over, clock)
    await kubelet.start()
    observer.start()
    running = asyncio.create_task(plugin.run())
    try:
        await asyncio.wait_for(seen.wait(), 20)
        await kubelet.until(lambda: all(kubelet.capacity(one.name) for one in plugin.node.offer.resources))
        yield WatchedNode(nvml, kubelet, plugin)
    finally:
        nvml.change(lambda machine: machine.calm())
        await asyncio.to_thread(observer.stop, 10.0)
        running.cancel()
        await asyncio.wait([running])
        await kubelet.stop()
