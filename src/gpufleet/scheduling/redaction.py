"""Redaction: a recording without its names, which decides the same.

Names of pods, namespaces, nodes, owners, claims and volumes, uids, and the values of labels become
pseudonyms: the same text the same one everywhere, so everything that was equal stays equal. Pseudonyms keep
the order of the names, because ties go to the first by name, and the order of their lengths, by which members
of a gang are sorted. What decisions and readers need stays: resources, products, keys of labels and taints,
values of NVIDIA's labels, drivers, scheduler names, and numbers that a constraint compares. Sentences are
left out. A place that is in no table of `redaction_places` is a name: what nobody has judged is redacted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from gpufleet.fleet.texts import with_texts
from gpufleet.scheduling.recording import Recording
from gpufleet.scheduling.redaction_places import SENTENCES, STAYS, VALUES

_PUBLIC_KEYS = re.compile(
    r"nvidia\.com/|feature\.node\.kubernetes\.io/|(beta\.)?kubernetes\.io/(arch|os)$"
    r"|(node|beta)\.kubernetes\.io/instance-type$|gpufleet\.dev/purpose$"
)
"""Keys of labels and taints whose values say what a machine is, not whose."""

_ADDRESSES = frozenset(["", "0.0.0.0", "::", "127.0.0.1"])  # noqa: S104 - kept as text, never bound
_PARTS = re.compile("(/|__)")
"""What separates names in one text: `namespace/name`, and the zones of a volume."""

_NUMBER = re.compile("[+-]?[0-9]{1,64}")
_LEFT_OUT = "(redacted)"


class Redaction:
    """The redacted form of one recording: `recording`, and `pseudonym` for a text of the original."""

    def __init__(self, original: Recording) -> None:
        self._compared = _compared_keys(original)
        found: set[str] = set()
        before_slash: set[str] = set()
        lengths: set[int] = set()

        def note(place: str, text: str, key: str) -> str:
            if self._is_name(place, text, key):
                parts = _PARTS.split(text)
                found.update(parts[::2])
                before_slash.update(
                    part for part, end in zip(parts[::2], parts[1::2], strict=False) if end == "/"
                )
                lengths.update(map(len, parts[::2]))
            return text

        with_texts(original, note)
        self._pseudonyms = _pseudonyms(found - {""}, before_slash, sorted(lengths))
        self.recording = with_texts(original, self._rename)

    def pseudonym(self, text: str) -> str:
        """What a name became, also one that is made of several (`namespace/name`)."""
        return "".join(self._pseudonyms.get(part, part) for part in _PARTS.split(text))

    def _rename(self, place: str, text: str, key: str) -> str:
        if place in SENTENCES:
            return _LEFT_OUT if text else ""
        return self.pseudonym(text) if self._is_name(place, text, key) else text

    def _is_name(self, place: str, text: str, key: str) -> bool:
        if place in STAYS or place in SENTENCES or text in _ADDRESSES:
            return False
        if place in VALUES:
            return not _PUBLIC_KEYS.match(key) and not (key in self._compared and _NUMBER.fullmatch(text))
        return True


def _compared_keys(original: Recording) -> frozenset[str]:
    """The keys of labels and taints whose values a constraint compares as numbers."""
    found: set[str] = set()

    def note(place: str, text: str, key: str) -> str:
        if place in ("Requirement.operator", "Toleration.operator") and text in ("Gt", "Lt"):
            found.add(key)
        return text

    with_texts(original, note)
    return frozenset(found)


def _pseudonyms(texts: Iterable[str], before_slash: Iterable[str], lengths: list[int]) -> dict[str, str]:
    """A pseudonym for each text, in their order. What is followed by a slash somewhere is ordered with it, as
    `team-a/x` comes before `team/x`.
    """
    ended = set(before_slash)
    ordered = sorted(texts, key=lambda text: (f"{text}/" if text in ended else text, text))
    width = len(str(len(ordered)))
    longer = {length: index for index, length in enumerate(lengths)}
    return {text: f"x{rank:0{width}}{'z' * longer[len(text)]}" for rank, text in enumerate(ordered, 1)}
