"""Sick GPUs, from the driver's event to the kubelet: what is shared or cut is sick, and well, as a whole."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fakenvml.machine import FakeMachine
from tests.node.nvml_nodes import NvmlNode, cut_node, whole_node
from tests.node.watched_node import watched
from tests.unit.test_device_health import APPLICATION_XIDS

from gpufleet.devices.plugin_config import GPU_RESOURCE, PluginConfig, SharedResource, Sharing

WHOLE = PluginConfig()
SHARED = PluginConfig(sharing=Sharing("time-slicing", (SharedResource(GPU_RESOURCE, 10),)))
MIXED = PluginConfig(mig_strategy="mixed")
# how the GPUs are offered, whether they are cut, and how many devices each of them is then
WAYS = {
    "whole":     (WHOLE,  False, 1),
    "replicas":  (SHARED, False, 10),
    "instances": (MIXED,  True,  7),
}  # fmt: skip


def fast() -> float:
    """A clock that makes the seconds in which a GPU must be calm pass quickly."""
    return 20 * time.monotonic()


@pytest.fixture
def root() -> Iterator[Path]:
    """A folder with a path short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="gf-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, nvml_node: NvmlNode) -> tuple[PluginConfig, int]:
    """Two GPUs that are offered in a way, and how many devices each of them is."""
    config, cut, count = WAYS[request.param]
    nvml_node.show(*(cut_node("h100", 2, "all-1g.10gb") if cut else whole_node("h100", 2)))
    return config, count


async def test_every_device_of_a_sick_gpu_is_unhealthy_until_the_driver_calls_it_well(
    nvml_node: NvmlNode, root: Path, way: tuple[PluginConfig, int]
) -> None:
    config, count = way
    async with watched(nvml_node, root, config, fast) as node:
        for code, instance in ((95, 7), (48, None), (119, None)):
            nvml_node.change(lambda machine, code=code, one=instance: machine.xid(1, code, one).recover(1, 1))  # type: ignore[misc]
            await node.until({0: (count, count), 1: (count, 0)})
            nvml_node.change(lambda machine: machine.recover(1, 0))
            await node.until({0: (count, count), 1: (count, count)})


async def test_a_gpu_that_falls_off_the_bus_keeps_its_devices_and_gives_none_of_them_out(
    nvml_node: NvmlNode, root: Path, way: tuple[PluginConfig, int]
) -> None:
    config, count = way
    async with watched(nvml_node, root, config) as node:
        nvml_node.change(lambda machine: machine.xid(0, 79).lose(0))
        await node.until({0: (count, 0), 1: (count, count)})
        nvml_node.change(lambda machine: machine.find(0))
        await node.until({0: (count, count), 1: (count, count)})


async def test_a_reset_brings_back_a_whole_gpu_with_all_its_replicas(nvml_node: NvmlNode, root: Path) -> None:
    nvml_node.show(*whole_node("h100", 2))
    async with watched(nvml_node, root, SHARED) as node:
        nvml_node.change(lambda machine: machine.xid(0, 79).lose(0))
        await node.until({0: (10, 0), 1: (10, 10)})
        nvml_node.change(lambda machine: machine.reset(0))
        await node.until({0: (10, 10), 1: (10, 10)})


async def test_xids_of_programs_are_not_told_to_the_kubelet(
    nvml_node: NvmlNode, root: Path, way: tuple[PluginConfig, int]
) -> None:
    config, count = way
    async with watched(nvml_node, root, config) as node:
        (resource,) = (one.name for one in node.plugin.node.offer.resources)
        for code in APPLICATION_XIDS:
            nvml_node.change(lambda machine, code=code: machine.xid(0, code))  # type: ignore[misc]
        nvml_node.change(lambda machine: machine.xid(1, 79))
        await node.until({0: (count, count), 1: (count, 0)})
        assert node.kubelet.lists(resource) == 2, "the first list, and the one that GPU 1 is sick"


async def test_a_driver_that_hangs_after_the_event_delays_nothing(
    nvml_node: NvmlNode, root: Path, way: tuple[PluginConfig, int]
) -> None:
    config, count = way
    async with watched(nvml_node, root, config) as node:
        nvml_node.change(_hang_after_event)
        await node.until({0: (count, count), 1: (count, 0)})


def _hang_after_event(machine: FakeMachine) -> FakeMachine:
    """GPU 1 reports that its system processor is silent, and whoever asks it for anything waits."""
    calls = (
        "nvmlDeviceGetName",
        "nvmlDeviceGetMemoryInfo*",
        "nvmlDeviceGetMigMode",
        "nvmlDeviceGetFieldValues",
    )
    for call in calls:
        machine = machine.hang(call, 3600, gpu=1)
    return machine.xid(1, 119)
