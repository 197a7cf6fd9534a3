"""Reports about pending pods: which are worth writing, and when.

A report is written when its codes differ from the last one written for the pod; when only numbers in the
message changed, at most every few seconds. The newest report of a pod replaces an older one that waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container

import msgspec

from gpufleet.fleet.plans import Unschedulable
from gpufleet.fleet.pods import Pod
from gpufleet.scheduling.messages import condition_message

SAME_CODES_SECONDS = 5.0
_LONGEST_MESSAGE = 1000


class Report(msgspec.Struct, frozen=True):
    """What the pod's conditions and an Event will say. `reason` is the standard condition reason."""

    pod: Pod
    code: str
    reason: str
    message: str
    codes: tuple[str, ...]

    @classmethod
    def of(cls, action: Unschedulable, nodes: int) -> Report:
        """The report of a decision, in a cluster of `nodes` nodes."""
        code = action.reasons[0].code
        reason = "Unschedulable" if action.helped_by_capacity else code
        message = condition_message(action.reasons, nodes)[:_LONGEST_MESSAGE]
        return cls(action.pod, code, reason, message, tuple(reason.code for reason in action.reasons))


class Reports:
    """The queue of reports, newest per pod, and what was written last."""

    def __init__(self) -> None:
        self._waiting: dict[str, Report] = {}
        self._written: dict[str, tuple[Report, float]] = {}
        self._available = asyncio.Event()

    def add(self, report: Report, now: float) -> None:
        """Queue a report unless the same was written already; `now` in monotonic seconds."""
        key = report.pod.key
        last, time = self._written.get(key, (None, 0.0))
        if last is not None and last.pod.uid == report.pod.uid:
            if last.message == report.message:
                self._waiting.pop(key, None)
                return
            if last.codes == report.codes and now - time < SAME_CODES_SECONDS:
                return
        self._waiting[key] = report
        self._available.set()

    async def get(self) -> Report:
        """The next report to write, oldest pod first; it counts as written from here on."""
        while not self._waiting:
            self._available.clear()
            await self._available.wait()
        key = next(iter(self._waiting))
        report = self._waiting.pop(key)
        self._written[key] = (report, asyncio.get_running_loop().time())
        return report

    def was_reported(self, pod: Pod) -> bool:
        """Whether this very pod was reported as pending."""
        last = self._written.get(pod.key)
        return last is not None and last[0].pod.uid == pod.uid

    def keep(self, pending: Container[str]) -> None:
        """Forget every pod that is not pending any more."""
        self._waiting = {key: report for key, report in self._waiting.items() if key in pending}
        self._written = {key: entry for key, entry in self._written.items() if key in pending}

    def forget(self, key: str) -> None:
        """Forget what was written about a pod: it is bound, gone, or the write failed."""
        self._written.pop(key, None)
        self._waiting.pop(key, None)
