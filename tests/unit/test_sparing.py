"""Whoever ends for a gang has to: no single pod, and no gang as a whole, could have been spared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from hypothesis import assume, given
from hypothesis import strategies as st
from tests.unit.fleets import GPU, HOST, ZONE, gang, near, node, pod, selector, spread_over
from tests.unit.random_fleets import evictions, examples, nominations, overcommitted

from gpufleet.fleet.nodes import Node
from gpufleet.fleet.plans import Plan
from gpufleet.fleet.pods import Pod
from gpufleet.fleet.snapshot import DisruptionBudget, Snapshot, snapshot_of
from gpufleet.scheduling.cycle import Policy, decide


def plan(*things: Node | Pod, **rest: object) -> Plan:
    nodes = tuple(thing for thing in things if isinstance(thing, Node))
    pods = tuple(thing for thing in things if isinstance(thing, Pod))
    return decide(snapshot_of(nodes, pods, **rest), Policy())


def workers(count: int, **rest: object) -> list[Pod]:
    """A gang `hi` of priority 5 whose members need whole nodes."""
    return [pod(f"hi-{i}", gpus=8, gang=gang("hi", count), priority=5, **rest) for i in range(count)]  # type: ignore[arg-type]


NODES = [node(f"train-{i}", gpus=8, zone="xy"[i % 2]) for i in range(4)]
BIG = [pod(f"big-{i}", gpus=8, gang=gang("big", 3), priority=1, node=f"train-{i}") for i in range(3)]
SOLO = pod("solo", gpus=8, priority=1, node="train-3")


def test_the_nodes_of_a_gang_that_ends_serve_every_member() -> None:
    found = plan(*NODES, *BIG, SOLO, *workers(2))
    assert set(evictions(found)) == {"big-0", "big-1", "big-2"}
    assert set(nominations(found).values()) <= {"train-0", "train-1", "train-2"}
    assert len(set(nominations(found).values())) == 2


def test_a_victim_ends_for_a_member_that_runs_where_it_ran() -> None:
    found = plan(*NODES, *BIG, SOLO, *workers(2))
    places = {f"default/{name}": where for name, where in nominations(found).items()}
    held = {victim.node: evictions(found)[victim.name] for victim in BIG}
    assert all(held[where] == key for key, where in places.items())


def test_members_that_keep_apart_from_each_other_stay_apart() -> None:
    apart = workers(2, labels={"job": "hi"}, anti_affinity=[near(HOST, job="hi")])
    found = plan(*NODES, *BIG, SOLO, *apart)
    assert set(evictions(found)) == {"big-0", "big-1", "big-2"}
    assert len(set(nominations(found).values())) == 2


def test_nobody_is_spared_where_other_nodes_would_then_stand_in_the_way() -> None:
    """train-0 and train-2 are in one zone, and only one of the two workers may run there."""
    nodes = [node(f"train-{i}", gpus=8, zone="xxxy"[i]) for i in range(4)]
    apart = workers(2, labels={"job": "hi"}, spread=[spread_over(ZONE, job="hi")])
    found = plan(*nodes, *BIG, SOLO, *apart)
    assert set(evictions(found)) == {"big-0", "big-1", "big-2", "solo"}
    assert len(nominations(found)) == 2


def test_the_dearest_is_spared_first() -> None:
    """The gang leaves two nodes, so one of the two others need not end."""
    pair = [pod(f"pair-{i}", gpus=8, gang=gang("pair", 2), priority=3, node=f"train-{i}") for i in range(2)]
    cheap, dear = (pod(f"p{i}", gpus=8, priority=i, node=f"train-{i + 1}") for i in (1, 2))
    found = plan(*NODES, *pair, cheap, dear, *workers(3))
    assert set(evictions(found)) == {"p1", "pair-0", "pair-1"}


@st.composite
def crowded(draw: st.DrawFn) -> Snapshot:
    """Full nodes with single pods and gangs, and one gang of equal members that is more important."""
    nodes = [node(f"n{i}", gpus=draw(st.sampled_from([2, 4, 8]))) for i in range(draw(st.integers(2, 5)))]
    size = draw(st.sampled_from([1, 2, 4]))
    sizes = {name: draw(st.integers(1, 4)) for name in ("g1", "g2")}
    pods: list[Pod] = []
    for index in range(draw(st.integers(2, 12))):
        name = draw(st.sampled_from(["", "g1", "g2", "g1"]))
        new = pod(
            f"p{index}",
            gpus=draw(st.sampled_from([1, 2, 4])),
            node=draw(st.sampled_from(nodes)).name,
            gang=gang(name, sizes[name]) if name else None,
            priority=draw(st.integers(0, 3)),
            created=float(index),
            labels={"app": draw(st.sampled_from("ab"))},
            terminating=draw(st.integers(0, 9)) == 9,
        )
        if not overcommitted(nodes, [*pods, new]):
            pods.append(new)
    count = draw(st.integers(2, 4))
    waiting = [
        pod(f"hi-{i}", gpus=size, gang=gang("hi", count), priority=draw(st.integers(5, 6)))
        for i in range(count)
    ]
    budget = DisruptionBudget("default", "pdb", selector(app="a"), draw(st.integers(0, 1)))
    return snapshot_of(tuple(nodes), (*pods, *waiting), budgets=(budget,))


@examples(150)
@given(crowded())
def test_nobody_who_ends_for_a_gang_could_have_been_spared(snapshot: Snapshot) -> None:
    ended = set(evictions(decide(snapshot, Policy())))
    assume(len(ended) > 1)
    there = [p for pods in snapshot.pods_by_node.values() for p in pods.values() if not p.terminating]
    members = list(snapshot.unbound.values())
    assert room_for(members[0], snapshot, [p for p in there if p.name not in ended]) >= len(members)
    for group in groups([p for p in there if p.name in ended], there):
        stay = [p for p in there if p.name not in ended or p in group]
        names = [p.name for p in group]
        assert room_for(members[0], snapshot, stay) < len(members), f"{names} could have been spared"


def room_for(member: Pod, snapshot: Snapshot, pods: Iterable[Pod]) -> int:
    """How many pods like `member` fit beside `pods`, by GPUs alone."""
    used: Counter[str] = Counter()
    for other in pods:
        used[other.node] += dict(other.shape.requests).get(GPU, 0)
    each = dict(member.shape.requests)[GPU]
    return sum((n.allocatable[GPU] - used[n.name]) // each for n in snapshot.nodes.values())


def groups(victims: Sequence[Pod], there: Iterable[Pod]) -> list[list[Pod]]:
    """Who could be spared by itself: a pod, or all victims of a gang that ends."""
    left = Counter(p.gang_key for p in there if p not in victims)
    found: list[list[Pod]] = []
    for victim in victims:
        mates = [other for other in victims if victim.gang and other.gang_key == victim.gang_key]
        if victim.gang and left[victim.gang_key] + 1 < (victim.gang.minimum or 0):
            found.append(mates)
        else:
            found.append([victim])
    return found
