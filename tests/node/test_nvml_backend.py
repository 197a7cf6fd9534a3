"""The real backend on a fake NVML: what it makes of drivers that are missing, old, shared or broken."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

import pynvml
import pytest
from msgspec.structs import replace
from tests.fakenvml.gpu import FakeProcess
from tests.fakenvml.machine import FakeMachine
from tests.node.nvml_nodes import (
    BOUND_S,
    NvmlNode,
    apart,
    cut_node,
    elsewhere,
    in_background,
    misbehave,
    until,
    whole_h100,
    whole_node,
)

from gpufleet.devices.backend import REASONS, BackendError, Event

CODES = sorted(
    value for name, value in vars(pynvml).items() if name.startswith("NVML_ERROR_") and isinstance(value, int)
)


def test_a_library_below_a_host_root_is_found_where_the_linker_finds_none(nvml_node: NvmlNode) -> None:
    whole_h100(nvml_node, 3)
    done = elsewhere(nvml_node, "print(len(backend.inventory().gpus))")
    assert (done.stdout, done.stderr) == ("3\n", "")


def test_a_host_without_a_driver_is_told_to_install_one(tmp_path: Path) -> None:
    done = apart(f"NvmlBackend(Path({str(tmp_path)!r}))")
    assert "(DriverNotLoaded); install the NVIDIA driver" in done.stderr


def test_a_driver_that_is_not_loaded_says_so(nvml_node: NvmlNode) -> None:
    nvml_node.change(lambda machine: replace(machine, loaded=False))
    with pytest.raises(BackendError) as error:
        nvml_node.backend()
    assert error.value.reason == "DriverNotLoaded"


def test_a_library_of_another_driver_than_the_kernels_says_to_reboot(nvml_node: NvmlNode) -> None:
    misbehave(nvml_node, "nvmlInit*", pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)
    with pytest.raises(BackendError) as error:
        nvml_node.backend()
    assert error.value.reason == "DriverNotLoaded"
    assert "reboot" in error.value.hint


def test_a_driver_that_unloads_later_is_an_error_and_no_end(nvml_node: NvmlNode) -> None:
    backend = whole_h100(nvml_node)
    nvml_node.change(lambda machine: replace(machine, loaded=False))
    with pytest.raises(BackendError):
        backend.inventory()
    nvml_node.change(lambda machine: replace(machine, loaded=True))
    assert len(backend.inventory().gpus) == 2


@pytest.mark.parametrize("code", CODES)
def test_every_code_of_the_driver_has_a_reason_and_says_what_to_do(nvml_node: NvmlNode, code: int) -> None:
    backend = whole_h100(nvml_node)
    gpu = backend.inventory().gpus[0].uuid
    misbehave(nvml_node, "nvmlDeviceGetHandleByUUID", code)
    with pytest.raises(BackendError) as error:
        backend.processes(gpu)
    assert error.value.reason in REASONS
    assert error.value.hint
    assert gpu in error.value.message


def test_a_gpu_that_breaks_while_it_is_read_leaves_the_others(nvml_node: NvmlNode) -> None:
    backend = whole_h100(nvml_node, 3)
    well = backend.inventory()
    misbehave(nvml_node, "nvmlDeviceGetMemoryInfo*", pynvml.NVML_ERROR_GPU_IS_LOST, gpu=1)
    found = backend.inventory()
    assert [bool(gpu.lost) for gpu in found.gpus] == [False, True, False]
    assert found.gpus[1].uuid == well.gpus[1].uuid
    assert (found.gpus[0], found.gpus[2]) == (well.gpus[0], well.gpus[2])
    assert [dict(sample.missing).get("*") for sample in backend.sample()] == [None, "GPU is lost", None]


def test_a_gpu_that_was_lost_before_anybody_saw_it_has_a_name_all_the_same(nvml_node: NvmlNode) -> None:
    nvml_node.show(*whole_node("h100", 2))
    nvml_node.change(lambda machine: machine.lose(0))
    assert nvml_node.backend().inventory().gpus[0].uuid == "unknown-0"


def test_what_needs_root_says_so(nvml_node: NvmlNode) -> None:
    backend = whole_h100(nvml_node)
    nvml_node.change(lambda machine: replace(machine, root=False))
    with pytest.raises(BackendError) as error:
        backend.set_mig_mode(backend.inventory().gpus[0].uuid, True)
    assert error.value.reason == "NoPermission"
    assert backend.inventory().gpus[0].mig == "off"


def test_a_mode_that_waits_for_users_of_the_gpu_is_taken_back(nvml_node: NvmlNode) -> None:
    backend = whole_h100(nvml_node)
    gpu = backend.inventory().gpus[0].uuid
    nvml_node.change(lambda machine: machine.process(0, FakeProcess(71, 10)))
    with pytest.raises(BackendError) as error:
        backend.set_mig_mode(gpu, True)
    assert error.value.reason == "GpuInUse"
    nvml_node.change(lambda machine: machine.reset(0))
    assert backend.inventory().gpus[0].mig == "off"


def test_a_driver_that_knows_no_recovery_action_says_nothing(nvml_node: NvmlNode) -> None:
    backend = whole_h100(nvml_node)
    gpu = backend.inventory().gpus[0].uuid
    assert backend.recovery_action(gpu) == 0
    nvml_node.change(lambda machine: machine.gpu(0, recovery_action=None))
    assert backend.recovery_action(gpu) is None


def test_readings_by_their_older_names_are_found(nvml_node: NvmlNode) -> None:
    backend = whole_h100(nvml_node, 1)
    nvml_node.change(lambda machine: machine.gpu(0, clock_event_reasons=0x20))
    for newer in ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetMemoryInfo_v2"):
        misbehave(nvml_node, newer, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
    (sample,) = backend.sample()
    assert sample.values["DCGM_FI_DEV_CLOCK_THROTTLE_REASONS"] == 0x20
    assert sample.values["DCGM_FI_DEV_FB_FREE"] == 81559
    assert sample.missing["DCGM_FI_DEV_FB_RESERVED"] == "Function Not Found"


def test_gpus_without_events_are_watched_by_nobody(nvml_node: NvmlNode) -> None:
    backend = whole_h100(nvml_node)
    misbehave(nvml_node, "nvmlEventSetCreate", pynvml.NVML_ERROR_NOT_SUPPORTED)
    assert backend.wait(0.01) == ()
    nvml_node.change(lambda machine: machine.calm().xid(0, 79))
    assert backend.wait(0.01) == ()


def test_a_change_by_one_process_is_seen_by_another(nvml_node: NvmlNode) -> None:
    nvml_node.show(*cut_node("h100", 1, "all-enabled"))
    backend = nvml_node.backend()
    gpu = backend.inventory().gpus[0].uuid
    done = elsewhere(
        nvml_node,
        f"made = backend.create_gpu_instance({gpu!r}, '1g.10gb', 3)\n"
        f"backend.create_compute_instance({gpu!r}, made)\n"
        "print(backend.inventory().gpus[0].instances)",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{backend.inventory().gpus[0].instances}\n"


def test_both_processes_hear_of_an_event(nvml_node: NvmlNode) -> None:
    backend = whole_h100(nvml_node)
    gpu = backend.inventory().gpus[1].uuid
    backend.wait(0)
    ready = nvml_node.root / "ready"
    found: list[str] = []
    code = f"backend.wait(0)\nPath({str(ready)!r}).touch()\nprint(backend.wait({BOUND_S}))"
    with in_background(lambda: found.append(elsewhere(nvml_node, code).stdout)):
        until(ready.exists)
        nvml_node.change(lambda machine: machine.xid(1, 79))
        events = backend.wait(BOUND_S)
    assert events == (Event("xid", gpu, 79),)
    assert found == [f"{events}\n"]


@pytest.mark.parametrize(("when", "instances"), [("before", 0), ("after", 1)])
def test_a_process_that_dies_in_a_change_leaves_what_was_done(
    nvml_node: NvmlNode, when: Literal["before", "after"], instances: int
) -> None:
    nvml_node.show(*cut_node("h100", 1, "all-enabled"))
    backend = nvml_node.backend()
    gpu = backend.inventory().gpus[0].uuid
    nvml_node.change(partial(FakeMachine.crash, call=1, when=when))
    done = elsewhere(nvml_node, f"backend.create_gpu_instance({gpu!r}, '1g.10gb', 0)")
    assert done.returncode == 70
    assert len(backend.inventory().gpus[0].instances) == instances
    backend.create_gpu_instance(gpu, "1g.10gb", 1)
