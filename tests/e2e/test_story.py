"""The story: what a user sees after `gpufleet up --scenario examples/primer` on a fresh fleet, and then does.

One fleet, one play of the primer, watched from before its first pod. The facts are asked of the API server,
of the GPUNodes and of the command line, which must agree.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.e2e.cluster import Cluster, Object, condition
from tests.e2e.conftest import NewFleet
from tests.e2e.kubectl import Kubectl
from tests.e2e.local_fleet import LocalFleet, wait_until
from tests.e2e.observer import Observer

from gpufleet.kube.kinds import GPU_NODES, NODES, PODS
from gpufleet.kube.values import DECISION_CONDITION
from gpufleet.local.scenario import load

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).parents[2]
PRIMER = ROOT / "examples" / "primer"
NAMESPACE = "primer"
GPU = "nvidia.com/gpu"
INSTANCE = "nvidia.com/mig-1g.10gb"

STATUS_NAMES = {
    "": {"fleet", "ready", "kubeconfig", "metrics", "nodes", "gpus", "pods", "components"},
    "gpus": {"total", "allocated", "free", "unhealthy"},
    "pods": {"running", "pending"},
    "components": {"name", "pid", "state", "restarts", "last_exit"},
}
GPU_NAMES = {
    "node", "index", "uuid", "product", "memory_mib", "util_percent", "pods", "healthy",
    "memory_used_mib", "temperature_c", "power_w", "mig", "reason", "fraction_milli",
}  # fmt: skip
WHY_NAMES = {
    "namespace", "pod", "verdict", "reasons", "holders", "held_for", "changes", "node", "gang", "uid",
    "gang_rule",
}  # fmt: skip
REASON_NAMES = {"code", "message", "subject", "nodes", "evidence"}
HOLDER_NAMES = {
    "namespace", "workload", "resource", "amount", "pods", "priority", "preemptible", "nodes", "ending",
}  # fmt: skip
CHANGE_NAMES = {"kind", "message"}

PROCESS = """\
echo "devices=$CUDA_VISIBLE_DEVICES"
echo "visible=$NVIDIA_VISIBLE_DEVICES"
echo "asked=$GREETING on $(hostname)" >&2
sleep 600
"""


class Story(msgspec.Struct, frozen=True):
    """The fleet after the primer, and how it came to that."""

    fleet: LocalFleet
    cluster: Cluster
    observer: Observer
    said: str
    told: dict[str, Any]

    def why(self, pod: Object) -> Any:
        """`gpufleet why POD -o json`; asked once for each pod."""
        name = pod["metadata"]["name"]
        if name not in self.told:
            done = self.fleet.run("why", name, "-n", NAMESPACE, "-o", "json")
            assert done.returncode == 0, done.stderr
            self.told[name] = json.loads(done.stdout)
        return self.told[name]

    def pods(self, app: str) -> list[Object]:
        """The pods of a part of the primer."""
        return self.cluster.pods(NAMESPACE, app=app)

    def allocations(self, pod: Object) -> list[Object]:
        """What the GPUNode of a pod's node says that the pod holds."""
        status = self.cluster.get(GPU_NODES, pod["spec"]["nodeName"])["status"]
        return [one for one in status["allocations"] if one["podUid"] == pod["metadata"]["uid"]]

    def run_pod(self, name: str, container: Object, annotations: Object) -> Object:
        """Create a pod of one container in the primer's namespace; the pod once it runs."""
        metadata = {"name": name, "annotations": annotations}
        spec = {"schedulerName": "gpufleet", "terminationGracePeriodSeconds": 1, "containers": [container]}
        self.cluster.create(PODS, {"metadata": metadata, "spec": spec}, NAMESPACE)

        def phase() -> Any:
            return self.cluster.get(PODS, name, NAMESPACE)["status"]["phase"]

        wait_until(lambda: phase() == "Running", f"pod {name} runs")
        return self.cluster.get(PODS, name, NAMESPACE)


@pytest.fixture(scope="module")
def story(new_fleet: NewFleet) -> Iterator[Story]:
    """Play the primer on a fresh fleet of the default preset."""
    fleet = new_fleet("story")
    with Observer(fleet.kubeconfig) as observer:
        said = fleet.up("--scenario", str(PRIMER))
        with Cluster(fleet) as cluster:
            yield Story(fleet, cluster, observer, said, {})


@pytest.fixture(scope="module")
def kubectl(story: Story, tmp_path_factory: pytest.TempPathFactory) -> Kubectl:
    """kubectl in the primer's namespace."""
    return Kubectl.on(story.fleet, tmp_path_factory.mktemp("plugin"), NAMESPACE)


