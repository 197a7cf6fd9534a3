"""Kubeconfigs for a local fleet: the admin's, one per component, and ours merged into the user's own.

Certificates are embedded, so that the file works wherever it is copied to. Merging replaces exactly the
entries that bear the fleet's context name and leaves every other entry and field as it is.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import yaml

from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube.nesting import check_nesting
from gpufleet.local import pki
from gpufleet.local.components import (
    CONTROLLER,
    CONTROLLER_MANAGER,
    DEVICES,
    SIMULATED_NODES,
    component_kubeconfig,
)
from gpufleet.local.layout import Layout, file_errors, write_atomic

_ANOTHER_FILE = "name another file: gpufleet kubeconfig --merge --into FILE"
_LISTS = {"clusters": "cluster", "users": "user", "contexts": "context"}


def context_name(fleet: str) -> str:
    """The context, cluster and user name of a fleet."""
    return f"gpufleet-{fleet}"


def kubeconfig(layout: Layout, port: int, certificate: str = "admin") -> dict[str, Any]:
    """A complete kubeconfig whose only context connects as the holder of `certificate`."""
    name = context_name(layout.name)
    holder = pki.pair(layout.pki, certificate)
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": name,
                "cluster": {
                    "server": f"https://127.0.0.1:{port}",
                    "certificate-authority-data": _embedded(pki.pair(layout.pki, "ca").cert),
                },
            }
        ],
        "users": [
            {
                "name": name,
                "user": {
                    "client-certificate-data": _embedded(holder.cert),
                    "client-key-data": _embedded(holder.key),
                },
            }
        ],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "current-context": name,
    }


def write_all(layout: Layout, port: int) -> None:
    """Write the admin's kubeconfig and those of the components, each only when it changes."""
    files = {
        layout.kubeconfig: "admin",
        component_kubeconfig(layout, CONTROLLER_MANAGER): "controller-manager",
        component_kubeconfig(layout, CONTROLLER): "controller",
        component_kubeconfig(layout, DEVICES): "devices",
        component_kubeconfig(layout, SIMULATED_NODES): "simulated-nodes",
    }
    for path, certificate in files.items():
        with file_errors(path):
            data = _encoded(kubeconfig(layout, port, certificate))
            if not path.exists() or path.read_bytes() != data:
                write_atomic(path, data)


def merge_into(path: Path, ours: Path, *, make_current: bool = True) -> None:
    """Add or replace the entries of the kubeconfig `ours` in the one at `path`, which need not exist."""
    with file_errors(path, _ANOTHER_FILE):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        theirs = _read(path) if path.exists() else {"apiVersion": "v1", "kind": "Config"}
        merged = merged_kubeconfig(theirs, _read(ours), make_current=make_current)
        write_atomic(path.resolve(), _encoded(merged))


def merged_kubeconfig(
    theirs: dict[str, Any], ours: dict[str, Any], *, make_current: bool = True
) -> dict[str, Any]:
    """`theirs` with the entries of `ours` added, or put in the place of entries with the same name."""
    merged = dict(theirs)
    for key in _LISTS:
        new = {entry["name"]: entry for entry in ours[key]}
        kept = [new.pop(entry["name"], entry) for entry in theirs.get(key) or []]
        merged[key] = [*kept, *new.values()]
    if make_current or not theirs.get("current-context"):
        merged["current-context"] = ours["current-context"]
    return merged


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        check_nesting(text)
        loaded = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(loaded, dict):
        raise _damaged(path, "it is not a mapping")
    for key in _LISTS:
        entries = loaded.get(key) or []
        if not isinstance(entries, list) or any(not isinstance(e, dict) or "name" not in e for e in entries):
            raise _damaged(path, f"{key} is not a list of named entries")
    return loaded


def _damaged(path: Path, why: str) -> GpufleetError:
    return GpufleetError(
        reason="KubeconfigInvalid",
        message=f"{path} is not a kubeconfig: {why}; it was left as it is",
        hint=f"correct it, or {_ANOTHER_FILE}",
    )


def _encoded(config: dict[str, Any]) -> bytes:
    return yaml.safe_dump(config, sort_keys=False).encode()


def _embedded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
