"""The life of a pod on its node, by a kubelet's rules."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.lives import EVENTS, SIDECAR, Life, Runtime, two_containers
from tests.unit.simnode_pods import container, pod

from gpufleet.local.simnodes.podstate import (
    Exited,
    Fail,
    Gone,
    Note,
    Over,
    Probed,
    Recorded,
    Started,
    StartFailed,
    Tick,
    reject,
)
from gpufleet.local.simnodes.podstatus import pod_status


def test_no_container_starts_before_its_devices_are_on_record() -> None:
    life = Life(pod(containers=two_containers())).tell(Tick())
    assert life.starts == []
    assert life.tell(Recorded()).starts == ["a", "b"]


def test_a_pod_is_pending_until_all_its_containers_have_started() -> None:
    life = Life(pod(containers=two_containers())).tell(Recorded()).up("a")
    assert life.phase == "Pending"
    assert life.up("b").phase == "Running"


def test_init_containers_run_one_after_the_other_and_then_the_app() -> None:
    life = Life(pod(inits=[container("i1"), container("i2")])).tell(Recorded())
    assert life.starts == ["i1"]
    assert life.up("i1").starts == []
    assert life.exit("i1").starts == ["i2"]
    assert life.up("i2").exit("i2").starts == ["main"]


def test_a_sidecar_must_have_started_before_the_next_container_and_keeps_running() -> None:
    life = Life(pod(inits=[container("side", **SIDECAR), container("init")])).tell(Recorded())
    assert life.starts == ["side"]
    assert life.up("side").starts == ["init"]
    assert life.up("init").exit("init").starts == ["main"]
    assert life.up("main").phase == "Running"


def test_a_sidecar_with_a_startup_probe_holds_the_rest_back_until_it_passes() -> None:
    life = Life(pod(inits=[container("side", startupProbe={}, **SIDECAR)])).tell(Recorded()).up("side")
    assert life.starts == []
    assert life.tell(Probed("side", 0, "startup", ok=True)).starts == ["main"]


def test_sidecars_are_stopped_after_the_last_app_container_and_do_not_decide_the_phase() -> None:
    life = Life(pod(inits=[container("side", **SIDECAR)], restartPolicy="Never")).tell(Recorded())
    life.up("side").up("main").exit("main", 0)
    assert life.stops == [("side", 30.0)]
    life.exit("side", 143)
    assert Over() in life.out
    assert life.phase == "Succeeded"


def test_a_crashed_sidecar_comes_back_whatever_the_policy() -> None:
    life = Life(pod(inits=[container("side", **SIDECAR)], restartPolicy="Never")).tell(Recorded())
    assert life.up("side").up("main").exit("side", 1).starts == ["side"]


def test_a_failed_init_container_fails_a_pod_that_never_restarts() -> None:
    life = Life(pod(inits=[container("i")], restartPolicy="Never")).tell(Recorded()).up("i").exit("i", 3)
    assert Over() in life.out
    assert life.phase == "Failed"


def test_a_failed_init_container_is_tried_again_otherwise() -> None:
    life = Life(pod(inits=[container("i")], restartPolicy="OnFailure")).tell(Recorded()).up("i").exit("i", 3)
    assert life.starts == ["i"]
    assert life.phase == "Pending"


def test_policy_never_ends_the_pod_by_the_exit_codes() -> None:
    for code, phase in ((0, "Succeeded"), (1, "Failed")):
        life = Life(pod(restartPolicy="Never")).tell(Recorded()).up("main").exit("main", code)
        assert Over() in life.out
        assert life.phase == phase


def test_policy_on_failure_restarts_only_what_failed() -> None:
    life = Life(pod(containers=two_containers(), restartPolicy="OnFailure")).tell(Recorded()).up("a", "b")
    assert life.exit("a", 0).starts == []
    assert life.exit("b", 1).starts == ["b"]
    assert life.up("b").exit("b", 0).phase == "Succeeded"


def test_pauses_between_restarts_double_up_to_five_minutes_and_are_reported() -> None:
    life = Life(pod()).tell(Recorded())
    pauses = []
    for _ in range(8):
        life.up("main").exit("main", 1)
        if life.starts:
            pauses.append(0.0)
            continue
        run = life.run.run("main")
        assert run is not None
        assert run.reason == "CrashLoopBackOff"
        assert any(isinstance(one, Note) and one.reason == "BackOff" for one in life.out)
        pauses.append(life.wake - life.now)
        assert life.tell(Tick(), after=pauses[-1] - 0.5).starts == []
        assert life.tell(Tick(), after=0.5).starts == ["main"]
    assert pauses == [0.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0]
    assert life.run.runs[0].attempt == 8


def test_a_container_that_ran_for_long_restarts_at_once_again() -> None:
    life = Life(pod()).tell(Recorded()).up("main").exit("main", 1).up("main").exit("main", 1)
    life.tell(Tick(), after=10).up("main")
    assert life.exit("main", 1, after=601).starts == ["main"]


def test_a_container_that_cannot_be_created_waits_with_the_reason_and_is_tried_again() -> None:
    life = (
        Life(pod())
        .tell(Recorded())
        .tell(StartFailed("main", 0, "CreateContainerConfigError", "no such secret"))
    )
    assert pod_status(life.run, {}, life.now)["containerStatuses"][0]["state"] == {
        "waiting": {"reason": "CreateContainerConfigError", "message": "no such secret"}
    }
    assert life.tell(Tick(), after=11).starts == ["main"]
    assert life.run.runs[0].attempt == 0


def test_only_containers_that_were_created_count_as_restarts() -> None:
    life = Life(pod()).tell(Recorded()).up("main").exit("main", 1)
    seen = []
    for _ in range(3):
        life.tell(StartFailed("main", 1, "CreateContainerConfigError", "no such secret"))
        status = pod_status(life.run, {}, life.now)["containerStatuses"][0]
        seen.append((status["restartCount"], status["containerID"]))
        assert life.tell(Tick(), after=11).starts == ["main"]
    assert seen == 3 * [(0, "gpufleet-sim://uid-p/main/0")]
    assert life.up("main").run.runs[0].restarts == 1
    assert life.exit("main", 1, after=1).run.runs[0].restarts == 1


def test_a_deadline_stops_the_pod_and_fails_it() -> None:
    life = Life(pod(activeDeadlineSeconds=60)).tell(Recorded())
    assert life.wake == 1060.0
    life.up("main").tell(Tick(), after=60)
    assert life.stops == [("main", 30.0)]
    life.exit("main", 0)
    assert (life.phase, life.run.reason) == ("Failed", "DeadlineExceeded")


def test_deletion_stops_containers_within_the_grace_period_of_the_deletion() -> None:
    life = (
        Life(pod(containers=two_containers(), terminationGracePeriodSeconds=90))
        .tell(Recorded())
        .up("a", "b")
        .delete(45)
    )
    assert life.stops == [("a", 45.0), ("b", 45.0)]
    life.exit("a", 143)
    assert Over() not in life.out
    assert Over() in life.exit("b", 143).out


def test_a_second_deletion_with_less_grace_shortens_the_wait() -> None:
    life = Life(pod()).tell(Recorded()).up("main").delete(30).delete(5)
    assert life.stops == [("main", 5.0)]
    assert life.delete(5).stops == []


def test_a_pod_whose_object_is_gone_is_killed() -> None:
    life = Life(pod()).tell(Recorded()).up("main").tell(Gone())
    assert life.stops == [("main", 0.0)]
    assert Over() in life.exit("main", 137).out


def test_deletion_before_anything_ran_ends_at_once() -> None:
    assert Over() in Life(pod()).delete().out
    assert Over() in Life(pod()).tell(Gone()).out


def test_deleting_a_finished_or_refused_pod_lets_it_go() -> None:
    finished = Life(pod(restartPolicy="Never")).tell(Recorded()).up("main").exit("main").delete()
    refused = Life(pod(), reject(pod(), 5.0, "OutOfcpu", "no")).delete()
    assert Over() in finished.out
    assert Over() in refused.out
    assert refused.phase == "Failed"


def test_a_pod_being_deleted_does_not_restart_what_ends() -> None:
    life = Life(pod()).tell(Recorded()).up("main").delete().exit("main", 1)
    assert life.starts == []
    assert Over() in life.out


def test_a_pod_that_the_node_gives_up_is_stopped_and_failed() -> None:
    life = Life(pod()).tell(Recorded()).up("main").tell(Fail("UnexpectedAdmissionError", "devices are lost"))
    assert life.stops == [("main", 30.0)]
    assert (life.exit("main").phase, life.run.reason) == ("Failed", "UnexpectedAdmissionError")


def test_readiness_follows_the_probes() -> None:
    life = (
        Life(pod(containers=[container("main", startupProbe={}, readinessProbe={})]))
        .tell(Recorded())
        .up("main")
    )
    states = []
    for kind, ok in (("readiness", True), ("startup", True), ("readiness", True), ("readiness", False)):
        life.tell(Probed("main", 0, kind, ok=ok))
        states.append((life.run.runs[0].started, life.run.runs[0].ready))
    assert states == [(False, False), (True, False), (True, True), (True, False)]


def test_a_failed_liveness_probe_stops_the_container_and_it_comes_back() -> None:
    probe: dict[str, Any] = {"livenessProbe": {"terminationGracePeriodSeconds": 4}}
    life = Life(pod(containers=[container("main", **probe)])).tell(Recorded()).up("main")
    life.tell(Probed("main", 0, "liveness", ok=False, message="503"))
    assert life.stops == [("main", 4.0)]
    assert life.exit("main", 143).starts == ["main"]


def test_news_of_an_earlier_attempt_changes_nothing() -> None:
    life = Life(pod()).tell(Recorded()).up("main").exit("main", 1)
    before = life.run
    for event in (Exited("main", 0, 9), Started("main", 0), Probed("main", 0, "liveness", ok=False)):
        assert life.tell(event).run == before


@settings(max_examples=300)
@given(st.sampled_from(["Always", "OnFailure", "Never"]), st.lists(EVENTS, max_size=40))
def test_whatever_happens_no_container_runs_twice_and_every_end_is_final(
    policy: str, script: list[tuple[str, str, Any]]
) -> None:
    inits = [container("i"), container("side", **SIDECAR)]
    runtime = Runtime(Life(pod(inits=inits, containers=two_containers(), restartPolicy=policy)))
    for kind, name, detail in script:
        event = runtime.event(kind, name, detail)
        if event is not None:
            runtime.tell(event, 100.0 if kind == "tick" else 0.1)
    runtime.tell(Gone())
    while runtime.playing:
        name = min(runtime.playing)
        run = runtime.life.run.run(name)
        assert run is not None
        runtime.tell(Exited(name, run.attempt, 137))
    assert runtime.life.run.over
