"""The device plugin: one gRPC server per resource in the kubelet's folder, kept registered.

All answers come from one value, a `PluginNode`, that the agent replaces when something changes; no call waits
for the driver or the API server. It runs in the agent's event loop, where a stream costs a task and not a
thread, and where nothing needs a lock.

Each registration has a socket of its own name. For a kubelet that is told a second time of a socket it still
holds refuses, and then forgets to let go of it (1.37, `PluginConnected`); older ones end the new connection
along with the old one. A registration is made anew when `kubelet.sock` is another file (the kubelet has
restarted, and has deleted our socket), when our socket is gone, or when the kubelet has ended its stream.
A resource without devices stays registered with an empty list: its capacity is 0 at once, and it is back at
once when instances are cut again.

The kubelet shows the resources of a plugin for minutes after it has ended, and does not say whose they are.
So the names of what was registered here stay in a file in the folder: the next agent knows them as ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import secrets
import socket as sockets
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from pathlib import Path

import grpc
import grpc.aio

from gpufleet.devices.allocation import Grant
from gpufleet.devices.picks import Picks
from gpufleet.devices.plugin_node import PluginNode
from gpufleet.devices.resources import Device, Resource
from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube.kubelet import device_plugin_pb2 as pb
from gpufleet.kube.kubelet.device_plugins import (
    HEALTHY,
    KUBELET_SOCKET,
    UNHEALTHY,
    Context,
    register,
    serve,
)

FOLDER = Path("/var/lib/kubelet/device-plugins")
POLL_S = 0.2
REGISTER_S = 12.0
GRACE_S = 1.0
REGISTERED = "gpufleet.registered"
"""The file in the kubelet's folder with the names of our resources, one per line."""

_PREFIX = "gpufleet-"
_PATH_BYTES = 107

log = logging.getLogger("gpufleet.devices")

Extras = Callable[[str, Sequence[Device]], Grant]
"""What a container gets on top, by resource and devices: the pipe of an MPS server, for example."""
FileIdentity = tuple[int, int, int]


class DevicePlugin:
    """The plugins of one node. Everything is called in one event loop.

    `picks` is what the scheduler chose for pods that the kubelet has yet to admit; the agent adds to it and
    takes from it, and an allocation uses up its own; `allocated` hears of each. `poll_s` is how often the
    sockets are looked at.
    """

    def __init__(
        self, folder: Path = FOLDER, *, extras: Extras | None = None, poll_s: float = POLL_S
    ) -> None:
        self.folder = folder
        self.node = PluginNode()
        self.picks = Picks()
        self.extras = extras
        self.allocated: Callable[[str, Sequence[str]], None] = lambda _resource, _ids: None
        self.changed = asyncio.Event()
        self._poll_s = poll_s
        self._endpoints: dict[str, _Endpoint | None] = {}
        self._remembered = remembered(folder)

    @property
    def registered(self) -> Mapping[str, bool]:
        """Every resource, and whether the kubelet follows it now."""
        return {name: bool(one and one.streams) for name, one in self._endpoints.items()}

    @property
    def ours(self) -> frozenset[str]:
        """The resources that are ours: those that we offer, and those that an agent before us registered."""
        return self._remembered | self._endpoints.keys()

    def remember(self, resources: Iterable[str]) -> None:
        """These are ours from now on, for the agents that follow too. Raises OSError."""
        self._keep(self._remembered.union(resources))

    def forget(self) -> None:
        """Nothing that is registered here is ours any more. Raises OSError."""
        self._keep(frozenset())

    def update(self, node: PluginNode) -> None:
        """Answer from another value from now on, and tell the kubelet what is new in it."""
        self.node = node
        self.changed.set()
        self.changed = asyncio.Event()

    async def run(self) -> None:
        """Serve until cancelled; then the sockets are removed, and running pods keep their devices."""
        remove_stale(self.folder)
        async with asyncio.TaskGroup() as group:
            while True:
                changed = self.changed
                for resource in self.node.offer.resources:
                    if resource.name not in self._endpoints:
                        self._endpoints[resource.name] = None
                        group.create_task(self._keep_registered(resource.name))
                await changed.wait()

    async def _keep_registered(self, resource: str) -> None:
        complaint = ""
        try:
            while True:
                kubelet, endpoint = identity(self.folder / KUBELET_SOCKET), self._endpoints[resource]
                if kubelet is not None and not (endpoint and endpoint.serves(kubelet)):
                    try:
                        self._endpoints[resource] = await self._register(resource, kubelet)
                        self.remember([resource])
                        log.info("registered %s with the kubelet", resource)
                        complaint = ""
                    except (grpc.RpcError, OSError) as error:
                        if str(error) != complaint:
                            log.warning("cannot register %s with the kubelet: %s", resource, error)
                        complaint = str(error)
                    else:
                        if endpoint:
                            await endpoint.close()
                await asyncio.sleep(self._poll_s)
        finally:
            if last := self._endpoints.pop(resource):
                await last.close()

    def _keep(self, resources: frozenset[str]) -> None:
        if resources != self._remembered:
            draft = self.folder / f"{REGISTERED}.new"
            draft.write_text("".join(f"{name}\n" for name in sorted(resources)))
            draft.replace(self.folder / REGISTERED)
            self._remembered = resources

    async def _register(self, resource: str, kubelet: FileIdentity) -> _Endpoint:
        path = self.folder / socket_name(resource, secrets.token_hex(3), self.folder)
        endpoint = _Endpoint(self, resource, path, kubelet)
        try:
            await endpoint.open()
            await register(self.folder / KUBELET_SOCKET, path.name, resource, REGISTER_S)
        except BaseException:
            await endpoint.close()
            raise
        return endpoint


