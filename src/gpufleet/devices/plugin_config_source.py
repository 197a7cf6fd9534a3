"""Where the plugin's config comes from: one file, or a folder with one file per config (a mounted ConfigMap).

Which file of a folder counts is the node's label, else a default. The files are looked at every few seconds,
because a mounted ConfigMap changes under our feet; one that does not parse leaves the last good config in
force and is told as an error.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from gpufleet.devices.plugin_config import (
    GPU_RESOURCE,
    Fallback,
    PluginConfig,
    SharedResource,
    Sharing,
    choose_config,
)
from gpufleet.devices.plugin_config_file import parse_config
from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.mig import mig_resource
from gpufleet.kube.gpunode import SharingWish


class ConfigSource(msgspec.Struct, frozen=True):
    """How the config is found: `path` is a file or a folder, None for the defaults alone."""

    path: Path | None = None
    default: str = ""
    fallbacks: tuple[Fallback, ...] = ("named", "single", "empty")
    environment: Mapping[str, str] = {}
    overrides: Mapping[str, object] = {}

    def read(self, label: str) -> PluginConfig:
        """The config for a node with this value of its label. Raises GpufleetError."""
        text, where = "", "the defaults"
        if self.path is not None and self.path.is_dir():
            chosen = choose_config(_names(self.path), label, default=self.default, fallbacks=self.fallbacks)
            if chosen is not None:
                text, where = _text(self.path / chosen), str(self.path / chosen)
        elif self.path is not None:
            text, where = _text(self.path), str(self.path)
        return parse_config(text, where, environment=self.environment, overrides=self.overrides)


def _names(folder: Path) -> Sequence[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_file() and entry.name[0] != ".")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise GpufleetError(
            reason="PluginConfigUnreadable",
            message=f"cannot read the plugin's config {path}: {error}",
            hint="give --config-file a file or a folder of files that the agent may read",
        ) from None


def with_sharing(
    config: PluginConfig, wish: SharingWish | None, profiles: Iterable[str] = ()
) -> PluginConfig:
    """The config with the sharing that a pool asks for; without a wish as it is. It is of whole GPUs and of
    MIG instances of these profiles, unless MPS shares, which does not serve them.
    """
    if wish is None:
        return config
    if wish.mode == "none":
        return msgspec.structs.replace(config, sharing=Sharing())
    names = [GPU_RESOURCE]
    if wish.mode != "mps" and config.mig_strategy == "mixed":
        names += sorted({mig_resource(profile) for profile in profiles})
    sharing = Sharing(
        "mps" if wish.mode == "mps" else "time-slicing",
        tuple(SharedResource(name, wish.replicas, f"{name}.shared" if wish.rename else "") for name in names),
        wish.rename,
        wish.fail_requests_greater_than_one,
    )
    return msgspec.structs.replace(config, sharing=sharing)
