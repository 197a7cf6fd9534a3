"""Structural schemas: from a msgspec type to what a CustomResourceDefinition wants to know of it.

A CRD's schema is a strict dialect of OpenAPI v3: no references, a type at every level, no alternatives
except number-or-string, and server-side apply merges lists only if told by which key. One Python type is
the source of the schema, of decoding and of the documentation, so they cannot disagree.

- `Annotated[int, Meta(ge=0)]`: `minimum`; likewise `le`, `gt`, `lt`, `multiple_of`, `min_length`,
  `max_length`, `pattern`
- `T | None`: `nullable`
- `Literal`, `Enum`: `enum`
- `int | str`: `x-kubernetes-int-or-string`
- `Meta(description=...)`: `description`; without it the docstring of a struct
- `Meta(extra_json_schema={...})`: merged as it is, for `format`, `default`, `x-kubernetes-*`
- `cel_rules: ClassVar = (Rule(...),)` of a struct: its CEL rules

Source: https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/
"""

from __future__ import annotations

import inspect
from typing import Any

import msgspec
from msgspec import inspect as types

from gpufleet.kube.objects.meta import Condition, ObjectMeta

Schema = dict[str, Any]


class Rule(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """A CEL rule over `self` (and `oldSelf`): `message` is what the user reads when it does not hold."""

    rule: str
    message: str = ""
    message_expression: str = ""
    reason: str = ""
    field_path: str = ""


def schema_of(wanted: Any) -> Schema:
    """The structural schema of a type. Raises TypeError, naming the place, for what a CRD cannot express."""
    return _schema(types.type_info(wanted), ())


def description_of(cls: type) -> str:
    """The docstring of a class as running text; empty when it has none of its own."""
    text = inspect.cleandoc(cls.__dict__.get("__doc__") or "")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _schema(found: types.Type, path: tuple[type, ...]) -> Schema:
    match found:
        case types.Metadata():
            return _annotated(found, path)
        case types.StructType():
            return _struct(found, path)
        case types.UnionType():
            return _union(found, path)
        case types.DictType():
            return {
                "type": "object",
                "additionalProperties": _schema(found.value_type, path),
                **_bounds(found, minProperties="min_length", maxProperties="max_length"),
            }
        case types.ListType() | types.VarTupleType() | types.SetType() | types.FrozenSetType():
            return _array(found, path)
        case _:
            return _scalar(found, path)


def _annotated(found: types.Metadata, path: tuple[type, ...]) -> Schema:
    schema = _schema(found.type, path)
    extra = {key: value for key, value in (found.extra_json_schema or {}).items() if key != "examples"}
    return {**schema, **extra}


def _struct(found: types.StructType, path: tuple[type, ...]) -> Schema:
    cls = found.cls
    if cls is ObjectMeta:
        return {"type": "object"}
    if cls in path:
        raise TypeError(f"{_where(path)}: {cls.__name__} contains itself, which a CRD cannot express")
    inner = (*path, cls)
    schema: Schema = {"type": "object"}
    description = description_of(cls)
    if description:
        schema["description"] = description
    schema["properties"] = {field.encode_name: _schema(field.type, inner) for field in found.fields}
    required = [field.encode_name for field in found.fields if field.required]
    if required:
        schema["required"] = required
    rules = getattr(cls, "cel_rules", ())
    if rules:
        schema["x-kubernetes-validations"] = [msgspec.to_builtins(rule) for rule in rules]
    return schema


def _union(found: types.UnionType, path: tuple[type, ...]) -> Schema:
    members = [member for member in found.types if not isinstance(member, types.NoneType)]
    nullable = {"nullable": True} if found.includes_none else {}
    if len(members) == 1:
        return {**_schema(members[0], path), **nullable}
    if len(members) == 2 and {type(_bare(member)) for member in members} == {types.IntType, types.StrType}:
        choices = [{"type": "integer"}, {"type": "string"}]
        return {"x-kubernetes-int-or-string": True, "anyOf": choices, **nullable}
    raise TypeError(f"{_where(path)}: a CRD cannot express a union of {len(members)} types")


def _array(
    found: types.ListType | types.VarTupleType | types.SetType | types.FrozenSetType, path: tuple[type, ...]
) -> Schema:
    schema: Schema = {
        "type": "array",
        "items": _schema(found.item_type, path),
        **_bounds(found, minItems="min_length", maxItems="max_length"),
    }
    item = _bare(found.item_type)
    if isinstance(found, types.SetType | types.FrozenSetType):
        schema["x-kubernetes-list-type"] = "set"
    elif isinstance(item, types.StructType) and item.cls is Condition:
        schema |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
    return schema


def _scalar(found: types.Type, path: tuple[type, ...]) -> Schema:
    match found:
        case types.BoolType():
            return {"type": "boolean"}
        case types.IntType():
            return {"type": "integer", "format": "int64", **_range(found)}
        case types.FloatType():
            return {"type": "number", "format": "double", **_range(found)}
        case types.StrType():
            return {
                "type": "string",
                **_bounds(found, minLength="min_length", maxLength="max_length", pattern="pattern"),
            }
        case types.BytesType():
            return {"type": "string", "format": "byte"}
        case types.DateTimeType():
            return {"type": "string", "format": "date-time"}
        case types.LiteralType():
            return _enumeration(list(found.values), path)
        case types.EnumType():
            return _enumeration([member.value for member in found.cls], path)
        case types.AnyType() | types.RawType():
            return {"x-kubernetes-preserve-unknown-fields": True}
        case _:
            raise TypeError(f"{_where(path)}: a CRD cannot express {type(found).__name__}")


def _enumeration(values: list[Any], path: tuple[type, ...]) -> Schema:
    names = {type(value) for value in values}
    if names == {str}:
        return {"type": "string", "enum": values}
    if names == {int}:
        return {"type": "integer", "enum": values}
    raise TypeError(f"{_where(path)}: the values of an enumeration must be all strings or all integers")


def _range(found: types.IntType | types.FloatType) -> Schema:
    schema = _bounds(found, minimum="ge", maximum="le", multipleOf="multiple_of")
    if found.gt is not None:
        schema |= {"minimum": found.gt, "exclusiveMinimum": True}
    if found.lt is not None:
        schema |= {"maximum": found.lt, "exclusiveMaximum": True}
    return schema


def _bounds(found: types.Type, **names: str) -> Schema:
    bounds = {keyword: getattr(found, attribute) for keyword, attribute in names.items()}
    return {keyword: value for keyword, value in bounds.items() if value is not None}


def _bare(found: types.Type) -> types.Type:
    return found.type if isinstance(found, types.Metadata) else found


def _where(path: tuple[type, ...]) -> str:
    return ".".join(cls.__name__ for cls in path) or "type"
