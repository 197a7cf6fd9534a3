"""Writes of simulated nodes that fail: they are tried again, counted, and logged so that people notice."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import msgspec
import prometheus_client
import pytest

from gpufleet.kube.client import Client, Unreachable
from gpufleet.kube.informers import Change
from gpufleet.kube.objects import Node
from gpufleet.kube.workqueue import WorkQueue
from gpufleet.local.fleetfile import parse_fleet
from gpufleet.local.simnodes.machines import machines
from gpufleet.local.simnodes.node import SimulatedNode
from gpufleet.local.simnodes.registration import Registration
from gpufleet.local.simnodes.workers import Workers


def _failed(what: str) -> float:
    name = "gpufleet_simnodes_failed_writes_total"
    return prometheus_client.REGISTRY.get_sample_value(name, {"what": what}) or 0.0


async def _until(work: Callable[[], Any], done: Callable[[], bool]) -> None:
    task = asyncio.create_task(work())
    async with asyncio.timeout(20):
        while not done():
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_a_node_that_was_given_up_is_reported_ready_also_after_a_write_that_failed() -> None:
    class Outage:
        """The first write gets no answer."""

        def __init__(self) -> None:
            self.patches: list[Any] = []

        async def patch(self, kind: Any, name: str, patch: Any, **_: Any) -> None:
            self.patches.append(patch)
            if len(self.patches) == 1:
                raise Unreachable(reason="NoAnswer", message="connection refused")

    async def play() -> None:
        client, machine = Outage(), machines(parse_fleet("groups: [{name: g}]", "f"), "f")[0]
        status = {"conditions": [{"type": "Ready", "status": "Unknown"}]}
        node = msgspec.convert({"metadata": {"name": "g-0"}, "status": status}, Node)
        api: Client = client  # type: ignore[assignment]
        registration = Registration(api, {"g-0": SimulatedNode(machine)}, lambda _: node)
        registration.node_changed(Change("g-0", None, node))
        await _until(registration.workers.run, lambda: len(client.patches) > 1)
        assert client.patches[1]["status"]["conditions"][-1]["status"] == "True"

    before = _failed("node status")
    asyncio.run(play())
    assert _failed("node status") == before + 1


def test_a_write_that_goes_on_failing_stays_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def play() -> int:
        tries = 0
        hours = iter(range(0, 10**9, 3600))
        queue: WorkQueue[str] = WorkQueue(clock=lambda: float(next(hours)))

        async def fail(_: str) -> None:
            nonlocal tries
            tries += 1
            raise Unreachable(reason="NoAnswer", message="connection refused")

        queue.add("a")
        await _until(Workers(queue, fail, concurrency=1, what="test").run, lambda: tries >= 24)
        return tries

    with caplog.at_level(logging.WARNING):
        tries = asyncio.run(play())
    assert _failed("test") == tries
    assert len(caplog.records) == 1 + tries // 12
