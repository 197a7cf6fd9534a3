"""Whose share of a GPU is whose: parts sum to the whole, and nothing is counted twice."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.exported import SimulatedNode, allocation, pod_each, replicas_of

from gpufleet.devices.attribution import Holder, entities, memory_parts, parts, unmapped

HOLDERS = st.lists(
    st.builds(
        Holder,
        st.just("team-a"),
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from(["uid-a", "uid-b", "uid-c"]),
        st.sampled_from(["main", "side"]),
        st.integers(1, 10),
    ),
    min_size=1,
    max_size=10,
).map(tuple)
KNOWN = st.dictionaries(st.sampled_from(["uid-a", "uid-b", "uid-c", "uid-gone"]), st.integers(0, 100_000))


@given(HOLDERS)
def test_parts_sum_to_one(holders: tuple[Holder, ...]) -> None:
    found = parts(holders)
    assert all(part > 0 for part in found)
    assert math.isclose(sum(found), 1)


@given(HOLDERS, st.floats(0, 200_000), KNOWN)
def test_memory_parts_sum_to_what_is_used(
    holders: tuple[Holder, ...], used: float, known: dict[str, int]
) -> None:
    found = memory_parts(holders, used, known)
    assert all(part >= 0 for part in found)
    assert math.isclose(sum(found), used, abs_tol=1e-6)


def holder(pod: str, weight: int = 1) -> Holder:
    return Holder("team-a", pod, f"uid-{pod}", "main", weight)


def test_memory_goes_to_whose_processes_have_it_and_the_rest_by_replicas() -> None:
    found = memory_parts((holder("a"), holder("b", 3)), 1000, {"uid-a": 500, "uid-b": 100})
    assert found == (500 + 100, 100 + 300)


def test_memory_of_no_known_process_is_divided_by_replicas() -> None:
    assert memory_parts((holder("a"), holder("b", 3)), 1000, {}) == (250, 750)


def test_processes_that_have_more_than_the_gpu_says_are_scaled_down() -> None:
    assert memory_parts((holder("a"), holder("b")), 300, {"uid-a": 400, "uid-b": 200}) == (200, 100)


def test_every_gpu_is_followed_by_its_instances() -> None:
    node = SimulatedNode("node", gpus=2, profiles={0: "4g.40gb", 4: "3g.40gb"})
    found = entities(node.inventory, pod_each(node.devices))
    assert [(one.gpu.index, one.instance and one.instance.profile) for one in found] == [
        (0, None),
        (0, "4g.40gb"),
        (0, "3g.40gb"),
        (1, None),
        (1, "4g.40gb"),
        (1, "3g.40gb"),
    ]
    assert [len(one.holders) for one in found] == [0, 1, 1, 0, 1, 1]


def test_a_container_counts_once_however_many_replicas_and_resources_it_has() -> None:
    node = SimulatedNode("node")
    gpu = node.devices[0]
    held = [
        allocation("a", f"{gpu}::0", f"{gpu}::1"),
        allocation("a", f"{gpu}::2"),
        allocation("b", f"{gpu}::3"),
    ]
    [found] = entities(node.inventory, held)
    assert [(one.pod, one.weight) for one in found.holders] == [("a", 3), ("b", 1)]
    assert found.shares() == (0.75, 0.25)


def test_shares_of_a_cut_gpu_are_its_compute_slices() -> None:
    node = SimulatedNode("node", profiles={0: "4g.40gb", 4: "3g.40gb"})
    shares = {
        one.instance.profile: one.shares()
        for one in entities(node.inventory, pod_each(node.devices))
        if one.instance is not None
    }
    assert shares == {"3g.40gb": (3 / 7,), "4g.40gb": (4 / 7,)}


def test_a_shared_instance_divides_its_share() -> None:
    node = SimulatedNode("node", profiles={0: "3g.40gb"})
    *_, instance = entities(node.inventory, replicas_of(node.devices[0], 3))
    assert math.isclose(sum(instance.shares()), 3 / 7)


def test_a_device_that_the_driver_does_not_list_is_unmapped_once() -> None:
    node = SimulatedNode("node", profiles={0: "3g.40gb"})
    held = [*pod_each(node.devices), allocation("x", "MIG-gone"), allocation("y", "MIG-gone::1")]
    assert unmapped(node.inventory, held) == ("MIG-gone",)
