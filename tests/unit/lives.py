"""Lives of pods on a node: told by hand, or at random with a runtime that plays what they ask for."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import strategies as st
from tests.unit.simnode_pods import container

from gpufleet.kube.objects import Pod
from gpufleet.local.simnodes.podlife import step
from gpufleet.local.simnodes.podstate import (
    Changed,
    Event,
    Exited,
    Fail,
    Gone,
    Over,
    PodRun,
    Probed,
    Recorded,
    Start,
    Started,
    Stop,
    Tick,
    Wake,
    accept,
    phase_of,
)
from gpufleet.local.simnodes.podstatus import pod_status

SIDECAR: dict[str, Any] = {"restartPolicy": "Always"}


def two_containers() -> list[dict[str, Any]]:
    """Containers `a` and `b`."""
    return [container("a"), container("b")]


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


_NAMES = ("i", "side", "a", "b")
EVENTS = st.one_of(
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
