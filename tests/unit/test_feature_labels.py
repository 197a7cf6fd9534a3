"""GPU Feature Discovery's labels, to the letter."""

from __future__ import annotations

from gpufleet.devices.labels import feature_labels
from gpufleet.devices.simulated import NodeDevices, make_devices
from gpufleet.fleet.products import find_product


def test_a_plain_h100_node() -> None:
    labels = feature_labels(make_devices("f", "n", find_product("h100"), 8))
    expected = {
        "nvidia.com/gpu.present": "true",
        "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3",
        "nvidia.com/gpu.count": "8",
        "nvidia.com/gpu.memory": "81559",
        "nvidia.com/gpu.family": "hopper",
        "nvidia.com/gpu.compute.major": "9",
        "nvidia.com/gpu.compute.minor": "0",
        "nvidia.com/gpu.replicas": "1",
        "nvidia.com/gpu.sharing-strategy": "none",
        "nvidia.com/gpu.mode": "compute",
        "nvidia.com/mig.capable": "true",
        "nvidia.com/mig.strategy": "mixed",
        "nvidia.com/mps.capable": "false",
    }
    assert expected.items() <= labels.items()
    assert (
        labels["nvidia.com/cuda.driver.major"] == labels["nvidia.com/cuda.driver-version.full"].split(".")[0]
    )


def test_a_node_cut_by_mig_counts_its_instances_per_profile() -> None:
    state = make_devices("f", "n", find_product("h100"), 2, profiles=["3g.40gb", "1g.10gb+me"])
    labels = feature_labels(state)
    assert labels["nvidia.com/gpu.replicas"] == "0"
    assert labels["nvidia.com/mig-3g.40gb.count"] == "2"
    assert labels["nvidia.com/mig-3g.40gb.product"] == "NVIDIA-H100-80GB-HBM3-MIG-3g.40gb"
    assert labels["nvidia.com/mig-3g.40gb.slices.gi"] == "3"
    assert labels["nvidia.com/mig-1g.10gb.me.product"] == "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb.me"


def test_a_shared_product_says_so_unless_its_resource_is_renamed() -> None:
    l4 = find_product("l4")
    plain = feature_labels(make_devices("f", "n", l4, 4, replicas=4))
    renamed = feature_labels(make_devices("f", "n", l4, 4, replicas=4, renamed=True))
    assert (plain["nvidia.com/gpu.product"], renamed["nvidia.com/gpu.product"]) == (
        "NVIDIA-L4-SHARED",
        "NVIDIA-L4",
    )
    assert plain["nvidia.com/gpu.replicas"] == "4"
    assert plain["nvidia.com/gpu.sharing-strategy"] == "time-slicing"
    assert plain["nvidia.com/mig.capable"] == "false"
    assert "nvidia.com/mig.strategy" not in plain


def test_a_node_without_gpus_has_none_of_them() -> None:
    assert feature_labels(NodeDevices()) == {}
