"""Which scheduler names gpufleet answers for on a live cluster: a fixed list, or what `owners` says of its
Leases.

Until the Leases were listed it answers for its own name only, and what was known stands while they cannot be:
two schedulers that bind the same pods are worse than one that waits. A Lease is alive until it was seen not
to change for its duration on our own clock, as in leader election; one that is absent or released is free at
once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube import kinds
from gpufleet.kube.client import Client
from gpufleet.kube.leases import Observation, steady_clock
from gpufleet.scheduling.cycle import Policy
from gpufleet.scheduling.owners import answered_names

log = logging.getLogger("gpufleet.scheduling")

AUTOMATIC = "auto"
FIRST_SECONDS = 0.5
REFRESH_SECONDS = 5.0
LEASE_SECONDS = 15


class SchedulerNames:
    """Keeps the policy's scheduler names. `names` is a list by comma, or `auto`: every name without a live
    owner.
    """

    def __init__(self, client: Client, names: str, *, clock: Callable[[], float] = steady_clock) -> None:
        self.on_change: Callable[[], None] = lambda: None
        """Called when the names are others than before."""
        self._client = client
        self._clock = clock
        self._automatic = names == AUTOMATIC
        self._policy = Policy()
        if not self._automatic:
            self._policy = Policy(frozenset(name.strip() for name in names.split(",") if name.strip()))
        self._seen: dict[str, Observation] = {}

    def policy(self) -> Policy:
        """The policy of this moment."""
        return self._policy

    async def refresh(self) -> None:
        """Look at the Leases once."""
        if not self._automatic:
            return
        listing = await self._client.list(kinds.LEASES, fields="metadata.namespace!=kube-node-lease")
        seen: dict[str, Observation] = {}
        held = set()
        for lease in listing.items:
            metadata = lease["metadata"]
            key = kinds.key_of(metadata["name"], metadata["namespace"])
            seen[key] = self._seen.get(key) or Observation(self._clock)
            seen[key].see(lease)
            if not seen[key].free_for("", LEASE_SECONDS):
                held.add(metadata["name"])
        self._seen = seen
        names = answered_names(held)
        if names != self._policy.schedulers:
            log.info("scheduler names changed", extra={"names": sorted(names)})
            self._policy = Policy(names)
            self.on_change()

    async def run(self) -> None:
        """Look for owners that came or went, until cancelled."""
        pause = FIRST_SECONDS
        while self._automatic:
            try:
                await self.refresh()
                pause = REFRESH_SECONDS
            except GpufleetError as error:
                log.warning("cannot list leases", extra={"error": error.message})
            await asyncio.sleep(pause)
