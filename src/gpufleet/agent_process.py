"""The process of the agent: finds the driver and the cluster, and runs the agent until a signal.

A node without a driver is no error: GPUs may be installed later, so it is looked again. An agent whose parts
have other owners now ends with status 0, and whoever started it starts it with the parts that are left.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import TypeVar

import uvloop

from gpufleet.agent import Agent, Options, working
from gpufleet.devices.backend import BackendError
from gpufleet.devices.nvml import NvmlBackend
from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube.client import Client
from gpufleet.kube.config import load_config
from gpufleet.kube.process import configure_logging, stop_requested

log = logging.getLogger("gpufleet.agent")

DRIVER_S = 10.0
E = TypeVar("E", bound=Exception)


def run(options: Options, kubeconfig: str | None, context: str | None) -> None:
    """Run until SIGTERM or SIGINT; exit status 1 for an error that its message explains."""
    configure_logging()
    try:
        uvloop.run(_run(options, kubeconfig, context))
    except* GpufleetError as group:
        for error in _flat(group):
            log.error("%s", error, extra={"reason": error.reason, "hint": error.hint})  # noqa: TRY400
        if any(error.reason != "OwnersChanged" for error in _flat(group)):
            sys.exit(1)
    except* OSError as group:
        hint = "is a port taken? see --exporter-port and --metrics-port"
        for problem in _flat(group):
            log.error("%s", problem, extra={"reason": "CannotServe", "hint": hint})  # noqa: TRY400
        sys.exit(1)


async def _run(options: Options, kubeconfig: str | None, context: str | None) -> None:
    stop = stop_requested()
    config = await asyncio.to_thread(load_config, kubeconfig, context)
    backend = await _driver(options, stop)
    if backend is None:
        return
    try:
        async with Client(config, user_agent="gpufleet-agent") as client:
            agent = Agent(client, backend, options)
            async with working(agent, options) as task:
                stopping = asyncio.create_task(stop.wait())
                await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
                stopping.cancel()
                if task.done():
                    task.result()
    finally:
        await asyncio.to_thread(backend.close)


async def _driver(options: Options, stop: asyncio.Event) -> NvmlBackend | None:
    """The driver's backend, as soon as there is one; None when it is time to stop."""
    said = ""
    while not stop.is_set():
        try:
            return await asyncio.to_thread(NvmlBackend, options.host_root)
        except BackendError as error:
            if error.message != said:
                log.warning("no GPUs yet: %s", error.message, extra={"reason": error.reason})
            said = error.message
        try:
            async with asyncio.timeout(DRIVER_S):
                await stop.wait()
        except TimeoutError:
            continue
    return None


def _flat(group: BaseExceptionGroup[E]) -> list[E]:
    found: list[E] = []
    for error in group.exceptions:
        found += _flat(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found
