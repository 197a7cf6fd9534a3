"""Four hundred nodes: a wave of pods that nearly fills them is bound whole, and gpufleet stays small."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import psutil
import pytest
from tests.e2e.cluster import Cluster, Object
from tests.e2e.conftest import NewFleet
from tests.e2e.local_fleet import LocalFleet, wait_until

from gpufleet.kube.kinds import GPU_NODES, PODS

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]

NAMESPACE = "wave"
COUNT = 3_000
GPUFLEET_MIB = 600
OURS = ("controller", "devices", "simulated-nodes")


def wave(index: int) -> Object:
    """A pod of one GPU."""
    resources = {"limits": {"nvidia.com/gpu": "1"}}
    spec = {
        "containers": [{"name": "main", "image": "main", "resources": resources}],
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    }
    return {"metadata": {"name": f"pod-{index}"}, "spec": spec}


async def create_all(cluster: Cluster) -> None:
    """Create the pods, a hundred at a time."""
    for start in range(0, COUNT, 100):
        creations = [cluster.client.create(PODS, wave(i), NAMESPACE) for i in range(start, start + 100)]
        await asyncio.gather(*creations)


def resident_mib(fleet: LocalFleet) -> int:
    """What gpufleet's own processes hold together."""
    status = fleet.status()
    pids = [component["pid"] for component in status["components"] if component["name"] in OURS]
    supervisor = psutil.Process(pids[0]).ppid()
    return sum(psutil.Process(pid).memory_info().rss for pid in (*pids, supervisor)) >> 20


def test_a_wave_of_pods_is_bound_whole_and_each_holds_a_gpu_of_its_own(new_fleet: NewFleet) -> None:
    fleet = new_fleet("large")
    fleet.up("--fleet", "large")
    assert fleet.status()["gpus"]["total"] == 3_200
    with Cluster(fleet) as cluster:
        cluster.create_namespace(NAMESPACE)
        cluster.run(create_all(cluster))
        wait_until(
            lambda: fleet.status()["pods"]["running"] == COUNT, "every pod of the wave runs", seconds=300
        )
        per_node = Counter(pod["spec"]["nodeName"] for pod in cluster.pods(NAMESPACE))
        assert max(per_node.values()) <= 8
        held = [
            device
            for node in cluster.all(GPU_NODES)
            for one in node["status"]["allocations"]
            for device in one["devices"]
        ]
    assert len(held) == len(set(held)) == COUNT
    assert resident_mib(fleet) < GPUFLEET_MIB
    told = json.loads(fleet.run("top", "gpus", "-o", "json").stdout)
    assert sum(bool(gpu["pods"]) for gpu in told) == COUNT