def surge() -> int:
    """How many replicas of the service the scenario adds to the two of its manifest."""
    return max(step.scale.replicas for step in load(PRIMER).steps if step.scale is not None) - 2


def codes_of(message: str) -> list[str]:
    """The codes at the end of a message of ours."""
    found = re.search(r"\[([A-Za-z, ]+)\]$", message)
    return found[1].split(", ") if found else []


def test_up_plays_the_whole_scenario_and_says_how_to_go_on(story: Story) -> None:
    assert "fleet ready: story" in story.said
    steps = re.findall(r"^(\d)\. ", story.said, re.MULTILINE)
    assert steps == [str(number) for number in range(1, 8)]
    assert "not as expected" not in story.said
    assert f"export KUBECONFIG={story.fleet.kubeconfig}" in story.said


def test_the_readme_shows_what_up_says(story: Story) -> None:
    shown = (ROOT / "README.md").read_text().partition("$ make up")[2].partition("```")[0]
    assert steps_of(shown) == steps_of(story.said)
    assert len(steps_of(shown)) == 7


def steps_of(said: str) -> list[tuple[str, Counter[tuple[str, str]]]]:
    """Per step of a play: its title, and how many pods of which workload were in which state."""
    steps: list[tuple[str, Counter[tuple[str, str]]]] = []
    for line in said.splitlines():
        if title := re.match(r"\d\. (.*)", line):
            steps.append((title[1], Counter()))
        elif pod := re.match(r"   (running|pending|evicted) +([a-z]+)", line):
            steps[-1][1][pod[1], pod[2]] += 1
    return steps


def test_everything_was_watched_from_before_the_first_pod(story: Story) -> None:
    assert story.observer.objects_at_start["pods"] == 0
    assert story.observer.gaps == 0


def test_replicas_of_the_service_run_on_two_nodes(story: Story) -> None:
    chat = story.pods("chat")
    assert [pod["status"]["phase"] for pod in chat] == ["Running", "Running"]
    assert {pod["spec"]["nodeName"] for pod in chat} == {"infer-0", "infer-1"}


def test_the_gang_is_bound_whole(story: Story) -> None:
    gang = story.pods("pretrain")
    assert {pod["spec"].get("nodeName") for pod in gang} == {"train-0", "train-1", "train-2", "train-3"}
    assert {pod["status"]["phase"] for pod in gang} == {"Running"}
    for pod in gang:
        (held,) = story.allocations(pod)
        assert (held["resource"], len(set(held["devices"]))) == (GPU, 8)


def test_no_pod_of_the_gang_was_bound_before_all_of_them_existed(story: Story) -> None:
    seen = story.observer.pods(app="pretrain")
    first_bound = next(number for number, sighting in enumerate(seen) if sighting.node)
    assert len({sighting.uid for sighting in seen[:first_bound]}) == 4


def test_no_pod_of_the_gang_that_does_not_fit_was_ever_bound(story: Story) -> None:
    ever = story.observer.nodes_of(story.observer.pods(app="finetune"))
    assert set(ever) == {pod["metadata"]["uid"] for pod in story.pods("finetune")}
    assert list(ever.values()) == [set()] * 4
    assert not [
        event
        for event in story.cluster.events(NAMESPACE, reason="Scheduled")
        if event["regarding"]["name"].startswith("finetune")
    ]


def test_the_surge_evicts_exactly_as_many_as_it_needs_and_only_batch(story: Story) -> None:
    evicted = {
        event["regarding"]["uid"]: event for event in story.cluster.events(NAMESPACE, reason="Preempted")
    }
    disrupted = {
        sighting.uid: condition(sighting.object, "DisruptionTarget")
        for sighting in story.observer.pods()
        if condition(sighting.object, "DisruptionTarget")
    }
    batch = {sighting.uid for sighting in story.observer.pods(app="embed")}
    assert set(evicted) == set(disrupted)
    assert set(disrupted) <= batch
    assert {one["reason"] for one in disrupted.values()} == {"PreemptionByScheduler"}
    assert {one["message"] for one in disrupted.values()} == {event["note"] for event in evicted.values()}
    # All 8 GPUs of the pool were held, 2 of them by chat, and no victim holds more than one.
    assert len(evicted) == surge()


