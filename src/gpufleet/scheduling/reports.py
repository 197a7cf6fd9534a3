"""Reports about pods: which are worth writing, and when.

A report is written when its codes differ from the last one written for the pod; when only numbers in the
message changed, after a pause; of what should be over in a moment, when it lasts. The newest report of a pod
replaces one that waits, and a pod's reports are written one after the other: an older one never overtakes a
newer one, nor the pod's binding. What was written is known here before the informer shows it on the pod
(`Pod.reported`), and after a restart only there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container

import msgspec

from gpufleet.fleet.plans import Unschedulable
from gpufleet.fleet.pods import Pod
from gpufleet.kube.workqueue import WorkQueue
from gpufleet.scheduling.messages import LONGEST, condition_message

SAME_CODES_SECONDS = 5.0
PASSING = frozenset({"WaitingForDevices"})
"""Codes of what is over before anybody has read of it, as a rule."""
PASSING_SECONDS = 5.0
"""How long a decision must have gone on saying so until the pod is told."""


class Report(msgspec.Struct, frozen=True):
    """What the pod's conditions and an Event will say.

    `reason` is the standard condition reason, `bound` says that the pod's story ended well.
    """

    pod: Pod
    code: str
    reason: str
    message: str
    codes: tuple[str, ...]
    bound: bool = False

    @classmethod
    def of(cls, action: Unschedulable, nodes: int) -> Report:
        """The report of a decision, in a cluster of `nodes` nodes."""
        code = action.reasons[0].code
        reason = "Unschedulable" if action.helped_by_capacity else code
        message = condition_message(action.reasons, nodes)
        return cls(action.pod, code, reason, message, tuple(reason.code for reason in action.reasons))

    @classmethod
    def of_binding(cls, pod: Pod, message: str) -> Report:
        """The report that closes the earlier ones."""
        return cls(pod, "Bound", "Bound", message[:LONGEST], ("Bound",), bound=True)


class Reports:
    """The newest report of each pod that waits to be written, and what was written last."""

    def __init__(self) -> None:
        self._queue: WorkQueue[str] = WorkQueue()
        self._waiting: dict[str, Report] = {}
        self._written: dict[str, tuple[Report, float]] = {}
        self._writing: dict[str, asyncio.Event] = {}
        self._before: dict[str, tuple[Report, float]] = {}
        self._passing: dict[str, tuple[Report, float]] = {}

    def add(self, report: Report, now: float) -> None:
        """Queue a report unless the same was written already; `now` in monotonic seconds."""
        key = report.pod.key
        if self._passes(report, now):
            self._waiting.pop(key, None)
            return
        last, time = self._written.get(key, (None, 0.0))
        if last is not None and last.pod.uid == report.pod.uid:
            if last.message == report.message:
                self._waiting.pop(key, None)
                return
            if last.codes == report.codes:
                self._waiting[key] = report
                self._queue.add_after(key, time + SAME_CODES_SECONDS - now)
                return
        self._waiting[key] = report
        self._queue.add(key)

    def _passes(self, report: Report, now: float) -> bool:
        """Whether the report is of something that may be over before it is read."""
        key = report.pod.key
        if report.code not in PASSING:
            self._passing.pop(key, None)
            return False
        first, since = self._passing.get(key, (report, now))
        if first.pod.uid != report.pod.uid:
            since = now
        self._passing[key] = report, since
        return now < since + PASSING_SECONDS

    async def get(self, now: float | None = None) -> Report:
        """The next report to write; whoever gets it calls `done`. It counts as written from here on."""
        while True:
            key = await self._queue.get()
            report = self._waiting.pop(key, None)
            if report is not None:
                self._writing[key] = asyncio.Event()
                if key in self._written:
                    self._before[key] = self._written[key]
                self._written[key] = (report, asyncio.get_running_loop().time() if now is None else now)
                return report
            self._queue.done(key)

    def done(self, report: Report, *, written: bool) -> None:
        """The write has ended. After one that failed the report before it still stands, and the next decision
        may queue this one again.
        """
        key = report.pod.key
        self._writing.pop(key).set()
        before = self._before.pop(key, None)
        if not written and self._written.get(key, (None,))[0] is report:
            del self._written[key]
            if before is not None:
                self._written[key] = before
        self._queue.done(key)

    async def withdraw(self, key: str) -> None:
        """Drop what waits about a pod and wait for what is being written."""
        self._waiting.pop(key, None)
        writing = self._writing.get(key)
        if writing is not None:
            await writing.wait()

    def was_reported(self, pod: Pod) -> bool:
        """Whether this very pod was reported as pending."""
        return _is_pending(self._written.get(pod.key), pod)

    def follows_another(self, report: Report) -> bool:
        """Whether the same pod was reported as pending before `report`, which is being written."""
        return _is_pending(self._before.get(report.pod.key), report.pod)

    def is_closed(self, pod: Pod) -> bool:
        """Whether the binding of this very pod was reported, or waits to be."""
        last = self._waiting.get(pod.key) or self._written.get(pod.key, (None,))[0]
        return last is not None and last.pod.uid == pod.uid and last.bound

    def keep(self, known: Container[str]) -> None:
        """Forget every pod that is gone."""
        self._waiting = {key: report for key, report in self._waiting.items() if key in known}
        self._written = {key: entry for key, entry in self._written.items() if key in known}
        self._passing = {key: entry for key, entry in self._passing.items() if key in known}


def _is_pending(entry: tuple[Report, float] | None, pod: Pod) -> bool:
    return entry is not None and entry[0].pod.uid == pod.uid and not entry[0].bound
