"""The properties of scheduling, searched for twenty times as long."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SUBJECTS = (
    "trial",
    "search",
    "cycle",
    "preemption",
    "scheduling_over_time",
    "explain",
    "changes",
    "holders",
    "snapshot_builder",
    "assumed_decisions",
    "recording",
    "redaction",
    "whatif",
)


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("subject", SUBJECTS)
def test_properties_hold_at_length(subject: str) -> None:
    searched = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--timeout", "3000", str(HERE / f"test_{subject}.py")],
        env={**os.environ, "GPUFLEET_TEST_FACTOR": "20"},
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
    )
    assert searched.returncode == 0, searched.stdout[-8000:]
