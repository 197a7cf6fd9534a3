"""Every long-running process serves metrics that Prometheus accepts and that the reference names."""

from __future__ import annotations

import re
import shutil
import subprocess
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.e2e.local_fleet import LocalFleet

PROCESSES = ("supervisor", "controller", "devices", "simulated-nodes")
REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "metrics.md"

pytestmark = pytest.mark.timeout(900)


def answer(fleet: LocalFleet, process: str, path: str) -> str:
    """What a process says at one of its public paths; any status but 200 raises."""
    port = fleet.ports()[f"{process}-metrics"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
        return str(response.read().decode())


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_a_process_of_a_ready_fleet_is_healthy_and_ready(fleet: LocalFleet, process: str, path: str) -> None:
    assert answer(fleet, process, path) == "ok"


@pytest.mark.parametrize("process", PROCESSES)
def test_every_metric_of_ours_stands_in_the_reference(fleet: LocalFleet, process: str) -> None:
    documented = set(re.findall(r"\| `(gpufleet_\w+)` \| (\w+)", REFERENCE.read_text()))
    families = list(text_string_to_metric_families(answer(fleet, process, "/metrics")))
    served = {
        (family.name + "_total" * (family.type == "counter"), family.type)
        for family in families
        if family.name.startswith("gpufleet_") and not family.name.endswith("_created")
    }
    assert served
    assert served <= documented


@pytest.mark.parametrize("process", PROCESSES)
def test_promtool_accepts_the_metrics(fleet: LocalFleet, process: str) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not on the PATH (Debian has it in the package prometheus)")
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=answer(fleet, process, "/metrics"),
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
