"""What the real backend reads by a fake NVML: samples, processes, instances."""

from __future__ import annotations

import pynvml
import pytest
from msgspec.structs import replace
from tests.fakenvml.gpu import FakeProcess
from tests.node.nvml_nodes import (
    BOUND_S,
    CLOCK_S,
    NvmlNode,
    cut_h100,
    cut_node,
    misbehave,
    whole_h100,
    whole_node,
)

from gpufleet.devices.backend import BackendError, Process
from gpufleet.devices.clocks import ManualClock
from gpufleet.devices.missing import NEEDS_DCGM, NO_NVLINK, SECOND_LOOK, UNDER_MIG
from gpufleet.devices.nvml import NvmlBackend


def test_ratios_are_means_over_the_time_since_the_last_sample(nvml_node: NvmlNode) -> None:
    nvml_node.show(*whole_node("h100", 1))
    clock = ManualClock()
    backend = nvml_node.backend(clock.now)
    metric = pynvml.NVML_GPM_METRIC_GRAPHICS_UTIL

    def turn(percent: float, seconds: float) -> None:
        at = CLOCK_S + clock.now()
        nvml_node.change(lambda machine: replace(machine.load_gpm(0, {metric: percent}, at), clock_s=at))
        clock.advance(seconds)
        nvml_node.change(lambda machine: replace(machine, clock_s=at + seconds))

    turn(0, 1)
    first = backend.sample()[0]
    assert first.missing["DCGM_FI_PROF_GR_ENGINE_ACTIVE"] == SECOND_LOOK
    turn(100, 3)
    turn(20, 1)
    second = backend.sample()[0]
    assert second.values["DCGM_FI_PROF_GR_ENGINE_ACTIVE"] == pytest.approx(0.8)
    turn(100, 0.01)
    assert backend.sample()[0].values["DCGM_FI_PROF_GR_ENGINE_ACTIVE"] == pytest.approx(0.8)


def test_buffers_of_instances_that_are_gone_serve_new_ones(nvml_node: NvmlNode) -> None:
    backend = cut_h100(nvml_node)
    gpu, instance = backend.inventory().gpus[0], backend.inventory().gpus[0].instances[0]
    assert {sample.instance for sample in backend.sample()} == {None, *(one.id for one in gpu.instances)}
    misbehave(nvml_node, "nvmlGpmSampleAlloc", pynvml.NVML_ERROR_MEMORY)
    for _ in range(3):
        backend.destroy_compute_instance(gpu.uuid, instance.id, 0)
        backend.destroy_gpu_instance(gpu.uuid, instance.id)
        backend.sample()
        made = backend.create_gpu_instance(gpu.uuid, instance.profile, instance.start)
        backend.create_compute_instance(gpu.uuid, made)
        fresh = next(sample for sample in backend.sample() if sample.instance == made)
        assert fresh.missing["DCGM_FI_PROF_SM_ACTIVE"] == SECOND_LOOK


def test_before_hopper_profiling_needs_dcgm_and_traffic_does_not(nvml_node: NvmlNode) -> None:
    nvml_node.show(*cut_node("a100", 1))
    whole, instance, *_ = nvml_node.backend().sample()
    assert whole.missing["DCGM_FI_PROF_SM_ACTIVE"] == NEEDS_DCGM
    assert whole.values["DCGM_FI_PROF_PCIE_TX_BYTES"] == 0
    assert instance.missing["DCGM_FI_PROF_PCIE_TX_BYTES"] == NEEDS_DCGM
    assert instance.missing["DCGM_FI_PROF_NVLINK_TX_BYTES"] == UNDER_MIG


def test_gpm_that_only_root_may_use_says_so_and_pcie_is_counted_otherwise(nvml_node: NvmlNode) -> None:
    backend = whole_h100(nvml_node, 1)
    misbehave(nvml_node, "nvmlGpmSampleGet", pynvml.NVML_ERROR_NO_PERMISSION)
    nvml_node.change(lambda machine: machine.gpu(0, pcie_tx=5000))
    (sample,) = backend.sample()
    assert sample.missing["DCGM_FI_PROF_SM_ACTIVE"] == "Insufficient Permissions"
    assert sample.values["DCGM_FI_PROF_PCIE_TX_BYTES"] == 5_000_000


def test_a_gpu_that_its_driver_refuses_to_sample_keeps_its_other_readings(nvml_node: NvmlNode) -> None:
    backend = whole_h100(nvml_node, 1)
    misbehave(nvml_node, "nvmlDeviceGetPowerUsage", pynvml.NVML_ERROR_UNKNOWN)
    (sample,) = backend.sample()
    assert sample.missing["DCGM_FI_DEV_POWER_USAGE"] == "Unknown Error"
    assert sample.values["DCGM_FI_DEV_GPU_TEMP"] == 35
    assert not sample.values.keys() & sample.missing.keys()


def test_a_gpu_without_nvlink_has_none_to_read(nvml_node: NvmlNode) -> None:
    nvml_node.show(*whole_node("l4", 1))
    (sample,) = nvml_node.backend().sample()
    assert sample.missing["DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL"] == NO_NVLINK


