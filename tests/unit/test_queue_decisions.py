"""Queues in the decision: limits with numbers, turns between queues, and nothing else without queues."""

from __future__ import annotations

import random
from collections import Counter

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.fleets import gang, node, pod
from tests.unit.random_fleets import (
    binds,
    bound,
    broken_rules,
    evictions,
    examples,
    overcommitted,
    pods_of,
    reports,
)
from tests.unit.test_cycle import busy_fleets

from gpufleet.fleet.nodes import Node
from gpufleet.fleet.plans import Bind, Plan, Unschedulable
from gpufleet.fleet.pods import Pod
from gpufleet.fleet.queues import QUEUE_LABEL, UNQUEUED, Queue, QueueTree, Quota, amounts_asked
from gpufleet.fleet.reasons import Reason
from gpufleet.fleet.snapshot import Snapshot, snapshot_of
from gpufleet.scheduling.cycle import Policy, decide
from gpufleet.scheduling.explain import explain
from gpufleet.scheduling.gangs import units
from gpufleet.scheduling.queue_report import queue_report
from gpufleet.scheduling.queues import Queues

GPU = 1000


def queue(
    name: str,
    parent: str = "",
    *,
    guarantee: int = 0,
    limit: int | None = None,
    weight: int = 1,
    priority: int = 0,
    created: float = 0.0,
    closed: str = "",
) -> Queue:
    """A queue; amounts are whole GPUs."""
    most = None if limit is None else limit * GPU
    return Queue(
        name=name,
        rule="test",
        parent=parent,
        gpu=Quota(guarantee * GPU, most, weight=weight * GPU),
        priority=priority,
        created=created,
        closed=closed,
    )


def fleet(*things: Node | Pod | Queue, **rest: object) -> Snapshot:
    nodes = tuple(thing for thing in things if isinstance(thing, Node))
    pods = tuple(thing for thing in things if isinstance(thing, Pod))
    tree = QueueTree.of(thing for thing in things if isinstance(thing, Queue))
    return snapshot_of(nodes, pods, queues=tree, **rest)


def plan(*things: Node | Pod | Queue, **rest: object) -> Plan:
    return decide(fleet(*things, **rest), Policy())


def several(count: int, name: str, in_queue: str, **rest: object) -> list[Pod]:
    pods = (pod(f"{name}{n}", gpus=1, queue=in_queue, created=float(n)) for n in range(count))
    return [msgspec.structs.replace(one, **rest) for one in pods]


def told(found: Plan, name: str) -> Reason:
    return next(a for a in found.actions if isinstance(a, Unschedulable) and a.pod.name == name).reasons[0]


def in_turn(found: Plan) -> str:
    """The first letters of the pods in the order in which they are bound."""
    return "".join(action.pod.name[0] for action in found.actions if isinstance(action, Bind))


def test_a_queue_takes_no_more_than_its_limit_and_says_the_numbers() -> None:
    found = plan(
        node(gpus=8), queue("team", limit=2), *several(1, "run", "team", node="a"), *several(2, "p", "team")
    )
    assert binds(found) == {"p0": "a"}
    reason = told(found, "p1")
    assert reason.code == "QueueOverLimit"
    assert reason.message == "queue team may hold 2 GPUs at most: 2 held, and the pod needs 1"
    assert reason.evidence == {"resource": "gpu", "need": 1000, "have": 2000, "limit": 2000}
    assert not any(a.helped_by_capacity for a in found.actions if isinstance(a, Unschedulable))


def test_the_limit_of_a_queue_above_counts_for_all_below() -> None:
    found = plan(
        node(gpus=8), queue("org", limit=3), queue("a", "org"), queue("b", "org"),
        *several(2, "a", "a"), *several(2, "b", "b"),
    )  # fmt: skip
    assert len(binds(found)) == 3
    assert list(reports(found).values()) == [("QueueOverLimit",)]


