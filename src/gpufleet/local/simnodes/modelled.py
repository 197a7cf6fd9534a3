"""Containers that are only played: what happens to one after `Start` and `Stop`, and when.

The life of a simulated container is a table of stages, as kwok has it: each stage has a delay and, at its
end, an event for `podlife`. Times are absolute, so a container that was taken over continues where it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec

from gpufleet.kube.objects import Container
from gpufleet.local.fleetfile import Simulation
from gpufleet.local.simnodes.podstate import Event, Exited, Probed, Started
from gpufleet.local.simnodes.workload import Play

STOPPED_BY_SIGTERM = 143
KILLED = 137


class Scene(msgspec.Struct, frozen=True):
    """What the stages of one run depend on."""

    container: Container
    role: str
    attempt: int
    times: Simulation
    play: Play
    pulls: bool
    gpus: bool


class Timed(msgspec.Struct, frozen=True):
    """An event and when it happens (seconds since the epoch)."""

    at: float
    event: Event


class Stage(msgspec.Struct, frozen=True):
    """One stage: how long it takes, and the event at its end (None: nothing is told)."""

    name: str
    seconds: Callable[[Scene], float]
    event: Callable[[Scene], Event | None]


def _loading(scene: Scene) -> float:
    return scene.times.weight_load_seconds if scene.gpus and scene.role == "app" else 0.0


def _startup(scene: Scene) -> float:
    probe = scene.container.startup_probe
    return max(_loading(scene), probe.initial_delay_seconds) if probe else 0.0


def _readiness(scene: Scene) -> float:
    probe = scene.container.readiness_probe
    if probe is None:
        return 0.0
    loaded = 0.0 if scene.container.startup_probe else _loading(scene)
    return max(0.0, max(loaded, probe.initial_delay_seconds) - _startup(scene))


def _probe(scene: Scene, kind: str) -> Event | None:
    container = scene.container
    probe = container.startup_probe if kind == "startup" else container.readiness_probe
    return Probed(container.name, scene.attempt, kind, ok=True) if probe else None


def _run_time(scene: Scene) -> float:
    match scene.role:
        case "init":
            return scene.times.init_seconds
        case "app":
            return scene.play.duration
        case _:
            return math.inf


def _exit(scene: Scene) -> Event:
    code = scene.play.exit_code if scene.role == "app" else 0
    return Exited(scene.container.name, scene.attempt, code)


def _pull(scene: Scene) -> float:
    return scene.times.image_pull_seconds if scene.pulls else 0.0


STARTING_STAGES = (
    # stage                 takes                           then
    Stage("PullImage",      _pull,                          lambda _: None),
    Stage("Start",          lambda s: s.times.start_seconds, lambda s: Started(s.container.name, s.attempt)),
)  # fmt: skip
RUNNING_STAGES = (
    Stage("StartupProbe",   _startup,                       lambda s: _probe(s, "startup")),
    Stage("ReadinessProbe", _readiness,                     lambda s: _probe(s, "readiness")),
)  # fmt: skip


def starting(scene: Scene, now: float) -> tuple[Timed, ...]:
    """What happens to a container that is started now, up to `Started`."""
    return _play(STARTING_STAGES, scene, now)


def running(scene: Scene, started_at: float) -> tuple[Timed, ...]:
    """What happens to a container that runs since `started_at`, if nobody stops it."""
    events = _play(RUNNING_STAGES, scene, started_at)
    end = started_at + _run_time(scene)
    return events if math.isinf(end) else (*events, Timed(end, _exit(scene)))


def stopping(scene: Scene, grace: float, now: float) -> Timed:
    """The end of a container that is stopped: by itself in time, or killed after `grace` seconds."""
    takes = scene.times.termination_seconds
    code = STOPPED_BY_SIGTERM if takes <= grace else KILLED
    return Timed(now + min(takes, grace), Exited(scene.container.name, scene.attempt, code))


def _play(stages: tuple[Stage, ...], scene: Scene, begin: float) -> tuple[Timed, ...]:
    found, at = [], begin
    for stage in stages:
        at += stage.seconds(scene)
        event = stage.event(scene)
        if event is not None:
            found.append(Timed(at, event))
    return tuple(found)
