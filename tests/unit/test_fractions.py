"""Fractions of GPUs: who shares a GPU, who gets none, and that no GPU is ever more than full."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.device_fleets import asking, cut, machine, shared, whole
from tests.unit.explanations import why
from tests.unit.fleets import pod
from tests.unit.random_fleets import examples

from gpufleet.fleet.devices import NodeDevices, Pool
from gpufleet.fleet.fractions import FRACTION_RESOURCE, Carried, Fraction
from gpufleet.fleet.nodes import Node
from gpufleet.fleet.plans import Bind, Evict, Plan, Unschedulable
from gpufleet.fleet.pods import Pod
from gpufleet.fleet.snapshot import Snapshot, snapshot_of
from gpufleet.scheduling.cycle import Policy, decide


def part(name: str, milli: int, devices: int = 1, *, priority: int = 0, created: float = 0.0) -> Pod:
    """A pod that asks for a part of GPUs."""
    found = pod(name, resources={}, priority=priority, created=created)
    shape = msgspec.structs.replace(found.shape, fraction=Fraction(milli, devices=devices, container="c0"))
    return msgspec.structs.replace(found, shape=shape)


def bound(subject: Pod, bind: Bind) -> Pod:
    """The pod after the plan's binding was written."""
    return msgspec.structs.replace(subject, node=bind.node, picks=bind.picks)


def fleet(devices: NodeDevices, *pods: Pod) -> Snapshot:
    return snapshot_of((machine(devices),), pods, devices={"a": devices})


def reporting(devices: NodeDevices, *pods: Pod, **said: tuple[str, ...] | bool) -> Snapshot:
    """The fleet once the node's agent has said of its GPUs which carry fractions, and which are sick."""
    kept = said.get("carrying", ())
    assert isinstance(kept, tuple)
    marked = tuple(
        msgspec.structs.replace(
            one, whole=msgspec.structs.replace(one.whole, carrying=one.whole.uuid in kept)
        )
        for one in devices.gpus
    )
    pool = Pool(tuple(one.whole for one in marked))
    node = msgspec.structs.replace(machine(devices), **said)
    found = msgspec.structs.replace(devices, gpus=marked, pools={"nvidia.com/gpu": pool})
    return snapshot_of((node,), pods, devices={"a": found})


def binds(plan: Plan) -> dict[str, Bind]:
    return {action.pod.name: action for action in plan.actions if isinstance(action, Bind)}


def waiting(plan: Plan) -> list[Unschedulable]:
    return [action for action in plan.actions if isinstance(action, Unschedulable)]


def gpus(bind: Bind) -> tuple[str, ...]:
    return tuple(uuid for pick in bind.picks for uuid in pick.devices)


def test_two_halves_share_a_gpu_and_a_whole_gpu_is_kept_apart_from_them() -> None:
    plan = decide(
        fleet(whole(2), part("one", 500), part("two", 500, created=1), asking("all", 1, created=2)),
        Policy(),
    )
    found = binds(plan)
    assert gpus(found["one"]) == gpus(found["two"])
    assert found["one"].picks[0].resource == FRACTION_RESOURCE
    assert found["one"].picks[0].container == "c0"
    assert gpus(found["all"]) != gpus(found["one"])


def test_no_third_half_and_no_whole_gpu_fits_on_a_full_gpu() -> None:
    pods = (part("one", 500), part("two", 500), part("three", 500, created=1), asking("all", 1, created=2))
    plan = decide(fleet(whole(1), *pods), Policy())
    assert set(binds(plan)) == {"one", "two"}
    said = {report.pod.name: report.reasons[0] for report in waiting(plan)}
    assert said["three"].code == said["all"].code == "InsufficientResource"
    assert said["three"].evidence == {"need": 500, "have": 0}


def test_thirds_and_tenths_are_exact() -> None:
    plan = decide(fleet(whole(1), *(part(f"p{i}", 100) for i in range(11))), Policy())
    assert len(binds(plan)) == 10


