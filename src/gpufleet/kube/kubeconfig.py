"""Kubeconfig files: read, checked and merged as kubectl does it.

Relative paths in a file are relative to the folder of that file, so they are made absolute before files are
merged. In a merge the first file to name a cluster, user, context or the current context wins as a whole.
Certificates are read only for the context that is used: a broken entry of another cluster harms nobody.
Source: k8s.io/client-go/tools/clientcmd (loader.go, client_config.go).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube.nesting import check_nesting

try:
    from yaml import CSafeLoader as _Loader
except ImportError:
    from yaml import SafeLoader as _Loader  # type: ignore[assignment]


class _Extension(msgspec.Struct, frozen=True):
    name: str = ""
    extension: Any = None


class ClusterEntry(msgspec.Struct, frozen=True, rename="kebab"):
    """A cluster of a kubeconfig."""

    server: str = ""
    certificate_authority: str = ""
    certificate_authority_data: str = ""
    insecure_skip_tls_verify: bool = False
    tls_server_name: str = ""
    proxy_url: str = ""
    extensions: list[_Extension] | None = None


class ExecEnv(msgspec.Struct, frozen=True):
    """A variable for an exec plugin."""

    name: str
    value: str = ""


class ExecEntry(msgspec.Struct, frozen=True, rename="camel"):
    """An exec plugin of a user."""

    command: str
    api_version: str = ""
    args: list[str] | None = None
    env: list[ExecEnv] | None = None
    install_hint: str | None = None
    provide_cluster_info: bool = False
    interactive_mode: str = "IfAvailable"


class UserEntry(msgspec.Struct, frozen=True, rename="kebab"):
    """A user of a kubeconfig."""

    client_certificate: str = ""
    client_certificate_data: str = ""
    client_key: str = ""
    client_key_data: str = ""
    token: str = ""
    token_file: str = msgspec.field(default="", name="tokenFile")
    username: str = ""
    password: str = ""
    exec: ExecEntry | None = None
    auth_provider: dict[str, Any] | None = None
    as_user: str = msgspec.field(default="", name="as")
    as_uid: str = ""
    as_groups: list[str] | None = None
    as_user_extra: dict[str, list[str]] | None = None


class ContextEntry(msgspec.Struct, frozen=True, rename="kebab"):
    """A context: a cluster, a user and a namespace by name."""

    cluster: str = ""
    user: str = ""
    namespace: str = ""


class _NamedCluster(msgspec.Struct, frozen=True):
    name: str
    cluster: ClusterEntry = ClusterEntry()


class _NamedUser(msgspec.Struct, frozen=True):
    name: str
    user: UserEntry = UserEntry()


class _NamedContext(msgspec.Struct, frozen=True):
    name: str
    context: ContextEntry = ContextEntry()


class _File(msgspec.Struct, frozen=True, rename="kebab"):
    current_context: str | None = None
    clusters: list[_NamedCluster] | None = None
    users: list[_NamedUser] | None = None
    contexts: list[_NamedContext] | None = None


class Kubeconfig(msgspec.Struct, frozen=True):
    """One kubeconfig file, or several merged; entries by name, paths absolute."""

    current_context: str = ""
    clusters: dict[str, ClusterEntry] = {}
    users: dict[str, UserEntry] = {}
    contexts: dict[str, ContextEntry] = {}


def bad_kubeconfig(source: str, problem: str, hint: str = "") -> GpufleetError:
    """The error for a kubeconfig that cannot be used."""
    return GpufleetError(
        reason="KubeconfigInvalid",
        message=f"kubeconfig {source}: {problem}",
        hint=hint or "check it with `kubectl config view`",
    )


def read_kubeconfig(path: Path) -> Kubeconfig:
    """One file. Raises GpufleetError KubeconfigMissing or KubeconfigInvalid (with line or field)."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise GpufleetError(
            reason="KubeconfigMissing",
            message=f"kubeconfig {path} does not exist",
            hint="`gpufleet up` writes one for a local fleet; `gpufleet kubeconfig` shows its path",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise bad_kubeconfig(
            str(path), f"it cannot be read: {error}", "check the path and its permissions"
        ) from None
    try:
        check_nesting(text)
        content = yaml.load(text, Loader=_Loader) or {}
        parsed = msgspec.convert(content, type=_File)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise bad_kubeconfig(
            str(path), f"it is not valid YAML{where}: {getattr(error, 'problem', error)}"
        ) from None
    except msgspec.ValidationError as error:
        raise bad_kubeconfig(str(path), str(error)) from None
    folder = path.absolute().parent
    return Kubeconfig(
        current_context=parsed.current_context or "",
        clusters=_first(
            {entry.name: _located_cluster(entry.cluster, folder)} for entry in parsed.clusters or ()
        ),
        users=_first({entry.name: _located_user(entry.user, folder)} for entry in parsed.users or ()),
        contexts=_first({entry.name: entry.context} for entry in parsed.contexts or ()),
    )


def merge(files: Iterable[Kubeconfig]) -> Kubeconfig:
    """Several files as one; for every name the first file that has it wins."""
    parts = list(files)
    return Kubeconfig(
        current_context=next((part.current_context for part in parts if part.current_context), ""),
        clusters=_first(part.clusters for part in parts),
        users=_first(part.users for part in parts),
        contexts=_first(part.contexts for part in parts),
    )


def read_bytes(data: str, path: str, what: str, source: str) -> bytes | None:
    """Inline base64 `data`, else the content of the file `path`, else None. Data wins, as in kubectl."""
    if data:
        try:
            return base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise bad_kubeconfig(source, f"{what}-data is not valid base64: {error}") from None
    if not path:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise bad_kubeconfig(source, f"{what} cannot be read: {error}") from None


_T = TypeVar("_T")


def _first(parts: Iterable[dict[str, _T]]) -> dict[str, _T]:
    merged: dict[str, _T] = {}
    for part in parts:
        merged = {**part, **merged}
    return merged


def _located_cluster(entry: ClusterEntry, folder: Path) -> ClusterEntry:
    return msgspec.structs.replace(entry, certificate_authority=_located(entry.certificate_authority, folder))


def _located_user(entry: UserEntry, folder: Path) -> UserEntry:
    plugin = entry.exec
    if plugin is not None and "/" in plugin.command:
        plugin = msgspec.structs.replace(plugin, command=_located(plugin.command, folder))
    return msgspec.structs.replace(
        entry,
        client_certificate=_located(entry.client_certificate, folder),
        client_key=_located(entry.client_key, folder),
        token_file=_located(entry.token_file, folder),
        exec=plugin,
    )


def _located(path: str, folder: Path) -> str:
    return str(folder / path) if path else ""
