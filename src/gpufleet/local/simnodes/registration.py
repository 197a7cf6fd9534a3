"""How simulated nodes enter the cluster, stay in it, and leave it.

A node is created once, with labels, taints and status in one write. One that exists is adopted: what the
fleet file says is set again, what it said before and does not say any more is removed, and everything that
people or controllers did to the node (cordon, taints, labels) stays. Nodes that left the fleet file are
deleted with their GPUNode. Leases are renewed one after the other, spread over the interval.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube.client import ApiError, Client
from gpufleet.kube.gpunode_writes import create_gpu_node
from gpufleet.kube.informers import Change
from gpufleet.kube.kinds import GPU_NODES, LEASES, NODES
from gpufleet.kube.objects import Node, PartialObject
from gpufleet.kube.times import format_micro_time
from gpufleet.kube.workqueue import WorkQueue
from gpufleet.local.simnodes.machines import (
    FLEET_LABEL,
    LABELS_ANNOTATION,
    TAINTS_ANNOTATION,
    Machine,
    merged_taints,
    node_metadata,
    node_status,
    node_taints,
    numbered,
)
from gpufleet.local.simnodes.node import SimulatedNode
from gpufleet.local.simnodes.reporting import LARGE_FLEET
from gpufleet.local.simnodes.workers import Workers

log = logging.getLogger("gpufleet.local.simnodes")

LEASE_NAMESPACE = "kube-node-lease"
LEASE_DURATION_S = 40
HEARTBEAT_S = 300.0
CONCURRENCY = 32


class Registration:
    """Registers the nodes of a fleet; `port` is that of the kubelet endpoint, set before anything else.

    `current` gives a node's object as it was last seen; `registered` hears of a node that came back.
    """

    def __init__(
        self,
        client: Client,
        nodes: Mapping[str, SimulatedNode],
        current: Callable[[str], Node | None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._nodes = nodes
        self._current = current
        self._given_up: WorkQueue[str] = WorkQueue()
        self._missing: WorkQueue[str] = WorkQueue()
        self.workers = Workers(self._given_up, self._heal, concurrency=CONCURRENCY, what="node status")
        self.returning = Workers(self._missing, self._return, concurrency=CONCURRENCY, what="node")
        self.port = 0
        self.registered: Callable[[str], object] = lambda _: None
        self._clock = clock
        self._renewed: set[str] = set()

    async def register(self, fleet: str) -> None:
        """Bring the cluster's nodes of this fleet to what the fleet file says."""
        listing = await self._client.list(NODES, labels=f"{FLEET_LABEL}={fleet}", type=Node)
        existing = {node.metadata.name: node for node in listing.items}
        ranges = {name: node.spec.pod_cidr for name, node in existing.items()}
        for machine in numbered([node.machine for node in self._nodes.values()], ranges):
            self._nodes[machine.name].machine = machine
        gone = [name for name in existing if name not in self._nodes]
        await _each(gone, self._remove)
        await _each(self._nodes.values(), lambda node: self._enter(node, existing.get(node.name)))
        log.info("nodes are registered", extra={"nodes": len(self._nodes), "removed": len(gone)})

    def node_changed(self, change: Change[Node]) -> None:
        """Report Ready at once when the control plane has given a node up, as a kubelet that is back does."""
        if change.new is not None and change.key in self._nodes and not _is_ready(change.new):
            self._given_up.add(change.key)

    def register_missing(self) -> None:
        """Register the nodes again that were deleted, as kubelets do that are restarted."""
        for name, node in self._nodes.items():
            if not node.present:
                self._missing.add(name)

    async def renew_leases(self) -> None:
        """Renew every node's Lease, each once per interval, until cancelled."""
        interval = 10.0 if len(self._nodes) <= LARGE_FLEET else 20.0
        async with asyncio.TaskGroup() as tasks:
            for part in range(8):
                names = list(self._nodes)[part::8]
                if names:
                    tasks.create_task(self._renew_part(names, interval))

    async def heartbeat(self) -> None:
        """Write the nodes' conditions every few minutes, spread over the interval, until cancelled."""
        while True:
            for name, node in self._nodes.items():
                await asyncio.sleep(HEARTBEAT_S / len(self._nodes) * random.uniform(0.8, 1.2))
                seen = self._current(name)
                if node.present and seen is not None:
                    await _quietly(self._patch_status(node, seen), "heartbeat", name)

    async def _heal(self, name: str) -> None:
        seen = self._current(name)
        if seen is not None and not _is_ready(seen):
            await self._patch_status(self._nodes[name], seen)

    async def _return(self, name: str) -> None:
        node = self._nodes[name]
        if not node.present:
            await self._enter(node, None)
            self.registered(name)
            log.info("a node is registered again", extra={"node": name})

    async def _enter(self, node: SimulatedNode, existing: Node | None) -> None:
        if existing is None:
            existing = await self._create(node)
        else:
            await self._adopt(node, existing)
        node.observe(existing)
        await create_gpu_node(self._client, node.name, node.uid)
        await self._renew(node)

    async def _create(self, node: SimulatedNode) -> Node:
        body = node_metadata(node.machine)
        body["spec"]["taints"] = node_taints(node.machine)
        body["status"] = node_status(node.machine, node.gpus.resources, self.port, self._clock())
        try:
            return await self._client.create(NODES, body, type=Node)
        except ApiError as error:
            if not error.already_exists:
                raise
        raise GpufleetError(
            reason="NodeNotOurs",
            message=f"there is a node {node.name} that does not belong to this fleet",
            hint=f"delete it (kubectl delete node {node.name}) or rename the group",
        )

    async def _adopt(self, node: SimulatedNode, existing: Node) -> None:
        patch = adoption_patch(node.machine, existing)
        if patch:
            await self._client.patch(NODES, node.name, patch, type=PartialObject)
        await self._patch_status(node, existing)

    async def _patch_status(self, node: SimulatedNode, existing: Node) -> None:
        status = node_status(node.machine, node.gpus.resources, self.port, self._clock())
        patch = {"status": status_patch(status, existing)}
        await self._client.patch(
            NODES, node.name, patch, strategy="strategic", subresource="status", type=PartialObject
        )

    async def _remove(self, name: str) -> None:
        await self._client.delete(GPU_NODES, name, missing_ok=True)
        await self._client.delete(NODES, name, missing_ok=True)

    async def _renew_part(self, names: Sequence[str], interval: float) -> None:
        while True:
            begun = time.monotonic()
            for name in names:
                await asyncio.sleep(interval / len(names) * random.uniform(0.5, 0.9))
                node = self._nodes[name]
                if node.present:
                    await _quietly(self._renew(node), "lease", name)
            await asyncio.sleep(max(0.0, interval - (time.monotonic() - begun)))

    async def _renew(self, node: SimulatedNode) -> None:
        renewed = {"renewTime": format_micro_time(self._clock())}
        if node.name in self._renewed:
            try:
                await self._client.patch(
                    LEASES, node.name, {"spec": renewed}, LEASE_NAMESPACE, type=PartialObject
                )
                return
            except ApiError as error:
                if not error.not_found:
                    raise
        spec = {"holderIdentity": node.name, "leaseDurationSeconds": LEASE_DURATION_S, **renewed}
        owner = {"apiVersion": "v1", "kind": "Node", "name": node.name, "uid": node.uid}
        metadata = {"name": node.name, "namespace": LEASE_NAMESPACE, "ownerReferences": [owner]}
        try:
            await self._client.create(LEASES, {"metadata": metadata, "spec": spec}, type=PartialObject)
        except ApiError as error:
            if not error.already_exists:
                raise
            patch = {"metadata": {"ownerReferences": [owner]}, "spec": spec}
            await self._client.patch(LEASES, node.name, patch, LEASE_NAMESPACE, type=PartialObject)
        self._renewed.add(node.name)


