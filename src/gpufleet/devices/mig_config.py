"""Named MIG configs of a node: mig-parted's config.yaml, and the ones that a node's GPUs give by themselves.

A config is a list of entries; each says for some of the GPUs whether MIG mode is on and how many instances of
which profile they have. Entries are applied in their order, so the last one that concerns a GPU counts; a GPU
that none concerns is left alone. `all` skips GPUs without MIG, an index that names one is an error.

Names of profiles say memory, so they differ between products and one name can mean two things: `1g.10gb` is
the smallest instance of an H100, seven times, and on an A100 with 40 GB one with double memory, four times.
Therefore the default configs are made from what the GPUs of the node can be cut into, as MIG manager does
since 2026, and a config that a GPU cannot hold is an error that says what the GPU has.
Source: mig-parted api/spec/v1, pkg/mig/builder, cmd/nvidia-mig-parted; go-nvlib for the form of profiles.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from gpufleet.devices.inventory import GPU, Inventory
from gpufleet.devices.mig_changes import OFF, MigTarget
from gpufleet.devices.yaml_fields import Document, Place
from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.mig import Geometry, dotted, layout, place, summary

_PROFILE = re.compile(
    r"(\d+c\.)?\d+g\.\d+gb(\+[A-Za-z][\w.]*(,[A-Za-z][\w.]*)*)?(-[A-Za-z][\w.]*)?", re.ASCII
)
_WHOLE = re.compile(r"(?P<compute>\d+)c\.(?P<instance>(?P<slices>\d+)g\..+)")
_DEVICE_ID = re.compile(r"0[xX][0-9a-fA-F]{1,8}")


class ConfigEntry(msgspec.Struct, frozen=True):
    """What a config says of some GPUs: those of the indexes `devices` (None: all) whose PCI id, as
    `0x233010DE`, is among `filters` (empty: any).
    """

    on: bool
    profiles: Mapping[str, int] = {}
    devices: tuple[int, ...] | None = None
    filters: tuple[str, ...] = ()


MigConfigs = Mapping[str, tuple[ConfigEntry, ...]]
"""Configs by name."""


class _File(msgspec.Struct, forbid_unknown_fields=True, rename="kebab"):
    version: Literal["v1"]
    mig_configs: dict[str, Any] | UnsetType | None = UNSET


class _Entry(msgspec.Struct, forbid_unknown_fields=True, rename="kebab"):
    devices: Literal["all"] | list[int]
    mig_enabled: bool
    mig_devices: dict[str, Any] | None = None
    device_filter: str | list[str] | None = None


def parse_mig_configs(text: str, where: str) -> MigConfigs:
    """The configs of a config.yaml of version v1 (YAML or JSON), which messages call `where`.

    Raises GpufleetError (InvalidMigConfig) that names line, column and field.
    """
    document = Document(text, where, "InvalidMigConfig")
    if document.value is None:
        return {}
    configs = document.convert(document.value, _File, ()).mig_configs
    if configs is UNSET:
        return {}
    at: Place = ("mig-configs",)
    if not configs:
        raise document.error(at, "there must be at least one config")
    return {name: _entries(document, listed, (*at, name)) for name, listed in configs.items()}


def _entries(document: Document, listed: Any, at: Place) -> tuple[ConfigEntry, ...]:
    entries = document.convert([] if listed is None else listed, list[Any], at)
    if not entries:
        raise document.error(at, "there must be at least one entry")
    return tuple(_entry(document, one, (*at, index)) for index, one in enumerate(entries))


def _entry(document: Document, value: Any, at: Place) -> ConfigEntry:
    entry = document.convert(value, _Entry, at)
    if entry.mig_enabled and entry.mig_devices is None:
        raise document.error(at, "mig-devices is required with mig-enabled: true", "{} for no instances")
    if not entry.mig_enabled and entry.mig_devices:
        raise document.error((*at, "mig-devices"), "there cannot be instances with mig-enabled: false")
    match entry.device_filter:
        case None | "":
            filters: tuple[str, ...] = ()
        case str(one):
            filters = (one,)
        case several:
            filters = tuple(several)
    return ConfigEntry(
        entry.mig_enabled,
        _counts(document, entry.mig_devices or {}, (*at, "mig-devices")),
        None if entry.devices == "all" else tuple(entry.devices),
        filters,
    )


def _counts(document: Document, devices: Mapping[str, Any], at: Place) -> dict[str, int]:
    for name, count in devices.items():
        if not _PROFILE.fullmatch(name):
            raise document.error((*at, name), f"{name!r} is no MIG profile", "profiles are as 1g.10gb+me")
        if document.convert(count, int, (*at, name)) < 0:
            raise document.error((*at, name), f"{count} is no number of instances")
    if devices and not any(devices.values()):
        raise document.error(at, "all counts are 0", "{} for no instances")
    return {name: count for name, count in devices.items() if count}


def default_mig_configs(inventory: Inventory) -> MigConfigs:
    """The configs that every node has: `all-disabled`, `all-enabled`, and from what its GPUs can be cut into
    `all-balanced` and an `all-<profile>` for each profile (a `+` in it becomes a dot).

    Where the products of a node differ, an entry names those that have the layout, and others are left alone.
    """
    boards = {gpu.pci_device: gpu.geometry for gpu in inventory.gpus if gpu.geometry and not gpu.lost}
    made: dict[str, dict[tuple[tuple[str, int], ...], list[str]]] = {}
    for device, geometry in sorted(boards.items()):
        for name in ("all-balanced", *(f"all-{dotted(profile)}" for profile in geometry.profiles)):
            profiles = layout(geometry, name)
            if profiles and place(geometry, profiles) is not None:
                counts = tuple(sorted(Counter(profiles).items()))
                made.setdefault(name, {}).setdefault(counts, []).append(f"0x{device:08X}")
    return {
        "all-disabled": (ConfigEntry(on=False),),
        "all-enabled": (ConfigEntry(on=True),),
        **{
            name: tuple(
                ConfigEntry(on=True, profiles=dict(counts), filters=tuple(ids) if len(boards) > 1 else ())
                for counts, ids in entries.items()
            )
            for name, entries in sorted(made.items())
        },
    }


def resolve_mig_config(name: str, configs: MigConfigs, inventory: Inventory) -> Mapping[str, MigTarget]:
    """What a config asks of each GPU, by uuid; GPUs that it leaves alone are absent, also those that do not
    answer.

    Raises GpufleetError, before anything is touched: UnknownMigConfig, InvalidMigConfig for a filter that is
    no PCI id, MigUnsupported, UnknownMigProfile, MigDoesNotFit.
    """
    if name not in configs:
        raise _unknown_config(name, configs)
    chosen: dict[str, ConfigEntry] = {}
    for entry in configs[name]:
        ids = _device_ids(name, entry.filters)
        for gpu in inventory.gpus:
            if _concerns(entry, ids, gpu):
                chosen[gpu.uuid] = entry
    return {
        gpu.uuid: target
        for gpu in inventory.gpus
        if gpu.uuid in chosen and (target := _target(name, chosen[gpu.uuid], gpu)) is not None
    }


def _unknown_config(name: str, configs: MigConfigs) -> GpufleetError:
    near = difflib.get_close_matches(name, configs, n=1)
    return GpufleetError(
        reason="UnknownMigConfig",
        message=f"there is no MIG config {name!r}",
        hint=(f"did you mean {near[0]!r}? " if near else "")
        + f"Configs: {', '.join(sorted(configs)) or 'none'}",
    )


def _device_ids(name: str, filters: Iterable[str]) -> frozenset[int]:
    for one in filters:
        if not _DEVICE_ID.fullmatch(one):
            raise GpufleetError(
                reason="InvalidMigConfig",
                message=f"MIG config {name!r}: the device filter {one!r} is no PCI id",
                hint="write device and vendor as one number, as 0x233010DE for an H100",
            )
    return frozenset(int(one, 16) for one in filters)


def _concerns(entry: ConfigEntry, ids: frozenset[int], gpu: GPU) -> bool:
    if gpu.lost or (ids and gpu.pci_device not in ids):
        return False
    return entry.devices is None or gpu.index in entry.devices


def _target(name: str, entry: ConfigEntry, gpu: GPU) -> MigTarget | None:
    if gpu.mig == "unsupported":
        if not entry.on or entry.devices is None:
            return None
        raise _impossible("MigUnsupported", name, gpu, "it cannot be cut by MIG")
    if not entry.on:
        return OFF
    if gpu.geometry is None:
        raise _impossible("MigUnsupported", name, gpu, "its driver does not say what it can be cut into")
    profiles = tuple(
        profile
        for written, count in sorted(entry.profiles.items())
        for profile in (_known(name, gpu, gpu.geometry, written),) * count
    )
    if place(gpu.geometry, profiles) is None:
        raise _impossible("MigDoesNotFit", name, gpu, f"{summary(profiles)} does not fit on it")
    return MigTarget(on=True, profiles=profiles)


def _known(name: str, gpu: GPU, geometry: Geometry, written: str) -> str:
    """A profile as the GPU calls it; `2c.2g.20gb` is the whole of a `2g.20gb`."""
    whole = _WHOLE.fullmatch(written)
    if whole and whole["compute"] == whole["slices"]:
        written = whole["instance"]
    with suppress(GpufleetError):
        return geometry.profile(written).name
    parts = " (compute instances that share a GPU instance are not made)" if whole else ""
    offers = f"profiles: {', '.join(geometry.profiles)}"
    raise _impossible("UnknownMigProfile", name, gpu, f"it has no profile {written!r}{parts}", offers)


def _impossible(reason: str, name: str, gpu: GPU, what: str, hint: str = "") -> GpufleetError:
    what = f"MIG config {name!r} cannot be applied to GPU {gpu.index} ({gpu.name}): {what}"
    return GpufleetError(reason=reason, message=what, hint=hint)
