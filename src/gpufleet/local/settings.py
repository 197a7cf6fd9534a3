"""How a fleet's processes are started: which programs, on which ports, with which options.

Chosen once, at the first `up`, and kept, so that a kubeconfig stays valid across `down` and `up` and a
supervisor that takes over starts everything exactly as before. Only `up` writes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from gpufleet.fleet.errors import GpufleetError
from gpufleet.local.layout import Layout, file_errors, write_atomic
from gpufleet.local.ports import free_ports, is_free

PORT_NAMES = (
    "etcd-client",
    "etcd-peer",
    "api-server",
    "controller-manager",
    "kubelet",
    "exporter",
    "simulated-nodes-metrics",
    "controller-metrics",
    "devices-metrics",
    "supervisor-metrics",
)
"""Every port of a fleet, all on loopback. `kubelet` and `exporter` are those of all simulated nodes."""


class Options(msgspec.Struct, frozen=True):
    """What a user may choose about the processes. `bridge` is one more address that the API server answers
    on.
    """

    bridge: str = ""
    authorization: str = "RBAC"
    unsafe_no_fsync: bool = False
    extra_args: Mapping[str, tuple[str, ...]] = {}
    """Arguments appended to a component's own, by component."""


class Settings(msgspec.Struct, frozen=True):
    """Everything that the supervisor needs to know. `programs` are argument prefixes by component."""

    ports: Mapping[str, int]
    programs: Mapping[str, tuple[str, ...]]
    options: Options = Options()


def read_settings(layout: Layout) -> Settings | None:
    """The settings of a fleet, or None when it was never started."""
    try:
        data = layout.settings.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return msgspec.json.decode(data, type=Settings)
    except msgspec.DecodeError as error:
        raise GpufleetError(
            reason="StateDamaged",
            message=f"{layout.settings} cannot be read: {error}",
            hint=f"remove that file; the data of the fleet is elsewhere and survives: rm {layout.settings}",
        ) from error


def write_settings(layout: Layout, settings: Settings) -> None:
    """Keep settings, whole."""
    with file_errors(layout.settings):
        write_atomic(layout.settings, msgspec.json.format(msgspec.json.encode(settings)))


def choose_ports(
    kept: Mapping[str, int], *, ours: Callable[[str], bool], free: Callable[[int], bool] = is_free
) -> tuple[dict[str, int], list[str]]:
    """A port for every name: the kept one where it can be had, else a new one; and which kept ones were lost.

    `ours(name)` says that a running process of this fleet holds that port, so that it counts as free.
    """
    lost = [name for name in PORT_NAMES if name in kept and not ours(name) and not free(kept[name])]
    ports = {name: kept[name] for name in PORT_NAMES if name in kept and name not in lost}
    missing = [name for name in PORT_NAMES if name not in ports]
    fresh = free_ports(len(missing), avoid=kept.values())
    return {**ports, **dict(zip(missing, fresh, strict=True))}, lost
