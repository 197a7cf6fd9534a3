"""What the controller does about writes that fail: nothing is given away while it is unknown whether it was
written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import msgspec
import pytest
from tests.unit.test_snapshot_builder import manifest

from gpufleet.fleet.plans import Bind, Evict, Nominate, Plan
from gpufleet.fleet.pods import Pod
from gpufleet.fleet.reasons import Reason
from gpufleet.kube import objects
from gpufleet.kube.errors import ApiError, Unreachable
from gpufleet.kube.informers import Change
from gpufleet.scheduling import controller
from gpufleet.scheduling.controller import SchedulingController
from gpufleet.scheduling.cycle import Policy

LOST = Unreachable(reason="Unreachable", message="the connection was lost", sent=True)
REFUSED = ApiError(status=403, reason="Forbidden", message="may not")
BROKEN = ApiError(status=500, reason="InternalError", message="etcd timed out")
GONE = ApiError(status=404, reason="NotFound", message="no such pod")


class Server:
    """Answers every write with `error`, and reads with what is in `answers`, one after the other."""

    def __init__(self, error: Exception, *answers: objects.Pod | Exception) -> None:
        self.error = error
        self.answers = list(answers)
        self.writes = 0

    async def bind(self, *_: object, **__: object) -> None:
        self.writes += 1
        raise self.error

    async def patch(self, *_: object, **__: object) -> None:
        self.writes += 1
        raise self.error

    async def get(self, *_: object, **__: object) -> objects.Pod:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


class Events:
    def record(self, *_: object) -> None:
        """Events are somebody else's."""


def run(story: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(10):
            await story

    asyncio.run(bounded())


async def carried_out(server: Server, pods: list[objects.Pod], *actions: Any) -> SchedulingController:
    """The controller once it has tried to write a plan; each action is about a pod by its name."""
    found = SchedulingController(server, Events(), Policy)  # type: ignore[arg-type]
    for pod in pods:
        found._builder.pod_changed(Change(pod.metadata.key, None, pod))
    plan = Plan(tuple(msgspec.structs.replace(a, pod=known(found, a.pod)) for a in actions))
    writer = asyncio.create_task(found._write_decisions())
    found._carry_out(plan, 1)
    while not found._writes.empty() or server.answers:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.01)
    writer.cancel()
    return found


def known(found: SchedulingController, name: Any) -> Pod:
    pod = found._builder.pod(f"default/{name}")
    assert pod is not None
    return pod


def place(found: SchedulingController, name: str = "p0") -> str:
    return known(found, name).node


BIND: Any = Bind("p0", "a")  # type: ignore[arg-type]
EVICT: Any = Evict("p1", "a", "default/p0", (Reason("Preempted", "for p0"),))  # type: ignore[arg-type]
NOMINATE: Any = Nominate("p0", "a")  # type: ignore[arg-type]


def test_a_binding_that_the_server_refused_is_forgotten_and_its_pod_pauses() -> None:
    async def story() -> None:
        found = await carried_out(Server(REFUSED), [manifest()], BIND)
        assert place(found) == ""
        assert not found._decidable(found._builder.snapshot()).unbound

    run(story())


@pytest.mark.parametrize("error", [LOST, BROKEN])
def test_a_binding_whose_answer_was_lost_stands_if_the_pod_is_bound(error: Exception) -> None:
    async def story() -> None:
        found = await carried_out(Server(error, manifest(node="a")), [manifest()], BIND)
        assert place(found) == "a"

    run(story())


@pytest.mark.parametrize("now", [manifest(), manifest(node="b"), manifest(uid="2", node="a"), GONE])
def test_a_binding_whose_answer_was_lost_is_forgotten_if_the_pod_is_not_bound_there(now: Any) -> None:
    async def story() -> None:
        found = await carried_out(Server(LOST, now), [manifest()], BIND)
        assert place(found) == ""

    run(story())


def test_while_nobody_can_tell_the_room_of_a_binding_stays_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller, "FIRST_PAUSE_SECONDS", 0.01)

    async def story() -> None:
        server = Server(LOST, *[LOST] * 5, manifest(node="a"))
        places = []

        async def watch(found: SchedulingController) -> None:
            while server.answers:
                places.append(place(found))
                await asyncio.sleep(0.002)

        found = SchedulingController(server, Events(), Policy)  # type: ignore[arg-type]
        found._builder.pod_changed(Change("default/p0", None, manifest()))
        found._carry_out(Plan((Bind(known(found, "p0"), "a"),)), 1)
        writer = asyncio.create_task(found._write_decisions())
        await watch(found)
        await asyncio.sleep(0.02)
        writer.cancel()
        assert set(places) == {"a"}
        assert place(found) == "a"

    run(story())


def test_an_eviction_that_was_refused_lets_its_beneficiary_pause_and_not_its_victim() -> None:
    """Else the same eviction would be chosen again at once, for ever."""

    async def story() -> None:
        pods = [manifest(), manifest("p1", node="a", phase="Running")]
        found = await carried_out(Server(REFUSED), pods, EVICT)
        assert not known(found, "p1").terminating
        assert found._paused.keys() == {"default/p0"}

    run(story())


@pytest.mark.parametrize("now", [manifest("p1", node="a", deleted=True), manifest("p1", "2"), GONE])
def test_an_eviction_whose_answer_was_lost_stands_if_the_victim_ends_or_is_gone(now: Any) -> None:
    async def story() -> None:
        pods = [manifest(), manifest("p1", node="a", phase="Running")]
        found = await carried_out(Server(LOST, now), pods, EVICT)
        assert known(found, "p1").terminating
        assert not found._paused

    run(story())


def test_a_victim_that_is_gone_already_needs_no_eviction() -> None:
    async def story() -> None:
        pods = [manifest(), manifest("p1", node="a", phase="Running")]
        found = await carried_out(Server(GONE), pods, EVICT)
        assert known(found, "p1").terminating
        assert not found._paused

    run(story())


def test_a_nomination_that_failed_does_not_take_the_binding_back() -> None:
    async def story() -> None:
        class Binds(Server):
            async def bind(self, *_: object, **__: object) -> None:
                self.writes += 1

        found = await carried_out(Binds(REFUSED), [manifest()], NOMINATE, BIND)
        assert (place(found), known(found, "p0").nominated_node) == ("a", "")

    run(story())
