"""What the collected tests need is built before the first of them runs, so that no test waits for a compiler.

The first build on a machine takes minutes, more than any test may; later it is only looked up.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from tests.node import runtimes

from gpufleet.cli.progress import PlainProgress
from gpufleet.fleet.errors import GpufleetError
from gpufleet.local.components import CONTROL_PLANE
from gpufleet.local.controlplane import locate
from gpufleet.local.progress import building

BUILT_FOR = {
    "contract": CONTROL_PLANE,
    "node": (*CONTROL_PLANE, "kubelet"),
    "e2e": (*CONTROL_PLANE, "kubectl"),
}
"""Components of Kubernetes by suite (folder of tests/)."""

CONTAINERD = "cdi_node"
"""The fixture that needs containerd 2.x."""


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build the components of the suites from which tests were collected."""
    if session.config.option.collectonly:
        return
    here = Path(__file__).parent
    suites = {
        item.path.relative_to(here).parts[0] for item in session.items if item.path.is_relative_to(here)
    }
    wanted = dict.fromkeys(name for suite in sorted(suites) for name in BUILT_FOR.get(suite, ()))
    if wanted:
        locate(tuple(wanted), progress=building(PlainProgress()))
    if any(CONTAINERD in getattr(item, "fixturenames", ()) for item in session.items):
        with contextlib.suppress(GpufleetError):  # the fixture says it again and skips
            if not runtimes.why_not():
                runtimes.built(building(PlainProgress()))
