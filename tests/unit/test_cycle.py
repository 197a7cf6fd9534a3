"""What every plan keeps, whatever the fleet; and single decisions in words."""

from __future__ import annotations

import random
from collections import Counter

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.fleets import HOST, ZONE, claim, near, node, pod, storage, volume, waiting_class
from tests.unit.random_fleets import (
    binds,
    bound,
    broken_rules,
    evictions,
    examples,
    fleets,
    instance,
    nominations,
    overcommitted,
    pods_of,
    refusals,
    reports,
    templates,
)

from gpufleet.fleet.plans import Bind, BindVolume, Evict, Nominate, Plan, SelectNode, Unschedulable
from gpufleet.fleet.pods import Pod
from gpufleet.fleet.reasons import CODES
from gpufleet.fleet.snapshot import Snapshot, snapshot_of
from gpufleet.scheduling.cycle import Policy, decide
from gpufleet.scheduling.ledger import Ledger
from gpufleet.scheduling.search import Search


def plan(*things: object, **rest: object) -> Plan:
    nodes = tuple(thing for thing in things if not isinstance(thing, Pod))
    pods = tuple(thing for thing in things if isinstance(thing, Pod))
    return decide(snapshot_of(nodes, pods, **rest), Policy())  # type: ignore[arg-type]


@st.composite
def busy_fleets(draw: st.DrawFn) -> Snapshot:
    """Fleets in which some pending pods wait for room that was promised to them."""
    snapshot = draw(fleets())
    places = st.sampled_from(["", "", *snapshot.nodes, "gone"])
    waiting = {
        k: msgspec.structs.replace(p, nominated_node=draw(places)) for k, p in snapshot.unbound.items()
    }
    return msgspec.structs.replace(snapshot, unbound=waiting)


def shuffled(snapshot: Snapshot, seed: int) -> Snapshot:
    """The same snapshot, with every mapping filled in another order."""
    generator = random.Random(seed)

    def mixed(mapping: object) -> dict[str, object]:
        items = list(mapping.items())  # type: ignore[attr-defined]
        generator.shuffle(items)
        return dict(items)

    return msgspec.structs.replace(
        snapshot,
        nodes=mixed(snapshot.nodes),
        pods_by_node={name: mixed(pods) for name, pods in mixed(snapshot.pods_by_node).items()},
        unbound=mixed(snapshot.unbound),
        budgets=tuple(generator.sample(snapshot.budgets, len(snapshot.budgets))),
    )


@examples(100)
@given(busy_fleets(), st.integers(0, 9))
def test_equal_snapshots_give_equal_plans_whatever_the_order_of_their_mappings(
    snapshot: Snapshot, seed: int
) -> None:
    expected = decide(snapshot, Policy())
    assert decide(snapshot, Policy()) == expected
    assert decide(shuffled(snapshot, seed), Policy()) == expected


@examples(60)
@given(busy_fleets(), busy_fleets())
def test_a_ledger_that_is_kept_up_to_date_gives_the_same_plan(before: Snapshot, after: Snapshot) -> None:
    kept = Ledger.build(before)
    decide(before, Policy(), kept)
    assert decide(after, Policy(), Ledger.build(after, kept)) == decide(after, Policy())


@examples(200)
@given(busy_fleets())
def test_no_plan_overcommits_a_node_or_breaks_a_constraint(snapshot: Snapshot) -> None:
    found = decide(snapshot, Policy())
    after = bound(pods_of(snapshot), found)
    nodes = [snapshot.nodes[name] for name in set(binds(found).values())]
    assert not overcommitted(nodes, after)
    assert not broken_rules(snapshot, found)
    new = set(binds(found))
    old = set(refusals(tuple(snapshot.nodes.values()), pods_of(snapshot)))
    assert {
        text for text in refusals(tuple(snapshot.nodes.values()), after) if set(text.split()) & new
    } <= old


@examples(150)
@given(busy_fleets())
def test_every_pending_pod_is_bound_or_told_why_not(snapshot: Snapshot) -> None:
    found = decide(snapshot, Policy())
    answered = Counter(a.pod.name for a in found.actions if isinstance(a, Bind | Unschedulable))
    assert answered == Counter(p.name for p in snapshot.unbound.values())
    codes = {reason.code for action in found.actions for reason in action.reasons}
    assert codes <= CODES.keys()
    assert all(a.reasons for a in found.actions if not isinstance(a, BindVolume | SelectNode))
    assert msgspec.json.encode(found)


