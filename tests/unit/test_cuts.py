"""GPUs that are cut as pods need it: what is cut for whom, and what is never taken from anybody."""

from __future__ import annotations

import random
from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.fleets import GPU, pod
from tests.unit.mig_fleets import GEOMETRY, MigFleet

from gpufleet.fleet.cuts import MigGPU, recut_for
from gpufleet.fleet.mig import GEOMETRIES, Placement, mig_resource, place
from gpufleet.fleet.plans import Bind, Cut, Evict, Nominate, Unschedulable
from gpufleet.fleet.pods import GangRef, Pod
from gpufleet.scheduling.cycle import Policy
from gpufleet.scheduling.explain import explain

PROFILES = GEOMETRIES[GEOMETRY].profiles
MIX = ("1g.10gb",) * 4 + ("2g.20gb",) * 3 + ("3g.40gb",) * 2 + ("1g.20gb", "4g.40gb")
ONE, TWO, THREE, SEVEN = (mig_resource(name) for name in ("1g.10gb", "2g.20gb", "3g.40gb", "7g.80gb"))


def asking(name: str, resource: str, count: int = 1, **more: object) -> Pod:
    return pod(name, resources={resource: count}, **more)  # type: ignore[arg-type]


def cuts(fleet: MigFleet) -> list[Cut]:
    return [action for action in fleet.decide() if isinstance(action, Cut)]


def placed(*texts: str) -> tuple[Placement, ...]:
    pairs = (text.split("@") for text in texts)
    return tuple(sorted(Placement(int(start), PROFILES[name].size, name) for name, start in pairs))


def test_a_gpu_is_cut_for_a_pod_and_the_pod_is_bound_once_the_instance_is_there() -> None:
    fleet = MigFleet(1, 2)
    fleet.add([asking("p", TWO)])
    actions = fleet.decide()
    cut = next(action for action in actions if isinstance(action, Cut))
    assert (cut.node, cut.profile, cut.pod.name) == ("n0", "2g.20gb", "p")
    assert [action.node for action in actions if isinstance(action, Nominate)] == ["n0"]
    assert fleet.told["default/p"] == ["WaitingForCut"]
    assert not cuts(fleet), "it was asked for already"
    fleet.cut()
    assert [action.node for action in fleet.decide() if isinstance(action, Bind)] == ["n0"]


def test_the_explanation_says_that_it_is_under_way() -> None:
    fleet = MigFleet(1, 1)
    fleet.add([asking("p", TWO)])
    said = explain(fleet.snapshot(), "default/p", Policy())
    assert said is not None
    assert (said.verdict, [reason.code for reason in said.reasons]) == ("soon", ["WaitingForCut"])
    assert "2g.20gb@" in said.reasons[0].message


def test_a_pod_that_no_cut_can_serve_now_is_told_not_now_and_one_that_none_ever_can_is_told_never() -> None:
    fleet = MigFleet(1, 1)
    fleet.add([asking("first", SEVEN)])
    fleet.settle()
    fleet.add([asking("p", ONE), asking("q", "nvidia.com/mig-1g.5gb")])
    verdicts = [explain(fleet.snapshot(), f"default/{name}", Policy()) for name in "pq"]
    assert [said.verdict if said else "" for said in verdicts] == ["not-now", "never"]


def test_an_instance_that_is_there_is_used_before_anything_is_cut() -> None:
    fleet = MigFleet(1, 1)
    fleet.add([asking("p", TWO)])
    fleet.settle()
    fleet.end("default/p")
    fleet.add([asking("q", TWO)])
    assert not cuts(fleet)
    assert "n0" in {held.node for held in fleet.pods.values()}


def test_free_slices_of_a_cut_gpu_come_before_a_whole_one() -> None:
    fleet = MigFleet(2, 2)
    fleet.add(asking(f"p{number}", ONE, created=number) for number in range(7))
    fleet.settle()
    assert sum(gpu.enabled for gpus in fleet.gpus.values() for gpu in gpus) == 1
    assert fleet.running() == {ONE: 7}


def test_idle_instances_give_way_the_fewest_and_held_ones_never() -> None:
    gpu = MigGPU(
        "GPU-0", 0, GEOMETRY, enabled=True,
        instances=placed("1g.10gb@0", "1g.10gb@1", "1g.10gb@4", "1g.10gb@5", "1g.10gb@6"),
        busy=placed("1g.10gb@0"),
    )  # fmt: skip
    recut = recut_for(THREE, [gpu], {ONE: 1}, may_switch=False)
    assert recut is not None
    assert recut.made == placed("3g.40gb@4")[0]
    assert recut.gone == placed("1g.10gb@4", "1g.10gb@5", "1g.10gb@6")
    assert recut_for(SEVEN, [gpu], {ONE: 1}, may_switch=False) is None


def test_nothing_idle_goes_while_it_is_unknown_who_holds_what() -> None:
    instances = placed("1g.10gb@4", "1g.10gb@5", "3g.40gb@0")
    gpu = MigGPU("GPU-0", 0, GEOMETRY, enabled=True, instances=instances, busy=instances[:1])
    assert recut_for(THREE, [gpu], {THREE: 1, ONE: 1}, may_switch=False) is None
    assert recut_for(THREE, [gpu], {THREE: 1}, may_switch=False) is not None


