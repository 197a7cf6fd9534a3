"""Which devices the scheduler picks, and whom it keeps back meanwhile."""

from __future__ import annotations

import random
from itertools import combinations

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.device_fleets import (
    GPU,
    HALF,
    SHARED,
    SLICE,
    asking,
    cut,
    fleet,
    given_to,
    gpu,
    holding,
    in_flight,
    instance,
    pairs,
    picks,
    quality,
    reported,
    score,
    settling,
    shared,
    unpicked,
    used,
    whole,
)
from tests.unit.explanations import why
from tests.unit.random_fleets import binds, examples, reports

from gpufleet.fleet.devices import DeviceClaim, DevicePick, NodeDevices
from gpufleet.fleet.plans import Bind, Plan, Unschedulable
from gpufleet.fleet.pods import Pod
from gpufleet.fleet.snapshot import Snapshot
from gpufleet.scheduling.cycle import Policy, decide

# examples in words


def decided(snapshot: Snapshot) -> Plan:
    return decide(snapshot, Policy())


def test_a_pod_gets_the_best_linked_gpus_that_are_free() -> None:
    holder = asking("holder", 1)
    devices = holding(whole(8, pairs(8, island=4)), (holder, [gpu(0)]))
    plan = decided(fleet(devices, unpicked(holder, phase="Running"), asking("p", 4)))
    assert picks(plan) == {"p": ((gpu(4), gpu(5), gpu(6), gpu(7)),)}


def test_the_pick_says_container_and_resource() -> None:
    plan = decided(fleet(whole(2), asking("p", 1, 1)))
    (bind,) = plan.actions
    assert isinstance(bind, Bind)
    assert bind.picks == (DevicePick("c0", GPU, (gpu(0),)), DevicePick("c1", GPU, (gpu(1),)))


def test_pods_of_one_gpu_each_are_bound_at_once_whatever_the_links() -> None:
    devices = whole(8, pairs(8, island=4))
    plan = decided(fleet(devices, *(asking(f"p{i}", 1) for i in range(8))))
    assert sorted(one for (one,) in (devices for (devices,) in picks(plan).values())) == [
        gpu(i) for i in range(8)
    ]


def test_pods_whose_sets_are_linked_alike_are_bound_at_once() -> None:
    devices = whole(8, pairs(8, island=4))
    plan = decided(fleet(devices, *(asking(f"p{i}", 2) for i in range(4))))
    assert len(binds(plan)) == 4


def test_a_pod_whose_set_is_linked_otherwise_waits_until_the_others_are_confirmed() -> None:
    devices = whole(6, pairs(6, island=3))
    pods = [asking(f"p{i}", 2, created=i) for i in range(3)]
    plan = decided(fleet(devices, *pods))
    assert picks(plan) == {"p0": ((gpu(0), gpu(1)),), "p1": ((gpu(3), gpu(4)),)}
    assert reports(plan) == {"p2": ("WaitingForDevices",)}
    there = [unpicked(one, phase="Running") for one in pods[:2]]
    held = holding(devices, (pods[0], [gpu(0), gpu(1)]), (pods[1], [gpu(3), gpu(4)]))
    assert picks(decided(fleet(held, *there, pods[2]))) == {"p2": ((gpu(2), gpu(5)),)}


def test_an_instance_is_picked_on_the_fullest_gpu_in_use() -> None:
    devices = cut(("1g.10gb",) * 3, ("1g.10gb",) * 3, ("1g.10gb",) * 3)
    holders = [asking("a", 1, resource=SLICE), asking("b", 2, resource=SLICE)]
    there = [unpicked(one, phase="Running") for one in holders]
    devices = holding(devices, (holders[0], [instance(1, 0)]), (holders[1], [instance(2, 0), instance(2, 1)]))
    plan = decided(fleet(devices, *there, asking("p", 1, resource=SLICE)))
    assert picks(plan) == {"p": ((instance(2, 2),),)}


def test_an_instance_of_a_gpu_that_another_profile_uses_comes_before_one_of_an_idle_gpu() -> None:
    devices = cut(("1g.10gb", "3g.40gb"), ("1g.10gb", "3g.40gb"))
    holder = asking("holder", 1, resource=HALF)
    devices = holding(devices, (holder, [instance(1, 1)]))
    plan = decided(fleet(devices, unpicked(holder, phase="Running"), asking("p", 1, resource=SLICE)))
    assert picks(plan) == {"p": ((instance(1, 0),),)}


