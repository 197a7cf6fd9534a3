"""A control plane that knows kubelets, and the process that plays the simulated nodes, for contract tests."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tests.contract.servers import ControlPlane, free_port

from gpufleet.kube.client import ApiError, Client
from gpufleet.kube.gpunode import GPUNode
from gpufleet.kube.kinds import EVENTS, GPU_NODES, NAMESPACES, PODS, Kind
from gpufleet.kube.objects import Node, Pod

T = TypeVar("T")

WITHIN = 20.0
FLEET = """
groups:
  - {name: gpu, count: 2, gpu: h100, gpusPerNode: 4, cpu: 32, memory: 256Gi, pool: training,
     zone: z1, rack: r1, taints: ["nvidia.com/gpu=present:NoSchedule"]}
  - {name: cut, gpu: h100, gpusPerNode: 1, mig: all-balanced}
  - {name: shared, gpu: l4, gpusPerNode: 1, sharing: {timeSlicing: {replicas: 2}}}
  - {name: cpu, cpu: 4, memory: 8Gi, pods: 200}
simulation:
  imagePullSeconds: 0.1
  startSeconds: 0.05
  weightLoadSeconds: 0.1
  jobSeconds: 3
  terminationSeconds: 0.2
  backoffSeconds: 1
"""


class KubeletControlPlane(ControlPlane):
    """A control plane whose API server asks kubelets for logs, with a controller-manager beside it."""

    def __init__(self, folder: Path, commands: Mapping[str, Sequence[str]]) -> None:
        super().__init__(folder, commands)
        for name, server, organization in (
            ("kubelet-client", False, "system:masters"),
            ("kubelet", True, ""),
            ("manager", False, "system:masters"),
        ):
            certificate, key = self.authority.issue(name, organization, server=server)
            (folder / f"{name}.crt").write_bytes(certificate)
            (folder / f"{name}.key").write_bytes(key)

    def _spawn(self, component: str, *flags: str) -> None:
        if component == "kube-apiserver":
            flags = (
                *flags,
                f"--kubelet-client-certificate={self.folder / 'kubelet-client.crt'}",
                f"--kubelet-client-key={self.folder / 'kubelet-client.key'}",
                f"--kubelet-certificate-authority={self.folder / 'ca.crt'}",
                "--kubelet-preferred-address-types=InternalIP",
            )
        super()._spawn(component, *flags)

    def start_manager(self) -> None:
        """Start kube-controller-manager."""
        self._spawn(
            "kube-controller-manager",
            f"--kubeconfig={self.admin_kubeconfig()}",
            f"--service-account-private-key-file={self.folder / 'accounts.key'}",
            f"--secure-port={free_port()}",
            "--bind-address=127.0.0.1",
            f"--cert-dir={self.folder}",
            "--use-service-account-credentials=false",
            "--leader-elect=false",
            "--controllers=*,-bootstrap-signer-controller,-token-cleaner-controller",
        )

    def admin_kubeconfig(self) -> Path:
        """A kubeconfig with a client certificate of the administrators."""
        user: dict[str, object] = {
            "client-certificate-data": _base64(self.folder / "manager.crt"),
            "client-key-data": _base64(self.folder / "manager.key"),
        }
        return self.write_kubeconfig(self.folder / "admin.kubeconfig", user)


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


class SimulatedNodes:
    """The process under test: started, killed and started again by the tests."""

    def __init__(self, plane: KubeletControlPlane, state: Path, fleet: str) -> None:
        self.plane = plane
        self.state = state
        self.fleet_file = state / "fleet.yaml"
        self.fleet_file.write_text(fleet)
        self.kubelet_port, self.metrics_port = free_port(), free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process and wait until it is ready."""
        folder = self.plane.folder
        argv = [
            *(sys.executable, "-P", "-m", "gpufleet.local.simnodes"),
            f"--kubeconfig={self.plane.admin_kubeconfig()}",
            f"--fleet={self.fleet_file}",
            f"--state={self.state}",
            f"--kubelet-cert={folder / 'kubelet.crt'}",
            f"--kubelet-key={folder / 'kubelet.key'}",
            f"--client-ca={folder / 'ca.crt'}",
            f"--kubelet-port={self.kubelet_port}",
            f"--metrics-port={self.metrics_port}",
        ]
        with (self.state / "simnodes.log").open("ab") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while not self.answers("/readyz"):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(self.log()[-4000:])
            time.sleep(0.05)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End the process with a signal and wait until it is gone."""
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(timeout=20)
            self.process = None

    def answers(self, path: str) -> str:
        """What the process's own server says; empty when it does not answer with 200."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}{path}", timeout=5) as response:
                return str(response.read().decode()) or "ok"
        except OSError:
            return ""

    def log(self) -> str:
        """What the process has logged."""
        return (self.state / "simnodes.log").read_text(errors="replace")

    def children(self) -> list[int]:
        """Processes that carry the mark of this fleet's containers."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                environment = (path / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if f"GPUFLEET_FLEET={self.state}".encode() in environment and int(path.name) != os.getpid():
                found.append(int(path.name))
        return found


async def until(what: Callable[[], Awaitable[T | None]], within: float = WITHIN) -> T:
    """Ask until the answer is neither None nor False, for a bounded time."""
    last: BaseException | None = None
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            answer = await what()
            if answer is not None and answer is not False:
                return answer
        except ApiError as error:
            last = error
        await asyncio.sleep(0.05)
    raise AssertionError(f"nothing within {within} s") from last


def manifest(name: str, gpus: int = 0, *, resource: str = "nvidia.com/gpu", **rest: Any) -> dict[str, Any]:
    """A pod with one container `main`; `rest` goes into its spec, except metadata and container fields."""
    container = {"name": "main", "image": "registry.invalid/app:1", **rest.pop("container", {})}
    if gpus:
        container["resources"] = {"limits": {resource: str(gpus)}}
    metadata = {"name": name, **rest.pop("metadata", {})}
    return {"metadata": metadata, "spec": {"containers": [container], **rest}}


class Cluster:
    """What a test does with the cluster, in one namespace."""

    def __init__(self, client: Client, namespace: str) -> None:
        self.client = client
        self.namespace = namespace

    async def bind(
        self, body: dict[str, Any], node: str, annotations: Mapping[str, str] | None = None
    ) -> Pod:
        """Create a pod and bind it by hand, perhaps with what was picked for it."""
        body = {**body, "spec": {"schedulerName": "by-hand", **body["spec"]}}
        created = await self.client.create(PODS, body, self.namespace, type=Pod)
        name, uid = created.metadata.name, created.metadata.uid
        await self.client.bind(self.namespace, name, uid=uid, node=node, annotations=annotations)
        return created

    async def pod(self, name: str) -> Pod:
        """The pod as it is."""
        return await self.client.get(PODS, name, self.namespace, type=Pod)

    async def gone(self, name: str, within: float = WITHIN) -> None:
        """Wait until the pod is gone."""

        async def absent() -> bool:
            try:
                await self.pod(name)
            except ApiError as error:
                return error.not_found
            return False

        await until(absent, within)

    async def phase(self, name: str, phase: str, within: float = WITHIN) -> Pod:
        """Wait for a phase."""

        async def reached() -> Pod | None:
            found = await self.pod(name)
            return found if found.status.phase == phase else None

        return await until(reached, within)

    async def ready(self, name: str, within: float = WITHIN) -> Pod:
        """Wait until the pod is ready."""

        async def reached() -> Pod | None:
            found = await self.pod(name)
            return found if is_ready(found) else None

        return await until(reached, within)

    async def history(
        self, kind: Kind, version: str, type_: type[T], last: Callable[[T], bool], within: float = WITHIN
    ) -> list[T]:
        """Every version of objects of a kind after `version`, up to the first that is the last one wanted."""
        found: list[T] = []
        namespace = self.namespace if kind.namespaced else None
        watch = self.client.watch(kind, namespace, resource_version=version, type=type_)
        async with asyncio.timeout(within), contextlib.aclosing(watch) as events:
            async for event in events:
                if event.object is not None:
                    found.append(event.object)
                    if last(event.object):
                        break
        return found

    async def gpu_node(self, node: str) -> GPUNode:
        """The GPUNode of a node."""
        return await self.client.get(GPU_NODES, node, type=GPUNode)

    async def devices(self, node: str) -> dict[str, tuple[str, ...]]:
        """Devices on record by pod name, of this namespace."""
        allocations = (await self.gpu_node(node)).status.allocations
        return {one.pod: one.devices for one in allocations if one.namespace == self.namespace}

    async def free(self, node: str) -> bool:
        """Whether no pod of this namespace holds a device of the node."""
        return not await self.devices(node)

    async def delete(self, name: str, grace: int | None = None) -> None:
        """Delete a pod."""
        await self.client.delete(PODS, name, self.namespace, grace=grace)

    async def events(self, reason: str, namespace: str | None = None) -> list[str] | None:
        """The notes of Events of a reason, in the cluster's namespace or another, once there are any."""
        path, params = EVENTS.path(namespace or self.namespace), {"fieldSelector": f"reason={reason}"}
        found = json.loads(await self.client.request("GET", path, params=params))["items"]
        return [event["note"] for event in found] or None

    async def logs(self, name: str, **query: str) -> str:
        """The log of the container `main` as kubectl reads it."""
        path = PODS.path(self.namespace, name, "log")
        return (await self.client.request("GET", path, params={"container": "main", **query})).decode()


