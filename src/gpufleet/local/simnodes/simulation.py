"""All that plays the nodes of one fleet, built and connected; `run` registers, takes over, and plays."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from gpufleet.devices.exporter import Exporter
from gpufleet.kube.client import Client, Unreachable
from gpufleet.kube.events import EventRecorder
from gpufleet.kube.gpunode import GPUNode
from gpufleet.kube.informers import Informer
from gpufleet.kube.kinds import GPU_NODES, NODES, PODS
from gpufleet.kube.objects import Node, Pod
from gpufleet.local.fleetfile import Fleet
from gpufleet.local.simnodes import metrics
from gpufleet.local.simnodes.configured import ConfiguredRuntime
from gpufleet.local.simnodes.kubelets import Kubelets, Runtimes
from gpufleet.local.simnodes.machines import FLEET_LABEL, machines
from gpufleet.local.simnodes.node import SimulatedNode
from gpufleet.local.simnodes.podstate import phase_of
from gpufleet.local.simnodes.process_runtime import ProcessRuntime
from gpufleet.local.simnodes.provisioner import Provisioner
from gpufleet.local.simnodes.registration import Registration
from gpufleet.local.simnodes.reporting import LARGE_FLEET, RecordWriter, StatusWriter
from gpufleet.local.simnodes.runtimes import ModelledRuntime

log = logging.getLogger("gpufleet.local.simnodes")

_RETRY_S = 1.0


class Simulation:
    """Everything that plays the nodes of one fleet."""

    def __init__(self, client: Client, fleet: Fleet, name: str, state: Path) -> None:
        self.name = name
        self.nodes = {machine.name: SimulatedNode(machine) for machine in machines(fleet, name)}
        self.exporter = Exporter()
        for node in self.nodes.values():
            if node.machine.product is not None:
                node.page = self.exporter.add(node.name)
        self.recorder = EventRecorder(client, "gpufleet.dev/simulated-kubelet", name)
        self.kubelets = Kubelets(self.nodes, fleet.simulation, self.recorder)
        self.processes = ProcessRuntime(client, state, self.kubelets.tell, self.kubelets.allocatable)
        self.statuses = StatusWriter(client, self.kubelets.lookup)
        self.records = RecordWriter(client, self.nodes, self.kubelets.recorded, time.time())
        self.kubelets.statuses, self.kubelets.records = self.statuses, self.records
        played = ModelledRuntime(fleet.simulation, self.kubelets.tell)
        modelled = ConfiguredRuntime(played, client, self.kubelets.tell, self.kubelets.allocatable)
        self.kubelets.runtimes = Runtimes(modelled, self.processes)
        self.provisioner = Provisioner(client)
        ours = f"{FLEET_LABEL}={name}"
        self.node_informer = Informer(client, NODES, Node, labels=ours)
        self.registration = Registration(client, self.nodes, self.node_informer.get)
        self.registration.registered = self.records.changed
        self.gpu_informer = Informer(client, GPU_NODES, GPUNode)
        self.pod_informer = Informer(client, PODS, Pod, fields="spec.nodeName!=")
        self.ready = asyncio.Event()
        metrics.NODES.set_function(lambda: sum(node.present for node in self.nodes.values()))
        for phase in metrics.PHASES:
            metrics.PODS.labels(phase).set_function(partial(self._pods, phase))

    async def run(self) -> None:
        """Register, take over, play; until cancelled."""
        await self.processes.open()
        await _persistently(lambda: self.registration.register(self.name))
        await _persistently(self.provisioner.offer)
        async with asyncio.TaskGroup() as tasks:
            informers = (self.node_informer, self.gpu_informer, self.pod_informer)
            every: tuple[Informer[Any], ...] = (*informers, *self.provisioner.informers)
            for informer in every:
                tasks.create_task(informer.run())
            for one in informers:
                await one.synced()
            self._take_over()
            for work in (
                self.recorder.run,
                self.statuses.workers.run,
                self.records.workers.run,
                self.provisioner.workers.run,
                self.registration.renew_leases,
                self.registration.workers.run,
                self.registration.returning.run,
                self.registration.heartbeat,
                self._refresh,
            ):
                tasks.create_task(work())
            await self.processes.end_strays()
            gc.collect()
            gc.freeze()
            self.ready.set()

    def _take_over(self) -> None:
        self.kubelets.take_over(self.pod_informer.items().values(), self.gpu_informer.items())
        self.node_informer.subscribe(self.kubelets.node_changed)
        self.node_informer.subscribe(self.registration.node_changed)
        self.gpu_informer.subscribe(self.kubelets.gpu_node_changed)
        self.pod_informer.subscribe(self.kubelets.pod_changed)

    async def _refresh(self) -> None:
        """Keep readings in GPUNode fresh where they move, each node in its turn."""
        interval = 5.0 if len(self.nodes) <= LARGE_FLEET else 120.0
        while True:
            for node in self.nodes.values():
                await asyncio.sleep(interval / len(self.nodes))
                self.records.refresh(node)

    def _pods(self, phase: str) -> int:
        return sum(phase_of(run) == phase for run in self.kubelets.runs())


async def _persistently(work: Callable[[], Awaitable[None]]) -> None:
    """Try until the API server answers."""
    while True:
        try:
            await work()
            return
        except Unreachable as error:
            log.warning("waiting for the API server: %s", error.message, extra={"reason": error.reason})
            await asyncio.sleep(_RETRY_S)
