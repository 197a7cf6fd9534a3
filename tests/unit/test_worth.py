"""The worth of nodes: a pod goes where it takes least of what the usual pods could use."""

from __future__ import annotations

import msgspec
from tests.unit.device_fleets import asking, whole
from tests.unit.fleets import node, pod
from tests.unit.test_fractions import part

from gpufleet.fleet.demands import Demand, TypicalPod
from gpufleet.fleet.devices import NodeDevices
from gpufleet.fleet.fragmentation import FreeNode
from gpufleet.fleet.nodes import Node
from gpufleet.fleet.plans import Bind
from gpufleet.fleet.pods import Pod
from gpufleet.fleet.snapshot import Snapshot, snapshot_of
from gpufleet.scheduling.cycle import Policy, decide
from gpufleet.scheduling.worth import worth_of

GPU = "nvidia.com/gpu"


def machine(name: str, gpus: int, cpu: int = 64_000, product: str = "A") -> Node:
    made = node(name, resources={GPU: gpus, "cpu": f"{cpu}m"})
    return msgspec.structs.replace(made, labels={**made.labels, "nvidia.com/gpu.product": product})


def fleet(nodes: tuple[Node, ...], pods: tuple[Pod, ...], mix: tuple[TypicalPod, ...]) -> Snapshot:
    devices: dict[str, NodeDevices] = {one.name: whole(one.allocatable[GPU]) for one in nodes}
    return snapshot_of(nodes, pods, devices=devices, mix=mix)


def where(snapshot: Snapshot) -> dict[str, str]:
    plan = decide(snapshot, Policy())
    return {action.pod.name: action.node for action in plan.actions if isinstance(action, Bind)}


def test_parts_that_fill_a_gpu_together_are_put_together() -> None:
    mix = (TypicalPod(Demand(1000, 1, 700), 1), TypicalPod(Demand(1000, 1, 300), 1))
    pods = (part("a", 300, created=1), part("b", 700, created=2), part("c", 300, created=3))
    found = decide(fleet((machine("n", 2),), pods, mix), Policy())
    gpus = {one.pod.name: one.picks[0].devices for one in found.actions if isinstance(one, Bind)}
    assert gpus["a"] == gpus["b"] != gpus["c"]


def test_a_pod_without_gpus_leaves_the_cpu_that_gpus_need() -> None:
    mix = (TypicalPod(Demand(8000, 1, 1000), 1),)
    nodes = (machine("lean", 8, cpu=64_000), machine("rich", 8, cpu=128_000))
    assert where(fleet(nodes, (pod("heavy", resources={"cpu": "32"}),), mix)) == {"heavy": "rich"}


def test_whoever_may_run_anywhere_leaves_the_product_that_others_insist_on() -> None:
    mix = (TypicalPod(Demand(1000, 1, 1000, ("A",)), 3), TypicalPod(Demand(1000, 1, 1000), 1))
    nodes = (machine("a", 2, product="A"), machine("b", 2, product="B"))
    assert where(fleet(nodes, (asking("any", 1),), mix)) == {"any": "b"}


def test_equal_losses_go_by_name_so_that_one_node_is_filled_before_the_next() -> None:
    mix = (TypicalPod(Demand(1000, 1, 1000), 1),)
    nodes = (machine("a", 2), machine("b", 2))
    pods = tuple(asking(f"p{i}", 1, created=i) for i in range(3))
    assert where(fleet(nodes, pods, mix)) == {"p0": "a", "p1": "a", "p2": "b"}


def test_a_node_is_worth_less_with_less_cpu_than_its_gpus_need() -> None:
    worth = worth_of((TypicalPod(Demand(8000, 1, 1000), 1),), ("A",))
    full = worth.of(FreeNode("A", 64_000, (1000,) * 8))
    assert full > worth.of(FreeNode("A", 16_000, (1000,) * 8)) > worth.of(FreeNode("A", 4_000, (1000,) * 8))


def test_without_a_mix_nothing_is_said_about_worth() -> None:
    nodes = (machine("a", 8), machine("b", 2))
    assert where(fleet(nodes, (asking("p", 1),), ())) == {"p": "b"}
