"""The scheduling controller: watch, decide, write.

One loop waits for a change, takes the snapshot, asks `cycle.decide` and hands the plan to the writers.
Bindings and evictions are assumed at once, so the next decision already counts with them; a write that fails
is forgotten and the pod that it was for pauses before it is tried again. Reports about pending pods go
through their own queue with fewer connections: they never slow a binding down, and a report that was
overtaken by a newer one is not written.
"""

from __future__ import annotations

import asyncio
import http
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.plans import Bind, BindVolume, Evict, Nominate, Plan, SelectNode, Unschedulable
from gpufleet.fleet.pods import Pod
from gpufleet.fleet.snapshot import Snapshot
from gpufleet.kube import kinds, objects, writes
from gpufleet.kube.client import Client
from gpufleet.kube.errors import ApiError
from gpufleet.kube.events import EventRecorder
from gpufleet.kube.informers import Informer
from gpufleet.kube.leases import NotLeader
from gpufleet.kube.snapshot import SnapshotBuilder
from gpufleet.scheduling import metrics
from gpufleet.scheduling.cycle import Policy, decide
from gpufleet.scheduling.ledger import Ledger
from gpufleet.scheduling.reports import Report, Reports

log = logging.getLogger("gpufleet.scheduling")

Write = tuple[Pod, Callable[[Any], Awaitable[None]], Any]

DECISION_WRITERS = 48
REPORT_WRITERS = 8
COALESCE_SECONDS = 0.01
REFRESH_SECONDS = 10.0
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0


