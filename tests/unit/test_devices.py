"""What the resources of a node stand for, and what of them is free: from a GPUNode to values."""

from __future__ import annotations

import msgspec
import pytest
from tests.unit.inventories import SEVEN, instance_of, islands, node, uuid_of, whole

from gpufleet.devices.inventory import Inventory
from gpufleet.devices.node_report import node_status
from gpufleet.devices.plugin_config import MigStrategy, PluginConfig, SharedResource, Sharing
from gpufleet.devices.preferred_allocation import Topology, topology
from gpufleet.devices.resources import gpu_resources, offer
from gpufleet.fleet.devices import HeldDevices, NodeDevices, Offered, Part, Pool, pools_of
from gpufleet.fleet.links import LinkTable
from gpufleet.kube.device_values import node_devices
from gpufleet.kube.gpunode import GPUAllocation, GPUNode, GPUNodeDesired, GPUNodeSpec, MigPlace, MigWish
from gpufleet.kube.objects import ObjectMeta

GPU, SHARED = "nvidia.com/gpu", "nvidia.com/gpu.shared"
SLICE, HALF = "nvidia.com/mig-1g.10gb", "nvidia.com/mig-3g.40gb"


def config(strategy: MigStrategy = "mixed", replicas: int = 1, resource: str = GPU) -> PluginConfig:
    sharing = Sharing("time-slicing", (SharedResource(GPU, replicas, "" if resource == GPU else resource),))
    return PluginConfig(mig_strategy=strategy, sharing=sharing if replicas > 1 else Sharing())


def reported(
    inventory: Inventory,
    plugin: PluginConfig,
    *allocations: GPUAllocation,
    links: Topology | None = None,
    desired: GPUNodeDesired = GPUNodeDesired(),  # noqa: B008 - a frozen value
    sick: frozenset[str] = frozenset(),
) -> NodeDevices:
    """What the scheduler knows of a node from what its agent writes."""
    status = node_status(
        inventory,
        {},
        sick,
        gpu_resources(offer(inventory, plugin, sick), plugin.shared_policy),
        allocations,
        (),
        links or Topology(),
    )
    return node_devices(
        GPUNode(metadata=ObjectMeta(name="n"), spec=GPUNodeSpec(desired=desired), status=status)
    )


def offered(inventory: Inventory, plugin: PluginConfig) -> dict[str, list[str]]:
    """What the agent offers, by resource: the UUID of each device, as often as it is offered."""
    return {one.name: [device.uuid for device in one.devices] for one in offer(inventory, plugin).resources}


INVENTORIES = [whole(1), whole(8), node(SEVEN, SEVEN), node(SEVEN, None), node(("1g.10gb", "3g.40gb"), SEVEN)]


@pytest.mark.parametrize("inventory", INVENTORIES)
@pytest.mark.parametrize("strategy", ["single", "mixed"])
@pytest.mark.parametrize(("replicas", "resource"), [(1, GPU), (3, GPU), (3, SHARED)])
def test_a_resource_stands_for_the_devices_that_the_agent_offers_under_its_name(
    inventory: Inventory, strategy: MigStrategy, replicas: int, resource: str
) -> None:
    plugin = config(strategy, replicas, resource)
    pools = reported(inventory, plugin).pools
    found = {
        name: [part.uuid for part in pool.parts for _ in range(pool.replicas)] for name, pool in pools.items()
    }
    assert {name: sorted(devices) for name, devices in found.items()} == {
        name: sorted(devices) for name, devices in offered(inventory, plugin).items()
    }


def test_nothing_is_said_where_the_numbers_do_not_fit() -> None:
    gpus = reported(whole(2), config()).gpus
    assert not pools_of(gpus, {GPU: Offered(3, 3)}), "a device that is not shared beside one that is"
    assert not pools_of(gpus, {GPU: Offered(2, 1)}), "somebody is about to go, and it is not said who"
    assert not pools_of(gpus, {GPU: Offered(1, 1), SHARED: Offered(4, 4)})
    assert not pools_of(gpus, {"nvidia.com/gpu.mine": Offered(2, 2)})
    assert not pools_of((), {GPU: Offered(2, 2)})
    assert pools_of(gpus, {GPU: Offered(2, 2), SLICE: Offered(0, 0)}).keys() == {GPU}


