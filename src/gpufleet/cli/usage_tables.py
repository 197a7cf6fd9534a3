"""Tables of `gpufleet top`: read the GPUNode objects of a cluster and show GPUs, nodes or pods."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import msgspec

from gpufleet.cli.cluster import client_for
from gpufleet.cli.output import Cell, Column, printable, table
from gpufleet.cli.usage import GPU, NodeUsage, PodUsage, gpus_of, nodes_of, pods_of
from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.fractions import FRACTION_RESOURCE
from gpufleet.kube.client import ApiError
from gpufleet.kube.config import ClusterConfig
from gpufleet.kube.gpunode import GPUNode
from gpufleet.kube.kinds import GPU_NODES, NODES
from gpufleet.kube.objects import Node

GPU_COLUMNS = (
    Column("NODE"),
    Column("GPU", number=True),
    Column("PRODUCT", drop=3),
    Column("UTIL", number=True),
    Column("MEMORY", number=True, drop=1),
    Column("TEMP", number=True, drop=4),
    Column("POWER", number=True, drop=5),
    Column("HEALTH"),
    Column("PODS"),
    Column("MIG", wide=True),
    Column("FRACTIONS", number=True, wide=True),
    Column("UUID", wide=True),
)
NODE_COLUMNS = (
    Column("NODE"),
    Column("POOL", drop=3),
    Column("PRODUCT", drop=2),
    Column("GPUS", number=True),
    Column("ALLOCATED", number=True),
    Column("FREE", number=True),
    Column("UNHEALTHY", number=True),
    Column("UTIL", number=True),
    Column("MEMORY", number=True, drop=1),
    Column("STATE"),
)
POD_COLUMNS = (
    Column("NAMESPACE"),
    Column("POD"),
    Column("NODE", drop=1),
    Column("GPUS"),
    Column("UTIL", number=True),
    Column("MEMORY", number=True),
    Column("DEVICES", wide=True),
)
Row = GPU | NodeUsage | PodUsage


def rows(config: ClusterConfig, what: str, namespace: str | None, sort_by: str) -> list[Row]:
    """Rows about `what` (gpus, nodes, pods) of a cluster; with a namespace only what concerns it."""
    gpu_nodes, nodes = asyncio.run(_read(config))
    found = _rows(what, gpu_nodes, nodes, namespace)
    found.sort(key=lambda row: _sort_key(row, sort_by))
    return found


async def _read(config: ClusterConfig) -> tuple[list[GPUNode], list[Node]]:
    """What the API server has in its cache: good enough to look at, and it costs etcd nothing."""
    async with client_for(config, "top") as client:
        try:
            gpu_nodes, nodes = await asyncio.gather(
                client.list(GPU_NODES, type=GPUNode, resource_version="0"),
                client.list(NODES, type=Node, resource_version="0"),
            )
        except ApiError as error:
            if not error.not_found:
                raise
            raise GpufleetError(
                reason="NoGPUNodes",
                message="this cluster has no GPUNode objects, so nobody reports its GPUs",
                hint="gpufleet must run there; a fleet on this machine: gpufleet up",
            ) from None
    return gpu_nodes.items, nodes.items


def _rows(what: str, gpu_nodes: list[GPUNode], nodes: list[Node], namespace: str | None) -> list[Row]:
    if what == "nodes":
        return list(nodes_of(gpu_nodes, nodes))
    if what == "pods":
        return [pod for pod in pods_of(gpu_nodes) if namespace in (None, pod.namespace)]
    gpus = gpus_of(gpu_nodes)
    return [gpu for gpu in gpus if namespace is None or any(pod.namespace == namespace for pod in gpu.pods)]


def _sort_key(row: Row, by: str) -> Any:
    """Names as they come, numbers with the largest first."""
    match by, row:
        case "util", _:
            return -row.util_percent
        case "memory", _:
            return -row.memory_used_mib
        case "gpus", NodeUsage():
            return -row.gpus
        case "gpus", PodUsage():
            return -len(row.devices)
        case "gpus", GPU():
            return -len(row.pods)
        case _:
            return 0


def text(what: str, rows: Sequence[Row], output: str | None, *, headers: bool, watch: bool) -> str:
    """Rows in the form that was asked for; with `watch` one line of JSON each time."""
    if output == "json":
        data = msgspec.to_builtins(rows)
        return json.dumps(data, indent=None if watch else 2) + "\n"
    if output == "yaml":
        import yaml

        return yaml.safe_dump(msgspec.to_builtins(rows), sort_keys=False)
    if output == "name":
        return "".join(f"{printable(_name(row))}\n" for row in rows)
    columns = {"gpus": GPU_COLUMNS, "nodes": NODE_COLUMNS, "pods": POD_COLUMNS}[what]
    return table(columns, [_cells(row) for row in rows], wide=output == "wide", headers=headers)


def _name(row: Row) -> str:
    match row:
        case GPU():
            return row.uuid
        case NodeUsage():
            return f"node/{row.node}"
        case PodUsage():
            return f"pod/{row.name}"


def _cells(row: Row) -> list[str | Cell]:
    match row:
        case GPU():
            return [
                row.node,
                str(row.index),
                row.product,
                _util(row.util_percent),
                _memory(row.memory_used_mib, row.memory_mib),
                f"{row.temperature_c}C",
                f"{row.power_w}W",
                Cell("ok") if row.healthy else Cell(f"! {row.reason or 'unhealthy'}", "red"),
                ",".join(f"{pod.namespace}/{pod.name}" for pod in row.pods) or "-",
                row.mig or "-",
                f"{row.fraction_milli}m" if row.fraction_milli else "-",
                row.uuid,
            ]
        case NodeUsage():
            return [
                row.node,
                row.pool or "-",
                row.product or "-",
                str(row.gpus),
                str(row.allocated),
                str(row.free),
                Cell(str(row.unhealthy), "red" if row.unhealthy else ""),
                _util(row.util_percent),
                _memory(row.memory_used_mib, row.memory_mib),
                _node_state(row),
            ]
        case PodUsage():
            return [
                row.namespace,
                row.name,
                row.node,
                ",".join(_held(row, *held) for held in sorted(row.resources.items())),
                _util(row.util_percent),
                f"{row.memory_used_mib}Mi",
                ",".join(row.devices),
            ]


def _held(row: PodUsage, resource: str, amount: int) -> str:
    return f"{amount}x{row.fraction_milli}m GPU" if resource == FRACTION_RESOURCE else f"{amount}x{resource}"


def _node_state(row: NodeUsage) -> Cell:
    state = "ready" if row.ready else "! not ready"
    style = "red" if not row.ready else "yellow" if row.cordoned else ""
    return Cell(f"{state},cordoned" if row.cordoned else state, style)


def _util(percent: int) -> Cell:
    style = "dim" if percent < 10 else "green" if percent < 75 else "yellow"
    return Cell(f"{percent}%", style)


def _memory(used_mib: int, total_mib: int) -> str:
    return f"{used_mib / 1024:.0f}/{total_mib / 1024:.0f}Gi"
