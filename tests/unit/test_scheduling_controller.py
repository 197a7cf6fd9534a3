"""The loop of the scheduler: decide, hand over, report; what the server shows is what counts."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from tests.unit.test_scheduling_writers import REFUSED, Server, Story, run
from tests.unit.watched import machine, manifest

from gpufleet.kube import objects
from gpufleet.kube.informers import Change
from gpufleet.scheduling import pauses


def roomy() -> Change[objects.Node]:
    node = machine("a")
    allocatable = {**node.status.allocatable, "pods": "10"}
    status = msgspec.structs.replace(node.status, allocatable=allocatable)
    return Change("a", None, msgspec.structs.replace(node, status=status))


def told(pod: objects.Pod) -> objects.Pod:
    """A pod that was reported as pending."""
    condition = objects.Condition(type="gpufleet.dev/Decision", status="False")
    status = msgspec.structs.replace(pod.status, conditions=(condition,))
    return msgspec.structs.replace(pod, status=status)


def test_the_pauses_of_a_pod_grow_however_long_a_refusal_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a binding is on its way its pod counts as bound, and it is no other pod for that."""
    monkeypatch.setattr(pauses, "FIRST_PAUSE_SECONDS", 0.02)

    class Slow(Server):
        async def bind(self, _: str, name: str, **__: object) -> None:
            await asyncio.sleep(0.03)
            self._write("bind", name)

    async def story() -> None:
        found = Story(Slow(REFUSED), manifest())
        found.builder.nodes.node_changed(roomy())
        seconds = []

        def note(pod: Any, refusal: str, now: float) -> float:
            seconds.append(add(pod, refusal, now))
            return seconds[-1]

        add, found.controller._pauses.add = found.controller._pauses.add, note  # type: ignore[method-assign]
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(found.controller._decide_for_ever()),
                tasks.create_task(found.controller._writers.run()),
            ]
            while len(seconds) < 4:
                await asyncio.sleep(0.005)
            for task in running:
                task.cancel()
        assert seconds[:4] == [0.02, 0.04, 0.08, 0.16]

    run(story())


def test_a_pod_that_pauses_is_reported_with_the_words_of_the_server() -> None:
    async def story() -> None:
        found = Story(Server(REFUSED), manifest())
        found.builder.nodes.node_changed(roomy())
        found.controller._pauses.add(found.pod("p0"), "may not", asyncio.get_running_loop().time())
        found.controller._decide()
        report = await found.reports.get()
        assert (report.code, report.reason) == ("BindFailed", "BindFailed")
        assert "ay not" in report.message
        assert found.place == ""

    run(story())


def test_a_pod_that_was_bound_and_still_shows_as_pending_is_closed() -> None:
    """The leader that bound it ended before it said so."""

    async def story() -> None:
        found = Story(Server(None), told(manifest(node="a", phase="Running")), told(manifest("p1")))
        found.controller._close_stories()
        found.controller._close_stories()
        report = await found.reports.get()
        assert (report.pod.name, report.bound) == ("p0", True)
        assert not found.reports._waiting

    run(story())


def test_what_a_pod_is_told_again_keeps_the_time_since_when_it_is_so() -> None:
    async def story() -> None:
        for pod, first in ((manifest(), True), (told(manifest()), False)):
            found = Story(Server(None), pod)
            found.controller._decide()
            report = await found.reports.get()
            assert await found.controller._write_report(report)
            ((_, patch),) = found.server.written
            times = ["lastTransitionTime" in condition for condition in patch["status"]["conditions"]]
            assert times == [first, first]

    run(story())
