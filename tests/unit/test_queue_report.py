"""What `gpufleet queues` and `gpufleet fairshare` show: the numbers of the decision, as a tree."""

from __future__ import annotations

import json

import pytest
from tests.unit.fleets import node, pod

from gpufleet.cli.queue_tables import NO_QUEUES, queues_text, shares_text
from gpufleet.fleet.queues import UNQUEUED, Queue, QueueTree, Quota
from gpufleet.fleet.snapshot import Snapshot, snapshot_of
from gpufleet.scheduling.queue_report import QueueReport, queue_report

GPU = 1000


def queue(name: str, parent: str = "", guarantee: int | None = 0, **rest: object) -> Queue:
    gpu = Quota(guarantee, **rest)  # type: ignore[arg-type]
    return Queue(name=name, rule="test", parent=parent, gpu=gpu)


@pytest.fixture
def fleet() -> Snapshot:
    """A top queue with two below, one without, and one that is broken, on 12 GPUs."""
    tree = QueueTree.of((
        queue("research", guarantee=6 * GPU, limit=8 * GPU),
        queue("vision", "research", 4 * GPU),
        queue("speech", "research"),
        queue("product", guarantee=None, weight=2000),
        queue("lost", "gone"),
    ))  # fmt: skip
    pods = (
        *(pod(f"v{n}", gpus=1, queue="vision", node="a") for n in range(3)),
        *(pod(f"w{n}", gpus=1, queue="vision") for n in range(5)),
        pod("p", gpus=2, queue="product", node="a"),
        pod("other", gpus=1, node="a"),
    )
    return snapshot_of((node(gpus=12),), pods, queues=tree)


def report(snapshot: Snapshot) -> QueueReport:
    return queue_report(snapshot)


def test_amounts_and_pods_of_a_queue_include_those_below(fleet: Snapshot) -> None:
    rows = {row.name: row for row in report(fleet).queues}
    assert list(rows) == ["product", "research", "speech", "vision", UNQUEUED]
    above = rows["research"]
    assert (above.running, above.waiting, above.depth, rows["vision"].depth) == (3, 5, 0, 1)
    assert (above.gpu_milli.allocated, above.gpu_milli.requested) == (3 * GPU, 8 * GPU)
    assert (above.gpu_milli.in_quota, above.gpu_milli.fair_share) == (6 * GPU, 8 * GPU)
    assert rows[UNQUEUED].running == 1


def test_the_tree_is_indented_and_amounts_are_what_people_write(fleet: Snapshot) -> None:
    lines = [line.split("\t") for line in queues_text(report(fleet), "gpu").splitlines()]
    assert lines[0][:6] == ["QUEUE", "GUARANTEE", "LIMIT", "ALLOCATED", "REQUESTED", "FAIR SHARE"]
    assert lines[1][:6] == ["product", "all", "-", "2", "2", "2"]
    assert lines[2][:6] == ["research", "6", "8", "3", "8", "8"]
    assert lines[4][:6] == ["  vision", "4", "-", "3", "8", "8"]


def test_a_share_is_told_as_what_is_guaranteed_and_what_is_borrowed(fleet: Snapshot) -> None:
    lines = [line.split("\t") for line in shares_text(report(fleet), "gpu").splitlines()]
    assert lines[0][:6] == ["QUEUE", "PRIORITY", "WEIGHT", "REQUESTED", "GUARANTEED", "BORROWED"]
    assert lines[0][6:] == ["FAIR SHARE", "ALLOCATED", "USED"]
    assert lines[2] == ["research", "0", "1", "8", "6", "2", "8", "3", "37 %"]
    assert lines[1][2] == "2"


def test_scripts_get_integers_for_every_resource_and_what_is_broken(fleet: Snapshot) -> None:
    data = json.loads(json.dumps(report(fleet).as_json()))
    assert data["capacity"] == {"gpu_milli": 12_000, "cpu_milli": 64_000, "memory_bytes": 512 << 30}
    assert data["broken"] == {"lost": "queue lost names the parent gone, which does not exist"}
    vision = next(row for row in data["queues"] if row["name"] == "vision")
    assert vision["parent"] == "research"
    assert vision["gpu_milli"] == {
        "guarantee": 4000,
        "limit": None,
        "lending_limit": None,
        "weight_milli": 1000,
        "allocated": 3000,
        "requested": 8000,
        "in_quota": 4000,
        "fair_share": 8000,
    }
    assert vision["cpu_milli"]["allocated"] == 300


def test_on_a_terminal_broken_queues_are_told(fleet: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUFLEET_FORCE_TTY", "1")
    assert "lost: queue lost names the parent gone, which does not exist\n" in queues_text(
        report(fleet), "gpu"
    )


def test_without_queues_that_is_said() -> None:
    empty = report(snapshot_of((node(gpus=1),), (pod("p"),)))
    assert queues_text(empty, "gpu") == NO_QUEUES
    assert empty.as_json()["queues"] == []
