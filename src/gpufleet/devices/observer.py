"""The thread that watches a node's GPUs: one place that waits for the driver, so that nothing else does.

It waits for events, asks for each GPU's recovery action, and reads the inventory again every `INVENTORY_S`,
after every event and whenever somebody has changed something. What it has seen is one value; whoever wants to
act on it is called in the order in which it was seen. A call that hangs leaves the last value standing and
its age growing; a call that fails is tried again at the next round. What an event says by itself is told
before any call: a driver whose GPU has just fallen ill is the one that hangs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import msgspec

from gpufleet.devices.backend import Backend, BackendError, Event
from gpufleet.devices.device_health import Health, Reading, notice, observe
from gpufleet.devices.inventory import GPU, Inventory

log = logging.getLogger("gpufleet.devices")

ROUND_S = 0.5
INVENTORY_S = 10.0


class Observed(msgspec.Struct, frozen=True):
    """What was seen last: the GPUs and which of them are sick; `at` is a time of the clock given."""

    inventory: Inventory
    health: Health
    at: float


class Observer:
    """Watches `backend`; `changed` is called on the observer's thread with every value that is new."""

    def __init__(
        self,
        backend: Backend,
        changed: Callable[[Observed], None],
        clock: Callable[[], float] = time.monotonic,
        events: Callable[[Event], None] = lambda _: None,
    ) -> None:
        self._backend = backend
        self._changed = changed
        self._events = events
        self._clock = clock
        self._stop = threading.Event()
        self._stale = threading.Event()
        self._read_at = 0.0
        self._pending: tuple[Event, ...] = ()
        self._looks = 0
        self._looked = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="gpu-observer", daemon=True)
        self.last: Observed | None = None

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self, within_s: float = 2 * ROUND_S) -> None:
        """End, waiting for a call to the driver that is under way no longer than `within_s`."""
        self._stop.set()
        self._thread.join(within_s)

    def refresh(self) -> None:
        """Read the inventory in the next round: somebody has changed the GPUs."""
        self._stale.set()

    def refreshed(self, within_s: float = 10.0) -> bool:
        """Read the inventory again, and wait until whoever acts on it was told; whether that came in time."""
        with self._looked:
            wanted = self._looks + 2  # a look that is under way may have read before now
            self._stale.set()
            return self._looked.wait_for(lambda: self._looks >= wanted, within_s)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.look(self._backend.wait(ROUND_S))
                with self._looked:
                    self._looks += 1
                    self._looked.notify_all()
            except BackendError as error:
                log.warning("cannot watch the GPUs: %s", error.message, extra={"reason": error.reason})
                self._stop.wait(ROUND_S)

    def look(self, events: tuple[Event, ...]) -> None:
        """One round, with the events that came since the last one; they count also when it fails.

        Raises BackendError.
        """
        for event in events:
            self._events(event)
        self._pending += events
        now = self._clock()
        self._take_events(now)
        last = self.last
        if last is None or self._pending or self._stale.is_set() or now - self._read_at >= INVENTORY_S:
            self._stale.clear()
            inventory = self._backend.inventory()
            self._read_at = now
        else:
            inventory = last.inventory
        readings = {gpu.uuid: self._reading(gpu) for gpu in inventory.gpus}
        health = observe(last.health if last else {}, self._pending, readings, now)
        self._pending = ()
        self._see(Observed(inventory, health, now))

    def _take_events(self, now: float) -> None:
        """Tell what the events say by themselves; what the driver says is as old as it was."""
        if self._pending and self.last is not None:
            uuids = {gpu.uuid for gpu in self.last.inventory.gpus}
            health = notice(self.last.health, self._pending, uuids, now)
            self._see(msgspec.structs.replace(self.last, health=health))

    def _see(self, seen: Observed) -> None:
        last, self.last = self.last, seen
        if last is None or (last.inventory, _reasons(last.health)) != (seen.inventory, _reasons(seen.health)):
            self._changed(seen)

    def _reading(self, gpu: GPU) -> Reading:
        try:
            return Reading(self._backend.recovery_action(gpu.uuid), gpu.lost)
        except BackendError:
            self._stale.set()
            return Reading(None, gpu.lost, answered=False)


def _reasons(health: Health) -> dict[str, str]:
    return {uuid: illness.reason for uuid, illness in health.items()}
