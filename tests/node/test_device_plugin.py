"""The device plugin and the pod resources client, over the sockets of a small kubelet."""

from __future__ import annotations

import asyncio
import random
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import grpc
import grpc.aio
import pytest
from tests.node.bindings import Bindings, free_of_doubles
from tests.node.fake_kubelet import AdmissionError, FakeKubelet, allocate
from tests.unit.inventories import SEVEN, islands, node, uuid_of, whole

from gpufleet.devices.allocation import Grant, Mount
from gpufleet.devices.device_plugin import DevicePlugin, remove_stale, socket_name
from gpufleet.devices.inventory import Inventory
from gpufleet.devices.picks import Pick, Picks
from gpufleet.devices.plugin_config import PluginConfig, SharedResource, Sharing
from gpufleet.devices.plugin_node import PluginNode
from gpufleet.devices.preferred_allocation import topology
from gpufleet.devices.resources import offer
from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube.kubelet import device_plugin_pb2 as pb
from gpufleet.kube.kubelet.pod_resources import HeldDevices, PodResources

GPU, SLICE = "nvidia.com/gpu", "nvidia.com/mig-1g.10gb"
MIXED = PluginConfig(mig_strategy="mixed")
RESTARTS = 50
ADMISSIONS = 2000


@pytest.fixture
def root() -> Iterator[Path]:
    """A folder with a path short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="gf-"))
    yield folder
    shutil.rmtree(folder)


def offered(inventory: Inventory, config: PluginConfig = MIXED, sick: Sequence[str] = ()) -> PluginNode:
    links = islands(len(inventory.gpus), 4)
    return PluginNode(offer(inventory, config, sick), inventory, config, topology(inventory, links))


@asynccontextmanager
async def running(plugin: DevicePlugin) -> AsyncIterator[DevicePlugin]:
    task = asyncio.create_task(plugin.run())
    try:
        yield plugin
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def pair(root: Path, node: PluginNode) -> AsyncIterator[tuple[FakeKubelet, DevicePlugin]]:
    """A kubelet and a plugin that has registered everything that it offers."""
    kubelet = FakeKubelet(root)
    await kubelet.start()
    try:
        plugin = make(kubelet, node)
        async with running(plugin):
            await kubelet.until(lambda: all(kubelet.capacity(one.name) for one in node.offer.resources))
            yield kubelet, plugin
    finally:
        await kubelet.stop()


def make(kubelet: FakeKubelet, node: PluginNode) -> DevicePlugin:
    plugin = DevicePlugin(kubelet.plugins, poll_s=0.01)
    plugin.update(node)
    return plugin


def sockets(kubelet: FakeKubelet) -> list[str]:
    return sorted(path.name for path in kubelet.plugins.glob("gpufleet-*"))


async def test_every_resource_has_a_server_of_its_own_and_is_registered_with_its_devices(root: Path) -> None:
    async with pair(root, offered(node(SEVEN, None, None))) as (kubelet, plugin):
        assert kubelet.registrations == {GPU: 1, SLICE: 1}
        assert set(kubelet.devices[GPU]) == {uuid_of(1), uuid_of(2)}
        assert [one.topology.nodes[0].ID for one in kubelet.devices[GPU].values()] == [0, 1]
        assert kubelet.connection(GPU).options.get_preferred_allocation_available
        assert not kubelet.connection(GPU).options.pre_start_required
        assert plugin.registered == {GPU: True, SLICE: True}
        names = [name.rpartition("-")[0] for name in sockets(kubelet)]
        assert names == ["gpufleet-gpu", "gpufleet-mig-1g.10gb"]


async def test_a_pod_gets_exactly_its_devices_and_what_comes_on_top(root: Path) -> None:
    async with pair(root, offered(whole(8), PluginConfig())) as (kubelet, plugin):
        plugin.extras = lambda resource, devices: Grant(
            {"CUDA_MPS_PIPE_DIRECTORY": resource}, (Mount("/pipe", "/pipe", read_only=True),)
        )
        (held,) = await kubelet.admit("pod", {GPU: 4})
        assert held.ids == {uuid_of(index) for index in range(4)}
        assert set(held.answer.envs["NVIDIA_VISIBLE_DEVICES"].split(",")) == held.ids
        assert held.answer.envs["CUDA_MPS_PIPE_DIRECTORY"] == GPU
        assert [(one.host_path, one.container_path, one.read_only) for one in held.answer.mounts] == [
            ("/pipe", "/pipe", True)
        ]


async def test_device_nodes_annotations_and_cdi_names_arrive_as_the_config_says(root: Path) -> None:
    config = PluginConfig(
        device_list_strategies=("cdi-annotations", "cdi-cri"),
        device_id_strategy="index",
        pass_device_specs=True,
    )
    async with pair(root, offered(whole(1), config)) as (kubelet, _):
        (held,) = await kubelet.admit("pod", {GPU: 1})
        assert [one.name for one in held.answer.cdi_devices] == ["nvidia.com/gpu=0"]
        assert [*held.answer.annotations.values()] == ["nvidia.com/gpu=0"]
        assert [(one.host_path, one.permissions) for one in held.answer.devices] == [("/dev/nvidia10", "rw")]


async def test_restarts_of_the_kubelet_neither_lose_nor_double_a_device(root: Path) -> None:
    async with pair(root, offered(node(SEVEN, *[None] * 7))) as (kubelet, _):
        for number in range(RESTARTS):
            await kubelet.restart()
            await kubelet.until(lambda: kubelet.allocatable(GPU) == kubelet.allocatable(SLICE) == 7)
            if number >= 6:
                kubelet.finish(f"pod-{number - 6}")
            await kubelet.admit(f"pod-{number}", {GPU: 1, SLICE: 1})
            assert free_of_doubles(kubelet, GPU)
            assert free_of_doubles(kubelet, SLICE)
        assert kubelet.capacity(GPU) == kubelet.capacity(SLICE) == 7
        assert kubelet.registrations == {GPU: RESTARTS + 1, SLICE: RESTARTS + 1}
        assert kubelet.refused == []
        assert len(sockets(kubelet)) == 2


async def test_restarts_of_the_plugin_neither_lose_nor_double_a_device(root: Path) -> None:
    kubelet = FakeKubelet(root)
    await kubelet.start()
    for number in range(RESTARTS):
        async with running(make(kubelet, offered(whole(8), PluginConfig()))):
            await kubelet.until(lambda: kubelet.allocatable(GPU) == 8)
            if number >= 7:
                kubelet.finish(f"pod-{number - 7}")
            await kubelet.admit(f"pod-{number}", {GPU: 1})
            assert free_of_doubles(kubelet, GPU)
        await kubelet.until(lambda: kubelet.allocatable(GPU) == 0)
        assert kubelet.capacity(GPU) == 8
        assert sockets(kubelet) == []
    assert len(kubelet.in_use(GPU)) == 7
    assert kubelet.refused == []
    await kubelet.stop()


async def test_the_next_plugin_knows_what_the_last_one_registered_until_it_is_forgotten(root: Path) -> None:
    async with pair(root, offered(node(SEVEN, None))) as (kubelet, plugin):
        assert plugin.ours == {GPU, SLICE}
        await kubelet.restart()
        following = make(kubelet, PluginNode())
        assert following.ours == {GPU, SLICE}
        following.remember(["nvidia.com/mig-2g.20gb"])
        assert make(kubelet, PluginNode()).ours == {GPU, SLICE, "nvidia.com/mig-2g.20gb"}
        following.forget()
        assert make(kubelet, PluginNode()).ours == frozenset()


def test_a_folder_in_which_nobody_registered_has_nothing_of_ours(root: Path) -> None:
    assert DevicePlugin(root / "not there").ours == frozenset()


async def test_a_plugin_that_dies_and_one_that_follows_at_once_do_not_meet_at_one_socket(root: Path) -> None:
    """The kubelet refuses a socket that it still holds, so the follower has another one."""
    async with pair(root, offered(whole(2), PluginConfig())) as (kubelet, _):
        async with running(make(kubelet, offered(whole(2), PluginConfig()))):
            await kubelet.until(lambda: kubelet.registrations[GPU] == 2)
            assert kubelet.refused == []
        assert kubelet.allocatable(GPU) == 2


async def test_a_plugin_waits_for_a_kubelet_that_starts_later(root: Path) -> None:
    kubelet = FakeKubelet(root)
    async with running(make(kubelet, offered(whole(2), PluginConfig()))) as plugin:
        await asyncio.sleep(0.05)
        assert plugin.registered == {GPU: False}
        await kubelet.start()
        await kubelet.until(lambda: kubelet.allocatable(GPU) == 2)
        await kubelet.stop()


async def test_a_stream_that_the_kubelet_ends_is_registered_anew(root: Path) -> None:
    async with pair(root, offered(whole(2), PluginConfig())) as (kubelet, _):
        kubelet.end_stream(GPU)
        await kubelet.until(lambda: kubelet.allocatable(GPU) == 0)
        await kubelet.until(lambda: kubelet.allocatable(GPU) == 2)
        assert kubelet.registrations == {GPU: 2}
        assert len(sockets(kubelet)) == 1


async def test_a_socket_that_somebody_deletes_is_served_anew(root: Path) -> None:
    async with pair(root, offered(whole(2), PluginConfig())) as (kubelet, _):
        (root / "dp" / sockets(kubelet)[0]).unlink()
        await kubelet.until(lambda: kubelet.registrations[GPU] == 2)
        await kubelet.until(lambda: kubelet.allocatable(GPU) == 2)
        await kubelet.admit("pod", {GPU: 2})


async def test_another_kubelet_that_deletes_nothing_is_registered_with_all_the_same(root: Path) -> None:
    async with pair(root, offered(whole(2), PluginConfig())):
        other = FakeKubelet(root)
        await other.start(tidy=False)
        await other.until(lambda: other.allocatable(GPU) == 2)
        await other.stop()


async def test_instances_come_and_go_and_no_other_resource_notices(root: Path) -> None:
    async with pair(root, offered(node((), None))) as (kubelet, plugin):
        assert kubelet.capacity(SLICE) == 0
        for profiles, count in ((SEVEN, 7), (SEVEN[:3], 3), ((), 0), (SEVEN, 7)):
            plugin.update(offered(node(profiles, None)))
            await sliced(kubelet, count)
        assert kubelet.registrations == {GPU: 1, SLICE: 1}
        assert kubelet.lists(GPU) == 1
        assert kubelet.lists(SLICE) == 4


async def sliced(kubelet: FakeKubelet, count: int) -> None:
    await kubelet.until(lambda: kubelet.capacity(SLICE) == count)


async def test_a_sick_gpu_is_told_to_the_kubelet_and_well_again(root: Path) -> None:
    async with pair(root, offered(node(SEVEN, SEVEN))) as (kubelet, plugin):
        plugin.update(offered(node(SEVEN, SEVEN), sick=[uuid_of(1)]))
        await kubelet.until(lambda: kubelet.allocatable(SLICE) == 7)
        assert kubelet.capacity(SLICE) == 14
        plugin.update(offered(node(SEVEN, SEVEN)))
        await kubelet.until(lambda: kubelet.allocatable(SLICE) == 14)


async def test_all_streams_hear_of_every_change_and_of_nothing_else(root: Path) -> None:
    async with pair(root, offered(whole(2), PluginConfig())) as (kubelet, plugin):
        path = root / "dp" / sockets(kubelet)[0]
        async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
            heard: list[list[int]] = [[], [], []]
            tasks = [asyncio.create_task(follow(channel, into)) for into in heard]
            await reached(lambda: heard == [[2]] * 3)
            plugin.update(offered(whole(2), PluginConfig()))
            plugin.update(offered(whole(3), PluginConfig()))
            await reached(lambda: heard == [[2, 3]] * 3)
            for task in tasks:
                task.cancel()
        await kubelet.until(lambda: kubelet.capacity(GPU) == 3)
        assert kubelet.registrations == {GPU: 1}


async def follow(channel: grpc.aio.Channel, into: list[int]) -> None:
    call = channel.unary_stream(
        "/v1beta1.DevicePlugin/ListAndWatch",
        request_serializer=pb.Empty.SerializeToString,
        response_deserializer=pb.ListAndWatchResponse.FromString,
    )
    async for answer in call(pb.Empty()):
        into.append(len(answer.devices))


async def reached(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("ids", "code"),
    [
        ([uuid_of(7)], "DeviceNotOffered"),
        ([uuid_of(0), "nonsense"], "DeviceNotOffered"),
        ([uuid_of(1)], "DeviceUnhealthy"),
        ([], "NoDevicesRequested"),
    ],
)
async def test_a_request_for_anything_but_healthy_devices_fails_closed(
    root: Path, ids: list[str], code: str
) -> None:
    async with pair(root, offered(whole(2), PluginConfig(), sick=[uuid_of(1)])) as (kubelet, _):
        request = pb.AllocateRequest(container_requests=[pb.ContainerAllocateRequest(devices_ids=ids)])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await allocate(kubelet.connection(GPU).channel)(request)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert code in (caught.value.details() or "")
        await kubelet.admit("pod", {GPU: 1})


async def test_a_pod_that_asks_for_two_replicas_fails_where_the_config_forbids_it(root: Path) -> None:
    shared = (SharedResource(GPU, 4, f"{GPU}.shared"),)
    config = PluginConfig(sharing=Sharing("time-slicing", shared, fail_requests_greater_than_one=True))
    async with pair(root, offered(whole(2), config)) as (kubelet, _):
        with pytest.raises(AdmissionError, match="TooManyReplicas"):
            await kubelet.admit("greedy", {f"{GPU}.shared": 2})
        held = [(await kubelet.admit(f"pod-{n}", {f"{GPU}.shared": 1}))[0] for n in range(8)]
        gpus = [held.answer.envs["NVIDIA_VISIBLE_DEVICES"] for held in held]
        assert sorted(gpus[:2]) == [uuid_of(0), uuid_of(1)], "spread over both GPUs"
        assert sorted(gpus) == [uuid_of(0)] * 4 + [uuid_of(1)] * 4


async def test_the_devices_of_init_containers_are_used_again(root: Path) -> None:
    async with pair(root, offered(whole(4), PluginConfig())) as (kubelet, plugin):
        plugin.picks = Picks(
            (Pick("x", "init", GPU, (uuid_of(3),)), Pick("x", "main", GPU, (uuid_of(1), uuid_of(3))))
        )
        (init,) = await kubelet.admit("pod", {GPU: 1}, "init")
        (main,) = await kubelet.admit("pod", {GPU: 2}, "main", reusable=init.ids)
        assert init.ids == {uuid_of(3)}
        assert main.ids == {uuid_of(1), uuid_of(3)}


async def test_a_stop_leaves_running_pods_their_devices_and_no_socket_behind(root: Path) -> None:
    async with pair(root, offered(whole(2), PluginConfig())) as (kubelet, plugin):
        (held,) = await kubelet.admit("pod", {GPU: 1})
        second = make(kubelet, plugin.node)
        async with running(second):
            await kubelet.until(lambda: kubelet.registrations[GPU] == 2)
        assert kubelet.in_use(GPU) == held.ids
        assert second.registered == {}
        assert len(sockets(kubelet)) == 1


def test_sockets_that_nobody_listens_at_are_removed_and_others_are_not(root: Path) -> None:
    listening = socket.socket(socket.AF_UNIX)
    for name in ("gpufleet-gpu-1.sock", "gpufleet-gpu-2.sock", "nvidia-gpu.sock"):
        listening.close()
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(root / name))
    listening.close()
    with socket.socket(socket.AF_UNIX) as alive:
        (root / "gpufleet-gpu-2.sock").unlink()
        alive.bind(str(root / "gpufleet-gpu-2.sock"))
        alive.listen()
        remove_stale(root)
    assert sorted(path.name for path in root.iterdir()) == ["gpufleet-gpu-2.sock", "nvidia-gpu.sock"]


def test_a_socket_is_named_after_its_resource_and_its_path_fits_into_107_bytes() -> None:
    folder = Path("/var/lib/kubelet/device-plugins")
    assert socket_name(GPU, "abc123", folder) == "gpufleet-gpu-abc123.sock"
    assert socket_name(f"{SLICE}.me", "abc123", folder) == "gpufleet-mig-1g.10gb.me-abc123.sock"
    long = [socket_name(f"nvidia.com/{'x' * 62}{end}", "abc123", folder) for end in "ab"]
    assert len(set(long)) == 2
    assert max(len(str(folder / name)) for name in long) <= 107
    with pytest.raises(GpufleetError, match="PluginFolderTooLong"):
        socket_name(GPU, "abc123", Path("/" + "x" * 100))


async def test_pod_resources_tell_who_holds_what(root: Path) -> None:
    async with pair(root, offered(node(SEVEN, *[None] * 3))) as (kubelet, _):
        client = PodResources(kubelet.pod_socket)
        assert await client.pods() == ()
        (gpus, one) = await kubelet.admit("pod", {GPU: 3, SLICE: 1})
        (pod,) = await client.pods()
        assert (pod.namespace, pod.name, pod.containers[0].name) == ("default", "pod", "main")
        assert pod.containers[0].devices == (
            HeldDevices(GPU, tuple(sorted(gpus.ids)), (0, 1)),
            HeldDevices(SLICE, tuple(one.ids), (0,)),
        )
        assert await client.pod("default", "pod") == pod
        assert await client.pod("default", "other") is None
        assert {one.resource: len(one.ids) for one in await client.devices()} == {GPU: 3, SLICE: 7}
        await client.close()


async def test_pod_resources_survive_a_restart_of_the_kubelet_and_say_when_it_is_away(root: Path) -> None:
    kubelet = FakeKubelet(root)
    async with PodResources(kubelet.pod_socket, timeout_s=5.0) as client:
        for _ in range(2):
            with pytest.raises(GpufleetError, match="PodResourcesUnavailable"):
                await client.pods()
            await kubelet.start()
            await answered(client)
            await kubelet.stop()


async def answered(client: PodResources) -> None:
    async with asyncio.timeout(10):
        while True:
            with suppress(GpufleetError):
                await client.pods()
                return
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("strict", [True, False])
async def test_two_thousand_concurrent_admissions_with_picks_double_no_device(
    root: Path, strict: bool
) -> None:
    """With one unconfirmed pod per count each pod gets its pick; else some swap, and none shares a device."""
    chance = random.Random(5)
    async with pair(root, offered(node(*[SEVEN] * 8))) as (kubelet, plugin):
        scheduler = Bindings(kubelet, plugin, SLICE, seed=7)
        sizes = [chance.choice([1, 1, 2]) for _ in range(ADMISSIONS)]
        await scheduler.run(sizes, strict=strict)
        print(
            f"strict={strict}: {scheduler.swaps} of {scheduler.admitted} pods got other devices than picked"
        )
        assert scheduler.admitted == len(sizes)
        assert kubelet.in_use(SLICE) == set()
        assert plugin.picks == Picks()
        assert scheduler.swaps <= (0 if strict else ADMISSIONS // 4), "one swap shifts no other pod"


async def test_two_pods_that_were_picked_for_different_gpus_get_them_though_both_have_free_replicas(
    root: Path,
) -> None:
    config = PluginConfig(sharing=Sharing("time-slicing", (SharedResource(GPU, 4),)))
    async with pair(root, offered(whole(2), config)) as (kubelet, plugin):
        plugin.picks = Picks(tuple(Pick(f"pod-{n}", "main", GPU, (uuid_of(n),)) for n in (1, 0)))
        for number in (1, 0):
            (held,) = await kubelet.admit(f"pod-{number}", {GPU: 1})
            assert held.answer.envs["NVIDIA_VISIBLE_DEVICES"] == uuid_of(number)
        assert plugin.picks.waiting == ()


async def test_a_pod_that_nobody_picked_for_leaves_promised_devices_alone(root: Path) -> None:
    async with pair(root, offered(whole(4), PluginConfig())) as (kubelet, plugin):
        plugin.picks = Picks((Pick("late", "main", GPU, (uuid_of(0), uuid_of(1))),))
        (stranger,) = await kubelet.admit("stranger", {GPU: 1})
        assert not stranger.ids & {uuid_of(0), uuid_of(1)}
        (late,) = await kubelet.admit("late", {GPU: 2})
        assert late.ids == {uuid_of(0), uuid_of(1)}
