"""Custom resources: one value per kind, and from it the CustomResourceDefinition that the cluster gets.

A definition is generated, never written: the Python type that gpufleet decodes is the type that the API
server validates. The list of ours is in `custom_resources`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec

from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube.client import Client
from gpufleet.kube.errors import ApiError
from gpufleet.kube.kinds import CRDS, Kind
from gpufleet.kube.schemas import Rule, description_of, schema_of

__all__ = ["Column", "CustomResource", "Rule", "crd_manifest", "establish"]

CATEGORY = "gpufleet"
FIELD_MANAGER = "gpufleet-crds"
ESTABLISHED_WITHIN = 30.0

_VERSION_TEXT = "The version of the schema of this object."
_KIND_TEXT = "The kind of this object."


class Column(msgspec.Struct, frozen=True):
    """A column of `kubectl get`: `path` is a JSON path such as `.status.summary.gpus`.

    `type` is string, integer, number, boolean or date; `priority` above 0 shows only with `-o wide`.
    """

    name: str
    type: str
    path: str
    description: str = ""
    priority: int = 0


class CustomResource(msgspec.Struct, frozen=True):
    """One kind of ours. `type` is the struct of the whole object, with `metadata`, and `spec` or `status`."""

    kind: Kind
    type: type[msgspec.Struct]
    columns: tuple[Column, ...] = ()
    short_names: tuple[str, ...] = ()
    selectable: tuple[str, ...] = ()
    """JSON paths that field selectors may use."""


AGE = Column("Age", "date", ".metadata.creationTimestamp")


def crd_manifest(resource: CustomResource) -> dict[str, Any]:
    """The CustomResourceDefinition of one kind. TypeError when its type has no structural schema."""
    kind = resource.kind
    fields = {field.encode_name for field in msgspec.structs.fields(resource.type)}
    columns = [*resource.columns, *(() if AGE in resource.columns else (AGE,))]
    version: dict[str, Any] = {
        "name": kind.version,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": _object_schema(resource.type)},
        "additionalPrinterColumns": [_column(column) for column in columns],
    }
    if "status" in fields:
        version["subresources"] = {"status": {}}
    if resource.selectable:
        version["selectableFields"] = [{"jsonPath": path} for path in resource.selectable]
    labels = {"app.kubernetes.io/part-of": "gpufleet"}
    names = {"shortNames": list(resource.short_names), "categories": [CATEGORY]}
    return crd_of(kind, {"labels": labels}, [version], names)


def crd_of(
    kind: Kind,
    metadata: Mapping[str, Any],
    versions: Sequence[Mapping[str, Any]],
    names: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """The definition of a kind; `metadata` comes without its name, `names` beside those of the kind."""
    return {
        "apiVersion": CRDS.api_version,
        "kind": CRDS.kind,
        "metadata": {"name": kind.resource, **metadata},
        "spec": {
            "group": kind.group,
            "scope": "Namespaced" if kind.namespaced else "Cluster",
            "names": {
                "plural": kind.plural,
                "singular": kind.kind.lower(),
                "kind": kind.kind,
                "listKind": f"{kind.kind}List",
                **names,
            },
            "versions": list(versions),
        },
    }


async def establish(client: Client, definitions: Iterable[dict[str, Any]]) -> None:
    """Apply definitions and wait until the API server serves them.

    Raises ApiError when one is refused, and GpufleetError CRDNotEstablished when one does not become served.
    """
    applied = list(definitions)
    for definition in applied:
        await client.apply(CRDS, definition, field_manager=FIELD_MANAGER)
    try:
        async with asyncio.timeout(ESTABLISHED_WITHIN):
            for definition in applied:
                await _served(client, definition)
    except TimeoutError:
        raise GpufleetError(
            reason="CRDNotEstablished",
            message=f"{definition['metadata']['name']} was not served within {ESTABLISHED_WITHIN:.0f} s",
            hint=f"see the conditions of `kubectl get crd {definition['metadata']['name']} -o yaml`",
        ) from None


async def _served(client: Client, definition: dict[str, Any]) -> None:
    spec = definition["spec"]
    path = f"/apis/{spec['group']}/{spec['versions'][0]['name']}/{spec['names']['plural']}"
    name = definition["metadata"]["name"]
    while True:
        status = (await client.get(CRDS, name)).get("status") or {}
        conditions = {c["type"]: c["status"] for c in status.get("conditions") or ()}
        if conditions.get("Established") == "True":
            try:
                await client.request("GET", path, params={"limit": "1"})
                return
            except ApiError as error:
                if not error.not_found:
                    raise
        await asyncio.sleep(0.05)


def _object_schema(wanted: type[msgspec.Struct]) -> dict[str, Any]:
    schema = schema_of(wanted)
    properties = {
        "apiVersion": {"type": "string", "description": _VERSION_TEXT},
        "kind": {"type": "string", "description": _KIND_TEXT},
        **schema["properties"],
        "metadata": {"type": "object"},
    }
    required = [name for name in schema.get("required", ()) if name not in ("apiVersion", "kind", "metadata")]
    return {
        "type": "object",
        "description": description_of(wanted),
        "properties": properties,
        **({"required": required} if required else {}),
        **{key: value for key, value in schema.items() if key.startswith("x-kubernetes-")},
    }


def _column(column: Column) -> dict[str, Any]:
    manifest: dict[str, Any] = {"name": column.name, "type": column.type, "jsonPath": column.path}
    if column.description:
        manifest["description"] = column.description
    if column.priority:
        manifest["priority"] = column.priority
    return manifest