def test_instances_of_one_gpu_are_given_at_once_and_the_next_gpu_waits() -> None:
    devices = cut(("1g.10gb",) * 3, ("1g.10gb",) * 3)
    plan = decided(fleet(devices, *(asking(f"p{i}", 1, resource=SLICE, created=i) for i in range(5))))
    assert list(binds(plan)) == ["p0", "p1", "p2"]
    assert reports(plan) == {"p3": ("WaitingForDevices",), "p4": ("WaitingForDevices",)}


def test_shares_go_to_the_least_used_gpu_one_pod_after_the_other() -> None:
    devices = shared(2, 3)
    holder = asking("holder", 1, resource=SHARED)
    devices = holding(devices, (holder, [gpu(0)]))
    new = [asking(f"p{i}", 1, resource=SHARED, created=i) for i in range(2)]
    plan = decided(fleet(devices, unpicked(holder, phase="Running"), *new))
    assert picks(plan) == {"p0": ((gpu(1),),)}
    assert reports(plan) == {"p1": ("WaitingForDevices",)}


def test_a_container_gets_shares_of_different_gpus() -> None:
    plan = decided(fleet(shared(2, 3), asking("p", 3, resource=SHARED)))
    assert picks(plan) == {"p": ((gpu(0), gpu(1), gpu(0)),)}


def test_a_gang_is_bound_together_though_its_pods_ask_alike() -> None:
    devices = cut(("1g.10gb",) * 2, ("1g.10gb",) * 2)
    members = [asking(f"p{i}", 1, resource=SLICE, gang="g", members=4) for i in range(4)]
    assert len(binds(decided(fleet(devices, *members)))) == 4


def test_a_gang_waits_as_a_whole_for_a_pod_that_asks_like_one_of_its_own() -> None:
    devices = cut(("1g.10gb",) * 2, ("1g.10gb",) * 2)
    there = given_to(asking("there", 1, resource=SLICE), [instance(0, 0)])
    members = [asking(f"p{i}", 1, resource=SLICE, gang="g", members=3) for i in range(3)]
    plan = decided(fleet(devices, there, *members))
    assert not binds(plan)
    assert reports(plan) == {f"p{i}": ("WaitingForDevices",) for i in range(3)}


def test_nobody_overtakes_a_pod_that_is_kept_back_with_the_same_question() -> None:
    """Else pods that come later could keep a gang waiting for ever."""
    devices = cut(("1g.10gb",) * 3, ("1g.10gb",) * 3)
    there = given_to(asking("there", 1, resource=SLICE), [instance(1, 0)])
    members = [asking(f"p{i}", 1, resource=SLICE, gang="g", members=3) for i in range(3)]
    later = asking("later", 1, resource=SLICE, created=9.0)
    assert not binds(decided(fleet(devices, there, *members, later)))


def test_what_was_picked_for_a_pod_that_waits_for_its_kubelet_is_not_free() -> None:
    there = given_to(asking("there", 2), [gpu(0), gpu(1)])
    assert picks(decided(fleet(whole(4), there, asking("p", 1)))) == {"p": ((gpu(2),),)}


def test_what_a_pod_really_holds_counts_and_no_longer_what_was_picked_for_it() -> None:
    there = given_to(asking("there", 1), [gpu(0)], phase="Running")
    devices = holding(whole(2), (there, [gpu(1)]))
    assert picks(decided(fleet(devices, there, asking("p", 1)))) == {"p": ((gpu(0),),)}


def test_a_pod_whose_devices_another_one_got_is_promised_what_was_picked_for_that_one() -> None:
    """The kubelet admitted the second pod first; the agent leads the first one to what is left."""
    first, second = (given_to(asking(name, 1), [gpu(i)]) for i, name in enumerate(["first", "second"]))
    devices = holding(whole(3), (second, [gpu(0)]))
    assert picks(decided(fleet(devices, first, second, asking("p", 1)))) == {"p": ((gpu(2),),)}


def test_three_pods_that_came_in_a_circle_are_promised_what_is_left() -> None:
    pods = [given_to(asking(f"there{i}", 1), [gpu(i)]) for i in range(3)]
    devices = holding(whole(4), (pods[0], [gpu(1)]), (pods[1], [gpu(2)]))
    assert picks(decided(fleet(devices, *pods, asking("p", 1)))) == {"p": ((gpu(3),),)}


