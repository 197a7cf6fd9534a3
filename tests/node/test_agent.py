"""The agent as a whole: labels, devices, health, MIG, metrics, and whose part is whose."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from tests.contract.servers import ControlPlane
from tests.contract.simnodes.fleet import until
from tests.node.agent_world import GPU, AgentWorld, world
from tests.node.nvml_nodes import NvmlNode, cut_node, whole_node

from gpufleet.devices.cluster_reading import DAEMON_SETS
from gpufleet.kube.kinds import NODES
from gpufleet.kube.objects import PartialObject

ONE, THREE = "nvidia.com/mig-1g.10gb", "nvidia.com/mig-3g.40gb"
World = Callable[[], AbstractAsyncContextManager[AgentWorld]]


@pytest.fixture
def opened(plane: ControlPlane, nvml_node: NvmlNode, tmp_path_factory: pytest.TempPathFactory) -> World:
    root: Path = tmp_path_factory.mktemp("k")
    return lambda: world(plane, nvml_node, root)


async def test_a_node_is_labelled_offers_its_gpus_and_says_so_in_its_gpunode(opened: World) -> None:
    async with opened() as w:
        w.nvml.show(*whole_node("h100", 8))
        async with w.running():
            labels = await w.labels(lambda found: "nvidia.com/gpu.count" in found)
            assert labels["nvidia.com/gpu.product"] == "NVIDIA-H100-80GB-HBM3"
            assert labels["kubernetes.io/hostname"] == w.node
            assert w.kubelet.allocatable(GPU) == 8
            status = (await w.gpu_node(lambda one: len(one.status.devices) == 8)).status
            assert [(one.name, one.healthy) for one in status.resources] == [(GPU, 8)]
            assert {one.name for one in status.phases} == {"Registered", "DevicesReady", "Ready"}
            owners = w.agent.owners.found
            assert owners is not None
            assert {part.component for part in owners.parts if part.does == "run"} == {
                "device-plugin", "exporter", "labels", "mig-manager", "mps",
            }  # fmt: skip


async def test_who_holds_which_gpu_stands_in_the_gpunode_and_in_the_metrics(opened: World) -> None:
    async with opened() as w:
        w.nvml.show(*whole_node("h100", 2))
        async with w.running():
            held = await w.admit("p")
            node = await w.gpu_node(lambda one: bool(one.status.allocations))
            (allocation,) = node.status.allocations
            assert (allocation.pod, allocation.devices) == ("p", tuple(held.ids))
            assert node.status.summary is not None
            assert node.status.summary.allocated == 1

            async def mapped() -> bool:
                samples = (await w.scrape()).get("DCGM_FI_DEV_GPU_TEMP", [])
                return {(one.labels["UUID"], one.labels.get("pod")) for one in samples} == {
                    (uuid, "p" if uuid in held.ids else None) for uuid in w.kubelet.healthy(GPU)
                }

            await until(mapped)
            await w.finish("p")
            await w.gpu_node(lambda one: not one.status.allocations)


async def test_a_sick_gpu_is_withdrawn_and_comes_back_when_it_is_well(opened: World) -> None:
    async with opened() as w:
        product, inventory = whole_node("h100", 4)
        w.nvml.show(product, inventory)
        async with w.running():
            w.nvml.change(lambda machine: machine.xid(2, 79).recover(2, 1))
            await w.kubelet.until(lambda: w.kubelet.allocatable(GPU) == 3)
            sick = await w.gpu_node(lambda one: not all(gpu.healthy for gpu in one.status.devices))
            assert [gpu.reason for gpu in sick.status.devices] == ["", "", "Xid79", ""]
            assert w.kubelet.capacity(GPU) == 4
            w.nvml.change(lambda machine: machine.recover(2, 0))
            await w.kubelet.until(lambda: w.kubelet.allocatable(GPU) == 4)


async def test_quarantine_and_sharing_are_done_as_the_controller_asks(opened: World) -> None:
    async with opened() as w:
        _, inventory = whole_node("l4", 2)
        w.nvml.show(*whole_node("l4", 2))
        async with w.running():
            await w.gpu_node(lambda one: bool(one.status.devices))
            await w.desire(quarantine=[inventory.gpus[0].uuid])
            await w.kubelet.until(lambda: w.kubelet.healthy(GPU) == {inventory.gpus[1].uuid})
            slicing = {
                "mode": "timeSlicing",
                "replicas": 3,
                "rename": True,
                "failRequestsGreaterThanOne": False,
            }
            await w.desire(quarantine=[], sharing=slicing)
            await w.kubelet.until(lambda: w.kubelet.allocatable(f"{GPU}.shared") == 6)
            assert w.kubelet.capacity(GPU) == 0
            labels = await w.labels(lambda found: found.get("nvidia.com/gpu.replicas") == "3")
            assert labels["nvidia.com/gpu.sharing-strategy"] == "time-slicing"


async def test_gpus_are_cut_as_the_controller_asks_and_nobody_loses_an_instance(opened: World) -> None:
    async with opened() as w:
        product, inventory = whole_node("h100", 2)
        w.nvml.show(product, inventory)
        first, second = (gpu.uuid for gpu in inventory.gpus)
        async with w.running():
            await w.gpu_node(lambda one: bool(one.status.devices))
            three = {"profile": "3g.40gb", "start": 4}
            cut = {"uuid": first, "enabled": True, "instances": [three]}
            await w.desire(mig=[cut], allowModeSwitch=True)
            await w.kubelet.until(lambda: w.kubelet.allocatable(THREE) == 1)
            assert w.kubelet.healthy(GPU) == {second}
            held = await w.admit("p", THREE)
            await w.gpu_node(lambda one: bool(one.status.allocations))
            more = {**cut, "instances": [{"profile": "1g.10gb", "start": 0}, three]}
            await w.desire(mig=[more])
            await w.kubelet.until(lambda: w.kubelet.allocatable(ONE) == 1)
            assert w.kubelet.healthy(THREE) == held.ids
            await w.desire(mig=[{"uuid": first, "enabled": False, "instances": []}])

            def refused(one: Any) -> bool:
                return any(c.type == "MigApplied" and c.status == "False" for c in one.status.conditions)

            blocked = await w.gpu_node(refused)
            assert "3g.40gb" in next(c.message for c in blocked.status.conditions if c.type == "MigApplied")
            assert w.kubelet.healthy(THREE) == held.ids
            await w.finish("p")
            await w.kubelet.until(lambda: w.kubelet.allocatable(GPU) == 2)
            await w.gpu_node(lambda one: not refused(one))


async def test_the_label_of_the_mig_manager_is_followed_through_its_states(opened: World) -> None:
    async with opened() as w:
        w.nvml.show(*cut_node("a100", 1, "all-balanced"))
        async with w.running():
            await w.labels(lambda found: "nvidia.com/mig-3g.40gb.count" in found)
            asked = {"metadata": {"labels": {"nvidia.com/mig.config": "all-1g.10gb"}}}
            await w.client.patch(NODES, w.node, asked, type=PartialObject)
            await w.labels(lambda found: found.get("nvidia.com/mig.config.state") == "success")
            await w.kubelet.until(lambda: w.kubelet.allocatable(ONE) == 7)
            labels = await w.labels(lambda found: "nvidia.com/mig-3g.40gb.count" not in found)
            assert labels["nvidia.com/mig-1g.10gb.count"] == "7"
            wrong = {"metadata": {"labels": {"nvidia.com/mig.config": "all-9g"}}}
            await w.client.patch(NODES, w.node, wrong, type=PartialObject)
            await w.labels(lambda found: found.get("nvidia.com/mig.config.state") == "failed")


async def test_a_part_that_somebody_else_runs_is_left_to_them(opened: World) -> None:
    async with opened() as w:
        w.nvml.show(*whole_node("h100", 1))
        plugin = {"name": "plugin", "image": "nvcr.example/nvidia/k8s-device-plugin:v0.18"}
        labels = {"app": "plugin"}
        body = {
            "metadata": {"name": "plugin"},
            "spec": {
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": {"containers": [plugin]}},
            },
        }
        await w.client.create(DAEMON_SETS, body, "default")
        try:
            async with w.running():
                assert not w.agent.owners.does("device-plugin")
                assert w.agent.owners.does("exporter")
                assert not w.kubelet.registrations
                assert (await w.gpu_node(lambda one: bool(one.status.devices))).status.devices
        finally:
            await w.client.delete(DAEMON_SETS, "plugin", "default")


async def test_an_agent_that_is_started_again_changes_nothing(opened: World) -> None:
    async with opened() as w:
        w.nvml.show(*cut_node("h100", 1))
        async with w.running():
            held = await w.admit("p", ONE)
            await w.gpu_node(lambda one: bool(one.status.allocations))
            before = w.nvml.machine.gpus
        assert not list(w.kubelet.plugins.glob("gpufleet-*.sock"))
        counts = {resource: str(w.kubelet.capacity(resource)) for resource in (ONE, THREE)}
        status = {"status": {"capacity": counts, "allocatable": counts}}
        await w.client.patch(NODES, w.node, status, subresource="status", type=PartialObject)
        async with w.running():
            await w.kubelet.until(lambda: w.kubelet.allocatable(ONE) == 2)
            assert held.ids < w.kubelet.healthy(ONE)
            assert w.nvml.machine.gpus == before
            assert w.agent.owners.does("device-plugin"), "the capacity is what the last agent registered"
            node = await w.gpu_node(lambda one: bool(one.status.allocations))
            assert node.status.allocations[0].pod == "p"
