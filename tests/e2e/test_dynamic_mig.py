"""GPUs that are cut as pods need it: two hundred pods of mixed profiles, then whole GPUs again."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.cluster import Cluster, Object
from tests.e2e.conftest import NewFleet
from tests.e2e.local_fleet import wait_until

from gpufleet.fleet.mig import GEOMETRIES, mig_resource
from gpufleet.kube.kinds import GPU_NODES, PODS

pytestmark = pytest.mark.timeout(300)

NAMESPACE = "cuts"
FLEET = "groups: [{name: cut, count: 4, gpu: h100, mig: dynamic}]\n"
MIX = ("1g.10gb",) * 4 + ("2g.20gb",) * 3 + ("3g.40gb",) * 2 + ("1g.20gb", "4g.40gb")
PROFILES = GEOMETRIES["h100-80gb"].profiles
COUNT, GPUS = 200, 32


def asking(name: str, resource: str, count: int = 1) -> Object:
    container = {"name": "main", "image": "main", "resources": {"limits": {resource: str(count)}}}
    return {
        "metadata": {"name": name, "labels": {"asks": resource.partition("/")[2]}},
        "spec": {
            "schedulerName": "gpufleet", "terminationGracePeriodSeconds": 1, "containers": [container],
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def cluster(new_fleet: NewFleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    path: Path = tmp_path_factory.mktemp("cut") / "cut.yaml"
    path.write_text(FLEET)
    fleet = new_fleet("cut")
    fleet.up("--fleet", str(path))
    with Cluster(fleet) as found:
        found.create_namespace(NAMESPACE)
        yield found


def running(cluster: Cluster) -> list[Object]:
    return [pod for pod in cluster.pods(NAMESPACE) if pod["status"].get("phase") == "Running"]


def profile(pod: Object) -> str:
    (resource,) = pod["spec"]["containers"][0]["resources"]["limits"]
    return str(resource).removeprefix("nvidia.com/mig-")


def used(cluster: Cluster) -> int:
    """Memory slices of the instances in which pods run."""
    return sum(PROFILES[profile(pod)].size for pod in running(cluster))


def waited(pod: Object) -> float:
    """Seconds from a pod's creation to its binding."""
    scheduled = next(c for c in pod["status"]["conditions"] if c["type"] == "PodScheduled")
    times = (scheduled["lastTransitionTime"], pod["metadata"]["creationTimestamp"])
    bound, created = (datetime.fromisoformat(one) for one in times)
    return (bound - created).total_seconds()


def test_slices_fill_an_idle_pool_and_whole_gpus_come_back(cluster: Cluster) -> None:
    wanted = random.Random(5).choices(MIX, k=COUNT)

    async def create() -> None:
        pods = (asking(f"p{n:03d}", mig_resource(name)) for n, name in enumerate(wanted))
        await asyncio.gather(*(cluster.client.create(PODS, pod, NAMESPACE) for pod in pods))

    cluster.run(create())
    bound = min(sum(PROFILES[name].size for name in wanted), 8 * GPUS)

    wait_until(
        lambda: used(cluster) >= 0.95 * bound, "slices in use are within 5 % of the packing bound", seconds=90
    )
    found = running(cluster)
    longest = max(map(waited, found))
    counts = Counter(map(profile, found))
    print(
        f"\n{len(found)} of {COUNT} pods run on {GPUS} GPUs, {used(cluster)} of {bound} memory slices in use"
    )
    print(f"longest wait for a cut {longest:.0f} s; {dict(counts)}")
    _each_instance_is_held_once(cluster)
    _a_restart_keeps_every_pod_and_its_instance(cluster)

    cluster.run(cluster.client.create(PODS, asking("whole", "nvidia.com/gpu", 8), NAMESPACE))
    for pod in cluster.pods(NAMESPACE):
        if pod["metadata"]["name"] != "whole":
            cluster.run(
                cluster.client.delete(PODS, pod["metadata"]["name"], NAMESPACE, grace=0, missing_ok=True)
            )
    wait_until(
        lambda: [pod["metadata"]["name"] for pod in running(cluster)] == ["whole"],
        "a job of whole GPUs gets them back once the slices have drained",
        seconds=60,
    )
    node = cluster.pods(NAMESPACE)[0]["spec"]["nodeName"]
    assert not any(gpu.get("migEnabled") for gpu in cluster.get(GPU_NODES, node)["status"]["devices"])


def _each_instance_is_held_once(cluster: Cluster) -> None:
    held: Counter[str] = Counter()
    exist: set[str] = set()
    for node in cluster.all(GPU_NODES):
        status: Any = node["status"]
        held.update(uuid for one in status.get("allocations", ()) for uuid in one["devices"])
        exist |= {i["uuid"] for gpu in status["devices"] for i in gpu.get("instances", ())}
    assert set(held.values()) == {1}
    assert set(held) <= exist


def _a_restart_keeps_every_pod_and_its_instance(cluster: Cluster) -> None:
    def holders() -> dict[str, str]:
        recorded = [one for node in cluster.all(GPU_NODES) for one in node["status"].get("allocations", ())]
        return {uuid: one["pod"] for one in recorded for uuid in one["devices"]}

    before = holders()
    fleet = cluster.fleet
    fleet.kill("simulated-nodes")
    wait_until(lambda: fleet.component("simulated-nodes")["restarts"], "they are started again")
    wait_until(lambda: fleet.status()["ready"] is True, "the fleet is ready again")
    size, freed = used(cluster), running(cluster)[0]["metadata"]["name"]
    cluster.run(cluster.client.delete(PODS, freed, NAMESPACE, grace=0))
    wait_until(lambda: freed not in holders().values(), "its instance is free")
    wait_until(lambda: used(cluster) >= size, "others have its place")
    kept = {uuid: pod for uuid, pod in before.items() if pod != freed}
    assert {uuid: holders().get(uuid) for uuid in kept} == kept
    assert not [pod for pod in cluster.pods(NAMESPACE) if pod["status"].get("phase") == "Failed"]
