"""The observer: what it calls new, when it reads the inventory again, and what a failing driver costs."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from gpufleet.devices.backend import BackendError, Event
from gpufleet.devices.inventory import GPU, Inventory
from gpufleet.devices.observer import INVENTORY_S, Observed, Observer

GPUS = (GPU(0, "GPU-a"), GPU(1, "GPU-b"))


class Driver:
    """As much of a backend as an observer uses."""

    def __init__(self) -> None:
        self.gpus: Sequence[GPU] = GPUS
        self.reads = 0
        self.broken = False
        self.verdicts: dict[str, int] = {}
        self.waiting = threading.Semaphore(0)
        self.events: list[tuple[Event, ...]] = []

    def inventory(self) -> Inventory:
        self.reads += 1
        if self.broken:
            raise BackendError(reason="DriverError", message="broken")
        return Inventory(gpus=tuple(self.gpus))

    def recovery_action(self, gpu: str) -> int | None:
        return self.verdicts.get(gpu, 0)

    def wait(self, timeout_s: float) -> tuple[Event, ...]:
        self.waiting.acquire(timeout=timeout_s)
        return self.events.pop(0) if self.events else ()


class Watching:
    """An observer that is stepped by hand, with a clock of its own."""

    def __init__(self) -> None:
        self.driver, self.now, self.seen = Driver(), 0.0, list[Observed]()
        self.observer = Observer(self.driver, self.seen.append, lambda: self.now)  # type: ignore[arg-type]

    def look(self, *events: Event, after: float = 0.5) -> None:
        self.now += after
        self.observer.look(events)


def test_only_what_is_new_is_told() -> None:
    watching = Watching()
    watching.look()
    watching.look(after=INVENTORY_S)
    assert len(watching.seen) == 1
    watching.driver.gpus = GPUS[:1]
    watching.look(after=INVENTORY_S)
    assert [len(seen.inventory.gpus) for seen in watching.seen] == [2, 1]


def test_the_inventory_is_read_after_events_changes_and_a_while_and_not_else() -> None:
    watching = Watching()
    watching.look()
    watching.look()
    assert watching.driver.reads == 1
    watching.look(Event("xid", "GPU-a", 43))
    assert watching.driver.reads == 2
    watching.observer.refresh()
    watching.look()
    watching.look()
    assert watching.driver.reads == 3
    watching.look(after=INVENTORY_S)
    assert watching.driver.reads == 4


def test_a_serious_event_is_told_in_its_own_round_and_recovery_too() -> None:
    watching = Watching()
    watching.look()
    watching.look(Event("xid", "GPU-a", 79))
    assert watching.seen[-1].health["GPU-a"].reason == "Xid79"
    watching.look(after=INVENTORY_S)
    assert watching.seen[-1].health == {}


def test_an_event_is_told_before_the_driver_is_asked_for_anything() -> None:
    watching = Watching()
    watching.look()
    watching.driver.broken = True
    with pytest.raises(BackendError):
        watching.look(Event("xid", "GPU-a", 79))
    assert watching.seen[-1].health["GPU-a"].reason == "Xid79"
    assert watching.seen[-1].at == watching.seen[0].at, (
        "what the driver has not said again is as old as it was"
    )
    watching.driver.broken = False
    watching.look()
    assert len(watching.seen) == 2
    assert watching.observer.last is not None
    assert watching.observer.last.at == watching.now


def test_an_event_that_comes_before_the_first_inventory_outlives_rounds_that_fail() -> None:
    watching = Watching()
    watching.driver.broken = True
    with pytest.raises(BackendError):
        watching.look(Event("xid", "GPU-a", 79))
    assert watching.seen == []
    watching.driver.broken = False
    watching.look()
    assert [seen.health["GPU-a"].reason for seen in watching.seen] == ["Xid79"]


def test_an_event_makes_nothing_well_that_was_not_reset() -> None:
    watching = Watching()
    watching.driver.verdicts["GPU-a"] = 1
    watching.look()
    watching.driver.broken = True
    for _ in range(3):
        with pytest.raises(BackendError):
            watching.look(Event("recovery", "GPU-a", 0), after=INVENTORY_S)
    assert set(watching.seen[-1].health) == {"GPU-a"}


def test_a_running_observer_tells_of_an_event_at_once_and_survives_errors() -> None:
    told = threading.Event()

    def changed(seen: Observed) -> None:
        if "GPU-a" in seen.health:
            told.set()

    driver = Driver()
    driver.broken = True
    observer = Observer(driver, changed)  # type: ignore[arg-type]
    observer.start()
    try:
        driver.broken = False
        driver.events.append((Event("xid", "GPU-a", 48),))
        driver.waiting.release()
        assert told.wait(10)
    finally:
        observer.stop()
