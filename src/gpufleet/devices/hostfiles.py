"""What the kernel's files below a host root say of the GPUs that NVML does not, and where NVML itself lies.

Source: sysfs-bus-pci for the files of a PCI device, the PCI specification for capabilities, GPU Feature
Discovery for the record in which a vGPU's host leaves the version of its driver.
"""

from __future__ import annotations

import string
from pathlib import Path

from gpufleet.devices.inventory import VirtualGPU

NVML = "libnvidia-ml.so.1"

_DRIVER_ROOTS = ("", "run/nvidia/driver")
_LIBRARY_FOLDERS = ("usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "usr/lib64", "usr/lib")
_COS_FOLDER = "home/kubernetes/bin/nvidia/lib64"

_STATUS, _HAS_CAPABILITIES, _FIRST_CAPABILITY = 0x06, 0x10, 0x34
_CONFIG_SIZE = 256
_VENDOR_SPECIFIC = 0x09
_VGPU_SIGNATURE, _VGPU_RECORDS = b"VF", 5
_HOST_DRIVER_RECORD, _HOST_DRIVER_WORD = 0, 10


class HostFiles:
    """Files of the host whose file system is at `root`. What cannot be read has its "unknown" value."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def own(self) -> bool:
        """Whether the host's root is that of this process."""
        return self._root == Path("/")

    def libraries(self) -> tuple[Path, ...]:
        """The files that may be NVML: the host's own, a driver container's, that of GKE's COS nodes."""
        folders = [Path(root, folder) for root in _DRIVER_ROOTS for folder in _LIBRARY_FOLDERS]
        paths = (self._root / folder / NVML for folder in (*folders, Path(_COS_FOLDER)))
        return tuple(path for path in paths if path.is_file())

    def machine(self) -> str:
        """The maker's name of the machine, or empty."""
        return self._text("sys/class/dmi/id/product_name")

    def pci_class(self, bus_id: str) -> int:
        """The class code of a PCI device (0x030200), 0 when unknown."""
        return self._number(bus_id, "class", 16, unknown=0)

    def numa_node(self, bus_id: str) -> int:
        """The NUMA node of a PCI device, -1 without one."""
        return self._number(bus_id, "numa_node", 10, unknown=-1)

    def vgpu(self, bus_id: str) -> VirtualGPU | None:
        """The host's driver when the PCI device is a vGPU in a virtual machine."""
        try:
            config = (self._device(bus_id) / "config").read_bytes()
        except OSError:
            return None
        return host_driver(config)

    def _device(self, bus_id: str) -> Path:
        return self._root / "sys/bus/pci/devices" / kernel_bus_id(bus_id)

    def _number(self, bus_id: str, name: str, base: int, unknown: int) -> int:
        try:
            return int((self._device(bus_id) / name).read_text(), base)
        except (OSError, ValueError):
            return unknown

    def _text(self, path: str) -> str:
        try:
            return (self._root / path).read_text(errors="replace").strip()
        except OSError:
            return ""


def kernel_bus_id(bus_id: str) -> str:
    """The kernel's spelling (`0000:07:00.0`) of NVML's PCI bus id (`00000000:07:00.0`)."""
    domain, _, rest = bus_id.partition(":")
    if not rest or not set(domain) <= set(string.hexdigits):
        return bus_id
    return f"{int(domain, 16):04x}:{rest.lower()}"


def host_driver(config: bytes) -> VirtualGPU | None:
    """What the PCI configuration space of a vGPU says of its host; None for any other device.

    Without root the kernel shows only its first 64 bytes, which do not say.
    """
    capability = _vendor_capability(config)
    if capability[3:5] != _VGPU_SIGNATURE:
        return None
    at = _VGPU_RECORDS
    while at + 1 < len(capability) and capability[at] != _HOST_DRIVER_RECORD and capability[at + 1]:
        at += capability[at + 1]
    words = capability[at + 2 : at + 2 + 2 * _HOST_DRIVER_WORD]
    if len(words) < 2 * _HOST_DRIVER_WORD or capability[at] != _HOST_DRIVER_RECORD:
        return VirtualGPU()
    version, branch = words[:_HOST_DRIVER_WORD], words[_HOST_DRIVER_WORD:]
    return VirtualGPU(_word(version), _word(branch))


def _vendor_capability(config: bytes) -> bytes:
    if len(config) < _CONFIG_SIZE or not config[_STATUS] & _HAS_CAPABILITIES:
        return b""
    at, seen = config[_FIRST_CAPABILITY], set[int]()
    while 0 < at < _CONFIG_SIZE - 2 and at not in seen:
        if config[at] == _VENDOR_SPECIFIC:
            return config[at : at + config[at + 2]]
        seen.add(at)
        at = config[at + 1]
    return b""


def _word(raw: bytes) -> str:
    return raw.strip(b"\0").decode("ascii", errors="replace")