@examples(150)
@given(busy_fleets())
def test_victims_are_lower_run_now_and_end_once_for_a_pod_that_is_nominated(snapshot: Snapshot) -> None:
    found = decide(snapshot, Policy())
    waiting = {p.key: p.nominated_node for p in snapshot.unbound.values()}
    waiting.update({a.pod.key: a.node for a in found.actions if isinstance(a, Nominate)})
    evicted = [action for action in found.actions if isinstance(action, Evict)]
    assert len({action.pod.key for action in evicted}) == len(evicted)
    for action in evicted:
        assert not action.pod.terminating
        cause = snapshot.unbound[action.beneficiary]
        assert cause.preempts
        assert action.pod.priority < cause.priority
        assert waiting[cause.key] == action.node
        assert cause.name not in binds(found)


@examples(150)
@given(busy_fleets())
def test_no_gang_is_bound_in_part(snapshot: Snapshot) -> None:
    found = decide(snapshot, Policy())
    for key in {p.gang_key for p in snapshot.unbound.values() if p.gang}:
        mates = [p for p in pods_of(snapshot) if p.gang_key == key and p.gang]
        minimum = mates[0].gang.minimum if mates[0].gang else None
        assert minimum is not None
        new = sum(p.name in binds(found) for p in mates)
        running = sum(bool(p.node) and not p.terminating and p.name not in evictions(found) for p in mates)
        assert new == 0 or new + running >= minimum
        evicting = set(evictions(found).values()) & {p.key for p in mates}
        if evicting:
            waiting = [p for p in mates if nominations(found).get(p.name, p.nominated_node) and not p.node]
            assert len(waiting) + new + running >= minimum


@examples(100)
@given(fleets(wide=False, gangs=False))
def test_no_pod_takes_the_place_of_one_before_it(snapshot: Snapshot) -> None:
    """Whoever waits with nothing being done for it would not fit where a pod of lower priority was bound,
    had that pod not been there.
    """
    found = decide(snapshot, Policy())
    ledger = Ledger.build(snapshot)
    for action in found.actions:
        if isinstance(action, Bind):
            ledger.place(action.pod, action.node)
    codes = reports(found)
    for waiting in snapshot.unbound.values():
        if not {"NoVictims", "PreemptionNever"} & set(codes.get(waiting.name, ())):
            continue
        for action in found.actions:
            if isinstance(action, Bind) and action.pod.priority < waiting.priority:
                fleet = ledger.fork()
                fleet.remove(action.node, [action.pod.key])
                assert Search(waiting, fleet).blocked(action.node) is not None


@examples(60)
@given(fleets(), st.lists(templates(), min_size=1, max_size=3))
def test_foreign_pods_change_nothing_but_the_room_that_they_take(snapshot: Snapshot, more: list[Pod]) -> None:
    """Pods of other schedulers that wait are nobody's business."""
    foreign = {
        p.key: p for i, t in enumerate(more) for p in [instance(t, f"f{i}", scheduler="other", owner="")]
    }
    with_foreign = msgspec.structs.replace(snapshot, unbound={**snapshot.unbound, **foreign})
    assert decide(with_foreign, Policy()) == decide(snapshot, Policy())


# in words


def test_a_pod_goes_to_a_node_that_fits() -> None:
    assert binds(plan(node("a"), node("b", gpus=1), pod("p", gpus=1))) == {"p": "b"}


def test_without_nodes_the_reason_is_that_there_are_none() -> None:
    found = plan(pod("p"))
    assert reports(found) == {"p": ("NoNodes",)}
    (report,) = found.actions
    assert isinstance(report, Unschedulable)
    assert report.helped_by_capacity


def test_new_nodes_help_against_a_shortage_but_not_against_a_missing_claim() -> None:
    found = plan(node("a"), pod("gpu", gpus=1), pod("disk", claims=["none"]))
    helped = {a.pod.name: a.helped_by_capacity for a in found.actions if isinstance(a, Unschedulable)}
    assert helped == {"gpu": True, "disk": False}


def test_new_nodes_help_where_gpus_are_sick() -> None:
    (report,) = plan(node("a", gpus=2, sick=2), pod("p", gpus=3)).actions
    assert isinstance(report, Unschedulable)
    assert report.reasons[0].code == "DeviceUnhealthy"
    assert report.helped_by_capacity


def test_a_claim_that_is_being_deleted_stops_who_waits_and_not_who_runs() -> None:
    going = claim("data", volume="pv", modes=["ReadWriteMany"], terminating=True)
    runs, waits = pod("runs", claims=["data"], node="a"), pod("waits", claims=["data"])
    found = plan(node("a"), runs, waits, **storage(claims=[going], volumes=[volume()]))
    assert reports(found) == {"waits": ("ClaimTerminating",)}
    (report,) = found.actions
    assert isinstance(report, Unschedulable)
    assert not report.helped_by_capacity


