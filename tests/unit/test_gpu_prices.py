"""What idle parts of GPUs are worth: against the linear program whose prices they are."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.random_fleets import examples

from gpufleet.fleet.demands import Demand, TypicalPod
from gpufleet.fleet.gpu_prices import part_values, value_of


def mix(**weights: int) -> tuple[TypicalPod, ...]:
    """Pods that share a GPU, as `m500=3`: so many that want so many milli-GPU."""
    return tuple(TypicalPod(Demand(1000, 1, int(name[1:])), count) for name, count in weights.items())


def test_what_a_pod_leaves_is_worth_little_when_hardly_any_pod_fits_in_it() -> None:
    values = part_values(mix(m810=10, m1000=10))
    assert value_of(values, 190) == 0
    assert value_of(values, 800) == 0
    assert value_of(values, 1000) > 700


def test_halves_that_fill_a_gpu_together_are_worth_half_of_it() -> None:
    values = part_values(mix(m500=10))
    assert value_of(values, 490) == 0
    assert abs(2 * value_of(values, 500) - value_of(values, 1000)) <= 1


def test_the_scarcer_complement_is_the_dearer_one() -> None:
    """Of 300 there are too few to fill all that 700 leave, so what is left is worth little."""
    values = part_values(mix(m700=10, m300=2))
    assert value_of(values, 700) > value_of(values, 300)
    plenty = part_values(mix(m700=2, m300=10))
    assert value_of(plenty, 300) > value_of(values, 300)


def test_a_mix_without_gpus_gives_idle_parts_no_value() -> None:
    assert set(part_values((TypicalPod(Demand(1000, 0, 0), 1),))) == {0}


def patterns(sizes: tuple[int, ...], room: int) -> Iterator[tuple[int, ...]]:
    """Every multiset of sizes that fits in a room."""
    if not sizes:
        yield ()
        return
    for count in range(room // sizes[0] + 1):
        for rest in patterns(sizes[1:], room - count * sizes[0]):
            yield (count, *rest)


@examples(40)
@given(st.dictionaries(st.sampled_from([200, 300, 350, 400, 500, 650, 800]), st.integers(1, 9), min_size=1))
def test_values_never_fall_and_no_part_is_worth_more_than_it_is(weights: dict[int, int]) -> None:
    found = tuple(TypicalPod(Demand(1000, 1, size), count) for size, count in weights.items())
    values = part_values(found)
    assert all(low <= high for low, high in pairwise(values))
    sizes = tuple(weights)
    for idle in range(0, 1001, 50):
        most = max(sum(map(int.__mul__, sizes, counts)) for counts in patterns(sizes, idle))
        assert value_of(values, idle) <= most + 1
