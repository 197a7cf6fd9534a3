"""The MPS control daemons of a node: started, limited, watched, restarted and stopped as is wanted.

`update` says what is wanted and which GPUs pods hold; `next_daemons` says what should run now; each daemon is
then brought there by a task of its own, so that one that hangs holds up no other. A daemon that ends, or that
does not answer several times in a row, is started again after a pause that doubles; meanwhile its GPUs are
`sick`, so that no new pod gets a replica without a server.

Whoever cancels `run` leaves the daemons as they are: pods go on, and the next agent takes the daemons over.
They end when the config wants them no more and no pod holds their GPUs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import msgspec

from gpufleet.devices.allocation import Grant
from gpufleet.devices.mps import (
    RECORD,
    MpsDaemon,
    MpsGPU,
    MpsPlan,
    client_grant,
    next_daemons,
    not_ready,
)
from gpufleet.devices.mps_control import PROGRAM, TIMEOUT_S, MpsControl
from gpufleet.devices.resources import Device, Withheld
from gpufleet.fleet.errors import GpufleetError

log = logging.getLogger("gpufleet.devices")

PROBE_S = 5.0
WATCH_S = 0.5
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
TRIES = 3
"""How many probes in a row may fail before a daemon is started again."""

Phase = Literal["starting", "ready", "failed", "stopping"]
_Exclusive = Callable[[Iterable[MpsGPU], bool], Awaitable[None]]


class DaemonState(msgspec.Struct, frozen=True):
    """How a daemon is. `since` is when it became ready (seconds since the epoch, 0.0 when it is not);
    `restarts` counts those since the agent started, `error` is the last thing that went wrong.
    """

    resource: str
    phase: Phase = "starting"
    pid: int = 0
    since: float = 0.0
    restarts: int = 0
    error: str = ""


class MpsDaemons:
    """The daemons below the MPS root `root`, which is `host_root` on the host.

    `set_exclusive` is the backend's; it is called in a thread. `changed` is called in the event loop whenever
    `sick` or `states` may have changed.
    """

    def __init__(
        self,
        root: Path,
        set_exclusive: Callable[[str, bool], None],
        *,
        host_root: str = "",
        command: Sequence[str] = (PROGRAM,),
        changed: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
        probe_s: float = PROBE_S,
        pause_s: float = FIRST_PAUSE_S,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.wanted = MpsPlan()
        self.waiting: tuple[Withheld, ...] = ()
        self._root = root
        self._host_root = host_root or str(root)
        self._set_exclusive = set_exclusive
        self._command = command
        self._changed = changed
        self._clock = clock
        self._probe_s = probe_s
        self._pause_s = pause_s
        self._timeout_s = timeout_s
        self._busy: frozenset[str] = frozenset()
        self._keepers: dict[str, _Keeper] = {}
        self._targets: dict[str, MpsDaemon] = {}
        self._updated = asyncio.Event()
        self._known = asyncio.Event()
        # The driver may hang: one thread waits for it, and only that one.
        self._driver = ThreadPoolExecutor(1, "mps-driver")

    @property
    def states(self) -> Mapping[str, DaemonState]:
        """Every daemon by its resource."""
        told = {name for name, keeper in self._keepers.items() if keeper.daemon}
        return {
            name: self._keepers[name].state if name in self._keepers else DaemonState(name)
            for name in sorted({*told, *self._targets})
        }

    @property
    def sick(self) -> frozenset[str]:
        """UUIDs of GPUs that no new pod may use: those to be shared that have no server yet or any more, and
        those that still have clients of a daemon which is no longer wanted there.
        """
        keepers = self._keepers.values()
        wanted = {(one.resource, gpu.uuid) for one in self.wanted.daemons for gpu in one.gpus}
        served = {(one.resource, gpu) for one in keepers for gpu in one.served}
        held = {(one.resource, gpu) for one in keepers for gpu in one.held}
        refused = {one.gpu for one in self.wanted.withheld}
        return frozenset(refused | {gpu for _, gpu in (wanted - served) | (held - wanted)})

    def update(self, wanted: MpsPlan, busy: Collection[str]) -> None:
        """Aim at these daemons from now on. `busy` are UUIDs of GPUs on which a pod holds anything."""
        self.wanted, self._busy = wanted, frozenset(busy)
        self._decide()
        self._known.set()

    def extras(self, resource: str, devices: Sequence[Device]) -> Grant:
        """What a container gets on top (`device_plugin.Extras`). Raises GpufleetError (MpsNotReady)."""
        found = client_grant(self.wanted, resource, devices, self._host_root)
        if found != Grant():
            keeper = self._keepers.get(resource)
            if keeper is None or not keeper.served.issuperset(one.gpu for one in devices):
                raise not_ready(resource, (keeper and keeper.state.error) or "it is not started yet")
        return found

    async def run(self) -> None:
        """Keep the daemons as they should be until cancelled; then they go on without us."""
        for resource in await asyncio.to_thread(self._found):
            self._keeper(resource)
        await self._known.wait()
        self._decide()
        kept: set[str] = set()
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    updated = self._updated
                    for resource in {*self._targets, *self._keepers} - kept:
                        group.create_task(self._keep(self._keeper(resource)))
                        kept.add(resource)
                    await updated.wait()
        finally:
            self._driver.shutdown(wait=False, cancel_futures=True)

    def _found(self) -> list[str]:
        """Resources of which an earlier agent has left a daemon."""
        records = sorted(self._root.glob(f"*/*/{RECORD}"))
        return [str(path.parent.relative_to(self._root)) for path in records]

    def _keeper(self, resource: str) -> _Keeper:
        if resource not in self._keepers:
            control = MpsControl(self._root, resource, self._command, self._timeout_s)
            self._keepers[resource] = _Keeper(control, self._exclusive, self._pause_s, self._clock)
        return self._keepers[resource]

    def _decide(self) -> None:
        """Work out the targets anew, and wake the keepers if there is anything new in them."""
        running = [one for keeper in self._keepers.values() if (one := keeper.daemon)]
        daemons, self.waiting = next_daemons(self.wanted.daemons, running, self._busy)
        targets = {one.resource: one for one in daemons}
        if targets != self._targets:
            self._targets = targets
            self._updated.set()
            self._updated = asyncio.Event()

    async def _keep(self, keeper: _Keeper) -> None:
        """Bring one daemon to its target again and again."""
        while True:
            updated, before = self._updated, (keeper.daemon, keeper.state)
            pause = await keeper.step(self._targets.get(keeper.resource))
            if (keeper.daemon, keeper.state) != before:
                self._decide()
                self._changed()
            await _rest(keeper, updated, pause or self._probe_s)

    async def _exclusive(self, gpus: Iterable[MpsGPU], on: bool) -> None:
        """Let only an MPS server use the GPUs, or anybody; a GPU that is gone is nobody's concern then."""
        loop = asyncio.get_running_loop()
        for gpu in gpus:
            call = loop.run_in_executor(self._driver, self._set_exclusive, gpu.uuid, on)
            try:
                async with asyncio.timeout(self._timeout_s):
                    await call
            except TimeoutError:
                message = f"the driver does not answer for GPU {gpu.index}"
                raise GpufleetError(reason="Timeout", message=message) from None
            except GpufleetError as error:
                if on or error.reason not in ("GpuLost", "NotFound"):
                    raise


