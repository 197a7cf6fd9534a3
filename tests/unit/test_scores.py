"""Which of the nodes that fit is best: packing, spreading, preferences, and what beats what."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.fleets import (
    HOST,
    ZONE,
    equal,
    gang,
    ledger,
    node,
    pod,
    prefer_near,
    prefer_nodes,
    spread_over,
)

from gpufleet.fleet.nodes import Node
from gpufleet.fleet.pods import Pod
from gpufleet.scheduling.filters import FILTERS
from gpufleet.scheduling.ledger import Ledger
from gpufleet.scheduling.scores import REPLICATED_KINDS, SCORES


def totals(incoming: Pod, fleet: Ledger) -> dict[str, int]:
    """The weighted sum of every node that passes the filters."""
    checks = [check for rule in FILTERS if (check := rule.prepare(incoming, fleet)) is not None]
    scorers = [(s, measure) for s in SCORES if (measure := s.prepare(incoming, fleet)) is not None]
    return {
        name: sum(score.weight * measure(account) for score, measure in scorers)
        for name, account in fleet.accounts.items()
        if all(check(account) is None for check in checks)
    }


def best(incoming: Pod, *nodes: Node, running: list[Pod] | None = None) -> str:
    points = totals(incoming, ledger(nodes, running or []))
    return max(points, key=lambda name: (points[name], name))


def measures(name: str, incoming: Pod, fleet: Ledger) -> dict[str, int] | None:
    """One score's measure of every node, or None when it has nothing to say."""
    (score,) = [s for s in SCORES if s.name == name]
    measure = score.prepare(incoming, fleet)
    return {n: measure(account) for n, account in fleet.accounts.items()} if measure is not None else None


# packing


def test_a_small_gpu_pod_goes_where_the_fewest_gpus_stay_free() -> None:
    running = [pod("r", gpus=5, node="a")]
    assert best(pod(gpus=1), node("a", gpus=8), node("b", gpus=8), running=running) == "a"
    assert best(pod(gpus=3), node("a", gpus=8), node("b", gpus=8), running=running) == "a"


def test_a_gpu_pod_prefers_the_smaller_node_over_breaking_up_a_large_one() -> None:
    assert best(pod(gpus=1), node("a", gpus=4), node("b", gpus=8)) == "a"


def test_only_the_gpus_that_a_pod_asks_for_count_as_left_over() -> None:
    cut = node("a", gpus=4, resources={"nvidia.com/mig-1g.10gb": 7})
    fleet = ledger([cut])
    assert measures("GPU packing", pod(gpus=4), fleet) == {"a": 100}
    assert measures("GPU packing", pod(resources={"nvidia.com/mig-1g.10gb": 2}), fleet) == {"a": 95}


def test_cpu_and_memory_decide_between_nodes_with_equal_gpus() -> None:
    running = [pod("r", cpu="32", memory="256Gi", node="a")]
    assert best(pod(gpus=1), node("a", gpus=8), node("b", gpus=8), running=running) == "a"
    assert best(pod(gpus=1), node("b", gpus=8), node("a", gpus=8), running=running) == "a"


def test_gpus_decide_before_cpu_and_memory() -> None:
    running = [pod("cpu", cpu="60", memory="500Gi", node="a"), pod("gpu", gpus=1, node="b")]
    assert best(pod(gpus=1), node("a", gpus=8), node("b", gpus=8), running=running) == "b"


def test_a_pod_without_gpus_stays_off_gpu_nodes() -> None:
    assert best(pod(), node("a", gpus=8), node("b")) == "b"
    crowded = [pod("r", cpu="1", node="a")]
    assert best(pod(), node("a", gpus=8), node("b"), running=crowded) == "b"


def test_a_pod_without_gpus_goes_to_a_gpu_node_when_nothing_else_fits() -> None:
    assert best(pod(cpu="8"), node("a", gpus=8), node("b", cpu="4")) == "a"


