"""The processes on a GPU: those that compute, draw, or compute through an MPS server.

NVML tells of all instances at once to whoever may see them; a driver that does not is asked device by device.
Source: NVML API reference.
"""

from __future__ import annotations

from collections.abc import Iterator

import pynvml

from gpufleet.devices.backend import Process
from gpufleet.devices.nvml_errors import known
from gpufleet.devices.nvml_handles import Handle, instance_id
from gpufleet.devices.nvml_mig import mig_devices

_MORE_LISTS = (
    pynvml.nvmlDeviceGetMPSComputeRunningProcesses_v3,
    pynvml.nvmlDeviceGetGraphicsRunningProcesses_v3,
)

_Unit = tuple[int, int | None, int | None]


def read_processes(gpu: Handle) -> tuple[Process, ...]:
    """The processes of a GPU by pid; raises NVMLError.

    One that stands in several lists is one, with the memory of the list that tells most. Memory that the
    driver does not tell is 0.
    """
    found: dict[_Unit, Process] = {}
    for process in _everywhere(gpu):
        unit = process.pid, process.instance, process.compute
        if unit not in found or found[unit].memory_mib < process.memory_mib:
            found[unit] = process
    return tuple(
        found[unit] for unit in sorted(found, key=lambda unit: [-1 if n is None else n for n in unit])
    )


def _everywhere(gpu: Handle) -> Iterator[Process]:
    try:
        yield from _processes(gpu)
    except pynvml.NVMLError_NoPermission:
        for (instance, compute), device in mig_devices(gpu):
            yield from (Process(one.pid, one.memory_mib, instance, compute) for one in _processes(device))


def _processes(device: Handle) -> Iterator[Process]:
    listed = list(pynvml.nvmlDeviceGetComputeRunningProcesses_v3(device))
    for call in _MORE_LISTS:
        listed += known([], call, device)
    for one in listed:
        ids = instance_id(one.gpuInstanceId), instance_id(one.computeInstanceId)
        yield Process(int(one.pid), int(one.usedGpuMemory or 0) >> 20, *ids)
