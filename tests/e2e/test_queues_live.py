"""Queues on a local fleet: teams share, a limit is told and can be raised, a broken queue hurts nobody."""

from __future__ import annotations

import json
import re

import pytest
from tests.e2e.kubectl import Kubectl
from tests.e2e.local_fleet import LocalFleet, wait_until

pytestmark = pytest.mark.timeout(300)

QUEUES = """\
apiVersion: gpufleet.dev/v1alpha1
kind: Queue
metadata: {name: research}
spec: {limit: {gpu: 4}}
---
apiVersion: gpufleet.dev/v1alpha1
kind: Queue
metadata: {name: vision}
spec: {parent: research, guarantee: {gpu: "1"}}
---
apiVersion: gpufleet.dev/v1alpha1
kind: Queue
metadata: {name: speech}
spec: {parent: research}
---
apiVersion: gpufleet.dev/v1alpha1
kind: Queue
metadata: {name: lost}
spec: {parent: nowhere}
"""
POD = """\
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{{label}: {queue}}}}}
spec:
  schedulerName: gpufleet
  containers: [{{name: main, image: main, resources: {{limits: {{nvidia.com/gpu: 1}}}}}}]
"""


def pods(count: int, queue: str, label: str = "gpufleet.dev/queue") -> str:
    return "".join(POD.format(name=f"{queue}-{n}", label=label, queue=queue) for n in range(count))


@pytest.fixture(scope="module")
def kubectl(fleet: LocalFleet, tmp_path_factory: pytest.TempPathFactory) -> Kubectl:
    """kubectl in a namespace of its own."""
    made = Kubectl.on(fleet, tmp_path_factory.mktemp("plugin"), "teams")
    made("create", "namespace", "teams")
    return made


def bound(kubectl: Kubectl) -> list[str]:
    """The pods that have a node."""
    items = json.loads(kubectl("get", "pods", "-o", "json"))["items"]
    return sorted(item["metadata"]["name"] for item in items if item["spec"].get("nodeName"))


def reasons(kubectl: Kubectl, pod: str) -> set[str]:
    """The reasons of the pod's conditions that are False."""
    conditions = json.loads(kubectl("get", "pod", pod, "-o", "json"))["status"].get("conditions", ())
    return {one["reason"] for one in conditions if one["status"] == "False" and "reason" in one}


def test_teams_share_up_to_the_limit_above_them_which_is_told_and_can_be_raised(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", given=QUEUES)
    wanted = pods(4, "vision") + pods(3, "speech", "kai.scheduler/queue") + pods(1, "lost") + pods(1, "gone")
    kubectl("apply", "-f", "-", given=wanted)
    wait_until(lambda: len(bound(kubectl)) == 4, "four pods run", seconds=60)
    ours = [*(f"vision-{n}" for n in range(4)), *(f"speech-{n}" for n in range(3))]
    waiting = [name for name in ours if name not in bound(kubectl)]
    wait_until(lambda: "QueueOverLimit" in reasons(kubectl, waiting[0]), "the limit is told", seconds=30)
    wait_until(lambda: "QueueInvalid" in reasons(kubectl, "lost-0"), "the broken queue is told", seconds=30)
    wait_until(lambda: "QueueNotFound" in reasons(kubectl, "gone-0"), "the missing one is told", seconds=30)
    told = [kubectl.run("gpufleet", "why", name, "-n", "teams").stdout for name in waiting]
    assert all("queue research may hold 4 GPUs at most: 4 held, and the pod needs 1" in text for text in told)
    raised = [re.findall(r"raise the limit of queue research to (\d) GPUs", text) for text in told]
    assert all(raised), told
    assert sum("5" in amounts for amounts in raised) == 1, "one more is enough only for who comes next"
    report = json.loads(kubectl("gpufleet", "queues", "-o", "json"))
    rows = {row["name"]: row["gpu_milli"] for row in report["queues"]}
    assert rows["research"]["allocated"] == rows["research"]["fair_share"] == 4000
    assert rows["research"]["requested"] == 7000
    assert report["broken"] == {"lost": "queue lost names the parent nowhere, which does not exist"}
    kubectl("patch", "gpuq", "research", "--type=merge", "-p", '{"spec":{"limit":{"gpu":7}}}')
    wait_until(lambda: len(bound(kubectl)) == 7, "the others run, too", seconds=60)


def test_a_queue_that_is_deleted_stops_new_pods_only(kubectl: Kubectl) -> None:
    kubectl("delete", "gpuq", "speech")
    kubectl("apply", "-f", "-", given=pods(4, "speech", "kai.scheduler/queue"))
    wait_until(lambda: "QueueNotFound" in reasons(kubectl, "speech-3"), "it is told", seconds=30)
    assert len(bound(kubectl)) == 7
