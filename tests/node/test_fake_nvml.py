"""The fake NVML by itself, through unmodified nvidia-ml-py: what any client of it may rely on."""

from __future__ import annotations

import ctypes
import random
import subprocess
import sys
from collections.abc import Callable

import pynvml
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.fakenvml import statefile
from tests.fakenvml.gpu import Fabric, FakeGPU, FakeProcess, Meter, RetiredPage
from tests.fakenvml.library import STATE
from tests.fakenvml.machine import FakeMachine
from tests.fakenvml.products import machine
from tests.node.nvml_nodes import NvmlNode, cut_node, whole_node

from gpufleet.fleet.mig import GEOMETRIES, Placement, place
from gpufleet.fleet.products import PRODUCTS, find_product

H100 = GEOMETRIES["h100-80gb"]


@pytest.fixture
def gpu(nvml_node: NvmlNode) -> object:
    """The handle of an H100 in MIG mode without instances."""
    nvml_node.show(*cut_node("h100", 1, "all-enabled"))
    nvml_node.backend()
    return pynvml.nvmlDeviceGetHandleByIndex(0)


def code_of(call: Callable[..., object], *args: object) -> int:
    """The code that a call returns."""
    try:
        call(*args)
    except pynvml.NVMLError as error:
        return int(error.value)
    return int(pynvml.NVML_SUCCESS)


def profile_ids(gpu: object) -> dict[str, int]:
    """The ids of profiles by their names."""
    found = {}
    for number in range(pynvml.NVML_GPU_INSTANCE_PROFILE_COUNT):
        try:
            info = pynvml.nvmlDeviceGetGpuInstanceProfileInfo(gpu, number)
        except pynvml.NVMLError_NotSupported:
            continue
        found[str(info.name).removeprefix("MIG ")] = int(info.id)
    return found


def instance_at(gpu: object, ident: int, start: int, size: int) -> object:
    """A new GPU instance at a place."""
    where = pynvml.c_nvmlGpuInstancePlacement_t(start, size)
    return pynvml.nvmlDeviceCreateGpuInstanceWithPlacement(gpu, ident, ctypes.byref(where))


def test_profiles_have_the_ids_that_the_drivers_tools_show(gpu: object) -> None:
    assert profile_ids(gpu) == {
        "1g.10gb": 19, "1g.10gb+me": 20, "1g.20gb": 15, "2g.20gb": 14, "3g.40gb": 9, "4g.40gb": 5,
        "7g.80gb": 0,
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_an_instance_can_be_made_exactly_where_the_geometry_has_room(gpu: object, seed: int) -> None:
    rng = random.Random(seed)
    ids = profile_ids(gpu)
    lying: dict[Placement, object] = {}
    refused = 0
    for _ in range(120):
        profile = rng.choice(list(H100.profiles.values()))
        wanted = Placement(rng.choice(profile.starts), profile.size, profile.name)
        if lying and rng.random() < 0.4:
            gone = rng.choice(sorted(lying))
            pynvml.nvmlGpuInstanceDestroy(lying.pop(gone))
        fits = place(H100, (), [*lying, wanted]) is not None and not any(
            other.mask & wanted.mask for other in lying
        )
        room = pynvml.nvmlDeviceGetGpuInstanceRemainingCapacity(gpu, ids[profile.name])
        assert room == _most(profile.name, list(lying))
        try:
            lying[wanted] = instance_at(gpu, ids[profile.name], wanted.start, wanted.size)
        except pynvml.NVMLError_InsufficientResources:
            refused += 1
            assert not fits
        else:
            assert fits
    assert refused > 10


def _most(profile: str, lying: list[Placement]) -> int:
    """How many instances of a profile fit beside others, by the exact search."""
    count = 0
    while place(H100, [profile] * (count + 1), lying) is not None:
        count += 1
    return count


def test_a_gpu_instance_is_in_use_until_its_compute_instances_are_gone(gpu: object) -> None:
    instance = pynvml.nvmlDeviceCreateGpuInstance(gpu, 9)
    compute = pynvml.nvmlGpuInstanceCreateComputeInstance(instance, 2)
    assert code_of(pynvml.nvmlGpuInstanceDestroy, instance) == pynvml.NVML_ERROR_IN_USE
    pynvml.nvmlComputeInstanceDestroy(compute)
    pynvml.nvmlGpuInstanceDestroy(instance)
    for call in (pynvml.nvmlGpuInstanceGetInfo, pynvml.nvmlGpuInstanceDestroy):
        assert code_of(call, instance) == pynvml.NVML_ERROR_NOT_FOUND
    assert code_of(pynvml.nvmlComputeInstanceGetInfo, compute) == pynvml.NVML_ERROR_NOT_FOUND


def test_a_handle_of_an_instance_does_not_become_that_of_its_successor(gpu: object) -> None:
    before = instance_at(gpu, 19, 3, 1)
    pynvml.nvmlGpuInstanceDestroy(before)
    after = instance_at(gpu, 19, 3, 1)
    assert pynvml.nvmlGpuInstanceGetInfo(after).id == 10
    assert code_of(pynvml.nvmlGpuInstanceGetInfo, before) == pynvml.NVML_ERROR_NOT_FOUND


def test_compute_instances_share_the_slices_of_their_gpu_instance(gpu: object) -> None:
    instance = pynvml.nvmlDeviceCreateGpuInstance(gpu, 5)
    assert (
        code_of(pynvml.nvmlGpuInstanceCreateComputeInstance, instance, 2) == pynvml.NVML_ERROR_NOT_SUPPORTED
    )
    assert pynvml.nvmlGpuInstanceGetComputeInstanceRemainingCapacity(instance, 1) == 2
    half = pynvml.nvmlGpuInstanceCreateComputeInstance(instance, 1)
    assert pynvml.nvmlGpuInstanceGetComputeInstanceRemainingCapacity(instance, 1) == 1
    assert pynvml.nvmlGpuInstanceGetComputeInstanceRemainingCapacity(instance, 0) == 2
    full = code_of(pynvml.nvmlGpuInstanceCreateComputeInstance, instance, 3)
    assert full == pynvml.NVML_ERROR_INSUFFICIENT_RESOURCES
    info = pynvml.nvmlComputeInstanceGetInfo(half)
    assert (info.id, info.placement.start, info.placement.size) == (0, 0, 2)
    device = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, 0)
    assert pynvml.nvmlDeviceGetName(device) == "NVIDIA H100 80GB HBM3 MIG 2c.4g.40gb"
    assert pynvml.nvmlDeviceGetAttributes(device).multiprocessorCount == 32


