"""The scheduler's engine without an API: from the watch events of pods to the plan that binds them.

Measured are decoding the events, keeping the snapshot, and the decision, on one core; nodes and their ledger
are there before, as in a scheduler that runs. The bars are those for 5,000 nodes with 8 GPUs each.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
from benchmarks.decide import nodes
from benchmarks.keeping import RESULTS, keep

from gpufleet.fleet.gangs import Gang, Topology
from gpufleet.fleet.plans import Bind
from gpufleet.fleet.pods import GangRef, Pod, PodShape
from gpufleet.fleet.snapshot import snapshot_of
from gpufleet.kube import objects
from gpufleet.kube.informers import Change
from gpufleet.kube.snapshot import SnapshotBuilder
from gpufleet.scheduling.cycle import Policy, decide
from gpufleet.scheduling.ledger import Ledger

GANG = 512
RACK = "gpufleet.dev/rack"


class Case(NamedTuple):
    """So many pods of so many shapes, and the pods a second that are to be reached."""

    name: str
    pods: int
    shapes: int
    bar: int


CASES = (Case("one shape", 10_000, 1, 5_000), Case("50 shapes", 10_000, 50, 1_000))
GANG_BAR_MS = 300


def events(case: Case) -> Iterator[bytes]:
    """What the API server sends of each pod."""
    for index in range(case.pods):
        shape = index % case.shapes
        asked = {"cpu": f"{4000 + shape}m", "memory": "16Gi", "nvidia.com/gpu": str(1 + shape % 2)}
        meta = {"namespace": "bench", "name": f"pod-{index:06}", "uid": f"uid-{index:06}"}
        container = {"name": "main", "image": "train:1", "resources": {"requests": asked, "limits": asked}}
        spec = {"schedulerName": "gpufleet", "containers": [container]}
        yield json.dumps({"metadata": meta, "spec": spec, "status": {"phase": "Pending"}}).encode()


def ready(count: int) -> Iterator[objects.Node]:
    """The nodes as the API server has them."""
    for one in nodes(count):
        allocatable = {"cpu": "192", "memory": "2Ti", "pods": "110", "nvidia.com/gpu": "8"}
        status = {"allocatable": allocatable, "conditions": [{"type": "Ready", "status": "True"}]}
        yield msgspec.convert(
            {"metadata": {"name": one.name, "labels": dict(one.labels)}, "status": status}, objects.Node
        )


def pods_a_second(case: Case, count: int) -> float:
    """Pods bound in a second of the engine's time."""
    builder = SnapshotBuilder()
    for node in ready(count):
        builder.nodes.node_changed(Change(node.metadata.name, None, node))
    before = builder.snapshot()
    ledger = Ledger.build(before)
    decide(before, Policy(), ledger)
    told = list(events(case))
    decoder = msgspec.json.Decoder(objects.Pod)
    began = time.perf_counter()
    for event in told:
        pod = decoder.decode(event)
        builder.pod_changed(Change(pod.metadata.key, None, pod))
    snapshot = builder.snapshot()
    plan = decide(snapshot, Policy(), Ledger.build(snapshot, ledger))
    seconds = time.perf_counter() - began
    bound = sum(isinstance(action, Bind) for action in plan.actions)
    if bound != case.pods:
        raise RuntimeError(f"{bound} of {case.pods} pods were bound")
    return case.pods / seconds


def gang_ms(count: int, runs: int) -> tuple[list[float], int]:
    """Times of a decision about one gang of 8-GPU pods with preferred racks, and the racks it uses."""
    machines = nodes(count)
    asked = {"cpu": 32_000, "memory": 1 << 37, "nvidia.com/gpu": 8, "pods": 1}
    shape = PodShape(requests=tuple(sorted(asked.items())))
    gang = Gang("bench/g", "benchmark", GANG, topology=Topology(preferred=RACK))
    ref = GangRef("g", None, "benchmark")
    pods = tuple(Pod("bench", f"pod-{i:04}", f"uid-{i}", shape, gang=ref) for i in range(GANG))
    snapshot = snapshot_of(machines, pods, gangs={gang.key: gang})
    racks = {one.name: one.labels[RACK] for one in machines}
    times, used = [], 0
    for _ in range(runs):
        ledger = Ledger.build(snapshot)
        began = time.perf_counter()
        plan = decide(snapshot, Policy(), ledger)
        times.append(1000 * (time.perf_counter() - began))
        used = len({racks[action.node] for action in plan.actions if isinstance(action, Bind)})
    return sorted(times), used


def main() -> None:
    """Print the numbers with their bars, keep them if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", type=int, default=5000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="write the numbers as JSON")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    options = parser.parse_args()
    found: dict[str, float] = {}
    for case in CASES:
        best = max(pods_a_second(case, options.nodes) for _ in range(options.runs))
        found[case.name] = round(best)
        print(f"{case.pods} pods, {case.name:<10} {best:>8.0f} pods/s  (bar: {case.bar})", flush=True)
    times, racks = gang_ms(options.nodes, 10 * options.runs)
    found |= {"gang_p50_ms": times[len(times) // 2], "gang_longest_ms": times[-1], "gang_racks": racks}
    print(
        f"gang of {GANG}, preferred racks: p50 {found['gang_p50_ms']:.0f} ms, longest {times[-1]:.0f} ms "
        f"(bar: {GANG_BAR_MS}), {racks} racks (fewest possible: {-(-GANG // 20)})"
    )
    if options.keep:
        print(f"kept in {keep(options.results, 'engine', {'nodes': options.nodes, 'numbers': found})}")


if __name__ == "__main__":
    main()