def test_keeping_gpus_free_says_nothing_where_all_nodes_are_alike() -> None:
    alike = ledger([node("a", gpus=8), node("b", gpus=4)])
    assert measures("GPU-free nodes", pod(), alike) is None
    mixed = ledger([node("a", gpus=8), node("b")])
    assert measures("GPU-free nodes", pod(), mixed) == {"a": 0, "b": 100}
    assert measures("GPU-free nodes", pod(gpus=1), mixed) is None


def test_among_gpu_nodes_a_pod_without_gpus_takes_the_one_with_fewest_free_gpus() -> None:
    running = [pod("r", gpus=8, node="b")]
    assert best(pod(), node("a", gpus=8), node("b", gpus=8), node("c", gpus=8), running=running) == "b"


# replicas


@pytest.mark.parametrize("kind", REPLICATED_KINDS)
def test_replicas_of_one_owner_go_to_different_nodes(kind: str) -> None:
    mate = pod("web-1", gpus=1, owner="web", kind=kind, node="a")
    other = pod("web-2", gpus=1, owner="web", kind=kind)
    assert best(other, node("a", gpus=8), node("b", gpus=8), running=[mate]) == "b"


@pytest.mark.parametrize("kind", ["Job", ""])
def test_jobs_and_bare_pods_pack(kind: str) -> None:
    mate = pod("work-1", gpus=1, owner="work" if kind else "", kind=kind, node="a")
    other = pod("work-2", gpus=1, owner="work" if kind else "", kind=kind)
    assert best(other, node("a", gpus=8), node("b", gpus=8), running=[mate]) == "a"


def test_members_of_a_gang_pack_whoever_owns_them() -> None:
    mate = pod("w-1", gpus=4, owner="workers", kind="StatefulSet", gang=gang("g", 2), node="a")
    other = pod("w-2", gpus=4, owner="workers", kind="StatefulSet", gang=gang("g", 2))
    assert best(other, node("a", gpus=8), node("b", gpus=8), running=[mate]) == "a"


def test_replicas_of_other_owners_do_not_repel() -> None:
    mate = pod("db-1", gpus=1, owner="db", node="a")
    assert best(pod(gpus=1, owner="web"), node("a", gpus=8), node("b", gpus=8), running=[mate]) == "a"


def test_a_replica_that_is_ending_does_not_repel() -> None:
    running = [pod("web-1", gpus=1, owner="web", node="a", terminating=True)]
    assert best(pod(gpus=1, owner="web"), node("a", gpus=8), node("b", gpus=8), running=running) == "a"


def test_the_third_replica_of_two_nodes_joins_the_node_with_fewer() -> None:
    running = [pod(str(i), owner="web", node=n) for i, n in enumerate("aab")]
    assert best(pod(owner="web"), node("a"), node("b"), running=running) == "b"


# preferences


def test_preferred_nodes_are_weighed() -> None:
    wishes = [prefer_nodes(8, equal("disk", "nvme")), prefer_nodes(2, equal("pool", "quiet"))]
    fleet = ledger(
        [
            node("a", labels={"disk": "nvme"}),
            node("b", labels={"pool": "quiet"}),
            node("c", labels={"disk": "nvme", "pool": "quiet"}),
            node("d"),
        ]
    )
    assert measures("preferred nodes", pod(preferred_nodes=wishes), fleet) == {
        "a": 80,
        "b": 20,
        "c": 100,
        "d": 0,
    }


def test_each_soft_taint_that_is_not_tolerated_lowers_a_node() -> None:
    fleet = ledger(
        [
            node("a", taints=["spot:PreferNoSchedule", "old:PreferNoSchedule"]),
            node("b", taints=["spot:PreferNoSchedule"]),
            node("c"),
        ]
    )
    assert measures("soft taints", pod(), fleet) == {"a": 33, "b": 50, "c": 100}
    assert measures("soft taints", pod(tolerations=["spot"]), fleet) == {"a": 50, "b": 100, "c": 100}
    assert measures("soft taints", pod(), ledger([node()])) is None


