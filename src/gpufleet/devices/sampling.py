"""The thread that reads the sensors of a node's GPUs, so that nobody who wants readings waits for the driver.

It asks at an interval and hands on what it got; a call that hangs or fails leaves the last sample standing,
and what tells is its age. Processes are asked for only on GPUs that several containers share. The second
sample follows the first soon, because ratios are between two samples.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection

import msgspec

from gpufleet.devices.attribution import Key, MemoryUse
from gpufleet.devices.backend import Backend, BackendError, Process, Sample
from gpufleet.devices.exporter_text import Source

log = logging.getLogger("gpufleet.devices")

INTERVAL_S = 15.0
SECOND_S = 1.0


class Sampled(msgspec.Struct, frozen=True):
    """One reading of all sensors, and the memory of pods on shared GPUs."""

    samples: tuple[Sample, ...]
    memory: MemoryUse = {}


class Answers:
    """When somebody who is asked answered last, for any thread: `source` is `driver` or `kubelet`."""

    def __init__(self, source: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._clock = clock
        self._at = clock()
        self._duration_s: float | None = None
        self._failures: dict[str, int] = {}

    def answered(self, duration_s: float) -> None:
        """It answered now, after `duration_s`."""
        self._at, self._duration_s = self._clock(), duration_s

    def failed(self, reason: str) -> None:
        """It did not answer, or with an error."""
        self._failures = {**self._failures, reason: self._failures.get(reason, 0) + 1}

    def now(self) -> Source:
        """The account until now; before the first answer the age counts from the beginning."""
        return Source(self._source, self._clock() - self._at, self._duration_s, self._failures)


class Sampler:
    """Samples `backend` and calls `taken`, on its own thread, with every sample.

    `shared` says which GPUs (uuids) several containers share, `owner` which pod (uid) a process belongs to.
    """

    def __init__(
        self,
        backend: Backend,
        taken: Callable[[Sampled], None],
        answers: Answers,
        *,
        interval_s: float = INTERVAL_S,
        shared: Callable[[], Collection[str]] = tuple,
        owner: Callable[[int], str] = lambda _: "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._backend = backend
        self._taken = taken
        self._answers = answers
        self._interval_s = interval_s
        self._shared = shared
        self._owner = owner
        self._clock = clock
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gpu-sampler", daemon=True)

    def start(self) -> None:
        """Begin to sample."""
        self._thread.start()

    def stop(self, within_s: float = 1.0) -> None:
        """End, waiting for a call to the driver that is under way no longer than `within_s`."""
        self._stop.set()
        self._thread.join(within_s)

    def look(self) -> None:
        """Take one sample; a driver that does not answer is counted."""
        began = self._clock()
        try:
            sampled = Sampled(self._backend.sample(), self._memory())
        except BackendError as error:
            self._answers.failed(error.reason)
            log.warning("cannot sample the GPUs: %s", error.message, extra={"reason": error.reason})
            return
        self._answers.answered(self._clock() - began)
        self._taken(sampled)

    def _run(self) -> None:
        pause = min(SECOND_S, self._interval_s)
        while not self._stop.is_set():
            began = self._clock()
            self.look()
            self._stop.wait(max(0.0, began + pause - self._clock()))
            pause = self._interval_s

    def _memory(self) -> MemoryUse:
        used: dict[Key, dict[str, int]] = {}
        for gpu in self._shared():
            for process in self._processes(gpu):
                if pod := self._owner(process.pid):
                    pods = used.setdefault((gpu, process.instance), {})
                    pods[pod] = pods.get(pod, 0) + process.memory_mib
        return used

    def _processes(self, gpu: str) -> tuple[Process, ...]:
        """The processes on a GPU; none where the driver cannot say."""
        try:
            return self._backend.processes(gpu)
        except BackendError:
            return ()