def test_what_a_bound_pod_has_stays_where_it_is() -> None:
    first = binds(decide(fleet(whole(4), part("one", 300)), Policy()))["one"]
    moved = msgspec.structs.replace(first.picks[0], devices=("GPU-3",))
    running = msgspec.structs.replace(part("one", 300), node="a", picks=(moved,))
    found = binds(decide(fleet(whole(4), running, part("two", 700), asking("all", 3)), Policy()))
    assert gpus(found["two"]) == ("GPU-3",)
    assert sorted(gpus(found["all"])) == ["GPU-0", "GPU-1", "GPU-2"]


def test_parts_of_several_gpus_are_on_different_ones() -> None:
    plan = decide(fleet(whole(2), part("wide", 600, 2), part("more", 400, 2, created=1)), Policy())
    assert {name: sorted(gpus(bind)) for name, bind in binds(plan).items()} == {
        "wide": ["GPU-0", "GPU-1"],
        "more": ["GPU-0", "GPU-1"],
    }


@pytest.mark.parametrize("devices", [cut(["1g.10gb"]), shared(2, 4)], ids=["MIG", "time-slicing"])
def test_what_is_shared_otherwise_carries_no_fractions(devices: NodeDevices) -> None:
    (report,) = waiting(decide(fleet(devices, part("p", 500)), Policy()))
    assert report.reasons[0].code == "ResourceNotOffered"


def test_nodes_whose_devices_nobody_reports_carry_no_fractions() -> None:
    snapshot = snapshot_of((machine(whole(2)),), (part("p", 500),))
    (report,) = waiting(decide(snapshot, Policy()))
    assert report.reasons[0].code == "ResourceNotOffered"


def test_memory_is_as_much_of_a_gpu_as_it_is_of_its_memory_rounded_up() -> None:
    node = Node("a", {"nvidia.com/gpu.memory": "81559"}, {})
    assert Fraction(memory_mib=20000).on(node) == 246
    assert Fraction(memory_mib=20000).on(Node("b", {}, {})) is None


def test_what_cannot_be_understood_is_said_and_not_placed() -> None:
    shape = msgspec.structs.replace(pod("p", resources={}).shape, fraction=Fraction(problem="gpu-fraction x"))
    broken = msgspec.structs.replace(pod("p", resources={}), shape=shape)
    (report,) = waiting(decide(fleet(whole(1), broken), Policy()))
    assert report.reasons[0].code == "FractionInvalid"
    assert report.reasons[0].message == "gpu-fraction x"


def test_a_fraction_of_higher_priority_makes_room_on_a_full_gpu() -> None:
    low = binds(decide(fleet(whole(1), part("low", 600), part("other", 400)), Policy()))
    running = [bound(part("low", 600), low["low"]), bound(part("other", 400), low["other"])]
    plan = decide(fleet(whole(1), *running, part("high", 500, priority=10)), Policy())
    evicted = [action.pod.name for action in plan.actions if isinstance(action, Evict)]
    assert evicted == ["low"]


def test_a_new_gpu_is_opened_only_when_no_used_one_fits() -> None:
    carried = Carried().with_part("a/x", 400, 1).with_part("a/y", 700, 1).with_part("a/z", 300, 1)
    assert sorted(carried.used.values()) == [400, 1000]
    assert carried.by_pod["a/z"] == carried.by_pod["a/y"]


