"""What `gpufleet why` prints: the headline is what the pod does, and amounts are what people write."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import pytest
from tests.unit.fleets import node, pod

from gpufleet.cli.why import disruption, progress, render, with_faults
from gpufleet.fleet.nodes import Node
from gpufleet.fleet.pods import Pod
from gpufleet.fleet.snapshot import snapshot_of
from gpufleet.kube import objects
from gpufleet.kube.gpunode import GPUNode
from gpufleet.scheduling.cycle import Policy
from gpufleet.scheduling.explain import Explanation, explain


def why(*things: Node | Pod, finished: Pod | None = None) -> Explanation:
    nodes = tuple(thing for thing in things if isinstance(thing, Node))
    pods = tuple(thing for thing in things if isinstance(thing, Pod))
    found = explain(snapshot_of(nodes, pods), "default/p", Policy(), finished)
    assert found is not None
    return found


def told(explanation: Explanation, status: Mapping[str, object]) -> str:
    """What is printed about a bound pod whose node says `status`."""
    given = {"metadata": {"name": "p", "namespace": "default"}, "spec": {"nodeName": "a"}, "status": status}
    there = msgspec.convert(given, objects.Pod)
    return render(msgspec.structs.replace(explanation, reasons=(*explanation.reasons, *progress(there))))


def test_a_victim_of_preemption_is_told_for_whom_it_ends() -> None:
    text = "evicted for default/urgent (priority 9 over 0), which fits on a without it"
    there = msgspec.convert(
        {
            "metadata": {"name": "p", "namespace": "default", "deletionTimestamp": "2026-01-01T00:00:00Z"},
            "status": {
                "phase": "Running",
                "conditions": [
                    {
                        "type": "DisruptionTarget",
                        "status": "True",
                        "reason": "PreemptionByScheduler",
                        "message": text,
                    }
                ],
            },
        },
        objects.Pod,
    )
    found = why(node("a"), pod("p", node="a", terminating=True))
    shown = render(msgspec.structs.replace(found, reasons=(*disruption(there), *found.reasons)))
    assert shown.startswith("default/p is ending on a\n")
    assert f"Preempted    {text}\n" in shown


def test_a_pod_that_runs_and_is_not_ready_is_told_the_container_and_its_probe() -> None:
    there = msgspec.convert(
        {
            "metadata": {"name": "p", "namespace": "default"},
            "spec": {
                "nodeName": "a",
                "containers": [
                    {"name": "main", "readinessProbe": {"httpGet": {"path": "/healthz", "port": 80}}},
                    {"name": "slow", "startupProbe": {"exec": {"command": ["test", "-f", "up"]}}},
                    {"name": "fine"},
                ],
                "readinessGates": [{"conditionType": "example.com/gate"}],
            },
            "status": {
                "phase": "Running",
                "containerStatuses": [
                    {"name": "main", "ready": False, "started": True, "state": {"running": {}}},
                    {"name": "slow", "ready": False, "started": False, "state": {"running": {}}},
                    {"name": "fine", "ready": True, "started": True, "state": {"running": {}}},
                ],
            },
        },
        objects.Pod,
    )
    reasons = progress(there)
    assert [reason.message for reason in reasons] == [
        "container main runs, but its readiness probe (GET /healthz on port 80) does not pass",
        "container slow runs, but its startup probe (exec test -f up) does not pass",
        "readiness gate example.com/gate is not True; whoever set it must make it so",
    ]
    found = why(node("a"), pod("p", node="a"))
    shown = render(msgspec.structs.replace(found, reasons=(*found.reasons, *reasons)))
    assert shown.startswith("default/p runs, but is not ready\n")


def test_sick_gpus_are_named_with_their_faults() -> None:
    devices = [
        {"index": i, "uuid": f"GPU-{i:08}-0000-0000-0000-000000000000", "product": "h", "memoryMib": 1}
        for i in range(2)
    ]
    devices[0] |= {"healthy": True}
    devices[1] |= {"healthy": False, "reason": "Xid79"}
    report = msgspec.convert({"metadata": {"name": "a"}, "status": {"devices": devices}}, GPUNode)
    found = why(node("a", gpus=1, sick=1), pod("p", gpus=2))
    told = with_faults(found.reasons, [report])
    assert told[0].code == "DeviceUnhealthy"
    assert told[0].message.endswith("; sick: GPU 1 of a (Xid79)")
    assert told[1:] == found.reasons[1:]


def container(**state: object) -> dict[str, object]:
    return {"name": "main", "state": state}


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({"phase": "Pending"}, "a has not started it yet"),
        (
            {"phase": "Pending", "containerStatuses": [container(waiting={"reason": "ContainerCreating"})]},
            "container main waits: ContainerCreating",
        ),
        (
            {
                "phase": "Running",
                "containerStatuses": [
                    container(waiting={"reason": "CrashLoopBackOff", "message": "back-off 10s"})
                ],
            },
            "container main waits: CrashLoopBackOff: back-off 10s",
        ),
    ],
)
def test_a_bound_pod_that_does_not_run_is_told_what_it_waits_for(
    status: Mapping[str, object], words: str
) -> None:
    text = told(why(node("a"), pod("p", node="a")), status)
    assert text.startswith("default/p is bound to a, but does not run\n")
    assert f"ContainerWaiting  {words}\n" in text


def test_a_pod_that_runs_runs() -> None:
    status = {"phase": "Running", "containerStatuses": [container(running={})]}
    assert told(why(node("a"), pod("p", node="a")), status).startswith("default/p runs\n")


def test_a_pod_on_a_node_that_is_gone_does_not_run() -> None:
    assert "is bound to a, but does not run" in render(why(pod("p", node="a")))


def test_a_pod_that_its_node_refused_says_why() -> None:
    failed = msgspec.structs.replace(pod("p", node="a"), phase="Failed")
    status = {"phase": "Failed", "reason": "OutOfcpu", "message": "Node didn't have enough resource: cpu"}
    text = told(why(node("a"), finished=failed), status)
    assert text.startswith("default/p has ended\n")
    assert "Finished  OutOfcpu: Node didn't have enough resource: cpu\n" in text


def test_holders_are_told_in_the_units_of_the_reason_and_who_is_ending_is_marked() -> None:
    text = render(
        why(
            node("a", cpu="64"),
            pod("r", cpu="30", node="a", priority=5),
            pod("e", cpu="30", node="a", terminating=True),
            pod("p", cpu="50"),
        )
    )
    assert "too little cpu free: 50 needed, at most 4 free" in text
    assert "default\tPod/r\tcpu\t30\t1\t5\ta\n" in text
    assert "default\tPod/e (ending)\tcpu\t30\t1\t0\ta\n" in text


def test_whom_room_is_held_for_is_told_apart() -> None:
    victim = pod("victim", gpus=4, node="a", terminating=True)
    first = pod("first", gpus=4, nominated="a", priority=1)
    text = render(why(node("a", gpus=4), victim, first, pod("p", gpus=4)))
    holders, waiting = text.split("Who holds it")[1].split("Room is held for")
    assert "Pod/victim (ending)" in holders
    assert "Pod/first" not in holders
    assert "Pod/first" in waiting


def test_a_pod_that_is_being_deleted_needs_no_advice() -> None:
    text = render(why(node("a"), pod("p", terminating=True)))
    assert text.startswith("default/p is being deleted\n")
    assert "No single change" not in text


def test_a_terminal_shows_the_largest_holders_and_says_how_many_more_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machines = [node(f"n{i:02}", gpus=1) for i in range(30)]
    holders = [pod(f"r{i:02}", gpus=1, node=f"n{i:02}", owner=f"o{max(i - 9, 0):02}") for i in range(30)]
    found = why(*machines, *holders, pod("p", gpus=1))
    assert render(found).count("ReplicaSet/") > 20
    monkeypatch.setenv("GPUFLEET_FORCE_TTY", "1")
    monkeypatch.setenv("COLUMNS", "200")
    text = render(found)
    assert "n00, n01, n02, n03 and 6 more" in text
    assert "and 11 more, all of them with -o json\n" in text
