"""kill -9 of every process of a fleet while its workloads come and go: all recovers, nothing is broken.

The primer is played, then inference and the tenants of MIG instances surge again and again, while one process
after the other is killed, in an order that a seed decides (GPUFLEET_FAULT_SEED; printed). An observer watches
every pod and every GPUNode from the beginning; what it saw is checked in the end. A container that is a real
process must survive the death of the process that plays its node.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from tests.e2e.cluster import Cluster, Object, condition
from tests.e2e.conftest import NewFleet
from tests.e2e.invariants import amounts_of, exchanged, moved, overcommitted, refused, shared
from tests.e2e.local_fleet import COMPONENTS, LocalFleet, wait_until
from tests.e2e.observer import Observer, Sighting

from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube.kinds import DEPLOYMENTS, GPU_NODES, NODES, PODS
from gpufleet.kube.values import DECISION_CONDITION

pytestmark = pytest.mark.timeout(600)

PRIMER = Path(__file__).parents[2] / "examples" / "primer"
NAMESPACE = "primer"
INSTANCE = "nvidia.com/mig-1g.10gb"
TIDES = {"chat": (2, 5), "tenants": (4, 16)}
"""Deployments that come and go, with their replicas at low and high tide."""
TIDE_S = 2.0
RECOVERY_S = 90.0

TENANTS = {
    "metadata": {"name": "tenants"},
    "spec": {
        "replicas": 4,
        "selector": {"matchLabels": {"app": "tenants"}},
        "template": {
            "metadata": {"labels": {"app": "tenants"}},
            "spec": {
                "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "main", "image": "main", "resources": {"limits": {INSTANCE: 1}}}],
            },
        },
    },
}
SERVER = {
    "metadata": {
        "name": "server",
        "labels": {"app": "server"},
        "annotations": {"gpufleet.dev/runtime": "process"},
    },
    "spec": {
        "terminationGracePeriodSeconds": 1,
        "containers": [
            {
                "name": "main",
                "image": "none",
                "command": ["/bin/sh", "-c", "echo began as $$$$; while :; do sleep 1; done"],
                "resources": {"limits": {"nvidia.com/mig-2g.20gb": 1}},
            }
        ],
    },
}


class Faults(msgspec.Struct, frozen=True):
    """A fleet that was hurt, and what was seen meanwhile."""

    fleet: LocalFleet
    observer: Observer
    before: dict[str, Object]
    nodes: dict[str, Any]
    tides: int
    told: list[str]


class Tides:
    """Scales the deployments up and down in a thread of its own, whatever the API server says to it."""

    def __init__(self, fleet: LocalFleet) -> None:
        self.count = 0
        self._fleet = fleet
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._main, name="tides", daemon=True)

    def begin(self) -> None:
        """Begin with a surge."""
        self._thread.start()

    def end(self) -> None:
        """Stop wherever it is."""
        self._stopping.set()
        self._thread.join(timeout=60)
        assert not self._thread.is_alive()

    def _main(self) -> None:
        with Cluster(self._fleet) as cluster:
            while not self._stopping.wait(TIDE_S):
                self.count += 1
                for name, replicas in TIDES.items():
                    try:
                        cluster.scale(name, NAMESPACE, replicas[self.count % 2])
                    except GpufleetError:
                        continue


def settled(cluster: Cluster) -> bool:
    """Whether the workloads are as they must be in the end."""
    pods = cluster.pods(NAMESPACE)
    running = [pod["metadata"]["labels"]["app"] for pod in pods if pod["status"]["phase"] == "Running"]
    pending = [pod["metadata"]["labels"]["app"] for pod in pods if "nodeName" not in pod["spec"]]
    return (
        Counter(running) == {"chat": 2, "tenants": 4, "embed": 6, "pretrain": 4, "server": 1}
        and Counter(pending) == {"finetune": 4, "giant": 1}
        and len(pods) == len(running) + len(pending)
    )


def decision(pod: Object) -> Object:
    """Why a pod waits, without the time at which it was told."""
    told = condition(pod, DECISION_CONDITION)
    return {name: told[name] for name in ("status", "reason", "message")}


def hurt(fleet: LocalFleet, component: str) -> str:
    """Kill a component and wait until the fleet works again; what to tell."""
    restarts = {} if component == "supervisor" else {component: fleet.component(component)["restarts"]}
    began = time.monotonic()
    pid = fleet.kill(component)
    if component == "supervisor":
        wait_until(lambda: not psutil.pid_exists(pid), "the supervisor is gone")
        assert fleet.status()["ready"] is False
        fleet.up()

    def back() -> bool:
        counted = all(fleet.component(name)["restarts"] > count for name, count in restarts.items())
        return counted and fleet.status()["ready"] is True

    wait_until(back, f"the fleet is ready again after kill -9 of {component}", seconds=RECOVERY_S)
    assert fleet.component(component)["pid"] != pid
    return f"{component} {time.monotonic() - began:.1f} s"


@pytest.fixture(scope="module")
def faults(new_fleet: NewFleet) -> Iterator[Faults]:
    """Play the primer, then kill everything once while the tides come and go."""
    seed = int(os.environ.get("GPUFLEET_FAULT_SEED", random.randrange(10_000)))
    chance = random.Random(seed)
    order = chance.sample([*COMPONENTS, "supervisor"], len(COMPONENTS) + 1)
    told = [f"seed {seed}"]
    fleet = new_fleet("faults")
    with Observer(fleet.kubeconfig) as observer:
        fleet.up("--scenario", str(PRIMER))
        with Cluster(fleet) as cluster:
            cluster.create(DEPLOYMENTS, TENANTS, NAMESPACE)
            cluster.create(PODS, SERVER, NAMESPACE)
            wait_until(lambda: settled(cluster), "the tenants run")
            before = {pod["metadata"]["uid"]: pod for pod in cluster.pods(NAMESPACE)}
            nodes = {node["metadata"]["name"]: amounts_of(node) for node in cluster.all(NODES)}
            tides = Tides(fleet)
            tides.begin()
            for component in order:
                time.sleep(chance.uniform(0, TIDE_S))
                told.append(hurt(fleet, component))
            tides.end()
            for name, replicas in TIDES.items():
                cluster.scale(name, NAMESPACE, replicas[0])
            wait_until(lambda: settled(cluster), f"the workloads are as before ({', '.join(told)})")
        yield Faults(fleet, observer, before, nodes, tides.count, told)


def seen(node: str, devices: list[str], uid: str = "u", pod: str = "a") -> Sighting:
    """A GPUNode with one allocation."""
    held = {"pod": pod, "podUid": uid, "container": "main", "resource": "nvidia.com/gpu", "devices": devices}
    gpus = [{"uuid": "GPU-1", "instances": [{"uuid": "MIG-1"}]}]
    status = {
        "devices": gpus,
        "allocations": [held, {**held, "podUid": "other", "pod": "b", "devices": [f"{node}-X"]}],
    }
    return Sighting(0.0, "gpunodes", {"metadata": {"name": node, "uid": node}, "status": status})


def bound(name: str, node: str, gpus: int, *, phase: str = "Running", partial: bool = False) -> Sighting:
    """A pod."""
    limits = {"nvidia.com/gpu": str(gpus)}
    spec = {"nodeName": node, "containers": [{"name": "main", "resources": {"limits": limits}}]}
    pod = {"metadata": {"name": name, "uid": name}, "spec": spec, "status": {"phase": phase}}
    return Sighting(0.0, "pods", pod, partial=partial)


def test_the_invariants_notice_what_is_wrong() -> None:
    has = {"n": {"pods": 10, "nvidia.com/gpu": 4}}
    assert moved([bound("a", "", 1), bound("a", "n", 1), bound("a", "n", 1)]) == []
    assert moved([bound("a", "n", 1), bound("a", "m", 1)])
    assert moved([bound("a", "n", 1), bound("a", "", 1)])
    assert shared([seen("n", ["GPU-1"]), seen("m", ["GPU-2"])]) == []
    assert shared([seen("n", ["n-X"])])
    assert shared([seen("n", ["GPU-1"]), seen("m", ["GPU-1"])])
    assert shared([seen("n", ["GPU-1", "MIG-1"])])
    assert exchanged([seen("n", ["GPU-1"]), seen("n", ["GPU-1"])]) == []
    assert exchanged([seen("n", ["GPU-1"]), seen("n", ["GPU-2"])])
    assert overcommitted([bound("a", "n", 3), bound("b", "n", 1)], has) == []
    assert overcommitted([bound("a", "n", 3), bound("b", "n", 2)], has)
    assert (
        overcommitted([bound("a", "n", 3), bound("a", "n", 3, phase="Failed"), bound("b", "n", 4)], has) == []
    )
    late = bound("b", "n", 2, partial=True)
    assert overcommitted([bound("a", "n", 3), late, bound("a", "n", 3, phase="Failed")], has) == []
    assert refused([bound("a", "n", 3)]) == []
    rejected = bound("a", "n", 3)
    rejected.object["status"]["reason"] = "OutOfnvidia.com/gpu"
    assert refused([rejected])


def test_the_fleet_recovers_from_the_death_of_each_of_its_processes(
    faults: Faults, capsys: pytest.CaptureFixture[str]
) -> None:
    status = faults.fleet.status()
    assert status["ready"] is True
    assert all(one["state"] == "running" for one in status["components"])
    assert faults.tides > len(COMPONENTS)
    with capsys.disabled():
        print(f"\n  {'; '.join(faults.told)}; {faults.tides} tides; {faults.observer.gaps} gaps", end=" ")


def test_no_pod_was_ever_bound_twice(faults: Faults) -> None:
    assert faults.observer.objects_at_start["pods"] == 0
    assert moved(faults.observer.sightings) == []


def test_no_device_was_ever_held_by_two_containers_or_changed_hands_while_held(faults: Faults) -> None:
    assert shared(faults.observer.sightings) == []
    assert exchanged(faults.observer.sightings) == []


def test_no_node_was_ever_given_more_than_it_has(faults: Faults) -> None:
    assert overcommitted(faults.observer.sightings, faults.nodes) == []
    assert refused(faults.observer.sightings) == []


def test_no_pod_of_the_gang_that_does_not_fit_was_bound_in_all_that_time(faults: Faults) -> None:
    ever = faults.observer.nodes_of(faults.observer.pods(app="finetune"))
    assert list(ever.values()) == [set()] * 4


def test_only_batch_was_evicted(faults: Faults) -> None:
    evicted = [
        sighting.object["metadata"]["labels"]["app"]
        for sighting in faults.observer.pods()
        if condition(sighting.object, "DisruptionTarget")
    ]
    assert set(evicted) == {"embed"}


def test_what_ran_undisturbed_runs_still(faults: Faults) -> None:
    lasting = {
        uid: pod
        for uid, pod in faults.before.items()
        if pod["metadata"]["labels"]["app"] in ("pretrain", "finetune", "giant")
    }
    with Cluster(faults.fleet) as cluster:
        now = {pod["metadata"]["uid"]: pod for pod in cluster.pods(NAMESPACE)}
    assert len(lasting) == 4 + 4 + 1
    for uid, pod in lasting.items():
        assert now[uid]["status"]["phase"] == pod["status"]["phase"]
        restarts = [one["restartCount"] for one in now[uid]["status"].get("containerStatuses", [])]
        assert restarts == [0] * len(restarts)
        if pod["status"]["phase"] == "Pending":
            assert decision(now[uid]) == decision(pod)


def test_gpunodes_agree_with_the_pods_that_run(faults: Faults) -> None:
    with Cluster(faults.fleet) as cluster:
        held: dict[str, int] = {}
        for node in cluster.all(GPU_NODES):
            for one in node["status"]["allocations"]:
                held[one["podUid"]] = held.get(one["podUid"], 0) + len(one["devices"])
        asked = {
            pod["metadata"]["uid"]: sum(
                int(count) for c in pod["spec"]["containers"] for count in c["resources"]["limits"].values()
            )
            for pod in cluster.pods(NAMESPACE)
            if pod["status"]["phase"] == "Running"
        }
    assert held == asked


def test_a_process_container_survived_the_death_of_its_node(faults: Faults) -> None:
    with Cluster(faults.fleet) as cluster:
        (status,) = cluster.get(PODS, "server", NAMESPACE)["status"]["containerStatuses"]
    assert (status["restartCount"], status["ready"]) == (0, True)
    logs = faults.fleet.run("logs", "server", "-n", NAMESPACE).stdout.splitlines()
    assert len(logs) == 1
    assert psutil.pid_exists(int(logs[0].removeprefix("began as ")))


def test_down_leaves_no_process_and_no_port(faults: Faults) -> None:
    (server,) = faults.fleet.run("logs", "server", "-n", NAMESPACE).stdout.splitlines()
    faults.fleet.down()
    assert faults.fleet.processes() == {}
    assert faults.fleet.listening() == []
    assert not psutil.pid_exists(int(server.removeprefix("began as ")))
