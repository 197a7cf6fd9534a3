"""The GPUs of a simulated node: faults, quarantine, load and labels come out of the agent's own code."""

from __future__ import annotations

import re
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpufleet.devices.clocks import ManualClock
from gpufleet.devices.device_health import CALM_S
from gpufleet.devices.plugin_config import PluginConfig, SharedResource, Sharing
from gpufleet.devices.simulated_node import SimulatedGPUs, fault_problem, gpu_labels, simulated_inventory
from gpufleet.fleet.mig import GEOMETRIES, SWITCHES_AT_ONCE, layout
from gpufleet.fleet.products import find_product
from gpufleet.kube.gpunode import (
    GPUAllocation,
    GPUDevice,
    GPUNodeDesired,
    MigPlace,
    MigWish,
    SharingMode,
    SharingWish,
)

H100 = find_product("h100")
GPU = "nvidia.com/gpu"
MIXED = PluginConfig(mig_strategy="mixed")
SLICED = PluginConfig(sharing=Sharing("time-slicing", (SharedResource(GPU, 3, f"{GPU}.shared"),)))
BALANCED = layout(GEOMETRIES["h100-80gb"], "all-balanced")


class Bench:
    """A node whose clock a test moves."""

    def __init__(
        self, count: int = 3, profiles: tuple[str, ...] | None = None, config: PluginConfig = MIXED
    ) -> None:
        self.clock = ManualClock(100.0)
        inventory = simulated_inventory(H100, count, node="f/n", profiles=profiles)
        self.gpus = SimulatedGPUs(H100, inventory, config, self.clock)

    @property
    def uuids(self) -> list[str]:
        return [gpu.uuid for gpu in self.gpus.inventory.gpus]

    def offered(self) -> list[tuple[str, int, int]]:
        return [(one.name, one.capacity, one.healthy) for one in self.gpus.resources]

    def healing(self) -> bool:
        return self.gpus.healing

    def devices(self) -> tuple[GPUDevice, ...]:
        self.gpus.measure()
        return self.gpus.status(()).devices


def test_a_node_says_how_its_gpus_are_linked_where_that_differs() -> None:
    eight, four = (Bench(count).gpus.status(()).links for count in (8, 4))
    assert [len(row) for row in eight] == list(range(8))
    assert len({score for row in eight for score in row}) == 2
    assert not four, "of four all are linked alike"


def test_a_sick_and_a_quarantined_gpu_are_not_offered_and_say_why() -> None:
    bench = Bench()
    assert bench.gpus.obey({0: "Xid79"}, [bench.uuids[1]])
    assert bench.offered() == [(GPU, 3, 1)]
    assert [device.reason for device in bench.devices()] == ["Xid79", "Quarantined", ""]


def test_a_gpu_whose_fault_is_gone_is_offered_again_after_a_calm_moment() -> None:
    bench = Bench()
    bench.gpus.obey({0: "Xid79", 1: "FanFailure"}, ())
    assert [device.reason for device in bench.devices()] == ["Xid79", "FanFailure", ""]
    assert [bench.healing(), bench.gpus.obey({1: "FanFailure"}, ()), bench.healing()] == [False, False, True]
    assert bench.offered() == [(GPU, 3, 1)]
    bench.clock.advance(CALM_S)
    assert bench.gpus.look()
    assert bench.offered() == [(GPU, 3, 2)]
    assert not bench.healing()


def test_an_xid_that_a_program_causes_makes_no_gpu_sick_and_that_is_said() -> None:
    bench = Bench()
    assert not bench.gpus.obey({0: "Xid13"}, ())
    assert bench.offered() == [(GPU, 3, 3)]
    assert "makes no GPU sick" in fault_problem("Xid13")
    assert fault_problem("Xid79") == fault_problem("FanFailure") == ""


def test_a_fault_takes_every_instance_and_replica_of_its_gpu() -> None:
    cut, sliced = Bench(2, BALANCED), Bench(2, config=SLICED)
    for bench in (cut, sliced):
        bench.gpus.obey({1: "Xid79"}, ())
        assert all(healthy * 2 == capacity for _, capacity, healthy in bench.offered())
    assert [name for name, *_ in cut.offered()] == [
        "nvidia.com/mig-1g.10gb", "nvidia.com/mig-2g.20gb", "nvidia.com/mig-3g.40gb",
    ]  # fmt: skip
    assert sliced.offered() == [(f"{GPU}.shared", 6, 3)]


def test_uuids_follow_from_the_node_and_the_index_alone() -> None:
    def uuids(node: str) -> list[str]:
        found = simulated_inventory(H100, 8, node=node, profiles=BALANCED)
        instances = [one for gpu in found.gpus for i in gpu.instances for one in i.compute]
        return [*(gpu.uuid for gpu in found.gpus), *(one.uuid for one in instances)]

    assert uuids("f/n") == uuids("f/n")
    everywhere = [uuid for node in ("f/n", "f/m", "g/n") for uuid in uuids(node)]
    assert len(set(everywhere)) == len(everywhere) == 3 * (8 + 8 * 4)
    pattern = r"(GPU|MIG)-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    assert all(re.fullmatch(pattern, uuid) for uuid in everywhere)


def test_a_gpu_warms_up_smoothly_while_held_and_cools_down_after() -> None:
    bench = Bench(1)
    cold = bench.devices()[0]
    bench.gpus.occupy(bench.uuids)
    seen = []
    for _ in range(30):
        seen.append(bench.devices()[0].util_percent)
        bench.clock.advance(1.0)
    assert seen[0] == 0
    assert seen[-1] > 85
    assert max(abs(later - earlier) for earlier, later in pairwise(seen)) < 30
    bench.clock.advance(270.0)
    hot = bench.devices()[0]
    assert hot.temperature_c > cold.temperature_c + 30
    assert hot.power_w > 5 * cold.power_w
    assert cold.memory_used_mib < 0.02 * H100.memory_mib < 0.8 * H100.memory_mib < hot.memory_used_mib
    bench.gpus.occupy(())
    bench.clock.advance(600.0)
    assert bench.devices()[0].util_percent == 0


