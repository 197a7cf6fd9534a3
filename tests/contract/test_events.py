"""Events as the real API server takes them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from tests.contract.fronts import Front
from tests.contract.servers import ControlPlane

from gpufleet.kube.client import Client
from gpufleet.kube.events import TRIES, EventRecorder
from gpufleet.kube.kinds import CONFIG_MAPS, EVENTS, NODES
from gpufleet.kube.objects import Node, ObjectMeta, Pod


@asynccontextmanager
async def recording(client: Client, **options: Any) -> AsyncIterator[EventRecorder]:
    recorder = EventRecorder(client, "gpufleet.dev/scheduler", "scheduler-0", **options)
    task = asyncio.create_task(recorder.run())
    try:
        yield recorder
        await asyncio.wait_for(recorder.flush(), 20)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def pod(namespace: str, name: str) -> Pod:
    return Pod(metadata=ObjectMeta(name=name, namespace=namespace, uid=f"uid-of-{name}"))


async def events_of(client: Client, namespace: str) -> list[dict[str, Any]]:
    return (await client.list(EVENTS, namespace)).items


async def test_equal_events_are_one_event_with_a_count(control_plane: ControlPlane, namespace: str) -> None:
    async with Client(control_plane.config) as client:
        async with recording(client) as recorder:
            for _ in range(3):
                recorder.record(pod(namespace, "a"), "Warning", "FailedScheduling", "Scheduling", "no room")
                await recorder.flush()
            for _ in range(4):
                recorder.record(pod(namespace, "a"), "Warning", "FailedScheduling", "Scheduling", "no room")
            recorder.record(pod(namespace, "a"), "Normal", "Scheduled", "Binding", "on node n1")
            recorder.record(pod(namespace, "b"), "Warning", "FailedScheduling", "Scheduling", "no room")
        found = {
            (event["regarding"]["name"], event["reason"]): event.get("series", {}).get("count", 1)
            for event in await events_of(client, namespace)
        }
        assert found == {("a", "FailedScheduling"): 7, ("a", "Scheduled"): 1, ("b", "FailedScheduling"): 1}
        event = (await events_of(client, namespace))[0]
        assert event["reportingController"] == "gpufleet.dev/scheduler"
        assert event["reportingInstance"] == "scheduler-0"
        assert event["regarding"]["apiVersion"] == "v1"
        assert event["regarding"]["kind"] == "Pod"
        assert event["regarding"]["uid"].startswith("uid-of-")


async def test_the_server_takes_events_of_any_length_about_any_kind(
    control_plane: ControlPlane, namespace: str
) -> None:
    async with Client(control_plane.config) as client:
        made = await client.create(CONFIG_MAPS, {"metadata": {"name": "c" * 200, "namespace": namespace}})
        node = await client.create(NODES, Node(metadata=ObjectMeta(name=f"{namespace}-node")), type=Node)
        async with recording(client) as recorder:
            recorder.record(made, "Normal", "Noticed", "Looking", "€" * 2000)
            recorder.record(node, "Warning", "GPUFellOff", "Watching", "a GPU is gone")
        (about_map,) = await events_of(client, namespace)
        assert len(about_map["note"].encode()) <= 1024
        assert about_map["note"].endswith("...")
        about_node = [
            e for e in await events_of(client, "default") if e["regarding"]["name"] == f"{namespace}-node"
        ]
        assert [event["reason"] for event in about_node] == ["GPUFellOff"]
        assert recorder.dropped == 0


async def test_an_event_that_expired_is_written_anew_with_its_count(
    control_plane: ControlPlane, namespace: str
) -> None:
    async with Client(control_plane.config) as client, recording(client) as recorder:
        for _ in range(2):
            recorder.record(pod(namespace, "a"), "Normal", "Waiting", "Queueing", "for its gang")
            await recorder.flush()
        (event,) = await events_of(client, namespace)
        await client.delete(EVENTS, event["metadata"]["name"], namespace)
        recorder.record(pod(namespace, "a"), "Normal", "Waiting", "Queueing", "for its gang")
        await recorder.flush()
        (again,) = await events_of(client, namespace)
        assert again["series"]["count"] == 3


async def test_what_the_server_refuses_is_dropped_at_once_and_what_it_cannot_do_after_some_tries(
    control_plane: ControlPlane, namespace: str
) -> None:
    async def broken(_: web.Request) -> web.Response:
        return web.Response(status=500)

    async with Front(control_plane.config, broken) as front, Client(front.config) as client:
        async with recording(client) as recorder:
            recorder.record(pod(namespace, "a"), "Normal", "Waiting", "Queueing", "for its gang")
        assert recorder.dropped == 1
        assert len(front.requests) == TRIES
    async with Client(control_plane.config) as client:
        async with recording(client) as recorder:
            recorder.record(pod("no-such-namespace", "a"), "Normal", "Waiting", "Queueing", "for its gang")
        assert recorder.dropped == 1


async def test_a_full_queue_drops_the_oldest_and_never_waits(
    control_plane: ControlPlane, namespace: str
) -> None:
    async with Client(control_plane.config) as client:
        recorder = EventRecorder(client, queue=10)
        for number in range(25):
            recorder.record(pod(namespace, f"p{number}"), "Normal", "Waiting", "Queueing", "for its gang")
        assert recorder.dropped == 15
        task = asyncio.create_task(recorder.run())
        await asyncio.wait_for(recorder.flush(), 20)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        names = {event["regarding"]["name"] for event in await events_of(client, namespace)}
        assert names == {f"p{number}" for number in range(15, 25)}
