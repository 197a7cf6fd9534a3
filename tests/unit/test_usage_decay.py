"""Usage over time: halved after a half-life, exact where nothing changes, and the same in one step or in
many.
"""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpufleet.fleet.queues import NOTHING, Amounts
from gpufleet.fleet.usage import SCALE, Average, averaged, usage_of

WEEK = 7 * 86_400


def test_what_is_no_longer_held_is_halved_in_every_half_life() -> None:
    before = Average(8000 * SCALE, 64 * SCALE, 1 << 40)
    assert averaged(before, NOTHING, WEEK, WEEK) == Average(4000 * SCALE, 32 * SCALE, 1 << 39)
    assert averaged(before, NOTHING, 3 * WEEK, WEEK) == Average(1000 * SCALE, 8 * SCALE, 1 << 37)


def test_half_of_a_half_life_keeps_the_square_root_of_a_half() -> None:
    kept = averaged(Average(1_000_000 * SCALE), NOTHING, 1, 2).gpu
    assert abs(kept - 0.5**0.5 * 1_000_000 * SCALE) < 1


def test_the_average_of_what_is_always_held_is_that() -> None:
    held = Amounts(8000, 12_000, 64 << 30)
    average = Average(*(amount * SCALE for amount in held))
    assert averaged(average, held, 12_345, 1000) == average
    assert averaged(average, held, 0, 1000) == average


@given(
    st.integers(0, 10**6),
    st.integers(0, 10**6),
    st.integers(1, 10**6),
    st.integers(1, 10**6),
    st.integers(1, 10**6),
)
def test_two_steps_are_one(before: int, held: int, first: int, second: int, half_life: int) -> None:
    amounts = Amounts(held, held, held)
    start = Average(before * SCALE, before * SCALE, before * SCALE)
    once = averaged(start, amounts, first + second, half_life).gpu
    twice = averaged(averaged(start, amounts, first, half_life), amounts, second, half_life).gpu
    assert abs(once - twice) <= max(before, held) * SCALE // 10**8 + 2
    assert min(before, held) * SCALE <= once <= max(before, held) * SCALE


def test_usage_is_a_part_of_the_capacity_and_nothing_where_there_is_none() -> None:
    found = usage_of(Average(3, 5, 7), Average(4, 0, 7))
    assert found == (Fraction(3, 4), Fraction(0), Fraction(1))


def test_time_does_not_go_back() -> None:
    with pytest.raises(ValueError, match="elapsed -1 s"):
        averaged(Average(), NOTHING, -1, 10)
