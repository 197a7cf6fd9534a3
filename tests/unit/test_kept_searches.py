"""Searches that are kept from one decision to the next change nothing but the time it takes."""

from __future__ import annotations

import random

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.device_fleets import asking, whole
from tests.unit.fleets import node, pod
from tests.unit.random_fleets import bound, examples
from tests.unit.test_cycle import busy_fleets
from tests.unit.test_fractions import part

from gpufleet.fleet.demands import Demand, TypicalPod
from gpufleet.fleet.devices import NodeDevices
from gpufleet.fleet.nodes import Node
from gpufleet.fleet.plans import Bind
from gpufleet.fleet.pods import Pod
from gpufleet.fleet.selectors import Taint
from gpufleet.fleet.snapshot import Snapshot, snapshot_of
from gpufleet.scheduling.cycle import Policy, decide
from gpufleet.scheduling.ledger import Ledger

MIX = (TypicalPod(Demand(1000, 1, 700), 3), TypicalPod(Demand(2000, 1, 1000), 2))


@examples(100)
@given(st.lists(busy_fleets(), min_size=2, max_size=5))
def test_a_line_of_any_fleets_is_decided_as_if_each_were_the_first(line: list[Snapshot]) -> None:
    ledger: Ledger | None = None
    for snapshot in line:
        ledger = Ledger.build(snapshot, ledger)
        assert decide(snapshot, Policy(), ledger) == decide(snapshot, Policy())


@examples(100)
@given(busy_fleets())
def test_what_was_decided_and_then_written_is_seen_by_the_next_decision(snapshot: Snapshot) -> None:
    ledger: Ledger | None = None
    for _ in range(3):
        ledger = Ledger.build(snapshot, ledger)
        plan = decide(snapshot, Policy(), ledger)
        assert plan == decide(snapshot, Policy())
        pods = tuple(bound(snapshot.pods(), plan))
        again = snapshot_of(tuple(snapshot.nodes.values()), pods)
        snapshot = msgspec.structs.replace(snapshot, pods_by_node=again.pods_by_node, unbound=again.unbound)


class Changing:
    """A fleet with GPUs in parts that changes step by step."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.devices: dict[str, NodeDevices] = {}
        self.nodes: dict[str, Node] = {}
        self.pods: dict[str, Pod] = {}
        self.mix: tuple[TypicalPod, ...] = ()
        self.made = 0
        for _ in range(3):
            self.new_node()

    def new_node(self) -> None:
        name = f"n{self.made}"
        self.made += 1
        gpus = self.draw.choice([0, 1, 2, 4])
        product = {"nvidia.com/gpu.product": self.draw.choice("AB")}
        self.nodes[name] = node(name, gpus=gpus, labels=product)
        if gpus:
            self.devices = {**self.devices, name: whole(gpus)}

    def step(self) -> None:
        """One thing changes."""
        self.made += 1
        name = f"p{self.made}"
        some = self.draw.choice(sorted(self.nodes))
        one = self.nodes[some]
        match self.draw.randrange(9):
            case 0 | 1:
                self.pods[name] = part(name, self.draw.choice([200, 300, 700]), created=self.made)
            case 2 | 3:
                self.pods[name] = asking(name, self.draw.choice([1, 2]), created=self.made)
            case 4:
                self.pods[name] = pod(name, cpu="2", created=self.made)
            case 5 if self.pods:
                del self.pods[self.draw.choice(sorted(self.pods))]
            case 6:
                self.nodes[some] = msgspec.structs.replace(one, unschedulable=not one.unschedulable)
            case 7:
                soft = () if one.taints else (Taint("soft", "PreferNoSchedule"),)
                self.nodes[some] = msgspec.structs.replace(one, taints=soft)
            case _:
                self.change_fleet(some)

    def change_fleet(self, some: str) -> None:
        match self.draw.randrange(3):
            case 0:
                self.new_node()
            case 1 if len(self.nodes) > 1 and not any(one.node == some for one in self.pods.values()):
                del self.nodes[some]
            case _:
                self.mix = () if self.mix else MIX

    def snapshot(self) -> Snapshot:
        devices = {"devices": self.devices}
        return snapshot_of(tuple(self.nodes.values()), tuple(self.pods.values()), mix=self.mix, **devices)

    def carry_out(self, action: Bind) -> None:
        done = msgspec.structs.replace(action.pod, node=action.node, picks=action.picks)
        self.pods[action.pod.name] = done


def test_a_fleet_that_changes_step_by_step_is_decided_as_if_it_were_new() -> None:
    binds = 0
    for seed in range(40):
        fleet = Changing(seed)
        ledger: Ledger | None = None
        for _ in range(40):
            fleet.step()
            snapshot = fleet.snapshot()
            ledger = Ledger.build(snapshot, ledger)
            plan = decide(snapshot, Policy(), ledger)
            assert plan == decide(snapshot, Policy()), seed
            for action in plan.actions:
                if isinstance(action, Bind) and fleet.draw.random() < 0.8:
                    fleet.carry_out(action)
                    binds += 1
    assert binds > 300
