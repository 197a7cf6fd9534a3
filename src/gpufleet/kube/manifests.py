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

Manifest = Mapping[str, Any]


def read_manifests(path: Path) -> list[Manifest]:
    """The objects of a YAML file, items of a List one by one. Raises GpufleetError with the place of an
    error.
    """
    try:
        documents = list(
            yaml.load_all(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        )
    except OSError as error:
        message = f"cannot read {path}: {error.strerror}"
        raise GpufleetError(reason="FileUnreadable", message=message) from error
    except yaml.YAMLError as error:
        raise GpufleetError(reason="InvalidYaml", message=f"{path}: {error}") from error
    return [item for document in documents if document for item in _items(document, path)]


def _items(document: Any, path: Path) -> Iterable[Manifest]:
    if not isinstance(document, dict) or not document.get("apiVersion") or not document.get("kind"):
        raise GpufleetError(
            reason="InvalidManifest", message=f"{path}: a document without apiVersion and kind is no manifest"
        )
    return document.get("items", []) if document["kind"] == "List" else [document]


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
        metadata = {**manifest.get("metadata", {})}
        if kind.namespaced:
            metadata.setdefault("namespace", namespace)
        await client.apply(kind, {**manifest, "metadata": metadata}, field_manager=field_manager)
    return unserved
