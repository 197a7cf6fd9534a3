"""Leader election without a server: what clocks alone decide."""

from __future__ import annotations

from typing import Any

import pytest

from gpufleet.kube.config import ClusterConfig
from gpufleet.kube.errors import NotLeader
from gpufleet.kube.leases import LeaderElector, Observation, steady_clock


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def lease(holder: str, renewed: str = "r1", seconds: int = 15) -> dict[str, Any]:
    return {"spec": {"holderIdentity": holder, "renewTime": renewed, "leaseDurationSeconds": seconds}}


def elector(clock: Clock, **times: float) -> LeaderElector:
    config = ClusterConfig(server="http://unused.invalid")
    return LeaderElector(config, namespace="ns", name="l", identity="me", clock=clock, **times)  # type: ignore[arg-type]


def test_a_lease_of_another_is_free_only_when_it_did_not_change_for_its_duration() -> None:
    clock = Clock()
    seen = Observation(clock)
    assert not seen.free_for("me", 15)
    seen.see(lease("other"))
    clock.now += 14.9
    seen.see(lease("other"))
    assert not seen.free_for("me", 15)
    clock.now += 0.2
    assert seen.free_for("me", 15)
    seen.see(lease("other", "r2"))
    assert not seen.free_for("me", 15), "it was renewed after all"


def test_the_duration_is_the_holders_and_the_times_of_other_machines_do_not_count() -> None:
    clock = Clock()
    seen = Observation(clock)
    seen.see(lease("other", "1970-01-01T00:00:00.000000Z", seconds=60))
    clock.now += 59
    assert not seen.free_for("me", 15)
    clock.now += 2
    assert seen.free_for("me", 15)


def test_a_released_lease_and_ones_own_are_free_at_once() -> None:
    seen = Observation(Clock())
    seen.see(lease(""))
    assert seen.free_for("me", 15)
    seen.see(lease("me"))
    assert seen.free_for("me", 15)


def test_nobody_leads_before_winning() -> None:
    candidate = elector(Clock())
    assert not candidate.leading()
    with pytest.raises(NotLeader) as refused:
        candidate.guard()
    assert refused.value.lease == "ns/l"


def test_the_guard_refuses_from_the_renew_deadline_on_although_no_thread_has_run() -> None:
    clock = Clock()
    leader = elector(clock)
    assert leader._extend(clock.now + 10, was_leading=False)
    clock.now += 9.99
    leader.guard()
    clock.now += 0.02
    with pytest.raises(NotLeader):
        leader.guard()


def test_a_renewal_that_was_answered_after_the_deadline_does_not_bring_leadership_back() -> None:
    clock = Clock()
    leader = elector(clock)
    leader._extend(clock.now + 10, was_leading=False)
    clock.now += 11
    assert not leader._extend(clock.now + 10, was_leading=True)
    assert not leader.leading()


def test_a_renewal_that_was_answered_after_stop_does_not_bring_leadership_back() -> None:
    clock = Clock()
    leader = elector(clock)
    leader._extend(clock.now + 10, was_leading=False)
    leader.stop()
    assert not leader._extend(clock.now + 10, was_leading=True)
    assert not leader.leading()


@pytest.mark.parametrize(
    "times",
    [
        {"lease_seconds": 10, "renew_seconds": 10},
        {"renew_seconds": 2, "retry_seconds": 2},
        {"retry_seconds": 0},
    ],
)
def test_times_that_would_let_two_lead_are_refused(times: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="retry < renew < lease"):
        elector(Clock(), **times)


def test_two_electors_of_one_name_are_two_identities() -> None:
    assert elector(Clock()).identity != elector(Clock()).identity


def test_the_clock_does_not_go_back() -> None:
    readings = [steady_clock() for _ in range(100)]
    assert readings == sorted(readings)
