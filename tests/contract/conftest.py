"""Fixtures of the contract tests: one control plane per session, one namespace per test, async tests."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from collections.abc import Iterator

import pytest
from tests.contract.servers import ControlPlane

from gpufleet.kube.client import Client
from gpufleet.kube.kinds import NAMESPACES
from gpufleet.local.controlplane import locate

TEST_SECONDS = 60.0
_names = itertools.count()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run `async def` tests in an event loop of their own, for as long as `timeout` allows, or a minute."""
    if not asyncio.iscoroutinefunction(pyfuncitem.obj):
        return None
    wanted = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in wanted}
    marker = pyfuncitem.get_closest_marker("timeout")
    seconds = marker.args[0] if marker else TEST_SECONDS
    asyncio.run(asyncio.wait_for(pyfuncitem.obj(**arguments), seconds))
    return True


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """etcd and kube-apiserver, built by gpufleet itself when this machine has none."""
    commands = locate(("etcd", "kube-apiserver"), progress=lambda step: print(step, file=sys.stderr))
    plane = ControlPlane(tmp_path_factory.mktemp("control-plane"), commands)
    try:
        plane.start()
        yield plane
    finally:
        plane.stop()


@pytest.fixture
def namespace(control_plane: ControlPlane) -> str:
    """A namespace that no other test uses."""
    name = f"test-{os.getpid()}-{next(_names)}"

    async def create() -> None:
        async with Client(control_plane.config) as client:
            await client.create(NAMESPACES, {"metadata": {"name": name}})

    asyncio.run(create())
    return name
