"""The openb trace: the nodes and pods of a production GPU cluster, and variants of its load.

1,213 nodes with 6,212 GPUs of six models; 8,152 pods in the variant `default`, in others the shares of GPU
sharing, of pods with several GPUs, of pods bound to models, or of pods without GPUs differ.
Source: Weng et al., USENIX ATC 2023 (Alibaba, cluster-trace-gpu-v2023).
"""

from __future__ import annotations

import csv
import gzip
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from gpufleet.fleet.demands import Demand
from gpufleet.fleet.errors import GpufleetError
from gpufleet.simulator.published import VARIANTS
from gpufleet.simulator.traces import Request, TraceNode, TracePod, capacity_milli, demand_milli

ARRIVED_PERCENT = 130
"""Demand of a run in percent of the nodes' GPUs."""

_NODES = "openb_node_list_gpu_node.csv.gz"
_PODS = "openb_pod_list_{}.csv.gz"


class Trace(NamedTuple):
    """One variant as it was published."""

    variant: str
    nodes: tuple[TraceNode, ...]
    pods: tuple[TracePod, ...]


class Arrivals(NamedTuple):
    """Nodes in the order that breaks ties, and pods in the order in which they arrive."""

    nodes: tuple[TraceNode, ...]
    pods: tuple[TracePod, ...]


def find_traces(given: Path | None, environment: Mapping[str, str], here: Path) -> Path:
    """The folder of the openb files: in the given folder of traces, else in `traces` of $GPUFLEET_SHARED,
    else of the folder `shared` beside `here`. Raises GpufleetError where it has no openb trace.
    """
    shared = environment.get("GPUFLEET_SHARED")
    folder = given or (Path(shared) if shared else here.parent / "shared") / "traces"
    for found in (folder / "openb", folder):
        if (found / _NODES).is_file():
            return found
    raise GpufleetError(
        reason="TracesNotFound",
        message=f"{folder} has no openb trace ({_NODES})",
        hint="name the folder of the traces: --traces DIR, or GPUFLEET_SHARED for the folder above it",
    )


def variants(folder: Path) -> tuple[str, ...]:
    """The variants whose files the folder has: the published ones first, in their order."""
    before, after = _PODS.split("{}")
    found = {path.name.removeprefix(before).removesuffix(after) for path in folder.glob(_PODS.format("*"))}
    return tuple([name for name in VARIANTS if name in found] + sorted(found - set(VARIANTS)))


def read_trace(folder: Path, variant: str) -> Trace:
    """A variant with its nodes. Raises GpufleetError for one that the folder does not have, and for a file
    that is no such trace.
    """
    path = folder / _PODS.format(variant)
    if not path.is_file():
        raise GpufleetError(
            reason="UnknownVariant",
            message=f"{folder} has no variant {variant!r} of openb",
            hint=f"there are: {', '.join(variants(folder))}",
        )
    nodes = tuple(
        TraceNode(row["sn"], int(row["cpu_milli"]), int(row["memory_mib"]), int(row["gpu"]), row["model"])
        for row in _rows(folder / _NODES, ("sn", "cpu_milli", "memory_mib", "gpu", "model"))
    )
    columns = ("name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli")
    pods = tuple(_pod(row) for row in _rows(path, columns))
    if not capacity_milli(nodes) or not demand_milli(pods):
        raise _bad(path, "no node of its list has a GPU, or no pod asks for one")
    return Trace(variant, nodes, pods)


def arrivals(trace: Trace, seed: int) -> Arrivals:
    """The run of a seed, made as the published ones are, with random numbers of our own.

    Pods by name, shuffled. Where their demand is below 130 % of the GPUs, clones of pods drawn from the trace
    follow, until the next one would exceed it (by the milli-GPU of one of its devices, so that a pod with
    several may overshoot a little); where it is above, pods are removed at random until it is not. Ties are
    broken by one random order of nodes for the whole run, so the nodes come in that order.
    """
    draw = random.Random(seed)
    original = sorted(trace.pods)
    pods = original.copy()
    draw.shuffle(pods)
    target, demand = ARRIVED_PERCENT * capacity_milli(trace.nodes), 100 * demand_milli(pods)
    while demand > target:
        demand -= 100 * pods.pop(draw.randrange(len(pods))).total_milli
    if demand < target and demand > 0:
        pods += _clones(original, (target - demand) // 100, draw)
    nodes = sorted(trace.nodes)
    draw.shuffle(nodes)
    return Arrivals(tuple(nodes), tuple(pods))


def _clones(original: Sequence[TracePod], room_milli: int, draw: random.Random) -> list[TracePod]:
    found: list[TracePod] = []
    while (pod := draw.choice(original)).request.shape.gpu_milli <= room_milli:
        room_milli -= pod.total_milli
        found.append(pod._replace(name=f"{pod.name}-clone-{len(found)}"))
    return found


def _pod(row: Mapping[str, str]) -> TracePod:
    models = tuple(model for model in (row.get("gpu_spec") or "").split("|") if model)
    shape = Demand(int(row["cpu_milli"]), int(row["num_gpu"]), int(row["gpu_milli"]), models)
    return TracePod(row["name"], Request(shape, int(row["memory_mib"])))


def _rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """The lines of a compressed table that has at least these columns, with numbers where they belong."""
    try:
        with gzip.open(path, "rt", newline="") as stream:
            rows = list(csv.DictReader(stream))
        for row in rows:
            for column in columns:
                if column not in ("sn", "name", "model"):
                    int(row[column])
    except (OSError, EOFError, UnicodeDecodeError, ValueError, TypeError, KeyError, csv.Error) as error:
        raise _bad(path, f"not a compressed table with {', '.join(columns)}: {error}") from None
    return rows


def _bad(path: Path, why: str) -> GpufleetError:
    return GpufleetError(reason="BadTrace", message=f"{path} is no trace: {why}", hint="fetch the file again")
