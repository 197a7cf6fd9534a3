"""kubectl on a local fleet: what a user does all day, as transcripts of the real kubectl.

The fleet has three nodes: train-0 and train-1 with 8 H100 each, infer-0 with 4 L4. Whatever is not played by
a simulated node (a shell in a container, metrics) must say so in words.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator

import pytest
from tests.e2e.kubectl import Kubectl, matches, plain
from tests.e2e.local_fleet import LocalFleet, wait_until

pytestmark = pytest.mark.timeout(300)

SERVICE = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: chat}
spec:
  replicas: 2
  selector: {matchLabels: {app: chat}}
  template:
    metadata: {labels: {app: chat}}
    spec:
      terminationGracePeriodSeconds: 1
      nodeSelector: {gpufleet.dev/pool: train}
      containers:
        - name: engine
          image: engine:1
          ports: [{name: http, containerPort: 8000}]
          readinessProbe: {httpGet: {path: /health, port: http}}
          resources: {limits: {nvidia.com/gpu: "2"}}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: chat}
spec:
  minAvailable: 2
  selector: {matchLabels: {app: chat}}
"""
PENDING = """\
apiVersion: v1
kind: Pod
metadata: {name: huge}
spec:
  containers: [{name: main, image: main, resources: {limits: {nvidia.com/gpu: 16}}}]
"""
TICKER = """\
apiVersion: v1
kind: Pod
metadata:
  name: ticker
  annotations: {gpufleet.dev/runtime: process}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: main
      image: none
      command: ["/bin/sh", "-c", "for i in 1 2 3; do echo tick $i; sleep 0.3; done; exit 3"]
"""


@pytest.fixture(scope="module")
def kubectl(fleet: LocalFleet, tmp_path_factory: pytest.TempPathFactory) -> Kubectl:
    """kubectl in a namespace of its own."""
    made = Kubectl.on(fleet, tmp_path_factory.mktemp("plugin"), "play")
    made("create", "namespace", "play")
    return made


@pytest.fixture
def chat(kubectl: Kubectl) -> Iterator[Kubectl]:
    """kubectl while the service of two replicas runs."""
    kubectl("apply", "-f", "-", given=SERVICE)
    kubectl("rollout", "status", "deployment/chat", "--timeout=60s")
    yield kubectl
    kubectl("delete", "-f", "-", given=SERVICE)
    kubectl("wait", "pod", "-l", "app=chat", "--for=delete", "--timeout=60s")


def test_a_transcript_that_differs_is_noticed() -> None:
    assert matches("a\nb\nc", "a\n...\nc")
    assert matches("a", "a\n...")
    assert matches("one of two", "one [...] two")
    assert not matches("a\nb", "a")
    assert not matches("a", "a\nb")
    assert (
        plain("chat-6985cdf55d-29dbd   1/1   Running   0   3m12s") == "chat-HASH-XXXXX  1/1  Running  0  AGE"
    )
    assert plain("Restarts  3 (12s ago)") == "Restarts  3 (AGO)"


def test_nodes_look_like_nodes(kubectl: Kubectl) -> None:
    kubectl.session("nodes")


def test_custom_resources_are_listed_explained_and_found_by_their_short_name(kubectl: Kubectl) -> None:
    kubectl.session("gpunodes")


def test_a_service_is_applied_shown_and_deleted(kubectl: Kubectl) -> None:
    kubectl.session("service", given=SERVICE)


def test_a_service_is_scaled_rolled_out_undone_and_restarted(chat: Kubectl) -> None:
    chat.session("rollout")


