"""Fixtures of the tests on a node: a real kubelet beside a real control plane where the machine allows."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from tests.contract.conftest import pytest_pyfunc_call  # noqa: F401 - runs the async tests here too
from tests.contract.simnodes.fleet import KubeletControlPlane
from tests.node.realnode import RealNode, why_not

from gpufleet.kube.client import Client
from gpufleet.kube.crds import establish
from gpufleet.kube.custom_resources import custom_resources
from gpufleet.local.controlplane import locate

COMPONENTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kubelet")


@pytest.fixture(scope="session")
def real_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNode]:
    """A node `real-0` with a kubelet, containerd and runc, and a control plane of its own."""
    if reason := why_not():
        pytest.skip(reason)
    commands = locate(COMPONENTS, progress=print)
    plane = KubeletControlPlane(tmp_path_factory.mktemp("node-plane"), commands)
    node = RealNode(tmp_path_factory.mktemp("node"), plane, commands["kubelet"], "real-0")
    try:
        plane.start()
        plane.start_manager()
        asyncio.run(_prepare(plane))
        try:
            node.start()
            yield node
        finally:
            node.stop()
    finally:
        plane.stop()


async def _prepare(plane: KubeletControlPlane) -> None:
    async with Client(plane.config) as client:
        await establish(client, custom_resources())