class _Endpoint:
    """One registration of a resource: the server at its socket, and the streams that the kubelet opened."""

    def __init__(self, plugin: DevicePlugin, resource: str, path: Path, kubelet: FileIdentity) -> None:
        self.streams = 0
        self._plugin = plugin
        self._resource = resource
        self._path = path
        self._kubelet = kubelet
        self._server: grpc.aio.Server | None = None
        self._socket: FileIdentity | None = None
        self._closed = asyncio.Event()
        self._left = False

    async def open(self) -> None:
        """Answer calls."""
        self._server = await serve(self, self._path)
        self._socket = identity(self._path)

    async def close(self) -> None:
        """End the streams, let calls end that have begun, and remove the socket."""
        self._closed.set()
        if self._server is not None:
            await self._server.stop(GRACE_S)
        self._path.unlink(missing_ok=True)

    def serves(self, kubelet: FileIdentity) -> bool:
        """Whether this kubelet knows the endpoint and can reach it."""
        return not self._left and self._kubelet == kubelet and self._socket == identity(self._path)

    async def list_and_watch(
        self, request: pb.Empty, context: Context
    ) -> AsyncIterator[pb.ListAndWatchResponse]:
        """The devices of the resource now and after each change."""
        self.streams += 1
        try:
            told = None
            while not self._closed.is_set():
                changed, resource = self._plugin.changed, self._offered()
                if resource != told:
                    told = resource
                    yield _listed(resource)
                await _first(changed, self._closed)
        finally:
            self.streams -= 1
            self._left = self.streams == 0

    async def preferred_allocation(
        self, request: pb.PreferredAllocationRequest, context: Context
    ) -> pb.PreferredAllocationResponse:
        """The scheduler's pick for each container, or else the best linked devices."""
        return pb.PreferredAllocationResponse(
            container_responses=[
                pb.ContainerPreferredAllocationResponse(deviceIDs=self._preferred(one))
                for one in request.container_requests
            ]
        )

    async def allocate(self, request: pb.AllocateRequest, context: Context) -> pb.AllocateResponse:
        """What each container gets; INVALID_ARGUMENT when it must not have what it asks for."""
        try:
            grants = [self._grant(one.devices_ids) for one in request.container_requests]
        except GpufleetError as error:
            log.warning("refused %s: %s", self._resource, error)
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        for one in request.container_requests:
            self._plugin.picks = self._plugin.picks.used(self._resource, one.devices_ids)
            self._plugin.allocated(self._resource, one.devices_ids)
        return pb.AllocateResponse(container_responses=[_granted(one) for one in grants])

    def _offered(self) -> Resource:
        return self._plugin.node.offer.resource(self._resource)

    def _preferred(self, request: pb.ContainerPreferredAllocationRequest) -> Sequence[str]:
        return self._plugin.node.preferred(
            self._resource,
            self._plugin.picks,
            request.available_deviceIDs,
            request.must_include_deviceIDs,
            request.allocation_size,
        )

    def _grant(self, ids: Sequence[str]) -> Grant:
        devices, found = self._plugin.node.grant(self._resource, ids)
        return found | self._plugin.extras(self._resource, devices) if self._plugin.extras else found