def test_a_watch_sees_a_pod_come_and_go(kubectl: Kubectl) -> None:
    kubectl("run", "before", "--image=before", "--restart=Never", "--grace-period=1")
    watching = kubectl.start("get", "pods", "--watch", "--output-watch-events")
    assert watching.stdout is not None
    assert "EVENT" in watching.stdout.readline()
    kubectl("run", "seen", "--image=seen", "--restart=Never", "--grace-period=1")
    kubectl("wait", "pod/seen", "--for=condition=Ready", "--timeout=60s")
    kubectl("delete", "pod", "seen", "before", "--grace-period=1")
    watching.send_signal(signal.SIGINT)
    printed, _ = watching.communicate(timeout=30)
    lines = [re.split(r"\s+", line) for line in plain(printed).splitlines()]
    told = [(line[0], line[3]) for line in lines if line[1] == "seen"]
    assert told[0] == ("ADDED", "Pending")
    assert ("MODIFIED", "Running") in told
    assert ("MODIFIED", "Terminating") in told
    assert told[-1][0] == "DELETED"


def test_a_cordoned_node_takes_no_pods_and_a_drain_respects_the_budget(chat: Kubectl) -> None:
    chat.session("drain")


def test_a_pod_that_waits_is_described_with_its_reason_and_the_plugin_says_why(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", given=PENDING)
    kubectl("wait", "pod/huge", "--for=condition=PodScheduled=False", "--timeout=30s")
    wait_until(lambda: kubectl("events", "--for", "pod/huge") != "", "the event is there", seconds=30)
    kubectl.session("pending")
    told = kubectl.run("gpufleet", "why", "huge", "-n", "play", "-o", "json")
    assert told.returncode == 5, told.stdout


def test_logs_follow_a_process_to_its_end_and_keep_its_previous_run(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", given=TICKER)
    kubectl("wait", "pod/ticker", "--for=jsonpath={.status.phase}=Running", "--timeout=30s")
    kubectl.session("follow")
    kubectl(
        "wait", "pod/ticker", "--for=jsonpath={.status.containerStatuses[0].restartCount}=1", "--timeout=30s"
    )
    kubectl.session("previous")
    stamped = kubectl("logs", "ticker", "--previous", "--timestamps").splitlines()
    assert [plain(line) for line in stamped] == ["TIME tick 1", "TIME tick 2", "TIME tick 3"]
    kubectl(
        "wait",
        "pod/ticker",
        "--for=jsonpath={.status.containerStatuses[0].state.waiting.reason}=CrashLoopBackOff",
        "--timeout=30s",
    )
    kubectl.session("crashloop")


def test_what_a_played_container_cannot_do_is_said_in_words(chat: Kubectl) -> None:
    chat.session("refused")
    pod = chat("get", "pods", "-o", "name").splitlines()[0]
    done = chat.run("logs", pod, "--previous")
    assert done.returncode == 1
    assert (
        f'previous terminated container "engine" in pod "{pod.removeprefix("pod/")}" not found' in done.stderr
    )


def test_what_people_put_on_a_node_survives_its_simulated_kubelet(
    kubectl: Kubectl, fleet: LocalFleet
) -> None:
    kubectl.session("cordon")
    restarts = fleet.component("simulated-nodes")["restarts"]
    fleet.kill("simulated-nodes")
    wait_until(
        lambda: fleet.component("simulated-nodes")["restarts"] > restarts and fleet.status()["ready"],
        "it is back",
    )
    node = json.loads(kubectl("get", "node", "infer-0", "-o", "json"))
    assert node["metadata"]["labels"]["team"] == "red"
    assert node["metadata"]["labels"]["gpufleet.dev/pool"] == "infer"
    assert node["metadata"]["annotations"]["example.com/note"] == "kept"
    assert node["spec"]["unschedulable"] is True
    assert {taint["key"] for taint in node["spec"]["taints"]} == {
        "dedicated",
        "node.kubernetes.io/unschedulable",
    }
    kubectl.session("uncordon")


def test_the_plugin_is_found_by_kubectl(kubectl: Kubectl) -> None:
    assert "kubectl-gpufleet" in kubectl("plugin", "list")
    status = json.loads(kubectl("gpufleet", "status", "-o", "json"))
    assert status["fleet"] == "kubectl"
