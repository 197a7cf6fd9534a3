"""MIG geometry: which instances a GPU can be cut into, and where each may lie.

A GPU has a row of memory slices (8 on the A100 family, 4 on the A30). A profile takes `size` slices from one
of its possible start slices; instances may exist together exactly when their slices do not overlap and at
most one of them has the media engines (`+me`). The state space is tiny (723 cuts of an H100), so `place`
searches exactly: it finds a placement whenever there is one, which trying profiles in a given order does not.
Source: `nvidia-smi mig -lgipp` for A100, H100 80 GB and H100 NVL, go-nvml's tables for the A30, NVIDIA's MIG
guide for the names of the rest (start slices inferred from the same counts). Real nodes ask NVML.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

import msgspec

from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.products import Product

MIG_RESOURCE_PREFIX = "nvidia.com/mig-"

SWITCHES_AT_ONCE = (9, 0)
"""Compute capability from which on a switch of MIG mode needs no reset of the GPU."""


class Profile(msgspec.Struct, frozen=True):
    """One way to cut: compute slices, memory slices, possible start slices, and how many may exist."""

    name: str
    compute: int
    size: int
    starts: tuple[int, ...]
    limit: int

    @property
    def media(self) -> bool:
        """Whether the instance takes the media engines, of which a GPU has one set."""
        return self.name.endswith("+me")


class Placement(msgspec.Struct, frozen=True, order=True):
    """One instance and its memory slices `start .. start+size-1`."""

    start: int
    size: int
    profile: str

    @property
    def mask(self) -> int:
        """Its memory slices as bits."""
        return _mask(self.start, self.size)

    @property
    def text(self) -> str:
        """As people write it: `1g.10gb@0`."""
        return f"{self.profile}@{self.start}"


class Geometry(msgspec.Struct, frozen=True):
    """All profiles of one kind of GPU with `slots` memory slices."""

    name: str
    slots: int
    profiles: Mapping[str, Profile]

    @property
    def compute(self) -> int:
        """Number of compute slices of the whole GPU."""
        return max(profile.compute for profile in self.profiles.values())

    def profile(self, name: str) -> Profile:
        """The profile of a name, a `+` in it perhaps written as `.`; raises GpufleetError
        (UnknownMigProfile).
        """
        found = self.profiles.get(name) or next(
            (one for one in self.profiles.values() if dotted(one.name) == name), None
        )
        if found is None:
            raise GpufleetError(
                reason="UnknownMigProfile",
                message=f"{self.name} has no MIG profile {name!r}",
                hint=f"profiles: {', '.join(self.profiles)}",
            )
        return found


_SEVEN = (
    # shape      compute  size  starts                 limit     of a GPU with 8 memory slices
    ("1g",       1, 1, (0, 1, 2, 3, 4, 5, 6), 7),
    ("1g+me",    1, 1, (0, 1, 2, 3, 4, 5, 6), 1),
    ("1g.2",     1, 2, (0, 2, 4, 6),          4),
    ("2g",       2, 2, (0, 2, 4),             3),
    ("3g",       3, 4, (0, 4),                2),
    ("4g",       4, 4, (0,),                  1),
    ("7g",       7, 8, (0,),                  1),
)  # fmt: skip
_FOUR = (
    # shape      compute  size  starts   limit                   of a GPU with 4 memory slices
    ("1g",       1, 1, (0, 1, 2, 3), 4),
    ("1g+me",    1, 1, (0, 1, 2, 3), 1),
    ("2g",       2, 2, (0, 2),       2),
    ("2g+me",    2, 2, (0, 2),       1),
    ("4g",       4, 4, (0,),         1),
)  # fmt: skip
_NAMES = {
    # geometry      profiles, one per row of its shape table
    "a100-40gb":  "1g.5gb  1g.5gb+me  1g.10gb 2g.10gb 3g.20gb  4g.20gb  7g.40gb",
    "a100-80gb":  "1g.10gb 1g.10gb+me 1g.20gb 2g.20gb 3g.40gb  4g.40gb  7g.80gb",
    "h100-80gb":  "1g.10gb 1g.10gb+me 1g.20gb 2g.20gb 3g.40gb  4g.40gb  7g.80gb",
    "h100-94gb":  "1g.12gb 1g.12gb+me 1g.24gb 2g.24gb 3g.47gb  4g.47gb  7g.94gb",
    "h100-96gb":  "1g.12gb 1g.12gb+me 1g.24gb 2g.24gb 3g.48gb  4g.48gb  7g.96gb",
    "h200-141gb": "1g.18gb 1g.18gb+me 1g.35gb 2g.35gb 3g.71gb  4g.71gb  7g.141gb",
    "gh200-144gb": "1g.18gb 1g.18gb+me 1g.36gb 2g.36gb 3g.72gb  4g.72gb  7g.144gb",
    "b200-180gb": "1g.23gb 1g.23gb+me 1g.45gb 2g.45gb 3g.90gb  4g.90gb  7g.180gb",
    "gb200":      "1g.23gb 1g.23gb+me 1g.47gb 2g.47gb 3g.93gb  4g.93gb  7g.186gb",
    "b300":       "1g.34gb 1g.34gb+me 1g.67gb 2g.67gb 3g.135gb 4g.135gb 7g.269gb",
    "gb300":      "1g.35gb 1g.35gb+me 1g.70gb 2g.70gb 3g.139gb 4g.139gb 7g.278gb",
    "a30-24gb":   "1g.6gb  1g.6gb+me  2g.12gb 2g.12gb+me 4g.24gb",
}  # fmt: skip


def _geometry(name: str, names: Sequence[str]) -> Geometry:
    shapes, slots = (_SEVEN, 8) if len(names) == len(_SEVEN) else (_FOUR, 4)
    profiles = {
        profile: Profile(profile, compute, size, starts, limit)
        for profile, (_, compute, size, starts, limit) in zip(names, shapes, strict=True)
    }
    return Geometry(name, slots, profiles)


GEOMETRIES: dict[str, Geometry] = {name: _geometry(name, row.split()) for name, row in _NAMES.items()}
"""Every geometry by the name that `Product.mig` uses."""


def geometry_of(product: Product) -> Geometry:
    """The geometry of a product; raises GpufleetError (MigNotSupported) for one without MIG."""
    if not product.mig:
        raise GpufleetError(
            reason="MigNotSupported",
            message=f"{product.name} cannot be cut by MIG",
            hint="use sharing.timeSlicing, or a product with MIG such as a100, h100, h200 or b200",
        )
    return GEOMETRIES[product.mig]


def place(
    geometry: Geometry, profiles: Iterable[str], kept: Sequence[Placement] = ()
) -> tuple[Placement, ...] | None:
    """Placements for all `profiles` beside the instances `kept`, ordered by start; None when there is none.

    Exact: None means that no order and no choice of start slices works. Low start slices are preferred.
    """
    wanted = sorted(
        (geometry.profile(name) for name in profiles), key=lambda p: (-p.size, -p.compute, p.name)
    )
    held = [geometry.profile(placement.profile) for placement in kept]
    if not _within_limits(wanted + held):
        return None
    occupied = 0
    for placement in kept:
        occupied |= placement.mask
    starts = _search(occupied, tuple((p.size, p.starts) for p in wanted))
    if starts is None:
        return None
    return tuple(sorted(Placement(s, p.size, p.name) for s, p in zip(starts, wanted, strict=True)))


def cut(geometry: Geometry, profiles: Sequence[str]) -> tuple[Placement, ...]:
    """The placements of an empty GPU cut into `profiles`; raises GpufleetError (MigDoesNotFit)."""
    placed = place(geometry, profiles)
    if placed is None:
        raise GpufleetError(
            reason="MigDoesNotFit",
            message=f"{summary(profiles)} does not fit on one GPU of geometry {geometry.name}",
            hint="remove instances, or use a layout as all-balanced",
        )
    return placed


def _within_limits(profiles: Sequence[Profile]) -> bool:
    counts: dict[str, int] = {}
    for profile in profiles:
        counts[profile.name] = counts.get(profile.name, 0) + 1
        if counts[profile.name] > profile.limit:
            return False
    return sum(profile.media for profile in profiles) <= 1


def _mask(start: int, size: int) -> int:
    return ((1 << size) - 1) << start


@lru_cache(maxsize=65536)
def _search(occupied: int, wanted: tuple[tuple[int, tuple[int, ...]], ...]) -> tuple[int, ...] | None:
    if not wanted:
        return ()
    (size, starts), rest = wanted[0], wanted[1:]
    for start in starts:
        mask = _mask(start, size)
        if occupied & mask:
            continue
        found = _search(occupied | mask, rest)
        if found is not None:
            return (start, *found)
    return None


def layout(geometry: Geometry, name: str) -> tuple[str, ...]:
    """The profiles of a layout as MIG manager names it: `all-<profile>`, `all-balanced`, `all-enabled`.

    `all-<profile>` is as many as fit (a `+` in the profile may be written as `.`), `all-balanced` is two of
    one compute slice, one of two and, on eight slots, one of three; `all-enabled` is MIG mode alone.
    Raises GpufleetError (UnknownMigLayout).
    """
    if name == "all-enabled":
        return ()
    if name == "all-balanced":
        ones, twos, threes = (_plain(geometry, compute) for compute in (1, 2, 3))
        return tuple(sorted([*ones, *ones, *twos, *threes]))
    for profile in geometry.profiles.values():
        if name in (f"all-{profile.name}", f"all-{dotted(profile.name)}"):
            return (profile.name,) * profile.limit
    known = ["all-balanced", "all-enabled", *(f"all-{profile}" for profile in geometry.profiles)]
    raise GpufleetError(
        reason="UnknownMigLayout",
        message=f"{geometry.name} has no MIG layout {name!r}",
        hint=f"layouts: {', '.join(known)}; or a list of profiles",
    )


def _plain(geometry: Geometry, compute: int) -> list[str]:
    matches = [p for p in geometry.profiles.values() if p.compute == compute and not p.media]
    return [min(matches, key=lambda p: p.size).name] if matches else []


def dotted(profile: str) -> str:
    """A profile as label values, resources and layouts write it: a `+` becomes a dot."""
    return profile.replace("+", ".")


def mig_resource(profile: str) -> str:
    """The extended resource of a profile: `nvidia.com/mig-1g.10gb`."""
    return MIG_RESOURCE_PREFIX + dotted(profile)


def summary(profiles: Iterable[str]) -> str:
    """Counts per profile for people: `2x1g.10gb,1x3g.40gb`."""
    counts: dict[str, int] = {}
    for profile in profiles:
        counts[profile] = counts.get(profile, 0) + 1
    return ",".join(f"{count}x{profile}" for profile, count in sorted(counts.items()))
