"""Composition root of the controller process: which rooms run, as whom, against which cluster.

`python -m gpufleet.controller --rooms scheduling` runs the scheduler, `--rooms devices` what keeps GPU nodes
as their pools ask; several rooms may share a process. Each room has a Lease and a client of its own, so that
what one writes stops with its own Lease; a process that loses one exits, and its supervisor (or the kubelet)
starts it again as a candidate. A room is imported only by the process that runs it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import math
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import uvloop

from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube.client import Client
from gpufleet.kube.config import ClusterConfig, load_config
from gpufleet.kube.events import EventRecorder
from gpufleet.kube.leases import LeaderElector, NotLeader
from gpufleet.kube.process import configure_logging, serving, stop_requested

log = logging.getLogger("gpufleet.controller")

EVENTS_SECONDS = 2.0
"""How long a process that stops goes on writing Events."""


Work = Callable[[], Coroutine[Any, Any, None]]


class Deciding(Protocol):
    """The loop of a room: it watches at once, and decides once `leading` has returned."""

    synced: bool

    async def run(self, leading: Callable[[], Awaitable[None]]) -> None:
        """Run until cancelled."""


class Room(NamedTuple):
    """A room at work: its loop, what runs beside it, and in whose name it writes."""

    deciding: Deciding
    recorder: EventRecorder
    beside: tuple[Work, ...] = ()
    elector: LeaderElector | None = None
    identity: str = ""


Parts = tuple[Deciding, tuple[Work, ...]]


def _scheduling(client: Client, recorder: EventRecorder, options: argparse.Namespace) -> Parts:
    from gpufleet.scheduling.controller import SchedulingController
    from gpufleet.scheduling.names import SchedulerNames
    from gpufleet.scheduling.recordings import Recordings

    names = SchedulerNames(client, options.scheduler_names)
    recordings = Recordings(options.record, options.record_last) if options.record else None
    controller = SchedulingController(client, recorder, names.policy, recordings)
    names.on_change = controller.decide_soon
    return controller, (names.run,)


def _devices(client: Client, recorder: EventRecorder, options: argparse.Namespace) -> Parts:
    from gpufleet.devices.controller import DevicesController

    return DevicesController(client, recorder), ()


class RoomKind(NamedTuple):
    """How a room is made, the name of its Lease, and who its Events come from."""

    parts: Callable[[Client, EventRecorder, argparse.Namespace], Parts]
    lease: str
    reporter: str


ROOMS = {
    "scheduling": RoomKind(_scheduling, "gpufleet-scheduler", "gpufleet.dev/scheduler"),
    "devices": RoomKind(_devices, "gpufleet-devices", "gpufleet.dev/devices"),
}


def main() -> None:
    """Run the rooms until a signal; exit status 1 when leadership or the cluster is lost."""
    options = _options()
    configure_logging(options.log_level)
    try:
        uvloop.run(_run(options))
    except GpufleetError as error:
        log.error("%s", error.message, extra={"reason": error.reason, "hint": error.hint})  # noqa: TRY400
        sys.exit(1)


def _options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpufleet-controller", description="Run rooms of gpufleet.")
    parser.add_argument(
        "--rooms", default="scheduling", help=f"comma-separated rooms to run: {', '.join(ROOMS)}"
    )
    parser.add_argument("--kubeconfig", help="path of a kubeconfig; in a cluster none is needed")
    parser.add_argument("--context", help="context of the kubeconfig")
    parser.add_argument(
        "--metrics-port", type=int, default=8080, help="port of /metrics and probes (0: free)"
    )
    parser.add_argument("--metrics-address", default="127.0.0.1", help="address of /metrics and probes")
    parser.add_argument("--ready-file", type=Path, help="file that is written when the port is open")
    parser.add_argument(
        "--scheduler-names",
        default="gpufleet",
        help="schedulerNames to answer for, by comma; auto: gpufleet and every known one without owner",
    )
    parser.add_argument(
        "--record", type=Path, metavar="DIR", help="keep what decisions read, and their plans, in this folder"
    )
    parser.add_argument(
        "--record-last", type=int, default=1000, metavar="N", help="how many decisions --record keeps"
    )
    parser.add_argument("--lease-namespace", default="kube-system", help="namespace of the Leases")
    parser.add_argument("--lease-name", help="name of the Lease of the only room; by default the room's own")
    parser.add_argument(
        "--lease-seconds", type=int, default=15, help="how long a leader that fell silent is waited for"
    )
    parser.add_argument("--no-leader-election", action="store_true", help="lead at once (one process only)")
    parser.add_argument("--qps", type=float, help="limit of requests per second; none by default")
    parser.add_argument("--burst", type=int, help="requests that may exceed --qps at once")
    parser.add_argument("--log-level", default="INFO", help="DEBUG, INFO, WARNING or ERROR")
    options = parser.parse_args(arguments)
    options.rooms = tuple(dict.fromkeys(options.rooms.split(",")))
    unknown = [name for name in options.rooms if name not in ROOMS]
    if unknown:
        parser.error(f"unknown room in --rooms: {', '.join(unknown)}; there are: {', '.join(ROOMS)}")
    if options.lease_name and len(options.rooms) > 1:
        parser.error("--lease-name is for one room: each of several has a Lease of its own")
    if options.lease_seconds < 1:
        parser.error("--lease-seconds must be at least 1")
    if options.record_last < 1:
        parser.error("--record-last must be at least 1")
    if options.qps is not None and not 0 < options.qps < math.inf:
        parser.error("--qps must be a number above 0")
    return options


async def _run(options: argparse.Namespace) -> None:
    config = load_config(options.kubeconfig, options.context)
    stop = stop_requested()
    async with contextlib.AsyncExitStack() as stack:
        rooms = [await stack.enter_async_context(_room(name, config, options)) for name in options.rooms]
        async with serving(
            options.metrics_port,
            ready=lambda: all(room.deciding.synced for room in rooms),
            host=options.metrics_address,
            ready_file=options.ready_file,
        ):
            await _until_stopped(stop, rooms)
    for room in rooms:
        if room.elector is not None:
            await asyncio.to_thread(room.elector.stop)


@contextlib.asynccontextmanager
async def _room(name: str, config: ClusterConfig, options: argparse.Namespace) -> AsyncIterator[Room]:
    kind = ROOMS[name]
    identity = f"{socket.gethostname()}_{os.getpid()}"
    elector = None
    if not options.no_leader_election:
        elector = LeaderElector(
            config,
            namespace=options.lease_namespace,
            name=options.lease_name or kind.lease,
            identity=identity,
            lease_seconds=options.lease_seconds,
            renew_seconds=options.lease_seconds * 2 / 3,
            retry_seconds=options.lease_seconds * 2 / 15,
        )
        identity = elector.identity
    guard = elector.guard if elector else None
    async with Client(
        config, user_agent="gpufleet-controller", qps=options.qps, burst=options.burst, guard=guard
    ) as client:
        recorder = EventRecorder(client, controller=kind.reporter, instance=identity)
        deciding, beside = kind.parts(client, recorder, options)
        yield Room(deciding, recorder, beside, elector, identity)


async def _until_stopped(stop: asyncio.Event, rooms: Sequence[Room]) -> None:
    try:
        async with asyncio.TaskGroup() as tasks:
            deciding = [tasks.create_task(room.deciding.run(_leading(room))) for room in rooms]
            running = [
                tasks.create_task(work()) for room in rooms for work in (room.recorder.run, *room.beside)
            ]
            running += [
                tasks.create_task(_fail_when_lost(room.elector)) for room in rooms if room.elector is not None
            ]
            await stop.wait()
            log.info("stopping")
            for task in deciding:
                task.cancel()
            await asyncio.wait(deciding)
            await asyncio.gather(*(room.recorder.flush(EVENTS_SECONDS) for room in rooms))
            for task in running:
                task.cancel()
    except* NotLeader:
        raise GpufleetError(
            reason="LeadershipLost",
            message="the Lease was lost; another process may lead now",
            hint="this process exits and is started again as a candidate",
        ) from None


def _leading(room: Room) -> Callable[[], Awaitable[None]]:
    elector = room.elector

    async def leading() -> None:
        # The caches are full and most of what they hold stays: full collections need not walk through it.
        gc.collect()
        gc.freeze()
        if elector is not None:
            elector.start()
            await elector.wait_leading()
        log.info("leading", extra={"identity": room.identity})

    return leading


async def _fail_when_lost(elector: LeaderElector) -> None:
    await elector.wait_leading()
    await elector.wait_lost()
    elector.guard()


if __name__ == "__main__":
    main()
