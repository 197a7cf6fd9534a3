"""Sharing up to the kubelet: replicas under their names, healthy while they can be used, and limits."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
from tests.node.fake_kubelet import AdmissionError, FakeKubelet
from tests.unit.inventories import gpu, uuid_of

from gpufleet.devices.clocks import RunningClock
from gpufleet.devices.device_plugin import DevicePlugin
from gpufleet.devices.inventory import Inventory
from gpufleet.devices.mps import MpsPlan, plan_daemons
from gpufleet.devices.mps_daemons import MpsDaemons
from gpufleet.devices.plugin_config import PluginConfig, SharedResource, Sharing, SharingStrategy
from gpufleet.devices.plugin_node import PluginNode
from gpufleet.devices.resources import offer
from gpufleet.devices.simulated_backend import SimulatedBackend
from gpufleet.fleet.products import find_product

PROGRAM = Path(__file__).parents[1] / "unit" / "programs" / "nvidia-cuda-mps-control"
SHARED = "nvidia.com/gpu.shared"


@pytest.fixture
def root() -> Iterator[Path]:
    """A folder with a path short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="gf-"))
    yield folder
    shutil.rmtree(folder)


def inventory() -> Inventory:
    one = msgspec.structs.replace(gpu(0), memory_mib=80_000, capability=(9, 0))
    return Inventory(gpus=(one, msgspec.structs.replace(one, index=1, uuid=uuid_of(1), minor=11)))


def config(strategy: SharingStrategy, *, several: bool = False) -> PluginConfig:
    resource = SharedResource("nvidia.com/gpu", 4, SHARED)
    return PluginConfig(sharing=Sharing(strategy, (resource,), fail_requests_greater_than_one=not several))


class Agent:
    """The part of an agent that shares GPUs: it offers again whenever the daemons have changed."""

    def __init__(self, root: Path, kubelet: FakeKubelet, shared: PluginConfig) -> None:
        self.config, self.inventory = shared, inventory()
        backend = SimulatedBackend(find_product("h100"), self.inventory, RunningClock())
        self.daemons = MpsDaemons(
            root / "mps",
            backend.set_exclusive,
            command=(sys.executable, "-S", "-E", str(PROGRAM)),
            changed=self.offer,
            probe_s=0.1,
            pause_s=0.1,
        )
        self.plugin = DevicePlugin(kubelet.plugins, extras=self.daemons.extras, poll_s=0.01)
        plan = plan_daemons(offer(self.inventory, shared), self.inventory, shared)
        self.daemons.update(plan, ())
        self.offer()

    def offer(self) -> None:
        """Tell the kubelet what there is now."""
        offered = offer(self.inventory, self.config, self.daemons.sick)
        self.plugin.update(PluginNode(offered, self.inventory, self.config))

    async def until_stopped(self) -> None:
        """Want no daemons any more, and wait for their end."""
        self.daemons.update(MpsPlan(), ())
        async with asyncio.timeout(30):
            while self.daemons.states:
                await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def sharing(root: Path, shared: PluginConfig) -> AsyncIterator[tuple[FakeKubelet, Agent]]:
    """A kubelet and an agent that shares GPUs; no daemon is left behind."""
    kubelet = FakeKubelet(root)
    await kubelet.start()
    agent = Agent(root, kubelet, shared)
    tasks = [asyncio.create_task(agent.plugin.run()), asyncio.create_task(agent.daemons.run())]
    try:
        yield kubelet, agent
    finally:
        await agent.until_stopped()
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await kubelet.stop()


async def test_time_slicing_replicas_are_advertised_under_their_name_and_need_no_daemon(root: Path) -> None:
    async with sharing(root, config("time-slicing")) as (kubelet, agent):
        await kubelet.until(lambda: kubelet.capacity(SHARED) == 8)
        assert kubelet.allocatable(SHARED) == 8
        assert set(kubelet.devices) == {SHARED}
        (held,) = await kubelet.admit("pod", {SHARED: 1})
        assert dict(held.answer.envs) == {"NVIDIA_VISIBLE_DEVICES": uuid_of(0)}
        assert agent.daemons.states == {}
        with pytest.raises(AdmissionError, match="is too large"):
            await kubelet.admit("greedy", {SHARED: 2})


async def test_mps_replicas_are_healthy_when_their_daemon_serves_and_clients_get_limits(root: Path) -> None:
    async with sharing(root, config("mps")) as (kubelet, _):
        await kubelet.until(lambda: kubelet.capacity(SHARED) == 8)
        await kubelet.until(lambda: kubelet.allocatable(SHARED) == 8)
        (first,) = await kubelet.admit("one", {SHARED: 1})
        (second,) = await kubelet.admit("two", {SHARED: 1})
        for held, index in ((first, 0), (second, 1)):
            assert dict(held.answer.envs) == {
                "NVIDIA_VISIBLE_DEVICES": uuid_of(index),
                "CUDA_MPS_PIPE_DIRECTORY": f"/mps/{SHARED}/pipe",
                "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "25",
                "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=20000M",
            }
            mounts = [(one.host_path, one.container_path) for one in held.answer.mounts]
            assert mounts == [
                (f"{root}/mps/{SHARED}/pipe", f"/mps/{SHARED}/pipe"),
                (f"{root}/mps/shm", "/dev/shm"),
            ]


async def test_a_client_that_may_hold_several_replicas_gets_as_much_as_it_holds(root: Path) -> None:
    async with sharing(root, config("mps", several=True)) as (kubelet, _):
        await kubelet.until(lambda: kubelet.allocatable(SHARED) == 8)
        (held,) = await kubelet.admit("pod", {SHARED: 4})
        assert held.answer.envs["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] == "0=40000M,1=40000M"
        assert held.answer.envs["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "50"


async def test_replicas_are_unhealthy_between_the_crash_of_a_daemon_and_its_restart(root: Path) -> None:
    async with sharing(root, config("mps")) as (kubelet, agent):
        await kubelet.until(lambda: kubelet.allocatable(SHARED) == 8)
        psutil.Process(agent.daemons.states[SHARED].pid).kill()
        await kubelet.until(lambda: kubelet.allocatable(SHARED) == 0)
        assert kubelet.capacity(SHARED) == 8
        await kubelet.until(lambda: kubelet.allocatable(SHARED) == 8)
        assert agent.daemons.states[SHARED].restarts == 1
        await kubelet.admit("pod", {SHARED: 1})
