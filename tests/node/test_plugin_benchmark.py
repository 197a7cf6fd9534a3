"""The benchmark of the device plugin measures whatever it has a bar for, on every shape of node."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from benchmarks import device_plugin
from tests.fakenvml.library import STATE


@pytest.mark.full
async def test_a_short_run_of_the_benchmark_has_a_number_for_every_bar(
    nvml_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STATE, "")  # the benchmark sets it for itself, and this process has more tests
    options = argparse.Namespace(restarts=2, calls=5, admissions=40)
    numbers = await device_plugin.run(options)
    assert {name for found in numbers.values() for name in found} >= set(device_plugin.BARS)
    assert {case.partition(",")[0] for case in numbers} >= set(device_plugin.SHAPES)
    swapped = [found["swapped_percent"] for found in numbers.values() if "swapped_percent" in found]
    assert len(swapped) == 3
    assert swapped[0] == 0, "with one unconfirmed pod a count, each gets its pick"
