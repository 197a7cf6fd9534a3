"""`gpufleet plan what-if` on a saved snapshot: the contract for scripts, and a text for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.unit.fleets import node, pod
from tests.unit.test_cli_snapshots import Run, run

from gpufleet.cli.recordings import write_recording
from gpufleet.fleet.snapshot import snapshot_of
from gpufleet.scheduling.cycle import Policy
from gpufleet.scheduling.recording import Recording

__all__ = ["run"]

LABELS = {"nvidia.com/gpu.product": "H100", "gpufleet.dev/pool": "train"}
JOB = """
apiVersion: batch/v1
kind: Job
metadata: {name: train}
spec:
  parallelism: 2
  template:
    spec: {containers: [{name: main, resources: {limits: {nvidia.com/gpu: 2}}}]}
"""


@pytest.fixture
def saved(tmp_path: Path) -> str:
    """Two nodes, one of them full, and a pod that waits."""
    nodes = (node("a", gpus=2, labels=LABELS), node("b", gpus=4, labels=LABELS))
    pods = (pod("there", gpus=2, node="a", owner="rs"), pod("small", gpus=1), pod("big", gpus=4, created=1.0))
    file = str(tmp_path / "cluster.json.gz")
    write_recording(Recording(snapshot_of(nodes, pods)), file)
    return file


def asked(run: Run, saved: str, *arguments: str) -> dict[str, Any]:
    code, out, err = run("plan", "what-if", "--snapshot", saved, "-o", "json", *arguments)
    assert (code, err) == (0, "")
    found: dict[str, Any] = json.loads(out)
    return found


def test_the_contract_for_scripts(run: Run, saved: str) -> None:
    found = asked(run, saved, "--add-nodes", "like=b,count=1")
    assert list(found) == ["before", "after", "changed"]
    for side in ("before", "after"):
        assert list(found[side]) == ["nodes", "pods", "gpus", "reasons"]
    assert found["before"]["pods"] == {
        "running": 1,
        "placed": 1,
        "soon": 0,
        "evicted": 0,
        "pending": 1,
        "other": 0,
        "gone": 0,
    }
    assert found["after"]["gpus"] == [
        {
            "pool": "train",
            "product": "H100",
            "resource": "nvidia.com/gpu",
            "nodes": 3,
            "total": 10,
            "used": 7,
            "free": 3,
        }
    ]
    (change,) = found["changed"]
    assert change["pod"] == "default/big"
    assert (change["before"]["state"], change["after"]["state"]) == ("pending", "placed")
    assert change["after"]["node"] == "b (new 1)"
    assert "InsufficientResource" in {reason["code"] for reason in change["before"]["reasons"]}
    assert list(change["after"]) == ["state", "node", "beneficiary", "reasons"]


def test_people_see_what_would_be_different(run: Run, saved: str) -> None:
    code, out, err = run("plan", "what-if", "--snapshot", saved, "--remove-node", "a")
    assert (code, err) == (0, "")
    rows = [line.split("\t") for line in out.splitlines()]
    assert ["nodes", "2", "1"] in rows
    assert ["nvidia.com/gpu H100 (pool train) used", "3 of 6", "3 of 4"] in rows
    assert "default/there: running on a -> placed on b\n  OnlyFit  no other node fits than b\n" in out


def test_pods_that_change_in_one_way_are_told_together(run: Run, saved: str, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(JOB.replace("parallelism: 2", "parallelism: 9").replace("gpu: 2", "gpu: 99"))
    code, out, _ = run("plan", "what-if", "--snapshot", saved, "-f", str(file))
    assert code == 0
    named = ", ".join(f"default/train-{number}" for number in range(4))
    assert f"\n{named} and 5 more: not there -> pending\n  ExceedsNodeCapacity  " in out


def test_the_taint_of_a_resource_is_tolerated_where_admission_does_it(run: Run, tmp_path: Path) -> None:
    file, saved = tmp_path / "job.yaml", str(tmp_path / "s.json")
    file.write_text(JOB)
    tainted = node("a", gpus=4, taints=("nvidia.com/gpu=present:NoSchedule",))
    for there, states, words in (
        (
            pod("there", gpus=1, node="a", tolerations=["nvidia.com/gpu"]),
            (1, 1),
            "the taint nvidia.com/gpu is",
        ),
        (pod("there", gpus=1, node="a"), (0, 2), ""),
    ):
        write_recording(Recording(snapshot_of((tainted,), (there,))), saved)
        _, out, err = run("plan", "what-if", "--snapshot", saved, "-f", str(file), "-o", "json")
        pods = json.loads(out)["after"]["pods"]
        assert (pods["placed"], pods["pending"]) == states
        assert err.startswith(words)
        assert bool(err) == bool(words)


def test_a_manifest_runs_on_the_copy(run: Run, saved: str, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(JOB)
    found = asked(run, saved, "-f", str(file), "-n", "team")
    told = {change["pod"]: (change["before"], change["after"]["state"]) for change in found["changed"]}
    assert told == {"team/train-0": (None, "placed"), "team/train-1": (None, "pending")}


def test_pods_of_a_manifest_are_decided_whoever_schedules_them(run: Run, tmp_path: Path) -> None:
    saved, file = str(tmp_path / "s.json"), tmp_path / "job.yaml"
    policy = Policy(frozenset({"kai-scheduler", "volcano"}))
    write_recording(Recording(snapshot_of((node("a", gpus=2),)), policy), saved)
    file.write_text(JOB)
    assert asked(run, saved, "-f", str(file))["after"]["pods"]["placed"] == 1


def test_nothing_may_be_affected(run: Run, tmp_path: Path) -> None:
    saved = str(tmp_path / "s.json")
    write_recording(Recording(snapshot_of((node("a"), node("b", gpus=1)), (pod("p", gpus=2),))), saved)
    code, out, _ = run("plan", "what-if", "--snapshot", saved, "--add-nodes", "like=a")
    assert code == 0
    assert out.endswith("No pod would be affected.\n")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "give a change"),
        (("--add-nodes", "a"), 2, "like=NODE,count=N"),
        (("--add-nodes", "like=a,count=0"), 2, "like=NODE,count=N"),
        (("--add-nodes", "like=x,count=1"), 5, "there is no node x"),
        (("--remove-node", "x"), 5, "there are: a, b"),
        (("--remove-node", "a", "--context", "c"), 2, "a cluster is named, too"),
    ],
)
def test_what_cannot_be_asked_says_so(
    run: Run, saved: str, arguments: tuple[str, ...], code: int, words: str
) -> None:
    got, out, err = run("plan", "what-if", "--snapshot", saved, *arguments)
    assert (got, out) == (code, "")
    assert words in err


def test_a_manifest_without_pods_is_an_error(run: Run, saved: str, tmp_path: Path) -> None:
    file = tmp_path / "map.yaml"
    file.write_text("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n")
    code, _, err = run("plan", "what-if", "--snapshot", saved, "-f", str(file))
    assert code == 1
    assert "make no pods" in err
