"""The MIG manager: whatever fails or crashes, nothing in use is harmed, nothing is left half made."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import pytest
from tests.unit.test_mig_planning import layouts

from gpufleet.devices import partitions
from gpufleet.devices.backend import REASONS, BackendError
from gpufleet.devices.boards import make_inventory
from gpufleet.devices.clocks import ManualClock
from gpufleet.devices.inventory import GPU, GPUInstance, Inventory
from gpufleet.devices.mig_changes import OFF, MigChange, MigTarget, exact_target, plan_change, used
from gpufleet.devices.mig_manager import Outcome, carry_out
from gpufleet.devices.simulated_backend import SimulatedBackend
from gpufleet.devices.timeline import FailCall, ResetGPU, SetLoad
from gpufleet.fleet.mig import Placement
from gpufleet.fleet.products import PRODUCTS, find_product

PRODUCTS_WITH_MIG = [product for product in PRODUCTS.values() if product.mig]


class CrashError(BaseException):
    """The process is gone."""


class Node:
    """A simulated node between the manager and its GPUs: it counts calls and interferes at one of them.

    `held` are the MIG devices and GPUs that pods hold, `before_call` is called with the name of each call
    before it is made. It fails the test when something in use is taken away.
    """

    def __init__(
        self,
        product: str,
        cuts: Iterable[Iterable[str]],
        *,
        mig: bool = True,
        orphans: Iterable[Placement] = (),
    ) -> None:
        found = find_product(product)
        wanted = [tuple(cut) for cut in cuts]
        bare = make_inventory(found, len(wanted), node="n")
        gpus = []
        for gpu, cut in zip(bare.gpus, wanted, strict=True):
            assert gpu.geometry is not None
            made = msgspec.structs.replace(gpu, mig="on" if mig else "off")
            for one in exact_target(gpu.geometry, cut).placements or ():
                made, ident = partitions.with_gpu_instance(made, one.profile, one.start)
                if one not in orphans:
                    made, _ = partitions.with_compute_instance(made, ident)
            gpus.append(made)
        self.backend = SimulatedBackend(found, msgspec.structs.replace(bare, gpus=tuple(gpus)), ManualClock())
        self.held: set[str] = set()
        self.calls: list[str] = []
        self.before_call: Callable[[str], None] = lambda _: None

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            self.calls.append(name)
            self.before_call(name)
            if name in ("destroy_compute_instance", "destroy_gpu_instance", "set_mig_mode"):
                self._must_be_free(name, *arguments)
            return getattr(self.backend, name)(*arguments)

        return call

    def _must_be_free(self, name: str, uuid: str, *arguments: Any) -> None:
        gpu = self.gpu(uuid)
        busy = self.busy()
        if name == "set_mig_mode":
            assert uuid not in busy
            return
        there = next(one for one in gpu.instances if one.id == arguments[0])
        assert not busy & {one.uuid for one in there.compute}, f"{there.placement.text} is in use"

    def inventory_now(self) -> Inventory:
        """What is there, without counting as a call."""
        return self.backend.inventory()

    def gpu(self, uuid: str) -> GPU:
        found = self.inventory_now().gpu(uuid)
        assert found is not None
        return found

    def busy(self) -> frozenset[str]:
        """What pods hold and processes use."""
        now = self.inventory_now()
        return frozenset(self.held).union(*(used(gpu, self.backend.processes(gpu.uuid)) for gpu in now.gpus))

    def cut(self, index: int = 0) -> list[str]:
        """The whole instances of a GPU."""
        return [one.placement.text for one in self.inventory_now().gpus[index].instances if one.whole]

    def orphans(self) -> list[str]:
        return [
            one.placement.text for gpu in self.inventory_now().gpus for one in gpu.instances if not one.whole
        ]

    def uuid_of(self, text: str, index: int = 0) -> str:
        gpu = self.inventory_now().gpus[index]
        return next(one.whole.uuid for one in gpu.instances if one.placement.text == text and one.whole)

    def load(self, text: str, index: int = 0) -> None:
        """A process runs in an instance."""
        gpu = self.inventory_now().gpus[index]
        ident = next(one.id for one in gpu.instances if one.placement.text == text)
        self.backend.play([SetLoad(at=0, gpu=index, instance=ident, util=0.5)])

    def plan(self, targets: dict[int, MigTarget], *, may_switch: bool = False) -> MigChange:
        now = self.inventory_now()
        return plan_change(
            now,
            {now.gpus[index].uuid: target for index, target in targets.items()},
            busy=self.busy(),
            may_switch=may_switch,
        )

    def carry_out(self, change: MigChange) -> Outcome:
        return carry_out(self, change, lambda uuid: uuid not in self.held)


def on(*profiles: str) -> MigTarget:
    return MigTarget(on=True, profiles=profiles)


def codes(outcome: Outcome) -> list[str]:
    return [reason.code for reason in outcome.reasons]


def at_call(node: Node, number: int, action: Callable[[str], None]) -> None:
    """Do something once, before the call of a number (from 0) from now on."""
    count = iter(range(10_000))

    def maybe(name: str) -> None:
        if next(count) == number:
            action(name)

    node.before_call = maybe


def fail(reason: str = "DriverError") -> Callable[[str], None]:
    def refuse(name: str) -> None:
        raise BackendError(reason=reason, message=f"{name}: {REASONS[reason]}")

    return refuse


def crash(_: str) -> None:
    raise CrashError


def test_a_gpu_is_cut_anew_and_what_can_stay_stays() -> None:
    node = Node("h100", [["1g.10gb@0", "1g.10gb@1", "3g.40gb@4"]])
    kept = node.uuid_of("3g.40gb@4")
    node.load("3g.40gb@4")
    outcome = node.carry_out(node.plan({0: on("3g.40gb", "2g.20gb", "1g.10gb", "1g.10gb")}))
    assert (outcome.status, codes(outcome)) == ("done", ["MigRoomFree"])
    assert sorted(node.cut()) == ["1g.10gb@0", "1g.10gb@1", "2g.20gb@2", "3g.40gb@4"]
    assert node.uuid_of("3g.40gb@4") == kept


def test_a_change_of_several_gpus_that_fails_on_the_last_leaves_all_as_before() -> None:
    before = [["7g.80gb@0"], ["1g.10gb@3"], ["3g.40gb@4"]]
    node = Node("h100", before)
    change = node.plan({index: on("2g.20gb", "2g.20gb", "3g.40gb") for index in range(3)})
    node.backend.play([FailCall(at=0, call="create_compute_instance", gpu=2)])
    outcome = node.carry_out(change)
    assert (outcome.status, outcome.restored, codes(outcome)) == ("failed", True, ["MigCallFailed"])
    assert [node.cut(index) for index in range(3)] == before
    assert not node.orphans()


def test_whatever_call_fails_everything_is_as_before() -> None:
    number, ended = 0, False
    while not ended:
        node = Node("h100", [["1g.10gb@0", "2g.20gb@2"], []])
        change = node.plan({0: on("3g.40gb", "3g.40gb"), 1: on("7g.80gb")})
        node.load("1g.10gb@0") if number == 0 else None
        at_call(node, number, fail())
        outcome = node.carry_out(change)
        ended = outcome.status == "done"
        if not ended:
            assert (outcome.status, outcome.restored) == ("failed", True), (number, node.calls)
            assert (node.cut(0), node.cut(1)) == (["1g.10gb@0", "2g.20gb@2"], [])
        assert not node.orphans()
        number += 1
    assert number > 15
    assert [node.cut(0), node.cut(1)] == [["3g.40gb@0", "3g.40gb@4"], ["7g.80gb@0"]]


def test_an_instance_that_comes_into_use_meanwhile_is_kept_and_the_rest_put_back() -> None:
    node = Node("h100", [["1g.10gb@0", "1g.10gb@1"]])
    change = node.plan({0: on("7g.80gb")})
    late = node.uuid_of("1g.10gb@1")
    at_call(node, 8, lambda _: node.held.add(late))
    outcome = node.carry_out(change)
    assert (outcome.status, codes(outcome)) == ("blocked", ["MigInstanceBusy"])
    assert "destroy_compute_instance" in node.calls
    assert node.cut() == ["1g.10gb@0", "1g.10gb@1"]


def test_a_process_that_nobody_knew_of_stops_a_change_before_its_first_step() -> None:
    node = Node("h100", [["1g.10gb@0", "1g.10gb@1"]])
    change = node.plan({0: on("7g.80gb")})
    node.load("1g.10gb@1")
    outcome = node.carry_out(change)
    assert (outcome.status, codes(outcome)) == ("blocked", ["MigInstanceBusy"])
    assert set(node.calls) == {"inventory", "processes"}


def test_a_driver_that_says_in_use_is_blocked_and_put_back() -> None:
    node = Node("h100", [["1g.10gb@0", "1g.10gb@1"]])
    change = node.plan({0: on("7g.80gb")})
    node.backend.play([FailCall(at=0, call="destroy_gpu_instance", reason="GpuInUse")])
    outcome = node.carry_out(change)
    assert (outcome.status, outcome.restored) == ("blocked", True)
    assert node.cut() == ["1g.10gb@0", "1g.10gb@1"]


def test_a_plan_for_gpus_that_somebody_changed_is_not_begun() -> None:
    node = Node("h100", [["1g.10gb@0"]])
    change = node.plan({0: on("3g.40gb")})
    node.backend.create_gpu_instance(change.planned[0].uuid, "2g.20gb", 2)
    outcome = node.carry_out(change)
    assert (outcome.status, codes(outcome)) == ("blocked", ["MigLayoutChanged"])
    assert node.calls == ["inventory"]


def test_a_blocked_or_empty_change_calls_nobody() -> None:
    node = Node("h100", [["1g.10gb@0"]])
    assert node.carry_out(node.plan({0: on("3g.40gb", "4g.40gb", "1g.10gb")})).status == "blocked"
    assert node.carry_out(node.plan({0: on("1g.10gb")})).status == "done"
    assert node.calls == []


def test_a_mode_that_cannot_be_put_back_is_said_and_nothing_is_left_half_made() -> None:
    node = Node("h100", [["7g.80gb@0"]])
    change = node.plan({0: on("1g.10gb", "2g.20gb")})
    node.backend.play(
        [
            FailCall(at=0, call="create_compute_instance", reason="InsufficientResources", times=100),
        ]
    )
    outcome = node.carry_out(change)
    assert (outcome.status, outcome.restored) == ("failed", False)
    assert codes(outcome) == ["MigCallFailed", "MigNotRestored"]
    assert not node.cut()
    assert not node.orphans()


def test_mode_is_switched_at_once_and_switched_back_when_the_rest_fails() -> None:
    node = Node("h100", [[], []], mig=False)
    change = node.plan({0: on("3g.40gb"), 1: on("3g.40gb")}, may_switch=True)
    node.backend.play([FailCall(at=0, call="create_gpu_instance", gpu=1)])
    assert node.carry_out(change).status == "failed"
    assert [gpu.mig for gpu in node.inventory_now().gpus] == ["off", "off"]
    assert node.carry_out(change).status == "done"
    assert node.cut(0) == node.cut(1) == ["3g.40gb@4"]


def test_a_mode_that_waits_for_a_reset_stops_before_anything_is_cut() -> None:
    node = Node("a100", [[], []], mig=False)
    targets = {0: on("3g.40gb"), 1: on()}
    outcome = node.carry_out(node.plan(targets, may_switch=True))
    assert (outcome.status, codes(outcome)) == ("reset-required", ["MigResetRequired"] * 2)
    assert [reason.code for reason in node.plan(targets, may_switch=True).blocked] == ["MigResetRequired"] * 2
    node.backend.play([ResetGPU(at=0, gpu=0), ResetGPU(at=0, gpu=1)])
    assert node.carry_out(node.plan(targets, may_switch=True)).status == "done"
    assert node.cut(0) == ["3g.40gb@4"]


def test_a_switch_that_waits_for_a_reset_is_taken_back_when_another_fails() -> None:
    node = Node("a100", [[], []], mig=False)
    change = node.plan({0: on(), 1: on()}, may_switch=True)
    node.backend.play([FailCall(at=0, call="set_mig_mode", gpu=1)])
    assert node.carry_out(change).restored
    assert not any(gpu.mig_pending for gpu in node.inventory_now().gpus)


def test_mig_mode_off_takes_the_instances_along_or_nothing() -> None:
    node = Node("h100", [["1g.10gb@0", "3g.40gb@4"]])
    change = node.plan({0: OFF}, may_switch=True)
    node.backend.play([FailCall(at=0, call="set_mig_mode")])
    assert node.carry_out(change).restored
    assert node.cut() == ["1g.10gb@0", "3g.40gb@4"]
    assert node.carry_out(change).status == "done"
    assert node.inventory_now().gpus[0].mig == "off"


def test_a_process_on_the_whole_gpu_forbids_the_switch() -> None:
    node = Node("h100", [[]], mig=False)
    change = node.plan({0: on()}, may_switch=True)
    node.backend.play([SetLoad(at=0, gpu=0, util=0.5)])
    assert codes(node.carry_out(change)) == ["MigGpuBusy"]


def test_a_gpu_that_is_lost_midway_is_said_to_be_as_it_is() -> None:
    node = Node("h100", [["1g.10gb@0"]])
    change = node.plan({0: on("7g.80gb")})
    at_call(node, 6, lambda _: node.backend.play([FailCall(at=0, call="all", reason="GpuLost", times=1000)]))
    outcome = node.carry_out(change)
    assert (outcome.status, outcome.restored) == ("failed", False)


class Scenario:
    """A random node, what is in use on it, and what is wanted of it: mostly something that can be reached."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        product = self.random.choice(PRODUCTS_WITH_MIG)
        mig = self.random.random() < 0.8
        count = self.random.choice((1, 1, 2))
        there = [self.random.choice(layouts(product.mig)) if mig else () for _ in range(count)]
        self.node = Node(
            product.aliases[0],
            [[one.text for one in layout] for layout in there],
            mig=mig,
            orphans=[one for layout in there for one in sorted(layout) if self.random.random() < 0.15],
        )
        for index in range(count):
            for text in self.node.cut(index):
                kind = self.random.random()
                if kind < 0.15:
                    self.node.load(text, index)
                elif kind < 0.3:
                    self.node.held.add(self.node.uuid_of(text, index))
        if not mig and self.random.random() < 0.1:
            self.node.held.add(self.node.inventory_now().gpus[0].uuid)
        self.kept = self.in_use()
        self.targets = {
            gpu.index: self._target(product.mig, {one.placement for one in gpu.instances if self._used(one)})
            for gpu in self.node.inventory_now().gpus
        }
        self.may_switch = self.random.random() < (0.5 if mig else 0.9)

    def _used(self, instance: GPUInstance) -> bool:
        return any(one.uuid in self.kept for one in instance.compute)

    def _target(self, geometry: str, kept: set[Placement]) -> MigTarget:
        if self.random.random() < 0.1:
            return OFF
        needed = kept if self.random.random() < 0.85 else set()
        wanted = sorted(self.random.choice([one for one in layouts(geometry) if needed <= one]))
        if self.random.random() < 0.4:
            return MigTarget(on=True, placements=tuple(wanted))
        return on(*(one.profile for one in wanted))

    def in_use(self) -> dict[str, Placement]:
        """The MIG devices in use, and where they lie."""
        busy = self.node.busy()
        return {
            one.whole.uuid: one.placement
            for gpu in self.node.inventory_now().gpus
            for one in gpu.instances
            if one.whole and one.whole.uuid in busy
        }

    def some_pod_comes(self, name: str) -> None:
        """A pod takes an idle instance; between asking and destroying nobody could keep it away."""
        if name.startswith("destroy") or name == "set_mig_mode":
            return
        idle = [
            one.whole.uuid
            for gpu in self.node.inventory_now().gpus
            for one in gpu.instances
            if one.whole and one.whole.uuid not in self.node.busy()
        ]
        if idle:
            self.node.held.add(self.random.choice(idle))
            self.kept = self.in_use()

    def run(self) -> Outcome | MigChange:
        """One start of the manager: plan and carry out until it is done, blocked or refused."""
        for _ in range(4):
            change = self.node.plan(self.targets, may_switch=self.may_switch)
            if change.blocked or change.done:
                return change
            outcome = self.node.carry_out(change)
            if outcome.status in ("failed", "reset-required"):
                return outcome
        raise AssertionError(f"no end: {change}, {outcome}")

    def check(self, end: Outcome | MigChange) -> str:
        """What an end must be; how it ended."""
        assert self.in_use() == self.kept
        if isinstance(end, Outcome):
            assert end.status == "reset-required"
            return end.status
        if end.blocked:
            return "blocked"
        now = self.node.inventory_now()
        assert not self.node.orphans()
        for index, target in self.targets.items():
            gpu = now.gpus[index]
            assert (gpu.mig == "on") == target.on
            there = tuple(one.placement for one in gpu.instances)
            if target.placements is not None:
                assert there == target.placements
            else:
                assert sorted(one.profile for one in there) == sorted(target.profiles)
        return "done"


