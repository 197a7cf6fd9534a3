"""The controller of devices: watch pools, nodes and their GPUs, decide, write, report.

One loop waits for a change, lets more of them gather, takes the snapshot, asks `pools.decide` and carries the
plan out before it decides again. An object that was written is left alone until its new version has come
back, so a slow watch never makes us write twice; what was refused is decided anew after a pause that grows.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import msgspec

from gpufleet.devices import metrics
from gpufleet.devices.pool_records import NodeView, node_view
from gpufleet.devices.pool_status import ALARMING
from gpufleet.devices.pools import (
    DesiredChange,
    NodeChange,
    PoolPlan,
    PoolSnapshot,
    StatusChange,
    decide,
    watched,
)
from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.reasons import Reason
from gpufleet.kube import objects, pool_writes
from gpufleet.kube.client import Client
from gpufleet.kube.events import EventRecorder, EventType
from gpufleet.kube.gpunode import GPUNode
from gpufleet.kube.gpupool import GPUPool
from gpufleet.kube.informers import Change, Informer
from gpufleet.kube.kinds import GPU_NODES, GPU_POOLS, NODES, Kind
from gpufleet.kube.leases import NotLeader
from gpufleet.kube.ratelimit import Backoff
from gpufleet.kube.times import format_time

log = logging.getLogger("gpufleet.devices")

COALESCE_SECONDS = 0.2
RETRY_SECONDS = (0.5, 60.0)
WRITERS = 4
"""How many writes are on their way at once: pools can wait, so they leave the API server to others."""


class DevicesController:
    """Keeps the nodes of one cluster as their pools ask."""

    def __init__(self, client: Client, recorder: EventRecorder) -> None:
        self._client = client
        self._recorder = recorder
        self._changed = asyncio.Event()
        self._views: dict[str, NodeView] = {}
        self._unread: set[str] = set()
        self._pools = Informer(client, GPU_POOLS, GPUPool, optional=True)
        self._pools.subscribe(self._pool_changed, self._pool_unread)
        self._nodes = Informer(client, NODES, objects.Node)
        self._nodes.subscribe(self._node_changed)
        self._gpu_nodes = Informer(client, GPU_NODES, GPUNode, optional=True)
        self._gpu_nodes.subscribe(self._gpu_node_changed)
        self._written: dict[tuple[str, str], str] = {}
        self._slots = asyncio.Semaphore(WRITERS)
        self._backoff = Backoff(*RETRY_SECONDS, jitter="half")
        self.synced = False

    async def run(self, leading: Callable[[], Awaitable[None]]) -> None:
        """Watch at once, decide while `leading` lets us (it returns when this process leads); until
        cancelled.
        """
        informers: tuple[Informer[Any], ...] = (self._pools, self._nodes, self._gpu_nodes)
        async with asyncio.TaskGroup() as tasks:
            for informer in informers:
                tasks.create_task(informer.run())
            for informer in informers:
                await informer.synced()
            self.synced = True
            log.info("caches synced", extra={"kinds": len(informers)})
            await leading()
            self._changed.set()
            while True:
                await self._changed.wait()
                await asyncio.sleep(COALESCE_SECONDS)
                self._changed.clear()
                await self._carry_out(self._decide())

    def _decide(self) -> PoolPlan:
        started = time.perf_counter()
        snapshot = PoolSnapshot(
            tuple(self._pools.items().values()),
            tuple(self._views.values()),
            self._gpu_nodes.items(),
            frozenset(self._unread),
        )
        plan = decide(snapshot, format_time(time.time()))
        metrics.POOL_DECISION_SECONDS.observe(time.perf_counter() - started)
        metrics.POOL_LAST_DECISION.set_to_current_time()
        for gauge in (metrics.POOL_NODES, metrics.POOL_DRIFTED_NODES, metrics.POOL_CONTESTED_NODES):
            gauge.clear()
        for name, status in plan.found.items():
            metrics.POOL_NODES.labels(name).set(status.node_count)
            metrics.POOL_DRIFTED_NODES.labels(name).set(status.drifted_nodes)
            metrics.POOL_CONTESTED_NODES.labels(name).set(status.contested_nodes)
        return plan

    async def _carry_out(self, plan: PoolPlan) -> None:
        writes = [
            *map(self._status_write, plan.statuses),
            *map(self._node_write, plan.nodes),
            *map(self._desired_write, plan.desired),
        ]
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(self._write(one)) for one in writes]
        if all(task.result() for task in running):
            self._backoff.reset()
        else:
            asyncio.get_running_loop().call_later(self._backoff.next(), self._changed.set)

    async def _write(self, write: _Write) -> bool:
        """Carry one write out, unless the cache has not seen our last one; whether it needs no other try."""
        key = (write.kind.plural, write.name)
        if self._written.get(key) == write.version:
            return True
        told = {"kind": write.kind.kind, "object": write.name, "reasons": [one.code for one in write.reasons]}
        try:
            async with self._slots:
                done = await write.send()
        except NotLeader:
            raise
        except GpufleetError as error:
            done = False
            log.warning("write refused", extra={**told, "error": error.message})
        if not done:
            metrics.POOL_WRITE_ERRORS.labels(write.kind.plural).inc()
            return False
        self._written[key] = write.version
        metrics.POOL_WRITES.labels(write.kind.plural).inc()
        log.info("written", extra=told)
        for reason in write.reasons:
            severity: EventType = "Warning" if reason.code in ALARMING else "Normal"
            self._recorder.record(write.regarding, severity, reason.code, "Reconciling", reason.message)
        return True

    def _node_write(self, change: NodeChange) -> _Write:
        node = change.node

        def send() -> Awaitable[bool]:
            return pool_writes.change_node(
                self._client,
                node.name,
                node.version,
                labels=change.labels,
                annotations=change.annotations,
                taints=change.taints,
            )

        regarding = {"apiVersion": "v1", "kind": "Node", "name": node.name, "uid": node.uid}
        return _Write(NODES, node.name, node.version, send, regarding, change.reasons)

    def _desired_write(self, change: DesiredChange) -> _Write:
        def send() -> Awaitable[bool]:
            return pool_writes.ask_node(self._client, change.node, change.uid, change.wish.body)

        return _Write(GPU_NODES, change.node, change.version, send)

    def _status_write(self, change: StatusChange) -> _Write:
        def send() -> Awaitable[bool]:
            return pool_writes.write_pool_status(self._client, change.pool, change.status)

        meta = change.pool.metadata
        return _Write(GPU_POOLS, meta.name, meta.resource_version, send, change.pool, change.reasons)

    def _pool_changed(self, change: Change[GPUPool]) -> None:
        self._unread.discard(change.key)
        self._forget(GPU_POOLS, change)
        self._changed.set()

    def _pool_unread(self, key: str, node: str | None) -> None:
        """A pool that exists and does not decode; None: it is gone."""
        if node is None:
            self._unread.discard(key)
        else:
            self._unread.add(key)
        self._changed.set()

    def _node_changed(self, change: Change[objects.Node]) -> None:
        self._forget(NODES, change)
        before = self._views.pop(change.key, None)
        after = None
        if change.new is not None:
            after = self._views[change.key] = node_view(change.new)
        if (
            before is None
            or after is None
            or before != msgspec.structs.replace(after, version=before.version)
        ):
            self._changed.set()

    def _gpu_node_changed(self, change: Change[GPUNode]) -> None:
        self._forget(GPU_NODES, change)
        if change.old is None or change.new is None or watched(change.old) != watched(change.new):
            self._changed.set()

    def _forget(self, kind: Kind, change: Change[Any]) -> None:
        if change.new is None:
            self._written.pop((kind.plural, change.key), None)


class _Write(NamedTuple):
    """One write of a plan: the object in the version that was decided upon, and whom to tell what."""

    kind: Kind
    name: str
    version: str
    send: Callable[[], Awaitable[bool]]
    regarding: Any = None
    reasons: tuple[Reason, ...] = ()