def test_nothing_is_picked_when_somebody_has_got_a_pods_devices_and_left_none() -> None:
    there, stranger = given_to(asking("there", 1), [gpu(0)]), unpicked(asking("stranger", 1))
    devices = holding(whole(3), (stranger, [gpu(0)]))
    assert picks(decided(fleet(devices, there, stranger, asking("p", 1)))) == {"p": ()}


def test_devices_of_a_pod_that_is_over_are_free() -> None:
    devices = holding(whole(1), (asking("over", 1), [gpu(0)]))
    assert picks(decided(fleet(devices, asking("p", 1)))) == {"p": ((gpu(0),),)}


def test_nothing_is_picked_while_a_pod_waits_for_nobody_knows_which_devices() -> None:
    there = unpicked(asking("there", 1))
    assert picks(decided(fleet(whole(4), there, asking("p", 1)))) == {"p": ()}


def test_who_asks_like_a_pod_without_a_pick_waits_where_it_could_matter() -> None:
    there = unpicked(asking("there", 1, resource=SLICE))
    devices = cut(("1g.10gb",) * 2, ("1g.10gb",) * 2)
    plan = decided(fleet(devices, there, asking("p", 1, resource=SLICE), asking("q", 2, resource=SLICE)))
    assert picks(plan) == {"q": ()}
    assert reports(plan) == {"p": ("WaitingForDevices",)}


def test_a_pick_that_is_not_for_what_the_pod_asks_is_none() -> None:
    forged = given_to(asking("there", 2), [gpu(0)])
    assert picks(decided(fleet(whole(4), forged, asking("p", 1)))) == {"p": ()}


def test_later_containers_get_what_an_init_container_had() -> None:
    subject = asking("p", 1, 2, 1)
    first, *others = subject.device_claims
    claims = (DeviceClaim("init", GPU, first.count, reusable=True), *others)
    plan = decided(fleet(whole(4), msgspec.structs.replace(subject, device_claims=claims)))
    assert picks(plan) == {"p": ((gpu(0),), (gpu(0), gpu(1)), (gpu(2),))}


def test_a_promise_of_an_init_container_is_counted_once() -> None:
    subject = asking("there", 1, 2)
    claims = (DeviceClaim("c0", GPU, 1, reusable=True), DeviceClaim("c1", GPU, 2))
    there = given_to(msgspec.structs.replace(subject, device_claims=claims), [gpu(0)], [gpu(0), gpu(1)])
    there = msgspec.structs.replace(there, shape=asking("x", 2).shape)
    assert picks(decided(fleet(whole(4), there, asking("p", 2)))) == {"p": ((gpu(2), gpu(3)),)}


def test_a_node_whose_agent_reports_nothing_chooses_itself() -> None:
    snapshot = msgspec.structs.replace(fleet(whole(2), asking("p", 1)), devices={})
    assert picks(decided(snapshot)) == {"p": ()}


def test_why_says_that_a_pod_that_is_kept_back_comes_soon() -> None:
    there = given_to(asking("there", 1, resource=SHARED), [gpu(0)])
    found = why(fleet(shared(2, 2), there, asking("p", 1, resource=SHARED)), "p")
    assert (found.verdict, [reason.code for reason in found.reasons]) == ("soon", ["WaitingForDevices"])


def test_a_change_that_lets_a_pod_be_kept_back_in_its_room_is_one_that_helps() -> None:
    there = given_to(asking("there", 1, resource=SHARED), [gpu(0)])
    found = why(fleet(shared(2, 2), there, asking("p", 4, resource=SHARED)), "p")
    assert "ask for 3 nvidia.com/gpu.shared instead of 4" in [change.message for change in found.changes]
    twice = given_to(asking("there", 3, resource=SHARED), [gpu(0), gpu(0), gpu(1)])
    found = why(fleet(shared(2, 3), twice, asking("p", 4, resource=SHARED)), "p")
    assert "ask for 3 nvidia.com/gpu.shared instead of 4" in [change.message for change in found.changes]


# invariants over random states


def asked(plan: Plan) -> dict[str, Bind]:
    return {action.pod.name: action for action in plan.actions if isinstance(action, Bind)}


@examples(200)
@given(in_flight())
def test_no_device_is_picked_for_more_pods_than_may_have_it(snapshot: Snapshot) -> None:
    devices = snapshot.devices["a"]
    (pool,) = [pool for name, pool in devices.pools.items() if name in (GPU, SHARED, SLICE)]
    taken, plan = used(snapshot), decided(snapshot)
    for bind in asked(plan).values():
        for pick in bind.picks:
            taken.update(pick.devices)
            assert all(part.usable for part in pool.parts if part.uuid in pick.devices)
            assert set(pick.devices) <= {part.uuid for part in pool.parts}
    assert not {uuid: n for uuid, n in taken.items() if n > pool.replicas and uuid in taken - used(snapshot)}


