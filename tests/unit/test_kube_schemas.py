"""Structural schemas from types."""

from __future__ import annotations

import datetime as dt
import enum
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import pytest
from msgspec import Meta

from gpufleet.kube.crds import CustomResource, crd_manifest
from gpufleet.kube.custom_resources import custom_resources
from gpufleet.kube.kinds import Kind
from gpufleet.kube.objects import Condition, ObjectMeta
from gpufleet.kube.schemas import Rule, schema_of


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Inner(msgspec.Struct, rename="camel"):
    """An inner thing,
    told in two lines.

    And a second paragraph.
    """

    some_name: str


class Undocumented(msgspec.Struct):
    x: int = 0


class Itself(msgspec.Struct):
    child: Itself | None = None


@pytest.mark.parametrize(
    ("wanted", "schema"),
    [
        (bool, {"type": "boolean"}),
        (bytes, {"type": "string", "format": "byte"}),
        (dt.datetime, {"type": "string", "format": "date-time"}),
        (
            Annotated[int, Meta(ge=1, lt=9)],
            {"type": "integer", "format": "int64", "minimum": 1, "maximum": 9, "exclusiveMaximum": True},
        ),
        (
            Annotated[float, Meta(gt=0, multiple_of=0.5)],
            {"type": "number", "format": "double", "minimum": 0, "exclusiveMinimum": True, "multipleOf": 0.5},
        ),
        (
            Annotated[str, Meta(min_length=1, max_length=5, pattern="^a")],
            {"type": "string", "minLength": 1, "maxLength": 5, "pattern": "^a"},
        ),
        (str | None, {"type": "string", "nullable": True}),
        (
            int | str | None,
            {
                "x-kubernetes-int-or-string": True,
                "anyOf": [{"type": "integer"}, {"type": "string"}],
                "nullable": True,
            },
        ),
        (Literal["a", "b"], {"type": "string", "enum": ["a", "b"]}),
        (Level, {"type": "integer", "enum": [1, 2]}),
        (
            Annotated[list[bool], Meta(min_length=1, max_length=2)],
            {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2},
        ),
        (set[str], {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"}),
        (Mapping[str, bool], {"type": "object", "additionalProperties": {"type": "boolean"}}),
        (Any, {"x-kubernetes-preserve-unknown-fields": True}),
        (ObjectMeta, {"type": "object"}),
        (
            Annotated[str, Meta(description="d", examples=["e"], extra_json_schema={"format": "date-time"})],
            {"type": "string", "description": "d", "format": "date-time"},
        ),
    ],
)
def test_a_type_becomes_its_schema(wanted: Any, schema: dict[str, Any]) -> None:
    assert schema_of(wanted) == schema


def test_a_struct_says_what_it_is_and_what_it_needs() -> None:
    assert schema_of(Inner) == {
        "type": "object",
        "description": "An inner thing, told in two lines.\n\nAnd a second paragraph.",
        "properties": {"someName": {"type": "string"}},
        "required": ["someName"],
    }
    assert schema_of(Undocumented) == {
        "type": "object",
        "properties": {"x": {"type": "integer", "format": "int64"}},
    }


def test_conditions_are_merged_by_type_without_being_told() -> None:
    schema = schema_of(tuple[Condition, ...])
    assert schema["x-kubernetes-list-type"] == "map"
    assert schema["x-kubernetes-list-map-keys"] == ["type"]


def test_rules_of_a_struct_become_validations() -> None:
    class Ruled(msgspec.Struct):
        cel_rules: ClassVar[tuple[Rule, ...]] = (Rule(rule="self.x > 0", message="m", field_path=".x"),)
        x: int

    assert schema_of(Ruled)["x-kubernetes-validations"] == [
        {"rule": "self.x > 0", "message": "m", "fieldPath": ".x"}
    ]


@pytest.mark.parametrize(
    ("wanted", "complaint"),
    [
        (Itself, "Itself: Itself contains itself"),
        (list[int] | str, "a union of 2 types"),
        (Literal["a", 1], "all strings or all integers"),
        (dt.timedelta, "TimeDeltaType"),
    ],
)
def test_what_a_crd_cannot_express_is_refused_by_place(wanted: Any, complaint: str) -> None:
    with pytest.raises(TypeError, match=complaint):
        schema_of(wanted)


def test_a_resource_without_status_has_no_status_subresource() -> None:
    class Plain(msgspec.Struct):
        metadata: ObjectMeta
        spec: Inner

    manifest = crd_manifest(CustomResource(Kind("g.dev", "v1", "plains", "Plain", namespaced=False), Plain))
    (version,) = manifest["spec"]["versions"]
    assert "subresources" not in version
    assert manifest["metadata"]["name"] == "plains.g.dev"
    assert manifest["spec"]["scope"] == "Cluster"
    assert version["schema"]["openAPIV3Schema"]["required"] == ["spec"]


def every_schema(schema: dict[str, Any], at: str) -> list[tuple[str, dict[str, Any]]]:
    inner = [(f"{at}.{name}", s) for name, s in schema.get("properties", {}).items()]
    inner += [(f"{at}[]", schema["items"])] if "items" in schema else []
    inner += [(f"{at}{{}}", s) for s in [schema.get("additionalProperties")] if s]
    return [(at, schema), *(found for name, s in inner for found in every_schema(s, name))]


def test_our_own_definitions_are_bounded_and_documented() -> None:
    for definition in custom_resources():
        schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        for at, part in every_schema(schema, definition["spec"]["names"]["kind"]):
            assert "$ref" not in part
            if part.get("type") == "array":
                assert "maxItems" in part, f"{at} is unbounded, which CEL rules cannot afford"
        documented = {at for at, part in every_schema(schema, "") if part.get("description")}
        top = {at for at, _ in every_schema(schema, "") if at.count(".") == 2 and "metadata" not in at}
        assert top <= documented
