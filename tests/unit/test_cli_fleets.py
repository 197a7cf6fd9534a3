"""`up`, `down` and `make` as a user types them: which fleet they mean, and what they suggest to type next."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import click
import pytest

from gpufleet.cli.app import group
from gpufleet.cli.up import _next_commands
from gpufleet.local.fleetfile import load_fleet
from gpufleet.local.layout import Layout, layout_of, prepare
from gpufleet.local.settings import Settings, write_settings
from gpufleet.local.up import Result

ROOT = Path(__file__).parents[2]


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment whose state folder has the fleets `default` and `two`."""
    made = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")}
    made.pop("KUBECONFIG", None)
    for name in ("default", "two"):
        prepare(layout_of(name, made))
        write_settings(layout_of(name, made), Settings({}, {}))
    return made


def gpufleet(environ: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from gpufleet.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environ, capture_output=True, text=True, timeout=60
    )


# ------------------------------------------------------------------------------------------------ which fleet


def test_a_fleet_that_only_the_environment_names_is_not_forgotten(environ: dict[str, str]) -> None:
    two = layout_of("two", environ)
    here = {**environ, "KUBECONFIG": str(two.kubeconfig)}
    refused = gpufleet(here, "down", "--purge")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error[FleetNotNamed]: --purge would forget fleet two")
    assert "gpufleet down --purge --name two" in refused.stderr
    assert two.settings.exists()
    assert gpufleet(here, "down", "--purge", "--name", "two").returncode == 0
    assert not two.settings.exists()
    assert layout_of("default", environ).exists


def test_the_default_fleet_is_forgotten_without_a_name(environ: dict[str, str]) -> None:
    assert gpufleet(environ, "down", "--purge").returncode == 0
    assert not layout_of("default", environ).exists
    assert layout_of("two", environ).exists


@pytest.mark.parametrize(
    "command",
    ["up", "down", "down --purge", "status", "kubeconfig", "top", "why p", "logs p"],
)
def test_an_empty_name_names_no_fleet(environ: dict[str, str], command: str) -> None:
    refused = gpufleet(environ, *command.split(), "--name", "")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error[BadFleetName]: '' cannot name a fleet")
    assert layout_of("default", environ).exists


def test_what_was_never_started_cannot_be_forgotten(environ: dict[str, str]) -> None:
    done = gpufleet(environ, "down", "--purge", "--name", "nope")
    assert done.returncode == 5
    assert done.stderr.startswith("error[FleetNotFound]: there is no local fleet 'nope'")
    assert "default, two" in done.stderr
    assert gpufleet(environ, "down", "--name", "nope").returncode == 0


def test_a_first_up_that_starts_nothing_leaves_nothing(environ: dict[str, str]) -> None:
    nowhere = {**environ, "GPUFLEET_CONTROLPLANE_BIN": "/nowhere"}
    assert gpufleet(nowhere, "up", "--name", "three").returncode == 1
    assert not layout_of("three", environ).root.exists()


@pytest.mark.parametrize(
    "command",
    [
        "kubeconfig print --merge",
        "kubeconfig path --merge",
        "kubeconfig --into file",
        "top pods -A -n default",
        "top nodes -n default",
    ],
)
def test_what_asks_for_two_things_at_once_is_refused(environ: dict[str, str], command: str) -> None:
    refused = gpufleet(environ, *command.split())
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error[Usage]: ")
    assert "hint: " in refused.stderr


def would_run(*arguments: str) -> str:
    """What make would do."""
    done = subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("target", "command"), [("up", "up"), ("down", "down"), ("clean", "down --purge")])
def test_make_means_the_fleet_default_unless_it_is_told_another(target: str, command: str) -> None:
    assert re.search(rf"gpufleet {command}.* --name 'default'", would_run(target))
    assert re.search(rf"gpufleet {command}.* --name 'two'", would_run(target, "NAME=two"))


# ------------------------------------------------------------------------------------------ what to type next


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return layout_of("default", {"XDG_STATE_HOME": str(tmp_path)})


def suggested(layout: Layout, pod: str = "POD -n NAMESPACE") -> list[str]:
    result = Result(layout, load_fleet("small")[0], was_running=False, changed=True, seconds=1.0)
    with click.Context(group, info_name="gpufleet"):
        return _next_commands(result, pod).splitlines()


@pytest.mark.parametrize(
    ("script", "path", "typed"),
    [
        (".venv/bin/gpufleet", "/usr/bin", ".venv/bin/gpufleet"),
        (".venv/bin/gpufleet", ".venv/bin:/usr/bin", "gpufleet"),
        ("-c", "/usr/bin", "gpufleet"),
    ],
)
def test_what_up_suggests_can_be_typed_as_it_stands(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, path: str, typed: str
) -> None:
    program = tmp_path / ".venv" / "bin" / "gpufleet"
    program.parent.mkdir(parents=True)
    program.touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script])
    monkeypatch.setenv("PATH", path)
    assert [line.split(" status")[0] for line in suggested(layout) if " status" in line] == [typed]


def test_the_kubeconfig_that_up_suggests_can_be_pasted(tmp_path: Path) -> None:
    spaced = layout_of("default", {"XDG_STATE_HOME": str(tmp_path / "with space")})
    [line] = [line for line in suggested(spaced) if line.startswith("export ")]
    done = subprocess.run(["sh", "-c", f'{line}; printf %s "$KUBECONFIG"'], capture_output=True, text=True)
    assert done.stdout == str(spaced.kubeconfig)


def test_up_suggests_to_ask_about_a_pod_that_waits(layout: Layout) -> None:
    assert any("why giant-0 -n primer " in line for line in suggested(layout, "giant-0 -n primer"))


def test_a_scenario_with_a_mistake_is_told_before_anything_starts(
    environ: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "scenario.yaml").write_text(
        "title: t\nnamespace: n\nsteps: [{title: s, apply: [gone.yaml]}]\n"
    )
    done = gpufleet(environ, "up", "--name", "three", "--scenario", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("error[InvalidScenario]")
    assert not layout_of("three", environ).root.exists()
