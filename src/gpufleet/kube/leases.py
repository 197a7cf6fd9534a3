"""Leader election on a Lease: at most one process writes, and it knows when to stop.

The leader renews every `retry_seconds`. It may write until `renew_seconds` after the last successful
renewal was *started*; another process takes over only when it has seen no change for `lease_seconds` on
its own clock. The difference is the time that a write which has already left may still take. `guard`
compares clocks and nothing else, so a process that was stopped for longer than that refuses its first
write after waking, before its threads have run. Clocks of different machines are never compared.

Renewal runs in a thread with its own event loop and its own connection, so no decision can block it. A
term that ended does not come back: who lost the lease restarts from fresh state and calls `start` again.
Source: k8s.io/client-go/tools/leaderelection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube.client import Client
from gpufleet.kube.config import ClusterConfig
from gpufleet.kube.errors import ApiError, NotLeader
from gpufleet.kube.kinds import LEASES
from gpufleet.kube.metrics import LEADER
from gpufleet.kube.times import format_micro_time

__all__ = ["LeaderElector", "NotLeader"]

log = logging.getLogger("gpufleet.kube.leases")

JITTER = 1.2


def steady_clock() -> float:
    """Seconds that pass also while the machine sleeps, where the system can tell; never set back."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class Observation:
    """What we saw of the lease, and when it last changed, on our own clock."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.lease: dict[str, Any] | None = None
        self._record: tuple[object, ...] = ()
        self._changed_at = 0.0

    def see(self, lease: dict[str, Any]) -> None:
        """Note the newest state of the lease."""
        spec = lease.get("spec", {})
        record = (spec.get("holderIdentity"), spec.get("renewTime"), spec.get("leaseTransitions"))
        if self.lease is None or record != self._record:
            self._changed_at = self._clock()
        self.lease, self._record = lease, record

    def free_for(self, identity: str, default_seconds: float) -> bool:
        """Whether `identity` may take the lease: released, its own, or not renewed for its duration."""
        if self.lease is None:
            return False
        spec = self.lease.get("spec", {})
        holder = spec.get("holderIdentity") or ""
        seconds = spec.get("leaseDurationSeconds") or default_seconds
        return holder in ("", identity) or self._clock() >= self._changed_at + seconds


class LeaderElector:
    """Holds, or waits for, the lease `namespace/name`.

    `identity` gets a random suffix, so that a restarted process is another one. Raises ValueError unless
    retry < renew < lease.
    """

    def __init__(
        self,
        config: ClusterConfig,
        *,
        namespace: str,
        name: str,
        identity: str,
        lease_seconds: int = 15,
        renew_seconds: float = 10,
        retry_seconds: float = 2,
        clock: Callable[[], float] = steady_clock,
    ) -> None:
        if not 0 < retry_seconds * JITTER < renew_seconds < lease_seconds:
            raise ValueError(
                f"need retry < renew < lease, not {retry_seconds}, {renew_seconds}, {lease_seconds}"
            )
        self.identity = f"{identity}_{uuid.uuid4().hex[:8]}"
        self.lease = f"{namespace}/{name}"
        self.transitions = 0
        """The lease's transitions when we took it: grows with every leader."""
        self._config = config
        self._namespace = namespace
        self._name = name
        self._lease_seconds = lease_seconds
        self._renew_seconds = renew_seconds
        self._retry_seconds = retry_seconds
        self._clock = clock
        self._leads_until = 0.0
        self._ended = False
        self._stopping = False
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._gauge = LEADER.labels(self.lease)

    def start(self) -> None:
        """Begin to apply for the lease. RuntimeError while a term is running."""
        if self._thread is not None and self._thread.is_alive():
            raise RuntimeError(f"the election for {self.lease} is running")
        self._ended = self._stopping = False
        self._leads_until = 0.0
        started = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(started,), name=f"lease {self.lease}", daemon=True
        )
        self._thread.start()
        started.wait()

    def leading(self) -> bool:
        """Whether this process may write now."""
        return self._clock() < self._leads_until

    def guard(self) -> None:
        """Raise NotLeader unless this process may write now. Call it right before every write."""
        if self._clock() >= self._leads_until:
            raise NotLeader(self.lease)

    async def wait_leading(self) -> None:
        """Wait until this process leads. NotLeader when the term has ended already."""
        await self._wait(lambda: self.leading() or self._ended)
        self.guard()

    async def wait_lost(self) -> None:
        """Wait until the term has ended, by loss or by `stop`."""
        await self._wait(lambda: self._ended)

    def stop(self) -> None:
        """End the term and release the lease, so that the next leader starts at once. Stop writing first."""
        with self._lock:
            self._stopping = True
            self._leads_until = 0.0
        loop, stop, thread = self._loop, self._stop, self._thread
        if thread is None or loop is None or stop is None:
            return
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(stop.set)
        thread.join(self._renew_seconds)

    async def _wait(self, condition: Callable[[], bool]) -> None:
        waiter = (asyncio.get_running_loop(), asyncio.Event())
        with self._lock:
            self._waiters.append(waiter)
        try:
            while not condition():
                await waiter[1].wait()
                waiter[1].clear()
        finally:
            with self._lock:
                self._waiters.remove(waiter)

    def _tell(self) -> None:
        self._gauge.set(1 if self.leading() else 0)
        with self._lock:
            for loop, event in self._waiters:
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(event.set)

    def _run(self, started: threading.Event) -> None:
        try:
            asyncio.run(self._term(started))
        except Exception:
            log.exception("the election failed", extra={"lease": self.lease})
        finally:
            self._leads_until = 0.0
            self._ended = True
            started.set()
            self._tell()

    async def _term(self, started: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        started.set()
        client = Client(self._config, user_agent="gpufleet-leader-election", connections=2, deadline=0.0)
        async with client:
            seen = Observation(self._clock)
            while not await self._try(client, seen):
                if await self._stopped_within(self._retry_seconds * random.uniform(1.0, JITTER)):
                    return
            log.info(
                "leading",
                extra={"lease": self.lease, "identity": self.identity, "transitions": self.transitions},
            )
            self._tell()
            await self._renew(client, seen)

    async def _renew(self, client: Client, seen: Observation) -> None:
        while True:
            if await self._stopped_within(self._retry_seconds) or self._stopping:
                await self._release(client, seen)
                return
            if self.leading():
                await self._try(client, seen)
            if not self.leading() and not self._stopping:
                log.error("lost the lease", extra={"lease": self.lease, "identity": self.identity})
                return

    async def _try(self, client: Client, seen: Observation) -> bool:
        """One attempt to take or renew the lease, in at most a third of the time to renew."""
        was_leading = self._leads_until > 0.0
        began = self._clock()
        try:
            async with asyncio.timeout(self._renew_seconds / 3):
                if not (was_leading and await self._write_known(client, seen)):
                    await self._observe(client, seen)
                    if not seen.free_for(self.identity, self._lease_seconds):
                        if was_leading:
                            self._leads_until = 0.0
                        return False
                    began = self._clock()
                    await self._write(client, seen)
        except (GpufleetError, TimeoutError) as error:
            log.warning("the lease was not renewed: %s", error, extra={"lease": self.lease})
            return False
        return self._extend(began + self._renew_seconds, was_leading=was_leading)

    def _extend(self, until: float, *, was_leading: bool) -> bool:
        with self._lock:
            if self._stopping or (was_leading and not self.leading()):
                return False
            self._leads_until = until
            return self.leading()

    async def _write_known(self, client: Client, seen: Observation) -> bool:
        """Renew without reading first; False when the lease is not as we saw it last."""
        try:
            await self._write(client, seen)
        except ApiError as error:
            if error.conflict or error.not_found:
                return False
            raise
        return True

    async def _observe(self, client: Client, seen: Observation) -> None:
        try:
            seen.see(await client.get(LEASES, self._name, self._namespace))
        except ApiError as error:
            if not error.not_found:
                raise
            empty = {
                "metadata": {"name": self._name, "namespace": self._namespace},
                "spec": {"holderIdentity": ""},
            }
            seen.see(await client.create(LEASES, empty, self._namespace))

    async def _write(self, client: Client, seen: Observation) -> None:
        assert seen.lease is not None
        spec = seen.lease.get("spec", {})
        now = format_micro_time(time.time())
        mine = spec.get("holderIdentity") == self.identity
        transitions = spec.get("leaseTransitions", 0) + (0 if mine else 1)
        wanted = {
            **spec,
            "holderIdentity": self.identity,
            "leaseDurationSeconds": self._lease_seconds,
            "acquireTime": spec.get("acquireTime") if mine else now,
            "renewTime": now,
            "leaseTransitions": transitions,
        }
        seen.see(await client.replace(LEASES, {**seen.lease, "spec": wanted}))
        self.transitions = transitions

    async def _release(self, client: Client, seen: Observation) -> None:
        assert seen.lease is not None
        spec = {**seen.lease.get("spec", {}), "holderIdentity": "", "leaseDurationSeconds": 1}
        spec["renewTime"] = format_micro_time(time.time())
        try:
            async with asyncio.timeout(self._renew_seconds / 3):
                await client.replace(LEASES, {**seen.lease, "spec": spec})
            log.info("released the lease", extra={"lease": self.lease, "identity": self.identity})
        except (GpufleetError, TimeoutError) as error:
            log.warning("the lease was not released: %s", error, extra={"lease": self.lease})

    async def _stopped_within(self, seconds: float) -> bool:
        assert self._stop is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        return self._stop.is_set()
