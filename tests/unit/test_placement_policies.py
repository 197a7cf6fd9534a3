"""The six published policies on clusters small enough to compute by hand, and against plain definitions."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.unit.small_traces import node, pod

from gpufleet.fleet.demands import Demand, typical_pods
from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.fragmentation import Fragmentation, FreeNode
from gpufleet.simulator import published
from gpufleet.simulator.books import Placement
from gpufleet.simulator.columns import Columns
from gpufleet.simulator.placing import PolicyPlacer
from gpufleet.simulator.policies import POLICIES, make_policy
from gpufleet.simulator.replay import replay
from gpufleet.simulator.traces import TraceNode, TracePod


def placements(
    policy: str, nodes: Sequence[TraceNode], pods: Sequence[TracePod], seed: int = 42
) -> list[Placement | None]:
    placer = PolicyPlacer(nodes, make_policy(policy, nodes, pods, seed))
    return [placer.place(one).placement for one in pods]


def test_the_policies_are_those_that_were_published() -> None:
    assert tuple(POLICIES) == published.POLICIES


def test_a_policy_that_does_not_exist_is_an_error_that_names_the_others() -> None:
    with pytest.raises(GpufleetError, match="no such policy: best") as caught:
        make_policy("best", [], [], 42)
    assert "bestfit" in caught.value.hint


# --------------------------------------------------------------------------------------------------- by hand


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "random"])
def test_equal_scores_go_to_the_first_node_in_the_given_order(policy: str) -> None:
    nodes = [node(name) for name in "cab"]
    assert placements(policy, nodes, [pod("p0")]) == [Placement(0, (0,))]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_pod_that_fits_nowhere_is_not_placed(policy: str) -> None:
    nodes = [node("a", cpu=4, memory=4), node("b", gpus=1, model="G2", cpu=4, memory=4)]
    unfit = [
        pod("p0", gpus=3),
        pod("p1", gpus=2, models="G2"),
        pod("p2", cpu=5),
        pod("p3", memory=5),
        pod("p4", models="P100"),
        pod("p5", gpus=0, cpu=5),
    ]
    assert placements(policy, nodes, unfit) == [None] * len(unfit)


def test_best_fit_leaves_the_least_cpu_and_gpu() -> None:
    nodes = [node("a", gpus=8), node("b", gpus=4), node("c", gpus=4, cpu=64)]
    assert placements("bestfit", nodes, [pod("p0")]) == [Placement(2, (0,))]
    assert placements("bestfit", nodes, [pod("p0", cpu=80)]) == [Placement(1, (0,))]


def test_dot_product_keeps_large_pods_from_large_nodes() -> None:
    nodes = [node("a", gpus=8), node("b", gpus=4)]
    assert placements("dotprod", nodes, [pod("p0", gpus=4)]) == [Placement(1, (0, 1, 2, 3))]
    # 100 x (1 - (1 x 96 / 128^2 + 0.5 x 8 / 64) / 2) is 96, and 98 where only four GPUs are idle
    columns = Columns.empty(nodes)
    shape = pod("p0", milli=500).request.shape
    assert make_policy("dotprod", nodes, [], 42).scores(shape, columns).tolist() == [96, 98]


def test_packing_prefers_shared_devices_then_nodes_in_use_then_small_nodes() -> None:
    nodes = [node("a", gpus=8), node("b", gpus=4), node("c", gpus=4)]
    pods = [pod("p0", milli=300), pod("p1"), pod("p2", milli=600), pod("p3", milli=200)]
    assert placements("packing", nodes, pods) == [
        Placement(1, (0,)),
        Placement(1, (1,)),
        Placement(1, (0,)),
        Placement(1, (2,)),
    ]


def test_packing_scores_as_published() -> None:
    nodes = [node("empty", gpus=8), node("used", gpus=8), node("shared", gpus=8)]
    columns = Columns.empty(nodes)
    columns.take(1, pod("x", gpus=4).request, (0, 1, 2, 3))
    columns.take(2, pod("x", milli=550).request, (5,))
    policy = make_policy("packing", nodes, [], 42)
    assert policy.scores(pod("p", milli=450).request.shape, columns).tolist() == [25, 49, 96]
    assert policy.scores(pod("p", gpus=4).request.shape, columns).tolist() == [25, 46, 46]
    assert policy.scores(pod("p", gpus=0).request.shape, columns).tolist() == [0, 0, 0]


def test_clustering_puts_a_kind_beside_its_own() -> None:
    nodes = [node(name, gpus=8) for name in "abcd"]
    columns = Columns.empty(nodes)
    columns.take(0, pod("x", gpus=2).request, (0, 1))
    columns.take(1, pod("x", milli=500).request, (0,))
    columns.take(2, pod("x", milli=500).request, (0,))
    columns.take(2, pod("x", gpus=2).request, (1, 2))
    policy = make_policy("clustering", nodes, [], 42)
    assert policy.scores(pod("p", milli=100).request.shape, columns).tolist() == [6, 76, 57, 25]
    assert policy.scores(pod("p", gpus=0).request.shape, columns).tolist() == [0, 0, 0, 0]
    columns.give_back(2, pod("x", gpus=2).request, (1, 2))
    assert policy.scores(pod("p", milli=100).request.shape, columns).tolist() == [6, 76, 76, 25]


def test_a_part_of_a_device_comes_from_the_fullest_one_with_enough() -> None:
    nodes = [node("a", gpus=3)]
    pods = [pod("p0", milli=300), pod("p1", milli=800), pod("p2", milli=200), pod("p3", milli=500)]
    for policy in ("bestfit", "dotprod", "packing", "clustering"):
        found = [one.devices for one in placements(policy, nodes, pods) if one]
        assert found == [(0,), (1,), (1,), (0,)]


def test_fgd_keeps_whole_devices_for_those_who_want_them() -> None:
    nodes = [node("a", gpus=2), node("b", gpus=2)]
    load = [pod("p0", milli=500), pod("p1", milli=500)] + [pod(f"w{number}") for number in range(3)]
    assert placements("fgd", nodes, load) == [
        Placement(0, (0,)),
        Placement(0, (0,)),
        Placement(0, (1,)),
        Placement(1, (0,)),
        Placement(1, (1,)),
    ]


def test_random_takes_every_node_and_device_that_fits_about_as_often() -> None:
    nodes = [node("a", gpus=2), node("b", gpus=1, cpu=0), node("c", gpus=2)]
    found = Counter(placements("random", nodes, [pod("p", milli=1)], seed)[0] for seed in range(400))
    assert set(found) == {Placement(place, (device,)) for place in (0, 2) for device in (0, 1)}
    assert min(found.values()) > 60


# --------------------------------------------------------------------------------- against plain definitions


def plain_score(policy: str, shape: Demand, free: FreeNode, gpus: int, kinds: Counter[str]) -> int:
    """The published formulas, one node at a time and in floating point."""
    idle, milli = list(free.gpus_milli), shape.gpu_milli
    if policy == "dotprod":
        product = shape.cpu_milli / 128000 * free.cpu_milli / 128000
        product += shape.total_milli / 8000 * sum(idle) / 8000
        return math.floor(100 * (1 - product / 2) + 1e-9)
    if policy == "bestfit":
        left = (free.cpu_milli - shape.cpu_milli) / 128000 + (sum(idle) - shape.total_milli) / 8000
        return math.floor(100 * (1 - left / 2) + 1e-9)
    if not shape.gpus:
        return 0
    if policy == "clustering":
        kind = "part" if shape.shares else str(shape.gpus)
        base = (75 if len(kinds) == 1 else 50) if kinds[kind] else (0 if kinds else 25)
        return base + int(25 * (8000 - sum(idle)) / 8000)
    whole = sum(one == 1000 for one in idle)
    if whole == gpus:
        return max(33 - whole, whole)
    taken = sorted(one for one in idle if one >= milli)[: shape.gpus]
    fresh = taken.count(1000)
    if fresh:
        return max(50 - fresh, 33)
    return max(100 - sum(one * 100 // 1000 for one in taken) // 10, 50)


@pytest.mark.parametrize("policy", ["dotprod", "bestfit", "clustering", "packing"])
@given(st.integers(0, 10**6))
def test_columns_score_as_the_formulas_do(policy: str, seed: int) -> None:
    draw = random.Random(seed)
    nodes = [node(f"n{number}", gpus=draw.choice([1, 2, 8])) for number in range(4)]
    columns = Columns.empty(nodes)
    kinds: list[Counter[str]] = [Counter() for _ in nodes]
    for _ in range(draw.randint(0, 12)):
        at = draw.randrange(4)
        milli, device = draw.choice([100, 300, 350, 1000]), draw.randrange(nodes[at].gpus)
        if columns.gpus_milli[at, device] >= milli:
            columns.take(at, pod("x", milli=milli, cpu=draw.randint(1, 9)).request, (device,))
            kinds[at]["part" if milli < 1000 else "1"] += 1
    shape = Demand(draw.randint(1, 9000), draw.choice([0, 1, 1, 2]), 1000)
    milli = draw.choice([100, 650]) if shape.gpus == 1 else 1000 * (shape.gpus > 0)
    shape = msgspec.structs.replace(shape, gpu_milli=milli)
    fits = (columns.gpus_milli >= shape.gpu_milli).sum(axis=1) >= shape.gpus
    places = np.flatnonzero(fits)
    assume(len(places))
    expected = [
        plain_score(policy, shape, columns.free_node(at, ("T4",)), nodes[at].gpus, kinds[at])
        for at in places.tolist()
    ]
    found = make_policy(policy, nodes, [], 42).scores(shape, columns.at(places))
    assert found.tolist() == expected


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "random"])
def test_kept_scores_place_as_scores_made_anew_each_time(policy: str) -> None:
    draw = random.Random(7)
    nodes = [node(f"n{number}", gpus=draw.choice([1, 2, 4]), cpu=32, memory=64) for number in range(12)]
    kinds = [
        pod("a", milli=300),
        pod("b", milli=700, cpu=5),
        pod("c"),
        pod("d", gpus=2, cpu=9),
        pod("e", gpus=0, cpu=3),
        pod("f", milli=500, memory=20),
    ]
    pods = [draw.choice(kinds) for _ in range(150)]
    fresh = Columns.empty(nodes)
    chooser = make_policy(policy, nodes, pods, 42)
    placer = PolicyPlacer(nodes, make_policy(policy, nodes, pods, 42))
    placed = 0
    for one in pods:
        shape = one.request.shape
        fits = (fresh.cpu_milli >= shape.cpu_milli) & (fresh.memory_mib >= one.request.memory_mib)
        fits &= (fresh.gpus_milli >= shape.gpu_milli).sum(axis=1) >= shape.gpus
        places = np.flatnonzero(fits)
        expected = None
        if len(places):
            at = int(places[chooser.scores(shape, fresh.at(places)).argmax()])
            expected = Placement(at, chooser.devices(shape, fresh, at))
            fresh.take(at, one.request, expected.devices)
        assert placer.place(one).placement == expected
        placed += expected is not None
    assert 20 < placed < 150


@given(st.integers(0, 10**6), st.sampled_from(sorted(POLICIES)))
def test_no_policy_uses_more_than_there_is(seed: int, policy: str) -> None:
    draw = random.Random(seed)
    models = ("T4", "G2")
    nodes = [
        node(f"n{number}", gpus=draw.choice([1, 2, 8]), model=draw.choice(models), cpu=draw.randint(2, 20))
        for number in range(draw.randint(1, 5))
    ]
    pods = []
    for number in range(40):
        gpus = draw.choice([0, 1, 1, 1, 2, 4])
        milli = draw.choice([100, 400, 700, 1000]) if gpus == 1 else 1000
        allowed = draw.choice(["", "", "T4", "G2|T4"])
        pods.append(pod(f"p{number}", gpus, milli, draw.randint(1, 5), draw.randint(1, 300), allowed))
    replay(nodes, pods, PolicyPlacer(nodes, make_policy(policy, nodes, pods, seed)))


def test_fgd_of_columns_and_of_one_node_are_the_same_policy() -> None:
    nodes = [node("a", gpus=4), node("b", gpus=8, model="G2")]
    load = [pod("p0", milli=300), pod("p1"), pod("p2", gpus=2)]
    fragmentation = Fragmentation(typical_pods(one.request.shape for one in load), ("T4", "G2"))
    columns = Columns.empty(nodes)
    columns.take(0, load[0].request, (2,))
    shape = load[0].request.shape
    alone = [fragmentation.score(shape, columns.free_node(at, ("T4", "G2"))).score for at in (0, 1)]
    assert make_policy("fgd", nodes, load, 42).scores(shape, columns).tolist() == alone