def test_each_eviction_names_a_beneficiary_that_then_ran_in_its_place(story: Story) -> None:
    nodes = story.observer.nodes_of(story.observer.pods())
    names = {sighting.object["metadata"]["name"]: sighting.uid for sighting in story.observer.pods()}
    beneficiaries = []
    for event in story.cluster.events(NAMESPACE, reason="Preempted"):
        told = re.match(r"evicted for primer/(chat-\S+) \(priority 100000 over 1000\)", event["note"])
        assert told is not None, event["note"]
        beneficiaries.append(told[1])
        assert nodes[names[told[1]]] == nodes[event["regarding"]["uid"]]
    assert len(set(beneficiaries)) == surge()


def test_batch_is_back_after_the_surge(story: Story) -> None:
    batch = story.pods("embed")
    assert [pod["status"]["phase"] for pod in batch] == ["Running"] * 6
    returned = {pod["metadata"]["uid"] for pod in batch}
    evicted = {event["regarding"]["uid"] for event in story.cluster.events(NAMESPACE, reason="Preempted")}
    assert len(returned - evicted) == 6


def test_why_says_which_constraint_blocks_the_impossible_job_on_how_many_nodes(story: Story) -> None:
    (giant,) = story.pods("giant")
    told = story.why(giant)
    assert told["verdict"] == "never"
    assert {reason["code"]: reason["nodes"] for reason in told["reasons"] if reason["nodes"]} == {
        "ExceedsNodeCapacity": 4,
        "NodeSelectorMismatch": 3,
    }
    words = story.fleet.run("why", giant["metadata"]["name"], "-n", NAMESPACE).stdout
    assert "can never run on this fleet" in words
    assert "4 nodes too small: 16 nvidia.com/gpu needed on one node, the largest has 8" in words
    assert "3 nodes outside the pod's nodeSelector: label gpufleet.dev/pool is not training" in words


@pytest.mark.parametrize(("app", "code"), [("giant", "ExceedsNodeCapacity"), ("finetune", "GangUnplaceable")])
def test_one_code_stands_in_condition_message_event_and_why(story: Story, app: str, code: str) -> None:
    for pod in story.pods(app):
        decision, scheduled = condition(pod, DECISION_CONDITION), condition(pod, "PodScheduled")
        events = story.cluster.events(NAMESPACE, about=pod, reason="FailedScheduling")
        newest = max(events, key=lambda event: str(event["eventTime"]))
        why = story.why(pod)
        assert decision["reason"] == code
        assert (scheduled["status"], scheduled["reason"]) == ("False", "Unschedulable")
        assert codes_of(scheduled["message"])[0] == code
        assert scheduled["message"] == decision["message"] == newest["note"]
        assert codes_of(newest["note"]) == [reason["code"] for reason in why["reasons"]]


def test_why_of_the_gang_that_does_not_fit_names_who_holds_the_gpus(story: Story) -> None:
    told = story.why(story.pods("finetune")[0])
    assert (told["verdict"], told["gang"]) == ("not-now", "finetune")
    (holder,) = told["holders"]
    assert (holder["workload"], holder["amount"], holder["pods"]) == ("Job/pretrain", 32, 4)
    assert holder["preemptible"] is False


def test_the_first_thing_that_happens_to_a_waiting_pod_is_that_it_is_told_why(
    story: Story, capsys: pytest.CaptureFixture[str]
) -> None:
    waits: list[float] = []
    for pod in [*story.pods("finetune"), *story.pods("giant")]:
        mine = [one for one in story.observer.sightings if one.uid == pod["metadata"]["uid"]]
        told = next(one for one in mine if condition(one.object, DECISION_CONDITION))
        before = mine[: mine.index(told)]
        assert all(one.object.get("status", {}).get("conditions", []) == [] for one in before)
        assert story.cluster.events(NAMESPACE, about=pod, reason="FailedScheduling")
        waits.append(told.at - mine[0].at)
    with capsys.disabled():
        print(f"\n  reason written {min(waits):.2f} to {max(waits):.2f} s after the pod appeared", end=" ")


