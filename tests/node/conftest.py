"""Fixtures of the tests on a node: a real kubelet beside a real control plane where the machine allows, and
the fake NVML where there is a C compiler.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.contract.conftest import pytest_pyfunc_call  # noqa: F401 - runs the async tests here too
from tests.contract.servers import ControlPlane
from tests.contract.simnodes.fleet import KubeletControlPlane
from tests.fakenvml.library import STATE, build, compiler
from tests.node.nvml_nodes import NvmlNode
from tests.node.realnode import RealNode
from tests.node.runtimes import Containerd, built, installed, why_not

from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube.client import Client
from gpufleet.kube.crds import establish
from gpufleet.kube.custom_resources import custom_resources
from gpufleet.local.controlplane import locate

COMPONENTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kubelet")


@pytest.fixture(scope="session")
def kubelet_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeletControlPlane]:
    """A control plane for nodes with a real kubelet."""
    plane = KubeletControlPlane(
        tmp_path_factory.mktemp("node-plane"), locate(COMPONENTS[:-1], progress=print)
    )
    try:
        plane.start()
        plane.start_manager()
        asyncio.run(_prepare(plane))
        yield plane
    finally:
        plane.stop()


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """etcd and kube-apiserver with our custom resources; nodes are made by hand."""
    found = ControlPlane(
        tmp_path_factory.mktemp("agent-plane"), locate(("etcd", "kube-apiserver"), progress=print)
    )
    try:
        found.start()
        asyncio.run(_prepare(found))
        yield found
    finally:
        found.stop()


@pytest.fixture(scope="session")
def real_node(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[RealNode]:
    """A node `real-0` with a kubelet, runc and Debian's containerd 1.6."""
    if reason := why_not(own=True):
        pytest.skip(reason)
    with _started(tmp_path_factory, request, installed(), "real-0") as node:
        yield node


@pytest.fixture(scope="session")
def cdi_node(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[RealNode]:
    """A node `real-1` with a kubelet, runc and containerd 2.x, which follows CDI specs."""
    if reason := why_not():
        pytest.skip(reason)
    try:
        containerd = built(print)
    except GpufleetError as error:
        pytest.skip(f"containerd 2.x cannot be built here: {error}")
    with _started(tmp_path_factory, request, containerd, "real-1") as node:
        yield node


@contextlib.contextmanager
def _started(
    folders: pytest.TempPathFactory, request: pytest.FixtureRequest, containerd: Containerd, name: str
) -> Iterator[RealNode]:
    plane = request.getfixturevalue("kubelet_plane")  # only now: nobody needs one where no node can run
    kubelet = locate(("kubelet",), progress=print)["kubelet"]
    node = RealNode(folders.mktemp("node"), plane, kubelet, containerd, name)
    try:
        node.start()
        yield node
    finally:
        node.stop()


async def _prepare(plane: ControlPlane) -> None:
    async with Client(plane.config) as client:
        await establish(client, custom_resources())


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fake `libnvidia-ml.so.1`."""
    if compiler() is None:
        pytest.skip("no C compiler (cc, gcc, clang or $CC): the fake NVML cannot be built")
    return build(tmp_path_factory.getbasetemp().parent / "fakenvml")


@pytest.fixture
def nvml_node(nvml_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NvmlNode]:
    """A node with fake NVML and no GPUs yet."""
    state = tmp_path / "machine"
    monkeypatch.setenv(STATE, str(state))
    node = NvmlNode(tmp_path / "host", nvml_library, state)
    yield node
    node.close()
