"""What a container gets for its devices, and which requests are refused."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.inventories import SEVEN, instance_of, node, uuid_of, whole

from gpufleet.devices.allocation import (
    CONTROL_NODES,
    DeviceNode,
    DriverNodes,
    Grant,
    Mount,
    grant,
    parse_mig_minors,
    requested,
)
from gpufleet.devices.inventory import Inventory
from gpufleet.devices.plugin_config import DeviceListStrategy, PluginConfig, SharedResource, Sharing
from gpufleet.devices.resources import Device, Resource, offer
from gpufleet.fleet.errors import GpufleetError

PLAIN = PluginConfig()
MIXED = PluginConfig(mig_strategy="mixed")
SHARED = PluginConfig(sharing=Sharing("time-slicing", (SharedResource("nvidia.com/gpu", 2),)))
STRICT = PluginConfig(
    sharing=Sharing(
        "time-slicing", (SharedResource("nvidia.com/gpu", 2),), fail_requests_greater_than_one=True
    )
)


def by(*strategies: DeviceListStrategy, index: bool = False) -> PluginConfig:
    return PluginConfig(device_list_strategies=strategies, device_id_strategy="index" if index else "uuid")


def resource(inventory: Inventory, config: PluginConfig = PLAIN, sick: Sequence[str] = ()) -> Resource:
    return offer(inventory, config, sick).resources[0]


def refusal(found: Resource, ids: Sequence[str], config: PluginConfig = PLAIN) -> str:
    with pytest.raises(GpufleetError) as caught:
        requested(found, ids, config)
    return caught.value.reason


def granted(config: PluginConfig, devices: Sequence[Device] = (), nodes: DriverNodes | None = None) -> Grant:
    inventory = whole(2)
    every = devices or resource(inventory).devices
    return grant(every, inventory, config, nodes or DriverNodes())


def test_devices_are_named_in_the_order_of_the_node_whatever_order_the_kubelet_asks_in() -> None:
    found = requested(resource(whole(3)), [uuid_of(2), uuid_of(0)], PLAIN)
    assert [one.index for one in found] == ["0", "2"]


def test_an_id_that_was_never_issued_is_refused_even_beside_good_ones() -> None:
    assert refusal(resource(whole(2)), [uuid_of(0), uuid_of(7)]) == "DeviceNotOffered"
    assert refusal(resource(whole(2)), [f"{uuid_of(0)}::0"]) == "DeviceNotOffered"
    assert refusal(resource(whole(2), SHARED), [uuid_of(0)], SHARED) == "DeviceNotOffered"


def test_the_id_of_an_instance_that_was_destroyed_is_refused() -> None:
    assert refusal(resource(node(SEVEN[:3]), MIXED), [instance_of(0, 4)], MIXED) == "DeviceNotOffered"


def test_a_sick_device_is_refused_even_beside_healthy_ones() -> None:
    found = resource(whole(2), sick=[uuid_of(1)])
    assert refusal(found, [uuid_of(0), uuid_of(1)]) == "DeviceUnhealthy"
    assert len(requested(found, [uuid_of(0)], PLAIN)) == 1


def test_no_device_and_a_device_twice_are_refused() -> None:
    assert refusal(resource(whole(2)), []) == "NoDevicesRequested"
    assert refusal(resource(whole(2)), [uuid_of(0), uuid_of(0)]) == "NoDevicesRequested"


def test_several_replicas_are_refused_only_where_the_config_says_so() -> None:
    ids = [f"{uuid_of(0)}::0", f"{uuid_of(1)}::0"]
    assert refusal(resource(whole(2), STRICT), ids, STRICT) == "TooManyReplicas"
    assert len(requested(resource(whole(2), STRICT), ids[:1], STRICT)) == 1
    assert len(requested(resource(whole(2), SHARED), ids, SHARED)) == 2


def test_several_whole_gpus_are_no_replicas() -> None:
    strict = msgspec.structs.replace(STRICT, sharing=Sharing(fail_requests_greater_than_one=True))
    assert len(requested(resource(whole(2), strict), [uuid_of(0), uuid_of(1)], strict)) == 2


def test_a_variable_names_the_devices() -> None:
    both = f"{uuid_of(0)},{uuid_of(1)}"
    assert granted(by("envvar")) == Grant({"NVIDIA_VISIBLE_DEVICES": both})
    assert granted(by("envvar", index=True)) == Grant({"NVIDIA_VISIBLE_DEVICES": "0,1"})


def test_replicas_of_one_gpu_name_it_once() -> None:
    devices = resource(whole(1), SHARED).devices
    assert granted(SHARED, devices).envs == {"NVIDIA_VISIBLE_DEVICES": uuid_of(0)}


def test_instances_are_named_by_uuid_or_by_gpu_and_number() -> None:
    devices = resource(node(SEVEN), MIXED).devices[2:4]
    assert granted(by("envvar"), devices).envs == {
        "NVIDIA_VISIBLE_DEVICES": f"{instance_of(0, 3)},{instance_of(0, 4)}"
    }
    assert granted(by("envvar", index=True), devices).envs == {"NVIDIA_VISIBLE_DEVICES": "0:2,0:3"}


def test_mounts_name_the_devices_and_the_variable_points_at_them() -> None:
    folder = "/var/run/nvidia-container-devices"
    for config in (by("volume-mounts", index=True), by("envvar", "volume-mounts", index=True)):
        assert granted(config) == Grant(
            {"NVIDIA_VISIBLE_DEVICES": folder},
            (Mount("/dev/null", f"{folder}/0"), Mount("/dev/null", f"{folder}/1")),
        )


def test_cdi_devices_are_qualified_names_and_there_is_no_variable() -> None:
    assert granted(by("cdi-cri", index=True)) == Grant(cdi_devices=("nvidia.com/gpu=0", "nvidia.com/gpu=1"))
    assert granted(by("cdi-cri")).cdi_devices[0] == f"nvidia.com/gpu={uuid_of(0)}"


def test_a_cdi_annotation_lists_them_under_a_key_of_the_configured_prefix() -> None:
    config = msgspec.structs.replace(by("cdi-annotations", index=True), cdi_annotation_prefix="x.example/")
    ((key, value),) = granted(config).annotations.items()
    assert key.startswith("x.example/nvidia-device-plugin_")
    assert len(key.partition("/")[2]) <= 63
    assert value == "nvidia.com/gpu=0,nvidia.com/gpu=1"
    assert granted(config).cdi_devices == ()


def test_two_requests_of_one_container_have_different_annotations_and_the_same_one_has_the_same() -> None:
    one, other = resource(whole(2)).devices
    keys = {
        name
        for devices in ([one], [other], [one])
        for name in granted(by("cdi-annotations"), devices).annotations
    }
    assert len(keys) == 2
    replicas = resource(whole(1), SHARED).devices
    shared = {name for one in replicas for name in granted(by("cdi-annotations"), [one]).annotations}
    assert len(shared) == 2


def test_device_nodes_are_the_control_nodes_and_one_node_per_gpu_by_its_minor_number() -> None:
    config = PluginConfig(pass_device_specs=True, dev_root="/run/nvidia/driver/")
    found = granted(config, nodes=DriverNodes(CONTROL_NODES[:2]))
    paths = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia10", "/dev/nvidia11")
    assert found.devices == tuple(DeviceNode(f"/run/nvidia/driver{path}", path, "rw") for path in paths)
    assert found.envs == {"NVIDIA_VISIBLE_DEVICES": f"{uuid_of(0)},{uuid_of(1)}"}


def test_a_mig_device_also_needs_the_access_nodes_of_its_instances() -> None:
    text = "config 1\nmonitor 2\ngpu10/gi3/access 30\ngpu10/gi3/ci0/access 31\ngpu10/gi4/access 39\nbroken\n"
    nodes = DriverNodes(mig_minors=parse_mig_minors(text))
    config, inventory = PluginConfig(mig_strategy="mixed", pass_device_specs=True), node(SEVEN)
    third, fourth = resource(inventory, MIXED).devices[2:4]
    assert [one.host_path for one in grant([third], inventory, config, nodes).devices] == [
        "/dev/nvidia10", "/dev/nvidia-caps/nvidia-cap30", "/dev/nvidia-caps/nvidia-cap31"
    ]  # fmt: skip
    with pytest.raises(GpufleetError, match="gpu10/gi4/ci0/access"):
        grant([third, fourth], inventory, config, nodes)


def test_mig_minors_are_read_from_the_drivers_list_and_odd_lines_are_skipped() -> None:
    assert parse_mig_minors("config 1\n\ngpu0/gi1/access 3\nx y z\ngpu0/gi1/ci0/access -\n") == {
        "config": 1,
        "gpu0/gi1/access": 3,
    }


def test_flags_of_the_config_are_variables_of_the_container() -> None:
    config = PluginConfig(gds=True, mofed=True, gdrcopy=True, imex_channels=(0,))
    assert granted(config).envs == {
        "NVIDIA_VISIBLE_DEVICES": f"{uuid_of(0)},{uuid_of(1)}",
        "NVIDIA_GDRCOPY": "enabled",
        "NVIDIA_GDS": "enabled",
        "NVIDIA_MOFED": "enabled",
        "NVIDIA_IMEX_CHANNELS": "0",
    }


def test_what_is_granted_on_top_wins_over_a_variable_of_the_same_name() -> None:
    both = Grant({"A": "1", "B": "1"}, (Mount("/a", "/a"),)) | Grant({"B": "2"}, (Mount("/b", "/b"),))
    assert both == Grant({"A": "1", "B": "2"}, (Mount("/a", "/a"), Mount("/b", "/b")))


@given(st.data())
def test_a_container_sees_exactly_the_devices_that_it_was_given(data: st.DataObject) -> None:
    inventory = node(None, SEVEN, SEVEN[:2], None)
    found = data.draw(st.sampled_from(offer(inventory, MIXED).resources))
    ids = data.draw(st.lists(st.sampled_from([one.id for one in found.devices]), min_size=1, unique=True))
    devices = requested(found, ids, MIXED)
    seen = grant(devices, inventory, MIXED, DriverNodes()).envs["NVIDIA_VISIBLE_DEVICES"]
    assert sorted(seen.split(",")) == sorted(ids)
