"""Sick GPUs: which signs make one sick, and what it takes to be well again."""

from __future__ import annotations

import random

import pytest

from gpufleet.devices.backend import Event
from gpufleet.devices.device_health import (
    CALM_S,
    SERIOUS_XIDS,
    VERDICTS,
    Health,
    Illness,
    Reading,
    notice,
    observe,
)

A, B = "GPU-a", "GPU-b"
WELL = {A: Reading(0), B: Reading(0)}
OLD_DRIVER = {A: Reading(None), B: Reading(None)}
APPLICATION_XIDS = (8, 11, 13, 14, 25, 31, 32, 43, 45, 63, 68, 69, 92, 94, 109, 137)


def xid(code: int, uuid: str = A, instance: int | None = None) -> Event:
    return Event("xid", uuid, code, instance)


@pytest.mark.parametrize("code", APPLICATION_XIDS)
def test_what_a_program_causes_or_the_gpu_heals_makes_nothing_sick(code: int) -> None:
    assert observe({}, [xid(code)], WELL, 1.0) == {}


@pytest.mark.parametrize("code", SERIOUS_XIDS)
@pytest.mark.parametrize("instance", [None, 3])
def test_a_serious_xid_makes_its_gpu_sick_and_no_other(code: int, instance: int | None) -> None:
    health = observe({}, [xid(code, instance=instance)], WELL, 1.0)
    assert set(health) == {A}
    assert health[A].reason == f"Xid{code}"
    assert health[A].since == 1.0


def test_the_first_reason_of_an_illness_is_kept() -> None:
    health = observe({}, [xid(95)], WELL, 1.0)
    health = observe(health, [xid(48)], {A: Reading(1), B: Reading(0)}, 2.0)
    assert health == {A: Illness("Xid95", SERIOUS_XIDS[95], 1.0)}


@pytest.mark.parametrize("action", VERDICTS)
def test_the_drivers_verdict_alone_makes_a_gpu_sick(action: int) -> None:
    assert observe({}, (), {A: Reading(action)}, 1.0)[A].reason == VERDICTS[action]
    assert observe({}, [Event("recovery", A, action)], WELL, 1.0)[A].reason == VERDICTS[action]


def test_a_verdict_of_a_later_driver_is_an_illness_too() -> None:
    assert observe({}, (), {A: Reading(42)}, 1.0)[A].reason == "RecoveryAction42"


def test_a_gpu_is_well_once_the_verdict_has_been_calm_for_a_while() -> None:
    health = observe({}, [xid(95)], {A: Reading(1)}, 0.0)
    health = observe(health, (), {A: Reading(1)}, 10.0)
    calm = observe(health, (), {A: Reading(0)}, 20.0)
    assert set(observe(calm, (), {A: Reading(0)}, 20.0 + CALM_S - 0.1)) == {A}
    assert observe(calm, (), {A: Reading(0)}, 20.0 + CALM_S) == {}


@pytest.mark.parametrize("between", [Reading(1), Reading(None), Reading(None, answered=False)])
def test_a_verdict_that_was_not_given_on_end_makes_no_gpu_well(between: Reading) -> None:
    health = observe({}, [xid(95)], {A: Reading(0)}, 0.0)
    health = observe(health, (), {A: between}, CALM_S - 1)
    assert set(observe(health, (), {A: Reading(0)}, CALM_S + 1)) == {A}


def test_a_found_gpu_is_not_well_before_its_recovery_action_could_be_asked() -> None:
    health = observe({}, (), {A: Reading(None, "no answer", answered=False)}, 0.0)
    health = observe(health, (), {A: Reading(None, answered=False)}, 1.0)
    assert set(health) == {A}
    assert set(observe(health, (), {A: Reading(2)}, 2.0)) == {A}
    assert observe(health, (), {A: Reading(0)}, 2.0) == {}


def test_an_event_alone_makes_its_gpu_sick_and_leaves_the_others_as_they_are() -> None:
    sick = {B: Illness("Xid48", "", 0.0, calm_since=3.0)}
    found = notice(sick, [xid(79), xid(79, "GPU-gone"), xid(13, B)], {A, B}, 4.0)
    assert found == {**sick, A: Illness("Xid79", SERIOUS_XIDS[79], 4.0)}
    assert notice(sick, [xid(95, B)], {A, B}, 4.0) == {B: Illness("Xid48", "", 0.0)}


def test_without_a_verdict_time_alone_heals_nothing_and_a_reset_does() -> None:
    health = observe({}, [xid(79)], OLD_DRIVER, 0.0)
    assert set(observe(health, (), OLD_DRIVER, 1e6)) == {A}
    health = observe(health, (), {A: Reading(None, "no answer"), B: Reading(None)}, 5.0)
    assert observe(health, (), OLD_DRIVER, 6.0) == {}


def test_a_lost_gpu_is_sick_until_it_is_found() -> None:
    health = observe({}, (), {A: Reading(None, "no answer")}, 0.0)
    assert health[A].reason == "GpuLost"
    assert observe(health, (), OLD_DRIVER, 1.0) == {}


def test_a_gpu_that_is_gone_is_forgotten() -> None:
    assert observe({A: Illness("Xid79", "", 0.0, 0.0)}, (), {B: Reading(0)}, 1.0) == {}


class World:
    """A node as it truly is: which GPU is broken, and since when it is not."""

    def __init__(self, seed: int, verdicts: bool) -> None:
        self.draw, self.verdicts, self.now = random.Random(seed), verdicts, 0.0
        self.broken: dict[str, str] = {}
        self.mended: dict[str, float] = {}

    def step(self) -> tuple[list[Event], dict[str, Reading]]:
        """Something happens: (events, readings)."""
        self.now += self.draw.choice((0.1, 0.5, 2.0))
        events: list[Event] = []
        resetting: set[str] = set()
        for uuid in (A, B):
            chance = self.draw.random()
            if chance < 0.2:
                events.append(xid(self.draw.choice(APPLICATION_XIDS), uuid, self.draw.choice((None, 1))))
            elif chance < 0.3:
                events.append(xid(self.draw.choice(list(SERIOUS_XIDS)), uuid, self.draw.choice((None, 1))))
                self.broken[uuid] = "xid"
            elif chance < 0.4 and uuid in self.broken:
                del self.broken[uuid]
                resetting.add(uuid)
                self.mended[uuid] = self.now
        self.draw.shuffle(events)
        return events, {uuid: self._reading(uuid, uuid in resetting) for uuid in (A, B)}

    def _reading(self, uuid: str, resetting: bool) -> Reading:
        lost = "reset" if resetting else ""
        return Reading(int(uuid in self.broken) if self.verdicts else None, lost)


@pytest.mark.parametrize("verdicts", [True, False])
def test_no_sequence_of_events_leaves_a_broken_gpu_in_use_or_a_sound_one_out_of_use(verdicts: bool) -> None:
    for seed in range(1000):
        world = World(seed, verdicts)
        health: Health = {}
        for _ in range(30):
            events, readings = world.step()
            health = observe(health, events, readings, world.now)
            assert set(world.broken) <= set(health), (seed, world.now)
            fell_ill = {e.uuid for e in events if e.code in SERIOUS_XIDS} | set(world.broken)
            for uuid in set(health) - fell_ill:
                assert world.now - world.mended[uuid] <= CALM_S + 2.0, (seed, world.now)
        calm = {uuid: Reading(0 if verdicts else None) for uuid in (A, B)}
        for wait in (0.1, CALM_S + 0.1):
            world.now += wait
            health = observe(health, (), calm, world.now)
        if verdicts:
            assert health == {}
        else:
            assert set(health) == set(world.broken)
