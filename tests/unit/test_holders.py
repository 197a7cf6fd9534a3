"""Who holds what a pod waits for is named by workload, with who is ending and for whom room is held."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from tests.unit.explanations import fleet, why
from tests.unit.fleets import GPU, HOST, gang, near, node, pod
from tests.unit.random_fleets import binds, examples, fleets

from gpufleet.fleet.snapshot import Snapshot
from gpufleet.scheduling.cycle import Policy, consider
from gpufleet.scheduling.search import Search


@examples(60)
@given(fleets(most_pods=4))
def test_holders_and_whom_room_is_held_for_have_all_that_is_used_where_the_pod_is_short_of_it(
    snapshot: Snapshot,
) -> None:
    plan, after = consider(snapshot, Policy())
    for p in snapshot.unbound.values():
        found = why(snapshot, p.name)
        if p.gang or found.verdict not in ("never", "not-now"):
            continue
        blocks = list(Search(p, after).blocks())
        if len(blocks) < len(after.accounts):
            continue  # Somebody that was placed after it gives it the company that it needs.
        used: Counter[str] = Counter()
        for where, block in blocks:
            if {part.code for part in block.parts} <= {"InsufficientResource", "TooManyPods"}:
                short = [part.detail for part in block.parts]
                used += Counter({resource: after.accounts[where].used[resource] for resource in short})
        held: Counter[str] = Counter()
        for holder in (*found.holders, *found.held_for):
            if "/" not in holder.resource or holder.resource == GPU:
                held[holder.resource] += holder.amount
        assert held == used
        real = len(binds(plan)) + sum(map(len, snapshot.pods_by_node.values()))
        assert sum(h.pods for h in found.holders if h.resource == GPU) <= real


def test_who_holds_the_gpus_is_named_by_workload() -> None:
    web = [pod(f"web-{i}", gpus=2, node="a", owner="web", priority=5) for i in range(3)]
    snapshot = fleet(node("a", gpus=8), *web, pod("one", gpus=1, node="a"), pod("p", gpus=4, priority=5))
    found = why(snapshot, "p")
    assert [(h.workload, h.amount, h.pods, h.preemptible, h.nodes) for h in found.holders] == [
        ("ReplicaSet/web", 6, 3, False, ("a",)),
        ("Pod/one", 1, 1, True, ("a",)),
    ]


def test_who_is_ending_and_for_whom_room_is_held_are_told_apart_from_holders() -> None:
    """32 GPUs: two victims of a pod that waits for their end, and two that stay."""
    victims = [pod(f"v{i}", gpus=8, node=f"n{i}", owner="batch", terminating=True) for i in range(2)]
    staying = [pod(f"s{i}", gpus=8, node=f"n{i + 2}", owner="web", priority=9) for i in range(2)]
    urgent = [pod(f"u{i}", gpus=8, nominated=f"n{i}", owner="urgent", priority=9) for i in range(2)]
    snapshot = fleet(
        *(node(f"n{i}", gpus=8) for i in range(4)), *victims, *staying, *urgent, pod("p", gpus=8)
    )
    found = why(snapshot, "p")
    assert [(h.workload, h.amount, h.ending) for h in found.holders] == [
        ("ReplicaSet/batch", 16, True),
        ("ReplicaSet/web", 16, False),
    ]
    assert [(h.workload, h.amount) for h in found.held_for] == [("ReplicaSet/urgent", 16)]


def test_a_gang_may_preempt_what_is_below_its_lowest_priority() -> None:
    running = [pod(f"r{i}", gpus=4, node=f"n{i}", priority=5, owner="r") for i in range(2)]
    members = [pod(f"w{i}", gpus=4, gang=gang("g", 2), priority=p) for i, p in enumerate((9, 1))]
    found = why(fleet(*(node(f"n{i}", gpus=4) for i in range(2)), *running, *members), "w0")
    assert [(h.workload, h.preemptible) for h in found.holders] == [("ReplicaSet/r", False)]
    assert "NoVictims" in [reason.code for reason in found.reasons]
    assert {change.kind: change.message for change in found.changes}["raise-priority"] == (
        "every pod of gang default/g: raise the priority above 5 (2 pods of lower priority would end)"
    )


def test_holders_of_cpu_host_ports_and_places_are_named_and_offered_to_be_ended() -> None:
    web = {"app": "web"}
    for resource, holder, waiting in (
        ("cpu", pod("h", cpu="60", node="a"), pod("p", cpu="8")),
        ("pods", pod("h", node="a", resources={"pods": 110}), pod("p")),
        ("memory", pod("h", memory="500Gi", node="a"), pod("p", memory="64Gi")),
        ("host port 80/TCP", pod("h", host_ports=[80], node="a"), pod("p", host_ports=[80])),
        (
            f"anti-affinity by {HOST}",
            pod("h", labels=web, node="a"),
            pod("p", anti_affinity=[near(app="web")]),
        ),
        (
            f"anti-affinity by {HOST}",
            pod("h", anti_affinity=[near(app="web")], node="a"),
            pod("p", labels=web),
        ),
    ):
        found = why(fleet(node("a"), holder, waiting), "p")
        assert [(h.workload, h.resource) for h in found.holders] == [("Pod/h", resource)]
        assert "end Pod/h in default (1 pod)" in [change.message for change in found.changes]


def test_who_stands_in_the_way_of_the_rest_of_a_gang_is_offered_to_be_ended() -> None:
    """One of two fits beside the holder; the holder blocks nothing until that one is placed."""
    members = [pod(f"w{i}", gpus=4, gang=gang("g", 2)) for i in range(2)]
    found = why(fleet(node("a", gpus=8), pod("r", gpus=2, node="a"), *members), "w0")
    assert [(h.workload, h.amount) for h in found.holders] == [("Pod/r", 2)]
    assert "end Pod/r in default (1 pod)" in [change.message for change in found.changes]


def test_a_pod_that_loses_to_one_before_it_is_told_who_won_and_that_nothing_else_is_in_the_way() -> None:
    """The node is free in the snapshot; the decision gives it to the older pod."""
    snapshot = fleet(node("a", gpus=1), pod("first", gpus=1), pod("p", gpus=1, created=5))
    found = why(snapshot, "p")
    assert [holder.workload for holder in found.holders] == ["Pod/first"]
    assert [change.kind for change in found.changes] == ["add-nodes"]


def test_a_workload_has_one_name_whoever_tells_of_it() -> None:
    running = pod("w0", gpus=2, node="a", owner="train", kind="Job", gang=gang("train-g", 1), priority=1)
    found = why(fleet(node("a", gpus=2), running, pod("p", gpus=1)), "p")
    assert [holder.workload for holder in found.holders] == ["Job/train"]
    assert "end Job/train in default (1 pod)" in [change.message for change in found.changes]
