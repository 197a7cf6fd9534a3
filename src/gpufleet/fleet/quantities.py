"""Kubernetes quantities as exact integers.

A quantity is a decimal number with a binary suffix (Ki..Ei), a decimal suffix (n, u, m, k, M, G, T, P, E)
or an exponent. CPU is kept in millicores, everything else in whole units (bytes, devices, pods). A fraction
of a unit is rounded up, as Kubernetes does: a request never shrinks.
Source: k8s.io/apimachinery/pkg/api/resource.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

from gpufleet.fleet.errors import GpufleetError

_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
_SUFFIX: dict[str, Fraction] = {
    **{suffix: Fraction(10) ** power for suffix, power in _DECIMAL.items()},
    **{suffix: Fraction(2) ** power for suffix, power in _BINARY.items()},
}
_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([eE][+-]?\d+)|([numkMGTPE]|[KMGTPE]i))?")


@lru_cache(maxsize=4096)
def parse_quantity(text: str) -> Fraction:
    """The exact value of a quantity such as `1500m`, `16Gi`, `2e3`. Raises GpufleetError (BadQuantity)."""
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        raise GpufleetError(
            reason="BadQuantity",
            message=f"{text!r} is not a Kubernetes quantity",
            hint="write a number with an optional suffix, for example 500m, 4, 16Gi",
        )
    number, exponent, suffix = match.groups()
    return Fraction(number + (exponent or "")) * _SUFFIX[suffix or ""]


@lru_cache(maxsize=4096)
def resource_amount(resource: str, text: str) -> int:
    """A quantity of `resource` as an integer: millicores for `cpu`, whole units for the rest, rounded up."""
    value = parse_quantity(text) * (1000 if resource == "cpu" else 1)
    return -(-value.numerator // value.denominator)


def format_amount(resource: str, amount: int) -> str:
    """The shortest exact quantity of an amount from `resource_amount`; it parses back to the same amount."""
    if resource == "cpu":
        return f"{amount}m" if amount % 1000 else str(amount // 1000)
    if is_bytes(resource):
        for suffix, power in reversed(_BINARY.items()):
            if amount and amount % (1 << power) == 0:
                return f"{amount >> power}{suffix}"
    return str(amount)


def comparable_amounts(resource: str, *amounts: int) -> tuple[str, ...]:
    """Amounts for people, all in one unit: bytes in Gi, or what is smaller where that tells them apart.

    Bytes are cut to hundredths, so they need not parse back to the same amounts.
    """
    if resource == "cpu":
        milli = any(amount % 1000 for amount in amounts)
        return tuple(f"{amount}m" if milli and amount else str(amount // 1000) for amount in amounts)
    if not is_bytes(resource):
        return tuple(map(str, amounts))
    smallest = min((abs(amount) for amount in amounts if amount), default=0)
    for suffix in ("Gi", "Mi", "Ki"):
        told = tuple(_hundredths(amount, suffix) for amount in amounts)
        if smallest >> _BINARY[suffix] and len(set(told)) == len(set(amounts)):
            return told
    return tuple(map(str, amounts))


def is_bytes(resource: str) -> bool:
    """Whether a resource is counted in bytes."""
    return resource in ("memory", "ephemeral-storage") or resource.startswith("hugepages-")


def _hundredths(amount: int, suffix: str) -> str:
    whole, part = divmod(abs(amount) * 100 >> _BINARY[suffix], 100)
    number = f"{whole}.{part:02}".rstrip("0").rstrip(".")
    return f"{'-' if amount < 0 else ''}{number}{suffix}" if amount else "0"
