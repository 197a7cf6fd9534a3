"""Multisets as one integer: how many of each kind, 15 bits a kind, so that sums and comparisons are one step.

Kinds are numbered from 0. The sixteenth bit of each kind is free: a difference borrows from it where a count
would fall below zero.
"""

from __future__ import annotations

from collections.abc import Iterable

KINDS = 32
_WIDTH = 16
_MOST = (1 << (_WIDTH - 1)) - 1
_BORROW = sum(1 << (_WIDTH * kind + _WIDTH - 1) for kind in range(KINDS))


def unit(kind: int) -> int:
    """The multiset with one of a kind."""
    return 1 << (_WIDTH * kind)


def multiset(counts: Iterable[int]) -> int:
    """The multiset with these counts by kind; raises ValueError for what does not fit in the integer."""
    listed = tuple(counts)
    if len(listed) > KINDS or not all(0 <= count <= _MOST for count in listed):
        raise ValueError(f"at most {KINDS} kinds, and 0 to {_MOST} of each: {listed}")
    return sum(count * unit(kind) for kind, count in enumerate(listed))


def counts_of(one: int, kinds: int) -> tuple[int, ...]:
    """The counts of the first `kinds` kinds."""
    return tuple(one >> (_WIDTH * kind) & ((1 << _WIDTH) - 1) for kind in range(kinds))


def covers(one: int, other: int) -> bool:
    """Whether `one` has at least as many of every kind as `other`."""
    return (one | _BORROW) - other & _BORROW == _BORROW


def minus(one: int, other: int) -> int:
    """What `one` has more than `other`, never less than none of a kind."""
    difference = (one | _BORROW) - other
    kept = difference & _BORROW
    return difference & (kept - (kept >> (_WIDTH - 1)))


def least(one: int, other: int) -> int:
    """What both have."""
    return one - minus(one, other)
