"""A small kubelet for tests: device manager and pod resources, over the same sockets as the real one.

It follows Kubernetes 1.37 (pkg/kubelet/cm/devicemanager) where a plugin can feel it: a start deletes every
socket in the folder; a registration dials back, asks for the options and then follows ListAndWatch; a second
registration of a socket that is still connected is refused; when the last stream of a resource ends, its
devices are unhealthy. Pods are admitted one at a time: devices in use are subtracted, the plugin may prefer,
what it prefers is cut with what is free, the rest is drawn at random, and one Allocate per container and
resource decides. A failed one ends the pod. Who holds what outlives a restart, as its checkpoint does.
"""

from __future__ import annotations

import asyncio
import random
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import grpc.aio

from gpufleet.kube.kubelet import device_plugin_pb2 as pb
from gpufleet.kube.kubelet import pod_resources_pb2 as pods

OPTIONS = (("grpc.use_local_subchannel_pool", 1),)


class AdmissionError(Exception):
    """The pod has failed with UnexpectedAdmissionError."""


class Held(NamedTuple):
    """What a container of a pod got for one resource."""

    pod: str
    container: str
    resource: str
    ids: frozenset[str]
    answer: pb.ContainerAllocateResponse


def unary(method: str, request: Any, answer: Any) -> Callable[[grpc.aio.Channel], Any]:
    """A call of the plugin by its name on the wire."""
    return lambda channel: channel.unary_unary(
        f"/v1beta1.DevicePlugin/{method}",
        request_serializer=request.SerializeToString,
        response_deserializer=answer.FromString,
    )


get_options = unary("GetDevicePluginOptions", pb.Empty, pb.DevicePluginOptions)
get_preferred = unary("GetPreferredAllocation", pb.PreferredAllocationRequest, pb.PreferredAllocationResponse)
allocate = unary("Allocate", pb.AllocateRequest, pb.AllocateResponse)


class Connection:
    """A plugin that has registered: its channel, its options, and the task that follows its devices."""

    def __init__(self, resource: str, path: Path) -> None:
        self.resource = resource
        self.path = path
        self.channel = grpc.aio.insecure_channel(f"unix:{path}", options=OPTIONS)
        self.options = pb.DevicePluginOptions()
        self.task: asyncio.Task[None] | None = None
        self.lists = 0

    async def preferred(self, available: set[str], must: set[str], size: int) -> set[str]:
        one = pb.ContainerPreferredAllocationRequest(
            available_deviceIDs=available, must_include_deviceIDs=must, allocation_size=size
        )
        answer = await get_preferred(self.channel)(pb.PreferredAllocationRequest(container_requests=[one]))
        return set(answer.container_responses[0].deviceIDs)

    async def allocate(self, ids: set[str]) -> pb.ContainerAllocateResponse:
        one = pb.ContainerAllocateRequest(devices_ids=ids)
        answer = await allocate(self.channel)(pb.AllocateRequest(container_requests=[one]))
        granted: pb.ContainerAllocateResponse = answer.container_responses[0]
        return granted


