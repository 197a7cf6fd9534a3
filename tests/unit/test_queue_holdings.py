"""What bound pods hold by queue: kept up to date, it equals a count of all, whatever came and went."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.fleets import pod

from gpufleet.fleet.pods import Pod
from gpufleet.fleet.snapshot import Snapshot
from gpufleet.scheduling.holdings import Holdings
from gpufleet.scheduling.ledger import Ledger

PODS = st.builds(
    lambda name, queue, gpus, namespace: pod(name, queue=queue, gpus=gpus, namespace=namespace),
    st.sampled_from("pqrs"),
    st.sampled_from(["", "a", "b"]),
    st.integers(0, 3),
    st.sampled_from(["x", "y"]),
)
NODES = st.dictionaries(
    st.sampled_from(["n", "m", "o"]), st.lists(PODS, max_size=4).map(lambda pods: {p.key: p for p in pods})
)


@given(st.lists(NODES, min_size=1, max_size=6), st.booleans())
def test_what_is_kept_equals_a_count_of_all(states: list[dict[str, dict[str, Pod]]], mixed: bool) -> None:
    kept = Holdings()
    before: Mapping[str, Mapping[str, Pod]] = {}
    for state in states:
        # Some nodes keep their pods, as a live snapshot shows it: the very same mapping.
        now = {**state, **({"n": before["n"]} if mixed and "n" in before else {})}
        assert kept.of(now) == Holdings().of(now)
        before = now


def test_ledgers_share_what_they_know_and_each_snapshot_gets_its_own_answer() -> None:
    first = Snapshot(pods_by_node={"n": {"p": pod("p", gpus=1, queue="a", namespace="x")}})
    second = msgspec.structs.replace(first, pods_by_node={})
    ledger = Ledger.build(first)
    later = Ledger.build(second, ledger)
    assert later.holdings is ledger.holdings
    assert later.holdings.of(second.pods_by_node) == {}
    assert ledger.holdings.of(first.pods_by_node)[("a", "x", "")][0] == 1000
