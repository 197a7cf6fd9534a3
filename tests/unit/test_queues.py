"""The tree of queues: what fits together, and one clear text for each queue that does not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.fleets import pod

from gpufleet.fleet.queues import NO_QUEUES, UNQUEUED, Queue, QueueTree, Quota, amounts_asked, milli_gpus


def queue(name: str, parent: str = "", guarantee: int | None = 0, *, with_children: bool = False) -> Queue:
    gpu = Quota(guarantee, includes_children=with_children)
    return Queue(name=name, rule="test", parent=parent, gpu=gpu)


def test_paths_lead_from_a_queue_to_the_top_and_pods_without_a_queue_have_one() -> None:
    tree = QueueTree.of((queue("a"), queue("c", "b"), queue("b", "a")))
    assert tree.paths["c"] == ("c", "b", "a")
    assert tree.children == {"": (UNQUEUED, "a"), "a": ("b",), "b": ("c",)}
    assert [name for name in tree.queues if tree.is_leaf(name)] == [UNQUEUED, "c"]


def test_without_any_queue_there_is_no_tree() -> None:
    assert not QueueTree.of(())
    assert QueueTree.of(()) == NO_QUEUES


def test_an_unknown_parent_leaves_out_a_queue_and_all_below_it() -> None:
    tree = QueueTree.of((queue("a", "gone"), queue("b", "a"), queue("c", "b"), queue("fine")))
    assert tree.problems == {
        "a": "queue a names the parent gone, which does not exist",
        "b": "queue b is below a, which cannot be used itself",
        "c": "queue c is below b, which cannot be used itself",
    }
    assert set(tree.queues) == {"fine", UNQUEUED}


def test_every_queue_of_a_circle_is_told_its_way_around() -> None:
    tree = QueueTree.of((queue("a", "b"), queue("b", "c"), queue("c", "a"), queue("d", "a"), queue("e", "e")))
    assert tree.problems["a"] == "queue a is above itself: a below b below c below a"
    assert tree.problems["c"] == "queue c is above itself: c below a below b below c"
    assert tree.problems["d"] == "queue d is below a, which cannot be used itself"
    assert tree.problems["e"] == "queue e is above itself: e below e"


def test_two_queues_of_one_name_are_told_by_whom_they_are() -> None:
    other = Queue(name="a", rule="other")
    tree = QueueTree.of((queue("a"), other, queue("b", "a")))
    assert tree.problems["a"] == "there are 2 queues named a (other, test); names must differ"
    assert tree.problems["b"] == "queue b is below a, which cannot be used itself"


def test_guarantees_of_children_count_above_where_the_queue_says_so() -> None:
    children = (queue("x", "a", 2000), queue("y", "a", 3000))
    assert QueueTree.of((queue("a", with_children=True), *children)).guarantees["a"] == (5000, 0, 0)
    assert QueueTree.of((queue("a", guarantee=1000), *children)).guarantees["a"] == (1000, 0, 0)
    everything = (queue("a", with_children=True), queue("x", "a", None))
    assert QueueTree.of(everything).guarantees["a"] == (None, 0, 0)


def test_a_pod_finds_its_queue_by_name_with_or_without_namespace() -> None:
    tree = QueueTree.of((queue("team"), queue("ns/local"), queue("broken", "gone")))
    assert tree.find("team") == "team"
    assert tree.find("ns/local") == "ns/local"
    assert tree.find("ns/team") == "team"
    assert tree.find("broken") == "broken"
    assert tree.find("") == UNQUEUED
    assert tree.find("ns/default") == tree.find("default") == UNQUEUED
    assert tree.find("other") == ""
    assert QueueTree.of((queue("default"),)).find("default") == "default"


NAMES = st.sampled_from(["", *"abcdef"])


@given(st.lists(st.tuples(NAMES.filter(bool), NAMES), max_size=8))
def test_any_queues_make_a_tree_in_which_each_name_is_sound_or_has_a_problem(
    pairs: list[tuple[str, str]],
) -> None:
    tree = QueueTree.of(queue(name, parent) for name, parent in pairs)
    names = {name for name, _ in pairs}
    assert set(tree.queues) - {UNQUEUED} | set(tree.problems) == names
    assert not set(tree.queues) & set(tree.problems)
    for path in tree.paths.values():
        assert [tree.queues[name].parent for name in path] == [*path[1:], ""]
    assert QueueTree.of(queue(name, parent) for name, parent in reversed(pairs)) == tree


def test_mig_instances_count_by_compute_slices_and_never_as_more_than_their_gpu() -> None:
    assert milli_gpus("nvidia.com/gpu", 2) == 2000
    assert milli_gpus("nvidia.com/mig-7g.80gb", 1) == 1000
    assert milli_gpus("nvidia.com/mig-1g.10gb", 7) == 994
    assert milli_gpus("nvidia.com/mig-3g.40gb", 1) + milli_gpus("nvidia.com/mig-4g.40gb", 1) == 999
    assert milli_gpus("cpu", 5) == 0
    assert amounts_asked(pod(gpus=2, cpu="1500m", memory="1Gi").shape) == (2000, 1500, 1 << 30)