def test_an_instance_that_is_made_anew_does_not_inherit_the_xid_of_the_last_one(nvml_node: NvmlNode) -> None:
    backend = cut_h100(nvml_node)
    gpu = backend.inventory().gpus[0]
    instance = gpu.instances[0]
    backend.wait(0)
    nvml_node.change(lambda machine: machine.xid(0, 31, instance.id, 0))
    backend.wait(BOUND_S)
    assert _xids(backend)[instance.id] == 31
    backend.destroy_compute_instance(gpu.uuid, instance.id, 0)
    backend.destroy_gpu_instance(gpu.uuid, instance.id)
    assert backend.create_gpu_instance(gpu.uuid, instance.profile, instance.start) == instance.id
    assert _xids(backend)[instance.id] == 0


def _xids(backend: NvmlBackend) -> dict[int | None, float]:
    return {sample.instance: sample.values["DCGM_FI_DEV_XID_ERRORS"] for sample in backend.sample()}


def test_a_process_in_several_lists_is_one(nvml_node: NvmlNode) -> None:
    backend = whole_h100(nvml_node, 1)
    gpu = backend.inventory().gpus[0].uuid
    listed = FakeProcess(71, 10), FakeProcess(71, 30, kind="graphics"), FakeProcess(5, 1, kind="mps")
    nvml_node.change(lambda machine: machine.gpu(0, processes=listed))
    assert backend.processes(gpu) == (Process(5, 1), Process(71, 30))


def test_memory_that_the_driver_does_not_tell_is_none(nvml_node: NvmlNode) -> None:
    backend = whole_h100(nvml_node, 1)
    nvml_node.change(lambda machine: machine.process(0, FakeProcess(71, None)))
    assert backend.processes(backend.inventory().gpus[0].uuid) == (Process(71, 0),)


def test_where_the_whole_gpu_may_not_be_asked_its_instances_are(nvml_node: NvmlNode) -> None:
    backend = cut_h100(nvml_node)
    gpu = backend.inventory().gpus[0]
    first, second, *_ = (one.id for one in gpu.instances)
    inside = FakeProcess(71, 10, first, 0), FakeProcess(72, 10, second, 0)
    nvml_node.change(lambda machine: machine.gpu(0, processes=inside))
    misbehave(nvml_node, "nvmlDeviceGetComputeRunningProcesses_v3", pynvml.NVML_ERROR_NO_PERMISSION, times=1)
    assert backend.processes(gpu.uuid) == (Process(71, 10, first, 0), Process(72, 10, second, 0))


def test_what_does_not_fit_in_the_first_answer_is_asked_for_again(nvml_node: NvmlNode) -> None:
    backend = whole_h100(nvml_node, 1)
    many = tuple(FakeProcess(pid, 1) for pid in range(1, 200))
    nvml_node.change(lambda machine: machine.gpu(0, processes=many))
    assert len(backend.processes(backend.inventory().gpus[0].uuid)) == 199


def test_a_gpu_instance_without_a_compute_instance_is_seen_although_nvml_lists_no_device(
    nvml_node: NvmlNode,
) -> None:
    nvml_node.show(*cut_node("h100", 1, "all-enabled"))
    backend = nvml_node.backend()
    gpu = backend.inventory().gpus[0].uuid
    made = backend.create_gpu_instance(gpu, "3g.40gb", 4)
    misbehave(nvml_node, "nvmlGpuInstanceCreateComputeInstance", pynvml.NVML_ERROR_INSUFFICIENT_RESOURCES)
    with pytest.raises(BackendError):
        backend.create_compute_instance(gpu, made)
    (orphan,) = backend.inventory().gpus[0].instances
    assert (orphan.id, orphan.profile, orphan.start, orphan.compute) == (made, "3g.40gb", 4, ())
    backend.destroy_gpu_instance(gpu, made)
    assert backend.inventory().gpus[0].instances == ()


def test_compute_instances_smaller_than_their_gpu_instance_are_seen_with_their_slices(
    nvml_node: NvmlNode,
) -> None:
    nvml_node.show(*cut_node("h100", 1, "all-enabled"))
    nvml_node.change(lambda machine: machine.cut(0, "4g.40gb", 0, compute=(2, 1)))
    (instance,) = nvml_node.backend().inventory().gpus[0].instances
    assert [(one.id, one.slices, one.multiprocessors) for one in instance.compute] == [
        (0, 2, 32),
        (1, 1, 16),
    ]
    assert instance.whole is None


def test_an_impossible_place_is_refused_with_what_is_possible(nvml_node: NvmlNode) -> None:
    nvml_node.show(*cut_node("a30", 1, "all-enabled"))
    backend = nvml_node.backend()
    with pytest.raises(BackendError) as error:
        backend.create_gpu_instance(backend.inventory().gpus[0].uuid, "2g.12gb", 1)
    assert "0, 2" in error.value.hint


@pytest.mark.parametrize("shown", [False, True])
def test_what_a_gpu_can_be_cut_into_is_known_while_mig_is_off(nvml_node: NvmlNode, shown: bool) -> None:
    backend = whole_h100(nvml_node)
    nvml_node.change(lambda machine: machine.gpu(0, mig_query=shown))
    cuttable, other = backend.inventory().gpus
    assert cuttable.geometry == other.geometry is not None
