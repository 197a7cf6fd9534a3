"""YAML with addresses: decode a document into a msgspec struct and say on which line an error stands.

The document is composed once into nodes, which know line and column, and constructed from the same nodes.
msgspec and our own checks name a field by its path (`$.groups[0].count`); the path leads back to the node.
"""

from __future__ import annotations

import difflib
import re
from typing import TypeVar

import msgspec
import yaml

from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube.nesting import check_nesting

T = TypeVar("T")

_AT = re.compile(r"^(?P<what>.*?)(?: - at `(?P<path>\$[^`]*)`)?$", re.DOTALL)
_STEP = re.compile(r'\.([^.\[]+)|\["([^"]+)"\]|\[(\d+)\]')
_WANTED = re.compile(r"Expected `(?P<type>[^`]+)`(?P<bound>.*?)(?:, got `(?P<got>[^`]+)`)?", re.DOTALL)
_BOUND = re.compile(r" (?P<length>of length )?(?P<sign>[<>]=) (?P<number>[\d.]+)")
_MISSING = re.compile(r"Object missing required field `(?P<field>[^`]+)`")
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "array": "a list",
    "object": "a mapping",
    "null": "nothing",
}
"""What people call the types of YAML."""

_UNKNOWN = re.compile(r"Object contains unknown field `(?P<field>[^`]+)`")
_MEND = "mend the YAML there; put a text that has one of : # { } [ ] & * ! | > % @ into quotes"


class YamlDocument:
    """One parsed document of `source` (a file name or `preset NAME`, only used in messages)."""

    def __init__(self, text: str, source: str) -> None:
        """Raises GpufleetError (InvalidYaml) for anything that is not one YAML document."""
        self._source = source
        try:
            check_nesting(text)
            self._root = yaml.compose(text, Loader=yaml.SafeLoader)
            self._reject_duplicates(self._root)
            self._data = yaml.safe_load(text)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            what = " ".join(part for part in (error.context, error.problem) if part)
            raise self._error("InvalidYaml", what, mark, _MEND) from None
        except (yaml.YAMLError, ValueError) as error:
            raise self._error("InvalidYaml", str(error).replace("\n", " "), None, _MEND) from None

    def decode(self, type_: type[T], reason: str, hint: str) -> T:
        """The document as `type_`; raises GpufleetError (`reason`) with the line of the offending field.

        `hint` says where the fields are explained.
        """
        if self._data is None:
            raise self._error(reason, "the file is empty", None, hint)
        try:
            return msgspec.convert(self._data, type_)
        except msgspec.ValidationError as error:
            match = _AT.match(str(error))
            what, path = (match["what"], match["path"] or "$") if match else (str(error), "$")
            unknown = _UNKNOWN.match(what)
            if unknown is None:
                raise self.error(path, reason, _in_words(what), _with_example(type_, path, hint)) from None
            field = unknown["field"]
            near = difflib.get_close_matches(field, _field_names(type_), n=1)
            remedy = f"did you mean {near[0]!r}?" if near else f"remove it; {hint}"
            raise self.error(f"{path}.{field}", reason, f"unknown field {field!r}", remedy) from None

    def error(self, path: str, reason: str, what: str, hint: str) -> GpufleetError:
        """An error about the field at `path` (`$.groups[0].count`, `$.labels["a.b/c"]`), with its line and
        column.
        """
        field = path.removeprefix("$").removeprefix(".")
        text = f"{what} (at {field})" if field else what
        return self._error(reason, text, self._mark(path), hint)

    def _error(self, reason: str, what: str, mark: yaml.Mark | None, hint: str) -> GpufleetError:
        where = f"{self._source}:{mark.line + 1}:{mark.column + 1}" if mark else self._source
        return GpufleetError(reason=reason, message=f"{where}: {what}", hint=hint)

    def _mark(self, path: str) -> yaml.Mark | None:
        node, mark = self._root, self._root.start_mark if self._root else None
        for plain, quoted, index in _STEP.findall(path):
            entry = _child(node, plain or quoted, index)
            if entry is None:
                break
            mark, node = entry
        return mark

    def _reject_duplicates(self, node: yaml.Node | None, parents: frozenset[int] = frozenset()) -> None:
        if id(node) in parents:
            mark = node.start_mark if node else None
            raise self._error("InvalidYaml", "an alias contains itself", mark, "write its content instead")
        parents |= {id(node)}
        if isinstance(node, yaml.SequenceNode):
            for item in node.value:
                self._reject_duplicates(item, parents)
        elif isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in seen:
                    what = f"the field {key.value!r} stands twice"
                    raise self._error("InvalidYaml", what, key.start_mark, "keep one of them")
                seen.add(str(key.value))
                self._reject_duplicates(value, parents)


def _child(node: yaml.Node | None, key: str, index: str) -> tuple[yaml.Mark, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode) and key:
        return next((((k.start_mark, v)) for k, v in node.value if k.value == key), None)
    if isinstance(node, yaml.SequenceNode) and index and int(index) < len(node.value):
        item = node.value[int(index)]
        return item.start_mark, item
    return None


def _field_names(type_: object) -> list[str]:
    """The names of all fields of a struct type and of the structs below it."""
    definitions = msgspec.json.schema(type_)["$defs"].values()
    return [name for definition in definitions for name in definition.get("properties", {})]


def _in_words(problem: str) -> str:
    """What msgspec finds wrong, without the names of its types."""
    missing = _MISSING.fullmatch(problem)
    if missing is not None:
        return f"the field {missing['field']!r} is missing"
    wanted = _WANTED.fullmatch(problem)
    if wanted is None:
        return problem[:1].lower() + problem[1:]
    text = f"expected {_type_in_words(wanted['type'])}"
    bound = _BOUND.fullmatch(wanted["bound"])
    if bound is not None:
        least = "at least" if bound["sign"] == ">=" else "at most"
        number = f"{float(bound['number']):g}"
        items = " item" if number == "1" else " items"
        text += f" of {least} {number}{items if bound['length'] else ''}"
    return text + (f", got {_type_in_words(wanted['got'])}" if wanted["got"] else "")


def _type_in_words(types: str) -> str:
    return " or ".join(_WORDS.get(name, name) for name in types.split(" | "))


def _with_example(type_: object, path: str, hint: str) -> str:
    """The hint after an example of the field at `path`, where its type has one or a default."""
    names = [plain for plain, _, index in _STEP.findall(path) if not index]
    definitions = msgspec.json.schema(type_)["$defs"].values()
    for definition in definitions:
        known = definition.get("properties", {}).get(names[-1] if names else "", {})
        example = (known.get("examples") or [known.get("default")])[0]
        if example not in (None, "", [], {}):
            return f"write for example {names[-1]}: {msgspec.json.encode(example).decode()}; {hint}"
    return hint