class SchedulingController:
    """Runs the decisions of one cluster. `policy` is asked before each decision: it may change over time."""

    def __init__(self, client: Client, recorder: EventRecorder, policy: Callable[[], Policy]) -> None:
        self._client = client
        self._recorder = recorder
        self._policy = policy
        self._changed = asyncio.Event()
        self._builder = SnapshotBuilder(self._changed.set)
        self._ledger: Ledger | None = None
        self._informers = [_informer(client, source) for source in self._builder.sources]
        self._writes: asyncio.Queue[Write] = asyncio.Queue()
        self._reports = Reports()
        self._paused: dict[str, tuple[str, float, float]] = {}
        self._decisions = 0
        self.synced = False

    async def run(self, leading: Callable[[], Awaitable[None]]) -> None:
        """Watch at once, decide while `leading` lets us (it returns when this process leads); until
        cancelled.
        """
        async with asyncio.TaskGroup() as tasks:
            for informer in self._informers:
                tasks.create_task(informer.run())
            for informer in self._informers:
                await informer.synced()
            self.synced = True
            log.info("caches synced", extra={"kinds": len(self._informers)})
            await leading()
            for _ in range(DECISION_WRITERS):
                tasks.create_task(self._write_decisions())
            for _ in range(REPORT_WRITERS):
                tasks.create_task(self._write_reports())
            tasks.create_task(self._refresh())
            await self._decide_for_ever()

    async def _decide_for_ever(self) -> None:
        self._changed.set()
        while True:
            await self._changed.wait()
            await asyncio.sleep(COALESCE_SECONDS)
            self._changed.clear()
            started = time.perf_counter()
            snapshot = self._decidable(self._builder.snapshot())
            self._ledger = Ledger.build(snapshot, self._ledger)
            plan = decide(snapshot, self._policy(), self._ledger)
            metrics.DECISION_SECONDS.observe(time.perf_counter() - started)
            self._decisions += 1
            self._carry_out(plan, len(snapshot.nodes))

    def _decidable(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot without the pods that pause after a failed write."""
        now = time.monotonic()
        self._paused = {key: pause for key, pause in self._paused.items() if key in snapshot.unbound}
        self._reports.keep(self._builder)
        waiting = {key for key, (_, until, _) in self._paused.items() if until > now}
        if not waiting:
            return snapshot
        unbound = {key: pod for key, pod in snapshot.unbound.items() if key not in waiting}
        return msgspec.structs.replace(snapshot, unbound=unbound)

    def _carry_out(self, plan: Plan, nodes: int) -> None:
        pending = 0
        for action in plan.actions:
            if decided := _decided(action):
                self._builder.assume(action.pod, **decided)
            match action:
                case Bind():
                    self._writes.put_nowait((action.pod, self._bind, action))
                case Evict():
                    self._writes.put_nowait((action.pod, self._evict, action))
                case Nominate():
                    self._writes.put_nowait((action.pod, self._nominate, action))
                case SelectNode() | BindVolume():
                    self._writes.put_nowait((action.pod, self._provide_volume, action))
                case Unschedulable():
                    pending += 1
                    self._reports.add(Report.of(action, nodes), time.monotonic())
        metrics.PENDING.set(pending)

    async def _bind(self, action: Bind) -> None:
        pod = action.pod
        reasons = "; ".join(reason.message for reason in action.reasons)
        await self._reports.withdraw(pod.key)
        await self._client.bind(pod.namespace, pod.name, uid=pod.uid, node=action.node)
        metrics.BINDS.inc()
        metrics.BIND_DELAY_SECONDS.observe(max(time.time() - pod.created, 0.0))
        self._paused.pop(pod.key, None)
        note = f"assigned {pod.key} to {action.node}: {reasons}"
        self._recorder.record(_reference(pod), "Normal", "Scheduled", "Binding", note)
        log.info("bound", extra=self._about(pod, node=action.node, reasons=reasons))
        if self._reports.was_reported(pod):
            self._reports.add(Report.of_binding(pod, reasons), time.monotonic())

    async def _evict(self, action: Evict) -> None:
        pod = action.pod
        message = action.reasons[0].message
        await writes.evict(self._client, pod, message=message, now=time.time())
        metrics.EVICTIONS.inc()
        self._recorder.record(_reference(pod), "Normal", "Preempted", "Preempting", message)
        log.info("evicted", extra=self._about(pod, node=action.node, beneficiary=action.beneficiary))

    async def _nominate(self, action: Nominate) -> None:
        await writes.nominate(self._client, action.pod, action.node)
        log.info("nominated", extra=self._about(action.pod, node=action.node))

    async def _provide_volume(self, action: SelectNode | BindVolume) -> None:
        if isinstance(action, SelectNode):
            await writes.select_node(self._client, action.claim, action.node)
            log.info("node selected for claim", extra=self._about(action.pod, claim=action.claim))
        else:
            claim = self._builder.claim(action.claim)
            if claim is not None:
                await writes.reserve_volume(self._client, action.volume, claim.key, claim.uid)
                log.info(
                    "volume reserved", extra=self._about(action.pod, claim=claim.key, volume=action.volume)
                )

    async def _write_decisions(self) -> None:
        while True:
            pod, write, action = await self._writes.get()
            try:
                await write(action)
            except NotLeader:
                raise
            except GpufleetError as error:
                metrics.WRITE_ERRORS.inc()
                if await self._took_effect(action, error):
                    log.info("written, though the answer was lost", extra=self._about(pod, error=str(error)))
                    continue
                if decided := _decided(action):
                    self._builder.forget(pod, **decided)
                self._pause(self._builder.pod(action.beneficiary) if isinstance(action, Evict) else pod)
                log.warning("write refused", extra=self._about(pod, error=str(error)))

    async def _took_effect(self, action: Any, error: GpufleetError) -> bool:
        """Whether a write of which the server may have taken notice has done what it should.

        As long as nobody can tell, what was decided stays assumed: a GPU must not be given away while it is
        unknown whether its pod was bound.
        """
        if isinstance(error, ApiError) and error.status < http.HTTPStatus.INTERNAL_SERVER_ERROR:
            return error.not_found and isinstance(action, Evict)
        while _decided(action):
            try:
                now = await self._client.get(
                    kinds.PODS, action.pod.name, action.pod.namespace, type=objects.Pod
                )
            except NotLeader:
                raise
            except ApiError as refused:
                return refused.not_found and isinstance(action, Evict)
            except GpufleetError:
                await asyncio.sleep(FIRST_PAUSE_SECONDS)
                continue
            return _shows(now, action)
        return False

    def _pause(self, pod: Pod | None) -> None:
        """Leave a pod out of decisions for a while; the longer, the more often its writes have failed."""
        if pod is None:
            return
        uid, _, last = self._paused.get(pod.key, (pod.uid, 0.0, 0.0))
        pause = min(max(last * 2, FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS) if uid == pod.uid else 1.0
        self._paused[pod.key] = (pod.uid, time.monotonic() + pause, pause)
        asyncio.get_running_loop().call_later(pause, self._changed.set)

    async def _write_reports(self) -> None:
        while True:
            report = await self._reports.get()
            written = False
            try:
                written = await self._write_report(report)
            except NotLeader:
                raise
            except GpufleetError as error:
                log.warning("report refused", extra=self._about(report.pod, error=str(error)))
            finally:
                self._reports.done(report, written=written)

    async def _write_report(self, report: Report) -> bool:
        now, pod = time.time(), report.pod
        if report.bound:
            await writes.report_bound(self._client, pod, message=report.message, now=now)
            return True
        current = self._builder.pod(pod.key)
        if current is None or current.uid != pod.uid or current.node:
            return False
        await writes.report_pending(
            self._client, pod, reason=report.reason, code=report.code, message=report.message, now=now
        )
        self._recorder.record(_reference(pod), "Warning", "FailedScheduling", "Scheduling", report.message)
        log.info("pending", extra=self._about(pod, code=report.code, reason=report.message))
        return True

    async def _refresh(self) -> None:
        """Decide at least every few seconds, so that held-back reports and elapsed pauses are looked at."""
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            self._changed.set()

    def _about(self, pod: Pod, **fields: object) -> dict[str, object]:
        return {
            "decision": self._decisions,
            "namespace": pod.namespace,
            "pod": pod.name,
            "uid": pod.uid,
            **fields,
        }


def _decided(action: Any) -> dict[str, Any]:
    """What is assumed about the action's pod until the informer shows it."""
    match action:
        case Bind():
            return {"node": action.node}
        case Evict():
            return {"terminating": True}
        case Nominate():
            return {"nominated_node": action.node}
        case _:
            return {}


def _shows(pod: objects.Pod, action: Bind | Evict | Nominate) -> bool:
    """Whether the pod is what the action wanted it to be."""
    same = pod.metadata.uid == action.pod.uid
    match action:
        case Bind():
            return same and pod.spec.node_name == action.node
        case Evict():
            return not same or pod.metadata.deletion_timestamp is not None
        case Nominate():
            return same and pod.status.nominated_node_name == action.node


def _informer(client: Client, source: Any) -> Informer[Any]:
    informer: Informer[Any] = Informer(client, source.kind, source.type)
    informer.subscribe(source.handler, source.unread)
    return informer


def _reference(pod: Pod) -> dict[str, str]:
    return {"apiVersion": "v1", "kind": "Pod", "namespace": pod.namespace, "name": pod.name, "uid": pod.uid}
