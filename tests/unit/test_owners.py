"""gpufleet answers for another scheduler's name while nobody holds that scheduler's Lease."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gpufleet.fleet.pods import SCHEDULER_NAME
from gpufleet.scheduling.owners import KNOWN_SCHEDULERS, LeaseRecord, answered_names

NOW = 1000.0


def test_without_leases_it_answers_for_every_known_name() -> None:
    assert answered_names([], NOW) == {SCHEDULER_NAME, *KNOWN_SCHEDULERS}


def test_it_steps_back_for_a_name_whose_owner_is_alive() -> None:
    names = answered_names([LeaseRecord("volcano", "leader", NOW + 10)], NOW)
    assert names == {SCHEDULER_NAME, *KNOWN_SCHEDULERS} - {"volcano"}


def test_a_lease_that_ran_out_or_that_nobody_holds_keeps_no_name() -> None:
    gone = [LeaseRecord("volcano", "leader", NOW), LeaseRecord("kube-scheduler", "", NOW + 10)]
    assert {"volcano", "default-scheduler"} <= answered_names(gone, NOW)


def test_the_default_schedulers_lease_is_named_otherwise_than_its_pods_say() -> None:
    alive = [LeaseRecord("kube-scheduler", "leader", NOW + 10)]
    assert "default-scheduler" not in answered_names(alive, NOW)


LEASES = st.lists(
    st.builds(
        LeaseRecord,
        st.sampled_from([*sorted({lease for owned in KNOWN_SCHEDULERS.values() for lease in owned}), "x"]),
        st.sampled_from(["", "leader"]),
        st.sampled_from([NOW - 1, NOW, NOW + 1]),
    )
)


@given(LEASES)
def test_a_name_is_answered_for_exactly_if_none_of_its_leases_is_alive(leases: list[LeaseRecord]) -> None:
    names = answered_names(leases, NOW)
    assert SCHEDULER_NAME in names
    for name, owned in KNOWN_SCHEDULERS.items():
        taken = any(lease.name in owned and lease.holder and lease.valid_until > NOW for lease in leases)
        assert (name in names) == (not taken)
