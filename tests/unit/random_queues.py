"""Random trees of queues with what their pods ask for, from a seed."""

from __future__ import annotations

import random
from fractions import Fraction
from typing import NamedTuple

from gpufleet.fleet.queues import UNQUEUED, Amounts, Queue, QueueTree, Quota
from gpufleet.scheduling.fairshare import Usage


class Case(NamedTuple):
    """Queues, what their own pods ask for, what there is, what was used, and how much that counts."""

    queues: list[Queue]
    asked: dict[str, Amounts]
    capacity: Amounts
    usage: dict[str, Usage]
    k: Fraction

    @property
    def tree(self) -> QueueTree:
        return QueueTree.of(self.queues)


def random_case(seed: int) -> Case:
    """One to fourteen queues, up to five levels; amounts that collide often; half of the cases with usage."""
    draw = random.Random(seed)
    names = [f"q{number}" for number in range(draw.randint(1, 14))]
    queues = []
    for number, name in enumerate(names):
        parent = draw.choice(names[:number]) if number and draw.random() < 0.6 else ""
        queues.append(
            Queue(
                name=name,
                rule="test",
                parent=parent,
                gpu=_quota(draw, 1000),
                cpu=_quota(draw, 7),
                memory=_quota(draw, 1),
                priority=draw.choice((0, 0, 0, 10, -5)),
                created=float(draw.randint(0, 3)),
            )
        )
    asked = {
        name: Amounts(
            draw.choice((0, 500, 1000, 1300, 4000, 16_000)),
            draw.choice((0, draw.randint(0, 150))),
            draw.choice((0, draw.randint(0, 40))),
        )
        for name in [*names, UNQUEUED]
        if draw.random() < 0.8
    }
    gpus = draw.randint(0, 40) * draw.choice((1000, 500))
    capacity = Amounts(gpus, draw.randint(0, 300), draw.randint(0, 90))
    usage: dict[str, Usage] = {}
    if draw.random() < 0.5:
        usage = {name: (_part(draw), _part(draw), _part(draw)) for name in names if draw.random() < 0.7}
    return Case(queues, asked, capacity, usage, Fraction(draw.choice((0, 1, 1, 2)), draw.choice((1, 3))))


def _part(draw: random.Random) -> Fraction:
    return Fraction(draw.randint(0, 6), draw.choice((6, 9, 20)))


def _quota(draw: random.Random, unit: int) -> Quota:
    return Quota(
        guarantee=draw.choice((0, 0, draw.randint(0, 12) * unit, draw.randint(0, 5000) * unit // 1000, None)),
        limit=draw.choice((None, None, None, draw.randint(0, 20) * unit)),
        lending_limit=draw.choice((None, None, draw.randint(0, 5) * unit)),
        weight=draw.choice((1000, 1000, 2000, 3000, 0, 500, 333)),
        includes_children=draw.random() < 0.3,
    )
