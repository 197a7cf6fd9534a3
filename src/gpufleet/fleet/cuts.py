"""GPUs that are cut as pods need it: how one is cut, how it is asked to be, and the cheapest change for more.

What is *coming* was asked for and does not exist yet; what is *going* exists and is asked to go. Room for one
more instance is looked for where it costs least: free slices of a GPU in MIG mode, at the start that leaves
most; then slices of idle instances, the fewest; then a whole idle GPU, whose mode must be switched. Which
instances are idle is only known where every pod of the node that asks for the profile has its instance on
record: until then none of them goes.
Source: `mig_room` for what leaves most, `mig_planning` for the fewest that go.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

import msgspec

from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.mig import GEOMETRIES, Geometry, Placement, mig_resource
from gpufleet.fleet.mig_planning import GPUCut, plan
from gpufleet.fleet.mig_room import Spot, best_start

WHOLE = "nvidia.com/gpu"


class MigGPU(msgspec.Struct, frozen=True):
    """One healthy GPU that may be cut. `enabled`: MIG mode is on; `instances` exist, containers hold `busy`
    of them, or the GPU as a whole (`held`). `wish` is what was asked for (`off`: MIG mode off), None for
    nothing. A GPU is `blocked` while what was asked for cannot be done.
    """

    uuid: str
    index: int
    geometry: str
    enabled: bool = False
    instances: tuple[Placement, ...] = ()
    busy: tuple[Placement, ...] = ()
    held: bool = False
    wish: tuple[Placement, ...] | None = None
    off: bool = False
    blocked: bool = False

    @property
    def layout(self) -> tuple[Placement, ...] | None:
        """The instances that it will have; None when it will be whole."""
        if self.off:
            return None
        if self.wish is not None:
            return self.wish
        return self.instances if self.enabled else None

    @property
    def coming(self) -> tuple[str, ...]:
        """Resources that there will be more of, one for each device."""
        layout = self.layout
        if layout is None:
            return (WHOLE,) if self.enabled else ()
        return tuple(mig_resource(one.profile) for one in layout if one not in self.instances)

    @property
    def going(self) -> tuple[str, ...]:
        """Resources that there will be less of, one for each device."""
        layout = self.layout
        if layout is None:
            return tuple(mig_resource(one.profile) for one in self.instances)
        gone = tuple(mig_resource(one.profile) for one in self.instances if one not in layout)
        return gone if self.enabled else (WHOLE, *gone)

    def cut(self, layout: tuple[Placement, ...] | None) -> MigGPU:
        """The GPU when it is asked to have these instances, or to be whole (None)."""
        return msgspec.structs.replace(self, wish=layout or (), off=layout is None)


class Recut(msgspec.Struct, frozen=True):
    """One GPU cut anew so that there is one more of a resource: `made` is the new instance (None: the whole
    GPU), `gone` are idle instances that go for it. Less is better: instances that go, modes that are
    switched, room that is lost.
    """

    gpu: MigGPU
    made: Placement | None
    gone: tuple[Placement, ...] = ()
    switches: bool = False
    loss: int = 0

    @property
    def cost(self) -> tuple[int, int, int]:
        """What is compared."""
        return (self.switches, len(self.gone), self.loss)


def counted(gpus: Iterable[MigGPU], *, going: bool = False) -> Counter[str]:
    """How many devices of each resource are coming (or going)."""
    return Counter(name for gpu in gpus for name in (gpu.going if going else gpu.coming))


def recut_for(
    resource: str, gpus: Sequence[MigGPU], used: Mapping[str, int], *, may_switch: bool
) -> Recut | None:
    """The cheapest change of one GPU after which the node has one more of a resource; None without one.

    `used` is how much of each resource pods of the node have or were promised.
    """
    doubtful = _doubtful(gpus, used)
    found = [
        recut
        for gpu in gpus
        if not gpu.blocked and not gpu.held
        for recut in _ways(resource, gpu, doubtful, may_switch)
    ]
    return min(found, key=lambda one: (one.cost, one.gpu.index), default=None)


def idle_gpus(gpus: Sequence[MigGPU], used: Mapping[str, int]) -> tuple[MigGPU, ...]:
    """Cut GPUs of which nobody has or was promised anything; `used` as in `recut_for`."""
    doubtful = _doubtful(gpus, used)
    return tuple(gpu for gpu in gpus if gpu.enabled and not gpu.blocked and _made_whole(gpu, doubtful))


def _doubtful(gpus: Iterable[MigGPU], used: Mapping[str, int]) -> frozenset[str]:
    """Resources of which a pod has or was promised a device that is not on record yet."""
    recorded: Counter[str] = Counter()
    for gpu in gpus:
        recorded.update(mig_resource(one.profile) for one in gpu.busy)
        recorded[WHOLE] += gpu.held
    return frozenset(name for name, amount in used.items() if amount > recorded[name])


def _ways(resource: str, gpu: MigGPU, doubtful: frozenset[str], may_switch: bool) -> list[Recut]:
    layout = gpu.layout
    if resource == WHOLE:
        return _made_whole(gpu, doubtful) if may_switch else []
    profile = _profile(gpu.geometry, resource)
    if profile is None:
        return []
    if layout is None:
        if not may_switch or WHOLE in doubtful:
            return []
        spot = _spot(gpu.geometry, (), profile)
        return [] if spot is None else [_with(gpu, (), profile, spot, switches=not gpu.enabled)]
    spot = _spot(gpu.geometry, layout, profile)
    if spot is not None:
        return [_with(gpu, layout, profile, spot)]
    return _in_place_of_idle(gpu, layout, profile, doubtful)


def _with(
    gpu: MigGPU, layout: tuple[Placement, ...], profile: str, spot: Spot, *, switches: bool = False
) -> Recut:
    made = Placement(spot.start, GEOMETRIES[gpu.geometry].profile(profile).size, profile)
    return Recut(gpu.cut(tuple(sorted((*layout, made)))), made, (), switches, spot.loss)


def _in_place_of_idle(
    gpu: MigGPU, layout: tuple[Placement, ...], profile: str, doubtful: frozenset[str]
) -> list[Recut]:
    """The fewest idle instances that make room; what is only coming was promised to somebody."""
    idle = tuple(
        one
        for one in layout
        if one in gpu.instances and one not in gpu.busy and mig_resource(one.profile) not in doubtful
    )
    kept = tuple(one for one in layout if one not in idle)
    found = _plan(gpu.geometry, kept, idle, profile)
    if found is None:
        return []
    created, gone = found
    after = tuple(sorted((*(one for one in layout if one not in gone), created)))
    return [Recut(gpu.cut(after), created, gone)]


def _made_whole(gpu: MigGPU, doubtful: frozenset[str]) -> list[Recut]:
    layout = gpu.layout
    if layout is None or gpu.busy:
        return []
    if any(one not in gpu.instances or mig_resource(one.profile) in doubtful for one in layout):
        return []
    return [Recut(gpu.cut(None), None, layout, switches=gpu.enabled)]


def _profile(geometry: str, resource: str) -> str | None:
    return _profiles(geometry).get(resource)


@lru_cache(maxsize=64)
def _profiles(geometry: str) -> dict[str, str]:
    return {mig_resource(name): name for name in GEOMETRIES[geometry].profiles}


@lru_cache(maxsize=16384)
def _spot(geometry: str, layout: tuple[Placement, ...], profile: str) -> Spot | None:
    return best_start(GEOMETRIES[geometry], layout, profile)


@lru_cache(maxsize=16384)
def _plan(
    geometry: str, kept: tuple[Placement, ...], idle: tuple[Placement, ...], profile: str
) -> tuple[Placement, tuple[Placement, ...]] | None:
    known: Geometry = GEOMETRIES[geometry]
    try:
        found = plan([GPUCut(known, kept, idle)], [profile])
    except GpufleetError:
        return None
    if not found.feasible:
        return None
    change = found.gpus[0]
    return change.create[0], change.destroy
