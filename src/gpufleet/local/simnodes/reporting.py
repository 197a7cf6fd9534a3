"""What simulated nodes write: pod statuses, and device records in `GPUNode`.

A record comes before what it records: containers start when their devices stand in GPUNode.status. Records
of one node are gathered for a moment, and a status that is about to change again is held back, so that a pod
costs about two writes from binding to Ready.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from gpufleet.devices.fraction_pods import fraction_condition
from gpufleet.devices.node_report import conditions
from gpufleet.kube.client import ApiError, Client
from gpufleet.kube.cuts import MIG_CONDITION
from gpufleet.kube.gpunode import GPUNodeStatus, GPUResource, StartPhase
from gpufleet.kube.gpunode_writes import write_gpu_node_status
from gpufleet.kube.kinds import NODES, PODS
from gpufleet.kube.objects import PartialObject
from gpufleet.kube.times import format_time
from gpufleet.kube.workqueue import WorkQueue
from gpufleet.local.simnodes import metrics
from gpufleet.local.simnodes.node import SimulatedNode
from gpufleet.local.simnodes.podstate import PodRun, phase_of
from gpufleet.local.simnodes.podstatus import Reported, is_settled, pod_status, reported_by, reported_in
from gpufleet.local.simnodes.workers import Workers

HOLD_BACK_S = 1.5
GATHER_S = 0.04
GATHER_LARGE_S = 0.15
STATUS_WRITERS = 32
LARGE_FLEET = 64
RECORD_WRITERS = 16


class _Written(msgspec.Struct, frozen=True):
    """What a pod's status was last said to be, from which state; the digest tells whether it changed."""

    run: PodRun
    digest: int
    reported: Mapping[str, Reported]


