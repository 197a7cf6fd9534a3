"""Fixtures of the simulated nodes' tests: one control plane and one fleet for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from tests.contract.simnodes.fleet import FLEET, KubeletControlPlane, Opening, SimulatedNodes

from gpufleet.kube.client import Client
from gpufleet.kube.crds import establish
from gpufleet.kube.custom_resources import custom_resources
from gpufleet.local.controlplane import locate

COMPONENTS = ("etcd", "kube-apiserver", "kube-controller-manager")


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeletControlPlane]:
    found = KubeletControlPlane(tmp_path_factory.mktemp("plane"), locate(COMPONENTS, progress=print))
    try:
        found.start()
        found.start_manager()
        asyncio.run(_prepare(found))
        yield found
    finally:
        found.stop()


async def _prepare(plane: KubeletControlPlane) -> None:
    async with Client(plane.config) as client:
        await establish(client, custom_resources())


@pytest.fixture(scope="session")
def fleet(plane: KubeletControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedNodes]:
    found = SimulatedNodes(plane, tmp_path_factory.mktemp("fleet"), FLEET)
    try:
        found.start()
        yield found
    finally:
        found.stop()
        assert not found.children()


@pytest.fixture
def cluster(fleet: SimulatedNodes) -> Opening:
    if fleet.process is None or fleet.process.poll() is not None:
        fleet.start()
    return Opening(fleet)