@examples(200)
@given(in_flight())
def test_a_pick_has_a_device_for_each_that_is_asked_for_and_is_missing_only_in_doubt(
    snapshot: Snapshot,
) -> None:
    confirmed = {held.pod_uid for held in snapshot.devices["a"].held}
    there = snapshot.pods_by_node.get("a", {}).values()
    doubt = any(one.uid not in confirmed and not one.picks for one in there)
    for bind in asked(decided(snapshot)).values():
        counts = [(pick.container, len(pick.devices)) for pick in bind.picks]
        wanted = [(claim.container, claim.count) for claim in bind.pod.device_claims]
        assert counts == ([] if doubt else wanted)


@examples(200)
@given(in_flight())
def test_pods_that_could_be_taken_for_each_other_to_anybodys_harm_are_never_unconfirmed_at_once(
    snapshot: Snapshot,
) -> None:
    devices = snapshot.devices["a"]
    waiting: list[Pod] = list(settling(snapshot))
    for bind in asked(decided(snapshot)).values():
        new = msgspec.structs.replace(bind.pod, picks=bind.picks)
        for other in waiting:
            if new.gang_key and new.gang_key == other.gang_key:
                continue
            for mine, its in ((m, i) for m in new.picks for i in other.picks):
                if len(mine.devices) == len(its.devices):
                    kinds = [quality(devices, one.resource, one.devices) for one in (mine, its)]
                    assert kinds[0] == kinds[1]
        waiting.append(new)


@examples(100)
@given(in_flight())
def test_a_pod_is_kept_back_only_for_another_one_that_is_not_confirmed(snapshot: Snapshot) -> None:
    plan = decided(snapshot)
    kept = [name for name, codes in reports(plan).items() if codes == ("WaitingForDevices",)]
    assert not kept or binds(plan) or list(settling(snapshot))


@examples(60)
@given(in_flight(), st.randoms(use_true_random=False))
def test_equal_snapshots_give_equal_picks(snapshot: Snapshot, chance: random.Random) -> None:
    def shuffled(pods: dict[str, Pod]) -> dict[str, Pod]:
        return dict(chance.sample(sorted(pods.items()), len(pods)))

    again = msgspec.structs.replace(
        snapshot,
        pods_by_node={name: shuffled(dict(pods)) for name, pods in snapshot.pods_by_node.items()},
        unbound=shuffled(dict(snapshot.unbound)),
    )
    assert decided(again) == decided(snapshot)


@examples(150)
@given(reported().filter(lambda one: one[1] == GPU), st.data())
def test_whole_gpus_are_the_best_linked_ones_that_brute_force_finds(
    found: tuple[NodeDevices, str], data: st.DataObject
) -> None:
    devices, resource = found
    usable = [part.uuid for part in devices.pools[resource].parts if part.usable]
    if not usable:
        return
    gone = data.draw(st.lists(st.sampled_from(usable), unique=True, max_size=len(usable) - 1))
    free = [uuid for uuid in usable if uuid not in gone]
    size = data.draw(st.integers(1, len(free)))
    there = [unpicked(asking(f"t{i}", 1), phase="Running") for i in range(len(gone))]
    held = holding(devices, *((one, [uuid]) for one, uuid in zip(there, gone, strict=True)))
    ((chosen,),) = picks(decided(fleet(held, *there, asking("p", size)))).values()

    def judged(some: tuple[str, ...]) -> tuple[int, int]:
        rest = [uuid for uuid in free if uuid not in some]
        return score(devices, some), score(devices, rest)

    best = max(combinations(free, size), key=judged)
    assert judged(tuple(chosen)) == judged(best)
    assert tuple(chosen) == best, "of equals the first"


def test_told_reasons_name_the_pod_and_the_node() -> None:
    there = given_to(asking("there", 1, resource=SHARED), [gpu(0)])
    plan = decided(fleet(shared(2, 2), there, asking("p", 1, resource=SHARED)))
    (action,) = plan.actions
    assert isinstance(action, Unschedulable)
    assert not action.helped_by_capacity
    assert action.reasons[0].message == (
        "devices of a are being given to default/there, and it is not known yet which"
    )
