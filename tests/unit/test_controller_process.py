"""How the controller's process ends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.unit.test_kube_events import POD, Notebook

from gpufleet import controller
from gpufleet.kube.events import EventRecorder
from gpufleet.scheduling.names import SchedulerNames


class Deciding:
    """Decides until it is stopped, and says so in an Event."""

    synced = True

    def __init__(self, recorder: EventRecorder, stop: asyncio.Event) -> None:
        self.recorder = recorder
        self.stop = stop

    async def run(self, leading: Any) -> None:
        await leading()
        self.stop.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.recorder.record(POD, "Normal", "Scheduled", "Binding", "the last one")


def test_the_events_of_the_last_decisions_of_every_room_are_written_before_the_process_ends() -> None:
    notebooks = [Notebook(), Notebook()]

    async def story() -> None:
        stop = asyncio.Event()
        rooms = []
        for notebook in notebooks:
            recorder = EventRecorder(notebook)
            beside = SchedulerNames(notebook, "gpufleet").run
            rooms.append(controller.Room(Deciding(recorder, stop), recorder, (beside,)))
        await controller._until_stopped(stop, rooms)

    asyncio.run(asyncio.wait_for(story(), 10))
    for notebook in notebooks:
        assert [event["note"] for event in notebook.created] == ["the last one"]


def test_a_process_runs_the_rooms_that_it_is_asked_for_once_each() -> None:
    assert controller._options(["--rooms=devices,scheduling,devices"]).rooms == ("devices", "scheduling")
    assert controller._options([]).rooms == ("scheduling",)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rooms=devices,kitchen"], "unknown room in --rooms: kitchen"),
        (["--rooms=devices,scheduling", "--lease-name=x"], "each of several has a Lease of its own"),
    ],
)
def test_rooms_that_cannot_be_run_are_refused(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        controller._options(arguments)
    assert words in capsys.readouterr().err


def test_each_room_has_a_lease_of_its_own() -> None:
    leases = [kind.lease for kind in controller.ROOMS.values()]
    assert len(set(leases)) == len(leases)
