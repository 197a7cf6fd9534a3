"""The reference is complete: schemas are read as users meet them, and gaps in the documentation are found."""

from __future__ import annotations

import ast

import pytest
from tools import public, reference, surface

SCHEMA = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "description": "Who."},
        "count": {"type": "integer", "minimum": 1, "maximum": 8, "default": 2},
        "mode": {"enum": ["a", "b"], "description": "How."},
        "child": {"anyOf": [{"$ref": "#/$defs/Child"}, {"type": "null"}]},
        "children": {"type": "array", "items": {"$ref": "#/$defs/Child"}},
        "by_name": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}
DEFINITIONS = {"Child": {"type": "object", "properties": {"age": {"type": "integer", "minimum": 0}}}}


def test_fields_of_nested_objects_lists_and_references_are_found() -> None:
    found = {one.path: (one.type, one.required, one.default) for one in surface.fields(SCHEMA, DEFINITIONS)}
    assert found == {
        "name": ("string", True, ""),
        "count": ("integer 1..8", False, "2"),
        "mode": ("one of `a`, `b`", False, ""),
        "child": ("object", False, ""),
        "child.age": ("integer 0..", False, ""),
        "children": ("list of object", False, ""),
        "children[].age": ("integer 0..", False, ""),
        "by_name": ("map to string", False, ""),
    }


def test_what_kubernetes_defines_is_named_and_not_taken_apart() -> None:
    conditions = {"type": "array", "items": {"type": "object", "properties": {"type": {"type": "string"}}}}
    schema = {"properties": {"status": {"type": "object", "properties": {"conditions": conditions}}}}
    assert [one.path for one in surface.fields(schema, {})] == ["status", "status.conditions"]


def test_cells_keep_a_table_whole() -> None:
    assert (
        reference.table(("A",), [("one | two\nthree <x> `<y>`",)]).splitlines()[-1]
        == "| one \\| two three &lt;x> `<y>` |"
    )


@pytest.mark.parametrize(
    ("source", "codes"),
    [
        ('Reason("BestFit", "text")', ["BestFit"]),
        ('reasons.Reason(code="Bound", message="")', ["Bound"]),
        ('Block("TooManyPods", detail)', ["TooManyPods"]),
        ("Reason(block.code, text)", []),
        ('Other("BestFit")', []),
    ],
)
def test_codes_given_to_reasons_are_found(source: str, codes: list[str]) -> None:
    assert [code for _, code in public.carried_codes(ast.parse(source))] == codes


def test_every_metric_is_named_and_explained() -> None:
    assert list(public.undocumented_metrics()) == []
    assert "gpufleet_scheduling_binds_total" in {metric.name for metric in surface.metrics()}


def test_the_reference_names_every_command() -> None:
    page = reference.cli_page()
    assert all(f"\n## {item.path}\n" in page for item in surface.commands())
