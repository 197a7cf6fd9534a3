"""The configuration of NVIDIA's device plugin and feature discovery (version v1), read as it is.

One value, `PluginConfig`, from three places: the command line wins over the environment, and that over the
file; what none of them sets has the plugin's own default. The file is YAML or JSON. Unlike the plugin, which
passes over what it does not know, a field that does not exist is an error that names its path, for a slip of
the pen would otherwise share nothing and say nothing. What the plugin reads and does not carry out
(`resources`, a rename of one's own, a choice of devices) is left out here too, with a warning.
Source: k8s-device-plugin api/config/v1, cmd/nvidia-device-plugin, cmd/config-manager.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from gpufleet.fleet.errors import GpufleetError

GPU_RESOURCE = "nvidia.com/gpu"
CONFIG_LABEL = "nvidia.com/device-plugin.config"
NAMED_CONFIG = "default"
FEATURE_FILE = "/etc/kubernetes/node-feature-discovery/features.d/gfd"
"""Where the local source of Node Feature Discovery looks."""

MigStrategy = Literal["none", "single", "mixed"]
SharingStrategy = Literal["none", "time-slicing", "mps"]
DeviceListStrategy = Literal["envvar", "volume-mounts", "cdi-annotations", "cdi-cri"]
Fallback = Literal["named", "single", "empty"]
DeviceChoice = Literal["all"] | int | tuple[str, ...]


class SharedResource(msgspec.Struct, frozen=True):
    """One resource that is shared: each of its devices is offered `replicas` times, as `rename` if that is
    set. `devices` are all, the first so many, or those named by index (`0`, `0:1` for MIG) or UUID.
    """

    name: str
    replicas: int
    rename: str = ""
    devices: DeviceChoice = "all"

    @property
    def resource(self) -> str:
        """The name under which the replicas are offered."""
        return self.rename or self.name

    def chosen(self, devices: Sequence[tuple[str, str]]) -> frozenset[str]:
        """The ids to be replicated of `devices`, the resource's (index, id) pairs in the order of the node.

        Raises GpufleetError (SharedDeviceNotFound) when the node lacks one of them.
        """
        ids = [device_id for _, device_id in devices]
        if self.devices == "all":
            return frozenset(ids)
        if isinstance(self.devices, int):
            if self.devices > len(ids):
                raise self._missing(f"{self.devices} devices, and the node has {len(ids)}")
            return frozenset(ids[: self.devices])
        found = dict(devices) | {one: one for one in ids}
        for one in self.devices:
            if one not in found:
                raise self._missing(f"device {one}, which the node does not have")
        return frozenset(found[one] for one in self.devices)

    def _missing(self, what: str) -> GpufleetError:
        return GpufleetError(
            reason="SharedDeviceNotFound",
            message=f"the sharing of {self.name} names {what}",
            hint="correct `devices` in the plugin's config, or give this node another one by the label "
            f"{CONFIG_LABEL}",
        )


class Sharing(msgspec.Struct, frozen=True):
    """How devices are shared, and which. `fail_requests_greater_than_one` refuses a container that asks for
    more than one replica, for that gives it no more of a GPU.
    """

    strategy: SharingStrategy = "none"
    resources: tuple[SharedResource, ...] = ()
    rename_by_default: bool = False
    fail_requests_greater_than_one: bool = False

    def of(self, resource: str) -> SharedResource | None:
        """The sharing of a resource by its original name; None when it is not shared."""
        return next((one for one in self.resources if one.name == resource), None)

    def replicas(self, resource: str) -> int:
        """How often each device of a resource (original name) is offered; 1 when it is not shared."""
        shared = self.of(resource)
        return shared.replicas if shared else 1

    def resource_name(self, resource: str) -> str:
        """The name under which a resource (original name) is offered."""
        shared = self.of(resource)
        return shared.resource if shared else resource


class PluginConfig(msgspec.Struct, frozen=True):
    """All that can be configured, with the defaults of the plugin and its chart.

    `sleep_seconds` is None for ever; `warnings` are about what was read and is not carried out.
    """

    mig_strategy: MigStrategy = "none"
    fail_on_init_error: bool = True
    mps_root: str = "/run/nvidia/mps"
    driver_root: str = "/"
    dev_root: str = "/"
    gdrcopy: bool = False
    gds: bool = False
    mofed: bool = False
    use_node_feature_api: bool = True
    device_discovery: Literal["auto", "nvml", "tegra", "vfio"] = "auto"
    pass_device_specs: bool = False
    device_list_strategies: tuple[DeviceListStrategy, ...] = ("envvar",)
    device_id_strategy: Literal["uuid", "index"] = "uuid"
    cdi_annotation_prefix: str = "cdi.k8s.io/"
    cdi_hook_path: str = "/usr/bin/nvidia-ctk"
    container_driver_root: str = "/driver-root"
    shared_policy: Literal["distributed", "packed"] = "distributed"
    oneshot: bool = False
    no_timestamp: bool = False
    sleep_seconds: float | None = 60.0
    output_file: str = FEATURE_FILE
    machine_type_file: str = "/sys/class/dmi/id/product_name"
    imex_channels: tuple[int, ...] = ()
    imex_required: bool = False
    sharing: Sharing = Sharing()
    warnings: tuple[str, ...] = ()


def choose_config(
    names: Iterable[str], label: str, *, default: str = "", fallbacks: Sequence[Fallback] = ()
) -> str | None:
    """Which of the configs `names` (keys of the ConfigMap) a node uses; None for the empty one.

    The node's label wins, then `default`; without both the fallbacks are tried in order: `named` (the key
    "default"), `single` (the only key there is), `empty`. Raises GpufleetError (PluginConfigNotFound).
    """
    known = sorted(names)
    for wanted, where in ((label, f"the node's label {CONFIG_LABEL}"), (default, "config.default")):
        if wanted:
            if wanted in known:
                return wanted
            raise _not_found(f"{where} names the config {wanted!r}, which does not exist", known)
    for fallback in fallbacks:
        if fallback == "named" and NAMED_CONFIG in known:
            return NAMED_CONFIG
        if fallback == "single" and len(known) == 1:
            return known[0]
        if fallback == "empty":
            return None
    raise _not_found("the node names no config, and neither a default nor a fallback gives one", known)


def _not_found(message: str, known: Sequence[str]) -> GpufleetError:
    return GpufleetError(
        reason="PluginConfigNotFound",
        message=message,
        hint=f"configs: {', '.join(known) or 'none'}; label the node with {CONFIG_LABEL}=NAME",
    )
