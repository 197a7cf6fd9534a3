"""Containers on the clock: how pods ask to be played, and what then happens when."""

from __future__ import annotations

import math
from typing import Any

import pytest
from tests.unit.simnode_pods import container, pod

from gpufleet.local.fleetfile import Simulation
from gpufleet.local.simnodes.modelled import Scene, Timed, running, starting, stopping
from gpufleet.local.simnodes.podstate import Exited, Probed, Started
from gpufleet.local.simnodes.workload import Play, parse_duration, play_of

TIMES = Simulation(
    image_pull_seconds=4, start_seconds=1, weight_load_seconds=10, init_seconds=2, termination_seconds=3
)


def _scene(
    role: str = "app", *, pulls: bool = True, gpus: bool = False, play: Play | None = None, **rest: Any
) -> Scene:
    subject = pod(containers=[container("c", **rest)]).spec.containers[0]
    return Scene(subject, role, 2, TIMES, play or Play(), pulls, gpus)


def test_a_new_image_is_pulled_and_a_known_one_is_not() -> None:
    assert starting(_scene(), 100.0) == (Timed(105.0, Started("c", 2)),)
    assert starting(_scene(pulls=False), 100.0) == (Timed(101.0, Started("c", 2)),)


def test_probes_pass_after_their_delays_and_the_weights() -> None:
    probes: dict[str, Any] = {
        "startupProbe": {"initialDelaySeconds": 5},
        "readinessProbe": {"initialDelaySeconds": 20},
    }
    startup, readiness = Probed("c", 2, "startup", ok=True), Probed("c", 2, "readiness", ok=True)
    assert running(_scene(**probes), 0.0) == (Timed(5.0, startup), Timed(20.0, readiness))
    assert running(_scene(gpus=True, **probes), 0.0) == (Timed(10.0, startup), Timed(20.0, readiness))
    assert running(_scene(gpus=True, readinessProbe={}), 0.0) == (Timed(10.0, readiness),)
    assert running(_scene(gpus=True), 0.0) == ()


def test_only_app_containers_end_as_the_pod_asks() -> None:
    play = Play(duration=7.0, exit_code=3)
    assert running(_scene(play=play), 50.0) == (Timed(57.0, Exited("c", 2, 3)),)
    assert running(_scene("init", play=play), 50.0) == (Timed(52.0, Exited("c", 2, 0)),)
    assert running(_scene("sidecar", play=play), 50.0) == ()


def test_a_container_ends_in_time_or_is_killed() -> None:
    assert stopping(_scene(), 30.0, 10.0) == Timed(13.0, Exited("c", 2, 143))
    assert stopping(_scene(), 1.0, 10.0) == Timed(11.0, Exited("c", 2, 137))
    assert stopping(_scene(), 0.0, 10.0) == Timed(10.0, Exited("c", 2, 137))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30.0),
        ("2m", 120.0),
        ("1h30m", 5400.0),
        ("1.5s", 1.5),
        ("45", 45.0),
        ("", None),
        ("soon", None),
        ("1d", None),
    ],
)
def test_durations_are_read_as_people_write_them(text: str, seconds: float | None) -> None:
    assert parse_duration(text) == seconds


def test_pods_that_are_meant_to_end_do_and_others_run_for_ever() -> None:
    assert play_of(pod(restartPolicy="Never"), 30.0).duration == 30.0
    assert play_of(pod(restartPolicy="OnFailure"), 30.0).duration == 30.0
    assert math.isinf(play_of(pod(), 30.0).duration)


def test_annotations_win_over_labels() -> None:
    key = "gpufleet.dev/sim-duration"
    assert play_of(pod(labels={key: "5s"}), 30.0).duration == 5.0
    assert play_of(pod(labels={key: "5s"}, annotations={key: "6s"}), 30.0).duration == 6.0


def test_nonsense_is_reported_and_ignored() -> None:
    asks = {
        "gpufleet.dev/sim-duration": "x",
        "gpufleet.dev/sim-exit-code": "300",
        "gpufleet.dev/runtime": "docker",
    }
    play = play_of(pod(annotations=asks, restartPolicy="Never"), 30.0)
    assert (play.duration, play.exit_code, play.process) == (30.0, 0, False)
    assert [problem.split(":")[0] for problem in play.problems] == list(asks)
    assert play_of(pod(annotations={"gpufleet.dev/runtime": "process"}), 30.0) == Play(process=True)
