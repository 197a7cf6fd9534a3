"""The exporter over HTTP: simulated GPUs, pods that a small kubelet admits, and those who do not answer."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import grpc.aio
import msgspec
import pytest
from prometheus_client.samples import Sample as Series
from tests.node.fake_kubelet import FakeKubelet
from tests.unit.exported import SimulatedNode, of, parsed, pod_each, value

from gpufleet.devices.device_plugin import DevicePlugin
from gpufleet.devices.exporter import ExportedNode, Exporter
from gpufleet.devices.exporter_fields import DEFAULT_FIELDS, FIELDS
from gpufleet.devices.exporter_text import Options
from gpufleet.devices.ledger import BoundPod, allocations
from gpufleet.devices.plugin_config import PluginConfig, SharedResource, Sharing, SharingStrategy
from gpufleet.devices.plugin_node import PluginNode
from gpufleet.devices.preferred_allocation import topology
from gpufleet.devices.resources import offer
from gpufleet.devices.sampling import Sampled, Sampler
from gpufleet.devices.timeline import Hang, LoseGPU, RaiseXid
from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube.kubelet.pod_resources import PodResources

GPU, SHARED, SLICE = "nvidia.com/gpu", "nvidia.com/gpu.shared", "nvidia.com/mig-1g.10gb"
SEVEN = dict.fromkeys(range(7), "1g.10gb")
PATIENCE_S = 20.0
SCRAPES = 20


@pytest.fixture
def root() -> Iterator[Path]:
    """A folder with a path short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="gf-"))
    yield folder
    shutil.rmtree(folder)


class Site:
    """An exporter that listens, and a client of it."""

    def __init__(self, exporter: Exporter, address: str, client: aiohttp.ClientSession) -> None:
        self.exporter, self.address, self.client = exporter, address, client

    async def get(self, path: str, **headers: str) -> tuple[int, str, Mapping[str, str]]:
        """Status, text and headers; whoever waits for a driver or a kubelet has no answer in time."""
        async with asyncio.timeout(PATIENCE_S), self.client.get(path, headers=headers) as answer:
            return answer.status, await answer.text(), answer.headers

    async def scrape(self, path: str = "/metrics") -> list[Series]:
        """What Prometheus reads at a path."""
        status, text, _ = await self.get(path)
        assert status == 200
        return parsed(text)


@asynccontextmanager
async def listening(exporter: Exporter) -> AsyncIterator[Site]:
    async with exporter.serving(0, "127.0.0.1") as port:
        address = f"127.0.0.1:{port}"
        async with aiohttp.ClientSession(f"http://{address}") as client:
            yield Site(exporter, address, client)


@asynccontextmanager
async def kubelet_of(root: Path, node: SimulatedNode, config: PluginConfig) -> AsyncIterator[FakeKubelet]:
    """A kubelet to which the node's devices are registered."""
    kubelet = FakeKubelet(root)
    await kubelet.start()
    plugin = DevicePlugin(kubelet.plugins, poll_s=0.01)
    offered = offer(node.inventory, config)
    plugin.update(PluginNode(offered, node.inventory, config, topology(node.inventory, node.backend.links())))
    task = asyncio.create_task(plugin.run())
    try:
        await kubelet.until(lambda: all(kubelet.capacity(one.name) for one in offered.resources))
        yield kubelet
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await kubelet.stop()


async def ask(kubelet: PodResources, exported: ExportedNode, pods: list[str], *resources: str) -> None:
    """What an agent does: tell the exporter what the kubelet has given, or that it does not answer."""
    bound = [BoundPod("default", pod, f"uid-of-{pod}") for pod in pods]
    try:
        listed = await kubelet.pods()
    except GpufleetError as error:
        exported.kubelet.failed(error.reason)
    else:
        exported.held(allocations(listed, bound, (), frozenset(resources)))


def seen(exporter: Exporter, node: SimulatedNode) -> ExportedNode:
    """The page of a node that was looked at once."""
    exported = exporter.add(node.name)
    exported.observed(node.inventory)
    exported.sampled(Sampled(node.backend.sample()))
    return exported


