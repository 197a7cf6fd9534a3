"""Pauses: a pod for which a write was refused is left alone for a while, the longer the more often.

Else the same write would be tried again by every decision. Only a binding that succeeds, or the pod's end,
starts the count anew.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from gpufleet.fleet.pods import Pod
from gpufleet.fleet.reasons import Reason

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0


class _Pause(msgspec.Struct, frozen=True):
    uid: str
    until: float
    seconds: float
    reason: Reason


class Pauses:
    """Who pauses and why. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._pauses: dict[str, _Pause] = {}

    def add(self, pod: Pod, refusal: str, now: float) -> float:
        """Let a pod pause; how long, in seconds."""
        last = self._pauses.get(pod.key)
        seconds = FIRST_PAUSE_SECONDS
        if last is not None and last.uid == pod.uid:
            seconds = min(last.seconds * 2, LONGEST_PAUSE_SECONDS)
        reason = Reason("BindFailed", refusal, pod.key)
        self._pauses[pod.key] = _Pause(pod.uid, now + seconds, seconds, reason)
        return seconds

    def lift(self, pod: Pod) -> None:
        """What was decided about the pod has been written."""
        self._pauses.pop(pod.key, None)

    def keep(self, known: Callable[[str], Pod | None]) -> None:
        """Forget every pod that is gone, or replaced by another of its name."""
        self._pauses = {
            key: pause
            for key, pause in self._pauses.items()
            if (pod := known(key)) is not None and pod.uid == pause.uid
        }

    def reasons(self, now: float) -> dict[str, Reason]:
        """The pods that pause now, by `namespace/name`, and what the server said."""
        return {key: pause.reason for key, pause in self._pauses.items() if pause.until > now}
