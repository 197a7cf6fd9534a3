"""`why` says what the decision says, and every change that it offers works when somebody makes it."""

from __future__ import annotations

import re
from collections import Counter

import msgspec
import pytest
from hypothesis import given
from tests.unit.fleets import (
    GPU,
    HOST,
    ZONE,
    claim,
    equal,
    gang,
    near,
    node,
    nodes_where,
    pod,
    spread_over,
    storage,
    volume,
    waiting_class,
)
from tests.unit.random_fleets import binds, evictions, examples, fleets, nominations, pods_of, reports

from gpufleet.fleet.nodes import Node
from gpufleet.fleet.pods import GangRef, Pod, PodShape
from gpufleet.fleet.quantities import comparable_amounts, resource_amount
from gpufleet.fleet.reasons import CODES
from gpufleet.fleet.selectors import Toleration
from gpufleet.fleet.snapshot import Snapshot, snapshot_of
from gpufleet.scheduling.changes import Change
from gpufleet.scheduling.cycle import Policy, consider, decide
from gpufleet.scheduling.explain import Explanation, explain
from gpufleet.scheduling.filters import FILTERS
from gpufleet.scheduling.gangs import units
from gpufleet.scheduling.ledger import Ledger
from gpufleet.scheduling.search import Search

WORDS = {
    "the required node affinity": "node_affinity",
    "the required pod affinity": "affinity",
    "the required pod anti-affinity": "anti_affinity",
    "the topology spread constraints": "spread",
    "the host ports": "host_ports",
}


def why(snapshot: Snapshot, name: str) -> Explanation:
    found = explain(snapshot, f"default/{name}", Policy())
    assert found is not None
    return found


def fleet(*things: Node | Pod, **rest: object) -> Snapshot:
    nodes = tuple(thing for thing in things if isinstance(thing, Node))
    return snapshot_of(nodes, tuple(thing for thing in things if isinstance(thing, Pod)), **rest)


# what people do when they read a change


def carried_out(change: Change, snapshot: Snapshot, asking: Pod) -> Snapshot:
    """The snapshot after somebody has done what the message says to the pod, its gang or the cluster."""
    text, mates = change.message, [asking]
    gang_key = asking.gang_key
    if text.startswith(every := f"every pod of gang {gang_key}: "):
        text = text.removeprefix(every)
        mates = [p for p in snapshot.unbound.values() if p.gang_key == gang_key]
        assert len(mates) > 1
    if match := re.fullmatch(rf"create (\d+) more pods? of gang {gang_key} like (\S+)", text):
        like = snapshot.unbound[f"default/{match[2]}"]
        new = [msgspec.structs.replace(like, name=f"more-{i}", uid=f"more-{i}") for i in range(int(match[1]))]
        return msgspec.structs.replace(snapshot, unbound={**snapshot.unbound, **{p.key: p for p in new}})
    if match := re.fullmatch(rf"set gpufleet.dev/gang-size to (\d+) on every pod of gang {gang_key}", text):
        name = gang_key.removeprefix("default/")
        stated = {
            p.key: msgspec.structs.replace(p, gang=gang(name, int(match[1])))
            for p in snapshot.unbound.values()
            if p.gang_key == gang_key
        }
        return msgspec.structs.replace(snapshot, unbound={**snapshot.unbound, **stated})
    if match := re.fullmatch(r"remove (\S+)=(\S*) from the nodeSelector", text):
        return _edited(snapshot, mates, lambda s: {"node_selector": _but(s.node_selector, match.groups())})
    if text.removeprefix("remove ") in WORDS:
        field = WORDS[text.removeprefix("remove ")]
        return _edited(snapshot, mates, lambda s: {field: getattr(PodShape(), field)})
    if match := re.fullmatch(r"tolerate the taint ([^=:]+)(?:=[^:]*)?:(\w+)", text):
        more = Toleration(match[1], "Exists", "", match[2])
        return _edited(snapshot, mates, lambda s: {"tolerations": (*s.tolerations, more)})
    if match := re.fullmatch(r"ask for (\S+) (\S+) instead of (\S+)", text):
        resource, less = match[2], resource_amount(match[2], match[1])
        return _edited(
            snapshot,
            mates,
            lambda s: {
                "requests": tuple(
                    (r, less)
                    if r == resource and comparable_amounts(r, less, a) == (match[1], match[3])
                    else (r, a)
                    for r, a in s.requests
                )
            },
        )
    if match := re.fullmatch(r"uncordon node (\S+)", text):
        opened = msgspec.structs.replace(snapshot.nodes[match[1]], unschedulable=False)
        return msgspec.structs.replace(snapshot, nodes={**snapshot.nodes, match[1]: opened})
    if match := re.fullmatch(
        r"raise the priority above (\d+) \((\d+) pods? of lower priority would end\)", text
    ):
        raised = {
            p.key: msgspec.structs.replace(p, priority=max(p.priority, int(match[1]) + 1)) for p in mates
        }
        return msgspec.structs.replace(snapshot, unbound={**snapshot.unbound, **raised})
    if match := re.fullmatch(r"end (\S+) in (\S+) \((\d+) pods?\)", text):
        return _ended(snapshot, match[1], match[2], int(match[3]))
    if match := re.fullmatch(r"add (\d+) nodes? like (\S+) \(.*\)", text):
        model = _mended(snapshot.nodes[match[2]])
        added = [
            msgspec.structs.replace(model, name=name, labels={**model.labels, HOST: name})
            for name in (f"added-{index}" for index in range(int(match[1])))
        ]
        return msgspec.structs.replace(snapshot, nodes={**snapshot.nodes, **{n.name: n for n in added}})
    raise AssertionError(f"nobody would know what to do: {text}")


