"""CDI specs: which names a node needs, which of them a container runtime finds, how the spec is made anew.

A container that gets a device by name (`nvidia.com/gpu=<uuid>`) starts only if the runtime finds that name in
a spec file. Specs lie in two folders; a later folder wins over an earlier one, but a name that two files of
one folder have is found no more. So a spec is made anew in the place of the one that is there, or else where
NVIDIA's own refresh service puts it, and never beside another one.

What a device needs in a container (libraries, hooks, device nodes) is known to NVIDIA's container toolkit
alone, so `nvidia-ctk` writes the spec. It must do so after every change of MIG instances, which have other
names and device nodes then, and before the new ones are offered. Before it, whatever creates missing device
nodes is run, because the toolkit describes those that exist. Both ways to name a device are always written:
other programs of the host may use the spec too. An old toolkit knows one name per device and heeds the last
that it is told of, so the way that is needed comes last.
Source: the CDI specification and its Go package; nvidia-container-toolkit cmd/nvidia-ctk/cdi/generate and
nvidia-cdi-refresh.service; nvidia-mig-manager for the order of steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

import msgspec

from gpufleet.devices.allocation import CDI_KIND, access_keys, name_of
from gpufleet.devices.inventory import Inventory
from gpufleet.devices.plugin_config import DeviceListStrategy, PluginConfig
from gpufleet.devices.resources import Offer
from gpufleet.fleet.reasons import Reason

SPEC_FOLDERS = ("/etc/cdi", "/var/run/cdi")
"""Where runtimes look, in order of precedence; what follows the devices belongs into the last one."""

STRATEGIES = ("index", "uuid")
"""Ways to name a device."""

_CDI: tuple[DeviceListStrategy, ...] = ("cdi-annotations", "cdi-cri")
_ON_PATH = ("/usr/bin", "/usr/local/bin", "/bin")


class SpecFile(msgspec.Struct, frozen=True):
    """A spec on the host: its path there, the kind of its devices, and their names."""

    path: str
    kind: str = ""
    names: frozenset[str] = frozenset()

    @property
    def folder(self) -> str:
        """The folder that it lies in."""
        return str(PurePosixPath(self.path).parent)


class CdiDevice(msgspec.Struct, frozen=True):
    """A device that a spec must describe: its name, and all that the description follows from."""

    uuid: str
    name: str
    nodes: tuple[str, ...]
    driver: str


class Command(msgspec.Struct, frozen=True):
    """A program of the host. One that is not `required` may be missing or fail."""

    argv: tuple[str, ...]
    required: bool = True


class Refresh(msgspec.Struct, frozen=True):
    """How a spec is made anew: the commands leave it in the folder `staging` of the host, under the name that
    it gets at `output`.
    """

    commands: tuple[Command, ...]
    staging: str
    output: str


def uses_cdi(config: PluginConfig) -> bool:
    """Whether containers get devices by CDI names."""
    return any(one in config.device_list_strategies for one in _CDI)


def without_cdi(config: PluginConfig) -> PluginConfig:
    """The config of a node whose runtime finds no CDI names: the other strategies, or else the variable."""
    left = tuple(one for one in config.device_list_strategies if one not in _CDI)
    return msgspec.structs.replace(config, device_list_strategies=left or ("envvar",))


def settled(config: PluginConfig, toolkit: str) -> tuple[PluginConfig, tuple[Reason, ...]]:
    """The config to allocate by on a node whose nvidia-ctk is at `toolkit` (empty without one), and why it is
    not the one that was asked for.
    """
    if toolkit or not uses_cdi(config):
        return config, ()
    found = without_cdi(config)
    ways = ", ".join(found.device_list_strategies)
    text = f"the host has no nvidia-ctk to make CDI specs with, so devices are named by {ways}"
    return found, (Reason("CdiToolkitMissing", text),)


def cdi_devices(offer: Offer, inventory: Inventory, config: PluginConfig) -> frozenset[CdiDevice]:
    """The devices of an offer that must have a name. The toolkit cannot describe those of a lost GPU."""
    if not uses_cdi(config):
        return frozenset()
    found = set()
    for resource in offer.resources:
        for device in resource.devices:
            gpu = inventory.gpu(device.gpu)
            if gpu is not None and not gpu.lost:
                access = access_keys(gpu, device.instance) if device.instance else ()
                nodes = (str(gpu.minor), *access)
                found.add(CdiDevice(device.uuid, name_of(device, config), nodes, inventory.driver))
    return frozenset(found)


def resolvable(specs: Iterable[SpecFile]) -> frozenset[str]:
    """The names of `nvidia.com/gpu` that a runtime finds in these specs."""
    rows = Counter((one.folder, name) for one in specs if one.kind == CDI_KIND for name in one.names)
    return frozenset(name for _, name in rows) - {name for (_, name), count in rows.items() if count > 1}


def missing(
    devices: Iterable[CdiDevice], described: frozenset[CdiDevice], specs: Sequence[SpecFile]
) -> frozenset[CdiDevice]:
    """The devices that no container may get now: a runtime does not find their name, or what it finds may
    mean another device. `described` are those for which the spec was made; a name that is a UUID is sure.
    """
    names = resolvable(specs)
    return frozenset(
        one for one in devices if one.name not in names or (one.name != one.uuid and one not in described)
    )


def why_missing(devices: Iterable[CdiDevice], specs: Sequence[SpecFile]) -> tuple[Reason, ...]:
    """Why a spec that was just made does not make these devices known."""
    reasons = []
    for device in sorted(devices, key=lambda one: one.name):
        paths = [one.path for one in specs if one.kind == CDI_KIND and device.name in one.names]
        if len(paths) > 1:
            text = f"{CDI_KIND}={device.name} is in {' and in '.join(paths)}: remove it from one of them"
            reasons.append(Reason("CdiSpecConflict", text, device.uuid))
        else:
            text = f"the toolkit made a spec without {CDI_KIND}={device.name}"
            reasons.append(Reason("CdiDeviceUnnamed", text, device.uuid))
    return tuple(reasons)


def output_path(specs: Iterable[SpecFile], folder: str) -> str:
    """Where in `folder` the spec is made anew."""
    there = {one.path: one.kind for one in specs if one.folder == folder}
    usual = [f"{folder}/nvidia.yaml", f"{folder}/nvidia.json"]
    ours = sorted(path for path, kind in there.items() if kind == CDI_KIND)
    known = [path for path in usual if path in ours] or ours
    return (known or [path for path in usual if path not in there] or [f"{folder}/gpufleet-nvidia.yaml"])[0]


def plan_refresh(config: PluginConfig, toolkit: str, output: str, staging: str) -> Refresh:
    """The commands that make the spec at `output` anew with the nvidia-ctk at `toolkit`."""
    needed = config.device_id_strategy
    strategies = (*(one for one in STRATEGIES if one != needed), needed)
    vendor, kind = CDI_KIND.split("/")
    path = PurePosixPath(output)
    roots = [f"--driver-root={config.driver_root}"] if config.driver_root != "/" else []
    roots += [f"--dev-root={config.dev_root}"] if config.dev_root != config.driver_root else []
    hook = config.cdi_hook_path
    if hook == PluginConfig().cdi_hook_path:
        hook = "" if str(PurePosixPath(toolkit).parent) in _ON_PATH else toolkit
    query = ("nvidia-smi", "-L")  # creates the nodes of GPUs and of MIG instances that lack them
    return Refresh(
        (
            Command(query if config.driver_root == "/" else ("chroot", config.driver_root, *query), False),
            Command((toolkit, "system", "create-device-nodes", "--control-devices", *roots), False),
            Command(
                (
                    *(toolkit, "cdi", "generate"),
                    f"--format={path.suffix.removeprefix('.')}",
                    f"--output={staging}/{path.name}",
                    *(f"--device-name-strategy={one}" for one in strategies),
                    *(f"--vendor={vendor}", f"--class={kind}"),
                    *roots,
                    *([f"--nvidia-ctk-path={hook}"] if hook else []),
                )
            ),
        ),
        staging,
        output,
    )


def parse_spec(path: str, value: object) -> SpecFile:
    """A spec by what its YAML or JSON says; one of no kind and without names when that is no spec."""
    if not isinstance(value, Mapping):
        return SpecFile(path)
    kind, devices = value.get("kind"), value.get("devices")
    rows = devices if isinstance(devices, Sequence) else ()
    names = [row.get("name") for row in rows if isinstance(row, Mapping)]
    return SpecFile(path, str(kind or ""), frozenset(one for one in names if isinstance(one, str)))
