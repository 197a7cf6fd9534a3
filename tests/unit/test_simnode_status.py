"""The status that is reported for a pod, and when it is worth writing."""

from __future__ import annotations

from typing import Any

import msgspec
from tests.unit.simnode_pods import as_written, container, pod

from gpufleet.kube.objects import Pod
from gpufleet.local.simnodes.podlife import step
from gpufleet.local.simnodes.podstate import (
    Changed,
    Exited,
    PodRun,
    Probed,
    Recorded,
    Started,
    accept,
    reject,
)
from gpufleet.local.simnodes.podstatus import is_settled, pod_status, reported_by, reported_in


def _play(subject: Pod, *events: Any, at: float = 1000.0) -> PodRun:
    run = accept(subject, "10.64.0.1", 990.0, 10.0)
    for event in (Recorded(), *events):
        run, _ = step(run, event, at)
    return run


def _conditions(status: dict[str, Any]) -> dict[str, str]:
    return {c["type"]: c["status"] for c in status["conditions"]}


def test_a_running_pod_without_probes_is_ready() -> None:
    status = pod_status(_play(pod(), Started("main", 0)), {}, 1000.0)
    assert status["phase"] == "Running"
    assert set(_conditions(status).values()) == {"True"}
    assert status["podIPs"] == [{"ip": "10.64.0.1"}]
    assert status["containerStatuses"][0]["state"] == {"running": {"startedAt": "1970-01-01T00:16:40Z"}}


def test_an_unready_container_is_named() -> None:
    run = _play(
        pod(containers=[container("a"), container("b", readinessProbe={})]), Started("a", 0), Started("b", 0)
    )
    ready = next(c for c in pod_status(run, {}, 1000.0)["conditions"] if c["type"] == "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "ContainersNotReady")
    assert ready["message"] == "containers with unready status: [b]"


def test_transition_times_change_only_with_the_status() -> None:
    run = _play(pod(containers=[container("main", readinessProbe={})]), Started("main", 0))
    first = pod_status(run, {}, 1000.0)
    ready, _ = step(run, Probed("main", 0, "readiness", ok=True), 1060.0)
    second = pod_status(ready, reported_in(first), 1060.0)
    times = {c["type"]: c["lastTransitionTime"][14:16] for c in second["conditions"]}
    assert times == {
        "PodReadyToStartContainers": "16",
        "Initialized": "16",
        "ContainersReady": "17",
        "Ready": "17",
    }


def test_what_was_written_reads_back_as_what_was_reported() -> None:
    run = _play(pod(), Started("main", 0))
    assert reported_by(as_written(run, 1000.0)) == reported_in(pod_status(run, {}, 1000.0))


def test_a_readiness_gate_holds_the_pod_back_until_somebody_opens_it() -> None:
    gate: dict[str, Any] = {"readinessGates": [{"conditionType": "example.com/up"}]}
    closed = _conditions(pod_status(_play(pod(**gate), Started("main", 0)), {}, 1000.0))
    assert (closed["ContainersReady"], closed["Ready"]) == ("True", "False")
    opened = pod(status={"conditions": [{"type": "example.com/up", "status": "True"}]}, **gate)
    assert _conditions(pod_status(_play(opened, Started("main", 0)), {}, 1000.0))["Ready"] == "True"


def test_conditions_of_others_are_never_named() -> None:
    scheduled = pod(status={"conditions": [{"type": "PodScheduled", "status": "True"}]})
    assert "PodScheduled" not in _conditions(pod_status(_play(scheduled), {}, 1000.0))


def test_a_refused_pod_reports_nothing_but_the_refusal() -> None:
    status = pod_status(reject(pod(), 1000.0, "OutOfcpu", "too little"), {}, 1000.0)
    assert (status["phase"], status["reason"], status["message"]) == ("Failed", "OutOfcpu", "too little")
    assert "containerStatuses" not in status


def test_a_finished_pod_says_how_its_containers_ended_and_has_no_address() -> None:
    subject = pod(restartPolicy="Never")
    status = pod_status(_play(subject, Started("main", 0), Exited("main", 0, 2)), {}, 1000.0)
    terminated = status["containerStatuses"][0]["state"]["terminated"]
    assert (terminated["exitCode"], terminated["reason"]) == (2, "Error")
    assert status["phase"] == "Failed"
    assert "podIP" not in status
    assert _conditions(status)["Ready"] == "False"


def test_a_pending_resize_is_a_condition_until_it_is_granted() -> None:
    wants = {"resources": {"requests": {"cpu": "1"}}}
    run = _play(pod(containers=[container() | wants]), Started("main", 0))
    bigger = pod(containers=[container() | {"resources": {"requests": {"cpu": "9"}}}])
    deferred, _ = step(run, Changed(bigger, "Deferred", "too little cpu"), 1001.0)
    status = pod_status(deferred, {}, 1001.0)
    assert status["containerStatuses"][0]["allocatedResources"] == {"cpu": "1"}
    assert ("PodResizePending", "Deferred") in [(c["type"], c["reason"]) for c in status["conditions"]]
    seen = msgspec.structs.replace(bigger, status=as_written(deferred, 1001.0).status)
    granted, _ = step(deferred, Changed(seen), 1002.0)
    status = pod_status(granted, {}, 1002.0)
    assert status["containerStatuses"][0]["allocatedResources"] == {"cpu": "9"}
    assert {"type": "PodResizePending", "$patch": "delete"} in status["conditions"]


def test_only_what_is_about_to_get_better_is_held_back() -> None:
    probed = pod(containers=[container("main", readinessProbe={})])
    assert not is_settled(_play(probed))
    assert not is_settled(_play(probed, Started("main", 0)))
    assert is_settled(_play(probed, Started("main", 0), Probed("main", 0, "readiness", ok=True)))
    assert is_settled(reject(pod(), 0.0, "OutOfcpu", ""))
    assert is_settled(_play(pod(restartPolicy="Never"), Started("main", 0), Exited("main", 0, 0)))
    crashed = _play(pod(), Started("main", 0), Exited("main", 0, 1), Started("main", 1), Exited("main", 1, 1))
    assert is_settled(crashed)