def _edited(snapshot: Snapshot, mates: list[Pod], edit: object) -> Snapshot:
    changed = {
        p.key: msgspec.structs.replace(p, shape=msgspec.structs.replace(p.shape, **edit(p.shape)))  # type: ignore[operator]
        for p in mates
    }
    return msgspec.structs.replace(snapshot, unbound={**snapshot.unbound, **changed})


def _mended(old: Node) -> Node:
    devices = Counter(old.allocatable) + Counter(old.unhealthy)
    return msgspec.structs.replace(old, ready=True, unschedulable=False, allocatable=devices, unhealthy={})


def _but(selector: tuple[tuple[str, str], ...], gone: object) -> tuple[tuple[str, str], ...]:
    return tuple(item for item in selector if item != gone)


def _ended(snapshot: Snapshot, workload: str, namespace: str, count: int) -> Snapshot:
    kind, name = workload.split("/")

    def belongs(p: Pod) -> bool:
        if p.namespace != namespace:
            return False
        if p.owner_name:
            return (p.owner_kind, p.owner_name) == (kind, name)
        if p.gang:
            return (kind, p.gang.name) == ("Gang", name)
        return (kind, p.name) == ("Pod", name)

    gone = {p.key for p in pods_of(snapshot) if p.node in snapshot.nodes and not p.terminating and belongs(p)}
    assert len(gone) == count
    by_node = {
        where: {key: p for key, p in pods.items() if key not in gone}
        for where, pods in snapshot.pods_by_node.items()
    }
    return msgspec.structs.replace(snapshot, pods_by_node=by_node)


# properties


@examples(60)
@given(fleets(most_pods=4))
def test_the_verdict_is_the_decisions(snapshot: Snapshot) -> None:
    plan = decide(snapshot, Policy())
    for p in pods_of(snapshot):
        found = why(snapshot, p.name)
        if p.node:
            assert found.verdict == "running"
        elif p.name in binds(plan):
            assert (found.verdict, found.reasons[0].code) == ("soon", "Schedulable")
        else:
            codes = reports(plan)[p.name]
            assert tuple(reason.code for reason in found.reasons) == codes
            assert (found.verdict == "soon") == ("WaitingForVictims" in codes)
        assert {reason.code for reason in found.reasons} <= CODES.keys()
        assert msgspec.json.decode(msgspec.json.encode(found.as_json()))["verdict"] == found.verdict


@examples(80)
@given(fleets(most_pods=4))
def test_every_change_that_is_offered_works_when_it_is_made(snapshot: Snapshot) -> None:
    for p in snapshot.unbound.values():
        found = why(snapshot, p.name)
        unit = next(u for u in units(snapshot, Policy().responsible) if p in u.pods)
        for change in found.changes:
            after = decide(carried_out(change, snapshot, p), Policy())
            helped = {*binds(after), *(name for name, where in nominations(after).items() if where)}
            assert sum(mate.name in helped for mate in unit.pods) >= unit.needed, change
            if change.kind == "raise-priority":
                mine = {mate.key for mate in unit.pods}
                ended = sum(key in mine for key in evictions(after).values())
                assert f"({ended} pod" in change.message


