"""Quantities are exact, a request never shrinks, and what is printed parses back."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.quantities import comparable_amounts, format_amount, parse_quantity, resource_amount


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("12", 12),
        ("+3", 3),
        ("-2", -2),
        ("1.5", Fraction(3, 2)),
        (".5", Fraction(1, 2)),
        ("5.", 5),
        ("100m", Fraction(1, 10)),
        ("7u", Fraction(7, 10**6)),
        ("3n", Fraction(3, 10**9)),
        ("2k", 2_000),
        ("2M", 2 * 10**6),
        ("1G", 10**9),
        ("1T", 10**12),
        ("1P", 10**15),
        ("1E", 10**18),
        ("1Ki", 1024),
        ("1.5Gi", 3 * 2**29),
        ("1Ei", 2**60),
        ("12e3", 12_000),
        ("1E-2", Fraction(1, 100)),
        ("1.5e+1", 15),
    ],
)
def test_every_form_of_a_quantity(text: str, value: Fraction | int) -> None:
    assert parse_quantity(text) == value


@pytest.mark.parametrize(
    "text", ["", "a", "1 Gi", "1gi", "1K", "--1", "1e", "1Gi2", "0x10", "1_000", ".", "e3", "1mi"]
)
def test_what_is_no_quantity_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(GpufleetError) as caught:
        parse_quantity(text)
    assert caught.value.reason == "BadQuantity"
    assert repr(text) in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("resource", "text", "amount"),
    [
        ("cpu", "1", 1000),
        ("cpu", "250m", 250),
        ("cpu", "0.1", 100),
        ("cpu", "100u", 1),
        ("memory", "1Gi", 2**30),
        ("memory", "1500m", 2),
        ("memory", "0.5", 1),
        ("nvidia.com/gpu", "8", 8),
        ("pods", "110", 110),
        ("cpu", "0", 0),
    ],
)
def test_amounts_are_millicores_or_whole_units_rounded_up(resource: str, text: str, amount: int) -> None:
    assert resource_amount(resource, text) == amount


@pytest.mark.parametrize(
    ("resource", "amount", "text"),
    [
        ("cpu", 1500, "1500m"),
        ("cpu", 2000, "2"),
        ("memory", 16 * 2**30, "16Gi"),
        ("memory", 3 * 2**29, "1536Mi"),
        ("memory", 1000, "1000"),
        ("ephemeral-storage", 0, "0"),
        ("hugepages-2Mi", 2**21, "2Mi"),
        ("nvidia.com/gpu", 1024, "1024"),
    ],
)
def test_amounts_are_printed_in_their_shortest_exact_form(resource: str, amount: int, text: str) -> None:
    assert format_amount(resource, amount) == text


@given(st.sampled_from(["cpu", "memory", "nvidia.com/gpu", "pods"]), st.integers(0, 2**62))
def test_a_printed_amount_parses_back(resource: str, amount: int) -> None:
    assert resource_amount(resource, format_amount(resource, amount)) == amount


suffixes = st.sampled_from(["n", "u", "m", "", "k", "M", "G", "Ki", "Mi", "Gi", "Ti"])


@given(st.integers(0, 10**9), st.integers(0, 999), suffixes)
def test_rounding_never_shrinks_a_request_nor_adds_a_whole_unit(
    whole: int, thousandths: int, suffix: str
) -> None:
    text = f"{whole}.{thousandths:03}{suffix}"
    exact = parse_quantity(text)
    assert exact <= resource_amount("memory", text) < exact + 1
    assert exact * 1000 <= resource_amount("cpu", text) < exact * 1000 + 1


@given(st.integers(0, 10**6), st.integers(0, 10**6), suffixes)
def test_a_larger_number_of_the_same_unit_is_a_larger_quantity(a: int, b: int, suffix: str) -> None:
    assert (parse_quantity(f"{a}{suffix}") < parse_quantity(f"{b}{suffix}")) == (a < b)


@pytest.mark.parametrize(
    ("resource", "amounts", "told"),
    [
        ("cpu", (50_000, 12_000), ("50", "12")),
        ("cpu", (96_500, 96_000), ("96500m", "96000m")),
        ("memory", (16 << 30, 0), ("16Gi", "0")),
        ("memory", (16 << 30, (16 << 30) - 1), ("16Gi", "15.99Gi")),
        ("memory", (16 << 30, (16 << 30) + (1 << 20)), ("16384Mi", "16385Mi")),
        ("memory", (16 << 30, 128 << 20), ("16384Mi", "128Mi")),
        ("nvidia.com/gpu", (8, 3), ("8", "3")),
    ],
)
def test_amounts_that_are_compared_are_told_in_one_unit(
    resource: str, amounts: tuple[int, int], told: tuple[str, str]
) -> None:
    assert comparable_amounts(resource, *amounts) == told
