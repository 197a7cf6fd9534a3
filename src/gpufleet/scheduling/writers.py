"""Carrying out a plan: what was decided is assumed at once and written by many writers.

An eviction is looked at again right before it is written: if nobody waits for the room any more, nobody ends.
A write that is refused is forgotten, and the pod that it was for pauses. When an answer is lost, the server
is asked until it says whether the write took effect; so long, what was decided stays assumed, because a GPU
must not be given away while it is unknown whether its pod was bound. What follows a write (the Event, the
counts, the report that closes a pod's story) follows it however it became known.
"""

from __future__ import annotations

import asyncio
import http
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.plans import Bind, BindVolume, Cut, Evict, Merge, Nominate, SelectNode
from gpufleet.fleet.pods import Pod
from gpufleet.kube import kinds, writes
from gpufleet.kube.client import Client
from gpufleet.kube.conventions.picked_devices import annotated
from gpufleet.kube.cuts import wish_for, write_wishes
from gpufleet.kube.errors import ApiError
from gpufleet.kube.events import EventRecorder
from gpufleet.kube.gpunode import MigWish
from gpufleet.kube.leases import NotLeader
from gpufleet.kube.snapshot import SnapshotBuilder
from gpufleet.scheduling import metrics
from gpufleet.scheduling.pauses import Pauses
from gpufleet.scheduling.reports import Report, Reports

log = logging.getLogger("gpufleet.scheduling")

WRITERS = 48
LOOK_AGAIN_SECONDS = 1.0

Write = Bind | Evict | Nominate | SelectNode | BindVolume | Cut


class Writers:
    """Writes what decisions want. `wake` is called when a pause is over."""

    def __init__(
        self,
        client: Client,
        recorder: EventRecorder,
        builder: SnapshotBuilder,
        reports: Reports,
        pauses: Pauses,
        wake: Callable[[], None],
    ) -> None:
        self._client = client
        self._recorder = recorder
        self._builder = builder
        self._reports = reports
        self._pauses = pauses
        self._wake = wake
        self._wishes: dict[str, tuple[MigWish, ...]] = {}
        """What is asked of the GPUs of a node and not written yet: one write says all of it."""
        self._queue: asyncio.Queue[tuple[int, Write]] = asyncio.Queue()

    def add(self, action: Write, decision: int) -> None:
        """Assume an action of a decision (by its number) and queue its write."""
        if decided := _decided(action):
            self._builder.assume(action.pod, **decided)
        if isinstance(action, Cut):
            self._wishes[action.node] = self._builder.nodes.assume_wish(
                action.node, wish_for(action.gpu, action.layout)
            )
        self._queue.put_nowait((decision, action))

    async def merge(self, merge: Merge) -> None:
        """Ask for a GPU to be made whole again; what is refused is asked again later."""
        wishes = self._builder.nodes.assume_wish(merge.node, wish_for(merge.gpu, None))
        told = {"node": merge.node, "gpu": merge.gpu, "reasons": merge.reasons[0].message}
        try:
            await write_wishes(self._client, merge.node, wishes)
        except NotLeader:
            raise
        except GpufleetError as error:
            self._builder.nodes.forget_wishes(merge.node)
            log.warning("write refused", extra={**told, "error": error.message})
        else:
            metrics.MERGES.inc()
            log.info("made whole", extra=told)

    async def run(self) -> None:
        """Write until cancelled."""
        metrics.WRITE_QUEUE.set_function(self._queue.qsize)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(WRITERS):
                tasks.create_task(self._write_all())

    async def _write_all(self) -> None:
        while True:
            decision, action = await self._queue.get()
            await self._carry_out(action, about(action.pod, decision))

    async def _carry_out(self, action: Write, told: dict[str, object]) -> None:
        if isinstance(action, Evict) and not self._is_waited_for(action):
            self._builder.forget(action.pod, terminating=True)
            log.info("not evicted: nobody waits for it", extra={**told, "beneficiary": action.beneficiary})
            return
        try:
            await self._write(action)
        except NotLeader:
            raise
        except GpufleetError as error:
            metrics.WRITE_ERRORS.inc()
            if not await self._took_effect(action, error, told):
                self._refused(action, error, told)
                return
            log.info("written, though the answer was lost", extra={**told, "error": error.message})
        self._written(action, told)

    async def _write(self, action: Write) -> None:
        pod = action.pod
        match action:
            case Bind():
                await self._reports.withdraw(pod.key)
                picks = annotated(action.picks, pod.picks)
                await self._client.bind(
                    pod.namespace, pod.name, uid=pod.uid, node=action.node, annotations=picks
                )
            case Evict():
                message = action.reasons[0].message
                await writes.evict(self._client, pod, message=message, now=time.time())
            case Nominate():
                await writes.nominate(self._client, pod, action.node)
            case Cut():
                wishes = self._wishes.pop(action.node, None)
                if wishes is not None:
                    await write_wishes(self._client, action.node, wishes)
            case SelectNode() | BindVolume():
                claim = self._builder.claim(action.claim)
                if claim is None:
                    raise GpufleetError(reason="ClaimNotFound", message=f"claim {action.claim} is gone")
                if isinstance(action, SelectNode):
                    await writes.select_node(self._client, claim, action.node)
                else:
                    await writes.reserve_volume(self._client, action.volume, claim)

    def _written(self, action: Write, told: dict[str, object]) -> None:
        """What follows a write that the server has carried out."""
        pod = action.pod
        match action:
            case Bind():
                self._bound(action, told)
            case Evict():
                message = action.reasons[0].message
                metrics.EVICTIONS.inc()
                self._recorder.record(reference(pod), "Normal", "Preempted", "Preempting", message)
                log.info("evicted", extra={**told, "node": pod.node, "beneficiary": action.beneficiary})
            case Nominate():
                log.info("nominated", extra={**told, "node": action.node})
            case Cut():
                metrics.CUTS.inc()
                log.info("cut", extra={**told, "node": action.node, "reasons": action.reasons[0].message})
            case SelectNode():
                log.info(
                    "node selected for claim", extra={**told, "claim": action.claim, "node": action.node}
                )
            case BindVolume():
                log.info("volume reserved", extra={**told, "claim": action.claim, "volume": action.volume})

    def _bound(self, action: Bind, told: dict[str, object]) -> None:
        pod = action.pod
        reasons = "; ".join(reason.message for reason in action.reasons)
        metrics.BINDS.inc()
        metrics.BIND_DELAY_SECONDS.observe(max(time.time() - pod.created, 0.0))
        self._pauses.lift(pod)
        note = f"assigned {pod.key} to {action.node}: {reasons}"
        self._recorder.record(reference(pod), "Normal", "Scheduled", "Binding", note)
        log.info("bound", extra={**told, "node": action.node, "reasons": reasons})
        current = self._builder.pod(pod.key) or pod
        if self._reports.was_reported(pod) or (current.uid == pod.uid and current.reported):
            self._reports.add(Report.of_binding(pod, reasons), time.monotonic())

    def _is_waited_for(self, action: Evict) -> bool:
        """Whether the pod that an eviction makes room for still waits for that room."""
        pod = self._builder.pod(action.beneficiary)
        return pod is not None and not pod.node and not pod.terminating and pod.nominated_node == action.node

    async def _took_effect(self, action: Write, error: GpufleetError, told: dict[str, object]) -> bool:
        """Whether a write of which the server may have taken notice has done what it should."""
        if isinstance(error, ApiError) and error.status < http.HTTPStatus.INTERNAL_SERVER_ERROR:
            return False
        if not _decided(action):
            return False
        while True:
            try:
                now = await self._client.get(kinds.PODS, action.pod.name, action.pod.namespace)
            except NotLeader:
                raise
            except GpufleetError as unknown:
                if isinstance(unknown, ApiError) and unknown.not_found:
                    return isinstance(action, Evict)
                log.warning("unknown whether it was written", extra={**told, "error": unknown.message})
                await asyncio.sleep(LOOK_AGAIN_SECONDS)
            else:
                return _shows(now, action)

    def _refused(self, action: Write, error: GpufleetError, told: dict[str, object]) -> None:
        if decided := _decided(action):
            self._builder.forget(action.pod, **decided)
        if isinstance(action, Cut):
            self._builder.nodes.forget_wishes(action.node)
        log.warning("write refused", extra={**told, "error": error.message})
        pod = self._builder.pod(action.beneficiary) if isinstance(action, Evict) else action.pod
        if pod is not None:
            pause = self._pauses.add(pod, f"{_described(action)} failed: {error.message}", time.monotonic())
            asyncio.get_running_loop().call_later(pause, self._wake)


