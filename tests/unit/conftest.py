"""Property tests are judged by what they find, never by how long an example takes on a busy machine. They
draw the same examples each time, so that a change is judged by what it changes; the long search
(test_scheduling_at_length) draws new ones. Builds of the control plane are tested on a machine of their own.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings
from tests.unit.go_machines import Machine

from gpufleet.local import gotoolchain

settings.register_profile("gpufleet", deadline=None, derandomize="GPUFLEET_TEST_FACTOR" not in os.environ)
settings.load_profile("gpufleet")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine with a `go` and with space for what it builds."""
    for name in ("MODULES_BYTES", "PACKAGE_BYTES", "LINK_BYTES"):
        monkeypatch.setattr(gotoolchain, name, 0)
    return Machine(tmp_path)
