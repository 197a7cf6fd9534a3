"""Which node belongs to which pool, what it gets for that, and what is left when it goes."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.pools_world import LATER, NOW, World, gpu_node, node, pool

from gpufleet.devices.pool_records import RECORD_ANNOTATION
from gpufleet.devices.pools import PoolPlan, decide
from gpufleet.kube.gpupool import MAX_NODES_SHOWN
from gpufleet.kube.pool_writes import changed_taints

TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}


def codes(plan: PoolPlan) -> list[str]:
    """What people are told about nodes."""
    return [reason.code for change in plan.nodes for reason in change.reasons]


def test_a_node_gets_the_name_purpose_labels_and_taints_of_its_pool() -> None:
    other = {"key": "mine", "effect": "NoExecute", "timeAdded": NOW}
    asked = pool(purpose="training", labels={"tier": "gold"}, gpuTaint=True)
    world = World([asked], [node(taints=[other]), node("m", {"zone": "b"})])
    plan = world.settle()
    assert world.labels() == {
        "zone": "a",
        "gpufleet.dev/pool": "p",
        "gpufleet.dev/purpose": "training",
        "tier": "gold",
    }
    assert world.taints() == [other, TAINT]
    assert world.labels("m") == {"zone": "b"}
    assert codes(plan) == ["PoolApplied"]
    assert world.conditions() == {"Ready": ("True", "PoolSettled"), "Conflict": ("False", "PoolUndisputed")}


def test_a_node_that_is_as_the_pool_asks_is_only_recorded_and_keeps_everything_later() -> None:
    had = node(labels={"gpufleet.dev/pool": "p", "tier": "gold"}, taints=[TAINT])
    world = World([pool(labels={"tier": "gold"}, gpuTaint=True)], [copy.deepcopy(had)])
    plan = world.settle()
    assert [(change.labels, change.taints, change.reasons) for change in plan.nodes] == [({}, {}, ())]
    world.pools.clear()
    assert codes(world.settle()) == []
    assert world.nodes["n"] == had


def test_a_node_that_leaves_gets_back_exactly_what_it_had() -> None:
    had = node(labels={"tier": "bronze"}, taints=[{**TAINT, "value": "true"}])
    world = World([pool(labels={"tier": "gold"}, gpuTaint=True)], [copy.deepcopy(had)])
    world.settle()
    assert world.taints() == [TAINT]
    assert world.record()
    world.pools.clear()
    plan = world.settle()
    assert world.nodes["n"] == had
    assert codes(plan) == ["PoolUndone"]


def test_what_somebody_changed_since_stays_and_is_told_as_drift() -> None:
    world = World([pool(labels={"tier": "gold"}, gpuTaint=True)], [node()])
    world.settle()
    world.labels()["tier"] = "mine"
    world.taints().clear()
    assert world.settle().nodes == ()
    assert (world.labels()["tier"], world.taints()) == ("mine", [])
    told = world.reasons()
    assert "label tier is 'mine', asked for is 'gold'" in told["PoolLabelDrift"]
    assert "taint nvidia.com/gpu:NoSchedule is gone" in told["PoolTaintDrift"]
    assert world.conditions()["Ready"] == ("False", "PoolDrift")
    world.labels()["tier"] = "gold"
    world.taints().append(dict(TAINT))
    world.settle()
    assert world.conditions()["Ready"] == ("True", "PoolSettled")


def test_a_node_that_two_pools_claim_keeps_what_it_has_and_both_name_the_other_and_the_node() -> None:
    world = World([pool("a", labels={"tier": "gold"})], [node()])
    world.settle()
    before = copy.deepcopy(world.nodes)
    world.pools["b"] = pool("b", labels={"tier": "silver"}, gpuTaint=True)
    plan = world.settle()
    assert world.nodes == before
    assert plan.nodes == ()
    for name, rival in (("a", "b"), ("b", "a")):
        status = world.pools[name].status
        assert (status.node_count, status.contested_nodes) == (0, 1)
        assert world.conditions(name) == {
            "Ready": ("False", "PoolConflict"),
            "Conflict": ("True", "PoolConflict"),
        }
        assert f"n ({rival})" in status.conditions[1].message
        assert f"claimed by {rival} too" in world.reasons(name)["PoolConflict"]
    assert {reason.code for change in plan.statuses for reason in change.reasons} == {"PoolConflict"}


def test_a_pool_that_takes_a_node_over_undoes_the_other_one_and_keeps_its_prior_values() -> None:
    had = node(labels={"tier": "bronze"})
    world = World([pool("a", labels={"tier": "gold", "extra": "1"})], [copy.deepcopy(had)])
    world.settle()
    world.pools = {"b": pool("b", labels={"tier": "silver"})}
    assert len(world.settle().nodes) == 1
    assert world.labels() == {"zone": "a", "tier": "silver", "gpufleet.dev/pool": "b"}
    world.pools.clear()
    world.settle()
    assert world.nodes["n"] == had


def test_a_pool_neither_claims_nor_loses_a_node_by_a_label_that_pools_set() -> None:
    absent = {"matchExpressions": [{"key": "gpufleet.dev/pool", "operator": "DoesNotExist"}]}
    present = {"matchLabels": {"gpufleet.dev/pool": "a"}}
    world = World([pool("a", nodeSelector=absent), pool("b", nodeSelector=present)], [node()])
    world.settle()
    assert world.labels()["gpufleet.dev/pool"] == "a"
    assert world.conditions("b") == {"Ready": ("False", "PoolEmpty"), "Conflict": ("False", "PoolUndisputed")}


def test_a_pool_that_is_being_deleted_claims_nothing() -> None:
    world = World([pool()], [node()])
    world.settle()
    metadata = msgspec.structs.replace(world.pools["p"].metadata, deletion_timestamp=NOW)
    world.pools["p"] = msgspec.structs.replace(world.pools["p"], metadata=metadata)
    world.settle()
    assert world.labels() == {"zone": "a"}


def test_a_node_is_left_alone_while_its_pool_cannot_be_read() -> None:
    world = World([pool("a")], [node()], [gpu_node()])
    world.settle()
    before = copy.deepcopy(world.nodes)
    world.pools = {"b": pool("b")}
    world.unread = frozenset({"a"})
    plan = world.settle()
    assert (plan.nodes, plan.desired, world.nodes) == ((), (), before)
    assert "pool a, which holds n, cannot be read" in world.reasons("b")["PoolRecordUnreadable"]


def test_a_pool_that_was_read_before_and_is_not_now_loses_nothing() -> None:
    world = World([pool("a")], [node()], [gpu_node()])
    world.settle()
    world.unread = frozenset({"a"})
    assert world.decide().is_empty


def test_a_node_with_a_damaged_record_is_left_alone() -> None:
    world = World([pool()], [node(annotations={RECORD_ANNOTATION: "{"})])
    assert world.settle().nodes == ()
    assert "remove it" in world.reasons()["PoolRecordUnreadable"]


def test_a_pool_tells_its_conditions_once_and_keeps_the_time_since_when_they_are_so() -> None:
    world = World([pool()], [node()])
    assert [one.code for one in world.settle().statuses[0].reasons] == ["PoolSettled"]
    world.nodes["m"] = node("m")
    plan = world.settle(LATER)
    assert [change.reasons for change in plan.statuses] == [()]
    assert {one.last_transition_time for one in world.pools["p"].status.conditions} == {NOW}
    world.nodes.clear()
    assert [one.code for one in world.settle(LATER).statuses[0].reasons] == ["PoolEmpty"]
    times = {one.type: one.last_transition_time for one in world.pools["p"].status.conditions}
    assert times == {"Ready": LATER, "Conflict": NOW}


def test_the_status_of_a_large_pool_counts_all_nodes_and_shows_those_with_reasons() -> None:
    names = [f"n{number}" for number in range(1_000)]
    world = World([pool(labels={"tier": "gold"})], [node(name) for name in names])
    world.settle()
    world.labels("n999")["tier"] = "mine"
    world.settle()
    status = world.pools["p"].status
    assert (status.node_count, status.ready_nodes, status.drifted_nodes) == (1_000, 1_000, 1)
    assert len(status.nodes) == MAX_NODES_SHOWN
    assert (status.nodes[0].name, status.nodes[0].reasons[0].code) == ("n999", "PoolLabelDrift")
    assert len(msgspec.json.encode(status)) < 20_000


def test_taints_of_others_keep_their_place_and_their_fields() -> None:
    before = [
        {"key": "a", "effect": "NoSchedule", "timeAdded": NOW},
        TAINT,
        {"key": "b", "effect": "NoExecute"},
    ]
    changes = {"nvidia.com/gpu:NoSchedule": None, "a:NoSchedule": "x", "c:NoExecute": ""}
    assert changed_taints(before, changes) == [
        {"key": "a", "effect": "NoSchedule", "timeAdded": NOW, "value": "x"},
        {"key": "b", "effect": "NoExecute"},
        {"key": "c", "effect": "NoExecute"},
    ]


KEYS = ("a", "b")
SPECS = st.builds(
    lambda zone, values, taints: {
        "nodeSelector": {"matchLabels": {"zone": zone}},
        "labels": values,
        "taints": [{"key": key, "value": value, "effect": "NoSchedule"} for key, value in taints.items()],
        "mig": {"layout": "all-balanced"},
        "disruption": "act",
    },
    st.sampled_from("xy"),
    st.dictionaries(st.sampled_from(KEYS), st.sampled_from(("p1", "p2"))),
    st.dictionaries(st.sampled_from(KEYS), st.sampled_from(("p1", "p2"))),
)
EVENTS = st.one_of(
    st.tuples(st.just("pool"), st.sampled_from("PQ"), SPECS),
    st.tuples(st.just("gone"), st.sampled_from("PQ"), st.none()),
    st.tuples(st.just("zone"), st.sampled_from("mn"), st.sampled_from("xyz")),
    st.tuples(
        st.just("others"),
        st.sampled_from("mn"),
        st.tuples(st.sampled_from(KEYS), st.sampled_from(("o1", "o2", None))),
    ),
)


def happen(world: World, event: tuple[str, str, Any]) -> None:
    what, name, value = event
    if what == "pool":
        world.pools[name] = pool(name, **value)
    elif what == "gone":
        world.pools.pop(name, None)
    elif what == "zone":
        world.labels(name)["zone"] = value
    else:
        world.others(name, *value)


@settings(max_examples=150, deadline=None)
@given(st.lists(EVENTS, max_size=12))
def test_after_any_history_a_cluster_without_pools_is_as_if_there_had_never_been_any(
    history: list[tuple[str, str, Any]],
) -> None:
    """The oracle is the same history in a cluster without pools."""
    nodes = [node("m", {"zone": "x"}), node("n", {"zone": "y"})]
    world = World([], copy.deepcopy(nodes), [gpu_node("m"), gpu_node("n")])
    alone = World([], nodes)
    for event in history:
        happen(world, event)
        if event[0] in ("zone", "others"):
            happen(alone, event)
        assert world.decide() == decide(world.snapshot(backwards=True), NOW)
        contested = {name for name in "mn" if claims(world, name) > 1}
        before = {name: copy.deepcopy(world.nodes[name]) for name in contested}
        world.settle()
        assert {name: world.nodes[name] for name in contested} == before
        for name in "mn":
            assert world.nodes[name]["metadata"]["labels"].get("gpufleet.dev/pool") in (None, "P", "Q")
    world.pools.clear()
    world.settle()
    for name, body in world.nodes.items():
        assert body["metadata"] == alone.nodes[name]["metadata"]
        assert by_key(body) == by_key(alone.nodes[name])
        assert world.gpu_nodes[name].spec == gpu_node(name).spec


def claims(world: World, name: str) -> int:
    zone = world.labels(name)["zone"]
    return sum(one.spec.node_selector.match_labels["zone"] == zone for one in world.pools.values())


def by_key(body: dict[str, Any]) -> dict[str, Any]:
    return {taint["key"]: taint for taint in body["spec"]["taints"]}
