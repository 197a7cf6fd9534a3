"""Loads as files: what is written is read again, and a mistake is told with its line and field."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from gpufleet.fleet.demands import Demand
from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.queues import Queue, Quota
from gpufleet.fleet.snapshot import Snapshot
from gpufleet.scheduling.recording import Recording, to_bytes
from gpufleet.simulator.loadfile import RULE, load_of, read_load, write_load
from gpufleet.simulator.synthetic import synthetic_load
from gpufleet.simulator.traces import Job, Load, Request, TraceNode

NODE: dict[str, Any] = {"name": "n", "cpu_milli": 4000, "memory_mib": 1024}
JOB: dict[str, Any] = {"name": "j", "at_s": 0, "duration_s": 10}
TOP, BELOW = {"queue": {"name": "p"}}, {"queue": {"name": "q", "parent": "p"}}


def lines(*parts: dict[str, Any] | str) -> bytes:
    return b"".join((part if isinstance(part, str) else json.dumps(part)).encode() + b"\n" for part in parts)


def test_every_field_is_read_and_lines_may_be_in_any_order() -> None:
    data = lines(
        {"job": {**JOB, "name": "late", "at_s": 7, "pods": 2, "gpus": 4, "cpu_milli": 100, "memory_mib": 5,
                 "products": ["A", "B"], "priority": -3, "queue": "team"}},
        "",
        {"job": {**JOB, "name": "part", "at_s": 3, "gpu_milli": 250}},
        {"job": {**JOB, "name": "cpu", "at_s": 5}},
        {"node": {**NODE, "gpus": 8, "product": "A", "labels": {"zone": "z", "rack": "r"}}},
        {"node": {**NODE, "name": "m", "count": 11}},
        {"queue": {"name": "all"}},
        {"queue": {"name": "team", "parent": "all", "guarantee_gpus": 2, "limit_gpus": 5, "weight": 3,
                   "priority": 9}},
    )  # fmt: skip
    load = load_of(data, "x")
    assert load.jobs == (
        Job("part", 3, 10, 1, Request(Demand(0, 1, 250), 0)),
        Job("cpu", 5, 10, 1, Request(Demand(0, 0, 0), 0)),
        Job("late", 7, 10, 2, Request(Demand(100, 4, 1000, ("A", "B")), 5), -3, "team"),
    )
    assert load.nodes[0] == TraceNode("n", 4000, 1024, 8, "A", (("rack", "r"), ("zone", "z")))
    assert [one.name for one in load.nodes[1:]] == [f"m-{number:02}" for number in range(11)]
    assert load.queues == (
        Queue(name="all", rule=RULE),
        Queue(name="team", rule=RULE, parent="all", gpu=Quota(2000, 5000, weight=3000), priority=9),
    )


@pytest.mark.parametrize("name", ["load.jsonl", "load.jsonl.gz"])
def test_what_is_written_is_read_again(tmp_path: Path, name: str) -> None:
    load = synthetic_load(5, 2, seed=1)
    queues = (Queue(name="q", rule=RULE, gpu=Quota(1000, 2000, weight=2000), priority=1),)
    jobs = (load.jobs[0]._replace(queue="q", priority=4), *load.jobs[1:])
    labelled = load.nodes[0]._replace(labels=(("zone", "z"),))
    whole = Load((labelled, *load.nodes[1:]), jobs, queues)
    write_load(whole, tmp_path / name)
    assert read_load(tmp_path / name) == whole
    assert (tmp_path / name).read_bytes().startswith(b"\x1f\x8b") == name.endswith(".gz")


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        (["{"], "line 1 of x: Input data was truncated"),
        (["[]"], "line 1 of x: Expected `object`"),
        (
            [{"node": NODE}, "", {"job": {**JOB, "at": 1}}],
            "line 3 of x: Object contains unknown field `at` - at `$.job`",
        ),
        ([{"node": NODE}, {"jobs": JOB}], "line 2 of x: Object contains unknown field `jobs`"),
        ([{"node": NODE, "job": JOB}], "line 1 of x: a line is one of node, job and queue"),
        ([{}], "line 1 of x: a line is one of node, job and queue"),
        (
            [{"node": {"name": "n", "cpu_milli": 1}}],
            "line 1 of x: Object missing required field `memory_mib` - at `$.node`",
        ),
        ([{"node": {**NODE, "cpu_milli": "4"}}], "Expected `int`, got `str` - at `$.node.cpu_milli`"),
        ([{"node": {**NODE, "gpus": -1}}], "Expected `int` >= 0 - at `$.node.gpus`"),
        ([{"job": {**JOB, "duration_s": 0}}], "Expected `int` >= 1 - at `$.job.duration_s`"),
        ([{"job": {**JOB, "at_s": 1.5}}], "Expected `int`, got `float` - at `$.job.at_s`"),
        ([{"job": {**JOB, "gpu_milli": 1000}}], "Expected `int` <= 999 - at `$.job.gpu_milli`"),
        (
            [{"job": {**JOB, "gpus": 1, "gpu_milli": 500}}],
            "line 1 of x: a job asks for gpus or for gpu_milli, not for both",
        ),
        ([{"job": JOB}], "x: it has no line with a node"),
        ([], "x: it has no line with a node"),
        ([{"node": NODE}, {"node": NODE}], "x: 2 nodes are named n"),
        ([{"node": NODE}, {"job": JOB}, {"job": JOB}], "line 3 of x: 2 jobs are named j"),
        (
            [{"node": NODE}, {"job": {**JOB, "queue": "q"}}],
            "line 2 of x: queue q of job j has no line of its own",
        ),
        ([{"node": NODE}, BELOW], "queue q names the parent p, which does not exist"),
        (
            [{"node": NODE}, TOP, BELOW, {"job": {**JOB, "queue": "p"}}],
            "line 4 of x: queue p of job j has queues below it",
        ),
    ],
)
def test_a_mistake_is_told_with_its_line_and_field(parts: list[dict[str, Any] | str], told: str) -> None:
    with pytest.raises(GpufleetError) as raised:
        load_of(lines(*parts), "x")
    assert raised.value.reason == "LoadInvalid"
    assert told in raised.value.message
    assert "--write FILE" in raised.value.hint


@pytest.mark.parametrize("compressed", [False, True])
def test_a_saved_snapshot_is_told_from_a_load(tmp_path: Path, *, compressed: bool) -> None:
    path = tmp_path / "snapshot"
    path.write_bytes(to_bytes(Recording(Snapshot()), compressed=compressed))
    with pytest.raises(GpufleetError, match="is a saved snapshot: it does not say when") as raised:
        read_load(path)
    assert f"gpufleet decide {path}" in raised.value.hint


def test_files_that_cannot_be_read_or_written_are_errors(tmp_path: Path) -> None:
    with pytest.raises(GpufleetError, match="No such file") as raised:
        read_load(tmp_path / "none")
    assert raised.value.reason == "FileUnreadable"
    (tmp_path / "cut.gz").write_bytes(gzip.compress(lines({"node": NODE}))[:-9])
    with pytest.raises(GpufleetError, match="cannot read"):
        read_load(tmp_path / "cut.gz")
    with pytest.raises(GpufleetError, match="cannot write"):
        write_load(Load((), ()), tmp_path / "no" / "load.jsonl")
