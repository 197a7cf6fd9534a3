"""Every change of a pod or a node that `why` offers works when somebody makes it."""

from __future__ import annotations

import re

import msgspec
from hypothesis import given
from tests.unit.explanations import fleet, mended, messages, why
from tests.unit.fleets import HOST, ZONE, equal, gang, near, node, nodes_where, pod, spread_over
from tests.unit.random_fleets import binds, evictions, examples, fleets, nominations, pods_of

from gpufleet.fleet.pods import Pod, PodShape
from gpufleet.fleet.quantities import comparable_amounts, resource_amount
from gpufleet.fleet.selectors import Toleration
from gpufleet.fleet.snapshot import Snapshot
from gpufleet.scheduling.changes import Change
from gpufleet.scheduling.cycle import Policy, decide
from gpufleet.scheduling.gangs import units

WORDS = {
    "the required node affinity": "node_affinity",
    "the required pod affinity": "affinity",
    "the required pod anti-affinity": "anti_affinity",
    "the topology spread constraints": "spread",
    "the host ports": "host_ports",
}

# what people do when they read a change


def carried_out(change: Change, snapshot: Snapshot, asking: Pod) -> Snapshot:
    """The snapshot after somebody has done what the message says to the pod, its gang or the cluster."""
    text, mates = _addressed(change.message, snapshot, asking)
    gang_key = asking.gang_key
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
        r"raise the priority above (\d+) \((?:\d+ pods? of lower priority|nobody) would end\)", text
    ):
        raised = {
            p.key: msgspec.structs.replace(p, priority=max(p.priority, int(match[1]) + 1)) for p in mates
        }
        return msgspec.structs.replace(snapshot, unbound={**snapshot.unbound, **raised})
    if match := re.fullmatch(r"end (\S+) in (\S+) \((\d+) pods?\)", text):
        return _ended(snapshot, match[1], match[2], int(match[3]))
    if match := re.fullmatch(r"add (\d+) nodes? like (\S+) \(.*\)", text):
        model = mended(snapshot.nodes[match[2]])
        added = [
            msgspec.structs.replace(model, name=name, labels={**model.labels, HOST: name})
            for name in (f"added-{index}" for index in range(int(match[1])))
        ]
        return msgspec.structs.replace(snapshot, nodes={**snapshot.nodes, **{n.name: n for n in added}})
    raise AssertionError(f"nobody would know what to do: {text}")


def _addressed(text: str, snapshot: Snapshot, asking: Pod) -> tuple[str, list[Pod]]:
    """What is to be done, and to which pods."""
    mates = [p for p in snapshot.unbound.values() if p.gang_key and p.gang_key == asking.gang_key]
    match = re.fullmatch(rf"([^:]+) of gang {asking.gang_key}: (.*)", text)
    if match is None:
        return text, [asking]
    assert len(mates) > 1
    if match[1] == "every pod":
        return match[2], mates
    return match[2], [snapshot.unbound[f"default/{name}"] for name in match[1].split(", ")]


def _edited(snapshot: Snapshot, mates: list[Pod], edit: object) -> Snapshot:
    changed = {
        p.key: msgspec.structs.replace(p, shape=msgspec.structs.replace(p.shape, **edit(p.shape)))  # type: ignore[operator]
        for p in mates
    }
    return msgspec.structs.replace(snapshot, unbound={**snapshot.unbound, **changed})


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

    gone = {
        p.key
        for p in pods_of(snapshot)
        if (p.node in snapshot.nodes or not p.node) and not p.terminating and belongs(p)
    }
    assert len(gone) == count
    by_node = {
        where: {key: p for key, p in pods.items() if key not in gone}
        for where, pods in snapshot.pods_by_node.items()
    }
    unbound = {key: p for key, p in snapshot.unbound.items() if key not in gone}
    return msgspec.structs.replace(snapshot, pods_by_node=by_node, unbound=unbound)


# property


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
                all_of_it = change.message.startswith("every pod of gang")
                mine = {mate.key for mate in unit.pods} if all_of_it else {p.key}
                ended = sum(key in mine for key in evictions(after).values())
                assert (f"({ended} pod" if ended else "(nobody") in change.message


# in words


def test_less_cpu_or_memory_is_offered_in_amounts_that_people_write() -> None:
    offered = messages(fleet(node("a", cpu="8"), pod("r", cpu="6050m", node="a"), pod("p", cpu="4")))
    assert offered["ask-fewer"] == "ask for 1900m cpu instead of 4000m"
    offered = messages(fleet(node("a", memory="8Gi"), pod("p", memory="16Gi")))
    assert offered["ask-fewer"] == "ask for 8Gi memory instead of 16Gi"


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


def test_the_workload_of_another_member_of_the_gang_is_not_offered_to_be_ended() -> None:
    mate = pod("w0", gpus=1, owner="rs", gang=gang("g", 2))
    running = pod("r", gpus=1, node="a", owner="rs")
    snapshot = fleet(node("a", gpus=2), running, mate, pod("p", gpus=1, gang=gang("g", 2)))
    assert "end-workload" not in messages(snapshot)


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


def test_edits_of_one_member_leave_the_other_members_as_they_are() -> None:
    """The worker's selector is too much; dropping it must not move the lead away from its own zone."""
    lead = pod("lead", gpus=1, gang=gang("g", 2), node_selector={ZONE: "x"})
    worker = pod("worker", gpus=1, gang=gang("g", 2), node_selector={"disk": "ssd"})
    offered = messages(
        fleet(node("a", gpus=1, zone="x"), node("b", gpus=1, zone="y"), lead, worker), "worker"
    )
    words = "worker of gang default/g: remove disk=ssd from the nodeSelector"
    assert offered["drop-node-selector"] == words


def test_a_change_of_a_mixed_gang_names_the_members_that_it_changes_whoever_asks() -> None:
    small, large = pod("gi0", gpus=1, gang=gang("g", 2)), pod("gi1", gpus=9, gang=gang("g", 2))
    snapshot = fleet(node("a", gpus=8), small, large)
    for asking in (small, large):
        offered = why(snapshot, asking.name).changes
        assert [c.message for c in offered] == [
            "gi1 of gang default/g: ask for 7 nvidia.com/gpu instead of 9"
        ]
        plan = decide(carried_out(offered[0], snapshot, asking), Policy())
        assert binds(plan) == {"gi0": "a", "gi1": "a"}


def test_a_change_of_many_members_names_a_few_of_them() -> None:
    members = [pod(f"w{i}", gpus=4, gang=gang("g", 6)) for i in range(5)]
    lead = pod("lead", gpus=1, gang=gang("g", 6))
    offered = messages(fleet(node("a", gpus=11), lead, *members), "lead")
    assert (
        offered["ask-fewer"]
        == "w0, w1, w2 and 2 more of gang default/g: ask for 2 nvidia.com/gpu instead of 4"
    )
