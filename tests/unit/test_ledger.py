"""The ledger is only a cache of the snapshot: kept up to date, it equals one that is built anew."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.fleets import GPU, HOST, ledger, near, node, pod

from gpufleet.fleet.pods import HostPort, Pod
from gpufleet.fleet.snapshot import Snapshot
from gpufleet.scheduling.ledger import Ledger, NodeAccount, account_of

NODES = [node("a", gpus=8), node("b", gpus=4), node("c")]
SHAPES = [
    pod("1", gpus=2),
    pod("2", gpus=1, host_ports=[80]),
    pod("3", cpu="2", anti_affinity=[near(HOST, app="x")]),
]

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["pod", "gone", "node", "no node", "build"]), st.integers(0, 5), st.integers(0, 2)
    ),
    max_size=40,
)


def contents(found: Ledger) -> dict[str, NodeAccount]:
    return {name: found.accounts[name] for name in sorted(found.accounts)}


@given(STEPS)
def test_a_ledger_that_is_kept_up_to_date_equals_a_rebuild(steps: list[tuple[str, int, int]]) -> None:
    """Whoever keeps a snapshot replaces the inner mapping of a node when something changes there."""
    snapshot, kept = Snapshot(nodes={n.name: n for n in NODES}), None
    for step, number, where in steps:
        place = NODES[where]
        here = {k: p for k, p in snapshot.pods_by_node.get(place.name, {}).items() if p.name != str(number)}
        nodes, by_node = dict(snapshot.nodes), dict(snapshot.pods_by_node)
        match step:
            case "pod":
                new = msgspec.structs.replace(SHAPES[number % 3], name=str(number), node=place.name)
                by_node[place.name] = {**here, new.key: new}
            case "gone":
                by_node[place.name] = here
            case "node":
                nodes[place.name] = msgspec.structs.replace(place, allocatable={GPU: number})
            case "no node":
                nodes.pop(place.name, None)
            case _:
                kept = Ledger.build(snapshot, kept)
        snapshot = msgspec.structs.replace(snapshot, nodes=nodes, pods_by_node=by_node)
    assert contents(Ledger.build(snapshot, kept)) == contents(Ledger.build(snapshot))


def test_accounts_of_nodes_without_changes_are_kept() -> None:
    before = ledger(NODES, [pod("1", gpus=2, node="a")])
    after = Ledger.build(before.snapshot, before)
    assert all(after.accounts[name] is account for name, account in before.accounts.items())


@given(st.lists(st.sampled_from(SHAPES), unique_by=lambda p: p.name), st.sampled_from(SHAPES))
def test_an_account_that_grew_equals_one_computed_from_its_pods(before: list[Pod], new: Pod) -> None:
    there = {p.key: p for p in before if p.key != new.key}
    grown = account_of(NODES[0], there).with_pod(new)
    assert grown == account_of(NODES[0], {**there, new.key: new})
    assert grown.without([new.key]) == account_of(NODES[0], there)


def test_a_terminating_pod_holds_what_it_holds() -> None:
    account = account_of(NODES[0], {p.key: p for p in SHAPES}).ending([SHAPES[1].key])
    assert account.free(GPU) == 8 - 3
    assert account.ports == (HostPort(80),)
    assert [p.name for p in account.pods.values() if p.terminating] == ["2"]
    assert account.anti_affine == (SHAPES[2],)


def test_a_fork_changes_alone() -> None:
    original = ledger(NODES, [pod("1", gpus=2, node="a")])
    before = dict(original.accounts)
    fork = original.fork()
    fork.place(pod("2", gpus=6), "a")
    fork.end("a", ["default/1"])
    fork.remove("a", ["default/1"])
    fork.promised_volumes["pv"] = "default/data"
    assert original.accounts == before
    assert not original.promised_volumes
    assert fork.accounts["a"].free(GPU) == 2


def test_promised_volumes_are_shared_with_nobody_even_while_there_are_none() -> None:
    promised: dict[str, str] = {}
    first = Ledger(Snapshot(), {}, promised)
    first.promised_volumes["pv"] = "default/data"
    assert promised == {"pv": "default/data"}
    assert not Ledger(Snapshot(), {}).promised_volumes
    assert not first.fork().fork().promised_volumes.keys() - {"pv"}


def test_a_node_without_a_resource_has_none_free_and_an_overcommitted_one_less_than_none() -> None:
    account = account_of(node("a", gpus=1), {p.key: p for p in [pod("1", gpus=2), pod("2")]})
    assert (account.free("example.com/other"), account.free(GPU)) == (0, -1)
