"""The worker that brings a node's GPUs to the cut that is asked for, whenever that or what is in use changes.

Planning is quick and happens in the event loop; the driver is called from a thread. Before the first call the
devices that go are taken out of circulation (`leaving`), so that no container is given one meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path

from gpufleet.devices import agent_metrics as metrics
from gpufleet.devices import mig_labels
from gpufleet.devices.account import Account
from gpufleet.devices.backend import Backend
from gpufleet.devices.inventory import Inventory
from gpufleet.devices.mig_manager import Outcome, carry_out
from gpufleet.devices.mig_work import Work, labelled_work, wished_work
from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube.gpunode import GPUNodeDesired

log = logging.getLogger("gpufleet.devices")

LOOK_S = 1.0


class MigWorker:
    """Works for one node. `changed` is called when `leaving`, `problem` or the label's state is another one;
    `seen` must return once the GPUs were looked at again (it is called in a thread). `configs` is a file of
    configs as mig-parted reads it; without one they are made from the GPUs.
    """

    def __init__(
        self,
        backend: Backend,
        account: Account,
        inventory: Callable[[], Inventory | None],
        seen: Callable[[], object],
        changed: Callable[[], None],
        configs: Path | None = None,
    ) -> None:
        self.desired = GPUNodeDesired()
        self.leaving: frozenset[str] = frozenset()
        self.problem = ""
        self._attempt = mig_labels.Attempt()
        self._backend, self._account = backend, account
        self._inventory, self._seen, self._changed = inventory, seen, changed
        self._configs = configs
        self._due = asyncio.Event()

    @property
    def state(self) -> str:
        """What the state label says; empty for nothing."""
        return self._attempt.state

    def look_soon(self) -> None:
        """Something that the work depends on has changed."""
        self._due.set()

    def heed(self, config: str, state: str) -> None:
        """The labels of the node say this now."""
        self._attempt = mig_labels.heed(self._attempt, config, state, time.monotonic())
        self._due.set()

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._due.wait()
            self._due.clear()
            inventory = self._inventory()
            if inventory is None:
                continue
            if self.desired.mig:
                await self._as_wished(inventory)
            elif self._attempt.open:
                await self._as_labelled(inventory)

    async def _as_wished(self, inventory: Inventory) -> None:
        problems = []
        for work in wished_work(inventory, self.desired, self._account.uuids):
            if work.problem is not None:
                problems.append(work.problem.message)
                continue
            outcome = await self._carry_out(work)
            if outcome.status != "done":
                problems += [reason.message for reason in outcome.reasons]
        before, self.problem = self.problem, "; ".join(problems)
        if self.problem != before:
            self._changed()

    async def _as_labelled(self, inventory: Inventory) -> None:
        found: mig_labels.Finding
        try:
            change = labelled_work(inventory, self._attempt.config, self._configs, self._account.uuids)
            found = change
            if change.steps and self._attempt.state == "pending":
                found = await self._carry_out(Work(change))
        except GpufleetError as error:
            found = error
        before, self._attempt = (
            self._attempt,
            mig_labels.advance(self._attempt, found, time.monotonic()),
        )
        if self._attempt != before:
            failed = self._attempt.state == "failed" and not self._attempt.open
            self.problem = "; ".join(one.message for one in self._attempt.reasons) if failed else ""
            self._changed()
            self._due.set()

    async def _carry_out(self, work: Work) -> Outcome:
        self.leaving = work.leaving
        self._changed()
        try:
            outcome = await asyncio.to_thread(
                carry_out, self._backend, work.change, lambda uuid: not self._account.holds(uuid)
            )
            metrics.MIG_CHANGES.labels(outcome.status).inc()
            log.info("MIG: %s", outcome.status, extra={"reasons": [one.message for one in outcome.reasons]})
            await asyncio.to_thread(self._seen)
        finally:
            self.leaving = frozenset()
            self._changed()
        return outcome
