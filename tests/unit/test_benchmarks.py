"""What a benchmark says of itself: whose failure it was, what was measured, where it is kept."""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
from pathlib import Path
from unittest import mock

import psutil
import pytest
from benchmarks import decide, keeping, mig_planner, openb, rounds, scheduler
from benchmarks.fleet import Fleet


def test_a_watch_that_fails_ends_the_round_with_its_own_error() -> None:
    ended: list[str] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("work")

    async def fails() -> None:
        raise ConnectionError("the observer lost its watch")

    async def story() -> None:
        with pytest.raises(ConnectionError, match="the observer lost its watch"):
            await asyncio.wait_for(rounds.watched(work(), fails(), asyncio.sleep(60)), 10)

    asyncio.run(story())
    assert ended == ["work"]


def test_work_that_ends_ends_what_watches_it() -> None:
    async def work() -> int:
        return 7

    assert asyncio.run(rounds.watched(work(), asyncio.sleep(60))) == 7


def test_gangs_are_named_within_their_namespace() -> None:
    keys = {pod.gang_key for pod in decide.gangs(32).unbound.values()}
    assert keys == {"bench/gang-0000", "bench/gang-0001"}


def test_two_runs_of_a_day_are_both_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "machine", dict)
    options = argparse.Namespace(preset="large", silent_nodes=False, pods=1, results=tmp_path)
    path = scheduler.write_results(options, [])
    measured = path.stem.removeprefix("scheduler-fleet-")
    assert len(measured) == len("2026-01-31-235959")


def test_the_processor_time_of_a_program_includes_that_of_a_child_that_has_ended() -> None:
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'sum(range(10**7))'])"
    wait = "print('done', flush=True); input()"
    argv = [sys.executable, "-c", f"{child}; {wait}"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"done\n"
        one = Fleet(mock.Mock(), mock.Mock(), {})
        one.running["program"] = process
        own = psutil.Process(process.pid).cpu_times()
        assert one.cpu_seconds()["program"] > own.user + own.system
        process.communicate(b"\n")


def test_the_questions_to_the_mig_planner_are_mixed_and_the_same_for_a_seed() -> None:
    row, again = (mig_planner.measure(2, 40, seed=3) for _ in range(2))
    assert 0 < row["feasible"] < 1
    assert row["feasible"] == again["feasible"]
    assert 0 < row["p50_ms"] <= row["p99_ms"] <= row["longest_ms"]


def test_a_policy_that_is_further_from_what_was_published_than_its_bar_is_told() -> None:
    table = {
        ("default", openb.LABELS[policy], load): [90.0, 92.0]
        for policy in ("bestfit", "fgd")
        for load in openb.LOADS
    }
    good = openb.Row("default", "bestfit", {100: [91.2], 130: [90.8]}, 0.5)
    bad = openb.Row("default", "fgd", {100: [91.0], 130: [91.3, 91.3]}, 0.5)
    text = openb.report([good, bad], table)
    assert "+0.20 / -0.20" in text
    assert "+0.00 / +0.30" in text
    assert [line.split()[0] for line in text.splitlines() if "MISSED" in line] == ["fgd"]
    kept = openb.as_json(bad, table)["130"]
    assert (kept["mean"], kept["published"], kept["sd"]) == (91.3, 91.0, 0.0)
