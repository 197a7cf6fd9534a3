"""What lies on a GPU node itself, read below a host root. Nothing is changed.

A driver counts when its kernel module is loaded; the socket of a plugin or an MPS daemon counts when somebody
answers on it, because one that is gone leaves its socket behind. Our own are known by their names, and by the
record beside an MPS daemon's pipe folder. Source: NVIDIA's driver, container toolkit and device plugin.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

from gpufleet.devices.allocation import CONTROL_NODES, DriverNodes, parse_mig_minors
from gpufleet.devices.mps import RECORD
from gpufleet.devices.ownership_facts import HostFacts

OUR_SOCKETS = "gpufleet-"
"""How the names of our own plugin's sockets begin."""

_VERSION = re.compile(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b")
_NVML = "libnvidia-ml.so.1"
_LIBRARIES = (
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
    "usr/lib64",
    "usr/lib",
    "run/nvidia/driver/usr/lib/x86_64-linux-gnu",
    "run/nvidia/driver/usr/lib/aarch64-linux-gnu",
    "run/nvidia/driver/usr/lib64",
    "home/kubernetes/bin/nvidia/lib64",
)
_TOOLKITS = ("usr/bin", "usr/local/bin", "usr/local/nvidia/toolkit", "opt/nvidia/toolkit", "bin")
_TOOLS = ("nvidia-ctk", "nvidia-container-runtime", "nvidia-container-toolkit")
_UNITS = ("etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system", "run/systemd/system")
_SOCKETS = ("nvidia-*.sock", "nvidiaGPU-*.sock")
_PLUGINS = "var/lib/kubelet/device-plugins"
_MPS_ROOT = "run/nvidia/mps"
_MPS = (_MPS_ROOT, "tmp/nvidia-mps")
_NVIDIA, _DISPLAY = "0x10de", "0x03"


def host_facts(root: Path) -> HostFacts:
    """The facts of the host whose file system is at `root`."""
    return HostFacts(
        driver=_driver(root),
        library=next((f"/{folder}" for folder in _LIBRARIES if (root / folder / _NVML).exists()), ""),
        gpus=sum(_is_gpu(device) for device in _entries(root / "sys/bus/pci/devices")),
        toolkit=_tool(root, _TOOLS),
        cdi=tuple(_named(root, path) for path in _cdi_specs(root)),
        sockets=tuple(_named(root, path) for path in _plugin_sockets(root)),
        services=tuple(sorted({path.name for path in _plugin_units(root)})),
        mps=tuple(_named(root, path.parent) for path in _mps_pipes(root)),
    )


def driver_nodes(root: Path) -> DriverNodes:
    """The device nodes of the driver that the host has now."""
    control = tuple(path for path in CONTROL_NODES if (root / path.lstrip("/")).exists())
    return DriverNodes(control, parse_mig_minors(_text(root / "proc/driver/nvidia-caps/mig-minors")))


def spec_generator(root: Path) -> str:
    """Where nvidia-ctk is on the host, as the host names it; empty without one."""
    return _tool(root, _TOOLS[:1])


def _tool(root: Path, tools: Sequence[str]) -> str:
    places = (f"/{place}/{tool}" for place in _TOOLKITS for tool in tools)
    return next((place for place in places if (root / place.lstrip("/")).exists()), "")


def _driver(root: Path) -> str:
    match = _VERSION.search(_text(root / "proc/driver/nvidia/version"))
    return match[1] if match else ""


def _is_gpu(device: Path) -> bool:
    return _text(device / "vendor").startswith(_NVIDIA) and _text(device / "class").startswith(_DISPLAY)


def _cdi_specs(root: Path) -> Iterator[Path]:
    for folder in ("etc/cdi", "var/run/cdi", "run/cdi"):
        for path in _entries(root / folder):
            if path.suffix in (".yaml", ".json") and re.search(r"nvidia\.com/gpu\b", _text(path)):
                yield path


def _plugin_sockets(root: Path) -> Iterator[Path]:
    folder = root / _PLUGINS
    for path in _entries(folder):
        if path.name.startswith(OUR_SOCKETS) or not any(path.match(pattern) for pattern in _SOCKETS):
            continue
        if _answers(path):
            yield path


def _answers(path: Path) -> bool:
    """Whether somebody listens on a socket; when in doubt, yes."""
    folder = os.open(
        path.parent, os.O_PATH
    )  # the name of a socket may have 107 bytes, a host root may be long
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
            probe.connect(f"/proc/self/fd/{folder}/{path.name}")
    except OSError as error:
        return error.errno not in (errno.ECONNREFUSED, errno.ENOENT)
    finally:
        os.close(folder)
    return True


def _plugin_units(root: Path) -> Iterator[Path]:
    for folder in _UNITS:
        for path in _entries(root / folder):
            if path.suffix == ".service" and re.search(r"nvidia.*device-plugin", path.name):
                yield path


def _mps_pipes(root: Path) -> Iterator[Path]:
    ours = {path.parent / "pipe" for path in (root / _MPS_ROOT).glob(f"*/*/{RECORD}")}
    for place in _MPS:
        for path in sorted((root / place).rglob("control")):
            if path.is_socket() and path.parent not in ours and _answers(path):
                yield path


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _named(root: Path, path: Path) -> str:
    return f"/{path.relative_to(root)}"