def calls_of(seed: int) -> int:
    """How many calls a scenario needs when nothing interferes."""
    scenario = Scenario(seed)
    scenario.run()
    return len(scenario.node.calls)


def crash_and_restart(seed: int) -> str:
    """Crash at up to three random calls, or let a pod take something there, and start again each time; then
    let it end. How it did.
    """
    scenario, calls, crashed = Scenario(seed), calls_of(seed), False
    for _ in range(scenario.random.randint(1, 3) if calls else 0):
        action = crash if scenario.random.random() < 0.7 else scenario.some_pod_comes
        at_call(scenario.node, scenario.random.randrange(calls), action)
        try:
            scenario.run()
        except CrashError:
            crashed = True
        assert scenario.in_use() == scenario.kept, seed
    scenario.node.before_call = lambda _: None
    return f"{scenario.check(scenario.run())} {'after a crash' if crashed else 'at once'}"


def refuse_and_go_on(seed: int) -> str:
    """Refuse up to two calls of a change: it is put back without orphans of its own; then let it end."""
    scenario, calls = Scenario(seed), calls_of(seed)
    node = scenario.node
    change = node.plan(scenario.targets, may_switch=scenario.may_switch)
    before = [node.cut(index) for index in scenario.targets]
    orphans = node.orphans()
    reason = scenario.random.choice(sorted(REASONS))
    refused = {scenario.random.randrange(calls + 1) for _ in range(scenario.random.randint(1, 2))}
    count = iter(range(10_000))

    def maybe(name: str) -> None:
        if next(count) in refused:
            fail(reason)(name)

    node.before_call = maybe
    outcome = node.carry_out(change)
    assert outcome.restored, (seed, outcome)
    if outcome.status in ("failed", "blocked"):
        assert [node.cut(index) for index in scenario.targets] == before, (seed, outcome)
        assert set(node.orphans()) <= set(orphans), (seed, outcome)
    assert scenario.in_use() == scenario.kept, seed
    node.before_call = lambda _: None
    return f"{scenario.check(scenario.run())} after {outcome.status}"


SOME = range(1_000)
MANY = range(1_000, 10_000)


@pytest.mark.parametrize(
    "seeds",
    [SOME, pytest.param(MANY, marks=[pytest.mark.full, pytest.mark.timeout(1200)])],
    ids=["some", "many"],
)
def test_after_any_crash_a_new_start_ends_well_and_harms_nobody(seeds: range) -> None:
    outcomes = Counter(crash_and_restart(seed) for seed in seeds)
    assert outcomes["done after a crash"] > len(seeds) // 3, outcomes
    assert outcomes["blocked after a crash"] > len(seeds) // 50, outcomes
    assert outcomes["reset-required after a crash"] > len(seeds) // 200, outcomes


@pytest.mark.parametrize(
    "seeds",
    [SOME, pytest.param(MANY, marks=[pytest.mark.full, pytest.mark.timeout(1200)])],
    ids=["some", "many"],
)
def test_after_any_refused_call_everything_is_as_before_and_the_next_run_ends_well(seeds: range) -> None:
    outcomes = Counter(refuse_and_go_on(seed) for seed in seeds)
    assert outcomes["done after failed"] > len(seeds) // 3, outcomes
