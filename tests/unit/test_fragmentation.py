"""Fragmentation by hand, and the table of sums against the definition written out pod by pod."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpufleet.fleet.demands import Demand, TypicalPod, typical_pods
from gpufleet.fleet.fragmentation import Fragmentation, FreeNode, FreeNodes

MODELS = ("T4", "G2", "P100")
CPU_ONLY = Demand(4000, 0, 0)
SHARE = Demand(4000, 1, 500)
WHOLE = Demand(8000, 1, 1000)
PAIR = Demand(8000, 2, 1000)


def of(*typical: tuple[Demand, int]) -> Fragmentation:
    return Fragmentation([TypicalPod(*one) for one in typical], MODELS)


def counted(typical: tuple[TypicalPod, ...]) -> list[tuple[Demand, int]]:
    return [(one.shape, one.weight) for one in typical]


# ---------------------------------------------------------------------------------------------- typical pods


def test_typical_pods_are_the_most_frequent_until_enough_is_covered() -> None:
    load = [WHOLE] * 60 + [SHARE] * 34 + [PAIR] * 3 + [CPU_ONLY] * 3
    every = [(WHOLE, 60), (SHARE, 34), (PAIR, 3), (CPU_ONLY, 3)]
    assert counted(typical_pods(load)) == every[:3]
    assert counted(typical_pods(load, percent=94)) == every[:2]
    assert counted(typical_pods(load, percent=100)) == every


def test_shapes_that_differ_in_their_models_are_different() -> None:
    bound = msgspec.structs.replace(SHARE, models=("T4",))
    assert counted(typical_pods([SHARE, bound, bound], percent=100)) == [(bound, 2), (SHARE, 1)]


# ---------------------------------------------------------------------------------------------------- by hand


def test_all_idle_gpu_is_lost_for_pods_that_want_none_or_have_no_cpu() -> None:
    node = FreeNode("T4", 5000, (1000, 300))
    assert of((CPU_ONLY, 2)).amount(node) == 2 * 1300
    assert of((WHOLE, 3)).amount(node) == 3 * 1300
    assert (
        of((msgspec.structs.replace(WHOLE, models=("G2", "P100")), 1)).amount(
            FreeNode("T4", 9000, (1000, 300))
        )
        == 1300
    )


def test_only_devices_with_too_little_are_lost_for_pods_that_fit() -> None:
    node = FreeNode("T4", 9000, (1000, 600, 300))
    assert of((SHARE, 1)).amount(node) == 300
    assert of((WHOLE, 1)).amount(node) == 900
    assert of((PAIR, 1)).amount(node) == 1900
    assert of((PAIR, 1)).amount(FreeNode("T4", 9000, (1000, 600, 1000))) == 600


def test_the_weights_of_typical_pods_count() -> None:
    node = FreeNode("T4", 9000, (1000, 600, 300))
    typical = of((SHARE, 5), (WHOLE, 3), (CPU_ONLY, 2))
    assert typical.weight == 10
    assert typical.amount(node) == 5 * 300 + 3 * 900 + 2 * 1900


def test_a_device_that_becomes_useless_costs_and_one_that_gets_full_does_not() -> None:
    typical = of((WHOLE, 1))
    found = typical.score(SHARE, FreeNode("G2", 20000, (1000, 500)))
    assert found.devices == (1,)
    assert found.score == int(100 / (1 + math.exp(-0.5)))
    only = typical.score(SHARE, FreeNode("G2", 20000, (1000,)))
    assert only == (int(100 / (1 + math.exp(0.5))), (0,))


def test_a_pod_that_changes_nothing_gets_fifty() -> None:
    assert of((WHOLE, 1)).score(CPU_ONLY, FreeNode("G2", 20000, (1000, 1000))) == (50, ())
    assert of((WHOLE, 1)).score(WHOLE, FreeNode("G2", 20000, (500, 1000, 1000))) == (50, (1,))


def test_of_devices_with_the_same_score_the_first_is_taken() -> None:
    found = of((CPU_ONLY, 1)).score(SHARE, FreeNode("G2", 20000, (400, 700, 600, 1000)))
    assert found.devices == (1,)


def test_several_devices_are_the_fullest_that_have_enough() -> None:
    parts = Demand(1000, 2, 300)
    assert of((WHOLE, 1)).score(parts, FreeNode("T4", 1000, (1000, 200, 400, 300))).devices == (3, 2)


def test_a_pod_that_does_not_fit_has_no_score() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        of((WHOLE, 1)).score(PAIR, FreeNode("T4", 9000, (1000, 999)))
    with pytest.raises(ValueError, match="does not fit"):
        of((WHOLE, 1)).score(WHOLE, FreeNode("T4", 7999, (1000,)))


# ---------------------------------------------------------------------------------------------------- oracle


def lost(typical: list[TypicalPod], node: FreeNode) -> int:
    """The definition, pod by pod."""
    total = 0
    for one in typical:
        shape, count = one.shape, one.weight
        enough = [idle for idle in node.gpus_milli if idle >= shape.gpu_milli]
        suits = shape.gpus > 0 and (not shape.models or node.model in shape.models)
        fits = suits and node.cpu_milli >= shape.cpu_milli and len(enough) >= shape.gpus
        total += count * (sum(node.gpus_milli) - (sum(enough) if fits else 0))
    return total


def best(typical: list[TypicalPod], pod: Demand, node: FreeNode) -> tuple[int, tuple[int, ...]]:
    """The published score in floating point, device by device."""
    weight = sum(one.weight for one in typical)
    fitting = [number for number, idle in enumerate(node.gpus_milli) if idle >= pod.gpu_milli]
    fullest = tuple(sorted(fitting, key=lambda number: (node.gpus_milli[number], number))[: pod.gpus])
    choices = [(number,) for number in fitting] if pod.shares else [fullest]
    found: tuple[int, tuple[int, ...]] = (-1, ())
    for devices in choices:
        left = tuple(
            idle - pod.gpu_milli * (number in devices) for number, idle in enumerate(node.gpus_milli)
        )
        fall = lost(typical, node) - lost(typical, FreeNode(node.model, node.cpu_milli - pod.cpu_milli, left))
        score = int(100 / (1 + math.exp(-fall / weight / 1000)))
        if score > found[0]:
            found = (score, devices)
    return found


cpus = st.integers(0, 12).map(lambda number: number * 1000)
millis = st.sampled_from([100, 250, 300, 500, 750, 1000])
models = st.lists(st.sampled_from(MODELS), max_size=2).map(tuple)
shapes = st.one_of(
    st.builds(Demand, cpus, st.integers(1, 4), millis, models),
    st.builds(Demand, cpus, st.just(0), st.just(0)),
)
loads = st.lists(st.builds(TypicalPod, shapes, st.integers(1, 9)), min_size=1, max_size=8)
idles = st.lists(st.integers(0, 20).map(lambda number: number * 50), min_size=4, max_size=4).map(tuple)
nodes = st.builds(FreeNode, st.sampled_from(MODELS), cpus, idles)


def columns(typical: Fragmentation, rows: list[FreeNode]) -> FreeNodes:
    return FreeNodes(
        np.array([typical.number(one.model) for one in rows], dtype=np.int64),
        np.array([one.cpu_milli for one in rows], dtype=np.int64),
        np.array([one.gpus_milli for one in rows], dtype=np.int64).reshape(len(rows), 4),
    )


@given(loads, st.lists(nodes, min_size=1, max_size=6))
def test_amounts_are_those_of_the_definition(load: list[TypicalPod], rows: list[FreeNode]) -> None:
    typical = Fragmentation(load, MODELS)
    expected = [lost(load, node) for node in rows]
    assert [typical.amount(node) for node in rows] == expected
    assert typical.amounts(columns(typical, rows)).tolist() == expected


@given(loads, shapes, st.lists(nodes, max_size=6))
def test_scores_of_one_node_and_of_many_are_those_of_the_definition(
    load: list[TypicalPod], pod: Demand, rows: list[FreeNode]
) -> None:
    typical = Fragmentation(load, MODELS)
    rows = [
        node
        for node in rows
        if node.cpu_milli >= pod.cpu_milli
        and sum(idle >= pod.gpu_milli for idle in node.gpus_milli) >= pod.gpus
    ]
    expected = [best(load, pod, node) for node in rows]
    assert [typical.score(pod, node) for node in rows] == expected
    assert typical.scores(pod, columns(typical, rows)).tolist() == [score for score, _ in expected]
