"""What plays containers, and the one that only plays them, on the clock of the event loop.

A runtime is told to start, stop, resume and forget; it never makes the caller wait, and answers with events.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Protocol

from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.pods import is_gpu_resource
from gpufleet.local.fleetfile import Simulation
from gpufleet.local.simnodes.modelled import Scene, Timed, running, starting, stopping
from gpufleet.local.simnodes.podstate import Event, PodRun, StartFailed, container_of
from gpufleet.local.simnodes.workload import play_of

log = logging.getLogger("gpufleet.local.simnodes")

Tell = Callable[[str, Event], None]
"""Tells an event to the pod with this uid."""


def start_failed(container: str, attempt: int, error: Exception) -> StartFailed:
    """What is told when a container could not be started, whatever the error was."""
    if isinstance(error, GpufleetError):
        return StartFailed(container, attempt, error.reason, error.message)
    log.error("cannot start a container", exc_info=error, extra={"container": container})
    return StartFailed(container, attempt, "RunContainerError", f"{type(error).__name__}: {error}")


class Runtime(Protocol):
    """What plays containers."""

    def start(self, pod: PodRun, container: str, attempt: int, devices: tuple[str, ...]) -> None:
        """Start a container; `Started` or `StartFailed` follows."""

    def stop(self, pod: PodRun, container: str, attempt: int, grace: float) -> None:
        """Stop a container within `grace` seconds; `Exited` follows. A second call may shorten the grace."""

    def resume(self, pod: PodRun, container: str, devices: tuple[str, ...]) -> None:
        """Take over a container that ran before we did."""

    def forget(self, pod: PodRun) -> None:
        """The pod's object is gone: nothing about it is needed any more."""


class ModelledRuntime:
    """Plays containers on the clock of the event loop."""

    def __init__(self, times: Simulation, tell: Tell, clock: Callable[[], float] = time.time) -> None:
        self._times = times
        self._tell = tell
        self._clock = clock
        self._timers: dict[tuple[str, str], list[asyncio.TimerHandle]] = {}
        self._images: set[tuple[str, str]] = set()

    def start(self, pod: PodRun, container: str, attempt: int, devices: tuple[str, ...]) -> None:
        """Play pull and start; what comes after `Started` is played from then on."""
        scene = self._scene(pod, container, attempt)
        self._images.add((pod.pod.spec.node_name, scene.container.image))
        for timed in starting(scene, self._clock()):
            self._at(pod.uid, container, timed, lambda: self._run(pod.uid, scene, self._clock()))

    def stop(self, pod: PodRun, container: str, attempt: int, grace: float) -> None:
        """Play the end; what else was to happen does not."""
        self._cancel(pod.uid, container)
        self._at(pod.uid, container, stopping(self._scene(pod, container, attempt), grace, self._clock()))

    def resume(self, pod: PodRun, container: str, devices: tuple[str, ...]) -> None:
        """Continue from where the container stands now."""
        run = pod.run(container)
        assert run is not None
        self._run(pod.uid, self._scene(pod, container, run.attempt), run.started_at)

    def forget(self, pod: PodRun) -> None:
        """Cancel what is left."""
        for run in pod.runs:
            self._cancel(pod.uid, run.name)

    def _scene(self, pod: PodRun, name: str, attempt: int) -> Scene:
        run, container = pod.run(name), container_of(pod.pod, name)
        assert run is not None
        return Scene(
            container,
            run.role,
            attempt,
            self._times,
            play_of(pod.pod, self._times.job_seconds),
            (pod.pod.spec.node_name, container.image) not in self._images,
            any(is_gpu_resource(resource) for resource in container.resources.limits),
        )

    def _run(self, uid: str, scene: Scene, started_at: float) -> None:
        for timed in running(scene, started_at):
            self._at(uid, scene.container.name, timed)

    def _at(self, uid: str, container: str, timed: Timed, then: Callable[[], None] | None = None) -> None:
        def fire() -> None:
            self._tell(uid, timed.event)
            if then is not None:
                then()

        delay = max(0.0, timed.at - self._clock())
        handle = asyncio.get_running_loop().call_later(delay, fire)
        self._timers.setdefault((uid, container), []).append(handle)

    def _cancel(self, uid: str, container: str) -> None:
        for handle in self._timers.pop((uid, container), ()):
            handle.cancel()