def test_a_busy_instance_makes_its_gpu_busy_by_its_share() -> None:
    bench = Bench(1, BALANCED)
    three = next(i for i in bench.gpus.inventory.gpus[0].instances if i.profile == "3g.40gb")
    bench.gpus.occupy([three.compute[0].uuid])
    bench.clock.advance(60.0)
    bench.gpus.measure()
    bench.clock.advance(60.0)
    assert 30 < bench.devices()[0].util_percent < 50


def test_readings_that_hardly_move_are_not_news() -> None:
    bench = Bench(2)
    bench.clock.advance(10.0)
    assert not bench.gpus.measure()
    bench.gpus.occupy(bench.uuids[:1])
    bench.clock.advance(10.0)
    assert bench.gpus.measure()


@given(st.sets(st.integers(0, 2)), st.floats(0, 1e6))
def test_readings_stay_within_what_the_product_can_do(held: set[int], elapsed: float) -> None:
    bench = Bench()
    bench.gpus.occupy(bench.uuids[index] for index in held)
    bench.clock.advance(elapsed)
    for device in bench.devices():
        assert 0 <= device.util_percent <= 100
        assert 0 <= device.memory_used_mib <= H100.memory_mib
        assert 25 <= device.temperature_c <= 90
        assert 0 < device.power_w <= H100.power_w


def test_the_report_counts_gpus_not_instances() -> None:
    bench = Bench(2, BALANCED)
    held = bench.gpus.inventory.gpus[0].instances[0].compute[0].uuid
    one = GPUAllocation(namespace="n", pod="p", pod_uid="u", container="c", resource="r", devices=(held,))
    summary = bench.gpus.status([one]).summary
    assert summary is not None
    assert (summary.gpus, summary.allocated, summary.unhealthy) == (2, 1, 0)
    assert summary.mig == "4x1g.10gb,2x2g.20gb,2x3g.40gb"


def test_a_node_without_gpus_offers_nothing_and_has_no_labels() -> None:
    gpus = SimulatedGPUs(None, simulated_inventory(None, 0, node="f/n", profiles=None), MIXED, ManualClock())
    status = gpus.status(())
    assert (status.devices, status.resources, status.allocations) == ((), (), ())
    assert gpus.labels() == {}
    assert not gpus.obey({0: "Xid79"}, ())
    assert not gpus.measure()


@pytest.mark.parametrize("profiles", [None, BALANCED])
def test_labels_are_those_of_the_agent(profiles: tuple[str, ...] | None) -> None:
    bench = Bench(2, profiles)
    assert bench.gpus.labels() == gpu_labels(bench.gpus.inventory, MIXED)
    assert bench.gpus.labels()["nvidia.com/gpu.product"] == "NVIDIA-H100-80GB-HBM3"
    assert ("nvidia.com/mig-3g.40gb.count" in bench.gpus.labels()) == (profiles is not None)
    msgspec.json.encode(bench.gpus.labels())


@pytest.mark.parametrize("name", ["a100-40gb", "h100", "h200"])
def test_gpus_are_cut_after_a_restart_as_the_record_says(name: str) -> None:
    product = find_product(name)
    profiles = None if product.compute >= SWITCHES_AT_ONCE else ()
    inventory = simulated_inventory(product, 2, node="f/n", profiles=profiles)
    gpus = SimulatedGPUs(product, inventory, MIXED, ManualClock(100.0))
    first = gpus.inventory.gpus[0]
    assert first.geometry is not None
    profile = next(iter(first.geometry.profiles.values()))
    instances = (MigPlace(profile=profile.name, start=profile.starts[-1]),)
    wish = MigWish(uuid=first.uuid, enabled=True, instances=instances)
    gpus.ask(GPUNodeDesired(dynamic=True, allow_mode_switch=True, mig=(wish,)))
    gpus.cut(frozenset())
    gpus.measure()
    recorded = gpus.status(()).devices
    assert recorded[0].instances

    again = SimulatedGPUs(product, inventory, MIXED, ManualClock(100.0))
    again.recall(recorded)
    again.measure()
    assert again.status(()).devices == recorded
    assert again.resources == gpus.resources


@pytest.mark.parametrize(
    ("mode", "offered"),
    [
        ("timeSlicing", [(f"{GPU}.shared", 2), ("nvidia.com/mig-1g.10gb.shared", 14)]),
        ("mps", [(f"{GPU}.shared", 2), ("nvidia.com/mig-1g.10gb", 7)]),
        ("none", [(GPU, 1), ("nvidia.com/mig-1g.10gb", 7)]),
    ],
)
def test_a_pool_shares_instances_too_unless_mps_shares(mode: SharingMode, offered: list[object]) -> None:
    bench = Bench(2)
    wish = MigWish(uuid=bench.uuids[0], enabled=True, profiles=("1g.10gb",) * 7)
    replicas = 1 if mode == "none" else 2
    sharing = SharingWish(mode=mode, replicas=replicas, rename=True, fail_requests_greater_than_one=True)
    bench.gpus.ask(GPUNodeDesired(allow_mode_switch=True, mig=(wish,), sharing=sharing))
    bench.gpus.cut(frozenset())
    assert [(one.name, one.capacity) for one in bench.gpus.resources if one.capacity] == offered