def test_a_tenth_and_two_tenths_fit_three_tenths_of_a_core() -> None:
    tenths = Queue(name="team", rule="test", cpu=Quota(limit=300))
    found = plan(node(), tenths, pod("p", cpu="100m", queue="team"), pod("q", cpu="200m", queue="team"))
    assert len(binds(found)) == 2


def test_a_gang_that_would_exceed_the_limit_is_not_placed_in_part() -> None:
    members = [msgspec.structs.replace(one, gang=gang("g", 3)) for one in several(3, "p", "team")]
    found = plan(node(gpus=8), queue("team", limit=2), *members)
    assert binds(found) == {}
    reason = told(found, "p2")
    assert reason.message == "queue team may hold 2 GPUs at most: 0 held, and gang default/g needs 3"
    assert reason.evidence["need"] == 3000


def test_of_a_gang_that_may_grow_only_what_the_limit_allows_is_placed() -> None:
    members = [msgspec.structs.replace(one, gang=gang("g", 2)) for one in several(4, "p", "team")]
    found = plan(node(gpus=8), queue("team", limit=3), *members)
    assert len(binds(found)) == 3
    assert Counter(reports(found).values()) == {("QueueOverLimit",): 1}


def test_room_that_is_held_for_a_pod_counts_in_its_queue() -> None:
    victim = pod("victim", gpus=1, node="a", priority=-1)
    urgent = pod("p0", gpus=1, queue="team", priority=9)
    found = plan(
        node(gpus=1), node("b", gpus=0), queue("team", limit=1), victim, urgent, *several(1, "q", "team")
    )
    assert reports(found)["p0"] == ("WaitingForVictims",)
    assert reports(found)["q0"] == ("QueueOverLimit",)


def test_a_pod_ends_others_of_its_own_queue_and_of_none_but_of_no_other() -> None:
    urgent = pod("urgent", gpus=1, queue="team", priority=9)
    for held_by, evicted in (("team", True), ("", True), ("other", False)):
        holder = pod("holder", gpus=1, node="a", queue=held_by, priority=-1)
        found = plan(node(gpus=1), queue("team"), queue("other"), holder, urgent)
        assert bool(evictions(found)) is evicted, held_by


def test_pods_of_queues_that_cannot_be_used_are_told_why() -> None:
    found = plan(
        node(gpus=8),
        queue("org"), queue("team", "org"), queue("lost", "gone"),
        queue("shut", closed="its state is Closed"),
        *(pod(name, gpus=1, queue=name) for name in ("org", "team", "lost", "shut", "other")),
    )  # fmt: skip
    assert set(binds(found)) == {"team"}
    assert told(found, "org").message == "pods wait in the queues below org: team"
    assert told(found, "lost").message == "queue lost names the parent gone, which does not exist"
    assert told(found, "shut").message == "queue shut takes nobody in: its state is Closed"
    assert told(found, "other").message == "there is no queue other"
    codes = {name: codes[0] for name, codes in reports(found).items()}
    assert codes == {
        "org": "QueueInvalid",
        "lost": "QueueInvalid",
        "shut": "QueueClosed",
        "other": "QueueNotFound",
    }


def test_without_any_queue_the_name_of_one_means_nothing() -> None:
    assert binds(plan(node(gpus=1), pod("p", gpus=1, queue="other"))) == {"p": "a"}


def test_a_namespace_names_the_queue_of_its_pods_that_name_none() -> None:
    snapshot = fleet(
        queue("team"),
        queue("own"),
        pod("p"),
        pod("q", queue="own"),
        namespaces={"default": {QUEUE_LABEL: "team"}},
    )
    queues = Queues(snapshot, ())
    assert [queues.queue(one) for one in snapshot.unbound.values()] == ["team", "own"]
    assert Queues(msgspec.structs.replace(snapshot, namespaces={}), ()).queue(pod("p")) == UNQUEUED