def test_the_mode_is_switched_only_where_the_pool_allows_it() -> None:
    fleet = MigFleet(1, 2, may_switch=False)
    fleet.add([asking("p", ONE)])
    assert not cuts(fleet)
    assert fleet.told["default/p"][0] == "ResourceNotOffered"
    cut = MigFleet(1, 1, may_switch=False, enabled=True)
    cut.add([asking("p", ONE), asking("whole", GPU)])
    cut.settle()
    assert cut.running() == {ONE: 1}


def test_whole_gpus_come_back_when_their_slices_are_idle() -> None:
    fleet = MigFleet(1, 2)
    fleet.add(asking(f"p{number}", THREE, created=number) for number in range(4))
    fleet.settle()
    fleet.add([asking("job", GPU, 2, created=9.0)])
    fleet.settle()
    assert fleet.running() == {THREE: 4}
    fleet.end(*(f"default/p{number}" for number in range(4)))
    fleet.decide()
    fleet.cut()
    assert [action.pod.name for action in fleet.decide() if isinstance(action, Bind)] == ["job"]


def test_a_gang_gets_all_its_instances_or_nothing_is_cut() -> None:
    fleet = MigFleet(1, 1)
    gang = GangRef("g", 3, "label")
    fleet.add(asking(f"m{number}", THREE, gang=gang) for number in range(3))
    assert not cuts(fleet)
    roomy = MigFleet(1, 2)
    roomy.add(asking(f"m{number}", THREE, gang=gang) for number in range(3))
    roomy.settle()
    assert roomy.running() == {THREE: 3}


def test_cutting_comes_before_evicting() -> None:
    fleet = MigFleet(1, 2)
    fleet.add(asking(f"low{number}", THREE, created=number) for number in range(2))
    fleet.settle()
    fleet.add([asking("high", THREE, priority=100)])
    assert not any(isinstance(action, Evict) for action in fleet.decide())


def test_a_gpu_that_cannot_be_cut_as_asked_is_left_alone() -> None:
    stuck = MigGPU("GPU-0", 0, GEOMETRY, enabled=True, blocked=True)
    free = MigGPU("GPU-1", 1, GEOMETRY)
    recut = recut_for(ONE, [stuck, free], {}, may_switch=True)
    assert recut is not None
    assert recut.gpu.uuid == "GPU-1"


@pytest.mark.parametrize(("gap", "part"), [(0.0, 0.95), (1.0, 0.9)])
@pytest.mark.parametrize("seed", range(4))
def test_two_hundred_pods_of_mixed_profiles_fill_an_idle_fleet(seed: int, gap: float, part: float) -> None:
    """Pods of one second are packed as one; those that come one after the other leave somewhat more holes."""
    wanted = random.Random(seed).choices(MIX, k=200)
    fleet = MigFleet(4, 8)
    fleet.add(asking(f"p{n:03d}", mig_resource(name), created=n * gap) for n, name in enumerate(wanted))
    fleet.settle()
    memory = sum(place.size for *_, place in fleet.held.values() if place)
    compute = sum(PROFILES[place.profile].compute for *_, place in fleet.held.values() if place)
    assert memory >= part * min(sum(PROFILES[name].size for name in wanted), 8 * 32)
    assert compute >= (part - 0.05) * min(sum(PROFILES[name].compute for name in wanted), 7 * 32)
    waiting = Counter(wanted)
    waiting.subtract({name.removeprefix("nvidia.com/mig-"): count for name, count in fleet.running().items()})
    holes = [
        name
        for name, count in waiting.items()
        if count > 0
        and any(
            place(GEOMETRIES[GEOMETRY], [name], gpu.instances) for gpus in fleet.gpus.values() for gpu in gpus
        )
    ]
    assert not holes, "whoever waits fits nowhere"


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.sampled_from((*MIX, ""))),
            st.tuples(st.just("end"), st.integers(0, 30)),
            st.tuples(st.sampled_from(("decide", "start", "cut")), st.just(0)),
        ),
        max_size=60,
    ),
    st.booleans(),
)
def test_whatever_happens_in_whatever_order_nobody_loses_an_instance_and_all_comes_to_rest(
    steps: list[tuple[str, str | int]], may_switch: bool
) -> None:
    fleet = MigFleet(2, 2, may_switch=may_switch, enabled=not may_switch)
    for number, (what, which) in enumerate(steps):
        if what == "add":
            resource = mig_resource(str(which)) if which else GPU
            fleet.add([asking(f"p{number}", resource, created=number)])
        elif what == "end" and fleet.pods:
            fleet.end(sorted(fleet.pods)[int(which) % len(fleet.pods)])
        elif what in ("decide", "start", "cut"):
            getattr(fleet, what)()
    fleet.settle()
    for gpus in fleet.gpus.values():
        for gpu in gpus:
            assert place(GEOMETRIES[GEOMETRY], [], gpu.instances) is not None
            assert gpu.enabled or not gpu.instances
    told = {action.pod.key for action in fleet.decide() if isinstance(action, Unschedulable)}
    assert told == {key for key, one in fleet.pods.items() if not one.node}


def test_equal_snapshots_give_equal_plans() -> None:
    def plan() -> list[object]:
        fleet = MigFleet(2, 2)
        fleet.add(asking(f"p{number}", mig_resource(name)) for number, name in enumerate(MIX))
        return [msgspec.to_builtins(action) for action in fleet.decide()]

    assert plan() == plan()
