"""Values as JSON and back: any type made of frozen structs, mappings, tuples, sets and scalars.

Nothing is written down by hand about a type: its fields are read from its annotations, so a new field is
encoded from the day it exists. Mappings and sets are sorted, so equal values give equal bytes. JSON knows
only text as keys, so a mapping with other keys (`(gang, owner)`) becomes a sorted list of pairs; everything
else goes through msgspec as it is. `unfit` says of a type, and of all below it, what cannot be encoded.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, Generic, TypeVar

import msgspec

V = TypeVar("V")

_SCALARS = (str, int, float, bool, type(None))
_UNIONS = (typing.Union, types.UnionType)
_Turn = Callable[[Any], Any]


class _Form(typing.NamedTuple):
    """How a type is written: as the type `wire`. Without `there` and `back` it is the type itself."""

    wire: Any
    there: _Turn | None = None
    back: _Turn | None = None


class Codec(Generic[V]):
    """Encodes the values of one type. The same value always gives the same bytes, in one line."""

    def __init__(self, value_type: type[V]) -> None:
        self._type = value_type

    def encode(self, value: V) -> bytes:
        """The value as JSON. Raises TypeError for a type that `unfit` names."""
        form = self._form
        return self._encoder.encode(form.there(value) if form.there is not None else value)

    def decode(self, data: bytes | msgspec.Raw) -> V:
        """The value of JSON that `encode` wrote. Raises msgspec.DecodeError, UnicodeDecodeError or
        RecursionError.
        """
        found = self._decoder.decode(data)
        value: V = self._form.back(found) if self._form.back is not None else found
        return value

    @cached_property
    def fields(self) -> dict[str, tuple[str, ...]]:
        """The fields of every struct that may occur in a value, by the struct's name."""
        return {struct.__name__: struct.__struct_fields__ for struct in structs_in(self._type)}

    @cached_property
    def _form(self) -> _Form:
        problems = list(unfit(self._type))
        if problems:
            raise TypeError("; ".join(problems))
        return _form(self._type)

    @cached_property
    def _encoder(self) -> msgspec.json.Encoder:
        return msgspec.json.Encoder(order="deterministic")

    @cached_property
    def _decoder(self) -> msgspec.json.Decoder[Any]:
        return msgspec.json.Decoder(self._form.wire)


def structs_in(value_type: Any) -> tuple[type[msgspec.Struct], ...]:
    """Every struct that may occur in a value of a type, by name."""
    found = {one for _, one in _walk(value_type, "") if _is_struct(one)}
    return tuple(sorted(found, key=lambda struct: struct.__name__))


def unfit(value_type: Any) -> Iterator[str]:
    """What in a type cannot be encoded, each with the path to it: `Snapshot.queues: ...`."""
    for path, one in _walk(value_type, getattr(value_type, "__name__", str(value_type))):
        problem = _problem(one)
        if problem:
            yield f"{path}: {problem}"
    names: dict[str, type[msgspec.Struct]] = {}
    for struct in structs_in(value_type):
        if any(struct in structs_in(part) for part in _hints(struct).values()):
            yield f"{struct.__name__}: it holds values of its own type, and such a type has no end"
        if names.setdefault(struct.__name__, struct) is not struct:
            yield f"{struct.__name__}: two structs have this name, and a reader tells them apart by it"


def _walk(value_type: Any, path: str) -> Iterator[tuple[str, Any]]:
    """A type and all types below it, each struct's fields once, with the shortest path that leads there."""
    seen: set[Any] = set()
    waiting = [(path, value_type)]
    for where, one in waiting:
        yield where, one
        if not _is_struct(one):
            waiting += [
                (where, part) for part in typing.get_args(one) if part is not Ellipsis and _is_type(one)
            ]
        elif one not in seen:
            seen.add(one)
            waiting += [(f"{one.__name__}.{name}", part) for name, part in _hints(one).items()]


def _problem(one: Any) -> str:
    """Why a type, seen without what is below it, cannot be encoded; empty when it can."""
    origin = typing.get_origin(one) or one
    if _is_struct(one):
        return "" if one.__struct_config__.frozen else "only frozen structs are values"
    if origin in _SCALARS or origin is typing.Literal:
        return ""
    if origin in (tuple, frozenset, Mapping):
        return "" if typing.get_args(one) else f"{_name(one)} does not say what it holds"
    if origin in _UNIONS:
        return _union_problem(one)
    return (
        f"{_name(one)} is not one of: a frozen struct, Mapping, tuple, frozenset, str, int, float, bool, None"
    )


def _union_problem(one: Any) -> str:
    """A reader must be able to tell the members of a union apart."""
    members = [typing.get_origin(part) or part for part in typing.get_args(one)]
    tagless = [part for part in members if _is_struct(part) and part.__struct_config__.tag is None]
    structs, arrays = sum(map(_is_struct, members)), sum(part in (tuple, frozenset) for part in members)
    if structs > 1 and tagless:
        return f"{_name(one)}: structs in a union need a tag (`tag=True`)"
    if arrays > 1 or (Mapping in members and structs):
        return f"{_name(one)}: its members look alike in JSON"
    return ""


