"""Values as JSON: every type that a recording holds can be encoded, and what cannot is named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec
import pytest

from gpufleet.fleet.encoding import Codec, structs_in, unfit
from gpufleet.scheduling.recording import Recording


class Leaf(msgspec.Struct, frozen=True):
    name: str
    mode: Literal["a", "b"] = "a"


class Plain(msgspec.Struct, frozen=True):
    leaves: Mapping[str, Leaf] = {}
    marks: frozenset[str] = frozenset()


class Deep(msgspec.Struct, frozen=True):
    """Compound keys at every depth."""

    plain: Plain
    counts: Mapping[tuple[str, str], int] = {}
    listed: tuple[Mapping[tuple[str, int], Leaf], ...] = ()
    row: tuple[str, Mapping[int, str]] = ("", {})
    maybe: Mapping[tuple[str, str], Leaf] | None = None
    named: Mapping[str, Mapping[int, Leaf]] = {}


class Tagged(msgspec.Struct, frozen=True, tag=True):
    number: int


class OtherTagged(msgspec.Struct, frozen=True, tag=True):
    number: int


class Either(msgspec.Struct, frozen=True):
    one: Tagged | OtherTagged | None = None
    text: int | str = 0


class Changing(msgspec.Struct):
    number: int = 0


class Endless(msgspec.Struct, frozen=True):
    parent: Endless | None = None


class Bad(msgspec.Struct, frozen=True):
    anything: Any = None
    items: list[str] = []
    changing: Changing | None = None
    untagged: Leaf | Plain | None = None
    bare: Mapping = {}  # type: ignore[type-arg]
    endless: Endless | None = None


FULL = Deep(
    Plain({"b": Leaf("b"), "a": Leaf("a", "b")}, frozenset({"y", "x"})),
    {("b", "x"): 2, ("a", "y"): 1},
    ({("k", 2): Leaf("two"), ("k", 1): Leaf("one")}, {}),
    ("row", {10: "ten", 9: "nine"}),
    {("m", "n"): Leaf("maybe")},
    {"outer": {3: Leaf("three")}},
)


def test_everything_that_a_recording_holds_can_be_encoded() -> None:
    problems = list(unfit(Recording))
    assert not problems, (
        "a field of a recorded value has a type that fleet/encoding.py cannot write; use frozen structs, "
        f"Mapping, tuple, frozenset and scalars, or teach the codec: {'; '.join(problems)}"
    )


def test_what_cannot_be_encoded_is_named_with_its_field() -> None:
    found = dict(problem.split(": ", 1) for problem in unfit(Bad))
    assert found.keys() == {
        "Bad.anything",
        "Bad.items",
        "Bad.changing",
        "Bad.untagged",
        "Bad.bare",
        "Endless",
    }
    assert "tag" in found["Bad.untagged"]
    with pytest.raises(TypeError, match=r"Bad\.anything"):
        Codec(Bad).encode(Bad())


@pytest.mark.parametrize(
    "value",
    [FULL, Deep(Plain()), Either(Tagged(1), "text"), Either(OtherTagged(2), 3), Either()],
    ids=lambda value: type(value).__name__,
)
def test_a_value_comes_back_and_equal_values_give_equal_bytes(value: Any) -> None:
    codec = Codec(type(value))
    data = codec.encode(value)
    assert codec.decode(data) == value
    assert codec.encode(codec.decode(data)) == data


def test_the_order_of_mappings_and_sets_leaves_no_trace() -> None:
    backwards = Deep(
        Plain({"a": Leaf("a", "b"), "b": Leaf("b")}, frozenset({"x", "y"})),
        dict(reversed(list(FULL.counts.items()))),
        tuple(dict(reversed(list(one.items()))) for one in FULL.listed),
        ("row", {9: "nine", 10: "ten"}),
        FULL.maybe,
        FULL.named,
    )
    assert Codec(Deep).encode(backwards) == Codec(Deep).encode(FULL)


def test_fields_that_a_file_lacks_have_their_defaults() -> None:
    assert Codec(Deep).decode(b'{"plain":{}}') == Deep(Plain())


def test_the_structs_of_a_type_are_all_that_may_occur_in_it() -> None:
    assert structs_in(Deep) == (Deep, Leaf, Plain)
    assert Codec(Deep).fields["Leaf"] == ("name", "mode")