async def test_every_pod_on_seven_instances_of_eight_gpus_is_mapped(root: Path) -> None:
    node, exporter = SimulatedNode("node-0", gpus=8, profiles=SEVEN), Exporter()
    exported = seen(exporter, node)
    pods = [f"pod-{number}" for number in range(56)]
    async with kubelet_of(root, node, PluginConfig(mig_strategy="mixed")) as kubelet:
        for pod in pods:
            await kubelet.admit(pod, {SLICE: 1})
        async with PodResources(kubelet.pod_socket) as client, listening(exporter) as site:
            await ask(client, exported, pods, SLICE)
            series = await site.scrape()
    used = of(series, "DCGM_FI_DEV_FB_USED")
    assert len(used) == 64
    assert sorted(one.labels["pod"] for one in used if "GPU_I_ID" in one.labels) == sorted(pods)
    assert not [one for one in used if "GPU_I_ID" not in one.labels and "pod" in one.labels]
    assert value(series, "gpufleet_unmapped_devices") == 0
    for name in ("DCGM_FI_PROF_SM_ACTIVE", "DCGM_FI_PROF_SM_OCCUPANCY", "DCGM_FI_PROF_DRAM_ACTIVE"):
        assert len(of(series, name)) == 64


@pytest.mark.parametrize("strategy", ["time-slicing", "mps"])
async def test_pods_that_share_gpus_sum_to_what_the_gpus_do(root: Path, strategy: SharingStrategy) -> None:
    node, exporter = SimulatedNode("node-0", gpus=2), Exporter()
    node.work()
    exported = seen(exporter, node)
    sharing = Sharing(strategy, (SharedResource(GPU, 4, SHARED),))
    pods = [f"pod-{number}" for number in range(7)]
    async with kubelet_of(root, node, PluginConfig(sharing=sharing)) as kubelet:
        for pod in pods:
            await kubelet.admit(pod, {SHARED: 1})
        async with PodResources(kubelet.pod_socket) as client, listening(exporter) as site:
            alone = await site.scrape()
            await ask(client, exported, pods, SHARED)
            series = await site.scrape()
    for gpu in node.devices:
        for name in (name for name in DEFAULT_FIELDS if FIELDS[name].split != "whole"):
            parts = of(series, name, UUID=gpu)
            assert len(parts) in (3, 4)
            assert all(one.labels["namespace"] == "default" for one in parts)
            assert sum(one.value for one in parts) == pytest.approx(value(alone, name, UUID=gpu), rel=0.01)
    assert {one.labels["pod"] for one in of(series, "DCGM_FI_DEV_FB_USED")} == set(pods)
    assert value(series, "gpufleet_unmapped_devices") == 0


@pytest.mark.parametrize("names", ["classic", "new", "both"])
async def test_metrics_have_the_names_that_are_asked_for(names: str) -> None:
    options = msgspec.convert({"names": names}, Options)
    exporter = Exporter(options)
    seen(exporter, SimulatedNode("node-0"))
    async with listening(exporter) as site:
        series = await site.scrape()
    expected = {name for field in DEFAULT_FIELDS for name in FIELDS[field].names(options.names)}
    assert {one.name for one in series if one.name.startswith("DCGM")} == expected


async def test_a_hanging_driver_holds_up_no_scrape_and_lets_the_age_rise() -> None:
    node = SimulatedNode("node-0", gpus=8, profiles=SEVEN)
    exporter = Exporter(clock=node.clock.now)
    exported = exporter.add(node.name)
    exported.observed(node.inventory)
    exported.held(pod_each(node.devices))
    taken = threading.Event()

    def take(sampled: Sampled) -> None:
        exported.sampled(sampled)
        taken.set()

    sampler = Sampler(node.backend, take, exported.driver, interval_s=0.01, clock=node.clock.now)
    async with listening(exporter) as site:
        try:
            sampler.start()
            assert await asyncio.to_thread(taken.wait, PATIENCE_S)
            node.backend.play([Hang(at=0, call="all", seconds=3600)])
            while await asyncio.to_thread(taken.wait, 0.2):
                taken.clear()
            before = await site.scrape()
            ages = []
            for _ in range(SCRAPES):
                node.clock.advance(30)
                series = await site.scrape()
                ages.append(value(series, "gpufleet_sample_age_seconds", source="driver"))
            assert ages == [30.0 * (number + 1) for number in range(SCRAPES)]
            name = "DCGM_FI_DEV_FB_USED"
            assert of(series, name) == of(before, name)
            node.clock.advance(3600)
            assert await asyncio.to_thread(taken.wait, PATIENCE_S)
            series = await site.scrape()
            assert value(series, "gpufleet_sample_age_seconds", source="driver") == 0
        finally:
            node.backend.close()
            sampler.stop()


