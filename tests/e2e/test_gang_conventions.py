"""Gangs that were written for others, unchanged, on a local fleet: all of their pods run together, or none.

The manifests in gangs/ are shaped as their vendors document them. On two machines of eight GPUs each a gang
of two pods that take a machine each waits as a whole while a single GPU is taken, and says by which rule it
is a gang.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.cluster import Cluster, Object, condition
from tests.e2e.conftest import NewFleet
from tests.e2e.local_fleet import LocalFleet, wait_until

from gpufleet.kube.conventions import coscheduling, kai, kueue, native, volcano
from gpufleet.kube.kinds import CLUSTER_QUEUES, CRDS, LOCAL_QUEUES, PODS
from gpufleet.kube.manifests import Manifest, apply_manifests, read_manifests
from gpufleet.kube.values import DECISION_CONDITION
from gpufleet.local.vendor_kinds import MARK, VENDOR_KINDS

pytestmark = pytest.mark.timeout(300)

GANGS = Path(__file__).parent / "gangs"
RULES = {
    "native": native.PODGROUP_RULE,
    "kai": kai.RULE,
    "volcano": volcano.RULE,
    "coscheduling": coscheduling.RULE,
    "kueue": kueue.RULE,
}
MACHINES = """\
groups:
  - name: train
    count: 2
    gpu: h100
"""
GPU = "nvidia.com/gpu"


@pytest.fixture(scope="module")
def machines(new_fleet: NewFleet, tmp_path_factory: pytest.TempPathFactory) -> LocalFleet:
    """Two machines of eight GPUs."""
    path = tmp_path_factory.mktemp("fleet") / "machines.yaml"
    path.write_text(MACHINES)
    fleet = new_fleet("gang-conventions")
    fleet.up("--fleet", str(path))
    return fleet


@pytest.fixture(scope="module")
def cluster(machines: LocalFleet) -> Iterator[Cluster]:
    with Cluster(machines) as cluster:
        yield cluster


def blocker(cluster: Cluster, namespace: str) -> None:
    """A pod that takes one GPU."""
    container = {"name": "main", "image": "busybox", "resources": {"limits": {GPU: 1}}}
    spec = {"schedulerName": "gpufleet", "terminationGracePeriodSeconds": 1, "containers": [container]}
    cluster.create(PODS, {"metadata": {"name": "blocker"}, "spec": spec}, namespace)
    wait_until(
        lambda: cluster.get(PODS, "blocker", namespace)["status"]["phase"] == "Running", "the blocker runs"
    )


def gang(cluster: Cluster, namespace: str) -> list[Object]:
    return cluster.pods(namespace, app="gang")


def bound_at(pod: Object) -> dt.datetime:
    return dt.datetime.fromisoformat(str(condition(pod, "PodScheduled")["lastTransitionTime"]))


@pytest.mark.parametrize("vendor", RULES)
def test_a_gang_of_another_vendor_runs_whole_or_not_at_all(
    cluster: Cluster, machines: LocalFleet, vendor: str
) -> None:
    namespace = f"gang-{vendor}"
    cluster.create_namespace(namespace)
    blocker(cluster, namespace)
    manifests = read_manifests(GANGS / f"{vendor}.yaml")
    unserved = cluster.run(
        apply_manifests(cluster.client, manifests, field_manager="test", namespace=namespace)
    )
    assert unserved == []

    def told() -> list[str]:
        return [condition(pod, DECISION_CONDITION).get("reason", "") for pod in gang(cluster, namespace)]

    wait_until(lambda: told() == ["GangUnplaceable"] * 2, f"both are told so, not {told()}")
    assert not [pod for pod in gang(cluster, namespace) if "nodeName" in pod["spec"]]
    answer = machines.run("why", "worker-0", "-n", namespace, "-o", "json")
    assert answer.returncode == 0, answer.stderr
    why = json.loads(answer.stdout)
    assert (why["gang"], why["gang_rule"]) == ("train", RULES[vendor])
    assert "1 of the 2 pods that gang" in why["reasons"][0]["message"]

    cluster.run(cluster.client.delete(PODS, "blocker", namespace))
    wait_until(
        lambda: [pod["status"]["phase"] for pod in gang(cluster, namespace)] == ["Running"] * 2, "both run"
    )
    pods = gang(cluster, namespace)
    assert len({pod["spec"]["nodeName"] for pod in pods}) == 2
    assert abs(bound_at(pods[0]) - bound_at(pods[1])) <= dt.timedelta(seconds=1)
    for pod in pods:
        cluster.run(cluster.client.delete(PODS, pod["metadata"]["name"], namespace))
    wait_until(lambda: not cluster.all(PODS, namespace), "they are gone")
    # Queues are everybody's: others would be told that theirs does not exist.
    kinds = {kind.kind: kind for kind in (CLUSTER_QUEUES, LOCAL_QUEUES)}
    for manifest in manifests:
        kind = kinds.get(manifest["kind"])
        if kind is not None:
            where = namespace if kind.namespaced else None
            cluster.run(cluster.client.delete(kind, manifest["metadata"]["name"], where))


def test_a_gang_waits_for_the_object_that_describes_it(cluster: Cluster) -> None:
    cluster.create_namespace("gang-late")
    group, *pods = read_manifests(GANGS / "coscheduling.yaml")

    def apply(*manifests: Manifest) -> None:
        applying = apply_manifests(cluster.client, manifests, field_manager="test", namespace="gang-late")
        cluster.run(applying)

    def told() -> set[str]:
        return {condition(pod, DECISION_CONDITION).get("reason", "") for pod in gang(cluster, "gang-late")}

    apply(*pods)
    wait_until(lambda: told() == {"GangIncomplete"}, "they wait for their PodGroup")
    apply(group)
    wait_until(
        lambda: [pod["status"]["phase"] for pod in gang(cluster, "gang-late")] == ["Running"] * 2, "both run"
    )


def test_the_kinds_of_vendors_are_there_and_marked_as_ours(cluster: Cluster) -> None:
    installed = {one["metadata"]["name"] for one in cluster.all(CRDS, **{MARK: "true"})}
    assert installed == {vendor.kind.resource for vendor in VENDOR_KINDS}
