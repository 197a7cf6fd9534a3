"""Each way to hand out devices, as far as a real container: CDI names on containerd 2.x, variables and device
nodes on 1.6, which has no CDI.

The device nodes of a node's host are made with mknod: NVIDIA's major number, and a minor number of its own
for each. No driver stands behind them, so whoever may use one hears that there is no such device, and whoever
may not that it is not permitted.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import subprocess
from collections.abc import AsyncIterator, Sequence

import pytest
from tests.contract.simnodes.fleet import until
from tests.node.on_node import GPU, SLICE, OnNode, Opened, opened
from tests.node.realnode import RealNode
from tests.node.runtimes import module_version
from tests.unit.cdi_hosts import CdiHost
from tests.unit.inventories import SEVEN, node, uuid_of, whole

from gpufleet.devices.allocation import CONTROL_NODES
from gpufleet.devices.cdi_specs import CdiSpecs
from gpufleet.devices.host_facts import driver_nodes
from gpufleet.devices.inventory import Inventory
from gpufleet.devices.plugin_config import DeviceListStrategy, PluginConfig
from gpufleet.devices.resources import offer

MAJOR = 195
SCRIPT = """env | grep -E '^(CDI|NVIDIA)_'
for path in /cdi/*; do test -f $path && echo mount:$(cat $path); done
for path in /dev/nvidia* /dev/nvidia-caps/*; do
test -c $path && echo node:$path:$(busybox stat -c %T $path):$(cat $path 2>&1)
done"""


def made(host: CdiHost, *uuids: str, control: Sequence[str] = ()) -> dict[str, int]:
    """Make the device nodes of devices on the host, and control nodes; the minor number of each."""
    paths = {*control, *(path for uuid in uuids for path in host.nodes_of(uuid))}
    minors = {path: minor for minor, path in enumerate(sorted(paths), 1)}
    for path, minor in minors.items():
        there = host.root / path.lstrip("/")
        there.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.mknod(there, 0o666 | stat.S_IFCHR, os.makedev(MAJOR, minor))
        except PermissionError:
            pytest.skip("device nodes cannot be made here (mknod)")
    return minors


def seen(lines: Sequence[str]) -> tuple[dict[str, str], set[str], dict[str, int]]:
    """What a container sees: variables, mounts, and the device nodes that it may use, with minor numbers."""
    variables = dict(line.split("=", 1) for line in lines if "=" in line)
    mounts = {line.removeprefix("mount:") for line in lines if line.startswith("mount:")}
    nodes = {}
    for line in lines:
        if line.startswith("node:"):
            _, path, minor, answer = line.split(":", 3)
            assert "No such device" in answer, line
            nodes[path] = int(minor, 16)
    return variables, mounts, nodes


@pytest.fixture
def on_cdi_node(cdi_node: RealNode) -> Opened:
    """`async with on_cdi_node as node`, with containerd 2.x."""
    return opened(cdi_node)


@pytest.fixture
def on_node(real_node: RealNode) -> Opened:
    """`async with on_node as node`, with containerd 1.6."""
    return opened(real_node)


@pytest.fixture
def host(request: pytest.FixtureRequest) -> CdiHost:
    """The host of the node that the test runs on, as new."""
    real = request.getfixturevalue("cdi_node" if "on_cdi_node" in request.fixturenames else "real_node")
    for path in real.host.rglob("*"):
        if not path.is_dir():
            path.unlink()
    return CdiHost(real.host)


def settings(*strategies: DeviceListStrategy, index: bool = False) -> PluginConfig:
    return PluginConfig(
        mig_strategy="mixed",
        device_list_strategies=strategies,
        device_id_strategy="index" if index else "uuid",
    )


def mig_devices(inventory: Inventory) -> set[str]:
    """UUIDs of the MIG devices."""
    return {part.uuid for gpu in inventory.gpus for one in gpu.instances for part in one.compute}


@contextlib.asynccontextmanager
async def specs_for(host: CdiHost, inventory: Inventory, config: PluginConfig) -> AsyncIterator[CdiSpecs]:
    """CDI specs of the host, kept by what the agent keeps them with."""
    specs = CdiSpecs(host.root, enter=host.enter)
    specs.update(offer(inventory, config), inventory, config)
    await specs.look()
    running = asyncio.create_task(specs.run())
    try:
        await until(lambda: _settled(specs))
        yield specs
    finally:
        running.cancel()
        await asyncio.wait([running])


async def _settled(specs: CdiSpecs) -> bool:
    assert not specs.reasons, specs.reasons
    return not specs.withheld


async def gets(
    node_: OnNode, host: CdiHost, name: str, count: int, uuids: set[str], resource: str = GPU
) -> set[str]:
    """Start a pod: it sees the edits of as many of these devices as it asked for, and of no other. Their
    UUIDs.
    """
    variables, mounts, nodes = seen(await node_.printed(name, count, resource, SCRIPT))
    held = (await node_.held())[name]
    assert variables.pop("NVIDIA_VISIBLE_DEVICES") == "void"
    assert set(variables.values()) == mounts == held
    assert held <= uuids
    assert len(held) == count
    wanted = {path for uuid in held for path in host.nodes_of(uuid)}
    assert nodes == {path: os.minor((host.root / path.lstrip("/")).stat().st_rdev) for path in wanted}
    return held


def test_the_containerd_is_the_one_that_the_module_pins(cdi_node: RealNode) -> None:
    said = subprocess.check_output([cdi_node.containerd.program("containerd"), "--version"], text=True)
    assert module_version() in said.split()


@pytest.mark.parametrize("strategy", ["cdi-cri", "cdi-annotations"])
async def test_a_pod_gets_exactly_the_cdi_edits_of_its_gpus_and_of_instances_that_were_cut_meanwhile(
    on_cdi_node: Opened, host: CdiHost, strategy: DeviceListStrategy
) -> None:
    config, uncut, cut = settings(strategy), whole(3), node(SEVEN[:2], None, None)
    host.install()
    host.show(cut)
    made(host, uuid_of(1), uuid_of(2), *mig_devices(cut))
    host.show(uncut)
    async with (
        on_cdi_node as node_,
        specs_for(host, uncut, config) as specs,
        node_.plugin(uncut, config) as plugin,
    ):
        await node_.offers(GPU, 3)
        assert await gets(node_, host, "two", 2, {uuid_of(number) for number in range(3)})
        await node_.cluster.delete("two", grace=0)
        await node_.cluster.gone("two")
        host.show(cut)
        specs.update(offer(cut, config), cut, config)
        assert specs.withheld == mig_devices(cut)
        plugin.update(plugin.node.derive(cut, config, (), specs.withheld))
        await node_.allocatable(SLICE, 0)
        await until(lambda: _settled(specs))
        plugin.update(plugin.node.derive(cut, config, (), specs.withheld))
        await node_.offers(SLICE, 2)
        first = await gets(node_, host, "part", 1, mig_devices(cut), SLICE)
        assert first | await gets(node_, host, "other", 1, mig_devices(cut), SLICE) == mig_devices(cut)


async def test_devices_are_found_by_index_and_with_both_ways_at_once(
    on_cdi_node: Opened, host: CdiHost
) -> None:
    config, cut = settings("cdi-cri", "cdi-annotations", index=True), node(SEVEN[:2], None)
    host.install()
    host.show(cut)
    made(host, uuid_of(1), *mig_devices(cut))
    async with on_cdi_node as node_, specs_for(host, cut, config), node_.plugin(cut, config):
        await node_.offers(SLICE, 2)
        assert await gets(node_, host, "part", 1, mig_devices(cut), SLICE)
        assert await gets(node_, host, "one", 1, {uuid_of(1)}) == {uuid_of(1)}


async def test_without_cdi_a_container_gets_variables_and_the_device_nodes_themselves(
    on_node: Opened, host: CdiHost, real_node: RealNode
) -> None:
    cut = node(SEVEN[:2], None, None)
    host.show(cut)
    minors = made(host, uuid_of(1), uuid_of(2), *mig_devices(cut), control=CONTROL_NODES[:2])
    config = PluginConfig(mig_strategy="mixed", pass_device_specs=True, dev_root=str(host.root))
    async with on_node as node_, node_.plugin(cut, config, driver_nodes(host.root)):
        await node_.offers(SLICE, 2)
        await node_.offers(GPU, 2)
        for name, count, resource in (("two", 2, GPU), ("part", 1, SLICE)):
            variables, mounts, nodes = seen(await node_.printed(name, count, resource, SCRIPT))
            held = (await node_.held())[name]
            assert set(variables["NVIDIA_VISIBLE_DEVICES"].split(",")) == held
            wanted = {*CONTROL_NODES[:2], *(path for uuid in held for path in host.nodes_of(uuid))}
            assert nodes == {path: minors[path] for path in wanted}
            assert not mounts
