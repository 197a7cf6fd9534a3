"""Small traces by hand, also as files in the form of openb."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from pathlib import Path

from gpufleet.fleet.demands import Demand
from gpufleet.simulator.traces import Request, TraceNode, TracePod


def node(name: str, gpus: int = 2, model: str = "T4", cpu: int = 96, memory: int = 1024) -> TraceNode:
    """A node; CPU in whole cores, memory in GiB."""
    return TraceNode(name, cpu * 1000, memory * 1024, gpus, model)


def pod(
    name: str, gpus: int = 1, milli: int = 1000, cpu: int = 1, memory: int = 1, models: str = ""
) -> TracePod:
    """A pod; CPU in whole cores, memory in GiB, `milli` of each GPU."""
    allowed = tuple(models.split("|")) if models else ()
    shape = Demand(cpu * 1000, gpus, milli if gpus else 0, allowed)
    return TracePod(name, Request(shape, memory * 1024))


def write_openb(folder: Path, nodes: Iterable[TraceNode], variants: dict[str, list[TracePod]]) -> Path:
    """Write files as openb has them below a folder of traces; the folder."""
    below = folder / "openb"
    below.mkdir(parents=True)
    lines = [",".join(map(str, one[:5])) for one in nodes]
    _write(below / "openb_node_list_gpu_node.csv.gz", "sn,cpu_milli,memory_mib,gpu,model", lines)
    for variant, pods in variants.items():
        lines = []
        for name, (shape, memory) in pods:
            models = "|".join(shape.models)
            lines.append(f"{name},{shape.cpu_milli},{memory},{shape.gpus},{shape.gpu_milli},{models}")
        head = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec"
        _write(below / f"openb_pod_list_{variant}.csv.gz", head, lines)
    return folder


def _write(path: Path, head: str, lines: list[str]) -> None:
    with gzip.open(path, "wt") as stream:
        stream.write("\n".join([head, *lines]) + "\n")