def test_json_has_exactly_the_documented_names(story: Story) -> None:
    status = story.fleet.status()
    assert set(status) == STATUS_NAMES[""]
    assert set(status["gpus"]) == STATUS_NAMES["gpus"]
    assert set(status["pods"]) == STATUS_NAMES["pods"]
    assert all(set(one) == STATUS_NAMES["components"] for one in status["components"])
    gpus = json.loads(story.fleet.run("top", "gpus", "-o", "json").stdout)
    assert all(set(gpu) == GPU_NAMES for gpu in gpus)
    assert all(set(pod) == {"namespace", "name", "container"} for gpu in gpus for pod in gpu["pods"])
    for pod in (*story.pods("finetune"), *story.pods("giant"), story.pods("chat")[0]):
        told = story.why(pod)
        assert set(told) == WHY_NAMES
        assert told["verdict"] in ("running", "soon", "not-now", "never")
        assert all(set(reason) == REASON_NAMES for reason in told["reasons"])
        assert all(set(holder) == HOLDER_NAMES for holder in told["holders"])
        assert all(set(change) == CHANGE_NAMES for change in told["changes"])


def test_status_and_top_count_what_the_pods_hold(story: Story) -> None:
    status = story.fleet.status()
    running = [pod for pod in story.cluster.all(PODS, NAMESPACE) if pod["status"]["phase"] == "Running"]
    held = sum(len(one["devices"]) for pod in running for one in story.allocations(pod))
    assert held == 2 + 4 * 8 + 6
    assert status["ready"] is True
    assert status["nodes"] == len(story.cluster.all(NODES)) == 7
    assert status["gpus"] == {"total": 48, "allocated": held, "free": 48 - held, "unhealthy": 0}
    assert status["pods"] == {"running": 12, "pending": 5}
    gpus = json.loads(story.fleet.run("top", "gpus", "-o", "json").stdout)
    assert sum(bool(gpu["pods"]) for gpu in gpus) == held
    top = json.loads(story.fleet.run("top", "pods", "-n", NAMESPACE, "-o", "json").stdout)
    assert {pod["name"] for pod in top} == {pod["metadata"]["name"] for pod in running}


def test_a_tenant_of_a_mig_instance_runs_on_the_node_that_is_cut(story: Story) -> None:
    notebook = {"name": "notebook", "image": "notebook", "resources": {"limits": {INSTANCE: 1}}}
    pod = story.run_pod("tenant", notebook, {})
    assert pod["spec"]["nodeName"] == "shared-0"
    (held,) = story.allocations(pod)
    (uuid,) = held["devices"]
    assert held["resource"] == INSTANCE
    devices = story.cluster.get(GPU_NODES, "shared-0")["status"]["devices"]
    (cut,) = (gpu for gpu in devices if uuid in [one["uuid"] for one in gpu["instances"]])
    (instance,) = (one for one in cut["instances"] if one["uuid"] == uuid)
    assert instance["profile"] == "1g.10gb"
    gpus = json.loads(story.fleet.run("top", "gpus", "-o", "json").stdout)
    (shown,) = (gpu for gpu in gpus if gpu["pods"] and gpu["node"] == "shared-0")
    assert (shown["uuid"], shown["index"]) == (cut["uuid"], cut["index"])
    assert shown["pods"] == [{"namespace": NAMESPACE, "name": "tenant", "container": "notebook"}]
    assert shown["mig"] == "2x1g.10gb,1x2g.20gb,1x3g.40gb"


def test_a_process_pod_really_runs_its_command_with_its_devices(story: Story, kubectl: Kubectl) -> None:
    main = {
        "name": "main",
        "image": "none",
        "command": ["/bin/sh", "-c", PROCESS],
        "env": [{"name": "GREETING", "value": "hello"}],
        "resources": {"limits": {INSTANCE: 2}},
    }
    pod = story.run_pod("worker", main, {"gpufleet.dev/runtime": "process"})
    (held,) = story.allocations(pod)
    devices = ",".join(held["devices"])
    assert len(held["devices"]) == 2

    def logs() -> str:
        return story.fleet.run("logs", "worker", "-n", NAMESPACE).stdout

    wait_until(lambda: "asked=" in logs(), "the process has written")
    assert logs().splitlines()[:2] == [f"devices={devices}", f"visible={devices}"]
    assert logs().splitlines()[2].startswith("asked=hello on ")
    assert kubectl("logs", "worker") == logs()
    assert any("sleep 600" in line for line in story.fleet.processes().values())
    kubectl("delete", "pod", "worker")
    wait_until(
        lambda: not any("sleep 600" in line for line in story.fleet.processes().values()),
        "the process has ended with its pod",
    )


def test_the_scenario_can_be_played_again_on_the_same_fleet(story: Story) -> None:
    again = story.fleet.up("--scenario", str(PRIMER))
    assert "fleet story is already running" in again
    assert "not as expected" not in again
    assert len(story.cluster.events(NAMESPACE, reason="Preempted")) == 2 * surge()
    assert len(story.pods("embed")) == 6
