"""The life of a pod on its node, by a kubelet's rules."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.simnode_pods import as_written, container, pod

from gpufleet.kube.objects import Pod
from gpufleet.local.simnodes.adoption import adopt
from gpufleet.local.simnodes.podlife import step
from gpufleet.local.simnodes.podstate import (
    Changed,
    Event,
    Exited,
    Fail,
    Gone,
    Note,
    Over,
    PodRun,
    Probed,
    Recorded,
    Start,
    Started,
    StartFailed,
    Stop,
    Tick,
    Wake,
    accept,
    phase_of,
    reject,
)
from gpufleet.local.simnodes.podstatus import pod_status

SIDECAR: dict[str, Any] = {"restartPolicy": "Always"}


class Life:
    """A pod, the events told so far, and what was asked for by the last one."""

    def __init__(self, subject: Pod, run: PodRun | None = None) -> None:
        self.now = 1000.0
        self.run = run or accept(subject, "10.64.0.1", self.now, 10.0)
        self.out: tuple[Any, ...] = ()

    def tell(self, event: Event, after: float = 0.0) -> Life:
        self.now += after
        self.run, self.out = step(self.run, event, self.now)
        return self

    def up(self, *names: str) -> Life:
        for name in names:
            run = self.run.run(name)
            assert run is not None
            self.tell(Started(name, run.attempt))
        return self

    def exit(self, name: str, code: int = 0, after: float = 1.0) -> Life:
        run = self.run.run(name)
        assert run is not None
        return self.tell(Exited(name, run.attempt, code), after)

    def delete(self, grace: int = 30) -> Life:
        meta = msgspec.structs.replace(
            self.run.pod.metadata,
            deletion_timestamp="2030-01-01T00:00:00Z",
            deletion_grace_period_seconds=grace,
        )
        return self.tell(Changed(msgspec.structs.replace(self.run.pod, metadata=meta)))

    @property
    def starts(self) -> list[str]:
        return [one.container for one in self.out if isinstance(one, Start)]

    @property
    def stops(self) -> list[tuple[str, float]]:
        return [(one.container, one.grace) for one in self.out if isinstance(one, Stop)]

    @property
    def wake(self) -> float:
        return min(one.at for one in self.out if isinstance(one, Wake))

    @property
    def phase(self) -> str:
        return phase_of(self.run)


def _two() -> list[dict[str, Any]]:
    return [container("a"), container("b")]


def test_no_container_starts_before_its_devices_are_on_record() -> None:
    life = Life(pod(containers=_two())).tell(Tick())
    assert life.starts == []
    assert life.tell(Recorded()).starts == ["a", "b"]


def test_a_pod_is_pending_until_all_its_containers_have_started() -> None:
    life = Life(pod(containers=_two())).tell(Recorded()).up("a")
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
    life = Life(pod(containers=_two(), restartPolicy="OnFailure")).tell(Recorded()).up("a", "b")
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
        Life(pod(containers=_two(), terminationGracePeriodSeconds=90))
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


def test_an_adopted_pod_keeps_running_containers_start_times_and_restart_counts() -> None:
    life = Life(pod(inits=[container("i"), container("side", **SIDECAR)], containers=_two())).tell(Recorded())
    life.up("i").exit("i").up("side").up("a", "b").exit("b", 1).up("b")
    written = as_written(life.run, life.now)
    back = Life(written, adopt(written, life.now + 50, 10.0)).tell(Recorded())
    assert back.out == ()
    assert back.phase == "Running"
    assert (back.run.accepted_at, back.run.address) == (life.run.accepted_at, life.run.address)
    assert [(r.name, r.state, r.attempt, int(r.started_at)) for r in back.run.runs if r.role != "init"] == [
        (r.name, r.state, r.attempt, int(r.started_at)) for r in life.run.runs if r.role != "init"
    ]


def test_an_adopted_pod_that_is_being_deleted_goes_on_ending() -> None:
    life = Life(pod()).tell(Recorded()).up("main")
    meta = {"deletionTimestamp": "2030-01-01T00:00:00Z", "deletionGracePeriodSeconds": 7}
    dying = msgspec.structs.replace(pod(metadata=meta), status=as_written(life.run, life.now).status)
    assert Life(dying, adopt(dying, life.now, 10.0)).tell(Recorded()).stops == [("main", 7.0)]


_NAMES = ("i", "side", "a", "b")
_EVENTS = st.one_of(
    st.tuples(st.just("started"), st.sampled_from(_NAMES), st.none()),
    st.tuples(st.just("exit"), st.sampled_from(_NAMES), st.sampled_from([0, 1])),
    st.tuples(
        st.just("probe"), st.sampled_from(_NAMES), st.sampled_from(["startup", "readiness", "liveness"])
    ),
    st.tuples(st.sampled_from(["tick", "recorded", "gone", "fail"]), st.just(""), st.none()),
)
_RANK = {"Pending": 0, "Running": 1, "Succeeded": 2, "Failed": 2}


class Runtime:
    """Plays what a pod asks for, and checks that it asks for nothing absurd."""

    def __init__(self, life: Life) -> None:
        self.life = life
        self.playing: set[str] = set()
        self.ended = False
        self.rank = 0

    def tell(self, event: Event, after: float = 0.1) -> None:
        if isinstance(event, Exited):
            self.playing.discard(event.container)
        self.life.tell(event, after)
        for name in self.life.starts:
            assert name not in self.playing, "started while it runs"
            assert not self.ended, "started after the end"
            self.playing.add(name)
        assert {name for name, _ in self.life.stops} <= self.playing
        self.ended = self.ended or Over() in self.life.out
        assert self.ended == self.life.run.over
        assert not (self.ended and self.playing)
        assert _RANK[self.life.phase] >= self.rank, "a phase does not go back"
        self.rank = _RANK[self.life.phase]
        assert pod_status(self.life.run, {}, self.life.now)["phase"] == self.life.phase

    def event(self, kind: str, name: str, detail: Any) -> Event | None:
        run = self.life.run.run(name)
        attempt = run.attempt if run else 0
        simple: dict[str, Event] = {
            "tick": Tick(),
            "recorded": Recorded(),
            "gone": Gone(),
            "fail": Fail("Evicted", ""),
        }
        match kind:
            case "started":
                return Started(name, attempt)
            case "exit":
                return Exited(name, attempt, detail) if name in self.playing else None
            case "probe":
                return Probed(name, attempt, detail, ok=len(name) > 1)
        return simple[kind]


@settings(max_examples=300)
@given(st.sampled_from(["Always", "OnFailure", "Never"]), st.lists(_EVENTS, max_size=40))
def test_whatever_happens_no_container_runs_twice_and_every_end_is_final(
    policy: str, script: list[tuple[str, str, Any]]
) -> None:
    inits = [container("i"), container("side", **SIDECAR)]
    runtime = Runtime(Life(pod(inits=inits, containers=_two(), restartPolicy=policy)))
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


@settings(max_examples=300)
@given(st.sampled_from(["Always", "OnFailure", "Never"]), st.lists(_EVENTS, max_size=40))
def test_whatever_was_written_is_read_back_after_a_crash(
    policy: str, script: list[tuple[str, str, Any]]
) -> None:
    inits = [container("i"), container("side", **SIDECAR)]
    runtime = Runtime(Life(pod(inits=inits, containers=_two(), restartPolicy=policy)))
    for kind, name, detail in script:
        event = runtime.event(kind, name, detail)
        if event is not None:
            runtime.tell(event, 100.0 if kind == "tick" else 0.1)
    run, now = runtime.life.run, runtime.life.now
    back = adopt(as_written(run, now), now, 10.0)
    assert back.over == run.over
    assert not run.over or phase_of(back) == phase_of(run)
    for before, after in zip(run.runs, back.runs, strict=True):
        assert after.restarts == before.restarts
        assert after.ready == before.ready or before.role == "init"
        if before.state == "running":
            assert (after.state, after.started) == ("running", before.started or before.role == "init")
        assert after.done == before.done