def _form(one: Any) -> _Form:
    origin, parts = typing.get_origin(one), typing.get_args(one)
    if _is_struct(one):
        return _struct_form(one)
    if origin is Mapping:
        return _mapping_form(one, *map(_form, parts))
    if origin is tuple and parts[-1] is Ellipsis:
        return _sequence_form(one, _form(parts[0]), tuple)
    if origin is tuple:
        return _row_form(one, [_form(part) for part in parts])
    if origin is frozenset:
        return _sequence_form(one, _form(parts[0]), frozenset)
    if origin in _UNIONS:
        return _union_form(one, parts)
    return _Form(one)


def _struct_form(struct: type[msgspec.Struct]) -> _Form:
    forms = {name: _form(part) for name, part in _hints(struct).items()}
    turned = {name: form for name, form in forms.items() if form.there is not None}
    if not turned:
        return _Form(struct)
    described = msgspec.structs.fields(struct)
    defaults = {
        field.name: field.default_factory() if field.default is msgspec.NODEFAULT else field.default
        for field in described
        if not field.required
    }
    wire = msgspec.defstruct(
        struct.__name__,
        [(field.name, forms[field.name].wire, _absent(field, turned, defaults)) for field in described],
        frozen=True,
        kw_only=True,
        tag=struct.__struct_config__.tag,
        tag_field=struct.__struct_config__.tag_field,
    )

    def there(value: Any) -> Any:
        return wire(
            **{
                name: forms[name].there(part) if name in turned else part  # type: ignore[misc]
                for name, part in msgspec.structs.asdict(value).items()
            }
        )

    def back(value: Any) -> Any:
        return struct(
            **{
                name: forms[name].back(part) if name in turned else part  # type: ignore[misc]
                for name, part in msgspec.structs.asdict(value).items()
            }
        )

    return _Form(wire, there, back)


def _absent(
    field: msgspec.structs.FieldInfo, turned: Mapping[str, _Form], defaults: Mapping[str, Any]
) -> Any:
    """What a field is where a file does not have it."""
    if field.required:
        return msgspec.NODEFAULT
    default, form = defaults[field.name], turned.get(field.name)
    value = form.there(default) if form is not None and form.there is not None else default
    return msgspec.field(default_factory=lambda: value)


def _mapping_form(one: Any, key: _Form, value: _Form) -> _Form:
    if key.wire is str and value.there is None:
        return _Form(one)
    turn_key, turn_value = key.there or _same, value.there or _same
    back_key, back_value = key.back or _same, value.back or _same
    if key.wire is str:
        return _Form(
            Mapping[str, value.wire],  # type: ignore[name-defined]
            lambda mapping: {name: turn_value(part) for name, part in mapping.items()},
            lambda mapping: {name: back_value(part) for name, part in mapping.items()},
        )
    return _Form(
        tuple[tuple[key.wire, value.wire], ...],  # type: ignore[name-defined]
        lambda mapping: [(turn_key(k), turn_value(v)) for k, v in sorted(mapping.items())],
        lambda pairs: {back_key(k): back_value(v) for k, v in pairs},
    )


def _sequence_form(one: Any, part: _Form, kind: Callable[[Iterator[Any]], Any]) -> _Form:
    there, back = part.there, part.back
    if there is None or back is None:
        return _Form(one)
    return _Form(
        kind[part.wire, ...] if kind is tuple else kind[part.wire],  # type: ignore[index]
        lambda values: kind(map(there, values)),
        lambda values: kind(map(back, values)),
    )


def _row_form(one: Any, parts: list[_Form]) -> _Form:
    if all(part.there is None for part in parts):
        return _Form(one)
    there, back = [part.there or _same for part in parts], [part.back or _same for part in parts]
    return _Form(
        tuple[tuple(part.wire for part in parts)],  # type: ignore[misc]
        lambda row: tuple(turn(value) for turn, value in zip(there, row, strict=True)),
        lambda row: tuple(turn(value) for turn, value in zip(back, row, strict=True)),
    )


def _union_form(one: Any, parts: tuple[Any, ...]) -> _Form:
    """Only an optional value is turned: of other unions it could not be told which member a value is."""
    forms = [_form(part) for part in parts if part is not type(None)]
    if all(form.there is None for form in forms):
        return _Form(one)
    if len(forms) > 1:
        raise TypeError(f"{_name(one)}: a mapping with compound keys cannot stand in a union")
    there, back = forms[0].there or _same, forms[0].back or _same
    return _Form(
        forms[0].wire | None,
        lambda value: None if value is None else there(value),
        lambda value: None if value is None else back(value),
    )


def _same(value: Any) -> Any:
    return value


def _is_struct(one: Any) -> bool:
    return isinstance(one, type) and issubclass(one, msgspec.Struct)


def _is_type(one: Any) -> bool:
    """Whether the arguments of a generic are types: those of Literal are values."""
    return typing.get_origin(one) is not typing.Literal


def _hints(struct: type[msgspec.Struct]) -> dict[str, Any]:
    hints = typing.get_type_hints(struct)
    return {name: hints[name] for name in struct.__struct_fields__}


def _name(one: Any) -> str:
    return one.__name__ if isinstance(one, type) else str(one)
