"""What a pool asks of the GPUs of its nodes, and how it tells where they are not like that."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from tests.unit.pools_world import World, gpu_node, node, pool

from gpufleet.kube.gpunode import GPUNode, GPUNodeDesired, MigPlace, MigWish, SharingWish

BALANCED = ("1g.10gb", "1g.10gb", "2g.20gb", "3g.40gb")
ACT: dict[str, Any] = {"disruption": "act"}


def settled(found: GPUNode, **spec: Any) -> World:
    """A pool of one node with these GPUs, after the controller has done what it can."""
    world = World([pool(**spec)], [node()], [found])
    world.settle()
    return world


def wishes(world: World) -> tuple[MigWish, ...]:
    return world.gpu_nodes["n"].spec.desired.mig


def test_a_named_layout_becomes_a_wish_for_each_gpu() -> None:
    world = settled(gpu_node(), mig={"layout": "all-balanced", "allowModeSwitch": True}, **ACT)
    assert wishes(world) == tuple(
        MigWish(uuid=f"GPU-{index}", enabled=True, profiles=BALANCED) for index in range(2)
    )
    desired = world.gpu_nodes["n"].spec.desired
    assert (desired.pool, desired.allow_mode_switch, desired.dynamic) == ("p", True, False)
    assert world.reasons() == {
        "PoolMigDrift": "2 of 2 GPUs are not cut as asked: GPU 0 has MIG off, "
        "asked for is 2x1g.10gb,1x2g.20gb,1x3g.40gb"
    }


@pytest.mark.parametrize(
    ("mig", "enabled", "profiles"),
    [
        ({"layout": "all-1g.10gb"}, True, ("1g.10gb",) * 7),
        ({"layout": "all-enabled"}, True, ()),
        ({"layout": "all-disabled"}, False, ()),
        ({"profiles": ["3g.40gb", "1g.10gb.me"]}, True, ("1g.10gb+me", "3g.40gb")),
    ],
)
def test_layouts_have_the_meaning_that_mig_manager_gives_them(
    mig: dict[str, Any], enabled: bool, profiles: tuple[str, ...]
) -> None:
    world = settled(gpu_node(cuts=[None]), mig=mig, **ACT)
    assert wishes(world) == (MigWish(uuid="GPU-0", enabled=enabled, profiles=profiles),)


def test_gpus_that_are_cut_as_asked_are_no_drift_wherever_their_instances_lie() -> None:
    found = gpu_node(cuts=[BALANCED, tuple(reversed(BALANCED))])
    world = settled(found, mig={"layout": "all-balanced"}, **ACT)
    assert world.conditions()["Ready"] == ("True", "PoolSettled")


def test_a_pool_that_only_advises_asks_for_no_cut_and_tells_what_it_would_do() -> None:
    world = settled(gpu_node(cuts=[BALANCED, ()]), mig={"layout": "all-balanced"})
    assert wishes(world) == ()
    told = world.reasons()["PoolMigAdvised"]
    assert told.startswith("1 of 2 GPUs would be cut anew if spec.disruption were act: GPU 1 has no instance")


def test_a_pool_that_advises_again_takes_its_wishes_back() -> None:
    world = settled(gpu_node(), mig={"layout": "all-balanced"}, **ACT)
    assert wishes(world)
    world.pools["p"] = pool(mig={"layout": "all-balanced"})
    world.settle()
    assert wishes(world) == ()


def test_a_switch_of_mig_mode_that_is_not_allowed_is_told() -> None:
    world = settled(gpu_node(cuts=[None]), mig={"layout": "all-enabled"}, **ACT)
    assert "mig.allowModeSwitch" in world.reasons()["PoolMigModeSwitch"]


@pytest.mark.parametrize(
    ("product", "mig", "words"),
    [
        ("NVIDIA-L4", {"layout": "all-balanced"}, "NVIDIA-L4 cannot be cut by MIG"),
        ("NVIDIA-H100-80GB-HBM3", {"layout": "all-1g.5gb"}, "no MIG layout 'all-1g.5gb'"),
        ("NVIDIA-H100-80GB-HBM3", {"profiles": ["4g.40gb", "4g.40gb"]}, "does not fit on one GPU"),
        ("NVIDIA-H100-80GB-HBM3", {"profiles": ["9g.9gb"]}, "no MIG profile '9g.9gb'"),
        ("Some-New-GPU", {"layout": "all-balanced"}, "there is no GPU product 'Some-New-GPU'"),
    ],
)
def test_a_cut_that_the_product_does_not_have_is_told_and_not_asked_for(
    product: str, mig: dict[str, Any], words: str
) -> None:
    world = settled(gpu_node(product=product), mig=mig, **ACT)
    assert wishes(world) == ()
    assert words in world.reasons()["PoolMigImpossible"]


def test_a_pool_that_says_nothing_about_mig_and_sharing_asks_nothing() -> None:
    world = settled(gpu_node(cuts=[BALANCED, None]))
    desired = world.gpu_nodes["n"].spec.desired
    assert (desired.pool, desired.mig, desired.sharing) == ("p", (), None)
    assert world.reasons() == {}


def test_a_dynamic_pool_leaves_the_cuts_to_the_scheduler() -> None:
    world = settled(gpu_node(cuts=[(), ()]), mig={"dynamic": True}, **ACT)
    assert world.gpu_nodes["n"].spec.desired.dynamic
    theirs = MigWish(uuid="GPU-0", enabled=True, instances=(MigPlace(profile="1g.10gb", start=6),))
    write(world, theirs)
    assert world.settle().desired == ()
    assert "GPU 0 has no instance, asked for is 1x1g.10gb" in world.reasons()["PoolMigDrift"]
    world.pools["p"] = pool(mig={"dynamic": True}, sharing={"mode": "none"})
    world.settle()
    assert wishes(world) == (theirs,)
    assert not world.gpu_nodes["n"].spec.desired.dynamic


@pytest.mark.parametrize("spec", [{}, {"mig": {"layout": "all-enabled"}, **ACT}])
def test_what_the_scheduler_asked_for_goes_when_the_pool_is_not_dynamic_any_more(
    spec: dict[str, Any],
) -> None:
    world = settled(gpu_node(cuts=[(), ()]), mig={"dynamic": True}, **ACT)
    theirs = MigWish(uuid="GPU-0", enabled=True, instances=(MigPlace(profile="1g.10gb", start=6),))
    write(world, theirs)
    world.pools["p"] = pool(**spec)
    world.settle()
    assert theirs not in wishes(world)


def test_a_node_that_leaves_is_asked_for_nothing_and_its_quarantine_stays() -> None:
    found = gpu_node(desired={"quarantine": ["GPU-1"]})
    world = settled(found, sharing={"mode": "mps", "replicas": 4}, **ACT)
    write(world, MigWish(uuid="GPU-0", enabled=False))
    world.pools.clear()
    world.settle()
    assert world.gpu_nodes["n"].spec.desired == GPUNodeDesired(quarantine=("GPU-1",))


def test_exact_places_are_compared_as_places() -> None:
    asked = MigWish(uuid="GPU-0", enabled=True, instances=(MigPlace(profile="1g.10gb", start=0),))
    for start, drift in ((0, False), (1, True)):
        place = msgspec.structs.replace(asked.instances[0], start=start)
        wish = msgspec.structs.replace(asked, instances=(place,))
        found = gpu_node(cuts=[["1g.10gb"]], desired={"mig": [msgspec.to_builtins(wish)]})
        world = settled(found, mig={"dynamic": True}, **ACT)
        assert ("PoolMigDrift" in world.reasons()) == drift


def test_sharing_is_asked_for_in_full() -> None:
    for spec, wanted in (
        ({"mode": "none"}, ("none", 1, False, False)),
        ({"mode": "timeSlicing", "replicas": 4, "rename": True}, ("timeSlicing", 4, True, False)),
        ({"mode": "mps", "replicas": 2}, ("mps", 2, False, True)),
        ({"mode": "mps", "replicas": 2, "failRequestsGreaterThanOne": False}, ("mps", 2, False, False)),
    ):
        mode, replicas, rename, fails = wanted
        world = settled(gpu_node(), sharing=spec)
        assert world.gpu_nodes["n"].spec.desired.sharing == SharingWish(
            mode=mode,  # type: ignore[arg-type] # a row of the table
            replicas=replicas,
            rename=rename,
            fail_requests_greater_than_one=fails,
        )


@pytest.mark.parametrize(
    ("sharing", "resources", "words"),
    [
        ({"mode": "timeSlicing", "replicas": 4}, {"nvidia.com/gpu": 4, "nvidia.com/mig-1g.10gb": 8}, ""),
        ({"mode": "timeSlicing", "replicas": 4}, {"nvidia.com/gpu": 1}, "nvidia.com/gpu is offered 1 times"),
        (
            {"mode": "timeSlicing", "replicas": 4},
            {"nvidia.com/gpu": 4, "nvidia.com/mig-1g.10gb": 2},
            "nvidia.com/mig-1g.10gb is offered 2 times, asked for is 8",
        ),
        (
            {"mode": "timeSlicing", "replicas": 4, "rename": True},
            {"nvidia.com/gpu": 4},
            "nvidia.com/gpu.shared is offered 0 times",
        ),
        ({"mode": "none"}, {"nvidia.com/gpu": 1, "nvidia.com/mig-1g.10gb": 2}, ""),
    ],
)
def test_devices_that_are_not_offered_as_often_as_asked_are_drift(
    sharing: dict[str, Any], resources: dict[str, int], words: str
) -> None:
    found = gpu_node(cuts=[None, ["1g.10gb", "1g.10gb"]], resources=resources)
    reasons = settled(found, sharing=sharing).reasons()
    assert reasons.get("PoolSharingDrift", "").startswith(words)
    assert bool(reasons) == bool(words)


def test_gpus_that_are_shared_in_another_way_are_drift() -> None:
    labels = {"nvidia.com/gpu.sharing-strategy": "time-slicing"}
    found = gpu_node(resources={"nvidia.com/gpu": 4})
    world = World([pool(sharing={"mode": "mps", "replicas": 2})], [node(labels=labels)], [found])
    world.settle()
    assert world.reasons() == {"PoolSharingDrift": "GPUs are shared by time-slicing, asked for is mps"}


def test_a_node_whose_gpus_nobody_has_reported_is_told_when_the_pool_asks_something_of_them() -> None:
    for found in ([], [gpu_node(cuts=[])]):
        world = World([pool(mig={"layout": "all-balanced"}, **ACT)], [node()], found)
        world.settle()
        assert set(world.reasons()) == {"PoolNodeUnreported"}
    world = World([pool()], [node()])
    world.settle()
    assert world.reasons() == {}


def write(world: World, wish: MigWish) -> None:
    """The scheduler writes its wishes."""
    held = world.gpu_nodes["n"]
    desired = msgspec.structs.replace(held.spec.desired, mig=(wish,))
    spec = msgspec.structs.replace(held.spec, desired=desired)
    world.gpu_nodes["n"] = msgspec.structs.replace(held, spec=spec)
