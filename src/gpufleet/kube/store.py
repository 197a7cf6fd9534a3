"""The objects of one kind by key, and by whatever else they are looked up.

A store only changes by `Change`, one object at a time, and a new list becomes the changes that lead to
it. So whoever subscribed to the changes knows exactly what the store knows, also after a gap in the
stream: what vanished in the gap comes as a delete, and what was deleted and made again under the same
name as a delete and an add (test_kube_store guards that indexes equal a rebuild).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import msgspec

from gpufleet.kube.decoding import identity

T = TypeVar("T")


class Change(msgspec.Struct, Generic[T], frozen=True, gc=False):
    """One change of one object: `old` is None for an add, `new` is None for a delete."""

    key: str
    old: T | None
    new: T | None


class Store(Generic[T]):
    """Objects by key, with indexes: each maps an object to the values it is found under."""

    def __init__(self, indexes: Mapping[str, Callable[[T], Iterable[str]]] | None = None) -> None:
        self._objects: dict[str, T] = {}
        self._versions: dict[str, tuple[str, str]] = {}
        self._functions = dict(indexes or {})
        self._indexes: dict[str, dict[str, dict[str, T]]] = {name: {} for name in self._functions}
        self.objects: Mapping[str, T] = MappingProxyType(self._objects)
        """A live view, by key."""

    def by_index(self, index: str, value: str) -> list[T]:
        """The objects found under a value of an index. KeyError for an index that was not declared."""
        return list(self._indexes[index].get(value, {}).values())

    def difference(self, obj: T) -> list[Change[T]]:
        """What changes when `obj` arrives: nothing if its resourceVersion is known already."""
        key, uid, version = identity(obj)
        old = self._objects.get(key)
        if old is None:
            return [Change(key, None, obj)]
        known_uid, known_version = self._versions[key]
        if known_uid != uid:
            return [Change(key, old, None), Change(key, None, obj)]
        return [] if version and known_version == version else [Change(key, old, obj)]

    def removal(self, key: str) -> list[Change[T]]:
        """What changes when the object of that key is gone."""
        old = self._objects.get(key)
        return [] if old is None else [Change(key, old, None)]

    def replacement(self, items: Iterable[T], keep: Iterable[str] = ()) -> list[Change[T]]:
        """What changes when the state is exactly `items`: deletes first, then the others in order.

        Keys in `keep` stay as they are: they exist, but in a form that we could not read.
        """
        listed = {identity(item).key: item for item in items}
        kept = set(keep)
        changes = [
            Change(key, old, None)
            for key, old in self._objects.items()
            if key not in listed and key not in kept
        ]
        for item in listed.values():
            changes += self.difference(item)
        return changes

    def apply(self, change: Change[Any]) -> None:
        """Make a change true."""
        key, old, new = change.key, change.old, change.new
        if new is None:
            self._objects.pop(key, None)
            self._versions.pop(key, None)
        else:
            _, uid, version = identity(new)
            self._objects[key] = new
            self._versions[key] = (uid, version)
        for name, function in self._functions.items():
            _reindex(self._indexes[name], key, function(old) if old is not None else (), new, function)


def _reindex(
    index: dict[str, dict[str, T]],
    key: str,
    before: Iterable[str],
    new: T | None,
    function: Callable[[T], Iterable[str]],
) -> None:
    for value in before:
        bucket = index.get(value)
        if bucket is not None:
            bucket.pop(key, None)
            if not bucket:
                del index[value]
    if new is not None:
        for value in function(new):
            index.setdefault(value, {})[key] = new
