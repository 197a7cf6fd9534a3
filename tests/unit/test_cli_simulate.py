"""`gpufleet simulate openb`: one run is an object, several are a list, and mistakes have a remedy."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.unit.small_traces import node, pod, write_openb

from gpufleet.cli.app import invoke
from gpufleet.simulator.pictures import begins_at
from gpufleet.simulator.published import LIVE, POLICIES
from gpufleet.simulator.replay import Outcome
from gpufleet.simulator.runs import Run, mean_percent

Simulate = Callable[..., tuple[int, str, str]]
NODES = [node(f"n{number}", gpus=8) for number in range(12)] + [node("m", gpus=4, model="G2")]
PODS = [pod(f"p{number}", milli=100 * (number % 10 + 1), cpu=number % 7 + 1) for number in range(120)]


@pytest.fixture
def simulate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Simulate:
    """Run `gpufleet simulate openb` on a small trace: exit code, stdout, stderr."""
    whole = [pod(f"p{number}") for number in range(100)]
    folder = write_openb(tmp_path / "traces", NODES, {"default": PODS, "cpu050": PODS[:60], "whole": whole})

    def running(*arguments: str) -> tuple[int, str, str]:
        code = invoke("gpufleet", ["simulate", "openb", "--traces", str(folder), *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return running


def answer(simulate: Simulate, *arguments: str) -> Any:
    code, out, err = simulate(*arguments, "-o", "json")
    assert code == 0, err
    return json.loads(out)


def test_one_run_is_an_object_with_the_fields_that_scripts_read(simulate: Simulate) -> None:
    found = answer(simulate)
    assert (found["variant"], found["policy"], found["seed"]) == ("default", LIVE, 42)
    assert found["migrations"] == 0
    percent = found["allocation_percent"]
    assert percent["60"] == pytest.approx(60, abs=1)
    assert percent["60"] < percent["100"] <= percent["130"] <= 100
    assert found["seconds"] > 0


def test_whole_gpus_are_all_allocated(simulate: Simulate) -> None:
    found = answer(simulate, "--variant", "whole", "--policy", "bestfit")
    assert (found["allocation_percent"]["100"], found["allocation_percent"]["130"]) == (100.0, 100.0)
    assert found["unplaced"] == 30


def test_a_run_is_repeated_exactly_and_a_seed_changes_it(simulate: Simulate) -> None:
    runs = [answer(simulate, "--policy", "random", "--seed", seed) for seed in ("7", "7", "8")]
    first, again, other = (one["allocation_percent"] for one in runs)
    assert first == again != other


def test_several_variants_policies_and_seeds_are_a_list_of_every_combination(simulate: Simulate) -> None:
    arguments = ["--variant", "default", "--variant", "cpu050", "--policy", "all", "--seed", "42-43"]
    found = answer(simulate, *arguments, "--seed", "43")
    keys = [(one["variant"], one["policy"], one["seed"]) for one in found]
    assert keys == [(v, p, s) for v in ("default", "cpu050") for p in (*POLICIES, LIVE) for s in (42, 43)]


def test_people_get_a_table_with_the_mean_of_several_seeds(simulate: Simulate) -> None:
    code, out, err = simulate("--policy", "bestfit", "--policy", "fgd", "--seed", "42-43")
    lines = [line.split("\t") for line in out.splitlines()]
    assert code == 0
    assert lines[0][:6] == ["VARIANT", "POLICY", "SEED", "AT 60", "AT 80", "AT 90"]
    assert [line[1:3] for line in lines[1:]] == [
        [policy, seed] for policy in ("bestfit", "fgd") for seed in ("42", "43", "mean")
    ]
    first, second, mean = (float(line[6]) for line in lines[1:4])
    assert mean == pytest.approx((first + second) / 2, abs=0.011)
    assert "replaying openb, 4 runs" in err


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--variant", "nope"], 2, "there are: default, cpu050, whole"),
        (["--policy", "nope"], 2, "'bestfit', 'fgd', 'all'"),
        (["--seed", "43-42"], 2, "neither a seed nor a range"),
        (["--seed", "x"], 2, "neither a seed nor a range"),
        (["--traces", "no-such-folder"], 5, "--traces DIR"),
        (["--picture", "a.jpg"], 2, "FILE.svg or FILE.png"),
        (["--picture", "no-such-folder/a.svg"], 1, "no-such-folder is no folder"),
    ],
)
def test_mistakes_are_told_with_a_remedy(
    simulate: Simulate, arguments: list[str], code: int, told: str
) -> None:
    got, out, err = simulate(*arguments)
    assert (got, out) == (code, "")
    assert told in err


@pytest.mark.parametrize(("name", "begins"), [("a.svg", b"<?xml"), ("a.png", b"\x89PNG")])
def test_a_picture_is_drawn_where_it_is_wanted(
    simulate: Simulate, tmp_path: Path, name: str, begins: bytes
) -> None:
    path = tmp_path / name
    code, _, err = simulate("--policy", "all", "--seed", "1-2", "--picture", str(path))
    assert code == 0, err
    assert path.read_bytes().startswith(begins)


def test_a_picture_that_cannot_be_written_is_an_error(simulate: Simulate, tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "no" / "a.png")
    code, _, err = simulate("--picture", str(tmp_path / "a.png"))
    assert (code, "PictureFailed" in err) == (1, True)


def test_a_picture_begins_before_the_first_policy_leaves_something() -> None:
    def of(*behind: int) -> Run:
        percent = {load: load - 1.0 if load in behind else float(load) for load in range(131)}
        return Run("default", "fgd", 42, Outcome(percent, 0, 0))

    assert begins_at([of(), of(87, 88)]) == 70
    assert begins_at([of(5)]) == 0
    assert begins_at([of()]) == 0


def test_a_mean_is_of_the_loads_that_all_runs_have() -> None:
    curves = ({1: 1.0, 2: 2.0}, {2: 4.0})
    runs = [Run("v", "p", seed, Outcome(curve, 0, 0)) for seed, curve in enumerate(curves)]
    assert mean_percent(runs) == {2: 3.0}


def test_help_needs_neither_numpy_nor_matplotlib() -> None:
    code = (
        "import sys; sys.argv = ['gpufleet', 'simulate', 'openb', '--help']; "
        "from gpufleet.cli import main; assert main() == 0; print(*sys.modules, file=sys.stderr)"
    )
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    assert "gpufleet.cli.simulate" in done.stderr.split()
    assert not {"numpy", "matplotlib"} & set(done.stderr.split())