def adoption_patch(machine: Machine, existing: Node) -> dict[str, Any]:
    """What must change on a node that exists, as a merge patch; empty when nothing must."""
    body = node_metadata(machine)
    wanted, meta = body["metadata"], existing.metadata
    before = filter(None, meta.annotations.get(LABELS_ANNOTATION, "").split(","))
    labels: dict[str, str | None] = {key: None for key in before if key not in machine.labels}
    labels |= {key: value for key, value in machine.labels.items() if meta.labels.get(key) != value}
    annotations = {k: v for k, v in wanted["annotations"].items() if meta.annotations.get(k) != v}
    patch: dict[str, Any] = {}
    if labels or annotations:
        patch["metadata"] = {"labels": labels, "annotations": annotations}
    present = [
        {key: value for key, value in entry.items() if value}
        for entry in (
            {"key": t.key, "value": t.value, "effect": t.effect, "timeAdded": t.time_added}
            for t in existing.spec.taints
        )
    ]
    taints = merged_taints(machine, present, meta.annotations.get(TAINTS_ANNOTATION, ""))
    if taints is not None:
        patch["spec"] = {"taints": taints}
        patch["metadata"]["resourceVersion"] = meta.resource_version
    if not existing.spec.pod_cidr:
        patch["spec"] = patch.get("spec", {}) | {key: body["spec"][key] for key in ("podCIDR", "podCIDRs")}
    return patch


def status_patch(status: dict[str, Any], existing: Node) -> dict[str, Any]:
    """The node's status over the existing one: conditions keep their times, resources that are gone go."""
    known = {condition.type: condition for condition in existing.status.conditions}
    for condition in status["conditions"]:
        before = known.get(condition["type"])
        if before is not None and before.status == condition["status"] and before.last_transition_time:
            condition["lastTransitionTime"] = before.last_transition_time
    for field in ("capacity", "allocatable"):
        present: Mapping[str, str] = getattr(existing.status, field)
        gone = {name: None for name in present if name not in status[field] and "nvidia.com/" in name}
        status[field] = {**status[field], **gone}
    return status


def _is_ready(node: Node) -> bool:
    return any(c.type == "Ready" and c.status == "True" for c in node.status.conditions)


async def _each(items: Iterable[Any], work: Callable[[Any], Awaitable[None]]) -> None:
    slots = asyncio.Semaphore(CONCURRENCY)

    async def one(item: Any) -> None:
        async with slots:
            await work(item)

    await asyncio.gather(*(one(item) for item in items))


async def _quietly(work: Awaitable[None], what: str, node: str) -> None:
    """Do something that is done again soon: a failure is logged and no more."""
    try:
        await work
    except GpufleetError as error:
        log.warning("%s", error.message, extra={"what": what, "node": node, "reason": error.reason})
