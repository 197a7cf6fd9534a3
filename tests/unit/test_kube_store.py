"""The store of an informer: whatever is applied to it, it equals what it would be if built anew."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gpufleet.kube.decoding import identity
from gpufleet.kube.objects import ObjectMeta, PartialObject
from gpufleet.kube.store import Change, Store

Indexes = {"label": lambda item: item.metadata.labels.values()}


def item(name: str, version: int = 1, uid: str = "u", **labels: str) -> PartialObject:
    meta = ObjectMeta(name=name, uid=uid, resource_version=str(version), labels=labels)
    return PartialObject(metadata=meta)


items = st.builds(
    lambda name, version, uid, a, b: item(name, version, uid, a=a, b=b),
    st.sampled_from("abcde"),
    st.integers(1, 4),
    st.sampled_from("uv"),
    st.sampled_from("xyz"),
    st.sampled_from("xyz"),
)
lists = st.lists(items, max_size=6, unique_by=lambda obj: obj.metadata.name)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("see"), items),
        st.tuples(st.just("remove"), items),
        st.tuples(st.just("list"), lists),
    ),
    max_size=12,
)


def apply(store: Store[PartialObject], changes: list[Change[PartialObject]]) -> None:
    for change in changes:
        assert store.objects.get(change.key) is change.old, "a change starts from what the store holds"
        assert change.old is not change.new
        store.apply(change)


@given(steps)
def test_after_any_steps_the_store_and_its_indexes_equal_a_rebuild(
    steps: list[tuple[str, PartialObject | list[PartialObject]]],
) -> None:
    store: Store[PartialObject] = Store(Indexes)
    for step, argument in steps:
        if isinstance(argument, list):
            apply(store, store.replacement(argument))
            assert {identity(obj) for obj in store.objects.values()} == {identity(obj) for obj in argument}
        elif step == "see":
            apply(store, store.difference(argument))
            assert identity(store.objects[argument.metadata.key]) == identity(argument)
        else:
            apply(store, store.removal(argument.metadata.key))
            assert argument.metadata.key not in store.objects
    for value in "xyz":
        expected = {key for key, obj in store.objects.items() if value in obj.metadata.labels.values()}
        assert {obj.metadata.key for obj in store.by_index("label", value)} == expected


@given(lists, lists)
def test_a_new_list_becomes_each_change_once_and_deletes_first(
    before: list[PartialObject], after: list[PartialObject]
) -> None:
    store: Store[PartialObject] = Store()
    apply(store, store.replacement(before))
    changes = store.replacement(after)
    vanished = {obj.metadata.key for obj in before} - {obj.metadata.key for obj in after}
    assert {change.key for change in changes[: len(vanished)]} == vanished
    for key in {obj.metadata.key for obj in (*before, *after)}:
        old = next((obj for obj in before if obj.metadata.key == key), None)
        new = next((obj for obj in after if obj.metadata.key == key), None)
        told = [change for change in changes if change.key == key]
        if old and new and identity(old) == identity(new):
            assert told == []
        elif old and new and old.metadata.uid != new.metadata.uid:
            assert [(change.old, change.new) for change in told] == [(old, None), (None, new)]
        else:
            assert [(change.old, change.new) for change in told] == [(old, new)]


def test_an_object_that_could_not_be_read_stays_as_it_was() -> None:
    store: Store[PartialObject] = Store()
    apply(store, store.replacement([item("a"), item("b")]))
    changes = store.replacement([], keep=["a"])
    assert [(change.key, change.new) for change in changes] == [("b", None)]


def test_the_same_version_is_no_change() -> None:
    store: Store[PartialObject] = Store()
    apply(store, store.difference(item("a", 1)))
    assert store.difference(item("a", 1, label="other")) == []
    assert len(store.difference(item("a", 2))) == 1