def test_a_mig_device_is_found_by_its_uuid_and_leads_to_its_gpu(gpu: object) -> None:
    instance = pynvml.nvmlDeviceCreateGpuInstance(gpu, 9)
    pynvml.nvmlGpuInstanceCreateComputeInstance(instance, 2)
    uuid = pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, 0))
    device = pynvml.nvmlDeviceGetHandleByUUID(uuid)
    assert pynvml.nvmlDeviceIsMigDeviceHandle(device)
    assert pynvml.nvmlDeviceGetGpuInstanceId(device) == pynvml.nvmlGpuInstanceGetInfo(instance).id
    parent = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device)
    assert pynvml.nvmlDeviceGetUUID(parent) == pynvml.nvmlDeviceGetUUID(gpu)
    assert pynvml.nvmlDeviceGetMemoryInfo(device).total == 40779 << 20
    for call in (pynvml.nvmlDeviceGetPowerUsage, pynvml.nvmlDeviceGetMigMode):
        assert code_of(call, device) == pynvml.NVML_ERROR_NOT_SUPPORTED


def test_arguments_that_make_no_sense_are_refused(gpu: object, nvml_node: NvmlNode) -> None:
    where = ctypes.byref(pynvml.c_nvmlGpuInstancePlacement_t(1, 4))
    buffer, count = ctypes.create_string_buffer(4), ctypes.c_uint(0)
    uuid = ctypes.CDLL("libnvidia-ml.so.1").nvmlDeviceGetUUID
    assert code_of(pynvml.nvmlDeviceGetHandleByIndex, 7) == pynvml.NVML_ERROR_INVALID_ARGUMENT
    assert code_of(pynvml.nvmlDeviceGetHandleByUUID, "GPU-x") == pynvml.NVML_ERROR_NOT_FOUND
    assert code_of(pynvml.nvmlDeviceGetGpuInstanceById, gpu, 3) == pynvml.NVML_ERROR_NOT_FOUND
    assert code_of(pynvml.nvmlDeviceCreateGpuInstance, gpu, 99) == pynvml.NVML_ERROR_INVALID_ARGUMENT
    wrong = code_of(pynvml.nvmlDeviceCreateGpuInstanceWithPlacement, gpu, 9, where)
    assert wrong == pynvml.NVML_ERROR_INVALID_ARGUMENT
    assert uuid(gpu, buffer, 4) == pynvml.NVML_ERROR_INSUFFICIENT_SIZE
    assert uuid(gpu, None, 96) == pynvml.NVML_ERROR_INVALID_ARGUMENT
    assert uuid(None, buffer, 96) == pynvml.NVML_ERROR_INVALID_ARGUMENT
    nvml_node.change(lambda machine: machine.process(0, FakeProcess(71, 1)))
    running = ctypes.CDLL("libnvidia-ml.so.1").nvmlDeviceGetComputeRunningProcesses_v3
    assert running(gpu, ctypes.byref(count), None) == pynvml.NVML_ERROR_INSUFFICIENT_SIZE
    assert count.value == 1


