"""What gpufleet shows to its users, collected from the code: commands, CRDs, metrics, codes, fleet files.

`tools.reference` writes it down and `tools.public` judges it, so both see the same surface.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import click
from prometheus_client.metrics import MetricWrapperBase

import gpufleet

Schema = Mapping[str, Any]
STANDARD = (".conditions",)
"""Fields whose content Kubernetes defines; they are named but not taken apart."""


class Command(NamedTuple):
    """One command by the words that a user types, for example `gpufleet top gpus`."""

    path: str
    command: click.Command


class Field(NamedTuple):
    """One field of a schema: `status.devices[].uuid`, its type with bounds, its default as JSON."""

    path: str
    type: str
    required: bool
    default: str
    description: str


class Metric(NamedTuple):
    """One metric family as a scrape names it."""

    name: str
    type: str
    labels: tuple[str, ...]
    help: str


def commands() -> Iterator[Command]:
    """Every command that is not hidden, groups before their members, as `--help` lists them."""
    from gpufleet.cli.app import group

    yield from _walk("gpufleet", group)


def _walk(path: str, command: click.Command) -> Iterator[Command]:
    yield Command(path, command)
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=path)
        for name in command.list_commands(context):
            member = command.get_command(context, name)
            if member is not None and not member.hidden:
                yield from _walk(f"{path} {name}", member)


def options(command: click.Command) -> list[click.Option]:
    """The options of a command that are not hidden."""
    return [one for one in command.params if isinstance(one, click.Option) and not one.hidden]


def exit_codes() -> Mapping[int, str]:
    """What the exit codes of commands mean."""
    from gpufleet.cli.commands import EXIT_CODES

    return EXIT_CODES


def custom_resources() -> list[dict[str, Any]]:
    """The CustomResourceDefinitions that gpufleet installs."""
    from gpufleet.kube.custom_resources import custom_resources as definitions

    return definitions()


def fields(schema: Schema, definitions: Schema, path: str = "") -> Iterator[Field]:
    """The fields below an object schema, parents first. `definitions` resolves `$ref`."""
    resolved = resolve(schema, definitions)
    required = resolved.get("required", ())
    for name, member in resolved.get("properties", {}).items():
        here = f"{path}.{name}" if path else name
        yield from _field(here, member, definitions, required=name in required)


def _field(path: str, schema: Schema, definitions: Schema, *, required: bool) -> Iterator[Field]:
    inner = resolve(schema, definitions)
    description = schema.get("description") or inner.get("description", "")
    value = schema.get("default")
    default = json.dumps(value) if value or isinstance(value, int | float) else ""
    yield Field(path, type_of(schema, definitions), required, default, " ".join(description.split()))
    if path.endswith(STANDARD):
        return
    items, values = inner.get("items"), inner.get("additionalProperties")
    if isinstance(items, Mapping):
        yield from fields(items, definitions, f"{path}[]")
    elif isinstance(values, Mapping):
        yield from fields(values, definitions, f"{path}.*")
    else:
        yield from fields(inner, definitions, path)


def resolve(schema: Schema, definitions: Schema) -> Schema:
    """A schema with its reference followed; of `anyOf` with null, the other branch."""
    if "$ref" in schema:
        return resolve(definitions[schema["$ref"].rsplit("/", 1)[1]], definitions)
    branches = [branch for branch in schema.get("anyOf", ()) if branch.get("type") != "null"]
    return resolve(branches[0], definitions) if len(branches) == 1 else schema


def type_of(schema: Schema, definitions: Schema) -> str:
    """A type in a few words: `integer 0..255`, `list of string`, `one of "a", "b"`."""
    inner = resolve(schema, definitions)
    if "enum" in inner:
        return "one of " + ", ".join(f"`{value}`" for value in inner["enum"])
    kind = inner.get("type")
    if inner.get("x-kubernetes-int-or-string"):
        return "integer or string"
    if kind == "array":
        return "list of " + type_of(inner.get("items", {}), definitions)
    if kind == "object" and isinstance(inner.get("additionalProperties"), Mapping):
        return "map to " + type_of(inner["additionalProperties"], definitions)
    if "anyOf" in inner:
        branches = [branch for branch in inner["anyOf"] if branch.get("type") != "null"]
        return " or ".join(type_of(branch, definitions) for branch in branches)
    bounds = [inner.get(key) for key in ("minimum", "maximum")]
    text = " or ".join(kind) if isinstance(kind, list) else str(kind or "any")
    if any(bound is not None for bound in bounds):
        text += " " + "..".join("" if bound is None else str(bound) for bound in bounds)
    return text + (f" ({inner['format']})" if inner.get("format", "int64") != "int64" else "")


def modules() -> Iterator[Any]:
    """Every module of the package, imported."""
    for found in pkgutil.walk_packages(gpufleet.__path__, "gpufleet."):
        if not found.name.endswith("__main__"):
            yield importlib.import_module(found.name)


def metrics() -> list[Metric]:
    """Every metric family that a module defines, by name."""
    found: dict[str, Metric] = {}
    for module in modules():
        for value in vars(module).values():
            if isinstance(value, MetricWrapperBase):
                metric = _metric(value)
                found[metric.name] = metric
    return [found[name] for name in sorted(found)]


def _metric(wrapper: MetricWrapperBase) -> Metric:
    [family] = wrapper.describe()
    suffix = "_total" if family.type == "counter" else ""
    return Metric(
        family.name + suffix, family.type, tuple(vars(wrapper)["_labelnames"]), family.documentation
    )


def reason_codes() -> dict[str, str]:
    """The vocabulary of reasons."""
    from gpufleet.fleet import reasons

    return reasons.CODES


def fleet_schema() -> dict[str, Any]:
    """The JSON schema of a fleet file."""
    from gpufleet.local import fleetfile

    schema: dict[str, Any] = fleetfile.schema()
    return schema