async def test_the_xid_of_a_gpu_that_falls_off_the_bus_is_shown_at_once_and_stays() -> None:
    node, exporter = SimulatedNode("node-0", gpus=2), Exporter()
    exported = seen(exporter, node)
    async with listening(exporter) as site:
        name = "DCGM_FI_DEV_XID_ERRORS"
        assert {one.value for one in of(await site.scrape(), name)} == {0}
        node.run(RaiseXid(at=0, gpu=1, code=79), LoseGPU(at=0, gpu=1))
        for event in node.backend.wait(0):
            exported.noticed(event)
        at_once = await site.scrape()
        exported.observed(node.inventory)
        exported.sampled(Sampled(node.backend.sample()))
        later = await site.scrape()
    for series in (at_once, later):
        assert {one.labels["gpu"]: one.value for one in of(series, name)} == {"0": 0, "1": 79}
    assert of(at_once, "DCGM_FI_DEV_GPU_TEMP", gpu="1")
    assert not of(later, "DCGM_FI_DEV_GPU_TEMP", gpu="1")


@asynccontextmanager
async def hanging_kubelet(root: Path) -> AsyncIterator[Path]:
    """A kubelet that takes every question and answers none."""
    released = asyncio.Event()

    async def hang(request: bytes, context: Any) -> bytes:
        await released.wait()
        return b""

    server = grpc.aio.server()
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {"List": grpc.unary_unary_rpc_method_handler(hang)}
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("v1.PodResourcesLister", handlers),)
    )
    socket = root / "kubelet.sock"
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    try:
        yield socket
    finally:
        released.set()
        await server.stop(0)


async def test_a_hanging_kubelet_holds_up_no_scrape_and_leaves_the_last_holders(root: Path) -> None:
    node = SimulatedNode("node-0", gpus=2)
    exporter = Exporter(clock=node.clock.now)
    exported = seen(exporter, node)
    exported.held(pod_each(node.devices))
    async with (
        hanging_kubelet(root) as socket,
        PodResources(socket, timeout_s=PATIENCE_S) as client,
        listening(exporter) as site,
    ):
        asked = asyncio.create_task(ask(client, exported, [], GPU))
        for number in range(SCRAPES):
            node.clock.advance(30)
            exported.sampled(Sampled(node.backend.sample()))
            exported.driver.answered(0)
            series = await site.scrape()
            assert not asked.done()
            assert value(series, "gpufleet_sample_age_seconds", source="kubelet") == 30 * (number + 1)
            assert value(series, "gpufleet_sample_age_seconds", source="driver") == 0
        assert {one.labels["pod"] for one in of(series, "DCGM_FI_DEV_FB_USED")} == {"pod-0", "pod-1"}
        asked.cancel()
        with suppress(asyncio.CancelledError):
            await asked


async def test_a_kubelet_that_is_not_there_is_counted(root: Path) -> None:
    exporter = Exporter()
    exported = seen(exporter, SimulatedNode("node-0"))
    async with PodResources(root / "nobody.sock", timeout_s=5) as client, listening(exporter) as site:
        await ask(client, exported, [], GPU)
        series = await site.scrape()
    failures = of(series, "gpufleet_sample_failures_total", source="kubelet")
    assert [(one.labels["reason"], one.value) for one in failures] == [("PodResourcesUnavailable", 1)]


async def test_many_nodes_have_a_path_each_and_are_listed_for_prometheus() -> None:
    exporter = Exporter()
    for name in ("node-b", "node-a"):
        seen(exporter, SimulatedNode(name))
    async with listening(exporter) as site:
        status, text, _ = await site.get("/sd")
        listed = msgspec.json.decode(text)
        assert status == 200
        assert [one["targets"] for one in listed] == [[site.address]] * 2
        assert [one["labels"]["node"] for one in listed] == ["node-a", "node-b"]
        for one in listed:
            series = await site.scrape(one["labels"]["__metrics_path__"])
            names = {got.labels.get("Hostname") or got.labels.get("node") for got in series}
            assert names == {one["labels"]["node"]}
        status, text, _ = await site.get("/metrics")
        assert (status, "/sd" in text) == (404, True)
        exporter.remove("node-a")
        assert (await site.get("/nodes/node-a/metrics"))[0] == 404
        assert len(await site.scrape()) == len(series)


async def test_a_page_is_compressed_for_who_asks_and_otherwise_not() -> None:
    exporter = Exporter(clock=lambda: 0.0)
    seen(exporter, SimulatedNode("node-0"))
    async with listening(exporter) as site:
        _, plain, headers = await site.get("/metrics", **{"Accept-Encoding": "identity"})
        assert "Content-Encoding" not in headers
        assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        _, text, headers = await site.get("/metrics", **{"Accept-Encoding": "deflate, gzip;q=0.8"})
        assert headers["Content-Encoding"] == "gzip"
        assert text == plain
        assert (await site.get("/health"))[:2] == (200, "ok")