def test_queues_of_equal_standing_take_turns() -> None:
    found = plan(node(gpus=6), queue("x"), queue("y"), *several(4, "x", "x"), *several(4, "y", "y"))
    assert in_turn(found) == "xyxyxy"


def test_who_holds_more_waits_until_the_other_has_as_much() -> None:
    running = several(2, "run", "x", node="a")
    found = plan(node(gpus=6), queue("x"), queue("y"), *running, *several(4, "x", "x"), *several(4, "y", "y"))
    assert in_turn(found) == "yyxy"


def test_weights_decide_how_turns_are_divided() -> None:
    found = plan(node(gpus=6), queue("x", weight=2), queue("y"), *several(6, "x", "x"), *several(6, "y", "y"))
    assert Counter(in_turn(found)) == {"x": 4, "y": 2}


def test_a_guarantee_goes_before_a_priority_and_a_priority_before_the_share() -> None:
    guaranteed, high, low = queue("g", guarantee=2), queue("h", priority=5), queue("l")
    pods = [*several(3, "g", "g"), *several(3, "h", "h"), *several(3, "l", "l")]
    assert in_turn(plan(node(gpus=9), guaranteed, high, low, *pods)) == "gghhhllgl"


def test_within_a_queue_the_higher_priority_goes_first_and_does_not_jump_other_queues() -> None:
    urgent = pod("z", gpus=1, queue="x", priority=100, created=9.0)
    running = several(2, "run", "x", node="a")
    found = plan(
        node(gpus=5), queue("x"), queue("y"), *running, *several(2, "x", "x"), urgent, *several(2, "y", "y")
    )
    assert in_turn(found) == "yyz"


def test_turns_are_taken_at_every_level_of_the_tree() -> None:
    found = plan(
        node(gpus=8), queue("org"), queue("a", "org"), queue("b", "org"), queue("c"),
        *several(4, "a", "a"), *several(4, "b", "b"), *several(8, "c", "c"),
    )  # fmt: skip
    assert Counter(in_turn(found)) == {"c": 4, "a": 2, "b": 2}


def test_of_equal_queues_the_older_is_first() -> None:
    found = plan(
        node(gpus=1),
        queue("x", created=2.0),
        queue("y", created=1.0),
        *several(1, "x", "x"),
        *several(1, "y", "y"),
    )
    assert in_turn(found) == "y"


@st.composite
def queued_fleets(draw: st.DrawFn) -> Snapshot:
    """Crowded fleets whose pods are in queues, some with limits, some unusable."""
    snapshot, seed = draw(busy_fleets()), draw(st.integers(0, 10**6))
    pick = random.Random(seed)
    names = ["a", "b", "c", "d"]
    queues = [
        queue(
            name,
            pick.choice(["", *names[:index]]),
            guarantee=pick.randint(0, 2),
            limit=pick.choice((None, pick.randint(0, 4))),
            weight=pick.randint(0, 2),
            priority=pick.randint(0, 1),
        )
        for index, name in enumerate(names)
    ]

    def queued(one: Pod) -> Pod:
        return msgspec.structs.replace(one, queue=pick.choice(["", *names, "gone"]))

    by_node = {
        name: {key: queued(one) for key, one in pods.items()} for name, pods in snapshot.pods_by_node.items()
    }
    unbound = {key: queued(one) for key, one in snapshot.unbound.items()}
    tree = QueueTree.of(queues)
    return msgspec.structs.replace(snapshot, pods_by_node=by_node, unbound=unbound, queues=tree)


def held(snapshot: Snapshot, pods: list[Pod]) -> Counter[str]:
    """Milli-GPU by queue, with the queues below, counted by hand."""
    sums: Counter[str] = Counter()
    for one in pods:
        if one.node and one.queue in snapshot.queues.queues:
            for name in snapshot.queues.paths[one.queue]:
                sums[name] += amounts_asked(one.shape).gpu
    return sums