@examples(200)
@given(st.data())
def test_no_gpu_is_more_than_full_and_whatever_is_left_over_does_not_fit(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 4))
    devices = whole(count)
    placed: list[Pod] = []
    for _ in range(3):
        kinds = data.draw(st.lists(st.sampled_from([0, 100, 250, 330, 500, 700, 900]), max_size=5))
        new = [
            part(f"p{len(placed)}-{i}", kind) if kind else asking(f"w{len(placed)}-{i}", 1)
            for i, kind in enumerate(kinds)
        ]
        plan = decide(fleet(devices, *placed, *new), Policy())
        found = binds(plan)
        placed += [bound(one, found[one.name]) for one in new if one.name in found]
        used = Counter[str]()
        for one in placed:
            for uuid in (uuid for pick in one.picks for uuid in pick.devices):
                used[uuid] += one.shape.fraction.milli if one.shape.fraction else 1000
        assert max(used.values(), default=0) <= 1000
        free = [1000 - used[f"GPU-{i}"] for i in range(count)]
        for report in waiting(plan):
            fraction = report.pod.shape.fraction
            assert max(free) < (fraction.milli if fraction else 1000)
        if data.draw(st.booleans()) and placed:
            placed.pop(data.draw(st.integers(0, len(placed) - 1)))


def test_a_pod_asks_for_a_fraction_or_for_whole_gpus() -> None:
    both = asking("both", 1)
    shape = msgspec.structs.replace(both.shape, fraction=Fraction(500))
    (report,) = waiting(decide(fleet(whole(2), msgspec.structs.replace(both, shape=shape)), Policy()))
    assert report.reasons[0].code == "FractionInvalid"


def half_on(name: str, gpu: str) -> Pod:
    """A pod that has half of a GPU."""
    (pick,) = binds(decide(fleet(whole(4), part(name, 500)), Policy()))[name].picks
    picks = (msgspec.structs.replace(pick, devices=(gpu,)),)
    return msgspec.structs.replace(part(name, 500), node="a", picks=picks)


def test_what_the_agent_says_and_the_ledger_knows_of_a_gpu_is_counted_once() -> None:
    running = half_on("one", "GPU-1")
    snapshot = reporting(whole(2), running, asking("all", 1), part("two", 500), carrying=("GPU-1",))
    found = binds(decide(snapshot, Policy()))
    assert (gpus(found["all"]), gpus(found["two"])) == (("GPU-0",), ("GPU-1",))


def test_a_gpu_that_the_agent_has_yet_to_give_back_goes_to_fractions_and_to_nobody_whole() -> None:
    plan = decide(reporting(whole(1), asking("all", 1), carrying=("GPU-0",)), Policy())
    (report,) = waiting(plan)
    assert report.reasons[0].code == "InsufficientResource"
    found = binds(decide(reporting(whole(2), part("p", 500), carrying=("GPU-1",)), Policy()))
    assert gpus(found["p"]) == ("GPU-1",)


def test_fractions_can_be_evicted_for_a_whole_gpu_although_the_agent_keeps_it_for_them() -> None:
    running = half_on("low", "GPU-0")
    high = msgspec.structs.replace(asking("high", 1), priority=10)
    plan = decide(reporting(whole(1), running, high, carrying=("GPU-0",)), Policy())
    assert [action.pod.name for action in plan.actions if isinstance(action, Evict)] == ["low"]


def test_a_sick_gpu_gets_no_more_fractions_and_is_not_counted_twice() -> None:
    running = half_on("one", "GPU-0")
    snapshot = reporting(whole(2, sick=[0]), running, part("two", 500), sick=("GPU-0",))
    found = binds(decide(snapshot, Policy()))
    assert gpus(found["two"]) == ("GPU-1",)
    found = binds(decide(reporting(whole(2, sick=[0]), running, asking("all", 1), sick=("GPU-0",)), Policy()))
    assert gpus(found["all"]) == ("GPU-1",)


def test_where_another_plugin_hands_out_gpus_none_is_shared() -> None:
    (report,) = waiting(decide(reporting(whole(2), part("p", 500), may_carry=False), Policy()))
    assert report.reasons[0].code == "ResourceNotOffered"


def test_who_has_fractions_is_named_as_holder_of_the_gpus() -> None:
    snapshot = fleet(whole(1), half_on("one", "GPU-0"), asking("all", 1), part("big", 600, created=1))
    for name in ("all", "big"):
        holders = why(snapshot, name).holders
        assert [(one.workload, one.resource, one.amount) for one in holders] == [
            ("Pod/one", "milli-GPU", 500)
        ]
