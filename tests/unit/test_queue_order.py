"""Whose turn it is: the heaps of `Turns` against a plain comparison of all queues before every turn."""

from __future__ import annotations

import random
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.fleets import node, pod
from tests.unit.random_fleets import examples
from tests.unit.random_queues import random_case

from gpufleet.fleet.queues import UNQUEUED, Queue, QueueTree, Quota, amounts_asked
from gpufleet.fleet.snapshot import Snapshot, snapshot_of
from gpufleet.scheduling.gangs import Unit, units
from gpufleet.scheduling.queue_order import Turns
from gpufleet.scheduling.queues import Queues


def crowd(seed: int) -> Snapshot:
    """A random tree whose leaves hold some pods and wait for others, and a fleet of a few GPUs."""
    draw = random.Random(seed)
    tree = random_case(seed).tree
    leaves = [name for name in tree.queues if tree.is_leaf(name) and name != UNQUEUED]
    pods = [
        pod(
            f"p{number}",
            gpus=draw.choice((0, 1, 1, 2, 4)),
            cpu=f"{draw.randint(1, 40)}m",
            memory=str(draw.randint(1, 20)),
            queue=draw.choice([*leaves, ""]),
            node=draw.choice(("", "", "a")),
            priority=draw.choice((0, 0, 1)),
            created=float(draw.randint(0, 5)),
        )
        for number in range(draw.randint(0, 25))
    ]
    machine = node(gpus=draw.randint(0, 16), cpu=f"{draw.randint(1, 300)}m", memory=str(draw.randint(1, 200)))
    return snapshot_of((machine,), tuple(pods), queues=tree)


class Plain:
    """The rule of docs/concepts/fair-share.md, asked anew for every turn, with exact fractions."""

    def __init__(self, snapshot: Snapshot, queues: Queues, waiting: list[Unit]) -> None:
        self.tree, self.queues = snapshot.queues, queues
        self.left = {name: [] for name in self.tree.queues}  # type: dict[str, list[Unit]]
        for unit in waiting:
            self.left[queues.queue(unit.pods[0])].append(unit)

    def turn(self) -> Unit:
        parent = ""
        while parent in self.tree.children:
            parent = min((name for name in self.tree.children[parent] if self.first(name)), key=self.rank)
        return self.left[parent].pop(0)

    def first(self, name: str) -> Unit | None:
        if self.tree.is_leaf(name):
            return self.left[name][0] if self.left[name] else None
        below = [child for child in self.tree.children[name] if self.first(child)]
        return self.first(min(below, key=self.rank)) if below else None

    def rank(self, name: str) -> tuple[object, ...]:
        unit = self.first(name)
        assert unit is not None
        need = amounts_asked(unit.pods[0].shape)
        held, share = self.queues.held[name], self.queues.shares[name]
        guarantee, queue = self.tree.guarantees[name], self.tree.queues[name]
        r = range(3)
        known = [any(g[i] != 0 for g in self.tree.guarantees.values()) for i in r]
        under = all(held[i] < share[i] for i in r if need[i])
        inside = all(
            guarantee[i] is None or held[i] + need[i] <= (guarantee[i] or 0)
            for i in r
            if need[i] and known[i]
        )
        shareless = any(share[i] == 0 and held[i] + need[i] for i in r)
        with_it = max((Fraction(held[i] + need[i], share[i]) for i in r if share[i]), default=Fraction(0))
        without = max((Fraction(held[i], share[i]) for i in r if share[i]), default=Fraction(0))
        entitled = Fraction(0)
        for i in r:
            total = self.queues.capacity[i]
            most = max(share[i], total if guarantee[i] is None else guarantee[i] or 0)
            limit = queue.quotas[i].limit
            most = most if limit is None else min(most, limit)
            entitled = max(entitled, Fraction(most, total) if total else Fraction(0))
        place = (-queue.priority, shareless, with_it, without, entitled, queue.created, name)
        return (not under, not inside, *place)


@examples(200)
@given(st.integers(0, 10**9), st.booleans())
def test_every_turn_is_that_of_the_plain_rule(seed: int, fits: bool) -> None:
    snapshot = crowd(seed)
    waiting = units(snapshot, lambda one: True)
    queues = Queues(snapshot, waiting)
    plain = Plain(snapshot, queues, list(waiting))
    turns = iter(Turns(queues, waiting))
    for taken, expected in enumerate(plain.turn() for _ in waiting):
        unit = next(turns)
        assert unit is expected
        if fits or taken % 3:
            queues.take(unit.pods)
    assert next(turns, None) is None


def test_a_resource_of_which_nobody_is_guaranteed_anything_says_nothing() -> None:
    tree = QueueTree.of((
        Queue(name="a", rule="t", created=1.0),
        Queue(name="b", rule="t", gpu=Quota(1000), created=2.0),
    ))  # fmt: skip
    pods = (pod("p", gpus=1, queue="a"), pod("q", gpus=1, queue="b"))
    snapshot = snapshot_of((node(gpus=4),), pods, queues=tree)
    waiting = units(snapshot, lambda one: True)
    order = [unit.pods[0].name for unit in Turns(Queues(snapshot, waiting), waiting)]
    assert order == ["q", "p"]
