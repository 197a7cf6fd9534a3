"""Everything public has documentation, and the vocabulary of reasons is exactly what the code uses.

Judged: commands and options, fields and columns of the custom resources, fields of fleet files, metrics, and
reason codes. A code counts as used where its literal stands in a module other than the vocabulary itself.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from tools import surface

ROOT = Path(__file__).resolve().parent.parent
VOCABULARY = ROOT / "src" / "gpufleet" / "fleet" / "reasons.py"
CODE = re.compile(r"(?:[A-Z][a-z0-9]+)+")
CARRIERS = ("Reason", "Block")


def undocumented_commands() -> Iterator[str]:
    """Commands and options without help."""
    for item in surface.commands():
        if not item.command.help:
            yield f"`{item.path}` has no help"
        for option in surface.options(item.command):
            if not option.help:
                yield f"`{item.path} {option.opts[-1]}` has no help"


def undocumented_fields() -> Iterator[str]:
    """Fields of custom resources and of fleet files without a description."""
    for crd in surface.custom_resources():
        kind = crd["spec"]["names"]["kind"]
        for version in crd["spec"]["versions"]:
            schema = version["schema"]["openAPIV3Schema"]
            if not schema.get("description"):
                yield f"{kind} has no description"
            for name in {"spec", "status"} & schema["properties"].keys():
                top = {"properties": {name: schema["properties"][name]}}
                yield from (
                    f"{kind} {f.path} has no description"
                    for f in surface.fields(top, {})
                    if not f.description
                )
    schema = surface.fleet_schema()
    for field in surface.fields(schema, schema.get("$defs", {})):
        if not field.description:
            yield f"fleet file field {field.path} has no description"


def undocumented_metrics() -> Iterator[str]:
    """Metrics without help, or outside gpufleet's name space."""
    for metric in surface.metrics():
        if not metric.help.strip():
            yield f"metric {metric.name} has no help"
        if not metric.name.startswith("gpufleet_"):
            yield f"metric {metric.name} does not start with gpufleet_"


def literals(tree: ast.AST) -> Iterator[str]:
    """Every text literal of a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def carried_codes(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The literal codes given to `Reason(...)` and `Block(...)`, with their lines."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        if name in CARRIERS:
            values = [*node.args[:1], *(word.value for word in node.keywords if word.arg == "code")]
            for value in values:
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield node.lineno, value.value


def vocabulary_problems() -> Iterator[str]:
    """Codes without a meaning, codes that nothing uses, and codes outside the vocabulary."""
    codes = surface.reason_codes()
    used: set[str] = set()
    for path in sorted((ROOT / "src").rglob("*.py")):
        if path == VOCABULARY:
            continue
        tree = ast.parse(path.read_text())
        used.update(literals(tree))
        for line, code in carried_codes(tree):
            if code not in codes:
                yield f"{path.relative_to(ROOT)}:{line}: reason code {code} is not in fleet/reasons.py"
    for code, meaning in codes.items():
        if not CODE.fullmatch(code):
            yield f"reason code {code} is not in CamelCase"
        if not meaning.strip():
            yield f"reason code {code} has no meaning"
        if code not in used:
            yield f"reason code {code} is in fleet/reasons.py and nothing uses it"


def main() -> None:
    """Print every gap and end with 1 when there is one."""
    found = [
        *undocumented_commands(),
        *undocumented_fields(),
        *undocumented_metrics(),
        *vocabulary_problems(),
    ]
    if found:
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
