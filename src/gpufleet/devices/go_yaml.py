"""YAML and JSON as the parts of NVIDIA's stack read them, which are written in Go.

There `1:0` is text and not the sexagesimal number 60, and a date is text too. A field that stands twice is an
error here, because one of the two would be lost.
Source: sigs.k8s.io/yaml, YAML 1.2 core schema.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
import yaml

from gpufleet.fleet.errors import GpufleetError

_TYPES = (
    # type     plain scalars of it                                      their first characters
    ("merge", r"<<",                                                   ["<"]),
    ("null",  r"~|null|Null|NULL|",                                    ["~", "n", "N", ""]),
    ("bool",  r"(?i:true|false|yes|no|on|off)",                        list("tTfFyYnNoO")),
    ("int",   r"[-+]?(0|[1-9][0-9]*)",                                 list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?",  list("-+.0123456789")),
)  # fmt: skip


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with our types of plain scalars."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    problem = f"the field {key.value!r} stands twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {}
for _name, _pattern, _first in _TYPES:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), _first)


def load_yaml(text: str, where: str, reason: str) -> Any:
    """What one document says, None for an empty one. Text that begins with a brace may be JSON with tabs.

    Raises GpufleetError (`reason`) that names `where`, line and column.
    """
    if text.lstrip().startswith("{"):
        try:
            return msgspec.json.decode(text)
        except msgspec.DecodeError:
            pass
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where
        what = " ".join(part for part in (error.context, error.problem) if part)
        raise GpufleetError(reason=reason, message=f"{at}: {what}") from None
    except yaml.YAMLError as error:
        raise GpufleetError(reason=reason, message=f"{where}: {error}".replace("\n", " ")) from None