@examples(80)
@given(fleets(most_pods=4, entangled=False))
def test_never_is_said_exactly_when_the_empty_fleet_has_no_room(snapshot: Snapshot) -> None:
    nodes = {name: _mended(n) for name, n in snapshot.nodes.items()}
    empty = Ledger.build(Snapshot(nodes=nodes))
    for p in snapshot.unbound.values():
        found = why(snapshot, p.name)
        if p.gang or found.verdict not in ("never", "not-now"):
            continue
        checks = [c for rule in FILTERS if (c := rule.prepare(p, empty)) is not None]
        room = any(all(c(a) is None for c in checks) for a in empty.accounts.values())
        assert found.verdict == ("not-now" if room else "never")


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


# in words


def test_a_pod_that_is_not_there_has_no_explanation() -> None:
    assert explain(fleet(), "default/p", Policy()) is None


def test_a_running_pod_is_where_it_is() -> None:
    found = why(fleet(node("a"), pod("p", node="a")), "p")
    assert (found.verdict, found.node, found.reasons[0].code) == ("running", "a", "Bound")


def test_a_finished_pod_has_ended() -> None:
    ended = msgspec.structs.replace(pod("p", node="a"), phase="Failed")
    found = explain(fleet(node("a")), "default/p", Policy(), finished=ended)
    assert found is not None
    assert (found.verdict, found.reasons[0].code) == ("running", "Finished")


@pytest.mark.parametrize(
    ("waiting", "verdict", "code"),
    [
        (pod("p", terminating=True), "never", "Terminating"),
        (pod("p", gates=["wait"]), "not-now", "SchedulingGated"),
        (msgspec.structs.replace(pod("p"), scheduler="other"), "not-now", "OtherScheduler"),
        (pod("p", claims=["none"]), "not-now", "ClaimNotFound"),
        (pod("p", resource_claims=True), "not-now", "DynamicResources"),
        (pod("p", gang=gang("g", 2)), "not-now", "GangIncomplete"),
        (pod("p"), "soon", "Schedulable"),
    ],
)
def test_what_keeps_a_pod_back_by_itself(waiting: Pod, verdict: str, code: str) -> None:
    found = why(fleet(node("a"), waiting), "p")
    assert (found.verdict, found.reasons[0].code) == (verdict, code)


def test_a_pod_that_waits_for_its_volume_runs_soon() -> None:
    stored = storage(claims=[claim(selected="a")], classes=[waiting_class()])
    found = why(fleet(node("a"), pod("p", claims=["data"]), **stored), "p")
    assert (found.verdict, found.reasons[0].code) == ("soon", "WaitingForVolume")


@pytest.mark.parametrize("holders", [0, 1])
def test_a_volume_where_the_pod_may_not_go_is_never_the_fault_of_who_uses_it(holders: int) -> None:
    stored = storage(claims=[claim(volume="pv")], volumes=[volume(node="a", driver="disk")])
    waiting = pod("p", claims=["data"], node_selector={"kubernetes.io/hostname": "b"})
    users = [pod("user", claims=["data"], node="a")] * holders
    found = why(fleet(node("a"), node("b"), *users, waiting, **stored), "p")
    assert found.verdict == "never"
    codes = {reason.code for reason in found.reasons}
    assert codes == {"NodeSelectorMismatch", "VolumeNodeConflict", "NoVictims"}


@pytest.mark.parametrize(("healthy", "wanted"), [(0, 1), (2, 3)])
def test_gpus_that_are_sick_come_back_one_day(healthy: int, wanted: int) -> None:
    found = why(fleet(node("a", gpus=healthy, sick=4 - healthy), pod("p", gpus=wanted)), "p")
    assert (found.verdict, found.reasons[0].code) == ("not-now", "DeviceUnhealthy")
    assert "add 1 node like a (4 nvidia.com/gpu)" in {change.message for change in found.changes}


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


