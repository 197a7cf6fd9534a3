"""The simulated backend and the real one, on a fake NVML, say the same of the same GPUs."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from msgspec.structs import replace
from tests.node.backend_pairs import GONE, Pair, unnamed
from tests.node.nvml_nodes import NvmlNode, cut_node, whole_node

from gpufleet.devices.backend import Backend, BackendError, Event, Sample
from gpufleet.devices.feature_labels import feature_labels
from gpufleet.devices.inventory import Inventory
from gpufleet.devices.missing import NO_DEVICE
from gpufleet.devices.plugin_config import PluginConfig
from gpufleet.devices.resources import offer
from gpufleet.devices.timeline import (
    AddErrors,
    FindGPU,
    LoseGPU,
    RaiseXid,
    ResetGPU,
    SetLoad,
    SetRecovery,
    SetTemperature,
    Throttle,
)

PRODUCTS = ("h100", "a100", "a30", "l4", "t4", "b200")
WITH_MIG = ("h100", "a100", "a30", "b200")
LONG = 300.0
"""Seconds after which a simulated load changes no more."""

TOLERANCES = {
    # what a driver rounds: power to mW, memory to MiB, PCIe before Hopper to KB/s, NVLink to KiB
    "DCGM_FI_DEV_POWER_USAGE": 0.001,
    "DCGM_FI_DEV_FB_FREE": 2,
    "DCGM_FI_DEV_FB_USED": 2,
    "DCGM_FI_DEV_FB_RESERVED": 2,
    "DCGM_FI_PROF_PCIE_TX_BYTES": 500,
    "DCGM_FI_PROF_PCIE_RX_BYTES": 500,
    "DCGM_FI_PROF_NVLINK_TX_BYTES": 1024,
    "DCGM_FI_PROF_NVLINK_RX_BYTES": 1024,
    "DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL": 0.51,
}


def agree(simulated: tuple[Sample, ...], real: tuple[Sample, ...]) -> None:
    """Both samples have the same units, values and gaps."""
    assert [(one.uuid, one.instance) for one in real] == [(one.uuid, one.instance) for one in simulated]
    for expected, found in zip(simulated, real, strict=True):
        assert found.missing == expected.missing
        assert found.values.keys() == expected.values.keys()
        for name, value in expected.values.items():
            assert found.values[name] == pytest.approx(value, abs=TOLERANCES.get(name, 0), rel=1e-9), name


def outcome(backend: Backend, call: Callable[[Backend], object]) -> object:
    """What a call returns, or the reason for which it is refused."""
    try:
        return call(backend)
    except BackendError as error:
        return error.reason


@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("product", PRODUCTS)
def test_the_gpus_of_a_node_and_their_links_are_the_same(
    nvml_node: NvmlNode, product: str, count: int
) -> None:
    pair = Pair(nvml_node, *whole_node(product, count))
    assert pair.nvml.inventory() == pair.simulated.inventory()
    assert dict(pair.nvml.links()) == dict(pair.simulated.links())
    assert len(pair.nvml.links()) == count * (count - 1) // 2


def test_gpus_in_a_fabric_are_in_the_same_clique(nvml_node: NvmlNode) -> None:
    product, inventory = whole_node("gb200", 4)
    clique = "00000000-1111-4222-8333-444444444444.7"
    shown = replace(inventory, gpus=tuple(replace(gpu, clique=clique) for gpu in inventory.gpus))
    pair = Pair(nvml_node, product, shown)
    assert [gpu.clique for gpu in pair.nvml.inventory().gpus] == [clique] * 4
    assert pair.nvml.inventory() == pair.simulated.inventory()
    assert dict(pair.nvml.links()) == dict(pair.simulated.links())


@pytest.mark.parametrize("name", ["all-balanced", "all-enabled"])
@pytest.mark.parametrize("product", WITH_MIG)
def test_gpus_that_are_cut_are_the_same(nvml_node: NvmlNode, product: str, name: str) -> None:
    pair = Pair(nvml_node, *cut_node(product, 2, name))
    assert pair.nvml.inventory() == pair.simulated.inventory()


@pytest.mark.parametrize("strategy", ["none", "single", "mixed"])
@pytest.mark.parametrize("product", PRODUCTS)
def test_labels_and_offers_are_the_same(nvml_node: NvmlNode, product: str, strategy: str) -> None:
    pair = Pair(nvml_node, *cut_node(product, 2))
    config = PluginConfig(mig_strategy=strategy)  # type: ignore[arg-type]  # one of its literals
    simulated, real = pair.simulated.inventory(), pair.nvml.inventory()
    assert feature_labels(real, config) == feature_labels(simulated, config)
    assert offer(real, config) == offer(simulated, config)
    assert feature_labels(real, config)["nvidia.com/gpu.machine"] == "Test-Server"
    assert offer(real, config).resources or strategy == "single"


@pytest.mark.parametrize("product", PRODUCTS)
def test_the_readings_of_whole_gpus_are_the_same(nvml_node: NvmlNode, product: str) -> None:
    pair = Pair(nvml_node, *whole_node(product, 2))
    pair.samples(1.0)
    pair.play(
        SetLoad(at=0, gpu=0, util=0.8, memory=0.5, pid=71),
        SetTemperature(at=0, gpu=1, offset_c=20),
        AddErrors(at=0, gpu=1, corrected=3, uncorrected=1, remapped_uncorrected=1, pcie_replays=9),
    )
    agree(*pair.samples(LONG))
    pair.play(Throttle(at=0, gpu=0, reasons=0x60), AddErrors(at=0, gpu=0, remap_failed=True))
    simulated, real = pair.samples(30.0)
    agree(simulated, real)
    assert real[0].values["DCGM_FI_DEV_THERMAL_VIOLATION"] == 30e9
    pair.play(SetLoad(at=0, gpu=0, pid=71), Throttle(at=0, gpu=0, reasons=0))
    agree(*pair.samples(LONG))


@pytest.mark.parametrize("product", WITH_MIG)
def test_the_readings_of_instances_are_the_same(nvml_node: NvmlNode, product: str) -> None:
    pair = Pair(nvml_node, *cut_node(product, 2))
    first, second, *_ = pair.nvml.inventory().gpus[0].instances
    pair.samples(1.0)
    pair.play(
        SetLoad(at=0, gpu=0, instance=first.id, util=0.9, memory=0.6, pid=71),
        SetLoad(at=0, gpu=0, instance=second.id, util=0.2, memory=0.1, pid=72),
        RaiseXid(at=0, gpu=0, code=31, instance=first.id, compute=0),
    )
    pair.nvml.wait(1)
    simulated, real = pair.samples(LONG)
    agree(simulated, real)
    xids = {one.instance: one.values["DCGM_FI_DEV_XID_ERRORS"] for one in real if one.uuid == pair.uuid(0)}
    assert (xids[first.id], xids[second.id], xids[None]) == (31, 0, 0)


def test_the_memory_of_an_instance_that_nothing_opens_is_unknown_to_both(nvml_node: NvmlNode) -> None:
    pair = Pair(nvml_node, *cut_node("h100", 1, "all-enabled"))
    for backend in (pair.simulated, pair.nvml):
        backend.create_gpu_instance(pair.uuid(0), "2g.20gb", 2)
    pair.samples(1.0)
    simulated, real = pair.samples(10.0)
    agree(simulated, real)
    assert real[1].missing["DCGM_FI_DEV_FB_USED"] == NO_DEVICE


@pytest.mark.parametrize("product", ["h100", "a30"])
def test_processes_are_the_same_on_gpus_and_instances(nvml_node: NvmlNode, product: str) -> None:
    pair = Pair(nvml_node, *cut_node(product, 1))
    first, second, *_ = pair.nvml.inventory().gpus[0].instances
    gpu = pair.uuid(0)
    pair.play(
        SetLoad(at=0, gpu=0, instance=first.id, util=0.9, memory=0.6, pid=71),
        SetLoad(at=0, gpu=0, instance=second.id, memory=0.25, pid=72),
    )
    assert pair.nvml.processes(gpu) == pair.simulated.processes(gpu)
    assert [(one.pid, one.instance, one.compute) for one in pair.nvml.processes(gpu)] == [
        (71, first.id, 0),
        (72, second.id, 0),
    ]
    pair.play(SetLoad(at=0, gpu=0, pid=71))
    assert pair.nvml.processes(gpu) == pair.simulated.processes(gpu)


def test_events_are_the_same_with_the_ids_of_instances(nvml_node: NvmlNode) -> None:
    pair = Pair(nvml_node, *cut_node("h100", 3))
    steps = (
        RaiseXid(at=0, gpu=2, code=43, instance=1, compute=0),
        AddErrors(at=0, gpu=0, corrected=2, uncorrected=1),
        RaiseXid(at=0, gpu=1, code=79),
        SetRecovery(at=0, gpu=1, action=1),
        LoseGPU(at=0, gpu=1, message=GONE),
    )
    pair.play(*steps)
    real = pair.nvml.wait(1)
    assert real == pair.simulated.wait(0)
    assert real[0] == Event("xid", pair.uuid(2), 43, 1, 0)
    assert [event.kind for event in real[1:]] == [
        "ecc-single",
        "ecc-double",
        "xid",
        "recovery",
        "unavailable",
    ]
    assert pair.nvml.wait(0) == pair.simulated.wait(0) == ()


@pytest.mark.parametrize("product", ["h100", "a100", "t4"])
def test_a_gpu_that_is_lost_and_reset_is_the_same(nvml_node: NvmlNode, product: str) -> None:
    pair = Pair(nvml_node, *cut_node(product, 2))
    config = PluginConfig(mig_strategy="mixed")
    pair.samples(1.0)
    before = offer(pair.nvml.inventory(), config)
    links = dict(pair.nvml.links())
    lost = pair.uuid(1)
    calls: list[Callable[[Backend], object]] = [
        lambda backend: backend.processes(lost),
        lambda backend: backend.recovery_action(lost),
        lambda backend: backend.set_exclusive(lost, True),
        lambda backend: backend.create_gpu_instance(lost, "1g.10gb", 0),
        lambda backend: backend.recovery_action("GPU-nobody"),
    ]
    pair.play(SetRecovery(at=0, gpu=1, action=1), LoseGPU(at=0, gpu=1, message=GONE))
    assert pair.nvml.inventory() == pair.simulated.inventory()
    assert pair.nvml.inventory().gpus[1].lost == GONE
    assert offer(pair.nvml.inventory(), config, before=before) == offer(
        pair.simulated.inventory(), config, before=before
    )
    assert feature_labels(pair.nvml.inventory(), config) == feature_labels(pair.simulated.inventory(), config)
    assert dict(pair.nvml.links()) == dict(pair.simulated.links()) == links
    agree(*pair.samples(5.0))
    real = [outcome(pair.nvml, call) for call in calls]
    assert real == [outcome(pair.simulated, call) for call in calls]
    assert real == ["GpuLost"] * 4 + ["NotFound"]

    pair.play(ResetGPU(at=0, gpu=1))
    assert pair.nvml.wait(1) == pair.simulated.wait(0)
    assert unnamed(pair.nvml.inventory()) == unnamed(pair.simulated.inventory())
    assert pair.nvml.inventory().gpus[1].instances == ()
    assert [outcome(pair.nvml, call) for call in calls] == [outcome(pair.simulated, call) for call in calls]


def test_a_gpu_that_comes_back_without_a_reset_is_the_same(nvml_node: NvmlNode) -> None:
    pair = Pair(nvml_node, *cut_node("h100", 2))
    pair.play(LoseGPU(at=0, gpu=0, message=GONE))
    pair.nvml.inventory()
    pair.play(FindGPU(at=0, gpu=0), RaiseXid(at=0, gpu=0, code=13))
    assert pair.nvml.wait(1) == pair.simulated.wait(0)
    assert pair.nvml.inventory() == pair.simulated.inventory()


def change_at_random(pair: Pair, rng: random.Random) -> Callable[[Backend], object]:
    """A change of MIG or of modes, mostly one that makes sense; perhaps a process comes or goes first."""
    index = rng.randrange(2)
    gpu = pair.simulated.inventory().gpus[index]
    assert gpu.geometry is not None
    profile = rng.choice(list(gpu.geometry.profiles.values()))
    start = rng.choice(profile.starts) if rng.random() < 0.9 else rng.randrange(9)
    taken = [one.id for one in gpu.instances]
    instance = rng.choice(taken) if taken and rng.random() < 0.9 else rng.randrange(15)
    compute, on = int(rng.random() < 0.1), rng.random() < 0.7
    if rng.random() < 0.15:
        usable = [one.id for one in gpu.instances if one.compute]
        where = rng.choice(usable) if usable else None
        if (where is None) == (gpu.mig != "on"):
            pair.play(SetLoad(at=0, gpu=index, instance=where, memory=rng.choice([0, 0.2]), pid=80 + index))
    if rng.random() < 0.05:
        pair.play(ResetGPU(at=0, gpu=index))
    return rng.choices(
        [
            lambda backend: backend.create_gpu_instance(gpu.uuid, profile.name, start),
            lambda backend: backend.create_compute_instance(gpu.uuid, instance),
            lambda backend: backend.destroy_compute_instance(gpu.uuid, instance, compute),
            lambda backend: backend.destroy_gpu_instance(gpu.uuid, instance),
            lambda backend: backend.create_gpu_instance(gpu.uuid, "9g.1tb", 0),
            lambda backend: backend.set_mig_mode(gpu.uuid, on),
            lambda backend: backend.set_exclusive(gpu.uuid, on),
        ],
        [8, 8, 4, 4, 1, 2, 1],
    )[0]


@pytest.mark.parametrize("product", WITH_MIG)
def test_changes_at_random_have_the_same_effects_and_the_same_refusals(
    nvml_node: NvmlNode, product: str
) -> None:
    pair = Pair(nvml_node, *cut_node(product, 2))
    rng = random.Random(product)
    seen: dict[str, int] = {}
    for _ in range(400):
        call = change_at_random(pair, rng)
        simulated, real = outcome(pair.simulated, call), outcome(pair.nvml, call)
        assert real == simulated
        assert _shown(pair.nvml) == _shown(pair.simulated)
        key = simulated if isinstance(simulated, str) else "done"
        seen[key] = seen.get(key, 0) + 1
    assert {"done", "InsufficientResources", "GpuInUse", "NotSupported", "NotFound"} <= seen.keys(), seen
    assert seen["done"] > 60


def _shown(backend: Backend) -> tuple[Inventory, list[object]]:
    inventory = unnamed(backend.inventory())
    return inventory, [backend.processes(gpu.uuid) for gpu in inventory.gpus]
