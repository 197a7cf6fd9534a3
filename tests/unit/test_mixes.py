"""The mix of pods: what is counted, and when it is taken anew."""

from __future__ import annotations

import msgspec
import pytest
from tests.unit.device_fleets import asking
from tests.unit.fleets import nodes_where, pod
from tests.unit.test_fractions import part

from gpufleet.fleet.demands import Demand
from gpufleet.fleet.fractions import Fraction
from gpufleet.fleet.mixes import ENOUGH, PRODUCT_LABEL, MixCounter, demand_of
from gpufleet.fleet.pods import PodShape
from gpufleet.fleet.selectors import Requirement


def shape(subject: PodShape, **changes: object) -> PodShape:
    return msgspec.structs.replace(subject, **changes)


WHOLE = asking("w", 2).shape
PART = part("p", 300).shape
PRODUCTS = nodes_where(Requirement(PRODUCT_LABEL, "In", ("B", "A")))


@pytest.mark.parametrize(
    ("asked", "kind"),
    [
        (WHOLE, Demand(100, 2, 1000)),
        (PART, Demand(100, 1, 300)),
        (shape(WHOLE, node_selector=((PRODUCT_LABEL, "A"),)), Demand(100, 2, 1000, ("A",))),
        (shape(WHOLE, node_affinity=PRODUCTS), Demand(100, 2, 1000, ("A", "B"))),
        (shape(WHOLE, node_affinity=nodes_where(Requirement("zone", "In", ("z",)))), Demand(100, 2, 1000)),
        (pod("cpu", resources={"cpu": "2"}).shape, None),
        (asking("m", 1, resource="nvidia.com/mig-1g.10gb").shape, None),
        (shape(PART, fraction=Fraction(memory_mib=2000)), None),
    ],
)
def test_a_pod_counts_by_cpu_gpus_and_products(asked: PodShape, kind: Demand | None) -> None:
    assert demand_of(asked) == kind


def test_a_few_pods_are_no_mix() -> None:
    counter = MixCounter()
    for _ in range(ENOUGH - 1):
        counter.add(WHOLE)
    assert counter.mix() == ()


def test_a_mix_is_kept_until_a_tenth_of_the_pods_have_changed() -> None:
    counter = MixCounter()
    for _ in range(200):
        counter.add(WHOLE)
    first = counter.mix()
    assert [(one.shape.gpus, one.weight) for one in first] == [(2, 200)]
    for _ in range(19):
        counter.add(PART)
    assert counter.mix() is first
    counter.add(PART)
    assert {one.weight for one in counter.mix()} == {200, 20}


def test_pods_that_go_leave_the_mix_and_too_few_end_it() -> None:
    counter = MixCounter()
    for _ in range(ENOUGH):
        counter.add(WHOLE)
    assert counter.mix()
    for _ in range(ENOUGH // 2):
        counter.add(WHOLE, -1)
    assert counter.mix() == ()
