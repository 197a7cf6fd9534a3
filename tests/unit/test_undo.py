"""What we changed on others' objects can be taken back exactly, and what they changed since stays."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gpufleet.fleet.undo import Changed, difference, settle, undone

KEYS = st.sampled_from(("a", "b", "c"))
OURS = st.dictionaries(KEYS, st.sampled_from(("x", "y")))
THEIRS = st.dictionaries(KEYS, st.sampled_from(("1", "2", "x")))


def test_a_value_that_is_right_already_stays_when_it_is_not_wanted_any_more() -> None:
    found = settle({"a": "x"}, {"a": "x"}, {})
    assert (found.values, found.changes, found.drifted) == ({"a": "x"}, {"a": Changed("x", "x")}, ())
    assert settle({"a": "x"}, {}, found.changes).values == {"a": "x"}


def test_a_value_that_was_right_and_that_somebody_changes_is_as_much_theirs_as_one_that_we_set() -> None:
    found = settle({}, {"a": "x"}, {"a": Changed("x", "x")})
    assert (found.values, found.drifted) == ({}, ("a",))


def test_what_is_set_remembers_what_was_there() -> None:
    found = settle({"a": "old"}, {"a": "x", "b": "y"}, {})
    assert found.values == {"a": "x", "b": "y"}
    assert found.changes == {"a": Changed("x", "old"), "b": Changed("y", None)}
    assert undone(found.values, found.changes) == {"a": "old"}


def test_what_somebody_changed_since_is_not_set_again_and_not_taken_back() -> None:
    changes = {"a": Changed("x", "old"), "b": Changed("y", None)}
    found = settle({"a": "theirs"}, {"a": "x", "b": "y"}, changes)
    assert (found.values, found.changes, found.drifted) == ({"a": "theirs"}, changes, ("a", "b"))
    assert undone(found.values, found.changes) == {"a": "theirs"}


def test_a_new_wish_is_carried_out_over_what_somebody_set_and_takes_that_back_later() -> None:
    found = settle({"a": "theirs"}, {"a": "new"}, {"a": Changed("x", "old")})
    assert (found.values, found.changes) == ({"a": "new"}, {"a": Changed("new", "theirs")})


def test_a_changed_wish_still_remembers_what_was_there_first() -> None:
    found = settle({"a": "x"}, {"a": "y"}, {"a": Changed("x", "old")})
    assert found.changes == {"a": Changed("y", "old")}
    back = settle(found.values, {"a": "old"}, found.changes)
    assert undone(back.values, back.changes) == {"a": "old"}


def test_what_is_not_wanted_any_more_goes_back() -> None:
    found = settle({"a": "x", "b": "y"}, {}, {"a": Changed("x", "old"), "b": Changed("y", None)})
    assert (found.values, found.changes) == ({"a": "old"}, {})


@given(THEIRS, st.lists(st.tuples(OURS, st.dictionaries(KEYS, st.sampled_from(("1", "2", None))))))
def test_after_any_history_undoing_leaves_what_the_others_did_alone(
    first: dict[str, str], history: list[tuple[dict[str, str], dict[str, str | None]]]
) -> None:
    """The oracle is the same history without us."""
    values, alone = dict(first), dict(first)
    changes: dict[str, Changed] = {}
    for wanted, theirs in history:
        values, changes, _ = settle(values, wanted, changes)
        again = settle(values, wanted, changes)
        assert (again.values, again.changes) == (values, changes)
        for key, value in theirs.items():
            for world in (values, alone):
                world.pop(key, None)
                world.update({key: value} if value is not None else {})
    assert undone(values, changes) == alone


@given(THEIRS, OURS)
def test_a_difference_leads_from_one_to_the_other(before: dict[str, str], after: dict[str, str]) -> None:
    found = dict(before)
    for key, value in difference(before, after).items():
        if value is None:
            del found[key]
        else:
            found[key] = value
    assert found == after
