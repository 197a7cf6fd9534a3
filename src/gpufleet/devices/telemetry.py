"""What the sensors of a simulated GPU say, by the classic names of DCGM's fields.

Every value follows from the load: clocks and temperatures now, ratios as the mean since an earlier look, and
counters since the beginning. What NVML could not say on such a GPU is missing here too: whole-GPU
utilisation under MIG, the profiling ratios before Hopper, the temperature of memory that is not HBM, the
memory of an instance that no compute instance opens.
Source: DCGM exporter's default counters and their NVML sources, NVML API reference (clock event reasons).
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from gpufleet.devices.backend import Sample
from gpufleet.devices.boards import BOARDS
from gpufleet.devices.inventory import GPUInstance
from gpufleet.devices.loads import Load, power_w
from gpufleet.devices.missing import NEEDS_DCGM, NO_DEVICE, NO_NVLINK, NO_REMAPPING, NO_SENSOR, UNDER_MIG
from gpufleet.devices.simulated_gpu import SimulatedGPU, compute_share, memory_share

_HOPPER, _AMPERE = (9, 0), (8, 0)
_RESERVED = 0.006
_IDLE_REASON = 0x1
_THROTTLED_CLOCK = 0.6
_AWAKE = 0.01
_MEMORY_WARMER_C = 8.0
_LINK_BYTES = 10.0e9

# fmt: off
_RATIOS = (
    # field                            part of the utilisation
    ("DCGM_FI_PROF_GR_ENGINE_ACTIVE",   1.00),
    ("DCGM_FI_PROF_SM_ACTIVE",          0.93),
    ("DCGM_FI_PROF_SM_OCCUPANCY",       0.42),
    ("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", 0.55),
    ("DCGM_FI_PROF_DRAM_ACTIVE",        0.60),
    ("DCGM_FI_PROF_PIPE_FP64_ACTIVE",   0.01),
    ("DCGM_FI_PROF_PIPE_FP32_ACTIVE",   0.12),
    ("DCGM_FI_PROF_PIPE_FP16_ACTIVE",   0.08),
)
_PERCENT = (
    # field                     part of the utilisation
    ("DCGM_FI_DEV_GPU_UTIL",      1.0),
    ("DCGM_FI_DEV_MEM_COPY_UTIL", 0.6),
    ("DCGM_FI_DEV_ENC_UTIL",      0.0),
    ("DCGM_FI_DEV_DEC_UTIL",      0.0),
)
_PCIE = (
    # field                       bytes per second at full load
    ("DCGM_FI_PROF_PCIE_TX_BYTES", 3.0e9),
    ("DCGM_FI_PROF_PCIE_RX_BYTES", 7.0e9),
)
# fmt: on
_MEMORY = ("DCGM_FI_DEV_FB_FREE", "DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_FB_RESERVED")
_NVLINK = (
    "DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL",
    "DCGM_FI_PROF_NVLINK_TX_BYTES",
    "DCGM_FI_PROF_NVLINK_RX_BYTES",
)

Looks = Mapping[tuple[str, int | None], tuple[float, float]]
"""When each unit (uuid, instance id) was looked at last, and its busy seconds then."""


class Look(msgspec.Struct, frozen=True):
    """The samples of all units, and what to remember of them for the next look."""

    samples: tuple[Sample, ...]
    looks: Looks


def look(gpus: tuple[SimulatedGPU, ...], now: float, before: Looks) -> Look:
    """The readings of every GPU and GPU instance at a time; ratios cover the time since `before`."""
    samples, looks = [], dict[tuple[str, int | None], tuple[float, float]]()
    for gpu in gpus:
        uuid = gpu.gpu.uuid
        if gpu.gpu.lost:
            samples.append(Sample(uuid, None, {}, {"*": gpu.gpu.lost}))
            continue
        for instance in (None, *gpu.gpu.instances):
            number = None if instance is None else instance.id
            load = gpu.whole if number is None else gpu.parts[number]
            mean = _mean(load, now, before.get((uuid, number)))
            looks[uuid, number] = (now, load.busy_seconds(now))
            samples.append(_sample(gpu, instance, load, now, mean))
    return Look(tuple(samples), looks)


def _mean(load: Load, now: float, last: tuple[float, float] | None) -> float:
    if last is None or last[0] >= now or last[1] > load.busy_seconds(now):
        return load.utilisation(now)
    return (load.busy_seconds(now) - last[1]) / (now - last[0])


def _sample(gpu: SimulatedGPU, instance: GPUInstance | None, load: Load, now: float, mean: float) -> Sample:
    under_mig, ratios = gpu.gpu.mig == "on", gpu.gpu.capability >= _HOPPER
    share = 1.0 if instance is None else compute_share(gpu.gpu, instance)
    number = None if instance is None else instance.id
    values = {
        **_board(gpu, now),
        **_counters(gpu, now),
        "DCGM_FI_DEV_XID_ERRORS": gpu.xids.get(number, 0),
    }
    missing = {}
    if instance is None or instance.compute:
        values.update(_memory(gpu, instance, load.at(now).memory))
    else:
        missing.update(dict.fromkeys(_MEMORY, NO_DEVICE))
    if gpu.gpu.capability >= _AMPERE:
        values.update(_remapped(gpu))
    else:
        missing.update(dict.fromkeys(_remapped(gpu), NO_REMAPPING))
    if instance is None or ratios:
        values.update((field, round(rate * share * mean)) for field, rate in _PCIE)
    else:
        missing.update((field, NEEDS_DCGM) for field, _ in _PCIE)
    if BOARDS[gpu.product.name].hbm:
        values["DCGM_FI_DEV_MEMORY_TEMP"] = round(_celsius(gpu, now) + _MEMORY_WARMER_C)
    else:
        missing["DCGM_FI_DEV_MEMORY_TEMP"] = NO_SENSOR
    if under_mig:
        missing.update((field, UNDER_MIG) for field, _ in _PERCENT)
    else:
        values.update((field, round(100 * part * load.utilisation(now))) for field, part in _PERCENT)
    if ratios:
        values.update((field, part * mean) for field, part in _RATIOS)
    else:
        missing.update((field, NEEDS_DCGM) for field, _ in _RATIOS)
    why = UNDER_MIG if under_mig else "" if gpu.product.nvlink else NO_NVLINK
    if why:
        missing.update(dict.fromkeys(_NVLINK, why))
    else:
        sent = _LINK_BYTES * gpu.product.nvlink * mean
        values.update(zip(_NVLINK, (round(2 * sent / 1e6), round(sent), round(sent)), strict=True))
    return Sample(gpu.gpu.uuid, number, values, missing)


def _celsius(gpu: SimulatedGPU, now: float) -> float:
    return gpu.whole.temperature_c(now) + gpu.temperature_offset_c


def _board(gpu: SimulatedGPU, now: float) -> dict[str, float]:
    """Clocks (MHz), temperature (degrees Celsius) and power (W), which a GPU and its instances share."""
    board, util = BOARDS[gpu.product.name], gpu.whole.utilisation(now)
    awake = util > _AWAKE
    reasons = gpu.throttling.reasons
    highest = board.sm_mhz * (_THROTTLED_CLOCK if reasons else 1.0)
    return {
        "DCGM_FI_DEV_SM_CLOCK": round(highest if awake else board.idle_mhz),
        "DCGM_FI_DEV_MEM_CLOCK": board.memory_mhz,
        "DCGM_FI_DEV_CLOCK_THROTTLE_REASONS": reasons or (0 if awake else _IDLE_REASON),
        "DCGM_FI_DEV_GPU_TEMP": round(_celsius(gpu, now)),
        "DCGM_FI_DEV_POWER_USAGE": power_w(gpu.product.power_w, util),
        "DCGM_FI_DEV_POWER_MGMT_LIMIT": gpu.product.power_w,
        "DCGM_FI_DEV_VGPU_LICENSE_STATUS": 0,
    }


def _counters(gpu: SimulatedGPU, now: float) -> dict[str, float]:
    """Energy (mJ), errors and the time (ns) that clocks were held down, since the beginning or a reset."""
    limit, errors, held = gpu.product.power_w, gpu.errors, gpu.throttling.at(now)
    idle, busiest = power_w(limit, 0.0), power_w(limit, 1.0)
    joules = idle * now + (busiest - idle) * gpu.whole.busy_seconds(now)
    return {
        "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": round(1000 * joules),
        "DCGM_FI_DEV_PCIE_REPLAY_COUNTER": errors.pcie_replays,
        "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL": errors.corrected,
        "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL": errors.uncorrected,
        "DCGM_FI_DEV_ECC_SBE_AGG_TOTAL": errors.corrected_ever,
        "DCGM_FI_DEV_ECC_DBE_AGG_TOTAL": errors.uncorrected_ever,
        "DCGM_FI_DEV_THERMAL_VIOLATION": round(1e9 * held.thermal_s),
        "DCGM_FI_DEV_POWER_VIOLATION": round(1e9 * held.power_s),
    }


def _remapped(gpu: SimulatedGPU) -> dict[str, float]:
    """Rows that were remapped for memory errors, and whether that failed."""
    return {
        "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS": gpu.errors.remapped_corrected,
        "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS": gpu.errors.remapped_uncorrected,
        "DCGM_FI_DEV_ROW_REMAP_FAILURE": int(gpu.errors.remap_failed),
    }


def _memory(gpu: SimulatedGPU, instance: GPUInstance | None, level: float) -> dict[str, float]:
    """Memory (MiB): free, used and reserved, which add up to that of the GPU or instance."""
    total = gpu.gpu.memory_mib
    if instance is not None:
        total = int(total * memory_share(gpu.gpu, instance))
    reserved = round(total * _RESERVED)
    used = min(total - reserved, round(total * level))
    return dict(zip(_MEMORY, (total - reserved - used, used, reserved), strict=True))
