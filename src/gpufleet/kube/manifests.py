"""Manifests of any kind: read them from YAML and apply them, as `kubectl apply --server-side` does.

Which path serves a kind is asked of the API server (discovery), so custom resources work as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml

from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube.client import ApiError, Client
from gpufleet.kube.kinds import Kind
from gpufleet.kube.nesting import check_nesting

Manifest = Mapping[str, Any]


def read_manifests(path: Path) -> list[Manifest]:
    """The objects of a YAML file, items of a List one by one; each has apiVersion, kind and a name.

    Raises GpufleetError with the place of an error.
    """
    return _manifests(read_documents(path), str(path))


def manifests_in(content: bytes, where: str) -> list[Manifest]:
    """The same of the content of a file; `where` is its name in messages."""
    return _manifests(parse_documents(content, where), where)


def read_documents(path: Path) -> list[Any]:
    """The documents of a YAML file, whatever they are; None for an empty one. Raises GpufleetError."""
    try:
        content = path.read_bytes()
    except OSError as error:
        message = f"cannot read {path}: {error.strerror}"
        raise GpufleetError(
            reason="FileUnreadable", message=message, hint=f"look at it with `ls -l {path}`"
        ) from error
    return parse_documents(content, str(path))


def parse_documents(content: bytes, where: str) -> list[Any]:
    """The same of the content of a file; `where` is its name in messages."""
    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        text = content.decode("utf-8")
        check_nesting(text)
        return list(yaml.load_all(text, Loader=loader))
    except UnicodeDecodeError as error:
        message = f"{where}: byte {error.start} is not UTF-8"
        raise GpufleetError(
            reason="InvalidYaml", message=message, hint="save the file as UTF-8 text"
        ) from error
    except (yaml.YAMLError, ValueError) as error:
        hint = "mend the YAML there; quote a text that looks like a number or a date"
        raise GpufleetError(reason="InvalidYaml", message=f"{where}: {error}", hint=hint) from error


def _manifests(documents: Iterable[Any], where: str) -> list[Manifest]:
    return [
        item
        for number, document in enumerate(documents, 1)
        if document is not None
        for item in _items(document, f"{where}, document {number}")
    ]


def _items(document: Any, where: str) -> Iterable[Manifest]:
    _check_kind(document, where)
    if document["kind"] != "List":
        _check_name(document, where)
        return [document]
    items = document.get("items")
    if not isinstance(items, list):
        raise _invalid(
            f"{where}: the items of a List are not a list", "write `items: []` or a list of objects"
        )
    for number, item in enumerate(items, 1):
        _check_kind(item, f"{where}, item {number}")
        _check_name(item, f"{where}, item {number}")
    return items


def _check_kind(manifest: Any, where: str) -> None:
    if not isinstance(manifest, dict) or not all(_is_text(manifest.get(k)) for k in ("apiVersion", "kind")):
        message = f"{where}: what has no apiVersion and kind is no manifest"
        raise _invalid(message, "start it as `apiVersion: v1` and `kind: Pod` do")


def _check_name(manifest: Manifest, where: str) -> None:
    metadata = manifest.get("metadata")
    if not isinstance(metadata, dict) or not _is_text(metadata.get("name")):
        message = f"{where}: the {manifest['kind']} has no name"
        raise _invalid(message, "set metadata.name to a text; generateName cannot be applied")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _invalid(message: str, hint: str) -> GpufleetError:
    return GpufleetError(reason="InvalidManifest", message=message, hint=hint)


class Discovery:
    """The kinds that an API server serves, asked once per group and version."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._known: dict[str, dict[str, Kind]] = {}

    async def kind_of(self, manifest: Manifest) -> Kind | None:
        """The kind of a manifest, or None when the server does not serve it."""
        version = str(manifest["apiVersion"])
        if version not in self._known:
            self._known[version] = await self._read(version)
        return self._known[version].get(str(manifest["kind"]))

    async def _read(self, api_version: str) -> dict[str, Kind]:
        group, _, version = api_version.rpartition("/")
        path = f"/apis/{api_version}" if group else f"/api/{api_version}"
        try:
            body = msgspec.json.decode(await self._client.request("GET", path))
        except ApiError as error:
            if error.not_found:
                return {}
            raise
        return {
            resource["kind"]: Kind(group, version, resource["name"], resource["kind"], resource["namespaced"])
            for resource in body["resources"]
            if "/" not in resource["name"]
        }


async def apply_manifests(
    client: Client, manifests: Iterable[Manifest], *, field_manager: str, namespace: str = "default"
) -> list[Manifest]:
    """Apply objects in order, those without a namespace in `namespace`.

    Returns those whose kind the server does not serve; they are not applied.
    """
    discovery = Discovery(client)
    unserved: list[Manifest] = []
    for manifest in manifests:
        kind = await discovery.kind_of(manifest)
        if kind is None:
            unserved.append(manifest)
            continue
        metadata = {**manifest["metadata"]}
        if kind.namespaced:
            metadata.setdefault("namespace", namespace)
        await client.apply(kind, {**manifest, "metadata": metadata}, field_manager=field_manager)
    return unserved
