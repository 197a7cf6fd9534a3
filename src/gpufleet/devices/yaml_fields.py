"""Fields of a YAML document and where they stand, so that an error about one names line, column and path.

Values are read as NVIDIA's stack reads them (`go_yaml`); the nodes of the same text know the lines. A place
is the way to a field, keys and indexes, for a key may have dots: `("mig-configs", "all-1g.10gb", 0)`.
"""

from __future__ import annotations

import difflib
import re
from typing import Any, TypeVar

import msgspec
import yaml

from gpufleet.devices.go_yaml import load_yaml
from gpufleet.fleet.errors import GpufleetError

T = TypeVar("T")
Place = tuple[str | int, ...]

_AT = re.compile(r"^(?P<what>.*?)(?: - at `\$(?P<path>[^`]*)`)?$", re.DOTALL)
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+)\]")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<field>[^`]+)`")


class Document:
    """One document; messages call it `where`, and every error has `reason`."""

    def __init__(self, text: str, where: str, reason: str) -> None:
        """Raises GpufleetError for text that is not one document."""
        self._where = where
        self._reason = reason
        self.value: Any = load_yaml(text, where, reason)
        self._root = _nodes(text)

    def convert(self, value: Any, type_: type[T], place: Place) -> T:
        """The value at `place` as `type_`; raises GpufleetError about the field in it that is wrong."""
        try:
            return msgspec.convert(value, type_)
        except msgspec.ValidationError as error:
            match = _AT.match(str(error))
            what, path = (match["what"], match["path"] or "") if match else (str(error), "")
            steps = (key or int(index) for key, index in _STEP.findall(path))
            below: Place = (*place, *steps)
            unknown = _UNKNOWN.match(what)
            if unknown is None:
                raise self.error(below, what[:1].lower() + what[1:]) from None
            field, known = unknown["field"], _field_names(type_)
            near = difflib.get_close_matches(field, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"remove it; fields: {', '.join(sorted(known))}"
            raise self.error((*below, field), f"unknown field {field!r}", hint) from None

    def error(self, place: Place, what: str, hint: str = "") -> GpufleetError:
        """An error about the field at `place`."""
        mark = self._mark(place)
        at = f"{self._where}:{mark.line + 1}:{mark.column + 1}" if mark else self._where
        path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place)
        text = f"{what} (at {path.removeprefix('.')})" if path else what
        return GpufleetError(reason=self._reason, message=f"{at}: {text}", hint=hint)

    def _mark(self, place: Place) -> yaml.Mark | None:
        """Where a field begins, or the nearest one around it."""
        node = self._root
        mark = node.start_mark if node else None
        for step in place:
            entry = _child(node, step)
            if entry is None:
                break
            mark, node = entry
        return mark


def _nodes(text: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return None


def _child(node: yaml.Node | None, step: str | int) -> tuple[yaml.Mark, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        return next(((key.start_mark, value) for key, value in node.value if key.value == step), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step].start_mark, node.value[step]
    return None


def _field_names(type_: object) -> list[str]:
    """The names of all fields of a struct type and of the structs below it."""
    definitions = msgspec.json.schema(type_).get("$defs", {}).values()
    return [name for definition in definitions for name in definition.get("properties", {})]
