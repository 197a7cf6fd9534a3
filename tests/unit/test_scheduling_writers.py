"""What becomes of the writes of a decision: nothing is given away while it is unknown whether it was written,
and what follows a write follows it however it became known.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import msgspec
import pytest
from tests.unit.watched import manifest

from gpufleet.fleet.devices import DevicePick
from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.plans import Bind, BindVolume, Evict, Nominate, Plan, SelectNode
from gpufleet.fleet.pods import Pod
from gpufleet.fleet.reasons import Reason
from gpufleet.fleet.volumes import Claim
from gpufleet.kube import objects
from gpufleet.kube.conventions.picked_devices import DEVICES_ANNOTATION, annotated
from gpufleet.kube.errors import ApiError, Unreachable
from gpufleet.kube.informers import Change
from gpufleet.scheduling import writers
from gpufleet.scheduling.controller import SchedulingController
from gpufleet.scheduling.cycle import Policy
from gpufleet.scheduling.reports import Report

LOST = Unreachable(reason="Unreachable", message="the connection was lost", sent=True)
REFUSED = ApiError(status=403, reason="Forbidden", message="may not")
BROKEN = ApiError(status=500, reason="InternalError", message="etcd timed out")
POLICY = Policy(frozenset({manifest().spec.scheduler_name}))
GONE = ApiError(status=404, reason="NotFound", message="no such pod")


class Server:
    """Answers every write with `error`, and reads with what is in `answers`, one after the other."""

    def __init__(self, error: Exception | None, *answers: objects.Pod | dict[str, Any] | Exception) -> None:
        self.error = error
        self.answers = list(answers)
        self.written: list[tuple[str, Any]] = []
        self.annotations: dict[str, str] | None = None

    def _write(self, *what: Any) -> None:
        self.written.append(what)
        if self.error is not None:
            raise self.error

    async def bind(
        self, _: str, name: str, *, annotations: dict[str, str] | None = None, **__: object
    ) -> None:
        self._write("bind", name)
        self.annotations = annotations

    async def patch(self, _: object, name: str, patch: Any, *__: object, **___: object) -> None:
        self._write("patch", patch)

    async def delete(self, _: object, name: str, *__: object, **___: object) -> None:
        self._write("delete", name)

    async def get(self, *_: object, **__: object) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return msgspec.to_builtins(answer)


class Events:
    def __init__(self) -> None:
        self.reasons: list[str] = []

    def record(self, _: object, __: object, reason: str, *___: object) -> None:
        self.reasons.append(reason)


class Story:
    """A controller that only writes, and what it told."""

    def __init__(self, server: Server, *pods: objects.Pod) -> None:
        self.server = server
        self.events = Events()
        self.controller = SchedulingController(server, self.events, lambda: POLICY)  # type: ignore[arg-type]
        self.builder = self.controller._builder
        self.reports = self.controller._reports
        for pod in pods:
            self.builder.pod_changed(Change(pod.metadata.key, None, pod))

    async def carry_out(self, *actions: Any) -> None:
        """Write a plan to its end; each action is about a pod by its name."""
        plan = Plan(tuple(msgspec.structs.replace(a, pod=self.pod(a.pod)) for a in actions))
        self.controller._carry_out(plan, 1)
        writing = asyncio.create_task(self.controller._writers.run())
        queue = self.controller._writers._queue
        while not queue.empty() or self.server.answers:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        writing.cancel()

    def pod(self, name: Any) -> Pod:
        pod = self.builder.pod(f"default/{name}")
        assert pod is not None
        return pod

    @property
    def place(self) -> str:
        return self.pod("p0").node

    @property
    def paused(self) -> dict[str, str]:
        return {key: reason.message for key, reason in self.controller._pauses.reasons(0.0).items()}


def run(story: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(10):
            await story

    asyncio.run(bounded())


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writers, "LOOK_AGAIN_SECONDS", 0.001)


BIND: Any = Bind("p0", "a")  # type: ignore[arg-type]
EVICT: Any = Evict("p1", "a", "default/p0", (Reason("Preempted", "for p0"),))  # type: ignore[arg-type]
NOMINATE: Any = Nominate("p0", "a")  # type: ignore[arg-type]
WAITS = manifest(nominated="a")
VICTIM = manifest("p1", node="a", phase="Running")


# refused


def test_a_binding_that_the_server_refused_is_forgotten_and_its_pod_pauses() -> None:
    async def story() -> None:
        found = Story(Server(REFUSED), manifest())
        await found.carry_out(BIND)
        assert found.place == ""
        assert found.paused == {"default/p0": "binding default/p0 to a failed: may not"}

    run(story())


def test_an_eviction_that_was_refused_lets_its_beneficiary_pause_and_not_its_victim() -> None:
    """Else the same eviction would be chosen again at once, for ever."""

    async def story() -> None:
        found = Story(Server(REFUSED), WAITS, VICTIM)
        await found.carry_out(EVICT)
        assert not found.pod("p1").terminating
        assert found.paused.keys() == {"default/p0"}

    run(story())


def test_a_nomination_that_failed_does_not_take_the_binding_back() -> None:
    async def story() -> None:
        class Binds(Server):
            async def bind(self, *_: object, **__: object) -> None:
                pass

        found = Story(Binds(REFUSED), manifest())
        await found.carry_out(NOMINATE, BIND)
        assert (found.place, found.pod("p0").nominated_node) == ("a", "")

    run(story())


def test_a_binding_carries_what_was_picked_and_the_pick_counts_at_once() -> None:
    picked = (DevicePick("main", "nvidia.com/gpu", ("GPU-1",)),)

    async def story() -> None:
        found = Story(Server(None), manifest())
        await found.carry_out(msgspec.structs.replace(BIND, picks=picked))
        assert found.server.annotations == {"gpufleet.dev/devices": '{"main":{"nvidia.com/gpu":["GPU-1"]}}'}
        assert found.pod("p0").picks == picked

    run(story())


def test_a_binding_without_picks_takes_back_what_somebody_else_wrote() -> None:
    async def story() -> None:
        forged = annotated((DevicePick("main", "nvidia.com/gpu", ("GPU-1",)),))
        for pod, written in ((manifest(), {}), (manifest(annotations=forged), {DEVICES_ANNOTATION: "{}"})):
            found = Story(Server(None), pod)
            await found.carry_out(BIND)
            assert found.server.annotations == written

    run(story())


def test_the_picks_of_a_binding_that_was_refused_are_forgotten() -> None:
    async def story() -> None:
        picked = (DevicePick("main", "nvidia.com/gpu", ("GPU-1",)),)
        found = Story(Server(REFUSED), manifest())
        await found.carry_out(msgspec.structs.replace(BIND, picks=picked))
        assert (found.place, found.pod("p0").picks) == ("", ())

    run(story())


# unknown


@pytest.mark.parametrize("error", [LOST, BROKEN])
def test_a_binding_whose_answer_was_lost_stands_if_the_pod_is_bound(error: Exception) -> None:
    async def story() -> None:
        found = Story(Server(error, manifest(node="a")), manifest())
        await found.carry_out(BIND)
        assert found.place == "a"

    run(story())


@pytest.mark.parametrize("now", [manifest(), manifest(node="b"), manifest(uid="2", node="a"), GONE])
def test_a_binding_whose_answer_was_lost_is_forgotten_if_the_pod_is_not_bound_there(now: Any) -> None:
    async def story() -> None:
        found = Story(Server(LOST, now), manifest())
        await found.carry_out(BIND)
        assert found.place == ""

    run(story())


def test_a_pod_that_does_not_decode_is_bound_all_the_same() -> None:
    async def story() -> None:
        strange = {"metadata": {"uid": "1", "labels": 7}, "spec": {"nodeName": "a", "containers": "none"}}
        found = Story(Server(LOST, strange), manifest())
        await found.carry_out(BIND)
        assert found.place == "a"

    run(story())


@pytest.mark.parametrize(
    "unknown",
    [LOST, *(ApiError(status=status, reason="", message="later") for status in (401, 403, 429, 500, 503))],
)
def test_while_nobody_can_tell_the_room_of_a_binding_stays_taken(unknown: GpufleetError) -> None:
    async def story() -> None:
        found = Story(Server(LOST, *[unknown] * 3, manifest(node="a")), manifest())
        places = []

        async def watch() -> None:
            while found.server.answers:
                await asyncio.sleep(0)
                places.append(found.place)

        watching = asyncio.create_task(watch())
        await found.carry_out(BIND)
        await watching
        assert set(places) == {"a"}
        assert found.place == "a"

    run(story())


@pytest.mark.parametrize("now", [manifest("p1", node="a", deleted=True), manifest("p1", "2"), GONE])
def test_an_eviction_whose_answer_was_lost_stands_if_the_victim_ends_or_is_gone(now: Any) -> None:
    async def story() -> None:
        found = Story(Server(LOST, now), WAITS, VICTIM)
        await found.carry_out(EVICT)
        assert found.pod("p1").terminating
        assert not found.paused

    run(story())


def test_what_follows_a_write_follows_one_whose_answer_was_lost() -> None:
    async def story() -> None:
        found = Story(Server(LOST, manifest(node="a")), manifest())
        pending = Report(found.pod("p0"), "X", "Unschedulable", "text", ("X",))
        found.reports.add(pending, 0.0)
        found.reports.done(await found.reports.get(), written=True)
        found.controller._pauses.add(found.pod("p0"), "may not", 0.0)
        await found.carry_out(BIND)
        assert found.events.reasons == ["Scheduled"]
        assert not found.paused
        assert (await found.reports.get()).bound

    run(story())


def test_the_eviction_whose_answer_was_lost_is_told_too() -> None:
    async def story() -> None:
        found = Story(Server(LOST, GONE), WAITS, VICTIM)
        await found.carry_out(EVICT)
        assert found.events.reasons == ["Preempted"]

    run(story())


# looked at again


def test_nobody_ends_for_a_pod_that_does_not_wait_any_more() -> None:
    elsewhere, bound, ending = (
        manifest(nominated="b"),
        manifest(node="b"),
        manifest(nominated="a", deleted=True),
    )

    async def story() -> None:
        for waiting in ((), (elsewhere,), (bound,), (ending,)):
            found = Story(Server(None), VICTIM, *waiting)
            await found.carry_out(EVICT)
            assert not found.server.written
            assert not found.pod("p1").terminating

    run(story())


def test_who_was_nominated_by_the_same_decision_is_waited_for() -> None:
    async def story() -> None:
        found = Story(Server(None), manifest(), VICTIM)
        await found.carry_out(NOMINATE, EVICT)
        assert ("delete", "p1") in found.server.written

    run(story())


def test_a_pod_that_the_server_shows_as_pending_is_reported_as_bound() -> None:
    """Whoever reported it: an earlier leader, or this one before it was restarted."""

    async def story() -> None:
        told = msgspec.structs.replace(
            manifest(),
            status=objects.PodStatus(
                conditions=(objects.Condition(type="gpufleet.dev/Decision", status="False"),)
            ),
        )
        found = Story(Server(None), told)
        await found.carry_out(BIND)
        assert (await found.reports.get()).bound

    run(story())


# volumes


CLAIM = Claim("default", "c", "uid-c", "Pending")
VOLUMES: list[Any] = [SelectNode("default/c", "a", "p0"), BindVolume("default/c", "pv", "p0")]  # type: ignore[arg-type]


@pytest.mark.parametrize("action", VOLUMES)
def test_a_claim_that_is_gone_lets_its_pod_pause(action: Any) -> None:
    async def story() -> None:
        found = Story(Server(None), manifest())
        await found.carry_out(action)
        assert not found.server.written
        assert "claim default/c is gone" in found.paused["default/p0"]

    run(story())


def test_a_node_is_selected_for_the_claim_that_was_meant() -> None:
    async def story() -> None:
        found = Story(Server(None), manifest())
        found.builder._claims[CLAIM.key] = CLAIM
        await found.carry_out(VOLUMES[0])
        ((_, patch),) = found.server.written
        assert patch["metadata"]["uid"] == CLAIM.uid

    run(story())


@pytest.mark.parametrize(("holder", "taken"), [("uid-c", False), ("uid-d", True)])
def test_a_volume_that_somebody_else_took_is_not_called_reserved(holder: str, taken: bool) -> None:
    async def story() -> None:
        reference = {"namespace": "default", "name": "c", "uid": holder}
        found = Story(Server(None, {"metadata": {}, "spec": {"claimRef": reference}}), manifest())
        found.builder._claims[CLAIM.key] = CLAIM
        await found.carry_out(VOLUMES[1])
        assert not found.server.written
        assert bool(found.paused) == taken

    run(story())
