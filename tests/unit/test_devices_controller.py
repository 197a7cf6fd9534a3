"""The loop of devices: what it writes once, what it tries again, and when it stops."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from tests.unit.pools_world import World, gpu_node, node, pool

from gpufleet.devices import controller as devices
from gpufleet.devices.controller import DevicesController
from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube import objects
from gpufleet.kube.errors import ApiError, NotLeader
from gpufleet.kube.events import EventRecorder
from gpufleet.kube.informers import Change


class Server:
    """Takes writes, or refuses them, and shows nobody what it has taken."""

    def __init__(self, *refusals: GpufleetError) -> None:
        self.refusals = list(refusals)
        self.written: list[str] = []

    async def patch(self, kind: Any, name: str, patch: Any, *_: object, **__: object) -> object:
        if kind.kind == "Node" and self.refusals:
            raise self.refusals.pop(0)
        self.written.append(f"{kind.kind} {name}")
        return object()


class Story:
    """A controller whose caches hold one node and one pool that asks something of it."""

    def __init__(self, server: Server) -> None:
        client: Any = server
        self.recorder = EventRecorder(client)
        self.found = DevicesController(client, self.recorder)
        self.world = World([pool(labels={"tier": "gold"})], [node()])
        for key, one in self.world.pools.items():
            self.found._pools._store.apply(Change(key, None, one))
        self.see()

    def see(self) -> None:
        """The cache gets to know the node as the server has it."""
        seen = msgspec.convert(self.world.nodes["n"], objects.Node)
        self.found._node_changed(Change("n", None, seen))

    async def decide(self) -> None:
        await self.found._carry_out(self.found._decide())


def run(story: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(story(), 10)

    asyncio.run(bounded())


def test_what_was_written_is_left_alone_until_the_cache_has_seen_it() -> None:
    async def story() -> None:
        server = Server()
        found = Story(server)
        for _ in range(3):
            await found.decide()
        assert sorted(server.written) == ["GPUPool p", "Node n"]
        found.world.nodes["n"]["metadata"]["resourceVersion"] = "2"
        found.see()
        await found.decide()
        assert server.written.count("Node n") == 2, "somebody's write was the next one, and took ours back"

    run(story)


@pytest.mark.parametrize("status", [409, 422, 500])
def test_a_write_that_is_refused_is_decided_anew_after_a_pause(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "RETRY_SECONDS", (0.01, 0.02))

    async def story() -> None:
        server = Server(ApiError(status=status, reason="Refused", message="no"))
        found = Story(server)
        found.found._changed.clear()
        await found.decide()
        assert server.written == ["GPUPool p"]
        await found.found._changed.wait()
        await found.decide()
        assert server.written == ["GPUPool p", "Node n"]

    run(story)


def test_who_does_not_lead_any_more_stops() -> None:
    async def story() -> None:
        found = Story(Server(NotLeader("kube-system/gpufleet-devices")))
        with pytest.raises(ExceptionGroup) as caught:
            await found.decide()
        assert caught.value.subgroup(NotLeader)

    run(story)


def test_readings_of_gpus_are_no_reason_to_decide() -> None:
    async def story() -> None:
        found = Story(Server()).found
        one = gpu_node()
        hot = msgspec.structs.replace(one.status.devices[0], temperature_c=80)
        devices_now = (hot, *one.status.devices[1:])
        status = msgspec.structs.replace(one.status, devices=devices_now)
        found._changed.clear()
        found._gpu_node_changed(Change("n", one, msgspec.structs.replace(one, status=status)))
        assert not found._changed.is_set()
        sick = msgspec.structs.replace(hot, healthy=False, reason="Xid79")
        status = msgspec.structs.replace(one.status, devices=(sick, *one.status.devices[1:]))
        found._gpu_node_changed(Change("n", one, msgspec.structs.replace(one, status=status)))
        assert found._changed.is_set()

    run(story)