class _Keeper:
    """One daemon and what is known of it. `daemon` is what it was told last, None when there is none."""

    def __init__(
        self, control: MpsControl, exclusive: _Exclusive, pause_s: float, clock: Callable[[], float]
    ) -> None:
        self.resource = control.resource
        self.daemon = control.recorded()
        self.state = DaemonState(control.resource)
        self._control = control
        self._exclusive = exclusive
        self._first_pause_s = self._pause_s = pause_s
        self._clock = clock
        self._silent = 0

    @property
    def held(self) -> frozenset[str]:
        """UUIDs of the GPUs that the daemon has."""
        return frozenset(gpu.uuid for gpu in self.daemon.gpus) if self.daemon else frozenset()

    @property
    def served(self) -> frozenset[str]:
        """UUIDs of the GPUs on which clients are served now."""
        return self.held if self.state.phase == "ready" else frozenset()

    def ended(self) -> bool:
        """Whether a daemon that was there has ended by itself."""
        return self.state.phase == "ready" and self._control.process() is None

    async def step(self, target: MpsDaemon | None) -> float | None:
        """Do what is next; after how many seconds to do it again if it failed."""
        try:
            if target is None:
                await self._stop()
            elif self.ended():
                return self._fail("the daemon has ended")
            elif self._control.process() is None or self._silent >= TRIES:
                await self._serve(target, start=True)
            elif self.state.phase != "ready" or target != self.daemon:
                await self._serve(target, start=False)
            else:
                await self._control.probe(target)
        except GpufleetError as error:
            self._silent += error.reason == "MpsFailed"
            return self._fail(error.message)
        self._silent = 0
        return None

    async def _serve(self, target: MpsDaemon, *, start: bool) -> None:
        """Give a daemon its GPUs and limits; one that runs keeps its clients. `start` puts a new one in the
        place of one that is not there, or is silent.
        """
        again = start and self.daemon is not None
        left = [gpu for gpu in (self.daemon.gpus if self.daemon else ()) if target.gpu(gpu.uuid) is None]
        if start:
            self.state = msgspec.structs.replace(self.state, phase="starting", pid=0, since=0.0)
        await self._exclusive(target.gpus, True)
        if start:
            await self._control.start()
        await self._control.limit(target)
        await self._exclusive(left, False)
        self.daemon, process = target, self._control.process()
        self.state = DaemonState(
            self.resource,
            "ready",
            process.pid if process else 0,
            self.state.since or self._clock(),
            self.state.restarts + again,
        )
        log.info("MPS of %s serves %d GPUs", self.resource, len(target.gpus))

    async def _stop(self) -> None:
        if self.daemon is None and self._control.process() is None:
            return
        self.state = msgspec.structs.replace(self.state, phase="stopping", since=0.0)
        await self._control.stop()
        await self._exclusive(self.daemon.gpus if self.daemon else (), False)
        self._control.forget()
        self.daemon, self.state = None, DaemonState(self.resource)
        log.info("MPS of %s is stopped", self.resource)

    def _fail(self, error: str) -> float:
        """Note what went wrong. A daemon that runs and is silent for once still counts as ready."""
        if error != self.state.error:
            log.warning("MPS of %s: %s", self.resource, error)
        quiet = self.state.phase == "ready" and 0 < self._silent < TRIES and not self.ended()
        if not quiet and self.state.since and self._clock() - self.state.since >= LONGEST_PAUSE_S:
            self._pause_s = self._first_pause_s
        pause, self._pause_s = self._pause_s, min(2 * self._pause_s, LONGEST_PAUSE_S)
        if quiet:
            self.state = msgspec.structs.replace(self.state, error=error)
        else:
            phase: Phase = "stopping" if self.state.phase == "stopping" else "failed"
            self.state = msgspec.structs.replace(self.state, phase=phase, pid=0, since=0.0, error=error)
        return pause


async def _rest(keeper: _Keeper, updated: asyncio.Event, seconds: float) -> None:
    """Wait until there is a new target, the daemon has ended, or the time has passed."""
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    while (left := until - loop.time()) > 0 and not keeper.ended():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(left, WATCH_S)):
                await updated.wait()
            return
