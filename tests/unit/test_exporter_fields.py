"""The table of metrics: the default set of DCGM exporter, and the names that DCGM gives them from 4.6 on."""

from __future__ import annotations

import re

import pytest

from gpufleet.devices.exporter_fields import ABSENT, DEFAULT_FIELDS, FIELDS, choose
from gpufleet.devices.nvml_gpm import FIELDS as GPM_FIELDS
from gpufleet.fleet.errors import GpufleetError

UPSTREAM = """
gauge   DEV_SM_CLOCK DEV_MEM_CLOCK DEV_MEMORY_TEMP DEV_GPU_TEMP DEV_POWER_USAGE
counter DEV_TOTAL_ENERGY_CONSUMPTION DEV_PCIE_REPLAY_COUNTER
gauge   DEV_GPU_UTIL DEV_MEM_COPY_UTIL DEV_ENC_UTIL DEV_DEC_UTIL DEV_XID_ERRORS
gauge   DEV_FB_FREE DEV_FB_USED DEV_FB_RESERVED
counter DEV_NVLINK_BANDWIDTH_TOTAL
gauge   DEV_VGPU_LICENSE_STATUS
counter DEV_UNCORRECTABLE_REMAPPED_ROWS DEV_CORRECTABLE_REMAPPED_ROWS
gauge   DEV_ROW_REMAP_FAILURE
gauge   PROF_GR_ENGINE_ACTIVE PROF_PIPE_TENSOR_ACTIVE PROF_DRAM_ACTIVE PROF_PCIE_TX_BYTES PROF_PCIE_RX_BYTES
"""
"""Types and names of DCGM exporter 4.8.2's default counters."""

TYPES = {
    f"DCGM_FI_{name}": kind
    for kind, *names in (line.split() for line in UPSTREAM.strip().splitlines())
    for name in names
}


def test_the_default_set_of_dcgm_exporter_is_on_with_its_types() -> None:
    assert {name: FIELDS[name].type for name in TYPES} == TYPES
    assert TYPES.keys() < DEFAULT_FIELDS


def test_what_is_on_besides_is_what_the_dashboard_needs() -> None:
    assert {name.removeprefix("DCGM_FI_") for name in DEFAULT_FIELDS - TYPES.keys()} == {
        "PROF_SM_ACTIVE",
        "PROF_SM_OCCUPANCY",
        "DEV_CLOCK_THROTTLE_REASONS",
        "DEV_POWER_VIOLATION",
        "DEV_THERMAL_VIOLATION",
        "DEV_POWER_MGMT_LIMIT",
    }


@pytest.mark.parametrize(
    ("classic", "new"),
    [
        ("DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_GPU_UTIL_RATIO"),
        ("DCGM_FI_DEV_GPU_TEMP", "DCGM_FI_DEV_GPU_TEMP_CELSIUS"),
        ("DCGM_FI_DEV_POWER_USAGE", "DCGM_FI_DEV_BOARD_POWER_WATTS"),
        ("DCGM_FI_DEV_PCIE_REPLAY_COUNTER", "DCGM_FI_DEV_PCIE_REPLAY_TOTAL"),
        ("DCGM_FI_DEV_XID_ERRORS", "DCGM_FI_DEV_XID_ERROR"),
        ("DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL", "DCGM_FI_DEV_NVLINK_THROUGHPUT_TOTAL"),
        ("DCGM_FI_PROF_GR_ENGINE_ACTIVE", "DCGM_FI_PROF_GR_ENGINE_UTIL_RATIO"),
        ("DCGM_FI_PROF_SM_ACTIVE", "DCGM_FI_PROF_SM_UTIL_RATIO"),
        ("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", "DCGM_FI_PROF_TENSOR_UTIL_RATIO"),
    ],
)
def test_a_renamed_metric_has_its_old_name_its_new_one_or_both(classic: str, new: str) -> None:
    field = FIELDS[classic]
    assert field.names("classic") == (classic,)
    assert field.names("new") == (new,)
    assert field.names("both") == (classic, new)


def test_a_metric_that_keeps_its_name_is_written_once() -> None:
    assert {FIELDS["DCGM_FI_DEV_FB_USED"].names(way) for way in ("classic", "new", "both")} == {
        ("DCGM_FI_DEV_FB_USED",)
    }


def test_no_two_metrics_share_a_name() -> None:
    names = [name for field in FIELDS.values() for name in field.names("both")]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"DCGM_FI_(DEV|PROF)_[A-Z0-9_]+", name) for name in names)


def test_every_row_has_help_on_one_line_and_a_reason_for_its_absence() -> None:
    for field in FIELDS.values():
        assert field.help, field.classic
        assert not set(field.help) & {"\n", "\\"}, field.classic
        assert ABSENT[field.source]


def test_what_gpm_reads_is_marked_so() -> None:
    assert {name for name, field in FIELDS.items() if field.source == "gpm"} == set(GPM_FIELDS)


def test_counters_of_a_shared_gpu_are_not_divided() -> None:
    assert all(field.split == "whole" for field in FIELDS.values() if field.type == "counter")


def test_metrics_are_chosen_by_either_name() -> None:
    chosen = choose(["DCGM_FI_PROF_FP16_UTIL_RATIO"], ["DCGM_FI_DEV_ENC_UTIL"])
    assert chosen ^ DEFAULT_FIELDS == {"DCGM_FI_PROF_PIPE_FP16_ACTIVE", "DCGM_FI_DEV_ENC_UTIL"}


def test_a_metric_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(GpufleetError) as caught:
        choose(["DCGM_FI_DEV_MOOD"])
    assert caught.value.reason == "UnknownMetric"
    assert "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL" in (caught.value.hint or "")
