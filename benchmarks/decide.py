"""How fast the pure decision is: pods a second without any API, for several shapes of load.

Each case decides once about a snapshot in which everything waits: the first decision of a scheduler that
comes up, or a burst. The ledger is built within the measured time, as it is when a snapshot is new. Best of
several runs, because nothing but noise makes a pure function slower.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import msgspec
from benchmarks.nodes import GPUS_PER_NODE

from gpufleet.fleet.demands import MILLI
from gpufleet.fleet.devices import DeviceClaim, NodeDevices, NodeGPU, Offered, Part, pools_of
from gpufleet.fleet.nodes import Node
from gpufleet.fleet.plans import Bind
from gpufleet.fleet.pods import GangRef, Pod, PodShape
from gpufleet.fleet.queues import Queue, QueueTree, Quota
from gpufleet.fleet.snapshot import Snapshot, snapshot_of
from gpufleet.scheduling.cycle import Policy, decide

GANG_PODS = 8
DEPARTMENTS, TEAMS = 10, 100


def nodes(count: int) -> tuple[Node, ...]:
    """Equal nodes of 8 GPUs, 20 in a rack."""
    allocatable = {"cpu": 192_000, "memory": 2 << 40, "pods": 110, "nvidia.com/gpu": GPUS_PER_NODE}
    return tuple(
        Node(
            f"gpu-{index:04}",
            {"kubernetes.io/hostname": f"gpu-{index:04}", "gpufleet.dev/rack": f"rack-{index // 20:03}"},
            allocatable,
        )
        for index in range(count)
    )


def pod(index: int, gpus: int, *, gang: GangRef | None = None, node: str = "") -> Pod:
    """A pod that asks for GPUs, with cores and memory in proportion."""
    asked = {"cpu": 4000 * gpus, "memory": gpus << 34, "nvidia.com/gpu": gpus, "pods": 1}
    shape = PodShape(requests=tuple(sorted(asked.items())))
    claims = (DeviceClaim("main", "nvidia.com/gpu", gpus),)
    return Pod(
        "bench", f"pod-{index:06}", f"uid-{index:06}", shape, gang=gang, node=node, device_claims=claims
    )


def one_gpu_each(node_count: int) -> Snapshot:
    """As many one-GPU pods as the fleet can take, less one node's worth, on an empty fleet."""
    pods = tuple(pod(index, 1) for index in range((node_count - 1) * GPUS_PER_NODE))
    return snapshot_of(nodes(node_count), pods)


def devices(count: int) -> dict[str, NodeDevices]:
    """What the agents of the nodes report: GPUs that switches of NVLink connect, four to a processor."""
    links = tuple(
        tuple(1820 if other // 4 == gpu // 4 else 1810 for other in range(gpu))
        for gpu in range(GPUS_PER_NODE)
    )
    offered = {"nvidia.com/gpu": Offered(GPUS_PER_NODE, GPUS_PER_NODE)}
    found = {}
    for node in nodes(count):
        uuids = [f"GPU-{node.name}-{gpu}" for gpu in range(GPUS_PER_NODE)]
        gpus = tuple(NodeGPU(Part(uuid, uuid)) for uuid in uuids)
        found[node.name] = NodeDevices(gpus, links, pools_of(gpus, offered))
    return found


def picked(case: Callable[[int], Snapshot]) -> Callable[[int], Snapshot]:
    """A case on nodes whose agents report their devices, so that they are picked."""
    return lambda count: msgspec.structs.replace(case(count), devices=devices(count))


def queued(case: Callable[[int], Snapshot]) -> Callable[[int], Snapshot]:
    """A case whose pods are in queues of 100 teams in 10 departments, each with guarantee and limit."""

    def queues(count: int) -> Snapshot:
        snapshot = case(count)
        parents = [Queue(name=f"department-{index}", rule="bench") for index in range(DEPARTMENTS)]
        quota = Quota(MILLI, count * GPUS_PER_NODE * MILLI)
        teams = [
            Queue(
                name=f"team-{index:02}", rule="bench", parent=f"department-{index % DEPARTMENTS}", gpu=quota
            )
            for index in range(TEAMS)
        ]
        unbound = {
            key: msgspec.structs.replace(pod, queue=f"team-{index % TEAMS:02}")
            for index, (key, pod) in enumerate(snapshot.unbound.items())
        }
        return msgspec.structs.replace(snapshot, unbound=unbound, queues=QueueTree.of([*parents, *teams]))

    return queues


def mixed_sizes(node_count: int) -> Snapshot:
    """Pods of 1, 2, 4 and 8 GPUs in turn, about half of the fleet."""
    pods = tuple(pod(index, (1, 2, 4, 8)[index % 4]) for index in range(node_count))
    return snapshot_of(nodes(node_count), pods)


def gangs(node_count: int) -> Snapshot:
    """Gangs of 8 pods of 8 GPUs each, for half of the fleet."""
    pods = tuple(
        pod(index, GPUS_PER_NODE, gang=GangRef(f"gang-{index // GANG_PODS:04}", GANG_PODS, "label"))
        for index in range(node_count // 2 // GANG_PODS * GANG_PODS)
    )
    return snapshot_of(nodes(node_count), pods)


def full_fleet(node_count: int) -> Snapshot:
    """A fleet without a free GPU, and one more pod for each node that must be told why it waits."""
    running = tuple(pod(index, GPUS_PER_NODE, node=f"gpu-{index:04}") for index in range(node_count))
    waiting = tuple(pod(node_count + index, 1) for index in range(node_count))
    return snapshot_of(nodes(node_count), running + waiting)


CASES: dict[str, tuple[Callable[[int], Snapshot], bool]] = {
    "one GPU each": (one_gpu_each, True),
    "  devices picked": (picked(one_gpu_each), True),
    "  in 100 queues": (queued(one_gpu_each), True),
    "1, 2, 4, 8 GPUs": (mixed_sizes, True),
    "  and picked": (picked(mixed_sizes), True),
    "gangs of 8 x 8": (gangs, True),
    "nothing fits": (full_fleet, False),
}
"""Each case with whether every pod must be bound."""


def seconds_to_decide(snapshot: Snapshot, *, all_bound: bool) -> float:
    """The time of one decision; raises when it does not do what the case expects."""
    started = time.perf_counter()
    plan = decide(snapshot, Policy())
    seconds = time.perf_counter() - started
    bound = sum(isinstance(action, Bind) for action in plan.actions)
    expected = len(snapshot.unbound) if all_bound else 0
    if bound != expected:
        raise RuntimeError(f"{bound} pods were bound, expected {expected}")
    return seconds


def main() -> None:
    """Print pods a second for each case and size of fleet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=[400, 5000])
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    print(f"{'decide':<18}{'nodes':>7}{'pods':>8}{'seconds':>10}{'pods/s':>10}")
    for name, (case, all_bound) in CASES.items():
        for node_count in options.nodes:
            snapshot = case(node_count)
            best = min(seconds_to_decide(snapshot, all_bound=all_bound) for _ in range(options.runs))
            pods = len(snapshot.unbound)
            print(f"{name:<18}{node_count:>7}{pods:>8}{best:>10.2f}{pods / best:>10.0f}", flush=True)


if __name__ == "__main__":
    main()
