"""Usage over time: what somebody held, where what is long past counts less.

An exponential moving average, as in Kueue's admission fair sharing: with `a = 1 - 0.5 ** (elapsed /
half_life)`, `average = (1 - a) * average + a * held`. The state is integers, so it can be kept in a status
and read back without loss, and no history or metrics store is needed. The average of a fleet's capacity is
kept the same way, and what counts for fair share is the quotient of both.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from math import isqrt

import msgspec

from gpufleet.fleet.queues import Amounts

SCALE = 1 << 16
"""Averages are kept in this fraction of the unit, so that a long half-life does not round small steps away.
"""

_BITS = 64
_ONE = 1 << _BITS


class Average(msgspec.Struct, frozen=True):
    """Averages of milli-GPU, millicores and bytes, each times `SCALE`."""

    gpu: int = 0
    cpu: int = 0
    memory: int = 0


def averaged(before: Average, held: Amounts, elapsed: int, half_life: int) -> Average:
    """The average after `held` was held for `elapsed` seconds. ValueError for a half-life below one second,
    or time that goes back.
    """
    if half_life < 1 or elapsed < 0:
        raise ValueError(f"half-life {half_life} s, elapsed {elapsed} s")
    kept = _halved(elapsed, half_life)
    averages = (before.gpu, before.cpu, before.memory)
    return Average(
        *(_between(now * SCALE, average, kept) for average, now in zip(averages, held, strict=True))
    )


def usage_of(used: Average, capacity: Average) -> tuple[Fraction, Fraction, Fraction]:
    """What was used of late as a fraction of what there was: GPUs, CPU, memory; 0 where nothing was."""
    return (
        _quotient(used.gpu, capacity.gpu),
        _quotient(used.cpu, capacity.cpu),
        _quotient(used.memory, capacity.memory),
    )


def _quotient(used: int, capacity: int) -> Fraction:
    return Fraction(used, capacity) if capacity else Fraction(0)


def _between(now: int, before: int, kept: int) -> int:
    """`before * kept + now * (1 - kept)`, rounded to the nearest integer."""
    return (before * kept + now * (_ONE - kept) + _ONE // 2) >> _BITS


def _halved(elapsed: int, half_life: int) -> int:
    """`0.5 ** (elapsed / half_life)` in fixed point: whole halvings shift, bits of the rest pick roots."""
    whole, rest = divmod(elapsed, half_life)
    value = _ONE
    for root in _roots():
        rest *= 2
        if rest >= half_life:
            rest -= half_life
            value = value * root >> _BITS
        if not rest:
            break
    return value >> whole


@lru_cache(maxsize=1)
def _roots() -> tuple[int, ...]:
    """`0.5 ** (1/2)`, `0.5 ** (1/4)`, ... in fixed point, each the square root of the one before."""
    roots, value = [], _ONE // 2
    for _ in range(_BITS // 2):
        value = isqrt(value << _BITS)
        roots.append(value)
    return tuple(roots)
