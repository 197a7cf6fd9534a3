"""The scheduling controller: watch, decide, hand over, report.

One loop waits for a change, takes the snapshot, asks `cycle.decide` and hands the plan to `writers`. Bindings
and evictions are assumed at once, so the next decision already counts with them. Reports about pending pods
go through their own queue with fewer connections: they never slow a binding down, and a report that was
overtaken by a newer one is not written.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.plans import Action, Cut, Plan, Unschedulable
from gpufleet.kube import writes
from gpufleet.kube.client import Client
from gpufleet.kube.events import EventRecorder
from gpufleet.kube.informers import Informer
from gpufleet.kube.leases import NotLeader
from gpufleet.kube.snapshot import SnapshotBuilder
from gpufleet.scheduling import metrics
from gpufleet.scheduling.cycle import Policy, decide
from gpufleet.scheduling.idle import idle_since, merges
from gpufleet.scheduling.ledger import Ledger
from gpufleet.scheduling.pauses import Pauses
from gpufleet.scheduling.recording import Recording
from gpufleet.scheduling.recordings import Recordings
from gpufleet.scheduling.reports import Report, Reports
from gpufleet.scheduling.writers import Writers, about, reference

log = logging.getLogger("gpufleet.scheduling")

REPORT_WRITERS = 8
COALESCE_SECONDS = 0.01
GATHER_CUTS_SECONDS = 0.2
"""How long pods that need cuts are gathered, so that those that come together are packed together."""
REFRESH_SECONDS = 10.0


class SchedulingController:
    """Runs the decisions of one cluster. `policy` is asked before each decision: it may change over time.
    Decisions are kept in `recordings`, where there are any.
    """

    def __init__(
        self,
        client: Client,
        recorder: EventRecorder,
        policy: Callable[[], Policy],
        recordings: Recordings | None = None,
    ) -> None:
        self._client = client
        self._recorder = recorder
        self._policy = policy
        self._recordings = recordings
        self._changed = asyncio.Event()
        self._builder = SnapshotBuilder(self._changed.set)
        self._ledger: Ledger | None = None
        self._informers = [_informer(client, source) for source in self._builder.sources]
        self._reports = Reports()
        self._pauses = Pauses()
        self._writers = Writers(
            client, recorder, self._builder, self._reports, self._pauses, self.decide_soon
        )
        self._decisions = 0
        self._cuts_due = 0.0
        self._idle: dict[str, float] = {}
        self.synced = False

    def decide_soon(self) -> None:
        """Something that a decision reads has changed."""
        self._changed.set()

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
            tasks.create_task(self._writers.run())
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
            self._decide()

    def _decide(self) -> None:
        started = time.perf_counter()
        self._pauses.keep(self._builder.pod)
        self._reports.keep(self._builder)
        snapshot = self._builder.snapshot()
        self._ledger = Ledger.build(snapshot, self._ledger)
        paused = self._pauses.reasons(time.monotonic())
        policy = self._policy()
        plan = decide(snapshot, policy, self._ledger, paused)
        metrics.DECISION_SECONDS.observe(time.perf_counter() - started)
        metrics.LAST_DECISION.set_to_current_time()
        self._decisions += 1
        if self._recordings is not None:
            self._recordings.add(self._decisions, Recording(snapshot, policy, paused), plan)
        self._carry_out(self._gathered(plan), len(snapshot.nodes))

    def _gathered(self, plan: Plan) -> Plan:
        """The plan, without what is about cuts while those are still gathered."""
        if not any(isinstance(action, Cut) for action in plan.actions):
            self._cuts_due = 0.0
            return plan
        now, loop = time.monotonic(), asyncio.get_running_loop()
        if not self._cuts_due:
            self._cuts_due = now + GATHER_CUTS_SECONDS
            loop.call_later(GATHER_CUTS_SECONDS, self._changed.set)
        if now >= self._cuts_due:
            self._cuts_due = 0.0
            return plan
        return Plan(tuple(action for action in plan.actions if not _about_a_cut(action)))

    def _carry_out(self, plan: Plan, nodes: int) -> None:
        pending = 0
        for action in plan.actions:
            if isinstance(action, Unschedulable):
                pending += 1
                self._reports.add(Report.of(action, nodes), time.monotonic())
            else:
                self._writers.add(action, self._decisions)
        metrics.PENDING.set(pending)

    async def _write_reports(self) -> None:
        while True:
            report = await self._reports.get()
            written = False
            try:
                written = await self._write_report(report)
            except NotLeader:
                raise
            except GpufleetError as error:
                metrics.REPORT_ERRORS.inc()
                told = about(report.pod, self._decisions)
                log.warning("report refused", extra={**told, "error": error.message})
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
            self._client,
            pod,
            reason=report.reason,
            code=report.code,
            message=report.message,
            now=None if current.reported or self._reports.follows_another(report) else now,
        )
        self._recorder.record(reference(pod), "Warning", "FailedScheduling", "Scheduling", report.message)
        told = about(pod, self._decisions)
        log.info("pending", extra={**told, "code": report.code, "reason": report.message})
        return True

    async def _refresh(self) -> None:
        """Decide and close what stayed open at least every few seconds."""
        while True:
            self._close_stories()
            await self._merge_idle()
            await asyncio.sleep(REFRESH_SECONDS)
            self._changed.set()

    async def _merge_idle(self) -> None:
        """Make GPUs whole that were cut for pods which have long gone."""
        snapshot, now = self._builder.snapshot(), time.monotonic()
        self._idle = idle_since(snapshot, self._idle, now)
        for merge in merges(snapshot, self._idle, now):
            await self._writers.merge(merge)

    def _close_stories(self) -> None:
        """Report the binding of pods that the server still shows as pending: who bound them ended, or its
        report was lost.
        """
        for pod in self._builder.observed():
            if pod.reported and pod.node and not pod.finished and not self._reports.is_closed(pod):
                self._reports.add(Report.of_binding(pod, f"bound to {pod.node}"), time.monotonic())


def _about_a_cut(action: Action) -> bool:
    return isinstance(action, Cut) or any(reason.code == "WaitingForCut" for reason in action.reasons)


def _informer(client: Client, source: Any) -> Informer[Any]:
    informer: Informer[Any] = Informer(client, source.kind, source.type, optional=source.optional)
    informer.subscribe(source.handler, source.unread)
    return informer
