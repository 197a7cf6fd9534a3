"""MIG configs: mig-parted's file is read as mig-parted reads it, and every product has NVIDIA's names."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gpufleet.devices.boards import make_inventory
from gpufleet.devices.inventory import GPU, Inventory
from gpufleet.devices.mig_changes import OFF, MigTarget
from gpufleet.devices.mig_config import (
    ConfigEntry,
    default_mig_configs,
    parse_mig_configs,
    resolve_mig_config,
)
from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.mig import GEOMETRIES, Geometry, Profile, place
from gpufleet.fleet.products import find_product

SHARED = Path(os.environ.get("GPUFLEET_SHARED", Path(__file__).parents[3] / "shared"))
PLACEMENTS = SHARED / "traces" / "mig" / "mig_placements.json"

DEFAULTS = """
version: v1
mig-configs:
  all-disabled:
  - devices: all
    mig-enabled: false
  all-1g.10gb:
  - device-filter: ["0x233010DE", "0x20B210DE"]
    devices: all
    mig-enabled: true
    mig-devices: {"1g.10gb": 7}
  - device-filter: "0x20B010DE"
    devices: all
    mig-enabled: true
    mig-devices: {"1g.10gb": 4}
  two-halves:
  - devices: [0, 1]
    mig-enabled: false
  - devices: [2, 3]
    mig-enabled: true
    mig-devices:
      "1g.10gb+me": 1
      "3g.40gb": 1
      "7g.80gb": 0