def test_less_cpu_or_memory_is_offered_in_amounts_that_people_write() -> None:
    offered = messages(fleet(node("a", cpu="8"), pod("r", cpu="6050m", node="a"), pod("p", cpu="4")))
    assert offered["ask-fewer"] == "ask for 1900m cpu instead of 4000m"
    offered = messages(fleet(node("a", memory="8Gi"), pod("p", memory="16Gi")))
    assert offered["ask-fewer"] == "ask for 8Gi memory instead of 16Gi"


def test_who_stands_in_the_way_of_the_rest_of_a_gang_is_offered_to_be_ended() -> None:
    """One of two fits beside the holder; the holder blocks nothing until that one is placed."""
    members = [pod(f"w{i}", gpus=4, gang=gang("g", 2)) for i in range(2)]
    found = why(fleet(node("a", gpus=8), pod("r", gpus=2, node="a"), *members), "w0")
    assert [(h.workload, h.amount) for h in found.holders] == [("Pod/r", 2)]
    assert "end Pod/r in default (1 pod)" in [change.message for change in found.changes]


def test_a_gang_that_lacks_pods_is_told_how_to_be_complete() -> None:
    found = why(fleet(node("a"), pod("p", gang=gang("g", 2))), "p")
    assert [change.message for change in found.changes] == [
        "create 1 more pod of gang default/g like p",
        "set gpufleet.dev/gang-size to 1 on every pod of gang default/g",
    ]
    gated = pod("q", gang=gang("g", 2), gates=["ex.com/a"])
    found = why(fleet(node("a"), pod("p", gang=gang("g", 2)), gated), "p")
    assert found.changes[0].message == "remove the scheduling gates of q"
    disagreeing = [pod("p", gang=gang("g", 2)), pod("q", gang=gang("g", 3))]
    found = why(fleet(node("a"), *disagreeing), "p")
    assert [change.message for change in found.changes] == [
        "set gpufleet.dev/gang-size to 2 on every pod of gang default/g"
    ]


def test_a_size_without_a_gang_is_told_with_both_cures() -> None:
    slip = GangRef("", None, "label", "gpufleet.dev/gang-size is '2' and gpufleet.dev/gang names no gang")
    found = why(fleet(node("a"), pod("p", gang=slip)), "p")
    assert [reason.code for reason in found.reasons] == ["GangInvalid"]
    assert [change.message for change in found.changes] == [
        "remove gpufleet.dev/gang-size, or name the gang with gpufleet.dev/gang"
    ]


def test_what_is_behind_a_gate_is_told() -> None:
    found = why(fleet(node("a", gpus=1), pod("p", gpus=1, gates=["ex.com/a"])), "p")
    assert (found.verdict, [reason.code for reason in found.reasons]) == ("not-now", ["SchedulingGated"])
    assert [change.kind for change in found.changes] == ["remove-gates"]
    found = why(fleet(node("a", gpus=1), pod("p", gpus=2, gates=["ex.com/a"])), "p")
    codes = [reason.code for reason in found.reasons]
    assert (found.verdict, codes) == ("never", ["SchedulingGated", "ExceedsNodeCapacity", "NoVictims"])


def test_a_scheduler_name_and_a_claim_that_is_missing_are_offered_where_they_help() -> None:
    other = msgspec.structs.replace(pod("p", gpus=1), scheduler="mine")
    assert messages(fleet(node("a", gpus=1), other)) == {
        "change-scheduler": "create it again with schedulerName: gpufleet"
    }
    assert messages(fleet(node("a"), other)) == {}
    assert messages(fleet(node("a"), pod("p", claims=["data"]))) == {
        "create-claim": "create the PersistentVolumeClaim default/data"
    }


def test_a_pod_that_lacks_its_claim_and_is_too_large_never_runs() -> None:
    assert why(fleet(node("a", gpus=1), pod("p", gpus=2, claims=["data"])), "p").verdict == "never"


def test_a_pod_whose_node_is_gone_is_told_so() -> None:
    found = why(fleet(pod("p", node="gone")), "p")
    assert (found.verdict, [reason.code for reason in found.reasons]) == (
        "running",
        ["Bound", "NodeNotFound"],
    )


