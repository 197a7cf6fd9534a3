"""GPU labels: whole maps for many products and modes, derived by hand from the documented rules."""

from __future__ import annotations

import random
import re
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpufleet.devices.feature_labels import feature_labels, label_value
from gpufleet.devices.inventory import GPU, ComputeInstance, Engines, GPUInstance, Inventory, VirtualGPU
from gpufleet.devices.plugin_config import PluginConfig, SharedResource, Sharing
from gpufleet.fleet.errors import GpufleetError

N = "nvidia.com/"
VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9\-_.]{0,61}[A-Za-z0-9])?)?")
KEY = re.compile(r"[a-z.]+/[A-Za-z0-9]([A-Za-z0-9\-_.]{0,61}[A-Za-z0-9])?")


class Row(NamedTuple):
    """A product as the driver tells it, and what its labels must say. `slice` is its smallest MIG profile."""

    name: str
    memory: int
    major: int
    minor: int
    family: str
    slice: str = ""
    slice_memory: int = 0
    slices: int = 7
    multiprocessors: int = 0

    @property
    def product(self) -> str:
        return self.name.replace(" ", "-")


ROWS = (
    # driver's name              MiB     cc      family          slice       MiB   n  SMs
    Row("NVIDIA A100-SXM4-40GB",   40960,  8, 0, "ampere",       "1g.5gb",   4864, 7, 14),
    Row("NVIDIA A100-SXM4-80GB",   81920,  8, 0, "ampere",       "1g.10gb",  9728, 7, 14),
    Row("NVIDIA A100-PCIE-40GB",   40960,  8, 0, "ampere",       "1g.5gb",   4864, 7, 14),
    Row("NVIDIA A100 80GB PCIe",   81920,  8, 0, "ampere",       "1g.10gb",  9728, 7, 14),
    Row("NVIDIA A30",              24576,  8, 0, "ampere",       "1g.6gb",   5952, 4, 14),
    Row("NVIDIA H100 80GB HBM3",   81559,  9, 0, "hopper",       "1g.10gb",  9984, 7, 16),
    Row("NVIDIA H100 NVL",         95830,  9, 0, "hopper",       "1g.12gb", 11008, 7, 16),
    Row("NVIDIA H100 PCIe",        81559,  9, 0, "hopper",       "1g.10gb",  9984, 7, 14),
    Row("NVIDIA H200 NVL",        143771,  9, 0, "hopper",       "1g.18gb", 16384, 7, 16),
    Row("NVIDIA H200",            143771,  9, 0, "hopper",       "1g.18gb", 16384, 7, 16),
    Row("NVIDIA B200",            183359, 10, 0, "blackwell",    "1g.23gb", 22528, 7, 18),
    Row("NVIDIA GB200",           189471, 10, 0, "blackwell",    "1g.23gb", 23040, 7, 18),
    Row("NVIDIA L4",               23034,  8, 9, "ada-lovelace"),
    Row("NVIDIA L40S",             46068,  8, 9, "ada-lovelace"),
    Row("Tesla T4",                15360,  7, 5, "turing"),
    Row("NVIDIA A10G",             23028,  8, 6, "ampere"),
    Row("Tesla V100-SXM2-16GB",    16384,  7, 0, "volta"),
)  # fmt: skip
BY_NAME = {row.name: row for row in ROWS}
H100, L4, T4 = (BY_NAME[name] for name in ("NVIDIA H100 80GB HBM3", "NVIDIA L4", "Tesla T4"))
GPUS = 2
WITHOUT_SHARING = Sharing()
SHARINGS = {
    "none": WITHOUT_SHARING,
    "time-slicing": Sharing("time-slicing", (SharedResource("nvidia.com/gpu", 4),)),
    "renamed": Sharing("time-slicing", (SharedResource("nvidia.com/gpu", 4, "nvidia.com/gpu.shared"),)),
    "mps": Sharing("mps", (SharedResource("nvidia.com/gpu", 4),)),
}
# sharing         suffix      replicas  strategy
SHOWN = {
    "none":         ("",        "1",     "none"),
    "time-slicing": ("-SHARED", "4",     "time-slicing"),
    "renamed":      ("",        "4",     "time-slicing"),
    "mps":          ("-SHARED", "4",     "mps"),
}  # fmt: skip


