"""Composition root of the controller process: which rooms run, as whom, against which cluster.

`python -m gpufleet.controller --rooms scheduling` runs the scheduler. Each room has a Lease of its own; a
process that loses it exits, and its supervisor (or the kubelet) starts it again as a candidate.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import math
import os
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop

from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube.client import Client
from gpufleet.kube.config import load_config
from gpufleet.kube.events import EventRecorder
from gpufleet.kube.leases import LeaderElector, NotLeader
from gpufleet.kube.process import configure_logging, serving, stop_requested
from gpufleet.scheduling.controller import SchedulingController
from gpufleet.scheduling.names import SchedulerNames

log = logging.getLogger("gpufleet.controller")

EVENTS_SECONDS = 2.0
"""How long a process that stops goes on writing Events."""


def main() -> None:
    """Run the rooms until a signal; exit status 1 when leadership or the cluster is lost."""
    options = _options()
    configure_logging(options.log_level)
    try:
        uvloop.run(_run(options))
    except GpufleetError as error:
        log.error("%s", error.message, extra={"reason": error.reason, "hint": error.hint})  # noqa: TRY400
        sys.exit(1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpufleet-controller", description="Run rooms of gpufleet.")
    parser.add_argument("--rooms", default="scheduling", help="comma-separated rooms to run (scheduling)")
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
    parser.add_argument("--lease-namespace", default="kube-system", help="namespace of the Lease")
    parser.add_argument("--lease-name", default="gpufleet-scheduler", help="name of the Lease")
    parser.add_argument(
        "--lease-seconds", type=int, default=15, help="how long a leader that fell silent is waited for"
    )
    parser.add_argument("--no-leader-election", action="store_true", help="lead at once (one process only)")
    parser.add_argument("--qps", type=float, help="limit of requests per second; none by default")
    parser.add_argument("--burst", type=int, help="requests that may exceed --qps at once")
    parser.add_argument("--log-level", default="INFO", help="DEBUG, INFO, WARNING or ERROR")
    options = parser.parse_args()
    if options.rooms != "scheduling":
        parser.error(f"unknown room in --rooms {options.rooms}; there is: scheduling")
    if options.lease_seconds < 1:
        parser.error("--lease-seconds must be at least 1")
    if options.qps is not None and not 0 < options.qps < math.inf:
        parser.error("--qps must be a number above 0")
    return options


async def _run(options: argparse.Namespace) -> None:
    config = load_config(options.kubeconfig, options.context)
    stop = stop_requested()
    identity = f"{socket.gethostname()}_{os.getpid()}"
    elector = None
    if not options.no_leader_election:
        elector = LeaderElector(
            config,
            namespace=options.lease_namespace,
            name=options.lease_name,
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
        recorder = EventRecorder(client, controller="gpufleet.dev/scheduler", instance=identity)
        names = SchedulerNames(client, options.scheduler_names)
        controller = SchedulingController(client, recorder, names.policy)
        names.on_change = controller.decide_soon

        async def leading() -> None:
            # The caches are full and most of what they hold stays: full collections need not walk through it.
            gc.collect()
            gc.freeze()
            if elector is not None:
                elector.start()
                await elector.wait_leading()
            log.info("leading", extra={"identity": identity})

        async with serving(
            options.metrics_port,
            ready=lambda: controller.synced,
            host=options.metrics_address,
            ready_file=options.ready_file,
        ):
            await _until_stopped(stop, controller, recorder, names, elector, leading)
    if elector is not None:
        await asyncio.to_thread(elector.stop)


async def _until_stopped(
    stop: asyncio.Event,
    controller: SchedulingController,
    recorder: EventRecorder,
    names: SchedulerNames,
    elector: LeaderElector | None,
    leading: Callable[[], Awaitable[None]],
) -> None:
    try:
        async with asyncio.TaskGroup() as tasks:
            deciding = tasks.create_task(controller.run(leading))
            running = [tasks.create_task(recorder.run()), tasks.create_task(names.run())]
            if elector is not None:
                running.append(tasks.create_task(_fail_when_lost(elector)))
            await stop.wait()
            log.info("stopping")
            deciding.cancel()
            await asyncio.wait([deciding])
            await recorder.flush(EVENTS_SECONDS)
            for task in running:
                task.cancel()
    except* NotLeader:
        raise GpufleetError(
            reason="LeadershipLost",
            message="the Lease was lost; another process may lead now",
            hint="this process exits and is started again as a candidate",
        ) from None


async def _fail_when_lost(elector: LeaderElector) -> None:
    await elector.wait_leading()
    await elector.wait_lost()
    elector.guard()


if __name__ == "__main__":
    main()
