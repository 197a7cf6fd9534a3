"""Composition root of the agent, the process that runs on every GPU node.

It starts only the parts that the node lacks (`devices.ownership`); the others are somebody else's and are
named in its health page. Everything runs in one event loop, except what waits for the driver: the observer,
the sampler and changes of MIG layouts have threads, and hand over values. So a driver or a kubelet that hangs
makes what the agent says old, and never silent.

When it stops, running pods keep their devices: sockets are removed, labels and MPS daemons stay.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from gpufleet.devices import agent_metrics as metrics
from gpufleet.devices import mig_labels
from gpufleet.devices.account import Account
from gpufleet.devices.allocation import Grant
from gpufleet.devices.backend import Backend
from gpufleet.devices.cdi_specs import CdiSpecs
from gpufleet.devices.device_plugin import DevicePlugin
from gpufleet.devices.exporter import Exporter
from gpufleet.devices.exporter_text import Options as ExporterOptions
from gpufleet.devices.feature_labels import feature_labels
from gpufleet.devices.fraction_pods import (
    FractionPod,
    carrying,
    fraction_allocations,
    fraction_condition,
    fraction_pods,
    fraction_problems,
)
from gpufleet.devices.host_facts import driver_nodes
from gpufleet.devices.inventory import Inventory
from gpufleet.devices.label_writer import LabelWriter, Output
from gpufleet.devices.ledger import BoundPod
from gpufleet.devices.mig_worker import MigWorker
from gpufleet.devices.mps import plan_daemons
from gpufleet.devices.mps_control import PROGRAM as MPS_PROGRAM
from gpufleet.devices.mps_daemons import MpsDaemons
from gpufleet.devices.node_report import conditions, node_status
from gpufleet.devices.observer import Observed, Observer
from gpufleet.devices.owners import Owners
from gpufleet.devices.ownership import Ownership
from gpufleet.devices.picks import Picks, picks_of
from gpufleet.devices.plugin_config import CONFIG_LABEL, PluginConfig
from gpufleet.devices.plugin_config_source import ConfigSource, with_sharing
from gpufleet.devices.preferred_allocation import topology
from gpufleet.devices.process_owners import ProcessOwners
from gpufleet.devices.resources import Device, gpu_resources
from gpufleet.devices.sampling import INTERVAL_S, Sampled, Sampler
from gpufleet.devices.status_writer import StatusWriter
from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.fractions import FRACTION_RESOURCE
from gpufleet.kube.client import Client
from gpufleet.kube.cuts import MIG_CONDITION
from gpufleet.kube.gpunode import GPUNode, GPUNodeDesired, GPUNodeStatus, StartPhase
from gpufleet.kube.informers import Change, Informer
from gpufleet.kube.kinds import GPU_NODES, NODES, PODS
from gpufleet.kube.kubelet.pod_resources import PodResources
from gpufleet.kube.objects import Condition, Node, Pod
from gpufleet.kube.process import serving
from gpufleet.kube.times import format_time

log = logging.getLogger("gpufleet.agent")

T = TypeVar("T")

NODE_S, CONFIG_S, OWNERS_S = 0.5, 5.0, 60.0


class Options(msgspec.Struct, frozen=True):
    """What an agent is started with. Folders are those that this process sees."""

    node: str
    host_root: Path = Path("/")
    kubelet_root: Path = Path("/var/lib/kubelet")
    plugin_folder: Path | None = None
    pod_resources: Path | None = None
    config: ConfigSource = ConfigSource()
    mig_configs: Path | None = None
    labels_to: Output = "node"
    exporter: ExporterOptions = ExporterOptions()
    exporter_port: int = 9400
    exporter_address: str = ""
    metrics_port: int = 9402
    sample_s: float = INTERVAL_S
    mps_root: Path | None = None
    mps_command: tuple[str, ...] = (MPS_PROGRAM,)
    ready_file: Path | None = None


class Agent:
    """The agent of one node, over `backend`. `run` works until it is cancelled."""

    def __init__(self, client: Client, backend: Backend, options: Options) -> None:
        self._client, self._backend, self._options = client, backend, options
        self._loop: asyncio.AbstractEventLoop
        self._observed: Observed | None = None
        self._samples: Sampled = Sampled(())
        self._fractions: tuple[FractionPod, ...] = ()
        self._desired, self._generation = GPUNodeDesired(), 0
        self._config, self._config_problem = PluginConfig(), ""
        self._started = time.time()
        self._phases: dict[str, float] = {"Registered": self._started}
        self.exporter_port = 0
        self.plugin = DevicePlugin(
            options.plugin_folder or options.kubelet_root / "device-plugins", extras=self._extras
        )
        self.plugin.allocated = self._allocated
        self.owners = Owners(
            client, options.node, options.host_root, lambda: self.plugin.ours, self._mig_capable
        )
        self.owners.moved = self._owners_moved
        self.account = Account(
            PodResources(options.pod_resources or options.kubelet_root / "pod-resources" / "kubelet.sock"),
            lambda: frozenset(one.name for one in self.plugin.node.offer.resources),
            self._derive,
        )
        self._exporter = Exporter(options.exporter)
        self._page = self._exporter.add(options.node)
        self._observer = Observer(backend, self._hand_over(self._see), events=self._page.noticed)
        self.account.tell(self._page.held, self._page.kubelet.failed)
        self._mig = MigWorker(
            backend,
            self.account,
            self._inventory_now,
            self._observer.refreshed,
            self._derive,
            options.mig_configs,
        )
        self._sampler = Sampler(
            backend,
            self._hand_over(self._measured),
            self._page.driver,
            interval_s=options.sample_s,
            shared=self._page.shared_gpus,
            owner=ProcessOwners(options.host_root).pod,
        )
        self._cdi = CdiSpecs(options.host_root, changed=self._derive)
        mps_root = options.mps_root or options.host_root / "run/nvidia/mps"
        self._mps = MpsDaemons(
            mps_root, backend.set_exclusive, command=options.mps_command, changed=self._derive
        )
        self._status = StatusWriter(client, options.node, self._node_uid, self.status)
        self._labels = LabelWriter(
            client,
            options.node,
            self.labels,
            output=options.labels_to,
            file=self._labels_file,
        )
        named = f"metadata.name={options.node}"
        self._nodes = Informer(client, NODES, Node, fields=named)
        self._gpu_nodes = Informer(client, GPU_NODES, GPUNode, fields=named)
        self._pods = Informer(client, PODS, Pod, fields=f"spec.nodeName={options.node}")

    async def run(self) -> None:
        """Work until cancelled; running pods keep their devices then. Raises GpufleetError, OSError."""
        self._loop = asyncio.get_running_loop()
        self._observer.start()
        self._sampler.start()
        try:
            async with asyncio.TaskGroup() as tasks:
                for informer in (self._nodes, self._gpu_nodes, self._pods):
                    tasks.create_task(informer.run())
                for informer in (self._nodes, self._gpu_nodes, self._pods):
                    await informer.synced()
                await self._node_exists()
                self._take_over()
                await self.owners.look()
                if self.owners.does("device-plugin"):
                    await self._cdi.look()
                self._derive()
                self._start(tasks)
        finally:
            await asyncio.to_thread(self._observer.stop)
            await asyncio.to_thread(self._sampler.stop)

    def _owners_moved(self, now: Ownership, zero: Iterable[str]) -> None:
        """Leave a record for the next agent: with the plugin, what stands at zero (a registration that
        has ended) becomes ours; without it nothing is ours any more.
        """
        if now.registers:
            self.plugin.remember(zero)
        else:
            self.plugin.forget()

    async def _node_exists(self) -> None:
        """Wait for the Node object: an agent may be up before its kubelet has registered the node."""
        said = False
        while self._nodes.get(self._options.node) is None:
            if not said:
                log.info("waiting for the node to be registered", extra={"node": self._options.node})
            said = True
            await asyncio.sleep(NODE_S)

    def ready(self) -> bool:
        """Whether the GPUs are known and, where that is our part, offered."""
        followed = not self.owners.does("device-plugin") or all(self.plugin.registered.values())
        return self._observed is not None and self.owners.found is not None and followed

    def labels(self) -> dict[str, str]:
        """The labels that describe the GPUs as they are now."""
        inventory = self.plugin.node.inventory
        timestamp = None if self._config.no_timestamp else int(self._started)
        found = feature_labels(inventory, self.plugin.node.config, timestamp)
        state = self._mig.state
        return found | ({mig_labels.STATE_LABEL: state} if state else {})

    def _labels_file(self) -> Path:
        return self._options.host_root / self._config.output_file.lstrip("/")

    def status(self) -> GPUNodeStatus:
        """What the agent says in the node's GPUNode."""
        observed = self._observed
        inventory = self.plugin.node.inventory
        body = node_status(
            inventory,
            observed.health if observed else {},
            frozenset(self._desired.quarantine),
            gpu_resources(self.plugin.node.offer, self.plugin.node.config.shared_policy),
            self.account.allocations,
            self._samples.samples,
            self.plugin.node.topology,
        )
        if self.ready():
            self._phases.setdefault("Ready", time.time())
        phases = tuple(StartPhase(name=name, time=format_time(at)) for name, at in self._phases.items())
        return msgspec.structs.replace(
            body,
            observed_generation=self._generation,
            started=format_time(self._started),
            phases=phases,
            conditions=self._conditions(),
        )

    # ------------------------------------------------------------------------------------------- start

    def _start(self, tasks: asyncio.TaskGroup) -> None:
        works: list[Callable[[], Any]] = [
            self._status.run,
            lambda: self.account.run(lambda: self.plugin.picks, self._confirm),
            self._follow_config,
            self.owners.follow,
        ]
        if self.owners.does("device-plugin"):
            works += [self.plugin.run, self._cdi.run]
        if self.owners.does("labels"):
            works.append(self._labels.run)
        if self.owners.does("mps"):
            works.append(self._mps.run)
        if self.owners.does("mig-manager"):
            works.append(self._mig.run)
        if self.owners.does("exporter"):
            works.append(self._export)
        for work in works:
            tasks.create_task(work())
        self._status.changed()

    def _take_over(self) -> None:
        node = self._gpu_nodes.get(self._options.node)
        if node is not None:
            recorded = node.status.allocations
            self.account.held = tuple(one for one in recorded if one.resource != FRACTION_RESOURCE)
        self._nodes.subscribe(self._node_changed)
        self._gpu_nodes.subscribe(self._gpu_node_changed)
        self._pods.subscribe(self._pods_changed)

    async def _export(self) -> None:
        options = self._options
        async with self._exporter.serving(options.exporter_port, options.exporter_address) as port:
            self.exporter_port = port
            await asyncio.Event().wait()

    # ----------------------------------------------------------------------------- what comes from outside

    def _hand_over(self, take: Callable[[T], None]) -> Callable[[T], None]:
        def from_thread(value: T) -> None:
            self._loop.call_soon_threadsafe(take, value)

        return from_thread

    def _see(self, observed: Observed) -> None:
        first = self._observed is None
        self._observed = observed
        if first or {gpu.uuid for gpu in observed.inventory.gpus} != set(self.plugin.node.topology.gpus):
            self._loop.create_task(self._read_links(observed))
        self._phases.setdefault("DevicesReady", time.time())
        self._page.observed(observed.inventory)
        self._derive()

    async def _read_links(self, observed: Observed) -> None:
        try:
            links = await asyncio.to_thread(self._backend.links)
        except GpufleetError as error:
            log.warning("cannot read the links of GPUs: %s", error.message, extra={"reason": error.reason})
            return
        found = topology(observed.inventory, links)
        self.plugin.update(msgspec.structs.replace(self.plugin.node, topology=found))
        self._status.changed()

    def _measured(self, sampled: Sampled) -> None:
        self._samples = sampled
        self._page.sampled(sampled)
        self._status.changed()

    def _node_changed(self, change: Change[Node]) -> None:
        labels = change.new.metadata.labels if change.new else {}
        config, state = labels.get(mig_labels.CONFIG_LABEL, ""), labels.get(mig_labels.STATE_LABEL, "")
        if self.owners.does("mig-manager"):
            self._mig.heed(config, state)
        self._reconfigure()

    def _gpu_node_changed(self, change: Change[GPUNode]) -> None:
        if change.new is None:
            self._status.written = None
        else:
            self._generation = change.new.metadata.generation
            self._desired = self._mig.desired = change.new.spec.desired
            self._mig.look_soon()
        self._reconfigure()
        self._status.changed()

    def _pods_changed(self, change: Change[Pod]) -> None:
        pods = {
            pod.metadata.key: BoundPod(
                pod.metadata.namespace,
                pod.metadata.name,
                pod.metadata.uid,
                pod.status.phase in ("Succeeded", "Failed"),
            )
            for pod in self._pods.items().values()
        }
        if change.old is None and change.new is not None and not change.new.status.container_statuses:
            self.plugin.picks = self.plugin.picks.bound(picks_of(change.new))
        self.account.pods = pods
        self.account.look_soon()
        fractions = fraction_pods(self._pods.items().values())
        if fractions != self._fractions:
            self._fractions = fractions
            self._derive()
        self._mig.look_soon()

    def _node_uid(self) -> str:
        node = self._nodes.get(self._options.node)
        if node is None:
            raise GpufleetError(reason="NodeNotFound", message=f"there is no node {self._options.node}")
        return node.metadata.uid

    # ----------------------------------------------------------------------------------- what follows

    def _reconfigure(self) -> None:
        node = self._nodes.get(self._options.node)
        label = node.metadata.labels.get(CONFIG_LABEL, "") if node else ""
        try:
            config = self._options.config.read(label)
        except GpufleetError as error:
            if error.message != self._config_problem:
                log.warning("%s", error.message, extra={"reason": error.reason, "hint": error.hint})
            self._config_problem = error.message
            return
        self._config_problem = ""
        if config != self._config or self._observed is not None:
            self._config = config
            self._derive()

    def _derive(self) -> None:
        """Work out what is offered, after anything that it follows from has changed."""
        if self._observed is None:
            return
        inventory = self._observed.inventory
        sick = {*self._observed.health, *self._desired.quarantine}
        carried = carrying(self._fractions)
        self.account.fractions = fraction_allocations(self._fractions, inventory)
        config = wanted = with_sharing(self._config, self._desired.sharing, inventory.profiles)
        leaving = self._mig.leaving
        if self.owners.does("device-plugin"):
            config = self._cdi.settled(config)
        node = self.plugin.node.derive(inventory, config, sick, leaving, carried)
        if self.owners.does("mps"):
            self._mps.update(plan_daemons(node.offer, inventory, config), self._busy_gpus())
            sick |= self._mps.sick
        if self.owners.does("device-plugin"):
            self._cdi.update(node.offer, inventory, wanted)
            leaving |= self._cdi.withheld
        node = node.derive(inventory, config, sick, leaving, carried)
        nodes = driver_nodes(self._options.host_root)
        self.plugin.update(msgspec.structs.replace(node, nodes=nodes, busy=self._busy_gpus()))
        self._labels.changed()
        self._status.changed()
        self._mig.look_soon()

    def _mig_capable(self) -> bool | None:
        gpus = self._observed.inventory.gpus if self._observed else ()
        return any(gpu.mig != "unsupported" for gpu in gpus) if gpus else None

    def _inventory_now(self) -> Inventory | None:
        return self._observed.inventory if self._observed else None

    def _busy_gpus(self) -> frozenset[str]:
        held = self.account.uuids
        return frozenset(
            gpu.uuid
            for gpu in self.plugin.node.inventory.gpus
            if gpu.uuid in held or any(c.uuid in held for one in gpu.instances for c in one.compute)
        )

    def _confirm(self, picks: Picks) -> None:
        self.plugin.picks = picks

    def _allocated(self, resource: str, ids: Sequence[str]) -> None:
        metrics.ALLOCATIONS.labels(resource).inc()
        self.account.granted(ids)

    def _extras(self, resource: str, devices: Sequence[Device]) -> Grant:
        return self._mps.extras(resource, devices) if self.owners.does("mps") else Grant()

    async def _follow_config(self) -> None:
        while True:
            await asyncio.sleep(CONFIG_S)
            self._reconfigure()

    # ------------------------------------------------------------------------------------------- words

    def _conditions(self) -> tuple[Condition, ...]:
        before = (self._status.written or GPUNodeStatus()).conditions
        ready, problem, config = self.ready(), self._mig.problem, self._config_problem
        cdi = self._cdi.reasons
        fractions = fraction_problems(
            self._fractions,
            self.account.held,
            self.plugin.node.inventory,
            withheld=self.owners.does("device-plugin"),
        )
        return conditions(
            (
                ("Ready", ready, "AgentReady" if ready else "AgentStarting", "the agent reports"),
                (MIG_CONDITION, not problem, "MigBlocked" if problem else "MigAsAsked", problem),
                ("Configured", not config, "InvalidPluginConfig" if config else "ConfigInForce", config),
                ("CdiSpecs", not cdi, cdi[0].code if cdi else "AsNeeded", "; ".join(r.message for r in cdi)),
                fraction_condition(fractions),
            ),
            before,
            time.time(),
        )

    async def parts_page(self, _: web.Request) -> web.Response:
        """Which part of the node is whose, and what we do about it."""
        return web.json_response(msgspec.to_builtins(self.owners.found) if self.owners.found else {})


@contextlib.asynccontextmanager
async def working(agent: Agent, options: Options) -> AsyncIterator[asyncio.Task[None]]:
    """The agent at work, with its own metrics, its probes and `/parts` on `metrics_port`."""
    pages = {"/parts": agent.parts_page}
    async with serving(options.metrics_port, ready=agent.ready, ready_file=options.ready_file, pages=pages):
        task = asyncio.create_task(agent.run())
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.wait([task])
            with contextlib.suppress(asyncio.CancelledError):
                await agent.account.close()