_numbers = itertools.count()


class Opening:
    """`async with opening as cluster`: a namespace whose pods are gone afterwards."""

    def __init__(self, fleet: SimulatedNodes) -> None:
        self.fleet = fleet
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Cluster:
        client = await self._stack.enter_async_context(Client(self.fleet.plane.config))
        namespace = f"sim-{os.getpid()}-{next(_numbers)}"
        await client.create(NAMESPACES, {"metadata": {"name": namespace}})
        found = Cluster(client, namespace)
        self._stack.push_async_callback(self._clear, found)
        return found

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _clear(self, cluster: Cluster) -> None:
        if self.fleet.process is None:
            self.fleet.start()
        for pod in (await cluster.client.list(PODS, cluster.namespace, type=Pod)).items:
            await cluster.client.delete(PODS, pod.metadata.name, cluster.namespace, grace=0, missing_ok=True)
        for node in ("gpu-0", "gpu-1", "cut-0", "shared-0"):
            await until(lambda node=node: cluster.free(node))  # type: ignore[misc]


def is_ready(found: Pod | Node) -> bool:
    """Whether the condition Ready is True."""
    return any(c.type == "Ready" and c.status == "True" for c in found.status.conditions)


def encoded(value: object) -> str:
    """A value for messages of failed assertions."""
    return json.dumps(value, indent=1, default=str)