class StatusWriter:
    """Writes the status of pods; `lookup` finds a pod by uid."""

    def __init__(
        self,
        client: Client,
        lookup: Callable[[str], PodRun | None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._lookup = lookup
        self._clock = clock
        self._queue: WorkQueue[str] = WorkQueue()
        self._written: dict[str, _Written] = {}
        self.workers = Workers(self._queue, self._write, concurrency=STATUS_WRITERS, what="pod status")

    def changed(self, run: PodRun, *, patient: bool) -> None:
        """Write the pod's status, at once or (`patient`) after it had a moment to settle."""
        if run.stage == "recording" and not run.deleting:
            return
        if patient and not is_settled(run):
            self._queue.add_after(run.uid, HOLD_BACK_S)
        else:
            self._queue.add(run.uid)

    def assume(self, run: PodRun) -> None:
        """Take the pod's object to say already what we would write now."""
        reported = reported_by(run.pod)
        body = pod_status(run, reported, self._clock())
        self._written[run.uid] = _Written(run, _digest(body), reported)

    def doubt(self, run: PodRun) -> None:
        """Somebody else changed what we wrote: write it again."""
        if self._written.pop(run.uid, None) is not None:
            self._queue.add(run.uid)

    def forget(self, uid: str) -> None:
        """The pod's object is gone."""
        self._written.pop(uid, None)

    def last_ready(self, uid: str) -> str | None:
        """The status of the condition Ready that was last written."""
        written = self._written.get(uid)
        return written.reported.get("Ready", ("", ""))[0] if written else None

    async def _write(self, uid: str) -> None:
        run = self._lookup(uid)
        if run is None:
            return
        meta = run.pod.metadata
        try:
            await self._patch(run)
            if run.over and run.deleting:
                await self._client.delete(PODS, meta.name, meta.namespace, uid=uid, grace=0, missing_ok=True)
        except ApiError as error:
            if not (error.not_found or error.conflict):
                raise

    async def _patch(self, run: PodRun) -> None:
        """Write the status where it differs from what was written last."""
        before = self._written.get(run.uid)
        if before is not None and before.run is run:
            return
        body = pod_status(run, before.reported if before else reported_by(run.pod), self._clock())
        digest, meta = _digest(body), run.pod.metadata
        if before is None or before.digest != digest:
            patch = {"metadata": {"uid": run.uid}, "status": body}
            await self._client.patch(
                PODS,
                meta.name,
                patch,
                meta.namespace,
                strategy="strategic",
                subresource="status",
                type=PartialObject,
            )
            metrics.STATUS_PATCHES.inc()
            if phase_of(run) == "Running" and (before is None or phase_of(before.run) == "Pending"):
                metrics.POD_START.observe(self._clock() - run.accepted_at)
        self._written[run.uid] = _Written(run, digest, reported_in(body))


def _digest(body: Mapping[str, Any]) -> int:
    return hash(msgspec.json.encode(body))


class RecordWriter:
    """Writes what each node's devices are and who holds them; `recorded(uid)` hears of a pod on record."""

    def __init__(
        self,
        client: Client,
        nodes: Mapping[str, SimulatedNode],
        recorded: Callable[[str], None],
        started: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._nodes = nodes
        self._recorded = recorded
        self._started = started
        self._clock = clock
        large = len(nodes) > LARGE_FLEET
        self._gather_s = GATHER_LARGE_S if large else GATHER_S
        self._queue: WorkQueue[str] = WorkQueue()
        self._last: dict[str, GPUNodeStatus] = {}
        self.workers = Workers(self._queue, self._write, concurrency=RECORD_WRITERS, what="device record")

    def changed(self, node: str) -> None:
        """Write the node's record, together with what else happens in the next moment."""
        self._queue.add_after(node, self._gather_s)

    def refresh(self, node: SimulatedNode) -> None:
        """Read the node's sensors, and write its record if readings have moved."""
        if node.measure() or node.name not in self._last:
            self._queue.add(node.name)

    async def _write(self, name: str) -> None:
        node = self._nodes[name]
        if not node.present:
            return
        pending, status = frozenset(node.recording), self._status(node)
        node.export()
        await write_gpu_node_status(self._client, name, node.uid, status)
        metrics.RECORDS.inc()
        self._last[name] = status
        if node.offered != status.resources:
            await self._offer(node, node.offered, status.resources)
            node.offered = status.resources
        await self._label(node)
        for uid in pending & node.recording:
            node.recording.discard(uid)
            self._recorded(uid)

    async def _label(self, node: SimulatedNode) -> None:
        """Bring the labels that describe the GPUs up to date, as the agent of a node does."""
        labels, known = node.gpus.labels(), node.published
        if labels == known:
            return
        gone: dict[str, str | None] = {key: None for key in known if key not in labels}
        await self._client.patch(
            NODES, node.name, {"metadata": {"labels": gone | labels}}, type=PartialObject
        )
        node.published = labels

    async def _offer(
        self, node: SimulatedNode, before: Iterable[GPUResource], now: Iterable[GPUResource]
    ) -> None:
        """Tell the Node object too, as a kubelet does when a device plugin reports a change of health."""
        gone: dict[str, str | None] = {one.name: None for one in before}
        capacity = gone | {one.name: str(one.capacity) for one in now}
        allocatable = gone | {one.name: str(one.usable) for one in now}
        patch = {"status": {"capacity": capacity, "allocatable": allocatable}}
        await self._client.patch(
            NODES, node.name, patch, strategy="strategic", subresource="status", type=PartialObject
        )

    def _status(self, node: SimulatedNode) -> GPUNodeStatus:
        now, last = self._clock(), self._last.get(node.name)
        phases = last.phases if last else _phases(self._started, now)
        problem = node.gpus.mig_problem
        told = (
            ("Ready", True, "AgentReady", "the simulated agent reports"),
            (MIG_CONDITION, not problem, "MigBlocked" if problem else "MigAsAsked", problem),
            fraction_condition(node.fraction_problems()),
        )
        return msgspec.structs.replace(
            node.status(),
            observed_generation=node.generation,
            started=format_time(self._started),
            phases=phases,
            conditions=conditions(told, last.conditions if last else (), now),
        )


def _phases(started: float, now: float) -> tuple[StartPhase, ...]:
    times = (("Registered", started), ("DevicesReady", now), ("Ready", now))
    return tuple(StartPhase(name=name, time=format_time(at)) for name, at in times)
