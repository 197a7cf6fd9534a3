"""Containers and probes as real processes: what starts, what cannot, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from tests.unit.simnode_pods import container, pod

from gpufleet.kube.client import Client
from gpufleet.kube.objects import Container, Probe
from gpufleet.local.simnodes.configured import ConfiguredRuntime
from gpufleet.local.simnodes.podlogs import ContainerFolder, pod_folder
from gpufleet.local.simnodes.podstate import Event, PodRun, Started, StartFailed, accept
from gpufleet.local.simnodes.probing import Prober
from gpufleet.local.simnodes.process_runtime import ProcessRuntime
from gpufleet.local.simnodes.processes import Mark, ProcessContainer, base_environment, find, marked
from gpufleet.local.simnodes.runtimes import Runtime

MARK = Mark("uid", "main", 0)
BASE = base_environment(os.environ)


def running(state: Path) -> list[int]:
    """Processes that carry the mark of a fleet."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("GPUFLEET_FLEET") == str(state):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def nothing_runs(state: Path) -> bool:
    """Whether all processes of a fleet are gone in a moment: who was killed takes one to go."""
    deadline = time.monotonic() + 10
    while running(state) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not running(state)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for pid in running(tmp_path):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def prober(state: Path, command: list[str]) -> tuple[Prober, Probe]:
    probe = msgspec.convert({"exec": {"command": command}, "timeoutSeconds": 1}, Probe)
    subject = msgspec.convert(container(), Container)
    environment = marked(BASE, state, MARK, probe=True)
    return Prober(subject, None, environment, state, lambda *_: None), probe  # type: ignore[arg-type]


def test_an_exec_probe_that_takes_too_long_leaves_no_process(state: Path) -> None:
    asks, probe = prober(state, ["sh", "-c", "sleep 77; true"])
    result = asyncio.run(asks.once(probe))
    assert (result.ok, result.message) == (False, "no answer within 1s")
    assert nothing_runs(state)


def test_an_exec_probe_that_is_cancelled_leaves_no_process(state: Path) -> None:
    async def cancelled() -> None:
        asks, probe = prober(state, ["sh", "-c", "sleep 77 & sleep 77; true"])
        task = asyncio.create_task(asks.once(probe))
        while len(running(state)) < 3:
            await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(cancelled())
    assert nothing_runs(state)


@pytest.mark.parametrize("command", [["no-such-program"], [], ["a\0b"]])
def test_a_probe_that_cannot_be_executed_has_failed(state: Path, command: list[str]) -> None:
    asks, probe = prober(state, command)
    assert not asyncio.run(asks.once(probe)).ok


def test_what_a_killed_process_of_ours_left_is_found_and_its_probes_are_ended(state: Path) -> None:
    async def left() -> dict[Mark, int]:
        folder = ContainerFolder(state / "c")
        script = ["sh", "-c", "setsid sleep 77 & sleep 77; true"]
        one = await ProcessContainer.start(state, MARK, folder, script, BASE, "")
        probe = subprocess.Popen(
            ["sleep", "77"], env=marked(BASE, state, MARK, probe=True), start_new_session=True
        )
        while len(running(state)) < 5:
            await asyncio.sleep(0.02)
        found = find(state)
        assert probe.wait(5) == -signal.SIGKILL
        assert found == {MARK: one.group}, "not the process that made a session of its own"
        assert len(running(state)) == 4
        await one.stop(0.0)
        assert await one.ended() == 137
        return found

    assert asyncio.run(left())


def test_the_end_of_a_container_is_seen_also_without_a_descriptor_for_it(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(_: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    async def run() -> int:
        folder = ContainerFolder(state / "c")
        return await (await ProcessContainer.start(state, MARK, folder, ["false"], BASE, "")).ended()

    monkeypatch.setattr(os, "pidfd_open", exhausted, raising=False)
    assert asyncio.run(run()) == 1


class Hears:
    """What a runtime tells, and a future for the first event."""

    def __init__(self) -> None:
        self.first: asyncio.Future[Event] = asyncio.get_running_loop().create_future()

    def __call__(self, uid: str, event: Event) -> None:
        if not self.first.done():
            self.first.set_result(event)


def told(state: Path, name: str = "p", **rest: Any) -> Event:
    """What `start` of a process container is answered with."""

    async def play() -> Event:
        hears, main = Hears(), container(command=["sleep", "77"], **rest)
        subject = pod(name, containers=[main], metadata={"uid": f"{1:036}"})
        runtime = ProcessRuntime(None, state, hears, _nothing)  # type: ignore[arg-type]
        await runtime.open()
        runtime.start(accept(subject, "", 0.0, 1.0), "main", 0, ())
        try:
            async with asyncio.timeout(20):
                return await hears.first
        finally:
            await runtime.close(leave_running=False)

    return asyncio.run(play())


def _nothing(_: str) -> Mapping[str, str]:
    return {}


def test_a_pod_of_the_longest_name_starts(state: Path) -> None:
    assert told(state, "n" * 253) == Started("main", 0)
    names = [pod_folder(state, "n" * 63, "p" * 253, f"{n:036}").name for n in range(2)]
    assert len(set(names)) == 2
    assert max(len(name) for name in names) <= 255


def test_a_container_whose_folder_cannot_be_made_is_told_and_not_silently_waiting(state: Path) -> None:
    (state / "pods").write_text("in the way")
    failed = told(state)
    assert isinstance(failed, StartFailed)
    assert failed.reason == "RunContainerError"


def test_an_error_that_nobody_expected_is_told_too(state: Path) -> None:
    failed = told(state, workingDir="a\0b")
    assert isinstance(failed, StartFailed)
    assert failed.reason == "RunContainerError"


def test_a_container_whose_needs_cannot_be_looked_up_is_told_so() -> None:
    class Broken:
        async def get(self, *_: object) -> None:
            raise OSError("no route")

    async def play() -> Event:
        hears = Hears()
        inner: Any = Runtime
        client: Client = Broken()  # type: ignore[assignment]
        runtime = ConfiguredRuntime(inner, client, hears, _nothing)
        env = [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "a"}}}]
        run: PodRun = accept(pod(containers=[container(env=env)]), "", 0.0, 1.0)
        runtime.start(run, "main", 0, ())
        async with asyncio.timeout(20):
            return await hears.first

    assert asyncio.run(play()) == StartFailed("main", 0, "RunContainerError", "OSError: no route")


def test_a_log_that_cannot_be_measured_ends_nothing(tmp_path: Path) -> None:
    folder = ContainerFolder(tmp_path)
    folder.log(0).write_bytes(b"x\n")
    folder.times(0).mkdir()
    assert folder.note_length(0, 1.0, 0) == 0