def about(pod: Pod, decision: int) -> dict[str, object]:
    """The fields of a log line about a pod and the number of a decision."""
    return {"decision": decision, "namespace": pod.namespace, "pod": pod.name, "uid": pod.uid}


def reference(pod: Pod) -> dict[str, str]:
    """An ObjectReference to a pod."""
    return {"apiVersion": "v1", "kind": "Pod", "namespace": pod.namespace, "name": pod.name, "uid": pod.uid}


def _decided(action: Write) -> dict[str, Any]:
    """What is assumed about the action's pod until the informer shows it."""
    match action:
        case Bind():
            return {"node": action.node, "picks": action.picks}
        case Evict():
            return {"terminating": True}
        case Nominate():
            return {"nominated_node": action.node}
        case SelectNode() | BindVolume() | Cut():
            return {}


def _shows(pod: Mapping[str, Any], action: Write) -> bool:
    """Whether the pod, as the server has it, is what the action wanted it to be.

    It is read as it comes: a pod that gpufleet cannot decode has been bound all the same.
    """
    metadata = pod["metadata"]
    same = metadata["uid"] == action.pod.uid
    match action:
        case Bind():
            return bool(same and pod.get("spec", {}).get("nodeName") == action.node)
        case Evict():
            return not same or "deletionTimestamp" in metadata
        case Nominate():
            return bool(same and pod.get("status", {}).get("nominatedNodeName", "") == action.node)
        case SelectNode() | BindVolume() | Cut():
            return False


def _described(action: Write) -> str:
    match action:
        case Bind():
            return f"binding {action.pod.key} to {action.node}"
        case Evict():
            return f"evicting {action.pod.key} for {action.beneficiary}"
        case Nominate():
            return f"nominating {action.node or 'no node'} for {action.pod.key}"
        case Cut():
            return f"cutting a GPU of {action.node} for {action.pod.key}"
        case SelectNode():
            return f"selecting {action.node} for claim {action.claim}"
        case BindVolume():
            return f"reserving volume {action.volume} for claim {action.claim}"
