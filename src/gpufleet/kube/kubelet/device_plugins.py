"""The device plugin protocol, v1beta1: the service that a plugin is, and its registration with the kubelet.

A plugin serves on a socket in the kubelet's folder and then registers it by name; within that call the
kubelet dials back, so the service must already answer. Calls of the kubelet have no time limit and hold up
the admission of pods.
Source: k8s.io/kubelet pkg/apis/deviceplugin/v1beta1, pkg/kubelet/cm/devicemanager.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Protocol

import grpc
import grpc.aio

from gpufleet.kube.kubelet import device_plugin_pb2 as pb

VERSION = "v1beta1"
KUBELET_SOCKET = "kubelet.sock"
HEALTHY, UNHEALTHY = "Healthy", "Unhealthy"
OPTIONS = pb.DevicePluginOptions(get_preferred_allocation_available=True)
CHANNEL_OPTIONS = (
    ("grpc.default_authority", "localhost"),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
"""Of every channel to the kubelet: a new one starts without the waiting times of those that failed."""

Context = grpc.aio.ServicerContext[Any, Any]


class DevicePluginService(Protocol):
    """What the kubelet asks a plugin for one resource."""

    def list_and_watch(self, request: pb.Empty, context: Context) -> AsyncIterator[pb.ListAndWatchResponse]:
        """The full list of devices, again after each change."""

    async def preferred_allocation(
        self, request: pb.PreferredAllocationRequest, context: Context
    ) -> pb.PreferredAllocationResponse:
        """Which of the available devices each container should get."""

    async def allocate(self, request: pb.AllocateRequest, context: Context) -> pb.AllocateResponse:
        """What each container gets so that it sees its devices."""


async def serve(service: DevicePluginService, socket: Path) -> grpc.aio.Server:
    """Serve a plugin at a socket that does not exist yet. Raises OSError when that cannot be."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_handlers(service),))
    try:
        server.add_insecure_port(f"unix:{socket}")
    except RuntimeError as error:
        raise OSError(f"cannot listen at {socket}: {error}") from error
    await server.start()
    return server


async def register(kubelet: Path, endpoint: str, resource: str, timeout_s: float) -> None:
    """Tell the kubelet at a socket that `endpoint`, a socket next to it, serves a resource.

    Raises grpc.RpcError; the kubelet's own limit for dialling back is 10 s.
    """
    request = pb.RegisterRequest(version=VERSION, endpoint=endpoint, resource_name=resource, options=OPTIONS)
    async with grpc.aio.insecure_channel(f"unix:{kubelet}", options=CHANNEL_OPTIONS) as channel:
        call = channel.unary_unary(
            f"/{VERSION}.Registration/Register",
            request_serializer=pb.RegisterRequest.SerializeToString,
            response_deserializer=pb.Empty.FromString,
        )
        await call(request, timeout=timeout_s)


async def _options(request: pb.Empty, context: Context) -> pb.DevicePluginOptions:
    return OPTIONS


def _handlers(service: DevicePluginService) -> grpc.GenericRpcHandler:
    unary = grpc.unary_unary_rpc_method_handler
    return grpc.method_handlers_generic_handler(
        f"{VERSION}.DevicePlugin",
        {
            "GetDevicePluginOptions": unary(
                _options, pb.Empty.FromString, pb.DevicePluginOptions.SerializeToString
            ),
            "ListAndWatch": grpc.unary_stream_rpc_method_handler(
                service.list_and_watch, pb.Empty.FromString, pb.ListAndWatchResponse.SerializeToString
            ),
            "GetPreferredAllocation": unary(
                service.preferred_allocation,
                pb.PreferredAllocationRequest.FromString,
                pb.PreferredAllocationResponse.SerializeToString,
            ),
            "Allocate": unary(
                service.allocate, pb.AllocateRequest.FromString, pb.AllocateResponse.SerializeToString
            ),
        },
    )
