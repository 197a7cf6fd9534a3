"""Preemption takes the cheapest set of lower priority, and nobody who could be spared; brute force agrees."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations

import msgspec
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.unit.fleets import HOST, ZONE, gang, near, node, pod, spread_over
from tests.unit.preemptors import URGENT, choose, plan, running, victims
from tests.unit.random_fleets import binds, evictions, examples, fleets, instance, pods_of, reports, templates

from gpufleet.fleet.pods import Pod, gpus_requested
from gpufleet.fleet.snapshot import Snapshot, snapshot_of
from gpufleet.scheduling.budgets import Budgets
from gpufleet.scheduling.filters import FILTERS
from gpufleet.scheduling.ledger import Ledger
from gpufleet.scheduling.preemption import Preemption
from gpufleet.scheduling.trial import Trial

Cost = tuple[int, int, int, int]

# the oracle: all subsets


def fits_without(incoming: Pod, snapshot: Snapshot, where: str, gone: Iterable[Pod]) -> bool:
    """By all filters, with these pods and all that are ending taken from the node."""
    ledger = Ledger.build(snapshot)
    ending = [p.key for p in snapshot.pods_by_node.get(where, {}).values() if p.terminating]
    ledger.remove(where, [*ending, *(p.key for p in gone)])
    checks = (rule.prepare(incoming, ledger) for rule in FILTERS)
    return all(check is None or check(ledger.accounts[where]) is None for check in checks)


def with_broken_gangs(gone: Iterable[Pod], snapshot: Snapshot, below: int) -> dict[str, Pod]:
    """The pods and, for each gang that falls below its minimum without them, its other members."""
    taken = {p.key: p for p in gone}
    running = [p for p in pods_of(snapshot) if p.node in snapshot.nodes and not p.terminating]
    for key in {p.gang_key for p in taken.values() if p.gang}:
        members = [p for p in running if p.gang_key == key]
        minimum = max((p.gang.minimum or 0) for p in members if p.gang)
        if sum(p.key not in taken for p in members) < minimum:
            taken.update({p.key: p for p in members if p.priority < below})
    return taken


def cost(gone: Iterable[Pod], snapshot: Snapshot) -> Cost:
    broken, left = 0, {b.name: b.allowed for b in snapshot.budgets}
    chosen = sorted(gone, key=lambda p: p.key)
    for victim in chosen:
        hit = [b.name for b in snapshot.budgets if b.selector and b.selector.matches(victim.labels)]
        for name in hit:
            left[name] -= 1
        broken += any(left[name] < 0 for name in hit)
    highest = max((p.priority for p in chosen), default=-(2**31))
    return (broken, highest, len(chosen), sum(gpus_requested(p.shape) for p in chosen))


def all_choices(incoming: Pod, snapshot: Snapshot) -> Iterator[tuple[str, dict[str, Pod]]]:
    """Every node and every set of victims there that makes room."""
    for where in snapshot.nodes:
        lower = [
            p
            for p in snapshot.pods_by_node.get(where, {}).values()
            if p.priority < incoming.priority and not p.terminating
        ]
        for count in range(len(lower) + 1):
            for subset in combinations(lower, count):
                gone = with_broken_gangs(subset, snapshot, incoming.priority)
                if fits_without(incoming, snapshot, where, gone.values()):
                    yield where, gone


@examples(150)
@given(fleets(wide=False, gangs=False), templates(wide=False))
def test_the_choice_is_as_cheap_as_the_best_of_all_subsets(snapshot: Snapshot, template: Pod) -> None:
    """By budgets broken, then the highest priority hurt, then the number of victims."""
    incoming = instance(template, "new", priority=template.priority + 1)
    assume(Trial(Ledger.build(snapshot)).search(incoming).best() is None)
    found = choose(incoming, snapshot)
    costs = [cost(gone.values(), snapshot)[:3] for _, gone in all_choices(incoming, snapshot)]
    assert (found is None) == (not costs)
    if found is not None:
        assert cost(found.victims, snapshot)[:3] == min(costs) == msgspec.structs.astuple(found.cost)[:3]


@examples(150)
@given(fleets(wide=False), templates(wide=False))
def test_no_victim_can_be_spared_and_gangs_end_as_a_whole(snapshot: Snapshot, template: Pod) -> None:
    incoming = instance(template, "new", priority=template.priority + 1)
    assume(Trial(Ledger.build(snapshot)).search(incoming).best() is None)
    found = choose(incoming, snapshot)
    assert (found is None) == (not any(True for _ in all_choices(incoming, snapshot)))
    if found is None:
        return
    chosen = {p.key: p for p in found.victims}
    assert all(p.priority < incoming.priority and not p.terminating for p in chosen.values())
    assert chosen == with_broken_gangs(chosen.values(), snapshot, incoming.priority)
    assert fits_without(incoming, snapshot, found.node, chosen.values())
    here = [p for p in chosen.values() if p.node == found.node]
    for count in range(len(here)):
        for subset in combinations(here, count):
            fewer = with_broken_gangs(subset, snapshot, incoming.priority)
            if fewer.keys() < chosen.keys():
                assert not fits_without(incoming, snapshot, found.node, fewer.values())


@examples(60)
@given(fleets(), templates())
def test_with_constraints_over_the_fleet_the_pod_fits_once_the_victims_are_gone(
    snapshot: Snapshot, template: Pod
) -> None:
    incoming = instance(template, "new", priority=template.priority + 1)
    assume(Trial(Ledger.build(snapshot)).search(incoming).best() is None)
    found = choose(incoming, snapshot)
    if found is None:
        # Nobody is evicted only because the pod would then be the first of its group (`_has_company`).
        assume(not incoming.shape.affinity)
        lower = {
            where: [p for p in pods.values() if p.priority < incoming.priority and not p.terminating]
            for where, pods in snapshot.pods_by_node.items()
        }
        assert not any(fits_without(incoming, snapshot, n, lower.get(n, [])) for n in snapshot.nodes)
    else:
        assert fits_without(incoming, snapshot, found.node, found.victims)
        chosen = {p.key: p for p in found.victims}
        assert chosen == with_broken_gangs(chosen.values(), snapshot, incoming.priority)


@examples(40)
@given(fleets(), st.lists(templates(), min_size=2, max_size=4))
def test_choices_that_are_kept_are_the_choices_of_a_new_search(snapshot: Snapshot, more: list[Pod]) -> None:
    """However many pods asked before, and whatever ended or was held since then."""
    trial, budgets = Trial(Ledger.build(snapshot)), Budgets(snapshot.budgets)
    kept = Preemption(trial, budgets)
    for index, template in enumerate(more * 2):
        incoming = instance(template, f"new-{index}", priority=template.priority + 1)
        found = kept.choose(incoming)
        assert found == Preemption(trial, budgets).choose(incoming)
        if found is None:
            continue
        mark, spent = trial.mark(), budgets.mark()
        budgets.spend(found.victims)
        for victim in found.victims:
            trial.end(victim.node, [victim.key])
        trial.hold(incoming, found.node)
        if index % 3 == 2:
            trial.rollback(mark)
            budgets.rollback(spent)


# in words


def test_one_large_victim_is_better_than_two_small_ones() -> None:
    fleet = snapshot_of((node("a", gpus=4),), (running("s1"), running("s2"), running("large", 2)))
    assert victims(choose(URGENT, fleet)) == {"large"}


def test_between_equal_victims_the_node_without_replicas_of_the_service_is_chosen() -> None:
    second = pod("chat-1", gpus=1, priority=10, owner="chat", kind="ReplicaSet")
    first = running("chat-0", where="a", owner="chat", kind="ReplicaSet", priority=10)
    other = running("other", where="b", priority=10)
    batch = (running("batch-0"), running("batch-1", where="b"))
    fleet = snapshot_of((node("a", gpus=2), node("b", gpus=2)), (first, other, *batch, second))
    assert victims(choose(second, fleet)) == {"batch-1"}


def test_between_equal_numbers_the_fewer_gpus_are_taken() -> None:
    fleet = snapshot_of((node("a", gpus=6),), (running("four", 4), running("two", 2)))
    assert victims(choose(URGENT, fleet)) == {"two"}


def test_lower_priority_goes_first_even_if_more_pods_end() -> None:
    fleet = snapshot_of((node("a", gpus=4),), (running("s1"), running("s2"), running("large", 2, priority=5)))
    assert victims(choose(URGENT, fleet)) == {"s1", "s2"}


def test_the_younger_of_equals_goes_first() -> None:
    fleet = snapshot_of((node("a", gpus=4),), (running("old", 2, created=1), running("young", 2, created=9)))
    assert victims(choose(URGENT, fleet)) == {"young"}


def test_no_victim_of_equal_or_higher_priority() -> None:
    fleet = snapshot_of((node("a", gpus=2),), (running("equal", 1, priority=10), running("low", 1)))
    assert choose(URGENT, fleet) is None


def test_smallest_sets_are_found_over_two_resources() -> None:
    """Neither by cpu nor by GPU alone is the smallest set found greedily."""
    fleet = snapshot_of(
        (node("a", gpus=4, cpu="8"),),
        (
            running("gpu", 2, cpu="1"),
            running("cpu", 0, cpu="4"),
            running("both", 1, cpu="2"),
            running("rest", 1, cpu="1"),
        ),
    )
    found = choose(pod("urgent", gpus=2, cpu="5", priority=10), fleet)
    assert victims(found) == {"gpu", "cpu"}


def test_a_whole_gang_ends_with_its_member() -> None:
    members = [running(f"g{i}", 2, n, gang=gang("g", 2)) for i, n in enumerate("ab")]
    fleet = snapshot_of((node("a", gpus=2), node("b", gpus=2)), tuple(members))
    assert victims(choose(URGENT, fleet)) == {"g0", "g1"}


def test_a_gang_above_its_minimum_loses_only_what_it_can_spare() -> None:
    members = [running(f"g{i}", 1, gang=gang("g", 2)) for i in range(4)]
    fleet = snapshot_of((node("a", gpus=4),), tuple(members))
    assert len(victims(choose(URGENT, fleet))) == 2


def test_single_pods_are_better_victims_than_a_gang() -> None:
    members = [running(f"g{i}", 2, n, gang=gang("g", 4)) for i, n in enumerate("abbb")]
    singles = [running(f"s{i}", 1) for i in range(2)]
    fleet = snapshot_of((node("a", gpus=4), node("b", gpus=6, taints=["x:NoSchedule"])), (*members, *singles))
    assert victims(choose(URGENT, fleet)) == {"s0", "s1"}


def test_a_pod_never_evicts_its_own_gang() -> None:
    mate = running("mate", 2, gang=gang("g", 2))
    fleet = snapshot_of((node("a", gpus=2),), (mate,))
    assert choose(msgspec.structs.replace(URGENT, gang=gang("g", 2)), fleet) is None


def test_preemption_policy_never() -> None:
    found = plan([node("a", gpus=2)], [running("low", 2), msgspec.structs.replace(URGENT, preempts=False)])
    assert not evictions(found)
    assert reports(found)["urgent"] == ("InsufficientResource", "PreemptionNever")


def test_a_victim_is_evicted_once_and_its_eviction_names_who_it_is_for() -> None:
    found = plan([node("a", gpus=2)], [running("low", 2), URGENT])
    (eviction,) = [a for a in found.actions if type(a).__name__ == "Evict"]
    assert eviction.reasons[0].code == "Preempted"
    assert "default/urgent" in eviction.reasons[0].message
    assert eviction.reasons[0].evidence == {"priority": 0, "beneficiary": 10}


def test_pods_placed_by_the_same_decision_are_no_victims() -> None:
    """A gang comes first by its highest priority; its other members may be lower than those after it."""
    lead = pod("lead", gpus=1, priority=20, gang=gang("g", 2))
    worker = pod("worker", gpus=1, priority=1, gang=gang("g", 2))
    found = plan([node("a", gpus=2)], [lead, worker, pod("single", gpus=1, priority=10)])
    assert binds(found) == {"lead": "a", "worker": "a"}
    assert not evictions(found)


def test_a_victim_that_refuses_the_pod_ends_for_it() -> None:
    refusing = running("refusing", 1, anti_affinity=[near(HOST, app="web")])
    web = pod("web", gpus=1, priority=10, labels={"app": "web"})
    found = plan([node("a", gpus=8)], [refusing, web])
    assert evictions(found) == {"refusing": "default/web"}


def test_a_pod_that_the_preemptor_must_be_near_is_no_victim() -> None:
    pods = [running("db", 1, labels={"app": "db"}), running("other", 1)]
    near_db = pod("web", gpus=1, priority=10, affinity=[near(HOST, app="db")])
    assert evictions(plan([node("a", gpus=2)], [*pods, near_db])) == {"other": "default/web"}


def web(name: str, gpus: int = 1, node: str = "") -> Pod:
    spread = [spread_over(ZONE, app="web")]
    return pod(name, gpus=gpus, node=node, priority=10, labels={"app": "web"}, spread=spread)


def test_spread_pods_preempt_where_the_spread_allows_it() -> None:
    """The cheapest victims are in a zone that may not take one more pod."""
    pods = [
        web("web0", node="a"),
        running("cheap", 1),
        running("dear", 2, "b", priority=5),
        web("web1"),
    ]
    found = plan([node("a", gpus=2, zone="x"), node("b", gpus=2, zone="y")], pods)
    assert evictions(found) == {"dear": "default/web1"}


def test_victims_are_found_beyond_the_first_hundred_nodes_if_only_there() -> None:
    nodes = [node(f"n{i:03}", gpus=1, zone="x" if i < 120 else "y") for i in range(125)]
    pods = [running(f"r{i:03}", 1, f"n{i:03}") for i in range(125)]
    found = plan(nodes, [*pods, web("web0", gpus=0, node="n000"), web("new")])
    assert evictions(found) == {"r120": "default/new"}
