"""`gpufleet simulate synthetic`, `run FILE` and plain `FILE`: the same load gives the same numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpufleet.cli.app import invoke
from gpufleet.cli.simulate_time import INTERVAL_S as OPTION_S
from gpufleet.cli.simulate_time import _lasting
from gpufleet.simulator import timeline

Capture = pytest.CaptureFixture[str]
SMALL = ("synthetic", "--nodes", "5", "--days", "2", "--seed", "5", "--load", "140")


def simulate(capsys: Capture, *arguments: str) -> tuple[int, str, str]:
    code = invoke("gpufleet", ["simulate", *arguments])
    return code, *capsys.readouterr()


def answer(capsys: Capture, *arguments: str) -> dict[str, Any]:
    code, out, err = simulate(capsys, *arguments, "-o", "json")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    assert found.pop("seconds") >= 0
    return found


def test_a_seed_is_repeated_exactly_and_another_one_is_another(capsys: Capture) -> None:
    first, again = answer(capsys, *SMALL), answer(capsys, *SMALL)
    assert first == again
    assert first["jobs"] == len(first["runs"]) == first["ended"] + first["running"] + first["waiting"] > 10
    assert first["until_s"] == 2 * 86_400
    assert 0 < first["utilisation_percent"] <= 100
    assert answer(capsys, *SMALL, "--seed", "6")["runs"] != first["runs"]


@pytest.mark.parametrize("form", [("run",), ()])
def test_a_written_load_gives_the_numbers_of_the_drawn_one(
    capsys: Capture, tmp_path: Path, form: tuple[str, ...]
) -> None:
    path = tmp_path / "load"
    code, out, err = simulate(capsys, *SMALL, "--write", str(path))
    assert (code, out) == (0, "")
    assert "wrote 5 nodes and" in err
    assert answer(capsys, *form, str(path), "--days", "2") == answer(capsys, *SMALL)


def test_without_days_a_file_runs_until_nothing_happens(capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "load.jsonl.gz"
    simulate(capsys, *SMALL, "--write", str(path))
    found = answer(capsys, str(path))
    assert (found["running"], found["waiting"], found["ended"]) == (0, 0, found["jobs"])
    assert found["allocation"][-1] == [found["until_s"], 0, 0]


def test_people_get_a_table_by_size_and_two_sentences(capsys: Capture) -> None:
    code, out, err = simulate(capsys, *SMALL)
    lines = [line.split("\t") for line in out.splitlines()]
    assert code == 0
    assert lines[0] == ["GPUS", "JOBS", "STARTED", "WAITING", "MEAN WAIT", "P95 WAIT", "LONGEST WAIT"]
    assert lines[-1][0] == "all"
    assert int(lines[-1][1]) == sum(int(line[1]) for line in lines[1:-1])
    assert "utilisation " in err
    assert "jobs ended" in err
    assert "decisions, simulated in" in err


@pytest.mark.parametrize(("name", "begins"), [("a.svg", b"<?xml"), ("a.png", b"\x89PNG")])
def test_a_picture_is_drawn(capsys: Capture, tmp_path: Path, name: str, begins: bytes) -> None:
    path = tmp_path / name
    assert simulate(capsys, *SMALL, "--picture", str(path))[0] == 0
    assert path.read_bytes().startswith(begins)


def test_a_picture_of_nothing_is_drawn(capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "load"
    path.write_text('{"node": {"name": "n", "cpu_milli": 1, "memory_mib": 1}}\n')
    assert simulate(capsys, str(path), "--picture", str(tmp_path / "a.svg"))[0] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("no-such-file.jsonl",), 1, "No such file"),
        (("run", "no-such-file"), 1, "No such file"),
        (("nope",), 2, "no such command 'nope'"),
        (("synthetic", "--nodes", "0"), 2, "0 is not in the range"),
        (("synthetic", "--interval", "-1"), 2, "-1 is not in the range"),
        (("synthetic", "--picture", "a.jpg"), 2, "FILE.svg or FILE.png"),
    ],
)
def test_mistakes_are_told(capsys: Capture, arguments: tuple[str, ...], code: int, told: str) -> None:
    got, out, err = simulate(capsys, *arguments)
    assert (got, out) == (code, "")
    assert told in err


def test_the_interval_of_the_command_is_that_of_the_simulator() -> None:
    assert OPTION_S == timeline.INTERVAL_S


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (None, "-"), (0, "0 s"), (0.21, "0.21 s"), (59.6, "1m"), (61, "1m 1s"), (3_600, "1h"),
        (3_601, "1h"), (90_061, "1d 1h"),
    ],
)  # fmt: skip
def test_times_are_told_in_two_units(seconds: float | None, told: str) -> None:
    assert _lasting(seconds) == told
