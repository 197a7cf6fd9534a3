"""Where texts stand in a type, and the same value with other texts there.

A place is a struct's field, `Node.name`, with what leads to the text inside of it: `.keys` and `.values` of a
mapping, a position in a row of fixed length (`PodShape.node_selector.0`), nothing for the items of a tuple or
a set. Words of a fixed vocabulary (Literal) are no texts.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, TypeVar

import msgspec

from gpufleet.fleet.encoding import structs_in

V = TypeVar("V", bound=msgspec.Struct)

_Renaming = Callable[[Any, str, "Rename"], Any]
"""Renames the texts of one value; the text is the key beside it."""

Rename = Callable[[str, str, str], str]
"""The new text for a place, a text, and the key beside it: of a mapping, of a pair, or the field `key`."""


def text_places(value_type: Any) -> tuple[str, ...]:
    """Every place in a type, and in all types below it, that holds a text."""
    found = {
        place
        for struct in structs_in(value_type)
        for name, hint in _hints(struct).items()
        for place in _places(hint, f"{struct.__name__}.{name}")
    }
    return tuple(sorted(found))


def with_texts(value: V, rename: Rename) -> V:
    """A struct with every text in it, and below it, replaced; its type must be one that can be encoded."""
    found: V = _renaming_struct(type(value))(value, "", rename)
    return found


def _places(hint: Any, place: str) -> Iterator[str]:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is str:
        yield place
    elif origin is Mapping:
        yield from _places(parts[0], f"{place}.keys")
        yield from _places(parts[1], f"{place}.values")
    elif origin is tuple and parts[-1] is not Ellipsis:
        for number, part in enumerate(parts):
            yield from _places(part, f"{place}.{number}")
    elif origin is not typing.Literal:
        for part in parts:
            yield from _places(part, place)


@lru_cache(maxsize=1024)
def _renaming_struct(struct: Any) -> _Renaming:
    """What renames the texts of a struct, found out once for each type."""
    fields = [
        (name, renaming)
        for name, hint in _hints(struct).items()
        if (renaming := _renaming(hint, f"{struct.__name__}.{name}")) is not None
    ]
    has_key = "key" in struct.__struct_fields__

    def renamed(value: Any, key: str, rename: Rename) -> Any:
        beside = value.key if has_key else ""
        changed = {}
        for name, renaming in fields:
            part = getattr(value, name)
            if part is not None and part != () and part != "":
                changed[name] = renaming(part, beside, rename)
        return msgspec.structs.replace(value, **changed) if changed else value

    return renamed


def _renaming(hint: Any, place: str) -> _Renaming | None:
    """What renames the texts of a value of this type; None where there can be none."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is str:
        return lambda text, key, rename: rename(place, text, key)
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return lambda value, key, rename: with_texts(value, rename)
    if origin is Mapping:
        return _renaming_mapping(_renaming(parts[0], f"{place}.keys"), _renaming(parts[1], f"{place}.values"))
    if origin is tuple and parts[-1] is not Ellipsis:
        return _renaming_row([_renaming(part, f"{place}.{number}") for number, part in enumerate(parts)])
    if origin in (tuple, frozenset):
        return _renaming_items(origin, _renaming(parts[0], place))
    if origin is typing.Literal:
        return None
    return _renaming_member([(part, _renaming(part, place)) for part in parts])


def _renaming_mapping(of_key: _Renaming | None, of_value: _Renaming | None) -> _Renaming | None:
    if of_key is None and of_value is None:
        return None
    turn_key, turn_value = of_key or _as_it_is, of_value or _as_it_is

    def renamed(value: Any, key: str, rename: Rename) -> Any:
        return {
            turn_key(name, key, rename): turn_value(part, name if isinstance(name, str) else "", rename)
            for name, part in value.items()
        }

    return renamed


def _renaming_row(turns: list[_Renaming | None]) -> _Renaming | None:
    if not any(turns):
        return None

    def renamed(value: Any, key: str, rename: Rename) -> Any:
        beside = value[0] if isinstance(value[0], str) else key
        return tuple(
            part if turn is None else turn(part, beside if number else key, rename)
            for number, (turn, part) in enumerate(zip(turns, value, strict=True))
        )

    return renamed


def _renaming_items(kind: Callable[[Iterator[Any]], Any], turn: _Renaming | None) -> _Renaming | None:
    if turn is None:
        return None
    return lambda value, key, rename: kind(turn(part, key, rename) for part in value)


def _renaming_member(members: list[tuple[Any, _Renaming | None]]) -> _Renaming | None:
    """Of a union: the member that a value is of decides."""
    turns = [(typing.get_origin(part) or part, turn) for part, turn in members if turn is not None]
    if not turns:
        return None

    def renamed(value: Any, key: str, rename: Rename) -> Any:
        for kind, turn in turns:
            if isinstance(value, kind):
                return turn(value, key, rename)
        return value

    return renamed


def _as_it_is(value: Any, key: str, rename: Rename) -> Any:
    return value


def _hints(struct: type[msgspec.Struct]) -> dict[str, Any]:
    hints = typing.get_type_hints(struct)
    return {name: hints[name] for name in struct.__struct_fields__}
