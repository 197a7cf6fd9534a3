"""Which scheduler names gpufleet answers for on a live cluster: a fixed list, or what `owners` says of its
Leases.
"""

from __future__ import annotations

import asyncio
import logging
import time

from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube import kinds, objects
from gpufleet.kube.client import Client
from gpufleet.kube.times import parse_time
from gpufleet.scheduling.cycle import Policy
from gpufleet.scheduling.owners import LeaseRecord, answered_names

log = logging.getLogger("gpufleet.scheduling")

AUTOMATIC = "auto"
REFRESH_SECONDS = 5.0


class SchedulerNames:
    """Keeps the policy's scheduler names. `names` is a list by comma, or `auto`: every name without a live
    owner.
    """

    def __init__(self, client: Client, names: str) -> None:
        self._client = client
        self._automatic = names == AUTOMATIC
        fixed = frozenset(name.strip() for name in names.split(",") if name.strip())
        self._policy = Policy(answered_names((), 0.0) if self._automatic else fixed)

    def policy(self) -> Policy:
        """The policy of this moment."""
        return self._policy

    async def refresh(self) -> None:
        """Look at the Leases once."""
        if not self._automatic:
            return
        listing = await self._client.list(
            kinds.LEASES, fields="metadata.namespace!=kube-node-lease", type=objects.Lease
        )
        names = answered_names([_record(lease) for lease in listing.items], time.time())
        if names != self._policy.schedulers:
            log.info("scheduler names changed", extra={"names": sorted(names)})
            self._policy = Policy(names)

    async def run(self) -> None:
        """Look for owners that came or went, until cancelled."""
        while self._automatic:
            try:
                await self.refresh()
            except GpufleetError as error:
                log.warning("cannot list leases", extra={"error": str(error)})
            await asyncio.sleep(REFRESH_SECONDS)


def _record(lease: objects.Lease) -> LeaseRecord:
    spec = lease.spec
    until = parse_time(spec.renew_time) + (spec.lease_duration_seconds or 0)
    return LeaseRecord(lease.metadata.name, spec.holder_identity or "", until)