def test_a_sick_gpu_is_not_free_and_neither_are_its_instances() -> None:
    pools = reported(node(SEVEN, None, None), config(), sick=frozenset({uuid_of(0), uuid_of(2)})).pools
    assert pools[GPU].free(()) == {uuid_of(1): 1}
    assert not pools[SLICE].free(())


def test_what_is_asked_to_go_is_not_free() -> None:
    kept = MigPlace(profile="1g.10gb", start=0)
    desired = GPUNodeDesired(
        dynamic=True,
        allow_mode_switch=True,
        mig=(
            MigWish(uuid=uuid_of(0), enabled=True, instances=(kept,)),
            MigWish(uuid=uuid_of(1), enabled=True, instances=(kept,)),
        ),
    )
    named = node(SEVEN, None, None)
    named = Inventory(
        gpus=tuple(msgspec.structs.replace(one, name="NVIDIA H100 80GB HBM3") for one in named.gpus)
    )
    pools = reported(named, config(), desired=desired).pools
    assert pools[SLICE].free(()) == {instance_of(0, 1): 1}
    assert pools[GPU].free(()) == {uuid_of(2): 1}


def held(*uuids: str, shared: bool = False, resource: str = GPU) -> HeldDevices:
    return HeldDevices("u", "main", resource, uuids, shared)


def test_shares_are_counted_and_a_device_that_somebody_has_alone_has_none_left() -> None:
    pool = Pool((Part("a", "a"), Part("b", "b"), Part("c", "c")), 3)
    taken = (held("a", "a", shared=True), held("b", shared=True), held("c"))
    assert pool.free(taken) == {"a": 1, "b": 2}
    assert pool.free((held("a", "a", "a", shared=True), held("elsewhere"))) == {"b": 3, "c": 3}


def test_a_device_that_is_not_shared_any_more_is_free_when_its_last_share_is() -> None:
    assert not Pool((Part("a", "a"),)).free((held("a", shared=True),))


def test_holders_are_read_with_their_shares() -> None:
    allocation = GPUAllocation(
        namespace="n",
        pod="p",
        pod_uid="u",
        container="main",
        resource=SHARED,
        devices=(uuid_of(0), uuid_of(1)),
        ids=(f"{uuid_of(0)}::1", f"{uuid_of(1)}::0", f"{uuid_of(0)}::2"),
    )
    (found,) = reported(whole(2), config("mixed", 3, SHARED), allocation).held
    assert found == held(uuid_of(0), uuid_of(1), uuid_of(0), shared=True, resource=SHARED)


def test_the_policy_of_shares_is_the_agents() -> None:
    plugin = msgspec.structs.replace(config("mixed", 2), shared_policy="packed")
    assert reported(whole(2), plugin).pools[GPU].policy == "packed"


def test_links_are_reported_where_pairs_differ_and_nowhere_else() -> None:
    eight = topology(whole(8), islands(8, 4))
    rows = reported(whole(8), config(), links=eight).links
    assert [len(row) for row in rows] == list(range(8))
    assert {score for row in rows for score in row} == {10, 440}
    assert rows[3] == (440, 440, 440)
    assert rows[4] == (10, 10, 10, 10)
    assert not reported(whole(8), config(), links=topology(whole(8), islands(8, 8))).links
    assert not reported(whole(8), config(), links=topology(whole(8), {})).links


def test_links_of_other_gpus_than_the_node_has_now_are_left_out() -> None:
    assert not reported(whole(4), config(), links=topology(whole(8), islands(8, 4))).links


def test_a_table_without_gpus_has_no_links() -> None:
    assert LinkTable().alike
    assert not LinkTable().rows
