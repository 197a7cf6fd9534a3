"""Undo: what we changed on an object that others own, kept so that it can be taken back exactly.

For each key (of a label, of a taint) a `Changed` says which value we asked for and which one was there
before, perhaps the same. Whoever changes a value after that owns it: it is neither set again nor taken back,
only told as drift. So two writers never fight, and what is undone is what we did and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

Values = Mapping[str, str]


class Changed(msgspec.Struct, frozen=True, omit_defaults=True):
    """The value that we set, or found, and the one that was there before; None: there was none."""

    value: str
    prior: str | None = None


Changes = Mapping[str, Changed]


class Settled(NamedTuple):
    """Values as wanted where they are ours to set, what there was before, and the keys that somebody else
    changed after us.
    """

    values: dict[str, str]
    changes: dict[str, Changed]
    drifted: tuple[str, ...]


def undone(values: Values, changes: Changes) -> dict[str, str]:
    """The values without our changes; a value that is not the one we set any more stays."""
    found = dict(values)
    for key, changed in changes.items():
        if found.get(key) == changed.value:
            _put(found, key, changed.prior)
    return found


def settle(values: Values, wanted: Values, changes: Changes) -> Settled:
    """Bring values to what is wanted, after `changes` of the same owner.

    What is not wanted any more is undone; what is wanted and was changed by somebody since is left. A wish
    that is new, or another one than before, is carried out over any value.
    """
    dropped = {key: changed for key, changed in changes.items() if key not in wanted}
    found = undone(values, dropped)
    kept: dict[str, Changed] = {}
    drifted: list[str] = []
    for key, wish in sorted(wanted.items()):
        have, known = found.get(key), changes.get(key)
        if known is not None and known.value == wish:
            kept[key] = known
            if have != wish:
                drifted.append(key)
            continue
        prior = known.prior if known is not None and known.value == have else have
        kept[key] = Changed(wish, prior)
        found[key] = wish
    return Settled(found, kept, tuple(drifted))


def difference(before: Values, after: Values) -> dict[str, str | None]:
    """What must be written to get from one to the other; None removes a key."""
    gone: dict[str, str | None] = {key: None for key in before if key not in after}
    return gone | {key: value for key, value in after.items() if before.get(key) != value}


def _put(values: dict[str, str], key: str, value: str | None) -> None:
    if value is None:
        del values[key]
    else:
        values[key] = value