def test_room_that_evictions_made_is_withheld_from_a_pod_that_may_not_preempt() -> None:
    waiting = pod("later", gpus=4, nominated="a", priority=1)
    found = why(fleet(node("a", gpus=4), waiting, pod("p", gpus=4, priority=9, preempts=False)), "p")
    assert "HeldForNominated" in [reason.code for reason in found.reasons]


def test_a_pod_that_loses_to_one_before_it_is_told_who_won_and_that_nothing_else_is_in_the_way() -> None:
    """The node is free in the snapshot; the decision gives it to the older pod."""
    snapshot = fleet(node("a", gpus=1), pod("first", gpus=1), pod("p", gpus=1, created=5))
    found = why(snapshot, "p")
    assert [holder.workload for holder in found.holders] == ["Pod/first"]
    assert [change.kind for change in found.changes] == ["add-nodes"]


def messages(snapshot: Snapshot, name: str = "p") -> dict[str, str]:
    return {change.kind: change.message for change in why(snapshot, name).changes}


def test_the_selector_that_is_too_much_is_named() -> None:
    picky = pod("p", gpus=1, node_selector={ZONE: "x", "disk": "ssd"})
    offered = messages(fleet(node("a", gpus=1, zone="x"), picky))
    assert offered["drop-node-selector"] == "remove disk=ssd from the nodeSelector"


def test_affinities_spread_and_ports_are_offered_to_be_dropped() -> None:
    web = {"app": "web"}
    there = pod("there", labels=web, node="a", host_ports=[80])
    for kind, blocked in {
        "drop-node-affinity": pod("p", node_affinity=nodes_where(equal("disk", "ssd"))),
        "drop-affinity": pod("p", affinity=[near(HOST, app="db")]),
        "drop-anti-affinity": pod("p", anti_affinity=[near(HOST, app="web")]),
        "drop-spread": pod("p", labels=web, spread=[spread_over("rack", app="web")]),
        "drop-host-ports": pod("p", host_ports=[80]),
    }.items():
        assert kind in messages(fleet(node("a"), there, blocked))


def test_a_taint_is_offered_to_be_tolerated_unless_it_passes() -> None:
    tainted = [node("a", gpus=1, taints=["team=ml:NoSchedule"])]
    assert (
        messages(fleet(*tainted, pod("p", gpus=1)))["tolerate-taint"]
        == "tolerate the taint team=ml:NoSchedule"
    )
    passing = node("a", gpus=1, taints=["node.kubernetes.io/disk-pressure:NoSchedule"])
    assert "tolerate-taint" not in messages(fleet(passing, pod("p", gpus=1)))


def test_the_largest_request_that_fits_is_offered() -> None:
    offered = messages(fleet(node("a", gpus=8), pod("r", gpus=3, node="a"), pod("p", gpus=8)))
    assert offered["ask-fewer"] == "ask for 5 nvidia.com/gpu instead of 8"


def test_huge_amounts_of_a_shared_resource_are_searched_by_halving() -> None:
    memory = {"nvidia.com/gpumem": 40_000_000}
    big = pod("p", resources={"nvidia.com/gpumem": 60_000_000})
    offered = messages(fleet(node("a", resources=memory), big))
    assert offered["ask-fewer"] == "ask for 40000000 nvidia.com/gpumem instead of 60000000"


def test_a_cordoned_node_that_would_do_is_named() -> None:
    cordoned = node("a", gpus=1, unschedulable=True, taints=["node.kubernetes.io/unschedulable:NoSchedule"])
    assert messages(fleet(cordoned, node("b"), pod("p", gpus=1)))["uncordon-node"] == "uncordon node a"


def test_the_lowest_priority_that_helps_and_its_price_are_named() -> None:
    running = [pod(f"r{i}", gpus=1, node="a", priority=p) for i, p in enumerate([5, 5, 9, 9])]
    offered = messages(fleet(node("a", gpus=4), *running, pod("p", gpus=3)))
    assert offered["raise-priority"] == "raise the priority above 9 (3 pods of lower priority would end)"
    patient = pod("p", gpus=3, preempts=False)
    assert "raise-priority" not in messages(fleet(node("a", gpus=4), *running, patient))