def test_a_pod_with_resource_claims_is_left_alone_and_counted_where_it_runs() -> None:
    found = plan(
        node("a", gpus=1),
        pod("there", gpus=1, node="a", resource_claims=True),
        pod("dra", resource_claims=True),
        pod("gpu", gpus=1),
    )
    assert not binds(found)
    assert reports(found)["dra"] == ("DynamicResources",)


def test_policy_names_whose_pods_are_decided() -> None:
    snapshot = snapshot_of((node("a"),), (msgspec.structs.replace(pod("p"), scheduler="volcano"),))
    assert not decide(snapshot, Policy()).actions
    assert binds(decide(snapshot, Policy(frozenset({"volcano"})))) == {"p": "a"}


def test_terminating_pods_hold_their_room_until_they_are_gone() -> None:
    ending = pod("ending", gpus=1, node="a", terminating=True)
    found = plan(node("a", gpus=1), ending, pod("p", gpus=1, preempts=False))
    assert not binds(found)


def test_pods_on_nodes_that_are_gone_are_in_nobodys_way() -> None:
    found = plan(node("a", gpus=1), pod("lost", gpus=1, node="gone"), pod("p", gpus=1))
    assert binds(found) == {"p": "a"}


def test_a_claim_of_a_class_that_waits_gets_its_node_selected_first() -> None:
    waiting = storage(claims=[claim()], classes=[waiting_class()])
    found = plan(node("a"), pod("p", claims=["data"]), **waiting)
    assert [(a.claim, a.node) for a in found.actions if isinstance(a, SelectNode)] == [("default/data", "a")]
    assert reports(found) == {"p": ("WaitingForVolume",)}
    selected = storage(claims=[claim(selected="a")], classes=[waiting_class()])
    found = plan(node("a"), pod("p", claims=["data"]), **selected)
    assert [type(a) for a in found.actions] == [Unschedulable]
    ready = storage(claims=[claim(volume="pv")], classes=[waiting_class()], volumes=[volume("pv")])
    assert binds(plan(node("a"), pod("p", claims=["data"]), **ready)) == {"p": "a"}


def test_two_pods_do_not_get_the_same_volume() -> None:
    local = waiting_class(provisioner="kubernetes.io/no-provisioner")
    stored = storage(claims=[claim("c0"), claim("c1")], classes=[local], volumes=[volume("pv", node="a")])
    found = plan(node("a"), pod("p0", claims=["c0"]), pod("p1", claims=["c1"]), **stored)
    assert [(a.claim, a.volume) for a in found.actions if isinstance(a, BindVolume)] == [("default/c0", "pv")]
    assert reports(found)["p1"][0] == "VolumeNodeConflict"


def test_the_room_of_a_pod_that_waits_for_its_volume_is_taken() -> None:
    waiting = storage(claims=[claim(selected="a")], classes=[waiting_class()])
    found = plan(node("a", gpus=1), pod("p", gpus=1, claims=["data"]), pod("q", gpus=1), **waiting)
    assert not binds(found)


def test_replicas_of_a_deployment_go_to_different_nodes_while_there_are_some() -> None:
    replicas = [pod(f"r{i}", gpus=1, owner="rs") for i in range(4)]
    where = Counter(binds(plan(node("a", gpus=4), node("b", gpus=4), *replicas)).values())
    assert where == {"a": 2, "b": 2}


def test_single_replicas_of_many_deployments_are_packed() -> None:
    replicas = [pod(f"r{i}", gpus=1, owner=f"rs{i}") for i in range(4)]
    assert set(binds(plan(node("a", gpus=4), node("b", gpus=4), *replicas)).values()) == {"a"}


def test_a_pod_with_anti_affinity_and_one_that_it_refuses_are_kept_apart_in_one_decision() -> None:
    refusing = pod("refusing", gpus=1, priority=1, anti_affinity=[near(HOST, app="web")])
    web = pod("web", gpus=1, labels={"app": "web"})
    found = plan(node("a", gpus=2), node("b", gpus=2), refusing, web)
    assert binds(found) == {"refusing": "a", "web": "b"}


def test_a_follower_is_bound_after_its_leader_in_the_same_decision() -> None:
    leader = pod("z-leader", labels={"app": "db"}, created=1)
    follower = pod("a-follower", created=2, affinity=[near(ZONE, app="db")])
    found = plan(node("a", zone="x"), node("b", zone="y"), leader, follower)
    assert binds(found)["a-follower"] == binds(found)["z-leader"]
