"""Fair share: how much of a fleet each queue is entitled to now.

The rule is KAI's proportion rule, at every level of the tree from the top down, for each resource on its own;
what a queue gets is the total of the queues below it:

1. In quota: each queue gets what it asks for, up to its guarantee.
2. Over quota: what is left goes to the highest priority first; within a priority each queue is offered its
   part by weight, takes what it asks for or else whole units, and as long as one asked for less than its
   part the rest is offered again. Past usage lowers a part: `max(0, n + k * (n - u))`, where `n` is the
   weight and `u` the decayed usage, each as a fraction of all.
3. Remainders: by priority, one unit each, largest fraction first, then the older queue, then by name.

Two things are added. A lending limit (Kueue's) keeps back what is guaranteed, not asked for, and not lent.
And where the guarantees that are asked for exceed what there is, they are scaled: the highest priority
first, within it in proportion to guarantee times weight. Exact: integers and fractions, no floats; the
order of queues does not matter. docs/concepts/fair-share.md derives it and tells the differences to Kueue.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

import msgspec

from gpufleet.fleet.demands import MILLI
from gpufleet.fleet.queues import NOTHING, UNIT_WEIGHT, Amounts, QueueTree

UNITS = (MILLI, 1, 1)
"""What is handed out at once of GPUs, CPU and memory: a whole GPU, a millicore, a byte."""

Usage = tuple[Fraction, Fraction, Fraction]
"""Decayed usage as a fraction of the decayed capacity, in the order of `RESOURCES`."""

NO_USAGE: Usage = (Fraction(0), Fraction(0), Fraction(0))


class Claim(msgspec.Struct, frozen=True):
    """What one queue brings to the division of one resource among its siblings, in the resource's unit.

    `asked` is no more than its limit; `guarantee` is no more than the total.
    """

    name: str
    asked: int
    guarantee: int = 0
    lending_limit: int | None = None
    weight: int = UNIT_WEIGHT
    priority: int = 0
    created: float = 0.0
    usage: Fraction = NO_USAGE[0]


_Parts = Callable[[Sequence[Claim]], Sequence[int | Fraction]]
"""From the queues that still ask to their parts, in any scale."""


def fair_shares(
    tree: QueueTree,
    asked: Mapping[str, Amounts],
    capacity: Amounts,
    usage: Mapping[str, Usage] | None = None,
    k: int | Fraction = 1,
) -> dict[str, Amounts]:
    """The share of every queue of the tree.

    `asked` is what pods of a queue hold and wait for, those of queues below not included. Shares of siblings
    sum to at most the share above them, `capacity` at the top. `usage` is what queues have had of late, `k`
    how much that counts.
    """
    used = usage or {}
    totals = requestable(tree, asked)
    shares: dict[str, list[int]] = {"": list(capacity)}
    below = [""]
    while below:
        parent = below.pop()
        names = tree.children.get(parent, ())
        below += names
        shares.update((name, []) for name in names)
        for index, unit in enumerate(UNITS):
            total = shares[parent][index]
            claims = [_claim(tree, name, index, total, totals[name][index], used) for name in names]
            given = divide(total, claims, unit, k)
            for name in names:
                shares[name].append(given[name])
    return {name: Amounts(*shares[name]) for name in tree.queues}


def requestable(tree: QueueTree, asked: Mapping[str, Amounts]) -> dict[str, Amounts]:
    """What each queue asks for with all below it, each bounded by its limit."""
    sums: dict[str, list[int]] = {name: list(asked.get(name, NOTHING)) for name in tree.queues}
    found: dict[str, Amounts] = {}
    for name in sorted(tree.queues, key=lambda name: (-len(tree.paths[name]), name)):
        quotas = tree.queues[name].quotas
        bounded = [
            amount if quota.limit is None else min(amount, quota.limit)
            for amount, quota in zip(sums[name], quotas, strict=True)
        ]
        found[name] = Amounts(*bounded)
        if parent := tree.queues[name].parent:
            sums[parent] = [one + other for one, other in zip(sums[parent], bounded, strict=True)]
    return found


def divide(total: int, claims: Sequence[Claim], unit: int = 1, k: int | Fraction = 1) -> dict[str, int]:
    """Divide `total` of one resource among siblings, in steps of `unit` where somebody cannot have all."""
    shares = {claim.name: min(claim.guarantee, claim.asked) for claim in claims}
    left = total - sum(shares.values())
    if left < 0:
        nothing = dict.fromkeys(shares, 0)
        _hand_out(total, claims, nothing, shares, unit, _by_guarantee)
        return nothing
    left -= sum(_kept_back(claim, shares[claim.name]) for claim in claims)
    wanted = {claim.name: claim.asked - shares[claim.name] if claim.weight > 0 else 0 for claim in claims}
    _hand_out(left, claims, shares, wanted, unit, _by_weight(k))
    return shares


def _claim(
    tree: QueueTree, name: str, index: int, total: int, asked: int, usage: Mapping[str, Usage]
) -> Claim:
    queue = tree.queues[name]
    quota, guarantee = queue.quotas[index], tree.guarantees[name][index]
    return Claim(
        name,
        asked,
        total if guarantee is None else min(guarantee, total),
        quota.lending_limit,
        quota.weight,
        queue.priority,
        queue.created,
        usage.get(name, NO_USAGE)[index],
    )


def _kept_back(claim: Claim, share: int) -> int:
    """What is guaranteed to a queue that does not ask for it, and what it does not lend either."""
    if claim.lending_limit is None:
        return 0
    return max(0, claim.guarantee - share - claim.lending_limit)


def _by_weight(k: int | Fraction) -> _Parts:
    def parts(claims: Sequence[Claim]) -> Sequence[int | Fraction]:
        if not any(claim.usage for claim in claims):
            return [claim.weight for claim in claims]
        weights = sum(claim.weight for claim in claims)
        normal = [Fraction(claim.weight, weights) for claim in claims]
        return [max(Fraction(0), n + k * (n - c.usage)) for n, c in zip(normal, claims, strict=True)]

    return parts


def _by_guarantee(claims: Sequence[Claim]) -> Sequence[int | Fraction]:
    """A weight of 0 forbids to borrow and says nothing about the guarantee, so it counts as one."""
    return [claim.guarantee * (claim.weight or UNIT_WEIGHT) for claim in claims]


def _hand_out(
    left: int,
    claims: Sequence[Claim],
    shares: dict[str, int],
    wanted: dict[str, int],
    unit: int,
    parts: _Parts,
) -> None:
    """Add to `shares` what is `left`, by priority, up to what is `wanted` of it; then the remainders."""
    groups: dict[int, list[Claim]] = {}
    for claim in claims:
        groups.setdefault(-claim.priority, []).append(claim)
    remainders: list[tuple[int, Fraction, float, str]] = []
    for rank in sorted(groups):
        left, fractions = _rounds(left, groups[rank], shares, wanted, unit, parts)
        remainders += [(rank, -part, claim.created, claim.name) for claim, part in fractions]
    for _, _, _, name in sorted(remainders):
        given = min(unit, left)
        shares[name] += max(0, given)
        left -= max(0, given)


def _rounds(
    left: int,
    group: Sequence[Claim],
    shares: dict[str, int],
    wanted: dict[str, int],
    unit: int,
    parts: _Parts,
) -> tuple[int, list[tuple[Claim, Fraction]]]:
    """Offer what is left to queues of one priority until nobody asks for less than its part.

    What is left then, and the fraction of a unit by which each queue fell short of its part.
    """
    wanted = dict(wanted)
    fractions: list[tuple[Claim, Fraction]] = []
    again = True
    while again and left > 0:
        again = False
        hungry = [claim for claim in group if wanted[claim.name] > 0]
        offered, weights = left, parts(hungry)
        whole = sum(weights)
        if not whole:
            break
        fractions = []
        for claim, weight in zip(hungry, weights, strict=True):
            part = Fraction(offered * weight, whole)
            asked = wanted[claim.name]
            given = asked
            if asked < part:
                again = True
            elif asked > part:
                given = part // unit * unit
                fractions.append((claim, part - given))
            shares[claim.name] += given
            wanted[claim.name] -= given
            left -= given
    return left, fractions