@examples(150)
@given(queued_fleets())
def test_no_plan_takes_a_queue_over_its_limit_or_forgets_a_pod(snapshot: Snapshot) -> None:
    found = decide(snapshot, Policy())
    after = bound(pods_of(snapshot), found)
    before, now = held(snapshot, pods_of(snapshot)), held(snapshot, after)
    for name, one in snapshot.queues.queues.items():
        if one.gpu.limit is not None:
            assert now[name] <= max(one.gpu.limit, before[name])
    assert not overcommitted([snapshot.nodes[name] for name in set(binds(found).values())], after)
    assert not broken_rules(snapshot, found)
    answered = Counter(a.pod.name for a in found.actions if isinstance(a, Bind | Unschedulable))
    assert answered == Counter(one.name for one in snapshot.unbound.values())
    there = {one.name for pods in snapshot.pods_by_node.values() for one in pods.values()}
    assert set(evictions(found)) <= there, "nobody is evicted who was only placed"
    assert decide(snapshot, Policy()) == found


TEAM: tuple[Node | Queue, ...] = (node(gpus=8), queue("org", limit=2), queue("team", "org", limit=2))


def why(snapshot: Snapshot, name: str) -> tuple[str, str, dict[str, str]]:
    found = explain(snapshot, f"default/{name}", Policy())
    assert found is not None
    return found.verdict, found.reasons[0].code, {c.kind: c.message for c in found.changes}


def test_why_says_which_limits_to_raise_and_how_far() -> None:
    running = several(2, "run", "team", node="a")
    assert why(fleet(*TEAM, *running, *several(1, "p", "team")), "p0") == (
        "not-now",
        "QueueOverLimit",
        {"raise-limit": "raise the limit of queue org to 3 GPUs and the limit of queue team to 3 GPUs"},
    )
    assert why(fleet(*TEAM, *running, *several(2, "p", "team")), "p1")[2] == {
        "raise-limit": "raise the limit of queue org to 4 GPUs and the limit of queue team to 4 GPUs"
    }


def test_what_asks_for_more_than_its_queue_may_ever_hold_never_starts_unless_the_limit_is_raised() -> None:
    found = why(fleet(node(gpus=8), queue("team", limit=2), pod("p", gpus=4, queue="team")), "p")
    assert found == ("never", "QueueOverLimit", {"raise-limit": "raise the limit of queue team to 4 GPUs"})
    assert why(fleet(node(gpus=2), queue("team", limit=2), pod("p", gpus=4, queue="team")), "p")[2] == {}


def test_why_says_how_to_get_into_a_queue_that_cannot_be_used() -> None:
    queues = queue("org"), queue("team", "org"), queue("lost", "gone"), queue("shut", closed="so")
    snapshot = fleet(node(gpus=8), *queues, *(pod(q, queue=q) for q in ("org", "lost", "shut", "new")))
    assert why(snapshot, "org")[2] == {"name-queue": "name the queue team"}
    assert why(snapshot, "shut")[2] == {"open-queue": "open the queue shut"}
    assert why(snapshot, "new")[2] == {"create-queue": "create the queue new"}
    local = fleet(node(), queue("team"), pod("p", queue="default/local"))
    assert why(local, "p")[2] == {"create-queue": "create the queue local"}
    assert why(snapshot, "lost")[:2] == ("not-now", "QueueInvalid")


def test_pods_that_cannot_be_placed_ask_for_nothing_and_those_that_run_count() -> None:
    snapshot = fleet(
        queue("org"), queue("team", "org"), queue("shut", closed="so"),
        *(pod(name, gpus=1, queue=name) for name in ("org", "team", "shut", "gone")),
        pod("old", gpus=2, queue="gone", node="a"),
    )  # fmt: skip
    waiting = units(snapshot, lambda one: True)
    queues = Queues(snapshot, waiting)
    assert {name: amounts.gpu for name, amounts in queues.asked.items()} == {"team": GPU, UNQUEUED: 2 * GPU}
    assert [row.waiting for row in queue_report(snapshot).queues] == [2, 1, 1, 0]