def test_workloads_are_offered_to_be_ended_lowest_priority_first() -> None:
    running = [
        pod("small", gpus=1, node="a", priority=1),
        *(pod(f"web-{i}", gpus=2, node="a", owner="web", priority=2) for i in range(2)),
        *(pod(f"g{i}", gpus=2, node="b", gang=gang("train", 2), priority=3) for i in range(2)),
    ]
    waiting = pod("p", gpus=4, priority=1, preempts=False)
    found = why(fleet(node("a", gpus=5), node("b", gpus=4), *running, waiting), "p")
    ends = [change.message for change in found.changes if change.kind == "end-workload"]
    assert ends == ["end ReplicaSet/web in default (2 pods)", "end Gang/train in default (2 pods)"]


def test_the_pods_own_workload_is_not_offered_to_be_ended() -> None:
    mine = [pod(f"web-{i}", gpus=1, node="a", owner="web") for i in range(2)]
    assert "end-workload" not in messages(fleet(node("a", gpus=2), *mine, pod("p", gpus=1, owner="web")))
    mates = [pod(f"w{i}", gpus=1, node="a", owner="workers", gang=gang("train", 2)) for i in range(2)]
    driver = pod("p", gpus=1, owner="driver", gang=gang("train", 2))
    assert "end-workload" not in messages(fleet(node("a", gpus=2), *mates, driver))


def test_a_workload_has_one_name_whoever_tells_of_it() -> None:
    running = pod("w0", gpus=2, node="a", owner="train", kind="Job", gang=gang("train-g", 1), priority=1)
    found = why(fleet(node("a", gpus=2), running, pod("p", gpus=1)), "p")
    assert [holder.workload for holder in found.holders] == ["Job/train"]
    assert "end Job/train in default (1 pod)" in [change.message for change in found.changes]


def test_what_a_pod_ahead_in_the_queue_would_take_is_not_offered() -> None:
    """Ending the small job frees one GPU, which the urgent pod would get."""
    snapshot = fleet(
        node("a", gpus=2),
        pod("small", gpus=1, node="a", priority=9),
        pod("other", gpus=1, node="a", priority=9),
        pod("urgent", gpus=1, priority=5),
        pod("p", gpus=1),
    )
    assert "end-workload" not in messages(snapshot)
    assert messages(snapshot)["add-nodes"] == "add 1 node like a (2 nvidia.com/gpu)"
    assert "end-workload" in messages(snapshot, "urgent")


def test_as_many_nodes_as_a_gang_needs_are_offered_like_one_that_it_can_use() -> None:
    members = [pod(f"w{i}", gpus=8, gang=gang("g", 3), node_selector={ZONE: "y"}) for i in range(3)]
    nodes = [node("a", gpus=8, zone="x"), node("b", gpus=8, zone="y")]
    offered = messages(fleet(*nodes, *members), "w0")
    assert offered["add-nodes"] == "add 2 nodes like b (8 nvidia.com/gpu)"


def test_a_cordoned_node_is_a_model_for_new_ones_without_its_cordon() -> None:
    cordoned = node("a", gpus=1, unschedulable=True, taints=["node.kubernetes.io/unschedulable:NoSchedule"])
    snapshot = fleet(cordoned, pod("r", gpus=1, node="a", priority=5), pod("p", gpus=1))
    assert messages(snapshot)["add-nodes"] == "add 1 node like a (1 nvidia.com/gpu)"


def test_no_change_is_offered_for_what_no_node_has() -> None:
    found = why(fleet(node("a"), pod("p", resources={"example.com/fpga": 1})), "p")
    assert (found.verdict, found.changes) == ("never", ())


def test_a_pod_that_must_be_near_one_that_is_not_there_yet_may_still_run() -> None:
    found = why(fleet(node("a"), pod("p", affinity=[near(HOST, app="db")])), "p")
    assert found.verdict == "not-now"


def test_edits_of_one_member_leave_the_other_members_as_they_are() -> None:
    """The worker's selector is too much; dropping it must not move the lead away from its own zone."""
    lead = pod("lead", gpus=1, gang=gang("g", 2), node_selector={ZONE: "x"})
    worker = pod("worker", gpus=1, gang=gang("g", 2), node_selector={"disk": "ssd"})
    offered = messages(
        fleet(node("a", gpus=1, zone="x"), node("b", gpus=1, zone="y"), lead, worker), "worker"
    )
    words = "every pod of gang default/g: remove disk=ssd from the nodeSelector"
    assert offered["drop-node-selector"] == words
