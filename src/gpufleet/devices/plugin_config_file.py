"""Reading the configuration of the device plugin: file, environment and command line into a `PluginConfig`.

Every setting is one row of a table: its field, its place in the file and its variables.
Source: k8s-device-plugin api/config/v1, cmd/nvidia-device-plugin, cmd/gpu-feature-discovery.
"""

from __future__ import annotations

import difflib
import re
import uuid
from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import msgspec
from msgspec import Meta

from gpufleet.devices.go_yaml import load_yaml
from gpufleet.devices.plugin_config import (
    DeviceChoice,
    PluginConfig,
    SharedResource,
    Sharing,
    SharingStrategy,
)
from gpufleet.fleet.errors import GpufleetError

T = TypeVar("T")

REASON = "InvalidPluginConfig"

_PREFIX = "nvidia.com/"
_MAX_NAME = 63

# fmt: off
_SETTINGS = (
    # field                    place in the file                              environment, the first one set
    ("mig_strategy",             "flags.migStrategy",                            "MIG_STRATEGY"),
    ("mig_strategy",             "flags.migStrategy",                            "GFD_MIG_STRATEGY"),
    ("fail_on_init_error",       "flags.failOnInitError",                        "FAIL_ON_INIT_ERROR"),
    ("mps_root",                 "flags.mpsRoot",                                "MPS_ROOT"),
    ("driver_root",              "flags.nvidiaDriverRoot",                       "NVIDIA_DRIVER_ROOT"),
    ("dev_root",                 "flags.nvidiaDevRoot",                          "NVIDIA_DEV_ROOT"),
    ("gdrcopy",                  "flags.gdrcopyEnabled",                         "GDRCOPY_ENABLED"),
    ("gds",                      "flags.gdsEnabled",                             "GDS_ENABLED"),
    ("mofed",                    "flags.mofedEnabled",                           "MOFED_ENABLED"),
    ("use_node_feature_api",     "flags.useNodeFeatureAPI",                      "USE_NODE_FEATURE_API"),
    ("device_discovery",         "flags.deviceDiscoveryStrategy",                "DEVICE_DISCOVERY_STRATEGY"),
    ("pass_device_specs",        "flags.plugin.passDeviceSpecs",                 "PASS_DEVICE_SPECS"),
    ("device_list_strategies",   "flags.plugin.deviceListStrategy",              "DEVICE_LIST_STRATEGY"),
    ("device_id_strategy",       "flags.plugin.deviceIDStrategy",                "DEVICE_ID_STRATEGY"),
    ("cdi_annotation_prefix",    "flags.plugin.cdiAnnotationPrefix",             "CDI_ANNOTATION_PREFIX"),
    ("cdi_hook_path",            "flags.plugin.nvidiaCTKPath",                   "NVIDIA_CDI_HOOK_PATH"),
    ("cdi_hook_path",            "flags.plugin.nvidiaCTKPath",                   "NVIDIA_CTK_PATH"),
    ("container_driver_root",    "flags.plugin.containerDriverRoot",             "DRIVER_ROOT_CTR_PATH"),
    ("container_driver_root",    "flags.plugin.containerDriverRoot",             "CONTAINER_DRIVER_ROOT"),
    ("shared_policy",            "flags.plugin.sharedDevicesAllocationPolicy",   "SHARED_DEVICES_ALLOCATION_POLICY"),  # noqa: E501
    ("oneshot",                  "flags.gfd.oneshot",                            "GFD_ONESHOT"),
    ("no_timestamp",             "flags.gfd.noTimestamp",                        "GFD_NO_TIMESTAMP"),
    ("sleep_seconds",            "flags.gfd.sleepInterval",                      "GFD_SLEEP_INTERVAL"),
    ("output_file",              "flags.gfd.outputFile",                         "GFD_OUTPUT_FILE"),
    ("machine_type_file",        "flags.gfd.machineTypeFile",                    "GFD_MACHINE_TYPE_FILE"),
    ("imex_channels",            "imex.channelIDs",                              "IMEX_CHANNEL_IDS"),
    ("imex_required",            "imex.required",                                "IMEX_REQUIRED"),
)
# fmt: on
_FIELD_AT = {place: field for field, place, _ in _SETTINGS}
_TYPES = {field.name: field.type for field in msgspec.structs.fields(PluginConfig)}
_OWN_SECTIONS = ("version", "resources", "sharing")
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_TRUE, _FALSE = ("1", "t", "true"), ("0", "f", "false")
_AT = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<path>[^`]*)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<field>[^`]+)`")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_INDEX = re.compile(r"\d+(:\d+)?")


class _ResourceRule(msgspec.Struct, forbid_unknown_fields=True):
    pattern: str
    name: str


class _Resources(msgspec.Struct, forbid_unknown_fields=True):
    gpus: list[_ResourceRule] | None = None
    mig: list[_ResourceRule] | None = None


class _Share(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    replicas: Annotated[int, Meta(ge=2)]
    rename: str | None = None
    devices: str | int | list[str | int] = "all"


class _Shares(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    resources: Annotated[list[_Share], Meta(min_length=1)]
    rename_by_default: bool = False
    fail_requests_greater_than_one: bool | None = None


class _Sharing(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    time_slicing: _Shares | None = None
    mps: _Shares | None = None


def parse_config(
    text: str,
    where: str,
    *,
    environment: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    customise: bool = False,
) -> PluginConfig:
    """The configuration in `text` (YAML or JSON; empty for none), which messages call `where`.

    `environment` has the plugin's variables, `overrides` fields of `PluginConfig` from the command line
    (None: not given); the command line wins over the environment, and that over the file. `customise` carries
    out `rename` and `devices` of shared resources, which the plugin reads and ignores. Raises GpufleetError
    (InvalidPluginConfig).
    """
    document = _mapping(load_yaml(text, where, REASON), where, "")
    _check_version(document.get("version"), where)
    settings = {_FIELD_AT[place]: _setting(place, value, where) for place, value in _flags(document, where)}
    settings |= _from_environment(environment or {})
    settings |= _from_command_line(overrides or {})
    if not settings.get("dev_root"):
        settings["dev_root"] = settings.get("driver_root") or PluginConfig().driver_root
    warnings = _resource_warnings(document.get("resources"), where)
    sharing, more = _sharing(document.get("sharing"), where, customise)
    config = PluginConfig(**settings, sharing=sharing, warnings=(*warnings, *more))
    _check_together(config, where)
    return config


def _check_together(config: PluginConfig, where: str) -> None:
    if not config.device_list_strategies:
        raise _invalid(where, "flags.plugin.deviceListStrategy", "must name at least one strategy")
    if config.imex_channels not in ((), (0,)):
        raise _invalid(where, "imex.channelIDs", f"must be [] or [0], not {list(config.imex_channels)}")
    if config.sharing.strategy != "mps":
        return
    if config.mig_strategy == "mixed":
        hint = "use the MIG strategy single or none, or time-slicing"
        raise _invalid(where, "sharing.mps", "MPS cannot be used with the MIG strategy mixed", hint)
    if not config.mps_root:
        raise _invalid(
            where, "flags.mpsRoot", "MPS needs a folder on the host", "leave it out for the default"
        )


def _check_version(version: object, where: str) -> None:
    if version not in (None, "", "v1"):
        raise _invalid(where, "version", f"must be v1, not {version!r}")


def _flags(document: Mapping[str, Any], where: str, section: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of a section and of those below it, with their places; what is null is not set."""
    below = {place.removeprefix(section).split(".")[0] for place in _FIELD_AT if place.startswith(section)}
    own = () if section else _OWN_SECTIONS
    for key, value in document.items():
        place = f"{section}{key}"
        if key not in below and key not in own:
            raise _unknown(where, place, [*below, *own])
        if value is None or key in own:
            continue
        if place in _FIELD_AT:
            yield place, value
        else:
            yield from _flags(_mapping(value, where, place), where, f"{place}.")


def _setting(place: str, value: Any, where: str, *, strict: bool = True) -> Any:
    """A value in the type of the field at `place`."""
    field = _FIELD_AT[place]
    if field == "sleep_seconds":
        return _seconds(value, where, place)
    if field == "device_list_strategies" and isinstance(value, str):
        value = [value]
    try:
        return msgspec.convert(value, _TYPES[field], strict=strict)
    except msgspec.ValidationError:
        raise _invalid(where, place, f"must be {_wording(_TYPES[field])}, not {value!r}") from None


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for field, place, name in _SETTINGS:
        if field not in settings and environment.get(name):
            value = _from_text(_TYPES[field], environment[name])
            settings[field] = _setting(place, value, f"environment variable {name}", strict=False)
    return settings


def _from_command_line(overrides: Mapping[str, Any]) -> dict[str, Any]:
    places = {field: place for field, place, _ in _SETTINGS}
    return {
        field: _setting(places[field], value, "command line")
        for field, value in overrides.items()
        if value is not None
    }


def _from_text(type_: Any, text: str) -> Any:
    """The words and lists of an environment variable, as Go's flags read them."""
    if type_ is bool:
        return True if text.lower() in _TRUE else False if text.lower() in _FALSE else text
    if get_origin(type_) is tuple:
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def _seconds(value: Any, where: str, place: str) -> float | None:
    """A duration as Go writes it (`1m30s`), or a number of nanoseconds; None for `infinite`."""
    if value == "infinite":
        return None
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
        return value * 1e-9
    parts = _DURATION.findall(value) if isinstance(value, str) else []
    if parts and "".join(number + unit for number, unit in parts) == value:
        return sum(float(number) * _SECONDS[unit] for number, unit in parts)
    raise _invalid(where, place, f"must be a duration as 60s or infinite, not {value!r}")


def _wording(type_: Any) -> str:
    if get_origin(type_) is Literal:
        return f"one of {', '.join(get_args(type_))}"
    if get_origin(type_) is tuple:
        return f"a list, each {_wording(get_args(type_)[0])}"
    words: dict[Any, str] = {bool: "true or false", str: "text", int: "a whole number"}
    return words[type_]


def _resource_warnings(resources: Any, where: str) -> tuple[str, ...]:
    rules = _converted(resources or {}, _Resources, where, "resources")
    if not (rules.gpus or rules.mig):
        return ()
    return (f"{where}: resources is ignored, as NVIDIA's plugin ignores it",)


def _sharing(document: Any, where: str, customise: bool) -> tuple[Sharing, tuple[str, ...]]:
    """The sharing that is in force, and warnings. MPS wins over time-slicing."""
    both = _converted(document or {}, _Sharing, where, "sharing")
    slicing = _shared("time-slicing", both.time_slicing, where, "sharing.timeSlicing")
    mps = _shared("mps", both.mps, where, "sharing.mps")
    sharing, place = (mps, "sharing.mps") if mps.resources else (slicing, "sharing.timeSlicing")
    warnings = []
    if mps.resources and slicing.resources:
        warnings.append(f"{where}: sharing.timeSlicing is ignored, for sharing.mps wins")
    if not customise:
        plain = msgspec.structs.replace(
            sharing, resources=tuple(_plain(one, sharing) for one in sharing.resources)
        )
        for number, (one, other) in enumerate(zip(sharing.resources, plain.resources, strict=True)):
            for field in ("rename", "devices"):
                if getattr(one, field) != getattr(other, field):
                    at = f"{place}.resources[{number}].{field}"
                    warnings.append(f"{where}: {at} is ignored, as NVIDIA's plugin ignores it")
        sharing = plain
    return sharing, tuple(warnings)


def _plain(shared: SharedResource, sharing: Sharing) -> SharedResource:
    """A shared resource as the plugin carries it out: all devices, and no name of one's own."""
    return SharedResource(shared.name, shared.replicas, _default_name(shared.name, sharing.rename_by_default))


def _default_name(name: str, renamed: bool) -> str:
    return f"{name}.shared" if renamed else ""


def _shared(strategy: SharingStrategy, shares: _Shares | None, where: str, place: str) -> Sharing:
    if shares is None:
        return Sharing()
    resources: dict[str, SharedResource] = {}
    for number, share in enumerate(shares.resources):
        at = f"{place}.resources[{number}]"
        name = _resource_name(share.name, where, f"{at}.name")
        if name in resources:
            raise _invalid(where, f"{at}.name", f"{name} stands twice")
        wanted = share.rename or _default_name(name, shares.rename_by_default)
        rename = _resource_name(wanted, where, f"{at}.rename") if wanted else ""
        devices = _devices(share.devices, where, f"{at}.devices")
        resources[name] = SharedResource(name, share.replicas, rename, devices)
    fail = shares.fail_requests_greater_than_one
    fail = strategy == "mps" if fail is None else fail
    return Sharing(strategy, tuple(resources.values()), shares.rename_by_default, fail)


def _resource_name(text: str, where: str, place: str) -> str:
    """A full resource name; the prefix may be left out."""
    name = text if text.startswith(_PREFIX) else _PREFIX + text
    if len(name) > _MAX_NAME:
        raise _invalid(where, place, f"{name} is longer than {_MAX_NAME} characters")
    if not _NAME.fullmatch(name.removeprefix(_PREFIX)):
        raise _invalid(where, place, f"{text!r} is no name of a resource", "use a name as nvidia.com/gpu")
    return name


def _devices(value: str | int | list[str | int], where: str, place: str) -> DeviceChoice:
    hint = "use all, a number of devices, or a list of indexes (0, 0:1) and UUIDs"
    if value == "all":
        return "all"
    if isinstance(value, int) and value > 0:
        return value
    if not isinstance(value, list) or not value:
        raise _invalid(where, place, f"{value!r} chooses no devices", hint)
    for number, one in enumerate(value):
        if not (_INDEX.fullmatch(str(one)) or _is_uuid(str(one))):
            raise _invalid(where, f"{place}[{number}]", f"{one!r} is neither an index nor a UUID", hint)
    return tuple(str(one) for one in value)


def _is_uuid(text: str) -> bool:
    """Whether a text is GPU-UUID, MIG-UUID, or MIG-GPU-UUID/instance/compute of older drivers."""
    gpu, *ids = text.removeprefix("MIG-").split("/")
    legacy = text.startswith("MIG-GPU-") and len(ids) == 2 and all(one.isdecimal() for one in ids)
    if not (legacy or (not ids and text.startswith(("GPU-", "MIG-")) and not text.startswith("MIG-GPU-"))):
        return False
    try:
        uuid.UUID(gpu.removeprefix("GPU-"))
    except ValueError:
        return False
    return True


def _converted(value: Any, type_: type[T], where: str, place: str) -> T:
    """A section as a struct; errors name the place of the field."""
    try:
        return msgspec.convert(value, type_)
    except msgspec.ValidationError as error:
        match = _AT.match(str(error))
        what, below = (match["what"], match["path"] or "") if match else (str(error), "")
        at = place + (below if below.startswith("[") or not below else f".{below}")
        unknown = _UNKNOWN.match(what)
        if unknown is None:
            raise _invalid(where, at, what[:1].lower() + what[1:]) from None
        raise _unknown(where, f"{at}.{unknown['field']}", _field_names(type_)) from None


def _field_names(type_: object) -> list[str]:
    """The names of all fields of a struct type and of the structs below it."""
    definitions = msgspec.json.schema(type_)["$defs"].values()
    return [name for definition in definitions for name in definition["properties"]]


def _mapping(value: Any, where: str, place: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise _invalid(where, place, "must be fields with values")
    return value


def _unknown(where: str, place: str, known: Collection[str]) -> GpufleetError:
    field = place.rpartition(".")[2]
    near = difflib.get_close_matches(field, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"remove it; fields: {', '.join(sorted(known))}"
    return _invalid(where, place, "there is no such field", hint)


def _invalid(where: str, place: str, what: str, hint: str = "") -> GpufleetError:
    at = f"{where}: {place}: " if place else f"{where}: "
    return GpufleetError(reason=REASON, message=at + what, hint=hint)
