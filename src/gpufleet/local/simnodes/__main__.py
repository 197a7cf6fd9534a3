"""`python -m gpufleet.local.simnodes`: play the nodes of a fleet until SIGTERM or SIGUSR1.

SIGHUP registers nodes again whose objects somebody has deleted: a kubelet does that only when it starts.

SIGTERM ends the containers that run as processes too. After SIGUSR1, and when we fail, they go on, and the
next process takes them over.

The ready file is written when all nodes are registered and all pods that ran before are taken over.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import uvloop

from gpufleet.devices.exporter import targets
from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube.client import Client
from gpufleet.kube.config import load_config
from gpufleet.kube.process import configure_logging, serving, stop_requested
from gpufleet.local.fleetfile import Fleet, load_fleet
from gpufleet.local.layout import write_atomic
from gpufleet.local.simnodes.endpoint import Endpoint, tls_context
from gpufleet.local.simnodes.simulation import Simulation

log = logging.getLogger("gpufleet.local.simnodes")

_CONNECTIONS = 96
TARGETS_FILE = "prometheus-targets.json"
"""In the folder of the fleet: the exporter's pages of all nodes."""


class Options(msgspec.Struct, frozen=True):
    """What the process is started with. Ports may be 0: a free one is taken and the ready file names it."""

    kubeconfig: str
    fleet: str
    state: Path
    kubelet_cert: Path
    kubelet_key: Path
    client_ca: Path
    kubelet_port: int = 0
    metrics_port: int = 0
    exporter_port: int = 0
    ready_file: Path | None = None
    name: str = ""

    @property
    def fleet_name(self) -> str:
        """The fleet's name: given, or that of its state folder."""
        return self.name or self.state.name


def parse(arguments: Sequence[str]) -> Options:
    """The options of a command line; exits with a usage message when it is wrong."""
    parser = argparse.ArgumentParser("gpufleet.local.simnodes", description=__doc__.splitlines()[0])
    for name in ("kubeconfig", "fleet"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("state", "kubelet-cert", "kubelet-key", "client-ca"):
        parser.add_argument(f"--{name}", required=True, type=Path)
    parser.add_argument("--kubelet-port", type=int, default=0)
    parser.add_argument("--metrics-port", type=int, default=0)
    parser.add_argument("--exporter-port", type=int, default=0)
    parser.add_argument("--ready-file", type=Path)
    parser.add_argument("--name", default="")
    return Options(**vars(parser.parse_args(arguments)))


async def main(options: Options) -> None:
    """Play the fleet until SIGTERM, SIGINT or (leaving containers to the next process) SIGUSR1."""
    stop, handover = stop_requested(), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, handover.set)
    fleet, _ = await asyncio.to_thread(load_fleet, options.fleet)
    config = await asyncio.to_thread(load_config, options.kubeconfig)
    async with Client(config, user_agent="gpufleet-simulated-nodes", connections=_CONNECTIONS) as client:
        await _play(client, fleet, options, stop, handover)


async def _play(
    client: Client, fleet: Fleet, options: Options, stop: asyncio.Event, handover: asyncio.Event
) -> None:
    simulation = Simulation(client, fleet, options.fleet_name, options.state)
    endpoint = Endpoint(simulation.kubelets, options.state)
    context = await asyncio.to_thread(
        tls_context, options.kubelet_cert, options.kubelet_key, options.client_ca
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, simulation.registration.register_missing)
    simulation.registration.port = await endpoint.start(options.kubelet_port, context)
    try:
        async with (
            serving(options.metrics_port, ready=simulation.ready.is_set) as metrics_port,
            simulation.exporter.serving(options.exporter_port, "127.0.0.1") as exporter_port,
        ):
            await asyncio.to_thread(_list_targets, simulation, options.state, exporter_port)
            playing = asyncio.create_task(simulation.run())
            announcing = asyncio.create_task(_announce(simulation, options, metrics_port))
            leaving = [asyncio.create_task(event.wait()) for event in (stop, handover)]
            try:
                await asyncio.wait({playing, *leaving}, return_when=asyncio.FIRST_COMPLETED)
                if playing.done():
                    playing.result()
            finally:
                for task in (playing, announcing, *leaving):
                    task.cancel()
                await asyncio.gather(playing, announcing, *leaving, return_exceptions=True)
    finally:
        await simulation.processes.close(leave_running=not stop.is_set())
        await endpoint.stop()


def _list_targets(simulation: Simulation, state: Path, port: int) -> None:
    """Write what Prometheus may scrape, for its `file_sd_configs`."""
    found = targets((node.name for node in simulation.nodes.values() if node.page), f"127.0.0.1:{port}")
    write_atomic(state / TARGETS_FILE, msgspec.json.format(msgspec.json.encode(found), indent=1))


async def _announce(simulation: Simulation, options: Options, metrics_port: int) -> None:
    await simulation.ready.wait()
    ports = {"kubelet_port": simulation.registration.port, "port": metrics_port}
    log.info("ready", extra={"nodes": len(simulation.nodes), **ports})
    if options.ready_file is not None:
        await asyncio.to_thread(write_atomic, options.ready_file, msgspec.json.encode(ports))


def run() -> int:
    """The command: 0 after a stop, 1 for an error that its message explains."""
    configure_logging()
    options = parse(sys.argv[1:])
    try:
        uvloop.run(main(options))
    except GpufleetError as error:
        log.critical("%s", error.message, extra={"reason": error.reason, "hint": error.hint})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run())
