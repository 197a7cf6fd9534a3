"""Fractions of GPUs on a local fleet: three notebooks share two GPUs, and nobody gets one of these whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.e2e.cluster import Cluster, Object
from tests.e2e.conftest import NewFleet
from tests.e2e.local_fleet import wait_until

from gpufleet.kube.client import ApiError
from gpufleet.kube.kinds import GPU_NODES, NODES, PODS

NOTEBOOKS = Path(__file__).parents[2] / "examples" / "fractions" / "notebooks.yaml"
NAMESPACE = "notes"
FLEET = "groups: [{name: note, count: 1, gpu: h100, gpusPerNode: 2}]\n"
NODE = "note-0"
PARTS = {"notebook-a": 500, "notebook-b": 300, "notebook-c": 500}
GPU = "nvidia.com/gpu"


@pytest.fixture(scope="module")
def cluster(new_fleet: NewFleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    path = tmp_path_factory.mktemp("notes") / "notes.yaml"
    path.write_text(FLEET)
    fleet = new_fleet("notes")
    fleet.up("--fleet", str(path))
    with Cluster(fleet) as found:
        found.create_namespace(NAMESPACE)
        yield found


def whole(name: str, **spec: Any) -> Object:
    container = {"name": "main", "image": "main", "resources": {"limits": {GPU: "1"}}}
    return {
        "metadata": {"name": name},
        "spec": {"terminationGracePeriodSeconds": 1, **spec, "containers": [container]},
    }


def phase(cluster: Cluster, name: str) -> str:
    return str(cluster.get(PODS, name, NAMESPACE)["status"].get("phase"))


def read(cluster: Cluster, *command: str) -> Any:
    done = cluster.fleet.run(*command, "-o", "json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def offered(cluster: Cluster) -> str:
    return str(cluster.get(NODES, NODE)["status"]["allocatable"][GPU])


def carried(cluster: Cluster) -> list[int]:
    return sorted(gpu.get("fractionMilli", 0) for gpu in cluster.get(GPU_NODES, NODE)["status"]["devices"])


def test_three_notebooks_share_two_gpus_and_whole_ones_come_back_after_them(cluster: Cluster) -> None:
    bodies = list(yaml.safe_load_all(NOTEBOOKS.read_text()))
    names = [body["metadata"]["name"] for body in bodies]
    for body in bodies:
        cluster.create(PODS, body, NAMESPACE)
    wait_until(lambda: {phase(cluster, name) for name in names} == {"Running"}, "the notebooks run")

    seen = _what_each_notebook_sees(cluster, names)
    assert len(set(seen.values())) == 2
    assert carried(cluster) in ([500, 800], [300, 1000])
    assert offered(cluster) == "0"
    _tables_show_who_shares(cluster, seen)
    _whole_gpus_are_refused_and_the_reason_is_told(cluster)
    _nobody_chooses_other_gpus(cluster, bodies[0])

    for name in names:
        cluster.run(cluster.client.delete(PODS, name, NAMESPACE))
    wait_until(lambda: phase(cluster, "waits") == "Running", "a whole GPU goes to who waits for one")
    wait_until(lambda: (carried(cluster), offered(cluster)) == ([0, 0], "2"), "both GPUs are offered again")
    assert not [
        one for one in cluster.pods(NAMESPACE) if phase(cluster, one["metadata"]["name"]) == "Pending"
    ]


def _what_each_notebook_sees(cluster: Cluster, names: list[str]) -> dict[str, str]:
    """The GPU of each notebook by its own word, which is also what the annotation says."""
    seen = {}
    for name in names:
        pod = cluster.get(PODS, name, NAMESPACE)
        wait_until(partial(_printed, cluster, name), f"{name} prints what it sees")
        words = _log(cluster, name).split()
        seen[name] = words[1].rstrip(",")
        assert seen[name] == pod["metadata"]["annotations"]["gpufleet.dev/visible-devices"]
        assert words[2] == pod["metadata"]["annotations"]["gpu-fraction"]
    return seen


def _printed(cluster: Cluster, name: str) -> bool:
    return "GPU" in _log(cluster, name)


def _log(cluster: Cluster, name: str) -> str:
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/{name}/log"
    return cluster.run(cluster.client.request("GET", path)).decode()


def _tables_show_who_shares(cluster: Cluster, seen: dict[str, str]) -> None:
    for gpu in read(cluster, "top", "gpus"):
        assert [pod["name"] for pod in gpu["pods"]] == [n for n, uuid in seen.items() if uuid == gpu["uuid"]]
        assert gpu["fraction_milli"] == sum(PARTS[pod["name"]] for pod in gpu["pods"])
    rows = {row["name"]: row for row in read(cluster, "top", "pods", "-n", NAMESPACE)}
    assert rows["notebook-b"]["devices"] == [seen["notebook-b"]]
    assert rows["notebook-b"]["fraction_milli"] == 300


def _whole_gpus_are_refused_and_the_reason_is_told(cluster: Cluster) -> None:
    cluster.create(PODS, whole("foreign", schedulerName="nobody", nodeName=NODE), NAMESPACE)
    wait_until(lambda: phase(cluster, "foreign") == "Failed", "the kubelet refuses a pod of somebody else")
    cluster.create(PODS, whole("waits", schedulerName="gpufleet"), NAMESPACE)
    wait_until(lambda: _why(cluster)["verdict"] == "not-now", "the reason is known")
    found = _why(cluster)
    assert found["reasons"][0]["code"] == "InsufficientResource"
    held = {(one["workload"], one["resource"]): one["amount"] for one in found["holders"]}
    assert held == {(f"Pod/{name}", "milli-GPU"): part for name, part in PARTS.items()}
    cluster.run(cluster.client.delete(PODS, "foreign", NAMESPACE, grace=0))


def _why(cluster: Cluster) -> Any:
    return read(cluster, "why", "pod/waits", "-n", NAMESPACE)


def _nobody_chooses_other_gpus(cluster: Cluster, body: Object) -> None:
    container = {**body["spec"]["containers"][0], "env": [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}]}
    greedy = {
        "metadata": {"name": "greedy", "annotations": body["metadata"]["annotations"]},
        "spec": {**body["spec"], "containers": [container]},
    }
    with pytest.raises(ApiError) as refused:
        cluster.create(PODS, greedy, NAMESPACE)
    assert refused.value.status == 403
