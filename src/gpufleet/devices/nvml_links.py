"""How each pair of GPUs is linked, by NVML: the nearest common ancestor on PCIe, and active NVLinks.

An NVLink ends at another GPU or at a switch. Links to a switch reach every GPU whose links end at a switch of
the same fabric, so such a pair has as many as the GPU with fewer of them.
Source: NVML API reference (NvLink methods, nvmlGpuTopologyLevel_t).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import combinations
from typing import Literal, TypeAlias

import msgspec
import pynvml

from gpufleet.devices.backend import Link
from gpufleet.devices.nvml_errors import known, trying
from gpufleet.devices.nvml_handles import Handle, Handles, Listed
from gpufleet.devices.nvml_inventory import InventoryReader, read_clique

Ancestor: TypeAlias = Literal["board", "switch", "switches", "bridge", "cpu", "system"]

_LEVELS: Mapping[int, Ancestor] = {
    pynvml.NVML_TOPOLOGY_INTERNAL: "board",
    pynvml.NVML_TOPOLOGY_SINGLE: "switch",
    pynvml.NVML_TOPOLOGY_MULTIPLE: "switches",
    pynvml.NVML_TOPOLOGY_HOSTBRIDGE: "bridge",
    pynvml.NVML_TOPOLOGY_NODE: "cpu",
    pynvml.NVML_TOPOLOGY_SYSTEM: "system",
}

_SWITCH = "switch"


class LinkReader:
    """Reads links. For any thread: what two threads read at once, both keep."""

    def __init__(self, handles: Handles, inventory: InventoryReader) -> None:
        self._handles = handles
        self._inventory = inventory
        self._seen: Mapping[tuple[str, str], Link] = {}

    def read(self) -> Mapping[tuple[str, str], Link]:
        """The links of all pairs by index; of a GPU that does not answer as seen last, if ever.

        Raises BackendError.
        """
        listed = self._handles.all()
        with trying("read how the GPUs are linked"):
            now = read_links(tuple(self._wired(listed)))
        pairs = ((one.uuid, other.uuid) for one, other in combinations(listed, 2))
        links = {pair: now.get(pair) or self._seen.get(pair) for pair in pairs}
        self._seen = {pair: link for pair, link in links.items() if link is not None}
        return self._seen

    def _wired(self, listed: Sequence[Listed]) -> Iterator[Wired]:
        answering = []
        for gpu in listed:
            with suppress(pynvml.NVMLError):
                if gpu.handle is not None:
                    answering.append((gpu, self._inventory.identity(gpu).pci_bus_id))
        bus_ids = frozenset(bus_id for _, bus_id in answering)
        for gpu, bus_id in answering:
            ends, clique = read_ends(gpu.handle, bus_ids), read_clique(gpu.handle)
            yield Wired(gpu.uuid, gpu.handle, bus_id, clique, ends)


class Wired(msgspec.Struct, frozen=True):
    """A GPU and where its links end: the PCI bus id of a GPU, or `switch`."""

    uuid: str
    handle: Handle
    bus_id: str
    clique: str
    ends: Mapping[str, int]


def read_ends(handle: Handle, bus_ids: frozenset[str]) -> Mapping[str, int]:
    """Active NVLinks of a GPU by where they end; `bus_ids` are those of the node's GPUs. Raises NVMLError."""
    return Counter(_ends(handle, bus_ids))


def _ends(handle: Handle, bus_ids: frozenset[str]) -> Iterator[str]:
    for link in range(pynvml.NVML_NVLINK_MAX_LINKS):
        try:
            active = pynvml.nvmlDeviceGetNvLinkState(handle, link)
        except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_InvalidArgument):
            return
        if not active:
            continue
        remote = known(None, pynvml.nvmlDeviceGetNvLinkRemotePciInfo, handle, link)
        if remote is not None and str(remote.busId) in bus_ids:
            yield str(remote.busId)
        elif _ends_at_switch(handle, link):
            yield _SWITCH


def _ends_at_switch(handle: Handle, link: int) -> bool:
    """Whether a link that ends at no GPU of this node ends at a switch; yes for a driver too old to say."""
    kind = known(
        pynvml.NVML_NVLINK_DEVICE_TYPE_SWITCH, pynvml.nvmlDeviceGetNvLinkRemoteDeviceType, handle, link
    )
    return bool(kind == pynvml.NVML_NVLINK_DEVICE_TYPE_SWITCH)


def read_links(gpus: Sequence[Wired]) -> Mapping[tuple[str, str], Link]:
    """The link of each pair of `gpus`, in their order; raises NVMLError."""
    return {
        (one.uuid, other.uuid): Link(_ancestor(one.handle, other.handle), nvlinks(one, other))
        for one, other in combinations(gpus, 2)
    }


def _ancestor(one: Handle, other: Handle) -> Ancestor:
    """The nearest common ancestor; the farthest where the driver does not say (in some virtual machines)."""
    level = known(None, pynvml.nvmlDeviceGetTopologyCommonAncestor, one, other)
    return "system" if level is None else _LEVELS.get(level, "system")


def nvlinks(one: Wired, other: Wired) -> int:
    """NVLinks between two GPUs."""
    direct = one.ends.get(other.bus_id, 0)
    apart = one.clique and other.clique and one.clique != other.clique
    return direct or (0 if apart else min(one.ends.get(_SWITCH, 0), other.ends.get(_SWITCH, 0)))
