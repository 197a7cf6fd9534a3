"""The pod resources API, v1: which devices the kubelet has given to which container.

It is the truth about who holds what, for the exporter and for the check of the scheduler's picks. The kubelet
allows 100 calls a second (bursts of 10) and lists a device once per NUMA node; here each resource of a
container is one value with each id once. Init containers that have ended are not listed.
Source: k8s.io/kubelet pkg/apis/podresources/v1, pkg/kubelet/apis/podresources.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TypeVar

import grpc
import grpc.aio
import msgspec

from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube.kubelet import pod_resources_pb2 as pb
from gpufleet.kube.kubelet.device_plugins import CHANNEL_OPTIONS

SOCKET = Path("/var/lib/kubelet/pod-resources/kubelet.sock")
_SERVICE = "v1.PodResourcesLister"
_OPTIONS = (*CHANNEL_OPTIONS, ("grpc.max_receive_message_length", 64 << 20))


class HeldDevices(msgspec.Struct, frozen=True):
    """Device ids of one resource, sorted, and the NUMA nodes that they are on."""

    resource: str
    ids: tuple[str, ...]
    numa_nodes: tuple[int, ...] = ()


class ClaimedDevice(msgspec.Struct, frozen=True):
    """A device of a resource claim (DRA), as its driver names it."""

    namespace: str
    claim: str
    driver: str
    pool: str
    device: str
    cdi_devices: tuple[str, ...] = ()
    share_id: str = ""


class ContainerDevices(msgspec.Struct, frozen=True):
    """What a container holds."""

    name: str
    devices: tuple[HeldDevices, ...] = ()
    claimed: tuple[ClaimedDevice, ...] = ()


class PodDevices(msgspec.Struct, frozen=True):
    """What the containers of a pod hold."""

    namespace: str
    name: str
    containers: tuple[ContainerDevices, ...] = ()


class _Message(Protocol):
    def SerializeToString(self) -> bytes: ...  # noqa: N802  the name that protobuf gives it


_Answer = TypeVar("_Answer")


class PodResources:
    """A client of one kubelet. It may be asked before the kubelet runs and across its restarts.

    Every call raises GpufleetError (PodResourcesUnavailable) when there is no answer within `timeout_s`.
    """

    def __init__(self, socket: Path = SOCKET, timeout_s: float = 5.0) -> None:
        self._socket = socket
        self._timeout_s = timeout_s
        self._channel = grpc.aio.insecure_channel(f"unix:{socket}", options=_OPTIONS)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection."""
        await self._channel.close()

    async def pods(self) -> tuple[PodDevices, ...]:
        """Every pod of the node, also those without devices."""
        answer = await self._call(
            "List", pb.ListPodResourcesRequest(), pb.ListPodResourcesResponse.FromString
        )
        return tuple(_pod(one) for one in answer.pod_resources)

    async def pod(self, namespace: str, name: str) -> PodDevices | None:
        """One pod; None when the kubelet does not have it."""
        request = pb.GetPodResourcesRequest(pod_namespace=namespace, pod_name=name)
        try:
            answer = await self._call("Get", request, pb.GetPodResourcesResponse.FromString)
        except _NotFoundError:
            return None
        return _pod(answer.pod_resources)

    async def devices(self) -> tuple[HeldDevices, ...]:
        """Every healthy device that plugins have announced, in use or not, by resource."""
        request = pb.AllocatableResourcesRequest()
        parse = pb.AllocatableResourcesResponse.FromString
        return _merged((await self._call("GetAllocatableResources", request, parse)).devices)

    async def _call(self, method: str, request: _Message, parse: Callable[[bytes], _Answer]) -> _Answer:
        call: grpc.aio.UnaryUnaryMultiCallable[_Message, _Answer] = self._channel.unary_unary(
            f"/{_SERVICE}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=parse,
        )
        try:
            return await call(request, timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            details = error.details() or error.code().name
            kind = _NotFoundError if details.endswith("not found") else GpufleetError
            raise kind(
                reason="PodResourcesUnavailable",
                message=f"the kubelet does not answer {method} at {self._socket}: {details}",
                hint="is the kubelet running, and its pod-resources folder mounted?",
            ) from error


class _NotFoundError(GpufleetError):
    """The kubelet has no such pod; it says so in words only."""


def _pod(message: pb.PodResources) -> PodDevices:
    containers = tuple(
        ContainerDevices(one.name, _merged(one.devices), tuple(_claimed(one.dynamic_resources)))
        for one in message.containers
    )
    return PodDevices(message.namespace, message.name, containers)


def _merged(messages: Iterable[pb.ContainerDevices]) -> tuple[HeldDevices, ...]:
    """One value per resource, for the kubelet has one message per NUMA node, or even per device."""
    ids: dict[str, set[str]] = {}
    numa: dict[str, set[int]] = {}
    for one in messages:
        ids.setdefault(one.resource_name, set()).update(one.device_ids)
        numa.setdefault(one.resource_name, set()).update(node.ID for node in one.topology.nodes)
    return tuple(HeldDevices(name, tuple(sorted(ids[name])), tuple(sorted(numa[name]))) for name in ids)


def _claimed(messages: Iterable[pb.DynamicResource]) -> Iterable[ClaimedDevice]:
    for claim in messages:
        for one in claim.claim_resources:
            yield ClaimedDevice(
                claim.claim_namespace,
                claim.claim_name,
                one.driver_name,
                one.pool_name,
                one.device_name,
                tuple(device.name for device in one.cdi_devices),
                one.share_id,
            )
