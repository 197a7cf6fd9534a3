"""Saved snapshots on the command line: decided and explained without a cluster, the same every time."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from tests.unit.fleets import node, pod

from gpufleet.cli.app import invoke
from gpufleet.cli.recordings import write_recording
from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.plan_text import plan_bytes
from gpufleet.fleet.snapshot import snapshot_of
from gpufleet.scheduling.cycle import Policy
from gpufleet.scheduling.recording import Recording, from_bytes

Run = Callable[..., tuple[int, str, str]]

RECORDING = Recording(
    snapshot_of(
        (node("a", gpus=2), node("b", gpus=1)),
        (
            pod("holder", gpus=2, node="a"),
            pod("vip", gpus=2, priority=5),
            pod("small", gpus=1),
            pod("big", gpus=8),
            msgspec.structs.replace(pod("others", gpus=1), scheduler="volcano"),
        ),
    )
)


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run gpufleet: exit code, stdout, stderr."""

    def running(*arguments: str) -> tuple[int, str, str]:
        code = invoke("gpufleet", list(arguments))
        out, err = capfd.readouterr()
        return code, out, err

    return running


@pytest.fixture
def saved(tmp_path: Path) -> str:
    """A file with RECORDING."""
    file = str(tmp_path / "cluster.json.gz")
    write_recording(RECORDING, file)
    return file


def test_the_name_of_a_file_says_whether_it_is_compressed(tmp_path: Path) -> None:
    plain, packed = tmp_path / "x.json", tmp_path / "x.json.gz"
    for path in (plain, packed):
        assert write_recording(RECORDING, str(path)) == path.stat().st_size
        assert from_bytes(path.read_bytes(), "x") == RECORDING
    assert gzip.decompress(packed.read_bytes()) == plain.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.json", "x.json.gz"]


def test_a_file_that_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "x.json"
    folder.mkdir()
    with pytest.raises(GpufleetError) as caught:
        write_recording(RECORDING, str(folder))
    assert caught.value.reason == "FileSystem"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_plan_is_the_same_bytes_in_every_process(saved: str) -> None:
    code = "import sys; from gpufleet.cli import main; sys.exit(main())"
    plans = {
        subprocess.run(
            [sys.executable, "-c", code, "decide", saved, "-o", "json"],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert plans == {plan_bytes(RECORDING.decide())}


def test_every_action_is_told_with_its_reasons(run: Run, saved: str) -> None:
    code, out, err = run("decide", saved)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert "Bind           default/small to b" in lines
    assert "Evict          default/holder from a for default/vip" in lines
    assert "Unschedulable  default/big" in lines
    assert any(line.startswith("  Preempted  evicted for default/vip") for line in lines)
    assert "others" not in out
    data = json.loads(run("decide", saved, "-o", "json")[1])
    assert {action["action"] for action in data["actions"]} == {"Nominate", "Evict", "Unschedulable", "Bind"}
    assert all(action["reasons"][0]["code"] for action in data["actions"])


def test_other_scheduler_names_may_be_asked(run: Run, saved: str) -> None:
    code, out, _ = run("decide", saved, "--schedulers", "volcano")
    assert (code, out.splitlines()[0]) == (0, "Bind           default/others to b")
    code, _, err = run("decide", saved, "--schedulers", "auto")
    assert code == 2
    assert "leave it out" in err


def test_an_empty_fleet_has_nothing_to_do(run: Run, tmp_path: Path) -> None:
    file = str(tmp_path / "empty.json")
    write_recording(Recording(snapshot_of(), Policy()), file)
    assert run("decide", file) == (0, "nothing to do\n", "")


@pytest.mark.parametrize("command", [("decide",), ("why", "p", "--snapshot")])
def test_a_file_that_is_no_snapshot_is_an_error_with_a_remedy(
    run: Run, command: tuple[str, ...], tmp_path: Path
) -> None:
    file = tmp_path / "values.yaml"
    file.write_text("replicas: 3\n")
    code, out, err = run(*command, str(file))
    assert (code, out) == (1, "")
    assert "is no saved snapshot" in err
    assert "gpufleet snapshot save" in err
    code, _, err = run(*command, str(tmp_path / "absent.json"))
    assert code == 1
    assert "cannot read" in err


def test_why_reads_a_saved_snapshot(run: Run, saved: str) -> None:
    code, out, err = run("why", "big", "--snapshot", saved)
    assert (code, err) == (0, "")
    assert out.startswith("default/big can never run on this fleet\n")
    found = json.loads(run("why", "vip", "--snapshot", saved, "-o", "json")[1])
    assert found["verdict"] == "soon"


def test_why_says_what_a_saved_snapshot_does_not_have(run: Run, saved: str) -> None:
    code, _, err = run("why", "team/nobody", "--snapshot", saved)
    assert code == 5
    assert "there is no pod team/nobody in " in err


def test_a_snapshot_and_a_cluster_are_not_asked_at_once(run: Run, saved: str) -> None:
    code, _, err = run("why", "big", "--snapshot", saved, "--context", "prod")
    assert code == 2
    assert "a cluster is named, too" in err
