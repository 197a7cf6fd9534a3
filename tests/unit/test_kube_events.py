"""How events are counted and when they are written, by a clock of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from gpufleet.kube.client import Client
from gpufleet.kube.errors import Unreachable
from gpufleet.kube.events import MAX_NAME, REWRITE_SECONDS, SERIES_SECONDS, EventRecorder, reference_to
from gpufleet.kube.kinds import Kind
from gpufleet.kube.objects import Node, ObjectMeta, Pod

POD = Pod(metadata=ObjectMeta(name="p", namespace="ns", uid="u", resource_version="5"))


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Notebook(Client):
    """A client that writes down what it would send."""

    def __init__(self) -> None:
        self.created: list[dict[str, Any]] = []
        self.counts: list[int] = []
        self.failures = 0

    async def create(self, kind: Kind, obj: Any, namespace: str | None = None, **_: Any) -> Any:
        await asyncio.sleep(0)
        if self.failures:
            self.failures -= 1
            raise Unreachable(reason="ConnectionLost", message="m", sent=True)
        self.created.append(obj)

    async def patch(self, kind: Kind, name: str, patch: Any, namespace: str | None = None, **_: Any) -> Any:
        await asyncio.sleep(0)
        self.counts.append(patch["series"]["count"])


def told(story: Callable[[EventRecorder, Notebook, Clock], Awaitable[None]]) -> Notebook:
    notebook, clock = Notebook(), Clock()

    async def run() -> None:
        recorder = EventRecorder(notebook, clock=clock)
        task = asyncio.create_task(recorder.run())
        await asyncio.wait_for(story(recorder, notebook, clock), 10)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())
    return notebook


def waiting(recorder: EventRecorder, note: str = "for its gang") -> None:
    recorder.record(POD, "Normal", "Waiting", "Queueing", note)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_the_second_time_is_written_at_once_and_later_ones_at_most_every_half_minute() -> None:
    async def story(recorder: EventRecorder, notebook: Notebook, clock: Clock) -> None:
        for _ in range(10):
            waiting(recorder)
            await settle()
            clock.now += 1
        assert notebook.counts == [2]
        clock.now += REWRITE_SECONDS
        waiting(recorder)
        await settle()
        assert notebook.counts == [2, 11]
        waiting(recorder)
        await recorder.flush()
        assert notebook.counts == [2, 11, 12]

    assert len(told(story).created) == 1


def test_after_six_silent_minutes_an_equal_event_is_a_new_one() -> None:
    async def story(recorder: EventRecorder, notebook: Notebook, clock: Clock) -> None:
        waiting(recorder)
        await recorder.flush()
        clock.now += SERIES_SECONDS + 1
        waiting(recorder)
        await recorder.flush()

    notebook = told(story)
    assert notebook.counts == []
    assert len({event["metadata"]["name"] for event in notebook.created}) == 2


def test_another_note_is_another_event() -> None:
    async def story(recorder: EventRecorder, notebook: Notebook, clock: Clock) -> None:
        waiting(recorder, "for its gang")
        waiting(recorder, "for its quota")
        await recorder.flush()

    assert [event["note"] for event in told(story).created] == ["for its gang", "for its quota"]


def test_repetitions_before_the_first_write_are_one_write() -> None:
    async def story(recorder: EventRecorder, notebook: Notebook, clock: Clock) -> None:
        for _ in range(5):
            waiting(recorder)
        await recorder.flush()

    notebook = told(story)
    assert [event["series"]["count"] for event in notebook.created] == [5]
    assert notebook.counts == []


def test_a_write_that_fails_is_tried_again() -> None:
    async def story(recorder: EventRecorder, notebook: Notebook, clock: Clock) -> None:
        notebook.failures = 1
        waiting(recorder)
        await recorder.flush()
        assert recorder.dropped == 0

    assert len(told(story).created) == 1


def test_what_is_left_when_the_recorder_ends_is_counted_as_dropped() -> None:
    class Silent(Notebook):
        async def create(self, *_: Any, **__: Any) -> Any:
            await asyncio.Event().wait()

    async def story() -> None:
        recorder = EventRecorder(Silent(), writers=1)
        task = asyncio.create_task(recorder.run())
        waiting(recorder, "is on its way")
        waiting(recorder, "waits")
        await recorder.flush(0.02)
        assert recorder.dropped == 0
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert recorder.dropped == 2
        await recorder.flush()

    asyncio.run(asyncio.wait_for(story(), 10))


def test_names_of_events_are_legal_whatever_the_name_of_the_object() -> None:
    long = Pod(metadata=ObjectMeta(name="a" * (MAX_NAME - 1) + ".b" * 80, namespace="ns", uid="u"))

    async def story(recorder: EventRecorder, notebook: Notebook, clock: Clock) -> None:
        recorder.record(long, "Normal", "Waiting", "Queueing", "n")
        await recorder.flush()

    (event,) = told(story).created
    stem, _, suffix = event["metadata"]["name"].rpartition(".")
    assert stem == "a" * (MAX_NAME - 1)
    assert int(suffix, 16)


def test_references_are_made_from_structs_objects_and_references() -> None:
    assert reference_to(POD) == {
        "apiVersion": "v1",
        "kind": "Pod",
        "namespace": "ns",
        "name": "p",
        "uid": "u",
        "resourceVersion": "5",
    }
    assert reference_to(Node(metadata=ObjectMeta(name="n"))) == {
        "apiVersion": "v1",
        "kind": "Node",
        "name": "n",
    }
    whole = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "j", "namespace": "ns", "labels": {}},
    }
    reference = {"apiVersion": "batch/v1", "kind": "Job", "name": "j", "namespace": "ns"}
    assert reference_to(whole) == reference_to({**reference, "uid": ""}) == reference
