"""What the readers of conventions share: sizes, durations and truths as people write them, and gangs of which
one sign after the other says more.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from gpufleet.fleet.gangs import Gang, missing, tree_problem
from gpufleet.fleet.pods import GangRef
from gpufleet.kube.objects import ObjectMeta

MAX_DIGITS = 6
"""No cluster has a million pods; an annotation may hold 256 KiB, and `int` refuses numbers of that length."""

SIZES = f"a whole number from 1 to {10**MAX_DIGITS - 1}"

SHOWN = 40
"""How much of a size that is none is repeated in the message."""

_DURATION = re.compile(r"-?(?:\d+(?:\.\d+)?(?:h|ms|m|s))+")
_PART = re.compile(r"(\d+(?:\.\d+)?)(h|ms|m|s)")
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_NOTHING = Gang("", "")


def size_in(text: str, where: str) -> tuple[int | None, str]:
    """A number of pods written as text, or None and what is wrong with it; `where` names the place."""
    if text.isdecimal() and len(text) <= MAX_DIGITS and int(text) > 0:
        return int(text), ""
    return None, f"{where} must be {SIZES}, not {shown(text)}"


def shown(text: str) -> str:
    """A text as messages repeat it: quoted, and not at length."""
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")


def number_in(text: str | None) -> int | None:
    """A whole number of at most nine digits; None for anything else."""
    return int(text) if text is not None and text.isdecimal() and len(text) <= 9 else None


def seconds_in(text: str | None) -> int | None:
    """A duration as Go writes it (`90s`, `1h30m`, `-1s`), in seconds; None for anything else."""
    if text is None or not _DURATION.fullmatch(text):
        return None
    total = sum(float(amount) * _SECONDS[unit] for amount, unit in _PART.findall(text))
    return -int(total) if text.startswith("-") else int(total)


def truth_in(text: str | None) -> bool | None:
    """`true` or `false`; None for anything else."""
    return {"true": True, "false": False}.get((text or "").lower())


def said(meta: ObjectMeta, *keys: str) -> str | None:
    """The first of these labels or annotations that is set; of one key the label wins."""
    for key in keys:
        value = meta.labels.get(key) or meta.annotations.get(key)
        if value:
            return value
    return None


def filled(gang: Gang, **values: Any) -> Gang:
    """The gang with these values where nothing is said of them yet."""
    new = {
        field: value
        for field, value in values.items()
        if value not in (None, getattr(_NOTHING, field)) and getattr(gang, field) == getattr(_NOTHING, field)
    }
    return msgspec.structs.replace(gang, **new) if new else gang


def checked(gang: Gang, where: str) -> Gang:
    """The gang, or the same with what is wrong with its numbers; `where` names the field of the minimum.

    A minimum that is not set, or 0, is 1 for what has no subgroups, and otherwise what those need.
    """
    problem = tree_problem(gang.subgroups, gang.minimum_subgroups)
    least = max(1, missing(gang, {})) if not problem else 1
    minimum = gang.minimum or 0
    numbers = [minimum, *(group.minimum for group in gang.subgroups), gang.minimum_subgroups or 0]
    if not all(0 <= number < 10**MAX_DIGITS for number in numbers):
        problem = f"{where} of gang {gang.key} must be {SIZES}"
    if problem:
        return msgspec.structs.replace(gang, minimum=None, subgroups=(), problem=problem)
    return msgspec.structs.replace(gang, minimum=max(minimum, least))


def ref_of(name: str, gang: Gang, subgroup: str = "", described_by: str = "") -> GangRef:
    """The reference of a pod that states its gang itself."""
    return GangRef(name, gang.minimum, gang.rule, gang.problem, subgroup, described_by, gang)
