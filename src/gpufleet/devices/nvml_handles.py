"""The GPUs that NVML lists now, with their handles. A GPU that is gone keeps the uuid that it had.

An index may change when a GPU is added or removed, so nothing keeps a handle: each pass lists them anew,
which costs two cheap calls per GPU.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec
import pynvml

from gpufleet.devices.nvml_errors import trying

Handle: TypeAlias = Any
"""A pointer of the driver: of a GPU, a MIG device, a GPU instance or a compute instance."""


class Listed(msgspec.Struct, frozen=True):
    """A GPU in NVML's list; `handle` is None when it does not answer, and `error` says why."""

    index: int
    uuid: str
    handle: Handle
    error: str = ""


class Handles:
    """Lists GPUs. For any thread."""

    def __init__(self) -> None:
        self._uuids: dict[int, str] = {}

    def all(self) -> tuple[Listed, ...]:
        """The GPUs by index; a lost one that was never seen is called `unknown-<index>`."""
        with trying("list the GPUs"):
            count = pynvml.nvmlDeviceGetCount()
        return tuple(self._listed(index) for index in range(count))

    def _listed(self, index: int) -> Listed:
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            uuid = self._uuids[index] = pynvml.nvmlDeviceGetUUID(handle)
        except pynvml.NVMLError as error:
            return Listed(index, self._uuids.get(index, f"unknown-{index}"), None, str(error))
        return Listed(index, uuid, handle)


def handle_of(uuid: str) -> Handle:
    """The handle of a GPU; raises BackendError (NotFound, GpuLost, ...)."""
    with trying(f"find {uuid}"):
        return pynvml.nvmlDeviceGetHandleByUUID(uuid)


def instance_id(ident: int) -> int | None:
    """The id of a GPU or compute instance; None for the number by which NVML says that there is none."""
    return None if ident == pynvml.NVML_GPU_INSTANCE_ID_ANY else int(ident)
