"""MIG placements: exact, within the rules of the hardware, and named as NVIDIA's tools name them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpufleet.fleet import mig
from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.mig import GEOMETRIES, Geometry, Placement
from gpufleet.fleet.products import find_product

H100 = GEOMETRIES["h100-80gb"]
_GEOMETRIES = st.sampled_from([H100, GEOMETRIES["a30-24gb"], GEOMETRIES["a100-40gb"]])


def _legal(geometry: Geometry, placements: tuple[Placement, ...]) -> bool:
    slices = [s for p in placements for s in range(p.start, p.start + p.size)]
    media = sum(p.profile.endswith("+me") for p in placements)
    known = all(p.start in geometry.profile(p.profile).starts for p in placements)
    return (
        known and len(slices) == len(set(slices)) and media <= 1 and max(slices, default=0) < geometry.slots
    )


def _all_choices(geometry: Geometry, profiles: list[str]) -> Iterator[tuple[Placement, ...]]:
    choices = [
        [Placement(s, geometry.profile(n).size, n) for s in geometry.profile(n).starts] for n in profiles
    ]
    return product(*choices)


@given(st.data())
def test_place_finds_a_placement_exactly_when_brute_force_does(data: st.DataObject) -> None:
    geometry = data.draw(_GEOMETRIES)
    profiles = data.draw(st.lists(st.sampled_from(sorted(geometry.profiles)), max_size=5))
    placed = mig.place(geometry, profiles)
    possible = any(_legal(geometry, choice) for choice in _all_choices(geometry, profiles))
    assert (placed is not None) == possible
    if placed is not None:
        assert _legal(geometry, placed)
        assert sorted(p.profile for p in placed) == sorted(profiles)


@given(st.data())
def test_place_leaves_kept_instances_alone(data: st.DataObject) -> None:
    geometry = data.draw(_GEOMETRIES)
    names = st.lists(st.sampled_from(sorted(geometry.profiles)), max_size=3)
    kept = mig.place(geometry, data.draw(names))
    if kept is None:
        return
    more = mig.place(geometry, data.draw(names), kept=kept)
    if more is not None:
        assert _legal(geometry, tuple(sorted(kept + more)))


def test_two_3g_fit_and_leave_no_room_for_a_1g() -> None:
    assert mig.place(H100, ["3g.40gb", "3g.40gb"]) == (Placement(0, 4, "3g.40gb"), Placement(4, 4, "3g.40gb"))
    assert mig.place(H100, ["3g.40gb", "3g.40gb", "1g.10gb"]) is None


def test_an_h100_has_723_cuts_without_media_instances() -> None:
    placements = [
        Placement(start, profile.size, profile.name)
        for profile in H100.profiles.values()
        if not profile.media
        for start in profile.starts
    ]

    def cuts(chosen: tuple[Placement, ...], rest: list[Placement]) -> int:
        if not rest:
            return 1
        without = cuts(chosen, rest[1:])
        with_it = (*chosen, rest[0])
        return without + (cuts(with_it, rest[1:]) if _legal(H100, with_it) else 0)

    assert cuts((), placements) == 723


def test_all_balanced_is_two_small_one_middle_and_one_large_instance() -> None:
    assert mig.layout(H100, "all-balanced") == ("1g.10gb", "1g.10gb", "2g.20gb", "3g.40gb")
    assert mig.layout(GEOMETRIES["a30-24gb"], "all-balanced") == ("1g.6gb", "1g.6gb", "2g.12gb")


def test_every_named_layout_of_every_geometry_can_be_placed() -> None:
    for geometry in GEOMETRIES.values():
        for name in ("all-balanced", "all-enabled", *(f"all-{p}" for p in geometry.profiles)):
            assert mig.place(geometry, mig.layout(geometry, name)) is not None


def test_all_1g_10gb_means_seven_on_an_h100_and_four_on_an_a100_40gb() -> None:
    assert len(mig.layout(H100, "all-1g.10gb")) == 7
    assert len(mig.layout(GEOMETRIES["a100-40gb"], "all-1g.10gb")) == 4


def test_a_plus_becomes_a_dot_in_resources_and_layout_names() -> None:
    assert mig.mig_resource("1g.10gb+me") == "nvidia.com/mig-1g.10gb.me"
    assert mig.layout(H100, "all-1g.10gb.me") == ("1g.10gb+me",)


def test_unknown_profiles_layouts_and_gpus_without_mig_are_refused_by_name() -> None:
    with pytest.raises(GpufleetError, match="UnknownMigProfile"):
        mig.place(H100, ["1g.5gb"])
    with pytest.raises(GpufleetError, match="UnknownMigLayout"):
        mig.layout(H100, "all-6g")
    with pytest.raises(GpufleetError, match="MigNotSupported"):
        mig.geometry_of(find_product("l4"))


def test_cutting_a_gpu_into_too_much_says_what_does_not_fit() -> None:
    assert mig.cut(H100, ["7g.80gb"]) == (Placement(0, 8, "7g.80gb"),)
    with pytest.raises(GpufleetError, match="MigDoesNotFit"):
        mig.cut(H100, ["7g.80gb", "1g.10gb"])