def instance(row: Row, number: int) -> GPUInstance:
    """The smallest instance of a product, with one engine for copies and one to decode."""
    whole = ComputeInstance(
        0, f"MIG-{number}", 1, row.multiprocessors, row.slice_memory, Engines(copy=1, decoder=1)
    )
    return GPUInstance(number, row.slice, number, 1, 1, (whole,))


def node(row: Row, cut: tuple[int | None, ...]) -> Inventory:
    """A node of a product; each GPU is cut into that many of its smallest instances (None: MIG is off)."""
    off = "off" if row.slice else "unsupported"
    gpus = tuple(
        GPU(
            index=index,
            uuid=f"GPU-{index}",
            name=row.name,
            pci_class=0x030200,
            memory_mib=row.memory,
            capability=(row.major, row.minor),
            mig=off if slices is None else "on",  # type: ignore[arg-type]
            instances=tuple(instance(row, number) for number in range(slices or 0)),
        )
        for index, slices in enumerate(cut)
    )
    return Inventory("580.95.05", "13.580", (13, 0), "DGXH100 920 ", gpus)


def uncut(row: Row, sharing: str, strategy: str) -> dict[str, str]:
    """What must be said of a node whose GPUs are all whole."""
    suffix, replicas, shown = SHOWN[sharing]
    found = {
        f"{N}vgpu.present": "false",
        f"{N}cuda.driver.major": "580",
        f"{N}cuda.driver.minor": "95",
        f"{N}cuda.driver.rev": "05",
        f"{N}cuda.driver-version.major": "580",
        f"{N}cuda.driver-version.minor": "95",
        f"{N}cuda.driver-version.revision": "05",
        f"{N}cuda.driver-version.full": "580.95.05",
        f"{N}cuda.runtime.major": "13",
        f"{N}cuda.runtime.minor": "0",
        f"{N}cuda.runtime-version.major": "13",
        f"{N}cuda.runtime-version.minor": "0",
        f"{N}cuda.runtime-version.full": "13.0",
        f"{N}gpu.machine": "DGXH100-920",
        f"{N}gpu.mode": "compute",
        f"{N}gpu.product": row.product + suffix,
        f"{N}gpu.count": "2",
        f"{N}gpu.replicas": replicas,
        f"{N}gpu.sharing-strategy": shown,
        f"{N}gpu.memory": str(row.memory),
        f"{N}gpu.family": row.family,
        f"{N}gpu.compute.major": str(row.major),
        f"{N}gpu.compute.minor": str(row.minor),
        f"{N}mig.capable": "true" if row.slice else "false",
        f"{N}mps.capable": "true" if sharing == "mps" else "false",
    }
    return found if strategy == "none" else found | {f"{N}mig.strategy": strategy}


def part(row: Row, key: str, sharing: str) -> dict[str, str]:
    """What must be said of MIG devices under a key."""
    suffix, replicas, shown = SHOWN[sharing]
    return {
        f"{N}{key}.product": f"{row.product}-MIG-{row.slice}{suffix}",
        f"{N}{key}.count": str(GPUS * row.slices),
        f"{N}{key}.replicas": replicas,
        f"{N}{key}.sharing-strategy": shown,
        f"{N}{key}.memory": str(row.slice_memory),
        f"{N}{key}.multiprocessors": str(row.multiprocessors),
        f"{N}{key}.slices.gi": "1",
        f"{N}{key}.slices.ci": "1",
        f"{N}{key}.engines.copy": "1",
        f"{N}{key}.engines.decoder": "1",
        f"{N}{key}.engines.encoder": "0",
        f"{N}{key}.engines.jpeg": "0",
        f"{N}{key}.engines.ofa": "0",
    }


