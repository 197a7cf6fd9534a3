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
_OTHER = "use a GPU or a driver that can do this"
_LIST = "list what there is: nvidia-smi -L"
_SERVICE = "the GPU needs service by its vendor"
_REBOOT = "reboot the node; if it stays lost, reseat or replace the GPU"
_FILES = "allow the container the device files /dev/nvidia*"
_MISMATCH = "the library is of another driver than the kernel module: reboot the node"
_ECC = "switch ECC off on the host of the vGPU"
_ROOM = "remove idle instances, or use a smaller profile"
_CLOCKS = "use a clock that the GPU offers: nvidia-smi -q -d SUPPORTED_CLOCKS"
_VERSIONS = "use an older driver, or a newer gpufleet"
_MODE = "switch MIG mode as needed, and reset the GPU when a change of mode is pending"

# fmt: off
_CODES = (
    # NVML return code                               reason                   what to do
    (pynvml.NVML_ERROR_UNINITIALIZED,             "DriverNotLoaded",       "start the agent again"),
    (pynvml.NVML_ERROR_INVALID_ARGUMENT,          "DriverError",           _BUG),
    (pynvml.NVML_ERROR_NOT_SUPPORTED,             "NotSupported",          _OTHER),
    (pynvml.NVML_ERROR_NO_PERMISSION,             "NoPermission",          _ROOT),
    (pynvml.NVML_ERROR_ALREADY_INITIALIZED,       "DriverError",           _BUG),
    (pynvml.NVML_ERROR_NOT_FOUND,                 "NotFound",              _LIST),
    (pynvml.NVML_ERROR_INSUFFICIENT_SIZE,         "DriverError",           _BUG),
    (pynvml.NVML_ERROR_INSUFFICIENT_POWER,        "InvalidState",          "check the GPU's power cables"),
    (pynvml.NVML_ERROR_DRIVER_NOT_LOADED,         "DriverNotLoaded",       _DRIVER),
    (pynvml.NVML_ERROR_TIMEOUT,                   "Timeout",               "try again; " + _LOG),
    (pynvml.NVML_ERROR_IRQ_ISSUE,                 "DriverError",           _LOG),
    (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,         "DriverNotLoaded",       _DRIVER),
    (pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,        "NotSupported",          _NEWER),
    (pynvml.NVML_ERROR_CORRUPTED_INFOROM,         "DriverError",           _SERVICE),
    (pynvml.NVML_ERROR_GPU_IS_LOST,               "GpuLost",               _REBOOT),
    (pynvml.NVML_ERROR_RESET_REQUIRED,            "ResetRequired",         _RESET),
    (pynvml.NVML_ERROR_OPERATING_SYSTEM,          "NoPermission",          _FILES),
    (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,   "DriverNotLoaded",       _MISMATCH),
    (pynvml.NVML_ERROR_IN_USE,                    "GpuInUse",              _BUSY),
    (pynvml.NVML_ERROR_MEMORY,                    "DriverError",           "free memory on the node"),
    (pynvml.NVML_ERROR_NO_DATA,                   "NotFound",              "try again later"),
    (pynvml.NVML_ERROR_VGPU_ECC_NOT_SUPPORTED,    "NotSupported",          _ECC),
    (pynvml.NVML_ERROR_INSUFFICIENT_RESOURCES,    "InsufficientResources", _ROOM),
    (pynvml.NVML_ERROR_FREQ_NOT_SUPPORTED,        "NotSupported",          _CLOCKS),
    (pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH, "NotSupported",          _NEWER),
    (pynvml.NVML_ERROR_DEPRECATED,                "NotSupported",          _VERSIONS),
    (pynvml.NVML_ERROR_NOT_READY,                 "InvalidState",          "try again in a moment"),
    (pynvml.NVML_ERROR_GPU_NOT_FOUND,             "NotFound",              "list the GPUs: nvidia-smi -L"),
    (pynvml.NVML_ERROR_INVALID_STATE,             "InvalidState",          _MODE),
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
    """The answer of an NVML call, or `default` where a GPU does not say; raises NVMLError for one gone."""
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
