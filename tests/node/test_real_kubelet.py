"""The device plugin and a real kubelet: pods in real containers get their devices, whatever restarts."""

from __future__ import annotations

import asyncio
import signal

import pytest
from tests.contract.simnodes.fleet import until
from tests.node.on_node import GPU, MIXED, SLICE, OnNode, Opened, opened
from tests.node.realnode import RealNode
from tests.unit.inventories import SEVEN, instance_of, node, uuid_of, whole

from gpufleet.devices.device_plugin import remembered
from gpufleet.devices.plugin_node import PluginNode
from gpufleet.devices.resources import offer

EIGHT = {uuid_of(number) for number in range(8)}


@pytest.fixture
def on_node(real_node: RealNode) -> Opened:
    """`async with on_node as node`."""
    return opened(real_node)


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
