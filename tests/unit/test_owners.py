"""gpufleet answers for another scheduler's name while nobody holds that scheduler's Lease."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpufleet.fleet.pods import SCHEDULER_NAME
from gpufleet.kube.decoding import Listing
from gpufleet.kube.errors import ApiError, Unreachable
from gpufleet.scheduling.names import SchedulerNames
from gpufleet.scheduling.owners import KNOWN_SCHEDULERS, answered_names

ALL = {SCHEDULER_NAME, *KNOWN_SCHEDULERS}
FORBIDDEN = ApiError(status=403, reason="Forbidden", message="may not list leases")
SILENT = Unreachable(reason="Unreachable", message="connection refused")


def test_without_leases_it_answers_for_every_known_name() -> None:
    assert answered_names(()) == ALL


def test_it_steps_back_for_a_name_whose_owner_is_alive() -> None:
    assert answered_names({"volcano"}) == ALL - {"volcano"}


def test_the_default_schedulers_lease_is_named_otherwise_than_its_pods_say() -> None:
    assert answered_names({"kube-scheduler"}) == ALL - {"default-scheduler"}


@given(st.sets(st.sampled_from([*sorted(set().union(*KNOWN_SCHEDULERS.values())), "x"])))
def test_a_name_is_answered_for_exactly_if_none_of_its_leases_is_alive(held: set[str]) -> None:
    names = answered_names(held)
    assert SCHEDULER_NAME in names
    for name, owned in KNOWN_SCHEDULERS.items():
        assert (name in names) == (not owned & held)


# on a cluster


def lease(name: str = "kube-scheduler", holder: str = "one", renewed: str = "r1") -> dict[str, Any]:
    spec = {"holderIdentity": holder, "renewTime": renewed, "leaseDurationSeconds": 15}
    return {"metadata": {"name": name, "namespace": "kube-system"}, "spec": spec}


class Cluster:
    """A cluster whose Leases are what a test says, or which answers with an error, and a clock."""

    def __init__(self, *leases: dict[str, Any]) -> None:
        self.leases = leases
        self.error: Exception | None = None
        self.now = 1000.0
        self.changes = 0
        self.names = SchedulerNames(self, "auto", clock=lambda: self.now)  # type: ignore[arg-type]
        self.names.on_change = self.changed

    def changed(self) -> None:
        self.changes += 1

    async def list(self, *_: Any, **__: Any) -> Listing[dict[str, Any]]:
        if self.error is not None:
            raise self.error
        return Listing(list(self.leases), "1")

    def look(self) -> frozenset[str]:
        asyncio.run(self.names.refresh())
        return self.names.policy().schedulers


def test_before_the_leases_were_listed_it_answers_for_its_own_name_only() -> None:
    assert Cluster().names.policy().schedulers == {SCHEDULER_NAME}


@pytest.mark.parametrize("error", [FORBIDDEN, SILENT])
def test_what_is_known_stands_while_the_leases_cannot_be_listed(error: Exception) -> None:
    for known in (False, True):
        cluster = Cluster(lease())
        expected = cluster.look() if known else {SCHEDULER_NAME}
        cluster.error, cluster.now = error, cluster.now + 1000
        with pytest.raises(type(error)):
            cluster.look()
        assert cluster.names.policy().schedulers == expected


def test_names_without_a_lease_are_free_at_once_and_whoever_decides_hears_of_it() -> None:
    cluster = Cluster()
    assert cluster.look() == ALL
    assert cluster.look() == ALL
    assert cluster.changes == 1


def test_a_lease_that_nobody_was_seen_to_renew_for_its_duration_is_free() -> None:
    """Its renewTime is another machine's clock: it says nothing here."""
    cluster = Cluster(lease(renewed="1970-01-01T00:00:00.000000Z"))
    assert "default-scheduler" not in cluster.look()
    cluster.now += 14
    assert "default-scheduler" not in cluster.look()
    cluster.now += 1
    assert "default-scheduler" in cluster.look()
    cluster.leases = (lease(renewed="r2"),)
    assert "default-scheduler" not in cluster.look(), "it came back"


def test_a_lease_that_is_renewed_is_not_free_and_one_that_was_released_is() -> None:
    cluster = Cluster(lease())
    for second in range(5):
        cluster.leases = (lease(renewed=f"r{second}"),)
        cluster.now += 10
        assert "default-scheduler" not in cluster.look()
    cluster.leases = (lease(holder=""),)
    assert "default-scheduler" in cluster.look()


def test_fixed_names_are_what_was_asked_for() -> None:
    names = SchedulerNames(Cluster(), "gpufleet, volcano")  # type: ignore[arg-type]
    asyncio.run(names.refresh())
    assert names.policy().schedulers == {"gpufleet", "volcano"}