class FakeKubelet:
    """One kubelet, whose folders are below `root`. `registrations` counts them by resource."""

    def __init__(self, root: Path, seed: int = 0) -> None:
        self.plugins = root / "dp"
        self.pod_socket = root / "pr" / "kubelet.sock"
        self.registrations: dict[str, int] = {}
        self.refused: list[str] = []
        self.devices: dict[str, dict[str, pb.Device]] = {}
        self.held: list[Held] = []
        self.pods: list[str] = []
        self._random = random.Random(seed)
        self._admission = asyncio.Lock()
        self._connections: dict[str, dict[Path, Connection]] = {}
        self._servers: list[grpc.aio.Server] = []
        self._changed = asyncio.Event()

    async def start(self, *, tidy: bool = True) -> None:
        """Delete every socket of the folder, unless it is not `tidy`, then listen."""
        self.plugins.mkdir(exist_ok=True)
        self.pod_socket.parent.mkdir(exist_ok=True)
        for path in self.plugins.iterdir():
            if stat.S_ISSOCK(path.lstat().st_mode) and (tidy or path.name == "kubelet.sock"):
                path.unlink()
        self.pod_socket.unlink(missing_ok=True)
        for path, service, methods in (
            (self.plugins / "kubelet.sock", "v1beta1.Registration", self._registration()),
            (self.pod_socket, "v1.PodResourcesLister", self._lister()),
        ):
            server = grpc.aio.server()
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
            server.add_insecure_port(f"unix:{path}")
            await server.start()
            self._servers.append(server)

    async def stop(self) -> None:
        """End every connection, as the end of the process does."""
        for server in self._servers:
            await server.stop(None)
        for connection in [one for ones in self._connections.values() for one in ones.values()]:
            if connection.task:
                connection.task.cancel()
                await asyncio.gather(connection.task, return_exceptions=True)
            await connection.channel.close()
        self._servers, self._connections = [], {}
        for devices in self.devices.values():
            for device in devices.values():
                device.health = "Unhealthy"

    async def restart(self) -> None:
        """A new kubelet with the checkpoint of the old one."""
        await self.stop()
        await self.start()

    def end_stream(self, resource: str) -> None:
        """Lose the connection to a plugin for a reason of one's own."""
        for connection in self._connections[resource].values():
            assert connection.task
            connection.task.cancel()

    def capacity(self, resource: str) -> int:
        return len(self.devices.get(resource, {}))

    def allocatable(self, resource: str) -> int:
        return len(self.healthy(resource))

    def healthy(self, resource: str) -> set[str]:
        return {one.ID for one in self.devices.get(resource, {}).values() if one.health == "Healthy"}

    def in_use(self, resource: str) -> set[str]:
        return {one for held in self.held if held.resource == resource for one in held.ids}

    def lists(self, resource: str) -> int:
        """How many lists the plugin of a resource has sent on its connection."""
        return max(one.lists for one in self._connections[resource].values())

    def connection(self, resource: str) -> Connection:
        return next(reversed(self._connections[resource].values()))

    async def until(self, condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
        """Wait until something holds, looked at after every change; fails when it never does."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                changed = self._changed
                await changed.wait()

    async def admit(
        self,
        pod: str,
        requests: Mapping[str, int],
        container: str = "main",
        reusable: frozenset[str] = frozenset(),
    ) -> tuple[Held, ...]:
        """Give a container of a pod its devices, or fail the pod. One at a time, as the kubelet does."""
        async with self._admission:
            got: list[Held] = []
            self.pods += [] if pod in self.pods else [pod]
            for resource, size in requests.items():
                connection = self._usable(resource)
                ids = await self._choose(connection, resource, size, reusable)
                try:
                    answer = await connection.allocate(ids)
                except grpc.aio.AioRpcError as error:
                    raise AdmissionError(f"{error.code().name}: {error.details()}") from error
                got.append(Held(pod, container, resource, frozenset(ids), answer))
                self.held.append(got[-1])
            return tuple(got)

    def finish(self, pod: str) -> None:
        """The pod has ended: its devices are free."""
        self.held = [one for one in self.held if one.pod != pod]
        self.pods.remove(pod)

    def _usable(self, resource: str) -> Connection:
        if resource not in self.devices:
            raise AdmissionError(f"cannot allocate unregistered device {resource}")
        if not self.healthy(resource):
            raise AdmissionError(f"no healthy devices present; cannot allocate unhealthy devices {resource}")
        return self.connection(resource)

    async def _choose(
        self, connection: Connection, resource: str, size: int, reusable: frozenset[str]
    ) -> set[str]:
        allocated = set(sorted(reusable & self.in_use(resource))[:size])
        available = self.healthy(resource) - self.in_use(resource)
        if len(allocated) + len(available) < size:
            raise AdmissionError(f"requested number of devices unavailable for {resource}")
        if len(allocated) < size and connection.options.get_preferred_allocation_available:
            wanted = await connection.preferred(available | allocated, allocated, size)
            for one in sorted(wanted & available):
                allocated |= {one} if len(allocated) < size else set()
        rest = sorted(available - allocated)
        return allocated | set(self._random.sample(rest, size - len(allocated)))

    def _registration(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        return {
            "Register": grpc.unary_unary_rpc_method_handler(
                self._register, pb.RegisterRequest.FromString, pb.Empty.SerializeToString
            )
        }

    async def _register(self, request: pb.RegisterRequest, context: Any) -> pb.Empty:
        name, path = request.resource_name, self.plugins / request.endpoint
        problem = "" if request.version == "v1beta1" else f"requested API version {request.version!r}"
        if path in self._connections.get(name, {}):
            problem = f"device plugin already connected: {path}"
        if not path.exists():
            problem = f"failed to dial device plugin: {path}"
        if problem:
            self.refused.append(problem)
            await context.abort(grpc.StatusCode.UNKNOWN, problem)
        connection = Connection(name, path)
        async with asyncio.timeout(10):
            connection.options = await get_options(connection.channel)(pb.Empty())
        self._connections.setdefault(name, {})[path] = connection
        self.registrations[name] = self.registrations.get(name, 0) + 1
        connection.task = asyncio.create_task(self._follow(connection))
        self._note()
        return pb.Empty()

    async def _follow(self, connection: Connection) -> None:
        call = connection.channel.unary_stream(
            "/v1beta1.DevicePlugin/ListAndWatch",
            request_serializer=pb.Empty.SerializeToString,
            response_deserializer=pb.ListAndWatchResponse.FromString,
        )
        try:
            async for answer in call(pb.Empty()):
                connection.lists += 1
                self.devices[connection.resource] = {one.ID: one for one in answer.devices}
                self._note()
        except grpc.aio.AioRpcError:
            pass
        finally:
            others = self._connections.get(connection.resource, {})
            if others.pop(connection.path, None) and not others:
                for device in self.devices.get(connection.resource, {}).values():
                    device.health = "Unhealthy"
            self._note()
            await connection.channel.close()

    def _lister(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        rows: tuple[tuple[str, Any, Any, Any], ...] = (
            ("List", self._list, pods.ListPodResourcesRequest, pods.ListPodResourcesResponse),
            ("Get", self._get, pods.GetPodResourcesRequest, pods.GetPodResourcesResponse),
            (
                "GetAllocatableResources",
                self._allocatable,
                pods.AllocatableResourcesRequest,
                pods.AllocatableResourcesResponse,
            ),
        )
        return {
            name: grpc.unary_unary_rpc_method_handler(call, request.FromString, answer.SerializeToString)
            for name, call, request, answer in rows
        }

    async def _list(self, request: Any, context: Any) -> pods.ListPodResourcesResponse:
        return pods.ListPodResourcesResponse(pod_resources=[self._pod(pod) for pod in self.pods])

    async def _get(self, request: pods.GetPodResourcesRequest, context: Any) -> pods.GetPodResourcesResponse:
        if request.pod_name not in self.pods:
            missing = f"pod {request.pod_name} in namespace {request.pod_namespace} not found"
            await context.abort(grpc.StatusCode.UNKNOWN, missing)
        return pods.GetPodResourcesResponse(pod_resources=self._pod(request.pod_name))

    async def _allocatable(self, request: Any, context: Any) -> pods.AllocatableResourcesResponse:
        return pods.AllocatableResourcesResponse(
            devices=[self._entry(name, one) for name in self.devices for one in sorted(self.healthy(name))]
        )

    def _pod(self, pod: str) -> pods.PodResources:
        containers: dict[str, list[Held]] = {}
        for held in self.held:
            if held.pod == pod:
                containers.setdefault(held.container, []).append(held)
        return pods.PodResources(
            name=pod,
            namespace="default",
            containers=[
                pods.ContainerResources(
                    name=name,
                    devices=[self._entry(one.resource, device) for one in ones for device in one.ids],
                )
                for name, ones in containers.items()
            ],
        )

    def _entry(self, resource: str, device: str) -> pods.ContainerDevices:
        nodes = [pods.NUMANode(ID=one.ID) for one in self.devices[resource][device].topology.nodes]
        topology = pods.TopologyInfo(nodes=nodes)
        return pods.ContainerDevices(resource_name=resource, device_ids=[device], topology=topology)

    def _note(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
