"""Fair share: the documented rule, exactly, whatever the order of queues."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.random_queues import Case, random_case
from tests.unit.share_oracle import Oracle

from gpufleet.fleet.queues import UNQUEUED, Amounts, Queue, QueueTree, Quota
from gpufleet.scheduling.fairshare import NO_USAGE, Claim, divide, fair_shares

GPU = 1000


def shares_of(case: Case) -> dict[str, Amounts]:
    return fair_shares(case.tree, case.asked, case.capacity, case.usage, case.k)


def by_the_rule(case: Case) -> dict[str, Amounts]:
    queues = list(case.tree.queues.values())
    columns = []
    for resource, total in enumerate(case.capacity):
        asked = {name: amounts[resource] for name, amounts in case.asked.items()}
        usage = {name: parts[resource] for name, parts in case.usage.items()}
        columns.append(Oracle(queues, asked, usage, case.k, resource).divide(total))
    return {name: Amounts(*(column[name] for column in columns)) for name in columns[0]}


def differing(seeds: range) -> list[int]:
    return [seed for seed in seeds if shares_of(case := random_case(seed)) != by_the_rule(case)]


def test_shares_follow_the_rule_on_random_trees() -> None:
    assert differing(range(500)) == []


@pytest.mark.full
def test_shares_follow_the_rule_on_ten_thousand_random_trees() -> None:
    assert differing(range(10_000)) == []


@given(st.integers(0, 10**9))
def test_siblings_never_have_more_than_what_is_above_them_and_the_order_does_not_matter(seed: int) -> None:
    case = random_case(seed)
    shares = shares_of(case)
    for parent, names in case.tree.children.items():
        above = shares[parent] if parent else case.capacity
        for resource, total in enumerate(above):
            assert 0 <= sum(shares[name][resource] for name in names) <= total
    shuffled = list(case.queues)
    random.Random(seed).shuffle(shuffled)
    assert shares_of(case._replace(queues=shuffled)) == shares


def shares(total: int, *claims: Claim, unit: int = GPU, k: int = 1) -> dict[str, int]:
    return divide(total, claims, unit, k)


def test_a_guarantee_comes_before_any_borrowing() -> None:
    found = shares(8 * GPU, Claim("a", 8 * GPU, 6 * GPU, weight=0), Claim("b", 8 * GPU, weight=9000))
    assert found == {"a": 6 * GPU, "b": 2 * GPU}


def test_what_a_queue_does_not_ask_for_is_offered_to_the_others() -> None:
    found = shares(9 * GPU, Claim("a", 1 * GPU), Claim("b", 9 * GPU), Claim("c", 9 * GPU))
    assert found == {"a": GPU, "b": 4 * GPU, "c": 4 * GPU}


def test_what_is_left_goes_by_weight_and_the_last_whole_gpu_to_the_largest_fraction() -> None:
    found = shares(10 * GPU, Claim("a", 10 * GPU, weight=1000), Claim("b", 10 * GPU, weight=2000))
    assert found == {"a": 3 * GPU, "b": 7 * GPU}


def test_of_equal_fractions_the_older_queue_is_first_and_then_the_name_decides() -> None:
    young, old = Claim("a", 5 * GPU, created=2.0), Claim("b", 5 * GPU, created=1.0)
    assert shares(5 * GPU, young, old) == {"a": 2 * GPU, "b": 3 * GPU}
    assert shares(5 * GPU, Claim("b", 5 * GPU), Claim("a", 5 * GPU)) == {"a": 3 * GPU, "b": 2 * GPU}


def test_a_higher_priority_borrows_first() -> None:
    found = shares(4 * GPU, Claim("a", 4 * GPU), Claim("b", 3 * GPU, priority=1))
    assert found == {"a": GPU, "b": 3 * GPU}


def test_past_usage_lowers_what_is_borrowed_and_leaves_the_guarantee_alone() -> None:
    used = Claim("a", 8 * GPU, 2 * GPU, usage=Fraction(1))
    found = shares(8 * GPU, used, Claim("b", 8 * GPU))
    assert found == {"a": 2 * GPU, "b": 6 * GPU}
    without = shares(8 * GPU, used, Claim("b", 8 * GPU), k=0)
    assert without == {"a": 5 * GPU, "b": 3 * GPU}


def test_a_lending_limit_keeps_back_what_its_queue_does_not_use() -> None:
    keeps = Claim("a", 0, 6 * GPU, lending_limit=2 * GPU)
    assert shares(8 * GPU, keeps, Claim("b", 8 * GPU)) == {"a": 0, "b": 4 * GPU}


def test_guarantees_that_exceed_what_there_is_are_scaled_by_priority_and_then_in_proportion() -> None:
    first = Claim("a", 2 * GPU, 2 * GPU, priority=1)
    large, small = Claim("b", 6 * GPU, 6 * GPU), Claim("c", 3 * GPU, 3 * GPU)
    assert shares(5 * GPU, first, large, small) == {"a": 2 * GPU, "b": 2 * GPU, "c": GPU}
    heavy = Claim("c", 6 * GPU, 6 * GPU, weight=2000)
    assert shares(6 * GPU, large, heavy) == {"b": 2 * GPU, "c": 4 * GPU}


def test_a_tenth_and_two_tenths_of_a_gpu_fit_three_tenths() -> None:
    found = shares(300, Claim("a", 100, 100), Claim("b", 200, 200))
    assert found == {"a": 100, "b": 200}


def test_a_queue_below_divides_what_the_one_above_got() -> None:
    tree = QueueTree.of((
        Queue(name="research", rule="t", gpu=Quota(6 * GPU, limit=6 * GPU)),
        Queue(name="vision", rule="t", parent="research", gpu=Quota(4 * GPU)),
        Queue(name="speech", rule="t", parent="research"),
        Queue(name="product", rule="t", gpu=Quota(2 * GPU)),
    ))  # fmt: skip
    asked = dict.fromkeys(("vision", "speech", "product"), Amounts(16 * GPU))
    found = fair_shares(tree, asked, Amounts(12 * GPU))
    gpus = {name: amounts.gpu // GPU for name, amounts in found.items()}
    assert gpus == {"research": 6, "vision": 5, "speech": 1, "product": 6, UNQUEUED: 0}


def example(lending: int | None = None, gpus: int = 24, usage: Fraction = NO_USAGE[0]) -> dict[str, int]:
    """The example of docs/concepts/fair-share.md, in whole GPUs."""
    tree = QueueTree.of((
        Queue(name="research", rule="t", gpu=Quota(10 * GPU)),
        Queue(name="vision", rule="t", parent="research", gpu=Quota(6 * GPU)),
        Queue(name="speech", rule="t", parent="research", gpu=Quota(2 * GPU)),
        Queue(name="product", rule="t", gpu=Quota(6 * GPU, lending_limit=lending)),
        Queue(name="batch", rule="t", gpu=Quota(weight=2000)),
    ))  # fmt: skip
    asked = {"vision": 12, "speech": 4, "product": 3, "batch": 20}
    amounts = {name: Amounts(count * GPU) for name, count in asked.items()}
    used = {"batch": (usage, usage, usage)}
    found = fair_shares(tree, amounts, Amounts(gpus * GPU), used)
    return {name: amount.gpu // GPU for name, amount in found.items() if name != UNQUEUED}


def test_the_example_of_the_documentation() -> None:
    assert example() == {"research": 14, "product": 3, "batch": 7, "vision": 10, "speech": 4}
    lent = example(lending=GPU)
    assert (lent["research"], lent["product"], lent["batch"]) == (13, 3, 6)
    assert example(usage=Fraction(1))["batch"] == 5


def test_the_outage_of_the_documentation() -> None:
    found = divide(8 * GPU, [Claim("r", 16 * GPU, 8 * GPU), Claim("p", 6 * GPU, 6 * GPU)], GPU)
    assert found == {"r": 5 * GPU, "p": 3 * GPU}