CUT = {f"{N}gpu.replicas": "0", f"{N}gpu.sharing-strategy": "none"}


def invalid(row: Row) -> dict[str, str]:
    return {
        f"{N}gpu.product": f"{row.product}-MIG-INVALID",
        f"{N}gpu.count": "0",
        f"{N}gpu.replicas": "0",
        f"{N}gpu.sharing-strategy": "",
        f"{N}gpu.memory": "0",
    }


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("strategy", ["none", "single", "mixed"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.product)
def test_whole_gpus_are_labelled_by_the_rules(row: Row, strategy: str, sharing: str) -> None:
    config = PluginConfig(mig_strategy=strategy, sharing=SHARINGS[sharing])  # type: ignore[arg-type]
    assert feature_labels(node(row, (None, None)), config) == uncut(row, sharing, strategy)


CUTTABLE = [row for row in ROWS if row.slice]
INVALID: dict[str, tuple[int | None, ...]] = {
    "empty": (0, 0),
    "one empty": (1, 0),
    "one whole": (1, None),
}
"""Cuts with which the strategy `single` cannot be."""


def test_the_tables_have_ten_products_that_can_be_cut_and_all_in_use_that_cannot() -> None:
    assert len({row.product for row in CUTTABLE}) >= 10
    assert {"NVIDIA-L4", "NVIDIA-L40S", "Tesla-T4", "NVIDIA-A10G"} <= {row.product for row in ROWS}


@pytest.mark.parametrize("sharing", ["none", "time-slicing", "renamed"])
@pytest.mark.parametrize("row", CUTTABLE, ids=lambda row: row.product)
def test_mig_devices_are_labelled_by_the_rules(row: Row, sharing: str) -> None:
    inventory, whole = node(row, (row.slices, row.slices)), {f"{N}gpu.product": row.product}
    config = PluginConfig(mig_strategy="none", sharing=SHARINGS[sharing])
    assert feature_labels(inventory, config) == uncut(row, sharing, "none") | whole | CUT
    config = PluginConfig(mig_strategy="single", sharing=SHARINGS[sharing])
    assert feature_labels(inventory, config) == uncut(row, sharing, "single") | part(row, "gpu", sharing)
    config = PluginConfig(mig_strategy="mixed", sharing=SHARINGS[sharing])
    slices = part(row, f"mig-{row.slice}", "none")
    assert feature_labels(inventory, config) == uncut(row, sharing, "mixed") | whole | CUT | slices


@pytest.mark.parametrize("sharing", ["none", "time-slicing", "renamed"])
@pytest.mark.parametrize("cut", INVALID.values(), ids=INVALID)
@pytest.mark.parametrize("row", CUTTABLE, ids=lambda row: row.product)
def test_the_strategy_single_says_where_it_cannot_be(
    row: Row, cut: tuple[int | None, ...], sharing: str
) -> None:
    config = PluginConfig(mig_strategy="single", sharing=SHARINGS[sharing])
    assert feature_labels(node(row, cut), config) == uncut(row, sharing, "single") | invalid(row)


@pytest.mark.parametrize("row", CUTTABLE, ids=lambda row: row.product)
def test_two_profiles_are_invalid_under_single_and_told_apart_under_mixed(row: Row) -> None:
    inventory = node(row, (1, 1))
    other = msgspec.structs.replace(inventory.gpus[1].instances[0], profile="2g.99gb+me", slices=2)
    gpus = (inventory.gpus[0], msgspec.structs.replace(inventory.gpus[1], instances=(other,)))
    inventory = msgspec.structs.replace(inventory, gpus=gpus)
    config = PluginConfig(mig_strategy="single")
    assert feature_labels(inventory, config) == uncut(row, "none", "single") | invalid(row)
    found = feature_labels(inventory, PluginConfig(mig_strategy="mixed"))
    assert found[f"{N}mig-{row.slice}.count"] == "1"
    assert found[f"{N}mig-1c.2g.99gb.me.product"] == f"{row.product}-MIG-1c.2g.99gb.me"


@pytest.mark.parametrize("cut", ["whole slices", "empty", "one empty", "one whole"])
@pytest.mark.parametrize("strategy", ["none", "single", "mixed"])
@pytest.mark.parametrize("row", CUTTABLE, ids=lambda row: row.product)
def test_mps_with_mig_is_refused(row: Row, strategy: str, cut: str) -> None:
    cuts = {"whole slices": (row.slices, row.slices), **INVALID}[cut]
    config = PluginConfig(mig_strategy=strategy, sharing=SHARINGS["mps"])  # type: ignore[arg-type]
    with pytest.raises(GpufleetError, match="MIG mode cannot be shared"):
        feature_labels(node(row, cuts), config)


@pytest.mark.parametrize("sharing", ["time-slicing", "renamed"])
@pytest.mark.parametrize("row", CUTTABLE, ids=lambda row: row.product)
def test_shared_mig_devices_say_so_and_the_gpus_around_them_do_not(row: Row, sharing: str) -> None:
    resource = f"{N}mig-{row.slice}"
    renamed = f"{resource}.shared" if sharing == "renamed" else ""
    shared = Sharing("time-slicing", (SharedResource(resource, 4, renamed),))
    config = PluginConfig(mig_strategy="mixed", sharing=shared)
    expected = uncut(row, "none", "mixed") | CUT | part(row, f"mig-{row.slice}", sharing)
    assert feature_labels(node(row, (row.slices, row.slices)), config) == expected


@pytest.mark.parametrize("sharing", ["none", "time-slicing", "renamed"])
@pytest.mark.parametrize("row", CUTTABLE, ids=lambda row: row.product)
def test_a_whole_gpu_beside_a_cut_one_speaks_for_both(row: Row, sharing: str) -> None:
    """Both are counted, and what is shared is the whole one."""
    inventory = node(row, (row.slices, None))
    config = PluginConfig(mig_strategy="none", sharing=SHARINGS[sharing])
    assert feature_labels(inventory, config) == uncut(row, sharing, "none")
    config = PluginConfig(mig_strategy="mixed", sharing=SHARINGS[sharing])
    slices = part(row, f"mig-{row.slice}", "none") | {f"{N}mig-{row.slice}.count": str(row.slices)}
    assert feature_labels(inventory, config) == uncut(row, sharing, "mixed") | slices


def test_a_node_without_gpus_has_hardly_any_labels() -> None:
    assert feature_labels(Inventory("580.95.05"), PluginConfig()) == {f"{N}vgpu.present": "false"}
    lost = Inventory("580.95.05", gpus=(GPU(0, "GPU-0", lost="no answer"),))
    assert feature_labels(lost, PluginConfig(), 17) == {
        f"{N}vgpu.present": "false",
        f"{N}gfd.timestamp": "17",
    }


def test_what_only_some_nodes_have() -> None:
    inventory = node(H100, (None, None))
    fabric = [msgspec.structs.replace(gpu, clique="7b968a6d.1") for gpu in inventory.gpus]
    inventory = msgspec.structs.replace(
        inventory, driver="550.54", machine="", gpus=tuple(fabric), vgpu=VirtualGPU("550.90", "r550_87")
    )
    found = feature_labels(inventory, PluginConfig())
    assert found[f"{N}gpu.clique"] == "7b968a6d.1"
    assert found[f"{N}cuda.driver-version.revision"] == found[f"{N}cuda.driver.rev"] == ""
    assert found[f"{N}gpu.machine"] == "unknown"
    assert found[f"{N}vgpu.host-driver-branch"] == "r550_87"
    apart = (fabric[0], msgspec.structs.replace(fabric[1], clique="7b968a6d.2", pci_class=0x030000))
    found = feature_labels(msgspec.structs.replace(inventory, gpus=apart), PluginConfig())
    assert f"{N}gpu.clique" not in found
    assert found[f"{N}gpu.mode"] == "unknown"


def test_a_node_of_several_models_has_one_map_whatever_the_order() -> None:
    l4, t4 = node(L4, (None,)).gpus[0], node(T4, (None,)).gpus[0]
    models = [t4, l4, l4, t4, l4]
    gpus = [msgspec.structs.replace(gpu, index=i, uuid=f"GPU-{i}") for i, gpu in enumerate(models)]
    draw, maps = random.Random(5), set()
    for _ in range(1000):
        draw.shuffle(gpus)
        inventory = Inventory("580.95.05", gpus=tuple(gpus))
        maps.add(tuple(sorted(feature_labels(inventory, PluginConfig()).items())))
    assert len(maps) == 1
    found = dict(maps.pop())
    assert (found[f"{N}gpu.product"], found[f"{N}gpu.count"]) == ("NVIDIA-L4", "3")
    assert found["gpufleet.dev/gpu.heterogeneous"] == "true"
    assert found["gpufleet.dev/gpu.Tesla-T4.count"] == "2"
    assert found["gpufleet.dev/gpu.NVIDIA-L4.memory"] == "23034"


def test_a_node_of_several_models_that_are_cut_has_one_map_whatever_the_order() -> None:
    a100, h100 = node(BY_NAME["NVIDIA A100-SXM4-80GB"], (7,)).gpus[0], node(H100, (7,)).gpus[0]
    models = [h100, a100, a100, h100]
    gpus = [msgspec.structs.replace(gpu, index=i, uuid=f"GPU-{i}") for i, gpu in enumerate(models)]
    draw = random.Random(6)
    for strategy in ("single", "mixed"):
        maps = set()
        for _ in range(1000):
            draw.shuffle(gpus)
            inventory = Inventory("580.95.05", gpus=tuple(gpus))
            config = PluginConfig(mig_strategy=strategy)
            maps.add(tuple(sorted(feature_labels(inventory, config).items())))
        assert len(maps) == 1
        key = "gpu" if strategy == "single" else "mig-1g.10gb"
        found = dict(maps.pop())
        assert found[f"{N}{key}.product"] == "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb", "of the lowest index"
        assert found[f"{N}{key}.count"] == "28"


def test_of_two_models_as_frequent_the_one_with_the_lowest_index_speaks() -> None:
    l4, t4 = node(L4, (None,)).gpus[0], node(T4, (None,)).gpus[0]
    for first, second in ((l4, t4), (t4, l4)):
        gpus = (msgspec.structs.replace(second, index=1), msgspec.structs.replace(first, index=0))
        found = feature_labels(Inventory("580.95.05", gpus=gpus), PluginConfig())
        assert found[f"{N}gpu.product"] == label_value(first.name)


texts = st.text(max_size=200)
versions = st.lists(texts.filter(lambda text: "." not in text), min_size=2, max_size=3).map(".".join)


@given(st.lists(texts, min_size=1, max_size=3), texts, versions, texts, texts, st.booleans())
def test_every_key_and_value_is_valid_whatever_the_driver_says(
    names: list[str], machine: str, driver: str, clique: str, host: str, single: bool
) -> None:
    first = node(H100, (7,)).gpus[0]
    gpus = tuple(
        msgspec.structs.replace(first, index=index, uuid=f"GPU-{index}", name=name, clique=clique)
        for index, name in enumerate(names)
    )
    inventory = Inventory(driver, "13.580", (13, 0), machine, gpus, VirtualGPU(host, host))
    config = PluginConfig(mig_strategy="single" if single else "mixed", sharing=SHARINGS["time-slicing"])
    for key, value in feature_labels(inventory, config).items():
        assert KEY.fullmatch(key), key
        assert VALUE.fullmatch(value), (key, value)
