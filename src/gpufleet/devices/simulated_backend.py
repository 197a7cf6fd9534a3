"""The simulated backend: GPUs of any product that do what a timeline says and what their callers ask.

The state moves only when somebody looks: steps that have come due are taken in order, each at its own time.
Calls may come from any thread; a call that hangs by the timeline holds up only its own thread.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from msgspec.structs import replace

from gpufleet.devices import partitions
from gpufleet.devices.backend import REASONS, BackendError, Event, Link, Process, Sample
from gpufleet.devices.boards import links_of
from gpufleet.devices.clocks import Clock
from gpufleet.devices.inventory import GPU, Inventory
from gpufleet.devices.simulated_gpu import SimulatedGPU, advance, make_gpu
from gpufleet.devices.telemetry import Looks, look
from gpufleet.devices.timeline import NOTHING, Call, FailCall, Hang, Step, Timeline
from gpufleet.fleet.products import Product


class SimulatedBackend:
    """The `Backend` of a node that exists only here; times of the timeline begin when it is made."""

    def __init__(
        self, product: Product, inventory: Inventory, clock: Clock, timeline: Timeline = NOTHING
    ) -> None:
        self._clock = clock
        self._began = clock.now()
        self._changed = threading.Condition()
        self._inventory = inventory
        self._links = links_of(product, inventory.gpus)
        self._gpus = {gpu.uuid: make_gpu(gpu, product) for gpu in inventory.gpus}
        self._ahead = deque(timeline.steps)
        self._hangs: list[Hang] = []
        self._failures: list[FailCall] = []
        self._events = deque[Event]()
        self._looks: Looks = {}
        self._closed = False

    def play(self, steps: Sequence[Step]) -> None:
        """Add steps to the timeline; those whose time has passed happen now."""
        with self._changed:
            now = self._advance()
            late = (replace(step, at=max(now, step.at)) for step in steps)
            self._ahead = deque(Timeline((*self._ahead, *late)).steps)
            self._advance()
            self._changed.notify_all()

    def elapsed(self) -> float:
        """Seconds since the backend was made: the time of the timeline."""
        return self._clock.now() - self._began

    def inventory(self) -> Inventory:
        """What the GPUs are now."""
        with self._call("inventory"):
            return replace(self._inventory, gpus=tuple(gpu.shown() for gpu in self._gpus.values()))

    def links(self) -> Mapping[tuple[str, str], Link]:
        """How each pair of GPUs is linked."""
        with self._call("links"):
            return self._links

    def sample(self) -> tuple[Sample, ...]:
        """Readings of every GPU and GPU instance."""
        with self._call("sample") as now:
            seen = look(tuple(self._gpus.values()), now, self._looks)
            self._looks = seen.looks
            return seen.samples

    def processes(self, gpu: str) -> tuple[Process, ...]:
        """The processes that use a GPU."""
        with self._call("processes", gpu):
            return self._well(gpu).processes()

    def wait(self, timeout_s: float) -> tuple[Event, ...]:
        """Events since the last call, as soon as there are any, or none after the timeout."""
        with self._call("wait") as began:
            while True:
                now = self._advance()
                if self._events or self._closed or now >= began + timeout_s:
                    events = tuple(self._events)
                    self._events.clear()
                    return events
                until = min([began + timeout_s, *(step.at for step in list(self._ahead)[:1])])
                self._clock.wait(self._changed, self._began + until)

    def create_gpu_instance(self, gpu: str, profile: str, start: int) -> int:
        """Make a GPU instance at a memory slice; its id."""
        with self._call("create_gpu_instance", gpu) as now:
            changed, made = partitions.with_gpu_instance(self._well(gpu).gpu, profile, start)
            self._set(changed, now)
            return made

    def create_compute_instance(self, gpu: str, instance: int) -> int:
        """Make the compute instance that fills a GPU instance; its id."""
        with self._call("create_compute_instance", gpu) as now:
            changed, made = partitions.with_compute_instance(self._well(gpu).gpu, instance)
            self._set(changed, now)
            return made

    def destroy_compute_instance(self, gpu: str, instance: int, compute: int) -> None:
        """Remove a compute instance that nobody uses."""
        with self._call("destroy_compute_instance", gpu) as now:
            state = self._well(gpu)
            used = state.used_instances()
            self._set(partitions.without_compute_instance(state.gpu, instance, compute, used), now)

    def destroy_gpu_instance(self, gpu: str, instance: int) -> None:
        """Remove a GPU instance without compute instances."""
        with self._call("destroy_gpu_instance", gpu) as now:
            self._set(partitions.without_gpu_instance(self._well(gpu).gpu, instance), now)

    def set_mig_mode(self, gpu: str, on: bool) -> bool:
        """Switch MIG mode; whether it is effective at once, without a reset of the GPU."""
        with self._call("set_mig_mode", gpu) as now:
            state = self._well(gpu)
            changed = partitions.with_mode(state.gpu, on, in_use=bool(state.processes()))
            self._set(changed, now)
            return not changed.mig_pending

    def set_exclusive(self, gpu: str, on: bool) -> None:
        """Let one process at a time use the GPU, or any number."""
        with self._call("set_exclusive", gpu) as now:
            state = self._well(gpu)
            if state.gpu.mig == "on":
                raise _refused("NotSupported", f"{gpu}: it is in MIG mode")
            self._set(replace(state.gpu, exclusive=on), now)

    def recovery_action(self, gpu: str) -> int:
        """What would repair the GPU, 0 for nothing."""
        with self._call("recovery_action", gpu):
            return self._well(gpu).recovery

    def close(self) -> None:
        """End; calls that wait or hang return."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @contextmanager
    def _call(self, name: Call, gpu: str | None = None) -> Iterator[float]:
        """Hold the state for a call that begins now, hangs while it must, and perhaps fails."""
        with self._changed:
            index = self._gpus[gpu].gpu.index if gpu in self._gpus else None
            self._hang(name, index)
            now = self._advance()
            failure = self._failure(name, index)
            if failure is not None:
                raise _refused(failure.reason, f"{name}: {REASONS[failure.reason]} (by the timeline)")
            yield now

    def _hang(self, name: Call, index: int | None) -> None:
        now = self._advance()
        held = [hang.at + hang.seconds for hang in self._hangs if _concerns(hang, name, index)]
        while held and now < max(held) and not self._closed:
            self._clock.wait(self._changed, self._began + max(held))
            now = self._advance()

    def _failure(self, name: Call, index: int | None) -> FailCall | None:
        for place, failure in enumerate(self._failures):
            if _concerns(failure, name, index):
                left = [replace(failure, times=failure.times - 1)] if failure.times > 1 else []
                self._failures[place : place + 1] = left
                return failure
        return None

    def _advance(self) -> float:
        """Take the steps that have come due; the time now."""
        now = self.elapsed()
        due = []
        while self._ahead and self._ahead[0].at <= now:
            step = self._ahead.popleft()
            if isinstance(step, Hang):
                self._hangs.append(step)
            elif isinstance(step, FailCall):
                self._failures.append(step)
            else:
                due.append(step)
        if due:
            gpus, events = advance(tuple(self._gpus.values()), due)
            self._gpus = {gpu.gpu.uuid: gpu for gpu in gpus}
            self._events.extend(events)
        self._hangs = [hang for hang in self._hangs if now < hang.at + hang.seconds]
        return now

    def _found(self, uuid: str) -> SimulatedGPU:
        if uuid not in self._gpus:
            raise _refused("NotFound", f"there is no GPU {uuid}")
        return self._gpus[uuid]

    def _well(self, uuid: str) -> SimulatedGPU:
        state = self._found(uuid)
        if state.gpu.lost:
            raise _refused("GpuLost", f"{uuid}: {state.gpu.lost}")
        return state

    def _set(self, gpu: GPU, now: float) -> None:
        self._gpus[gpu.uuid] = self._gpus[gpu.uuid].with_gpu(gpu, now)
        self._changed.notify_all()


def _concerns(step: Hang | FailCall, name: Call, index: int | None) -> bool:
    return step.call in ("all", name) and (step.gpu is None or step.gpu == index)


def _refused(reason: str, message: str) -> BackendError:
    return BackendError(reason=reason, message=message)
