"""Which CDI names a node needs and a runtime finds, and the commands that make a spec."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.inventories import SEVEN, gpu, instance_of, node, uuid_of, whole

from gpufleet.devices.allocation import CDI_KIND, DriverNodes, grant
from gpufleet.devices.cdi import (
    CdiDevice,
    SpecFile,
    cdi_devices,
    missing,
    output_path,
    parse_spec,
    plan_refresh,
    resolvable,
    settled,
    why_missing,
)
from gpufleet.devices.inventory import Inventory
from gpufleet.devices.plugin_config import DeviceListStrategy, PluginConfig, SharedResource, Sharing
from gpufleet.devices.resources import offer

CTK = "/usr/bin/nvidia-ctk"
RUN = "/var/run/cdi"
CRI = PluginConfig(mig_strategy="mixed", device_list_strategies=("cdi-cri",))
INDEX = msgspec.structs.replace(CRI, device_id_strategy="index")


def spec(path: str, *names: str, kind: str = CDI_KIND) -> SpecFile:
    return SpecFile(path, kind, frozenset(names))


def wanted(inventory: Inventory, config: PluginConfig) -> frozenset[CdiDevice]:
    return cdi_devices(offer(inventory, config), inventory, config)


def commands(config: PluginConfig = CRI, toolkit: str = CTK) -> list[str]:
    plan = plan_refresh(config, toolkit, f"{RUN}/nvidia.yaml", f"{RUN}/.new")
    return [" ".join(command.argv) for command in plan.commands]


# Names

CUTS = st.lists(st.sampled_from([None, SEVEN, SEVEN[:3], ()]), min_size=1, max_size=4)


@given(CUTS, st.sampled_from([CRI, INDEX]), st.booleans())
def test_every_name_that_an_allocation_answers_is_wanted_in_the_spec(
    cuts: Sequence[Sequence[str] | None], config: PluginConfig, shared: bool
) -> None:
    if shared:
        sharing = Sharing("time-slicing", (SharedResource("nvidia.com/gpu", 3),))
        config = msgspec.structs.replace(config, sharing=sharing)
    inventory = node(*cuts)
    found = offer(inventory, config)
    answered = {
        name
        for resource in found.resources
        for device in resource.devices
        for name in grant([device], inventory, config, DriverNodes()).cdi_devices
    }
    assert answered == {f"{CDI_KIND}={one.name}" for one in cdi_devices(found, inventory, config)}


def test_nothing_is_wanted_without_cdi_and_nothing_of_a_gpu_that_is_lost() -> None:
    assert wanted(whole(2), PluginConfig()) == frozenset()
    before = offer(whole(2), CRI)
    lost = Inventory(gpus=(gpu(0, lost="fell off the bus"), gpu(1)))
    found = cdi_devices(offer(lost, CRI, before=before), lost, CRI)
    assert {one.uuid for one in found} == {uuid_of(1)}


def test_an_instance_that_was_cut_anew_under_an_old_index_is_another_device() -> None:
    before, after = wanted(node(SEVEN[:2]), INDEX), wanted(node(("2g.20gb", "1g.10gb")), INDEX)
    assert {one.name for one in before} == {one.name for one in after} == {"0:0", "0:1"}
    moved = msgspec.structs.replace(gpu(0, SEVEN[:2]), minor=5)
    assert not wanted(Inventory(gpus=(moved,)), INDEX) & before
    newer = msgspec.structs.replace(node(SEVEN[:2]), driver="580.1")
    assert not wanted(newer, INDEX) & before


def as_the_runtime_does(specs: Sequence[SpecFile], folders: Sequence[str]) -> set[str]:
    """How the Go package of CDI reads folders: one after the other, each in the order of its files."""
    found, conflicts = dict[str, int](), set[str]()
    for rank, folder in enumerate(folders):
        for one in sorted((s for s in specs if s.folder == folder), key=lambda s: s.path):
            for name in one.names if one.kind == CDI_KIND else ():
                if found.get(name) == rank:
                    conflicts.add(name)
                found[name] = rank
    return set(found) - conflicts


FILES = st.builds(
    spec,
    st.sampled_from([f"{folder}/{file}" for folder in ("/etc/cdi", RUN) for file in ("a.yaml", "b.json")]),
    st.sampled_from("xyz"),
    st.sampled_from("xyz"),
    kind=st.sampled_from([CDI_KIND, "management.nvidia.com/gpu"]),
)


@given(st.lists(FILES, max_size=4, unique_by=lambda one: one.path))
def test_a_name_is_found_when_the_runtime_finds_it(specs: list[SpecFile]) -> None:
    assert resolvable(specs) == as_the_runtime_does(specs, ("/etc/cdi", RUN))


def test_a_uuid_in_a_spec_is_sure_and_an_index_only_in_one_that_was_made_for_these_devices() -> None:
    specs = [spec(f"{RUN}/nvidia.yaml", uuid_of(0), "0")]
    by_uuid, by_index = wanted(whole(2), CRI), wanted(whole(2), INDEX)
    none = frozenset[CdiDevice]()
    assert {one.name for one in missing(by_uuid, none, specs)} == {uuid_of(1)}
    assert {one.name for one in missing(by_index, none, specs)} == {"0", "1"}
    assert {one.name for one in missing(by_index, by_index, specs)} == {"1"}


def test_a_device_in_two_specs_and_one_in_none_have_different_reasons() -> None:
    one, other = spec(f"{RUN}/nvidia.yaml", uuid_of(0)), spec(f"{RUN}/old.json", uuid_of(0))
    devices = wanted(whole(2), CRI)
    reasons = why_missing(missing(devices, devices, [one, other]), [one, other])
    assert [reason.code for reason in reasons] == ["CdiSpecConflict", "CdiDeviceUnnamed"]
    assert [reason.subject for reason in reasons] == [uuid_of(0), uuid_of(1)]
    assert one.path in reasons[0].message
    assert other.path in reasons[0].message


@pytest.mark.parametrize(
    ("there", "output"),
    [
        ([], f"{RUN}/nvidia.yaml"),
        ([spec(f"{RUN}/nvidia.json", "0")], f"{RUN}/nvidia.json"),
        ([spec(f"{RUN}/own.yaml", "0")], f"{RUN}/own.yaml"),
        ([spec(f"{RUN}/nvidia.yaml", "0"), spec(f"{RUN}/extra.yaml", "x")], f"{RUN}/nvidia.yaml"),
        ([spec("/etc/cdi/nvidia.json", "0")], f"{RUN}/nvidia.yaml"),
        ([spec(f"{RUN}/nvidia.yaml", "all", kind="management.nvidia.com/gpu")], f"{RUN}/nvidia.json"),
    ],
)
def test_the_spec_is_made_in_the_place_of_the_one_that_is_there_and_never_of_another_kind(
    there: list[SpecFile], output: str
) -> None:
    assert output_path(there, RUN) == output


# Commands


def test_nodes_are_created_before_the_spec_is_made_and_only_the_spec_is_required() -> None:
    plan = plan_refresh(CRI, CTK, f"{RUN}/nvidia.json", f"{RUN}/.new")
    assert [(one.argv[0], one.required) for one in plan.commands] == [
        ("nvidia-smi", False),
        (CTK, False),
        (CTK, True),
    ]
    assert " ".join(plan.commands[-1].argv) == (
        f"{CTK} cdi generate --format=json --output={RUN}/.new/nvidia.json"
        " --device-name-strategy=index --device-name-strategy=uuid --vendor=nvidia.com --class=gpu"
    )


def test_the_way_to_name_devices_that_is_needed_comes_last() -> None:
    assert "=uuid --device-name-strategy=index " in commands(INDEX)[-1]
    assert "=index --device-name-strategy=uuid " in commands(CRI)[-1]


def test_a_driver_in_a_container_is_described_and_asked_below_its_own_root() -> None:
    config = msgspec.structs.replace(CRI, driver_root="/run/nvidia/driver")
    query, create, generate = commands(config)
    assert query == "chroot /run/nvidia/driver nvidia-smi -L"
    assert create.endswith("--driver-root=/run/nvidia/driver --dev-root=/")
    assert generate.endswith("--driver-root=/run/nvidia/driver --dev-root=/")
    same = msgspec.structs.replace(config, dev_root="/run/nvidia/driver")
    assert commands(same)[-1].endswith("--driver-root=/run/nvidia/driver")


def test_hooks_run_the_toolkit_where_it_is_or_where_the_config_says() -> None:
    elsewhere = "/usr/local/nvidia/toolkit/nvidia-ctk"
    assert "--nvidia-ctk-path" not in commands()[-1]
    assert commands(toolkit=elsewhere)[-1].endswith(f"--nvidia-ctk-path={elsewhere}")
    config = msgspec.structs.replace(CRI, cdi_hook_path="/opt/hook")
    assert commands(config)[-1].endswith("--nvidia-ctk-path=/opt/hook")


# Without a toolkit


@pytest.mark.parametrize(
    ("asked", "left"),
    [
        (("cdi-cri",), ("envvar",)),
        (("cdi-annotations", "cdi-cri"), ("envvar",)),
        (("cdi-cri", "volume-mounts"), ("volume-mounts",)),
    ],
)
def test_without_a_toolkit_devices_are_named_otherwise_and_a_reason_says_so(
    asked: tuple[DeviceListStrategy, ...], left: tuple[DeviceListStrategy, ...]
) -> None:
    config = msgspec.structs.replace(CRI, device_list_strategies=asked)
    found, reasons = settled(config, "")
    assert found.device_list_strategies == left
    assert [reason.code for reason in reasons] == ["CdiToolkitMissing"]
    assert ", ".join(left) in reasons[0].message
    assert settled(config, CTK) == (config, ())


def test_without_cdi_in_the_config_nobody_misses_a_toolkit() -> None:
    assert settled(PluginConfig(), "") == (PluginConfig(), ())


# Specs


def test_what_is_no_spec_has_no_names() -> None:
    wrong: list[object] = [None, 3, [], {}, {"kind": CDI_KIND, "devices": 3}, {"devices": [1, {}, "0"]}]
    for value in wrong:
        assert parse_spec("/x.yaml", value).names == frozenset()
    value = {"kind": CDI_KIND, "devices": [{"name": instance_of(0, 1)}, {"name": "all"}]}
    assert parse_spec("/x.yaml", value) == spec("/x.yaml", instance_of(0, 1), "all")
