"""Scenario files: every mistake is found before anything starts, and each has a remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpufleet.fleet.errors import GpufleetError
from gpufleet.local.fleetfile import load_fleet
from gpufleet.local.scenario import load

PRIMER = Path(__file__).parents[2] / "examples" / "primer"
GOOD = "title: t\nnamespace: n\nsteps: []\n"


def refused(folder: Path, text: str) -> GpufleetError:
    (folder / "scenario.yaml").write_text(text)
    with pytest.raises(GpufleetError) as raised:
        load(folder)
    return raised.value


@pytest.mark.parametrize(
    ("text", "reason", "says"),
    [
        ("title: t\nnamespace: n\nsteps: 7\n", "InvalidScenario", "scenario.yaml:3:1: expected a list"),
        ("title: t\nnamespace: n\nsteps: [{title: s, apply: [gone.yaml]}]\n", "InvalidScenario", "gone.yaml"),
        (f"{GOOD}fleet: smal\n", "FleetNotFound", "smal"),
    ],
)
def test_a_mistake_is_told_with_a_remedy(tmp_path: Path, text: str, reason: str, says: str) -> None:
    error = refused(tmp_path, text)
    assert error.reason == reason
    assert says in error.message
    assert error.hint


def test_a_manifest_with_a_mistake_is_told_before_it_is_applied(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("kind: [")
    assert (
        refused(tmp_path, "title: t\nnamespace: n\nsteps: [{title: s, apply: [a.yaml]}]").reason
        == "InvalidYaml"
    )


def test_the_primer_fits_the_small_fleet_and_no_other(tmp_path: Path) -> None:
    primer = load(PRIMER)
    assert primer.fits(load_fleet("small")[0])
    assert not primer.fits(load_fleet("large")[0])
    (tmp_path / "scenario.yaml").write_text(GOOD)
    assert load(tmp_path).fits(load_fleet("large")[0])
