"""How the controller's process ends."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.unit.test_kube_events import POD, Notebook

from gpufleet import controller
from gpufleet.kube.events import EventRecorder
from gpufleet.scheduling.names import SchedulerNames


class Deciding:
    """Decides until it is stopped, and says so in an Event."""

    def __init__(self, recorder: EventRecorder) -> None:
        self.recorder = recorder

    async def run(self, leading: Any) -> None:
        await leading()
        try:
            await asyncio.Event().wait()
        finally:
            self.recorder.record(POD, "Normal", "Scheduled", "Binding", "the last one")


def test_the_events_of_the_last_decisions_are_written_before_the_process_ends() -> None:
    notebook = Notebook()

    async def story() -> None:
        recorder, stop = EventRecorder(notebook), asyncio.Event()

        async def leading() -> None:
            asyncio.get_running_loop().call_soon(stop.set)

        names = SchedulerNames(notebook, "gpufleet")
        deciding: Any = Deciding(recorder)
        await controller._until_stopped(stop, deciding, recorder, names, None, leading)

    asyncio.run(asyncio.wait_for(story(), 10))
    assert [event["note"] for event in notebook.created] == ["the last one"]