# what beats what


def test_a_preferred_node_beats_spreading_packing_and_keeping_gpus_free() -> None:
    wish = pod(owner="web", preferred_nodes=[prefer_nodes(1, equal(HOST, "a"))])
    mates = [pod(f"web-{i}", owner="web", node="a") for i in range(3)]
    assert best(wish, node("a", gpus=8), node("b"), running=mates) == "a"


def test_a_preferred_pod_beats_spreading() -> None:
    cache = pod("cache", labels={"app": "cache"}, node="a")
    mate = pod("web-1", owner="web", node="a")
    wish = pod("web-2", owner="web", preferred_pods=[prefer_near(1, HOST, app="cache")])
    assert best(wish, node("a"), node("b"), running=[cache, mate]) == "a"


def test_soft_spread_over_zones_beats_spread_over_nodes() -> None:
    running = [pod("w1", labels={"app": "web"}, owner="web", node="b"), pod("w2", owner="web", node="c")]
    wish = pod(labels={"app": "web"}, owner="web", spread=[spread_over(ZONE, hard=False, app="web")])
    nodes = (node("a", zone="x"), node("b", zone="x"), node("c", zone="y"))
    assert best(wish, *nodes, running=running) == "c"


def test_keeping_gpus_free_beats_spreading() -> None:
    mates = [pod(f"web-{i}", owner="web", node="b") for i in range(3)]
    assert best(pod("web-9", owner="web"), node("a", gpus=8), node("b"), running=mates) == "b"


def test_spreading_beats_packing() -> None:
    running = [pod("web-1", gpus=1, owner="web", node="a"), pod("r", gpus=6, node="a")]
    assert (
        best(pod("web-2", gpus=1, owner="web"), node("a", gpus=8), node("b", gpus=8), running=running) == "b"
    )


def test_a_point_in_one_tier_outweighs_everything_below_it() -> None:
    # Of GPU packing, fraction packing and worth a pod never has more than one.
    scores = [score for score in SCORES if score.name not in ("fraction packing", "worth")]
    weights = sorted({score.weight for score in scores})
    for weight in weights:
        below = sum(100 * score.weight for score in scores if score.weight < weight)
        assert weight > below


quantities = st.integers(0, 9)


@given(
    st.lists(st.tuples(quantities, quantities, st.booleans(), st.booleans()), min_size=1, max_size=6),
    quantities,
)
def test_measures_stay_between_0_and_100(rows: list[tuple[int, int, bool, bool]], gpus: int) -> None:
    nodes = [
        node(
            f"n{i}",
            gpus=offered,
            cpu="1",
            labels={"x": "y"} if label else {},
            taints=["t:PreferNoSchedule"] * soft,
        )
        for i, (offered, _, label, soft) in enumerate(rows)
    ]
    running = [pod(f"r{i}", gpus=used, owner="o", node=f"n{i}") for i, (_, used, _, _) in enumerate(rows)]
    incoming = pod(gpus=gpus, owner="o", preferred_nodes=[prefer_nodes(3, equal("x", "y"))])
    for score in SCORES:
        values = measures(score.name, incoming, ledger(nodes, running))
        assert values is None or all(0 <= value <= 100 for value in values.values())


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=6), st.integers(1, 8))
def test_a_bare_gpu_pod_always_gets_a_node_with_the_fewest_gpus_left(
    rows: list[tuple[int, int]], asked: int
) -> None:
    nodes = [node(f"n{i}", gpus=max(pair)) for i, pair in enumerate(rows)]
    running = [pod(f"r{i}", gpus=min(pair), node=f"n{i}") for i, pair in enumerate(rows)]
    free = {f"n{i}": max(pair) - min(pair) for i, pair in enumerate(rows)}
    points = totals(pod(gpus=asked), ledger(nodes, running))
    assert points.keys() == {name for name, left in free.items() if left >= asked}
    if points:
        winner = max(points, key=lambda name: points[name])
        assert free[winner] == min(free[name] for name in points)
