"""The folder of recorded decisions: the last of them, whole, and never in the way of a decision."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.fleets import node, pod
from tests.unit.test_scheduling_controller import roomy
from tests.unit.test_scheduling_writers import POLICY, Server, Story, run
from tests.unit.watched import manifest

from gpufleet import controller
from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.plan_text import plan_bytes
from gpufleet.fleet.plans import Bind
from gpufleet.fleet.snapshot import snapshot_of
from gpufleet.scheduling import metrics, recordings
from gpufleet.scheduling.recording import Recording, from_bytes
from gpufleet.scheduling.recordings import BACKLOG, PLAN, SNAPSHOT, Recordings

RECORDING = Recording(snapshot_of((node("a", gpus=1),), (pod("p", gpus=1),)))


def not_recorded() -> float:
    return float(metrics.NOT_RECORDED._value.get())


def kept(folder: Path) -> list[int]:
    """The decisions that a folder has, by their numbers."""
    names = sorted(path.name for path in folder.iterdir())
    found = [name.removesuffix(SNAPSHOT) for name in names if name.endswith(SNAPSHOT)]
    assert names == sorted(number + suffix for number in found for suffix in (SNAPSHOT, PLAN))
    return [int(number.partition("-")[2]) for number in found]


def fill(folder: Path, keep: int, *decisions: int) -> None:
    found = Recordings(folder, keep)
    for decision in decisions:
        found.add(decision, RECORDING, RECORDING.decide())
    found.close()


def test_a_decision_is_kept_with_its_plan(tmp_path: Path) -> None:
    fill(tmp_path / "new" / "folder", 10, 7)
    (snapshot,) = (tmp_path / "new" / "folder").glob(f"*-00000007{SNAPSHOT}")
    plan = snapshot.with_name(snapshot.name.replace(SNAPSHOT, PLAN))
    assert from_bytes(snapshot.read_bytes(), "x") == RECORDING
    assert plan.read_bytes() == plan_bytes(RECORDING.decide())


def test_the_last_ones_are_kept_those_of_earlier_processes_included(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter(["20260101T000000Z", "20260102T000000Z"])
    monkeypatch.setattr(time, "strftime", lambda *_: next(times))
    fill(tmp_path, 3, 1, 2, 3, 4)
    assert kept(tmp_path) == [2, 3, 4]
    fill(tmp_path, 3, 1)
    assert kept(tmp_path) == [3, 4, 1]


def test_a_disk_that_is_too_slow_loses_recordings_and_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()

    def slow(*_: object, **__: object) -> bytes:
        assert go_on.wait(30)
        return b""

    monkeypatch.setattr(recordings, "to_bytes", slow)
    before = not_recorded()
    found = Recordings(tmp_path, 100)
    for decision in range(BACKLOG + 5):
        found.add(decision, RECORDING, RECORDING.decide())
    assert not_recorded() - before == 5
    go_on.set()
    found.close()
    assert kept(tmp_path) == list(range(BACKLOG))


def test_a_disk_that_refuses_is_told_and_the_next_decision_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = not_recorded()
    write: Callable[[Path, bytes], int] = Path.write_bytes
    broken = [OSError(28, "No space left on device")]

    def failing(path: Path, data: bytes) -> int:
        if broken:
            raise broken.pop()
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", failing)
    fill(tmp_path, 10, 1, 2)
    assert kept(tmp_path) == [2]
    assert not_recorded() - before == 1
    assert "decision not recorded" in caplog.text


def test_a_folder_that_cannot_be_made_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GpufleetError) as caught:
        Recordings(tmp_path / "file" / "folder", 1)
    assert caught.value.reason == "FileSystem"
    assert "--record" in caught.value.hint


def test_the_loop_records_what_it_read_and_the_whole_plan(tmp_path: Path) -> None:
    found = Recordings(tmp_path, 10)

    async def story() -> None:
        told = Story(Server(None), manifest())
        told.controller._recordings = found
        told.builder.nodes.node_changed(roomy())
        told.controller._decide()

    run(story())
    found.close()
    (path,) = tmp_path.glob(f"*{SNAPSHOT}")
    recording = from_bytes(path.read_bytes(), path.name)
    assert recording.policy == POLICY
    assert [type(action) for action in recording.decide().actions] == [Bind]
    assert path.with_name(path.name.replace(SNAPSHOT, PLAN)).read_bytes() == plan_bytes(recording.decide())


def test_the_process_keeps_at_least_one_decision(capsys: pytest.CaptureFixture[str]) -> None:
    assert controller._options([]).record is None
    assert controller._options(["--record=x"]).record_last == 1000
    with pytest.raises(SystemExit):
        controller._options(["--record=x", "--record-last=0"])
    assert "--record-last must be at least 1" in capsys.readouterr().err
