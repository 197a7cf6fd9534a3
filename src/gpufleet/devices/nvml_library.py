"""Loading NVML. The library belongs to the driver, and a container may see it only below the host's root.

glibc gives a library that is loaded already to whoever asks for its name, so loading the host's file first is
all it takes for pynvml to find it.
"""

from __future__ import annotations

import ctypes

import pynvml

from gpufleet.devices.backend import BackendError
from gpufleet.devices.hostfiles import NVML, HostFiles
from gpufleet.devices.nvml_errors import backend_error


def open_nvml(host: HostFiles) -> None:
    """Load and initialise NVML; raises BackendError (DriverNotLoaded, ...).

    The library of another root comes before what the linker finds, and after it when the root is our own.
    """
    if not (host.own and _loads(NVML)):
        any(_loads(str(path)) for path in host.libraries())
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise _explained(error.value, host) from error


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def _explained(code: int, host: HostFiles) -> BackendError:
    error = backend_error(code, "open NVML")
    if code != pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
        return error
    found = ", ".join(str(path) for path in host.libraries())
    return BackendError(
        reason=error.reason,
        message=f"there is no {NVML} that can be loaded" + (f" ({found} cannot)" if found else ""),
        hint="install the NVIDIA driver, or give the root of the host's file system with --host-root",
    )
