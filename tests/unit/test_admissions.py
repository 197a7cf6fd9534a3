"""Picks on their way: kubelets that admit pods in any order, and agents that confirm them late."""

from __future__ import annotations

import random

import pytest
from tests.unit.admissions import Machine, Outcome, World
from tests.unit.device_fleets import GPU, SHARED, SLICE, quality
from tests.unit.inventories import SEVEN, islands, node, whole
from tests.unit.random_fleets import FACTOR

from gpufleet.devices.plugin_config import PluginConfig, SharedResource, Sharing
from gpufleet.fleet.plans import Bind
from gpufleet.scheduling.cycle import Policy, decide

MIXED = PluginConfig(mig_strategy="mixed")
SLICED = PluginConfig(sharing=Sharing("time-slicing", (SharedResource(GPU, 4, SHARED),), True))
STEPS = 2000 * FACTOR


def linked(name: str) -> Machine:
    return Machine(name, whole(8), islands(8, 4), PluginConfig())


def alike(name: str) -> Machine:
    return Machine(name, whole(8), {}, PluginConfig())


def sliced(name: str) -> Machine:
    return Machine(name, whole(4), {}, SLICED)


def instances(name: str) -> Machine:
    return Machine(name, node(SEVEN, SEVEN, SEVEN), {}, MIXED)


WORLDS = {
    # what there is           nodes      resource  pods ask for
    "GPUs that are linked":  (linked,    GPU,      (1, 2, 4)),
    "GPUs all alike":        (alike,     GPU,      (1, 2)),
    "shares":                (sliced,    SHARED,   (1, 1, 2)),
    "MIG instances":         (instances, SLICE,    (1, 1, 2)),
}  # fmt: skip


def world(what: str, *, strangers: float = 0.0) -> World:
    make, resource, sizes = WORLDS[what]
    return World([make("a"), make("b")], resource, sizes, strangers=strangers)


def played(what: str, seed: int, *, strangers: float = 0.0) -> Outcome:
    outcome = world(what, strangers=strangers).play(random.Random(seed), STEPS)
    assert outcome.kept > 50, "the world must not stand still"
    return outcome


@pytest.mark.parametrize("what", WORLDS)
@pytest.mark.parametrize("seed", range(3))
def test_no_pod_is_harmed_by_the_order_in_which_kubelets_admit(what: str, seed: int) -> None:
    assert played(what, seed).harmed == 0


def test_shares_are_never_swapped() -> None:
    assert played("shares", 7).rate == 0.0


def test_pods_that_are_not_kept_apart_do_swap() -> None:
    """The simulation can see swaps: GPUs that are all alike are given at once, and in whatever order."""
    assert played("GPUs all alike", 3).rate > 0.1


def test_pods_that_others_bind_cost_some_picks_and_nothing_worse() -> None:
    outcome = played("MIG instances", 1, strangers=0.2)
    assert 0 < outcome.harmed < 0.1 * (outcome.kept + outcome.swapped)


@pytest.mark.parametrize("what", WORLDS)
def test_the_scheduler_picks_what_the_plugin_would_choose_itself(what: str) -> None:
    """As long as nobody waits for his devices, both have the same facts and go by the same rules."""
    chance, here = random.Random(11), world(what)
    compared = 0
    for _ in range(300):
        here.play(chance, 4)
        for machine in here.machines.values():
            while machine.admit(chance) is not None:
                pass
            for uid in machine.held:
                machine.confirm(uid)
        first = next((a for a in decide(here.snapshot, Policy()).actions if isinstance(a, Bind)), None)
        if first is None:
            continue
        machine = here.machines[first.node]
        (pick,) = first.picks
        taken = {one for given in machine.held.values() for _, _, ids in given for one in ids}
        offered = machine.plugin.offer.resource(pick.resource).devices
        free = [one.id for one in offered if one.id not in taken]
        ids = machine.plugin.preferred(pick.resource, machine.picks, free, (), len(pick.devices))
        own = tuple(one.partition("::")[0] for one in ids)
        devices = machine.devices
        assert quality(devices, pick.resource, own) == quality(devices, pick.resource, pick.devices)
        compared += 1
    assert compared > 50
