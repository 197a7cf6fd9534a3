"""The metrics of GPUs that the exporter knows: one table, in the order in which they are written.

Classic names, types and help are those of DCGM exporter's default counters, so that dashboards and alerts
that exist go on working; DCGM 4.6 gives many of them another name, with the same value in the same unit. What
a classic name promises and its value does not (`DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL` is a rate and called a
counter, `..._GPU_UTIL_RATIO` is in percent) stays as it is there.

`split` says what a metric is when several containers share a GPU: `memory` and `activity` are amounts, which
divide among them; `whole` is a state or a count of the GPU, which does not (a counter that is divided anew
with every container that comes or goes would jump).
Source: dcgm-exporter etc/default-counters.csv (4.8.2), DCGM dcgmlib/dcgm_fields.h (names from 4.6 on), NVML
API reference for what is read where (devices/nvml_gpm.py for `gpm`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from gpufleet.fleet.errors import GpufleetError

Names = Literal["classic", "new", "both"]
"""Whose names metrics have: those of DCGM exporter until now, those of DCGM from 4.6 on, or both."""

Kind = Literal["gauge", "counter"]
Split = Literal["whole", "memory", "activity"]
Source = Literal["nvml", "gpm", "event"]
Unit = Literal["", "%", "ratio", "MHz", "C", "W", "mJ", "MiB", "B/s", "MB/s", "ns", "XID", "mask", "count"]


class Field(msgspec.Struct, frozen=True):
    """One metric of a GPU or GPU instance. `whole_numbers` tells DCGM's integers from its floats, `source`
    what reads it: a call of NVML, GPM (Hopper and newer), or the driver's events.
    """

    classic: str
    type: Kind
    whole_numbers: bool
    split: Split
    source: Source
    unit: Unit
    default: bool
    new: str
    help: str

    def names(self, names: Names) -> tuple[str, ...]:
        """The names under which it is written."""
        if names == "classic" or not self.new:
            return (self.classic,)
        return (self.new,) if names == "new" else (self.classic, self.new)


_INT, _FLOAT = True, False
_ON, _OFF = True, False

# fmt: off
_TABLE: tuple[tuple[str, Kind, bool, Split, Source, Unit, bool, str, str], ...] = (
    # classic name                             type      number  when shared  source  unit    default
    #   name from DCGM 4.6 on, where it is another one; help
    ("DCGM_FI_DEV_SM_CLOCK",                   "gauge",   _INT,   "whole",    "nvml", "MHz",   _ON,
        "", "SM clock frequency (in MHz)."),
    ("DCGM_FI_DEV_MEM_CLOCK",                  "gauge",   _INT,   "whole",    "nvml", "MHz",   _ON,
        "", "Memory clock frequency (in MHz)."),
    ("DCGM_FI_DEV_MEMORY_TEMP",                "gauge",   _INT,   "whole",    "nvml", "C",     _ON,
        "DCGM_FI_DEV_MEMORY_TEMP_CELSIUS", "Memory temperature (in C)."),
    ("DCGM_FI_DEV_GPU_TEMP",                   "gauge",   _INT,   "whole",    "nvml", "C",     _ON,
        "DCGM_FI_DEV_GPU_TEMP_CELSIUS", "GPU temperature (in C)."),
    ("DCGM_FI_DEV_POWER_USAGE",                "gauge",   _FLOAT, "activity", "nvml", "W",     _ON,
        "DCGM_FI_DEV_BOARD_POWER_WATTS", "Power draw (in W)."),
    ("DCGM_FI_DEV_POWER_MGMT_LIMIT",           "gauge",   _FLOAT, "whole",    "nvml", "W",     _ON,
        "DCGM_FI_DEV_BOARD_POWER_LIMIT_REQUESTED_WATTS", "Power limit that is set (in W)."),
    ("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION",   "counter", _INT,   "whole",    "nvml", "mJ",    _ON,
        "", "Total energy consumption since boot (in mJ)."),
    ("DCGM_FI_DEV_PCIE_REPLAY_COUNTER",        "counter", _INT,   "whole",    "nvml", "count", _ON,
        "DCGM_FI_DEV_PCIE_REPLAY_TOTAL", "Total number of PCIe retries."),
    ("DCGM_FI_DEV_GPU_UTIL",                   "gauge",   _INT,   "activity", "nvml", "%",     _ON,
        "DCGM_FI_DEV_GPU_UTIL_RATIO", "GPU utilization (in %)."),
    ("DCGM_FI_DEV_MEM_COPY_UTIL",              "gauge",   _INT,   "activity", "nvml", "%",     _ON,
        "", "Memory utilization (in %)."),
    ("DCGM_FI_DEV_ENC_UTIL",                   "gauge",   _INT,   "activity", "nvml", "%",     _ON,
        "", "Encoder utilization (in %)."),
    ("DCGM_FI_DEV_DEC_UTIL",                   "gauge",   _INT,   "activity", "nvml", "%",     _ON,
        "", "Decoder utilization (in %)."),
    ("DCGM_FI_DEV_XID_ERRORS",                 "gauge",   _INT,   "whole",    "event", "XID",  _ON,
        "DCGM_FI_DEV_XID_ERROR", "Value of the last XID error encountered."),
    ("DCGM_FI_DEV_CLOCK_THROTTLE_REASONS",     "gauge",   _INT,   "whole",    "nvml", "mask",  _ON,
        "DCGM_FI_DEV_CLOCKS_EVENT_REASONS", "Why clocks are held down (a bit mask of NVML's event reasons)."),
    ("DCGM_FI_DEV_POWER_VIOLATION",            "counter", _INT,   "whole",    "nvml", "ns",    _ON,
        "", "Throttling duration due to power constraints (in ns)."),
    ("DCGM_FI_DEV_THERMAL_VIOLATION",          "counter", _INT,   "whole",    "nvml", "ns",    _ON,
        "", "Throttling duration due to thermal constraints (in ns)."),
    ("DCGM_FI_DEV_SYNC_BOOST_VIOLATION",       "counter", _INT,   "whole",    "nvml", "ns",    _OFF,
        "", "Throttling duration due to sync-boost constraints (in ns)."),
    ("DCGM_FI_DEV_BOARD_LIMIT_VIOLATION",      "counter", _INT,   "whole",    "nvml", "ns",    _OFF,
        "", "Throttling duration due to board limit constraints (in ns)."),
    ("DCGM_FI_DEV_LOW_UTIL_VIOLATION",         "counter", _INT,   "whole",    "nvml", "ns",    _OFF,
        "", "Throttling duration due to low utilization (in ns)."),
    ("DCGM_FI_DEV_RELIABILITY_VIOLATION",      "counter", _INT,   "whole",    "nvml", "ns",    _OFF,
        "", "Throttling duration due to reliability constraints (in ns)."),
    ("DCGM_FI_DEV_FB_FREE",                    "gauge",   _INT,   "memory",   "nvml", "MiB",   _ON,
        "", "Framebuffer memory free (in MiB)."),
    ("DCGM_FI_DEV_FB_USED",                    "gauge",   _INT,   "memory",   "nvml", "MiB",   _ON,
        "", "Framebuffer memory used (in MiB)."),
    ("DCGM_FI_DEV_FB_RESERVED",                "gauge",   _INT,   "memory",   "nvml", "MiB",   _ON,
        "", "Framebuffer memory reserved (in MiB)."),
    ("DCGM_FI_DEV_ECC_SBE_VOL_TOTAL",          "counter", _INT,   "whole",    "nvml", "count", _OFF,
        "", "Total number of single-bit volatile ECC errors."),
    ("DCGM_FI_DEV_ECC_DBE_VOL_TOTAL",          "counter", _INT,   "whole",    "nvml", "count", _OFF,
        "", "Total number of double-bit volatile ECC errors."),
    ("DCGM_FI_DEV_ECC_SBE_AGG_TOTAL",          "counter", _INT,   "whole",    "nvml", "count", _OFF,
        "", "Total number of single-bit persistent ECC errors."),
    ("DCGM_FI_DEV_ECC_DBE_AGG_TOTAL",          "counter", _INT,   "whole",    "nvml", "count", _OFF,
        "", "Total number of double-bit persistent ECC errors."),
    ("DCGM_FI_DEV_RETIRED_SBE",                "counter", _INT,   "whole",    "nvml", "count", _OFF,
        "DCGM_FI_DEV_PAGE_RETIRED_SBE_TOTAL", "Total number of retired pages due to single-bit errors."),
    ("DCGM_FI_DEV_RETIRED_DBE",                "counter", _INT,   "whole",    "nvml", "count", _OFF,
        "DCGM_FI_DEV_PAGE_RETIRED_DBE_TOTAL", "Total number of retired pages due to double-bit errors."),
    ("DCGM_FI_DEV_RETIRED_PENDING",            "counter", _INT,   "whole",    "nvml", "count", _OFF,
        "DCGM_FI_DEV_PAGE_RETIRED_PENDING", "Total number of pages pending retirement."),
    ("DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL",     "counter", _INT,   "whole",    "nvml", "MB/s",  _ON,
        "DCGM_FI_DEV_NVLINK_THROUGHPUT_TOTAL", "Total number of NVLink bandwidth counters for all lanes."),
    ("DCGM_FI_DEV_VGPU_LICENSE_STATUS",        "gauge",   _INT,   "whole",    "nvml", "",      _ON,
        "", "vGPU License status"),
    ("DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS", "counter", _INT,  "whole",    "nvml", "count", _ON,
        "DCGM_FI_DEV_ROW_REMAP_UNCORRECTABLE_TOTAL", "Number of remapped rows for uncorrectable errors"),
    ("DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS",  "counter", _INT,   "whole",    "nvml", "count", _ON,
        "DCGM_FI_DEV_ROW_REMAP_CORRECTABLE_TOTAL", "Number of remapped rows for correctable errors"),
    ("DCGM_FI_DEV_ROW_REMAP_FAILURE",          "gauge",   _INT,   "whole",    "nvml", "",      _ON,
        "DCGM_FI_DEV_ROW_REMAP_FAILED", "Whether remapping of rows has failed"),
    ("DCGM_FI_PROF_GR_ENGINE_ACTIVE",          "gauge",   _FLOAT, "activity", "gpm",  "ratio", _ON,
        "DCGM_FI_PROF_GR_ENGINE_UTIL_RATIO", "Ratio of time the graphics engine is active."),
    ("DCGM_FI_PROF_SM_ACTIVE",                 "gauge",   _FLOAT, "activity", "gpm",  "ratio", _ON,
        "DCGM_FI_PROF_SM_UTIL_RATIO", "The ratio of cycles an SM has at least 1 warp assigned."),
    ("DCGM_FI_PROF_SM_OCCUPANCY",              "gauge",   _FLOAT, "activity", "gpm",  "ratio", _ON,
        "DCGM_FI_PROF_SM_OCCUPANCY_RATIO", "The ratio of number of warps resident on an SM."),
    ("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE",        "gauge",   _FLOAT, "activity", "gpm",  "ratio", _ON,
        "DCGM_FI_PROF_TENSOR_UTIL_RATIO", "Ratio of cycles the tensor (HMMA) pipe is active."),
    ("DCGM_FI_PROF_DRAM_ACTIVE",               "gauge",   _FLOAT, "activity", "gpm",  "ratio", _ON,
        "DCGM_FI_PROF_DRAM_UTIL_RATIO",
        "Ratio of cycles the device memory interface is active sending or receiving data."),
    ("DCGM_FI_PROF_PIPE_FP64_ACTIVE",          "gauge",   _FLOAT, "activity", "gpm",  "ratio", _OFF,
        "DCGM_FI_PROF_FP64_UTIL_RATIO", "Ratio of cycles the fp64 pipes are active."),
    ("DCGM_FI_PROF_PIPE_FP32_ACTIVE",          "gauge",   _FLOAT, "activity", "gpm",  "ratio", _OFF,
        "DCGM_FI_PROF_FP32_UTIL_RATIO", "Ratio of cycles the fp32 pipes are active."),
    ("DCGM_FI_PROF_PIPE_FP16_ACTIVE",          "gauge",   _FLOAT, "activity", "gpm",  "ratio", _OFF,
        "DCGM_FI_PROF_FP16_UTIL_RATIO", "Ratio of cycles the fp16 pipes are active."),
    ("DCGM_FI_PROF_PCIE_TX_BYTES",             "gauge",   _INT,   "activity", "gpm",  "B/s",   _ON,
        "", ("The rate of data transmitted over the PCIe bus - including both protocol headers and data "
             "payloads - in bytes per second.")),
    ("DCGM_FI_PROF_PCIE_RX_BYTES",             "gauge",   _INT,   "activity", "gpm",  "B/s",   _ON,
        "", ("The rate of data received over the PCIe bus - including both protocol headers and data "
             "payloads - in bytes per second.")),
    ("DCGM_FI_PROF_NVLINK_TX_BYTES",           "gauge",   _INT,   "activity", "gpm",  "B/s",   _OFF,
        "", "The rate of data transmitted over NVLink, in bytes per second."),
    ("DCGM_FI_PROF_NVLINK_RX_BYTES",           "gauge",   _INT,   "activity", "gpm",  "B/s",   _OFF,
        "", "The rate of data received over NVLink, in bytes per second."),
)
# fmt: on

FIELDS: dict[str, Field] = {row[0]: Field(*row) for row in _TABLE}
"""Every metric by its classic name, which is also its name in a `Sample`."""

DEFAULT_FIELDS = frozenset(name for name, field in FIELDS.items() if field.default)
"""What is written unless somebody chooses: DCGM exporter's default set, and what the dashboard needs."""

DRIVER_LABEL = {"classic": "DCGM_FI_DRIVER_VERSION", "new": "DCGM_FI_SYSTEM_DRIVER_VERSION"}
"""The label of every metric that says the version of the driver."""

ABSENT = {
    "nvml": "the driver does not report it",
    "gpm": "needs GPM (Hopper and newer) or DCGM",
    "event": "no events of the driver are read",
}
"""Why a metric has no value, where its backend says nothing of it, by source."""


def choose(more: Iterable[str] = (), less: Iterable[str] = ()) -> frozenset[str]:
    """The default set with `more` and without `less`, by classic names; new names are understood as well.

    Raises GpufleetError (UnknownMetric).
    """
    return (DEFAULT_FIELDS | {_known(name) for name in more}) - {_known(name) for name in less}


def _known(name: str) -> str:
    for field in FIELDS.values():
        if name in field.names("both"):
            return field.classic
    raise GpufleetError(
        reason="UnknownMetric",
        message=f"there is no metric {name!r}",
        hint=f"those off by default: {', '.join(sorted(FIELDS.keys() - DEFAULT_FIELDS))}",
    )
