"""A load as a file: one JSON object a line, `node`, `job` or `queue`, in any order; also gzipped.

Amounts are integers: milli-CPU, MiB, GPUs, milli-GPU, seconds from any beginning. Every field without a
default must be there, and a field that nobody knows is an error. docs/concepts/simulator.md has the table.
"""

from __future__ import annotations

import gzip
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from gpufleet.fleet.demands import MILLI, Demand
from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.queues import UNIT_WEIGHT, Queue, QueueTree, Quota
from gpufleet.simulator.traces import Job, Load, Request, TraceNode

RULE = "a line of the file"
_GZIP = b"\x1f\x8b"
_EXAMPLE = "gpufleet simulate synthetic --write FILE writes an example"
_SNAPSHOT = b'"format":"gpufleet.dev/snapshot"'

_Count = Annotated[int, msgspec.Meta(ge=0)]
_AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]
_Part = Annotated[int, msgspec.Meta(ge=1, lt=MILLI)]
_Name = Annotated[str, msgspec.Meta(min_length=1)]


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A struct that refuses fields which it does not have."""


class NodeLine(_Strict, frozen=True):
    """Nodes that are alike; with `count` above 1 they are called `name-0` and so on."""

    name: _Name
    cpu_milli: _AtLeastOne
    memory_mib: _AtLeastOne
    gpus: _Count = 0
    product: str = ""
    labels: dict[str, str] = {}
    count: _AtLeastOne = 1


class JobLine(_Strict, frozen=True):
    """A job: `pods` that are alike, each with `gpus` whole GPUs or `gpu_milli` of one."""

    name: _Name
    at_s: _Count
    duration_s: _AtLeastOne
    pods: _AtLeastOne = 1
    cpu_milli: _Count = 0
    memory_mib: _Count = 0
    gpus: _Count = 0
    gpu_milli: _Part | None = None
    products: tuple[str, ...] = ()
    priority: int = 0
    queue: str = ""


class QueueLine(_Strict, frozen=True):
    """A queue of GPUs; without a limit it may hold all there are."""

    name: _Name
    parent: str = ""
    guarantee_gpus: _Count = 0
    limit_gpus: _Count | None = None
    weight: _Count = 1
    priority: int = 0


class _Line(_Strict, frozen=True):
    node: NodeLine | None = None
    job: JobLine | None = None
    queue: QueueLine | None = None


def read_load(path: Path) -> Load:
    """The load of a file. Raises GpufleetError: FileUnreadable, and those of `load_of`."""
    try:
        data = path.read_bytes()
        return load_of(gzip.decompress(data) if data.startswith(_GZIP) else data, str(path))
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or error
        raise GpufleetError(
            reason="FileUnreadable", message=f"cannot read {path}: {why}", hint=_EXAMPLE
        ) from None


def load_of(data: bytes, source: str) -> Load:
    """The load that the lines of a file are; `source` names it in errors. Raises GpufleetError (LoadInvalid)
    with the line and the field.
    """
    nodes: list[TraceNode] = []
    jobs: list[Job] = []
    queues: list[Queue] = []
    where: dict[str, int] = {}
    for number, line in _lines(data, source):
        if line.node is not None:
            nodes += _nodes(line.node)
        elif line.job is not None:
            if line.job.gpus and line.job.gpu_milli is not None:
                raise _invalid(source, number, "a job asks for gpus or for gpu_milli, not for both")
            jobs.append(_job(line.job))
            where[line.job.name] = number
        elif line.queue is not None:
            queues.append(_queue(line.queue))
    load = Load(tuple(nodes), tuple(sorted(jobs, key=lambda job: job.arrival_s)), tuple(queues))
    for line_number, problem in _problems(load, where):
        raise _invalid(source, line_number, problem)
    return load


def write_load(load: Load, path: Path) -> None:
    """Write a load that `read_load` reads, gzipped where the name ends with .gz. Raises GpufleetError
    (FileSystem).
    """
    data = b"".join(msgspec.json.encode(line) + b"\n" for line in _written(load))
    try:
        path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    except OSError as error:
        raise GpufleetError(
            reason="FileSystem",
            message=f"cannot write {path}: {error.strerror}",
            hint="name a file in a folder that exists and that you may write to",
        ) from None


def _lines(data: bytes, source: str) -> Iterator[tuple[int, _Line]]:
    if _SNAPSHOT in data[:100]:
        raise GpufleetError(
            reason="LoadInvalid",
            message=f"{source} is a saved snapshot: it does not say when its pods come and how long they run",
            hint=f"gpufleet decide {source} shows what the scheduler does with it; {_EXAMPLE} of a load",
        )
    decoder = msgspec.json.Decoder(_Line)
    for number, text in enumerate(data.splitlines(), start=1):
        if not text.strip():
            continue
        try:
            line = decoder.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _invalid(source, number, str(error)) from None
        if sum(part is not None for part in (line.node, line.job, line.queue)) != 1:
            raise _invalid(source, number, "a line is one of node, job and queue")
        yield number, line


def _problems(load: Load, where: Mapping[str, int]) -> Iterator[tuple[int, str]]:
    """What is wrong with lines that are fine one by one: the line of a job, else 0, and why."""
    if not load.nodes:
        yield 0, "it has no line with a node"
    for name, count in Counter(node.name for node in load.nodes).items():
        if count > 1:
            yield 0, f"{count} nodes are named {name}; names must differ"
    for name, count in Counter(job.name for job in load.jobs).items():
        if count > 1:
            yield where[name], f"{count} jobs are named {name}; names must differ - at `$.job.name`"
    tree = QueueTree.of(load.queues)
    yield from ((0, problem) for problem in tree.problems.values())
    for job in load.jobs:
        if job.queue and (job.queue not in tree.queues or not tree.is_leaf(job.queue)):
            why = "has queues below it" if job.queue in tree.queues else "has no line of its own"
            yield where[job.name], f"queue {job.queue} of job {job.name} {why} - at `$.job.queue`"


def _nodes(line: NodeLine) -> Iterable[TraceNode]:
    rest = (line.cpu_milli, line.memory_mib, line.gpus, line.product, tuple(sorted(line.labels.items())))
    if line.count == 1:
        return [TraceNode(line.name, *rest)]
    width = len(str(line.count - 1))
    return [TraceNode(f"{line.name}-{number:0{width}}", *rest) for number in range(line.count)]


def _job(line: JobLine) -> Job:
    gpus, milli = (line.gpus, MILLI if line.gpus else 0) if line.gpu_milli is None else (1, line.gpu_milli)
    request = Request(Demand(line.cpu_milli, gpus, milli, line.products), line.memory_mib)
    return Job(line.name, line.at_s, line.duration_s, line.pods, request, line.priority, line.queue)


def _queue(line: QueueLine) -> Queue:
    limit = None if line.limit_gpus is None else line.limit_gpus * MILLI
    quota = Quota(line.guarantee_gpus * MILLI, limit, weight=line.weight * UNIT_WEIGHT)
    return Queue(name=line.name, rule=RULE, parent=line.parent, gpu=quota, priority=line.priority)


def _written(load: Load) -> Iterator[dict[str, Any]]:
    for queue in load.queues:
        limit = None if queue.gpu.limit is None else queue.gpu.limit // MILLI
        guarantee, weight = (queue.gpu.guarantee or 0) // MILLI, queue.gpu.weight // UNIT_WEIGHT
        yield {
            "queue": QueueLine(queue.name, queue.parent, guarantee, limit, weight, queue.priority),
        }
    for node in load.nodes:
        yield {
            "node": NodeLine(
                node.name, node.cpu_milli, node.memory_mib, node.gpus, node.model, dict(node.labels)
            )
        }
    for job in load.jobs:
        shape = job.request.shape
        whole = shape.gpu_milli == MILLI or not shape.gpus
        yield {
            "job": JobLine(
                job.name,
                job.arrival_s,
                job.duration_s,
                job.pods,
                shape.cpu_milli,
                job.request.memory_mib,
                shape.gpus if whole else 0,
                None if whole else shape.gpu_milli,
                shape.models,
                job.priority,
                job.queue,
            )
        }


def _invalid(source: str, line: int, why: str) -> GpufleetError:
    where = f"line {line} of {source}" if line else source
    return GpufleetError(reason="LoadInvalid", message=f"{where}: {why}", hint=_EXAMPLE)