def identity(path: Path) -> FileIdentity | None:
    """What tells a file from one that was later made under the same name; None without a file."""
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns


def remembered(folder: Path) -> frozenset[str]:
    """The resources that an agent has registered from this folder; none where nothing can be read."""
    try:
        return frozenset((folder / REGISTERED).read_text(errors="replace").split())
    except OSError:
        return frozenset()


def socket_name(resource: str, token: str, folder: Path) -> str:
    """The name of a socket: `gpufleet-gpu-<token>.sock`, shortened where its path would be too long for one.

    Raises GpufleetError (PluginFolderTooLong).
    """
    part, end = resource.rpartition("/")[2], f"-{token}.sock"
    room = _PATH_BYTES - len(bytes(folder)) - 1 - len(_PREFIX) - len(end)
    if len(part) > room:
        digest = hashlib.sha256(part.encode()).hexdigest()[:8]
        part = f"{part[: max(0, room - len(digest))]}{digest}"
    if len(part) > room:
        raise GpufleetError(
            reason="PluginFolderTooLong",
            message=f"a socket in {folder} would have a path of more than {_PATH_BYTES} bytes",
            hint="give the kubelet a shorter root folder",
        )
    return f"{_PREFIX}{part}{end}"


def remove_stale(folder: Path) -> None:
    """Remove sockets of an earlier agent that nobody listens at."""
    for path in folder.glob(f"{_PREFIX}*.sock"):
        with contextlib.closing(sockets.socket(sockets.AF_UNIX)) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
            except OSError as error:
                log.debug("%s is left alone: %s", path, error)


async def _first(*events: asyncio.Event) -> None:
    """Wait until one of the events is set."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for one in waits:
            one.cancel()


def _listed(resource: Resource) -> pb.ListAndWatchResponse:
    return pb.ListAndWatchResponse(
        devices=[
            pb.Device(
                ID=one.id,
                health=HEALTHY if one.usable else UNHEALTHY,
                topology=pb.TopologyInfo(nodes=[pb.NUMANode(ID=one.numa_node)])
                if one.numa_node >= 0
                else None,
            )
            for one in resource.devices
        ]
    )


def _granted(found: Grant) -> pb.ContainerAllocateResponse:
    return pb.ContainerAllocateResponse(
        envs=dict(found.envs),
        mounts=[
            pb.Mount(container_path=one.container_path, host_path=one.host_path, read_only=one.read_only)
            for one in found.mounts
        ],
        devices=[
            pb.DeviceSpec(
                container_path=one.container_path, host_path=one.host_path, permissions=one.permissions
            )
            for one in found.devices
        ],
        annotations=dict(found.annotations),
        cdi_devices=[pb.CDIDevice(name=one) for one in found.cdi_devices],
    )
