"""What a node offers to the kubelet: names, ids, health, under every strategy of MIG and sharing."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.inventories import SEVEN, gpu, instance_of, node, uuid_of, whole

from gpufleet.devices.inventory import ComputeInstance, GPUInstance, Inventory
from gpufleet.devices.plugin_config import PluginConfig, SharedResource, Sharing
from gpufleet.devices.resources import Device, Offer, offer
from gpufleet.fleet.errors import GpufleetError

MIXED = PluginConfig(mig_strategy="mixed")
SINGLE = PluginConfig(mig_strategy="single")
BALANCED = ("1g.10gb", "1g.10gb", "2g.20gb", "3g.40gb")


def shared(*resources: SharedResource, mig: str = "none") -> PluginConfig:
    config = {"mixed": MIXED, "single": SINGLE}.get(mig, PluginConfig())
    return msgspec.structs.replace(config, sharing=Sharing("time-slicing", resources))


def ids(found: Offer) -> dict[str, list[str]]:
    return {resource.name: [one.id for one in resource.devices] for resource in found.resources}


def counts(found: Offer) -> dict[str, int]:
    return {name: len(devices) for name, devices in ids(found).items()}


def test_whole_gpus_are_offered_by_uuid_with_index_and_numa_node() -> None:
    found = offer(whole(2), PluginConfig()).resource("nvidia.com/gpu").devices
    assert found == (
        Device(uuid_of(0), uuid_of(0), "", "0", 0, True),
        Device(uuid_of(1), uuid_of(1), "", "1", 1, True),
    )


def test_a_node_without_gpus_offers_nothing() -> None:
    assert offer(Inventory(), PluginConfig()) == Offer()


def test_mixed_names_instances_by_profile_and_keeps_whole_gpus_beside_them() -> None:
    found = offer(node(BALANCED, None), MIXED)
    assert counts(found) == {
        "nvidia.com/gpu": 1,
        "nvidia.com/mig-1g.10gb": 2,
        "nvidia.com/mig-2g.20gb": 1,
        "nvidia.com/mig-3g.40gb": 1,
    }
    assert ids(found)["nvidia.com/gpu"] == [uuid_of(1)]


def test_a_profile_with_media_engines_has_a_dot_in_its_resource() -> None:
    assert counts(offer(node(("1g.10gb+me",)), MIXED)) == {"nvidia.com/mig-1g.10gb.me": 1}


def test_a_gpu_with_mig_on_and_no_instances_offers_nothing_under_mixed() -> None:
    assert offer(node(()), MIXED) == Offer()


def test_none_offers_whole_gpus_whatever_their_mig_mode() -> None:
    assert ids(offer(node(BALANCED, None), PluginConfig())) == {"nvidia.com/gpu": [uuid_of(0), uuid_of(1)]}


def test_single_offers_instances_of_one_profile_as_gpus() -> None:
    found = offer(node(SEVEN, SEVEN), SINGLE)
    assert counts(found) == {"nvidia.com/gpu": 14}
    assert {one.gpu for one in found.resources[0].devices} == {uuid_of(0), uuid_of(1)}
    assert found.withheld == ()


def test_single_without_mig_anywhere_offers_whole_gpus() -> None:
    assert ids(offer(whole(2), SINGLE)) == {"nvidia.com/gpu": [uuid_of(0), uuid_of(1)]}


@pytest.mark.parametrize(
    ("inventory", "why"),
    [
        (node(SEVEN, None), "MIG is on for 1 of 2 GPUs"),
        (node(SEVEN, ()), "no MIG device on GPU 1, where MIG is on"),
        (node(BALANCED), "MIG devices of several profiles: 1g.10gb, 2g.20gb, 3g.40gb"),
        (node(SEVEN, ("7g.80gb",)), "MIG devices of several profiles: 1g.10gb, 7g.80gb"),
    ],
)
def test_single_offers_nothing_and_says_why_when_the_node_is_not_of_one_kind(
    inventory: Inventory, why: str
) -> None:
    found = offer(inventory, SINGLE)
    assert found.resources == ()
    assert [(one.reason, one.message) for one in found.withheld] == [("MigConfigInvalid", why)]


def test_the_index_of_an_instance_counts_mig_devices_by_their_ids() -> None:
    """`0:1` is the second MIG device as the driver counts, and devices are listed by memory slice."""
    one = gpu(0, ("1g.10gb", "1g.10gb"))
    first, second = one.instances
    swapped = msgspec.structs.replace(first, start=second.start), msgspec.structs.replace(second, start=0)
    found = offer(Inventory(gpus=(msgspec.structs.replace(one, instances=swapped),)), MIXED)
    assert [(d.instance, d.index) for d in found.resources[0].devices] == [
        (instance_of(0, 2), "0:1"),
        (instance_of(0, 1), "0:0"),
    ]


def test_an_instance_that_no_compute_instance_fills_is_withheld_but_counted_by_the_index() -> None:
    half = GPUInstance(
        1, "2g.20gb", 0, 2, 2, (ComputeInstance(0, "MIG-half", 1), ComputeInstance(1, "MIG-x", 1))
    )
    full = GPUInstance(5, "1g.10gb", 2, 1, 1, (ComputeInstance(0, "MIG-full", 1),))
    bare = GPUInstance(6, "1g.10gb", 3, 1, 1)
    inventory = Inventory(gpus=(msgspec.structs.replace(gpu(0, ()), instances=(half, full, bare)),))
    found = offer(inventory, MIXED)
    assert ids(found) == {"nvidia.com/mig-1g.10gb": ["MIG-full"]}
    assert found.resources[0].devices[0].index == "0:2"
    assert [(one.reason, one.gpu, one.message) for one in found.withheld] == [
        ("MigInstanceNotWhole", uuid_of(0), "GPU instance 1 (2g.20gb) of GPU 0"),
        ("MigInstanceNotWhole", uuid_of(0), "GPU instance 6 (1g.10gb) of GPU 0"),
    ]


def test_replicas_have_numbered_ids_under_the_same_name() -> None:
    found = offer(whole(1), shared(SharedResource("nvidia.com/gpu", 3)))
    assert ids(found) == {"nvidia.com/gpu": [f"{uuid_of(0)}::{number}" for number in range(3)]}
    assert {(one.uuid, one.index, one.replica) for one in found.resources[0].devices} == {
        (uuid_of(0), "0", True)
    }


def test_replicas_are_renamed_and_the_old_name_is_gone() -> None:
    config = shared(SharedResource("nvidia.com/gpu", 2, "nvidia.com/gpu.shared"))
    assert counts(offer(whole(2), config)) == {"nvidia.com/gpu.shared": 4}


def test_only_the_resource_that_the_config_names_is_shared() -> None:
    config = shared(SharedResource("nvidia.com/mig-1g.10gb", 4), mig="mixed")
    assert counts(offer(node(BALANCED, None), config)) == {
        "nvidia.com/gpu": 1,
        "nvidia.com/mig-1g.10gb": 8,
        "nvidia.com/mig-2g.20gb": 1,
        "nvidia.com/mig-3g.40gb": 1,
    }


def test_devices_that_are_not_chosen_for_sharing_stay_whole() -> None:
    config = shared(SharedResource("nvidia.com/gpu", 2, "nvidia.com/gpu.shared", ("1",)))
    assert ids(offer(whole(2), config)) == {
        "nvidia.com/gpu": [uuid_of(0)],
        "nvidia.com/gpu.shared": [f"{uuid_of(1)}::0", f"{uuid_of(1)}::1"],
    }


def test_a_device_to_share_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(GpufleetError, match="SharedDeviceNotFound"):
        offer(whole(1), shared(SharedResource("nvidia.com/gpu", 2, devices=("7",))))


def test_sharing_that_is_off_shares_nothing() -> None:
    config = PluginConfig(sharing=Sharing("none", (SharedResource("nvidia.com/gpu", 4),)))
    assert counts(offer(whole(1), config)) == {"nvidia.com/gpu": 1}


@given(st.data())
def test_a_sick_gpu_takes_all_its_replicas_and_instances_with_it_and_no_others(data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.sampled_from([None, (), SEVEN, BALANCED]), min_size=1, max_size=5))
    replicas = data.draw(st.integers(1, 4))
    config = shared(
        *(SharedResource(name, replicas) for name in ("nvidia.com/gpu", "nvidia.com/mig-1g.10gb")),
        mig="mixed",
    )
    sick = data.draw(st.sets(st.sampled_from(range(len(cuts)))))
    well, ill = offer(node(*cuts), config), offer(node(*cuts), config, {uuid_of(one) for one in sick})
    assert ids(well) == ids(ill)
    for resource in ill.resources:
        for one in resource.devices:
            assert one.healthy == (one.gpu not in {uuid_of(index) for index in sick})


def test_a_lost_gpu_keeps_the_devices_that_it_had_all_of_them_unhealthy() -> None:
    config = shared(SharedResource("nvidia.com/mig-1g.10gb", 2), mig="mixed")
    before = offer(node(BALANCED, SEVEN), config)
    fallen = Inventory(gpus=(gpu(0, lost="fallen off the bus"), gpu(1, SEVEN, numa_node=1)))
    after = offer(fallen, config, before=before)
    assert ids(after) == ids(before)
    assert {one.gpu: one.healthy for r in after.resources for one in r.devices} == {
        uuid_of(0): False,
        uuid_of(1): True,
    }
    assert offer(node(BALANCED, SEVEN), config, before=after) == before


def test_a_gpu_that_was_lost_from_the_start_is_an_unhealthy_whole_one() -> None:
    found = offer(Inventory(gpus=(gpu(0, lost="gone"),)), MIXED)
    assert [(one.id, one.healthy) for one in found.resource("nvidia.com/gpu").devices] == [
        (uuid_of(0), False)
    ]


def test_a_lost_gpu_does_not_make_a_single_node_invalid() -> None:
    before = offer(node(SEVEN, SEVEN), SINGLE)
    after = offer(Inventory(gpus=(gpu(0, SEVEN), gpu(1, lost="gone"))), SINGLE, before=before)
    assert ids(after) == ids(before)
    assert sum(one.healthy for one in after.resources[0].devices) == 7


def test_the_ids_of_all_resources_are_different_and_within_the_protocols_63_characters() -> None:
    config = shared(SharedResource("nvidia.com/gpu", 20), mig="mixed")
    found = [one for devices in ids(offer(node(None, BALANCED, SEVEN), config)).values() for one in devices]
    assert len(set(found)) == len(found) == 20 + 4 + 7
    assert max(map(len, found)) <= 63
