"""What NVML's return codes mean for a user: the reason of a `BackendError`, and what to do.

Source: NVML API reference (nvmlReturn_t).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import pynvml

from gpufleet.devices.backend import BackendError

P = ParamSpec("P")
T = TypeVar("T")

_LOG = "look for NVRM and Xid lines in the kernel log (dmesg)"
_NEWER = "update the NVIDIA driver"
_ROOT = "run as root, in a container: privileged"
_DRIVER = "check that the driver is installed and loaded: nvidia-smi"
_RESET = "drain the node, then reset the GPU: nvidia-smi --gpu-reset -i GPU"
_BUSY = "stop what uses the GPU (nvidia-smi shows it), then try again"
_BUG = "this is a fault of gpufleet: please report it with the driver's version"

# fmt: off
_CODES = (
    # NVML return code                               reason                   what to do
    (pynvml.NVML_ERROR_UNINITIALIZED,             "DriverNotLoaded",       "start the agent again"),
    (pynvml.NVML_ERROR_INVALID_ARGUMENT,          "DriverError",           _BUG),
    (pynvml.NVML_ERROR_NOT_SUPPORTED,             "NotSupported",          "use a GPU or a driver that can do this"),
    (pynvml.NVML_ERROR_NO_PERMISSION,             "NoPermission",          _ROOT),
    (pynvml.NVML_ERROR_ALREADY_INITIALIZED,       "DriverError",           _BUG),
    (pynvml.NVML_ERROR_NOT_FOUND,                 "NotFound",              "list what there is: nvidia-smi -L"),
    (pynvml.NVML_ERROR_INSUFFICIENT_SIZE,         "DriverError",           _BUG),
    (pynvml.NVML_ERROR_INSUFFICIENT_POWER,        "InvalidState",          "check the power cables of the GPU"),
    (pynvml.NVML_ERROR_DRIVER_NOT_LOADED,         "DriverNotLoaded",       _DRIVER),
    (pynvml.NVML_ERROR_TIMEOUT,                   "Timeout",               "try again; " + _LOG),
    (pynvml.NVML_ERROR_IRQ_ISSUE,                 "DriverError",           _LOG),
    (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,         "DriverNotLoaded",       _DRIVER),
    (pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,        "NotSupported",          _NEWER),
    (pynvml.NVML_ERROR_CORRUPTED_INFOROM,         "DriverError",           "the GPU needs service by its vendor"),
    (pynvml.NVML_ERROR_GPU_IS_LOST,               "GpuLost",               "reboot the node; if it stays lost, reseat or replace the GPU"),
    (pynvml.NVML_ERROR_RESET_REQUIRED,            "ResetRequired",         _RESET),
    (pynvml.NVML_ERROR_OPERATING_SYSTEM,          "NoPermission",          "allow the container the device files /dev/nvidia*"),
    (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,   "DriverNotLoaded",       "the library is of another driver than the kernel module: reboot the node"),
    (pynvml.NVML_ERROR_IN_USE,                    "GpuInUse",              _BUSY),
    (pynvml.NVML_ERROR_MEMORY,                    "DriverError",           "free memory on the node"),
    (pynvml.NVML_ERROR_NO_DATA,                   "NotFound",              "try again later"),
    (pynvml.NVML_ERROR_VGPU_ECC_NOT_SUPPORTED,    "NotSupported",          "switch ECC off on the host of the vGPU"),
    (pynvml.NVML_ERROR_INSUFFICIENT_RESOURCES,    "InsufficientResources", "remove idle instances, or use a smaller profile"),
    (pynvml.NVML_ERROR_FREQ_NOT_SUPPORTED,        "NotSupported",          "use a clock that the GPU offers: nvidia-smi -q -d SUPPORTED_CLOCKS"),
    (pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH, "NotSupported",          _NEWER),
    (pynvml.NVML_ERROR_DEPRECATED,                "NotSupported",          "use an older driver, or a newer gpufleet"),
    (pynvml.NVML_ERROR_NOT_READY,                 "InvalidState",          "try again in a moment"),
    (pynvml.NVML_ERROR_GPU_NOT_FOUND,             "NotFound",              "list the GPUs: nvidia-smi -L"),
    (pynvml.NVML_ERROR_INVALID_STATE,             "InvalidState",          "switch MIG mode as needed, and reset the GPU when a change of mode is pending"),
    (pynvml.NVML_ERROR_RESET_TYPE_NOT_SUPPORTED,  "NotSupported",          "reboot the node"),
    (pynvml.NVML_ERROR_UNKNOWN,                   "DriverError",           _LOG),
)
# fmt: on

_MEANINGS = {int(code): (reason, hint) for code, reason, hint in _CODES}

GONE = frozenset((pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED))
"""Codes after which a GPU answers nothing else either."""

ABSENT = frozenset(
    (
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        pynvml.NVML_ERROR_NO_PERMISSION,
        pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
        pynvml.NVML_ERROR_DEPRECATED,
        pynvml.NVML_ERROR_VGPU_ECC_NOT_SUPPORTED,
    )
)
"""Codes of a call that gives the same answer for as long as this process runs."""

_NO_SUCH = frozenset(
    (pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_NOT_FOUND, pynvml.NVML_ERROR_INVALID_ARGUMENT)
)


def backend_error(code: int, what: str) -> BackendError:
    """The error of an NVML return code; `what` says what was tried on which object."""
    reason, hint = _MEANINGS.get(code, ("DriverError", _LOG))
    return BackendError(reason=reason, message=f"cannot {what}: {pynvml.NVMLError(code)}", hint=hint)


@contextmanager
def trying(what: str) -> Iterator[None]:
    """Turns NVML's errors into `BackendError`; `what` says what is tried on which object."""
    try:
        yield
    except pynvml.NVMLError as error:
        raise backend_error(error.value, what) from error


def known(default: T, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The answer of an NVML call, or `default` where a GPU does not say; raises NVMLError for one that is gone."""
    try:
        return call(*args, **kwargs)
    except pynvml.NVMLError as error:
        if error.value in GONE:
            raise
        return default


def existing(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
    """The answer of an NVML call, or None when what it asks for does not exist; raises NVMLError."""
    try:
        return call(*args, **kwargs)
    except pynvml.NVMLError as error:
        if error.value not in _NO_SUCH:
            raise
        return None