"""


def node(*products: str) -> Inventory:
    """A node with one GPU of each product."""
    gpus = [
        msgspec.structs.replace(
            make_inventory(find_product(name), 1, node="n").gpus[0], index=index, uuid=f"GPU-{index}"
        )
        for index, name in enumerate(products)
    ]
    return Inventory(gpus=tuple(gpus))


def one_of(geometry: Geometry, device: int = 0x233010DE, index: int = 0) -> GPU:
    return GPU(index, f"GPU-{index}", geometry.name, pci_device=device, mig="off", geometry=geometry)


def resolve(name: str, inventory: Inventory, text: str = DEFAULTS) -> Mapping[str, MigTarget]:
    return resolve_mig_config(name, parse_mig_configs(text, "config.yaml"), inventory)


def entry(**fields: Any) -> str:
    """A file with one config of one entry."""
    return json.dumps({"version": "v1", "mig-configs": {"one": [fields]}})


def refusal(text: str) -> GpufleetError:
    with pytest.raises(GpufleetError) as caught:
        parse_mig_configs(text, "config.yaml")
    assert caught.value.reason == "InvalidMigConfig"
    return caught.value


def test_a_file_is_read_with_filters_indexes_and_counts() -> None:
    configs = parse_mig_configs(DEFAULTS, "config.yaml")
    assert configs["all-disabled"] == (ConfigEntry(on=False),)
    assert configs["all-1g.10gb"][1] == ConfigEntry(on=True, profiles={"1g.10gb": 4}, filters=("0x20B010DE",))
    assert configs["two-halves"][1] == ConfigEntry(
        on=True, profiles={"1g.10gb+me": 1, "3g.40gb": 1}, devices=(2, 3)
    )


@pytest.mark.parametrize("text", ["", "version: v1", '{"version": "v1"}'], ids=["empty", "yaml", "json"])
def test_a_file_without_configs_has_none(text: str) -> None:
    assert parse_mig_configs(text, "config.yaml") == {}


@pytest.mark.parametrize(
    "text",
    [
        entry(devices="all", **{"mig-enabled": False}),
        entry(devices="all", **{"mig-enabled": False, "mig-devices": {}}),
        entry(devices="all", **{"mig-enabled": False, "mig-devices": None, "device-filter": None}),
        entry(devices=[0, 1, 99], **{"mig-enabled": True, "mig-devices": {}, "device-filter": "A MODEL"}),
        entry(devices="all", **{"mig-enabled": True, "mig-devices": {"0g.0gb": 100}}),
        entry(devices="all", **{"mig-enabled": True, "mig-devices": {"1c.2g.10gb": 1, "1g.5gb+me": 1}}),
        entry(devices="all", **{"mig-enabled": True, "mig-devices": {"1g.24gb-me": 4, "1g.24gb+me.all": 1}}),
    ],
)
def test_what_mig_parted_accepts_is_accepted(text: str) -> None:
    assert list(parse_mig_configs(text, "config.yaml")) == ["one"]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("version: v2\nmig-configs: {a: [{devices: all, mig-enabled: false}]}", "'v2'"),
        ("mig-configs: {a: [{devices: all, mig-enabled: false}]}", "version"),
        ("{}", "version"),
        ("version: v1\nmig-configs: {}", "at least one config"),
        ("version: v1\nmig-configs:", "at least one config"),
        ("version: v1\nmig-configs: {a: []}", "at least one entry"),
        ("version: v1\nmig-configs: {a: }", "at least one entry"),
        ("version: v1\nbogus: 1", "unknown field 'bogus'"),
        (entry(**{"mig-enabled": False}), "`devices`"),
        (entry(devices="all"), "`mig-enabled`"),
        (entry(devices="some", **{"mig-enabled": False}), "'some'"),
        (entry(devices={}, **{"mig-enabled": False}), "devices"),
        (entry(devices=["0"], **{"mig-enabled": False}), r"devices\[0\]"),
        (entry(devices="all", **{"mig-enabled": "yes"}), "mig-enabled"),
        (entry(devices="all", **{"mig-enabled": True}), "mig-devices is required"),
        (entry(devices="all", **{"mig-enabled": True, "mig-devices": None}), "mig-devices is required"),
        (entry(devices="all", **{"mig-enabled": False, "mig-devices": {"1g.5gb": 1}}), "mig-enabled: false"),
        (entry(devices="all", **{"mig-enabled": True, "mig-devices": {"bogus": 2}}), "'bogus' is no MIG"),
        (entry(devices="all", **{"mig-enabled": True, "mig-devices": {"1g.5gb.me": 2}}), "is no MIG profile"),
        (entry(devices="all", **{"mig-enabled": True, "mig-devices": {"1g.5gb": -1}}), "-1"),
        (entry(devices="all", **{"mig-enabled": True, "mig-devices": {"1g.5gb": "7"}}), "expected `int`"),
        (entry(devices="all", **{"mig-enabled": True, "mig-devices": {"1g.5gb": 0}}), "all counts are 0"),
        (entry(devices="all", **{"mig-enabled": False, "device-filter": 5}), "device-filter"),
        ("version: v1\nmig-configs: [", "config.yaml:"),
    ],
)  # fmt: skip
def test_what_mig_parted_refuses_is_refused(text: str, what: str) -> None:
    assert re.search(what, refusal(text).message)


def test_a_mistake_is_named_with_line_column_and_field() -> None:
    text = DEFAULTS.replace('mig-devices: {"1g.10gb": 4}', 'mig-device: {"1g.10gb": 4}')
    error = refusal(text)
    assert error.message == (
        "config.yaml:15:5: unknown field 'mig-device' (at mig-configs.all-1g.10gb[1].mig-device)"
    )
    assert error.hint == "did you mean 'mig-devices'?"
    assert refusal(DEFAULTS.replace('"3g.40gb": 1', '"3g.40gb": one')).message.startswith(
        "config.yaml:23:7: "
    )


def test_one_name_means_another_count_on_another_product() -> None:
    targets = resolve("all-1g.10gb", node("h100", "a100-40gb"))
    assert [len(targets[f"GPU-{index}"].profiles) for index in (0, 1)] == [7, 4]


def test_a_gpu_that_no_entry_concerns_is_left_alone() -> None:
    assert list(resolve("all-1g.10gb", node("h100", "h200", "l4"))) == ["GPU-0"]
    assert list(resolve("two-halves", node("h100"))) == ["GPU-0"]


def test_the_last_entry_that_concerns_a_gpu_counts() -> None:
    text = (
        "version: v1\nmig-configs: {a: [{devices: all, mig-enabled: false},"
        " {devices: [1], mig-enabled: true, mig-devices: {3g.40gb: 2}}]}"
    )
    assert resolve("a", node("h100", "h100"), text) == {
        "GPU-0": OFF,
        "GPU-1": MigTarget(on=True, profiles=("3g.40gb",) * 2),
    }


def test_all_skips_gpus_without_mig_and_an_index_does_not() -> None:
    whole = entry(devices="all", **{"mig-enabled": True, "mig-devices": {"7g.80gb": 1}})
    assert list(resolve("one", node("l4", "h100"), whole)) == ["GPU-1"]
    off = entry(devices=[0], **{"mig-enabled": False})
    assert resolve("one", node("l4"), off) == {}
    with pytest.raises(GpufleetError, match=r"GPU 0 \(NVIDIA L4\): it cannot be cut by MIG") as caught:
        resolve("one", node("l4"), whole.replace('"all"', "[0]"))
    assert caught.value.reason == "MigUnsupported"


def test_a_gpu_that_does_not_answer_is_left_alone() -> None:
    dead = GPU(0, "GPU-0", lost="fallen off the bus")
    alive = msgspec.structs.replace(node("h100").gpus[0], index=1, uuid="GPU-1")
    assert list(resolve("all-disabled", Inventory(gpus=(dead, alive)))) == ["GPU-1"]


def test_a_profile_of_another_product_is_an_error_that_says_what_the_gpu_has() -> None:
    text = entry(devices="all", **{"mig-enabled": True, "mig-devices": {"1g.5gb": 7}})
    with pytest.raises(
        GpufleetError, match=r"GPU 0 \(NVIDIA H100 80GB HBM3\): it has no profile .1g\.5gb."
    ) as caught:
        resolve("one", node("h100"), text)
    assert caught.value.reason == "UnknownMigProfile"
    assert "1g.10gb+me" in caught.value.hint


def test_more_than_a_gpu_can_hold_is_an_error_before_anything_is_touched() -> None:
    text = entry(devices="all", **{"mig-enabled": True, "mig-devices": {"3g.40gb": 2, "1g.10gb": 1}})
    with pytest.raises(GpufleetError, match=r"1x1g\.10gb,2x3g\.40gb does not fit") as caught:
        resolve("one", node("h100"), text)
    assert caught.value.reason == "MigDoesNotFit"


def test_a_compute_instance_is_accepted_where_it_is_the_whole_gpu_instance() -> None:
    text = entry(devices="all", **{"mig-enabled": True, "mig-devices": {"3c.3g.40gb": 2}})
    assert resolve("one", node("h100"), text)["GPU-0"].profiles == ("3g.40gb",) * 2
    with pytest.raises(GpufleetError, match="compute instances that share"):
        resolve("one", node("h100"), text.replace("3c.", "1c."))


def test_an_unknown_config_is_named_with_its_nearest() -> None:
    with pytest.raises(GpufleetError, match=r"there is no MIG config .all-1g\.10g.") as caught:
        resolve("all-1g.10g", node("h100"))
    assert (caught.value.reason, caught.value.hint[:24]) == ("UnknownMigConfig", "did you mean 'all-1g.10g")


def test_a_filter_that_is_no_id_is_an_error_of_the_config_that_has_it() -> None:
    text = DEFAULTS.replace('"0x20B010DE"', "A100-SXM4-40GB")
    assert resolve("all-disabled", node("h100"), text) == {"GPU-0": OFF}
    with pytest.raises(GpufleetError, match=r"A100-SXM4-40GB.* is no PCI id"):
        resolve("all-1g.10gb", node("h100"), text)


def test_a_mixed_node_gives_one_name_to_each_product_its_way() -> None:
    inventory = node("h100", "a100-40gb", "l4")
    configs = default_mig_configs(inventory)
    assert configs["all-1g.10gb"] == (
        ConfigEntry(on=True, profiles={"1g.10gb": 4}, filters=("0x20B010DE",)),
        ConfigEntry(on=True, profiles={"1g.10gb": 7}, filters=("0x233010DE",)),
    )
    assert list(resolve_mig_config("all-3g.20gb", configs, inventory)) == ["GPU-1"]
    assert resolve_mig_config("all-enabled", configs, inventory) == {
        "GPU-0": MigTarget(on=True),
        "GPU-1": MigTarget(on=True),
    }


def test_a_node_without_mig_has_only_the_configs_about_the_mode() -> None:
    assert sorted(default_mig_configs(node("l4"))) == ["all-disabled", "all-enabled"]


needs_table = pytest.mark.skipif(
    not PLACEMENTS.is_file(), reason=f"no table of placements {PLACEMENTS}; name its folder: GPUFLEET_SHARED"
)


def table() -> dict[str, list[dict[str, Any]]]:
    """The profiles of every product of the shared table."""
    found: dict[str, dict[str, Any]] = json.loads(PLACEMENTS.read_text())["gpus"]
    return {name: product["profiles"] for name, product in found.items()}


def geometry_of(name: str, profiles: list[dict[str, Any]]) -> Geometry:
    """A geometry from the table, not from our own."""
    made = {
        one["name"]: Profile(one["name"], one["compute"], one["mem_slices"], tuple(one["starts"]), one["max"])
        for one in profiles
    }
    return Geometry(name, max(profile.size for profile in made.values()), made)


@needs_table
def test_every_product_of_the_table_has_all_default_names_and_each_can_be_placed() -> None:
    for name, profiles in table().items():
        geometry = geometry_of(name, profiles)
        inventory = Inventory(gpus=(one_of(geometry),))
        configs = default_mig_configs(inventory)
        counts = {f"all-{one['name'].replace('+', '.')}": {one["name"]: one["max"]} for one in profiles}
        assert set(configs) == {"all-disabled", "all-enabled", "all-balanced", *counts}, name
        for config in configs:
            target = resolve_mig_config(config, configs, inventory)["GPU-0"]
            assert target.on == (config != "all-disabled")
            assert place(geometry, target.profiles) is not None
            if config in counts:
                assert Counter(target.profiles) == counts[config], (name, config)
        balanced = resolve_mig_config("all-balanced", configs, inventory)["GPU-0"].profiles
        shares = sorted(geometry.profiles[one].compute for one in balanced)
        assert shares == ([1, 1, 2, 3] if geometry.slots == 8 else [1, 1, 2]), name


@needs_table
def test_every_product_of_the_table_is_one_of_our_geometries() -> None:
    ours = {frozenset(geometry.profiles.items()) for geometry in GEOMETRIES.values()}
    for name, profiles in table().items():
        assert frozenset(geometry_of(name, profiles).profiles.items()) in ours, name