def test_a_lost_gpu_answers_nothing_and_is_itself_after_a_reset(gpu: object, nvml_node: NvmlNode) -> None:
    nvml_node.change(lambda machine: machine.lose(0))
    for call in (pynvml.nvmlDeviceGetUUID, pynvml.nvmlDeviceGetTemperature, pynvml.nvmlDeviceGetMigMode):
        args = (0,) if call is pynvml.nvmlDeviceGetTemperature else ()
        assert code_of(call, gpu, *args) == pynvml.NVML_ERROR_GPU_IS_LOST
    assert pynvml.nvmlDeviceGetCount() == 1
    nvml_node.change(lambda machine: machine.reset(0))
    assert pynvml.nvmlDeviceGetMigMode(gpu) == [1, 1]


def test_a_change_of_mode_before_hopper_waits_for_a_reset(nvml_node: NvmlNode) -> None:
    nvml_node.show(*whole_node("a100", 1))
    nvml_node.backend()
    gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
    assert pynvml.nvmlDeviceSetMigMode(gpu, 1) == pynvml.NVML_ERROR_RESET_REQUIRED
    assert pynvml.nvmlDeviceGetMigMode(gpu) == [0, 1]
    assert code_of(pynvml.nvmlDeviceCreateGpuInstance, gpu, 9) == pynvml.NVML_ERROR_NOT_SUPPORTED
    nvml_node.change(lambda machine: machine.reset(0))
    assert pynvml.nvmlDeviceGetMigMode(gpu) == [1, 1]
    assert code_of(pynvml.nvmlDeviceCreateGpuInstance, gpu, 9) == pynvml.NVML_SUCCESS


def test_totals_go_on_when_rates_change(nvml_node: NvmlNode) -> None:
    nvml_node.show(*whole_node("h100", 1))
    nvml_node.backend()
    gpu = pynvml.nvmlDeviceGetHandleByIndex(0)

    def at(now: float, change: Callable[[FakeMachine], FakeMachine]) -> int:
        nvml_node.change(lambda machine: replace(change(machine), clock_s=now))
        return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu))

    start = at(100.0, lambda machine: machine.power(0, 100_000, 100.0))
    assert at(110.0, lambda machine: machine) - start == 1_000_000
    assert at(110.0, lambda machine: machine.power(0, 700_000, 110.0)) - start == 1_000_000
    assert pynvml.nvmlDeviceGetPowerUsage(gpu) == 700_000
    assert at(111.0, lambda machine: machine) - start == 1_700_000


def test_failures_begin_after_as_many_good_calls_and_end_after_as_many_bad_ones(
    gpu: object, nvml_node: NvmlNode
) -> None:
    nvml_node.change(lambda machine: machine.fail("nvmlDeviceGetTemp*", 999, gpu=0, after=2, times=1))
    codes = [code_of(pynvml.nvmlDeviceGetTemperature, gpu, 0) for _ in range(4)]
    assert codes == [0, 0, 999, 0]


def test_a_set_of_events_hears_only_what_it_was_registered_for(gpu: object, nvml_node: NvmlNode) -> None:
    events = pynvml.nvmlEventSetCreate()
    unknown = code_of(pynvml.nvmlDeviceRegisterEvents, gpu, 1 << 40, events)
    assert unknown == pynvml.NVML_ERROR_NOT_SUPPORTED
    pynvml.nvmlDeviceRegisterEvents(gpu, pynvml.nvmlEventTypeXidCriticalError, events)
    nvml_node.change(lambda machine: machine.ecc(0, double=1).xid(0, 94, 3, 0))
    data = pynvml.nvmlEventSetWait_v2(events, 1000)
    assert (data.eventType, data.eventData) == (pynvml.nvmlEventTypeXidCriticalError, 94)
    assert (data.gpuInstanceId, data.computeInstanceId) == (3, 0)
    assert code_of(pynvml.nvmlEventSetWait_v2, events, 1) == pynvml.NVML_ERROR_TIMEOUT
    pynvml.nvmlEventSetFree(events)
    assert code_of(pynvml.nvmlEventSetWait_v2, events, 1) == pynvml.NVML_ERROR_INVALID_ARGUMENT


def test_a_state_file_that_a_shell_writes_to_is_enough(nvml_node: NvmlNode) -> None:
    nvml_node.show(*whole_node("l4", 1))
    nvml_node.backend()
    gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
    state = nvml_node.file.path
    state.write_text(state.read_text().replace("gpu 0 temperature 35", "gpu 0 temperature 91"))
    assert pynvml.nvmlDeviceGetTemperature(gpu, 0) == 91
    state.write_text(state.read_text().replace("gpu 0 temperature 91\n", ""))
    assert code_of(pynvml.nvmlDeviceGetTemperature, gpu, 0) == pynvml.NVML_ERROR_NOT_SUPPORTED


def test_processes_that_change_one_machine_at_once_lose_nothing(nvml_node: NvmlNode) -> None:
    nvml_node.show(*cut_node("h100", 4, "all-enabled"))
    nvml_node.backend()
    code = (
        "import pynvml, sys; pynvml.nvmlInit(); gpu = pynvml.nvmlDeviceGetHandleByIndex(int(sys.argv[1]))\n"
        "for _ in range(7): pynvml.nvmlGpuInstanceCreateComputeInstance("
        "pynvml.nvmlDeviceCreateGpuInstance(gpu, 19), 0)"
    )
    folder = str(next(nvml_node.root.rglob("libnvidia-ml.so.1")).parent)
    environment = {"LD_LIBRARY_PATH": folder, STATE: str(nvml_node.file.path)}
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(index)], env=environment) for index in range(4)
    ]
    assert [process.wait(60) for process in started] == [0] * 4
    assert [len(one.instances) for one in nvml_node.machine.gpus] == [7] * 4
    uuids = {one.uuid for gpu in nvml_node.machine.gpus for i in gpu.instances for one in i.compute}
    assert len(uuids) == 28
    births = [i.birth for gpu in nvml_node.machine.gpus for i in gpu.instances]
    assert len(set(births)) == 28


@pytest.mark.parametrize("product", sorted(PRODUCTS))
def test_a_machine_of_any_product_survives_its_state_file(product: str) -> None:
    made = machine(find_product(product), 2)
    assert statefile.parse(statefile.text(made)) == made


_METERS = st.builds(Meter, *[st.floats(0, 1e12)] * 3)
_OPTIONAL = st.none() | st.integers(0, 2**31)
_IDS = st.none() | st.integers(0, 14)
_GPUS = st.builds(
    FakeGPU,
    uuid=st.just("GPU-a"),
    name=st.sampled_from(["Tesla T4", "NVIDIA A30"]),
    pci_bus_id=st.just("00000000:07:00.0"),
    pci_device=st.integers(0, 2**32 - 1),
    capability=st.tuples(st.integers(1, 13), st.integers(0, 9)),
    architecture=st.integers(0, 20),
    memory_mib=st.integers(1, 2**20),
    serial=st.sampled_from(["", "1234"]),
    lost=st.booleans(),
    recovery_action=_IDS,
    mig=st.sampled_from(["unsupported", "off", "on"]),
    temperature=_OPTIONAL,
    retired_pending=st.none() | st.booleans(),
    power=st.none() | _METERS,
    nvlink_tx=_METERS,
    links=st.lists(st.sampled_from(["", "00000000:C4:00.0"]), max_size=3).map(tuple),
    fabric=st.none() | st.builds(Fabric, st.just("0" * 8), st.integers(0, 9)),
    processes=st.lists(
        st.builds(
            FakeProcess, st.integers(1, 9999), _OPTIONAL, _IDS, _IDS, st.sampled_from(["mps", "compute"])
        ),
        max_size=3,
    ).map(tuple),
    retired=st.none()
    | st.lists(st.builds(RetiredPage, st.integers(0, 1), st.integers(0, 2**40)), max_size=2).map(tuple),
    violations=st.dictionaries(st.integers(0, 11), st.integers(0, 2**60), max_size=2),
    gpm_rates=st.dictionaries(st.tuples(_IDS, st.integers(1, 99)), _METERS, max_size=2),
    fields=st.dictionaries(
        st.tuples(st.integers(1, 300), st.integers(0, 2**32 - 1)),
        st.integers(0, 2**60) | st.floats(0, 1e9).map(lambda number: float(f"{number:.3f}")),
        max_size=2,
    ),
)


@given(st.lists(_GPUS, max_size=2), st.booleans(), st.none() | st.floats(0, 1e10))
def test_any_machine_survives_its_state_file(gpus: list[FakeGPU], root: bool, clock_s: float | None) -> None:
    made = FakeMachine(gpus=tuple(gpus), root=root, clock_s=clock_s, names={7: "a name"})
    if gpus:
        made = made.xid(0, 79, 3, 0).hang("nvml*", 1.5).fail("nvmlInit*", 9, times=2).crash(2, "before")
    assert statefile.parse(statefile.text(made)) == made
