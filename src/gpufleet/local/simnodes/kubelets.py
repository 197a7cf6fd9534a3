"""The kubelets of all simulated nodes: what the API server says goes in, instructions are carried out.

One watch serves all nodes. Each pod has a state of `podlife`; here its events are collected, its
instructions executed, and everything that must be written is handed to the writers of `reporting`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping

import msgspec

from gpufleet.devices.device_health import CALM_S
from gpufleet.kube.events import EventRecorder
from gpufleet.kube.gpunode import GPUNode
from gpufleet.kube.informers import Change
from gpufleet.kube.kinds import GPU_NODES
from gpufleet.kube.objects import Node, Pod
from gpufleet.kube.times import parse_time
from gpufleet.local.fleetfile import Simulation
from gpufleet.local.simnodes import metrics
from gpufleet.local.simnodes.adoption import adopt
from gpufleet.local.simnodes.node import SimulatedNode, fault_problems
from gpufleet.local.simnodes.podlife import step
from gpufleet.local.simnodes.podstate import (
    RUNNING,
    Changed,
    Event,
    Fail,
    Gone,
    Instruction,
    Note,
    Over,
    PodRun,
    Recorded,
    Start,
    Stop,
    Tick,
    Wake,
    accept,
    granted,
    reject,
)
from gpufleet.local.simnodes.reporting import RecordWriter, StatusWriter
from gpufleet.local.simnodes.runtimes import Runtime
from gpufleet.local.simnodes.workload import Play, play_of, unmounted_volumes

log = logging.getLogger("gpufleet.local.simnodes")

ACTION = "Playing"
QUIET_ABOVE_NODES = 64
_DOUBT_S = 2.0


class Runtimes(msgspec.Struct, frozen=True):
    """The two ways to play a container."""

    modelled: Runtime
    process: Runtime


class Tracked(msgspec.Struct):
    """A pod that we play. `gone` once its object is, `wake` while a `Tick` is due."""

    run: PodRun
    node: SimulatedNode
    runtime: Runtime
    process: bool
    gone: bool = False
    wake: asyncio.TimerHandle | None = None


class Kubelets:
    """Plays the kubelets of `nodes`. Writers and runtimes are set once, before the first pod comes."""

    def __init__(
        self,
        nodes: Mapping[str, SimulatedNode],
        times: Simulation,
        recorder: EventRecorder,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.nodes = nodes
        self._times = times
        self._recorder = recorder
        self._clock = clock
        self._pods: dict[str, Tracked] = {}
        self._cutting: set[str] = set()
        self._quiet = len(nodes) > QUIET_ABOVE_NODES
        self.statuses: StatusWriter
        self.records: RecordWriter
        self.runtimes: Runtimes

    def lookup(self, uid: str) -> PodRun | None:
        """The state of a pod."""
        tracked = self._pods.get(uid)
        return tracked.run if tracked else None

    def runs(self) -> Iterable[PodRun]:
        """All pods that are played."""
        return (tracked.run for tracked in self._pods.values())

    def find(self, namespace: str, name: str) -> Tracked | None:
        """The newest pod of that name."""
        found = [t for t in self._pods.values() if t.run.key == f"{namespace}/{name}"]
        return next((t for t in found if not t.gone), found[0] if found else None)

    def allocatable(self, node: str) -> Mapping[str, str]:
        """Quantities of a node, for resourceFieldRef."""
        return self.nodes[node].machine.capacity

    def take_over(self, pods: Iterable[Pod], gpu_nodes: Mapping[str, GPUNode]) -> None:
        """Continue after a start: devices on record first, then pods in the order in which they started."""
        now, ours = self._clock(), [pod for pod in pods if pod.spec.node_name in self.nodes]
        playing = {pod.metadata.uid for pod in ours if pod.status.phase not in ("Succeeded", "Failed")}
        for name, node in self.nodes.items():
            gpu_node = gpu_nodes.get(name)
            if gpu_node is not None:
                node.recall(gpu_node)
                self._obey(node, gpu_node)
                recorded = gpu_node.status.allocations
                node.restore(tuple(one for one in recorded if one.pod_uid in playing))
            self.records.changed(name)
        for pod in sorted(ours, key=lambda pod: parse_time(pod.status.start_time) or now):
            self._arrive(pod)
        for tracked in list(self._pods.values()):
            self._reconsider(tracked)

    def pod_changed(self, change: Change[Pod]) -> None:
        """A pod that is bound to some node appeared, changed or went."""
        if change.new is None:
            assert change.old is not None
            self._vanish(change.old.metadata.uid)
        elif change.new.metadata.uid in self._pods:
            self._update(change.new)
        elif change.new.spec.node_name in self.nodes:
            self._arrive(change.new)

    def node_changed(self, change: Change[Node]) -> None:
        """A Node object appeared, changed or went."""
        node = self.nodes.get(change.key)
        if node is not None:
            node.observe(change.new)

    def gpu_node_changed(self, change: Change[GPUNode]) -> None:
        """A GPUNode changed: somebody may ask for a quarantine, or have broken a device."""
        node = self.nodes.get(change.key)
        if node is None:
            return
        seen = node.generation
        if change.new is None or self._obey(node, change.new) or node.generation != seen:
            self.records.changed(node.name)

    def _obey(self, node: SimulatedNode, gpu_node: GPUNode) -> bool:
        before = node.faults
        changed = node.obey(gpu_node)
        if node.faults != before:
            meta = gpu_node.metadata
            reference = {
                "apiVersion": GPU_NODES.api_version,
                "kind": "GPUNode",
                "name": meta.name,
                "uid": meta.uid,
            }
            for problem in fault_problems(node.faults, len(node.gpus.inventory.gpus)):
                self._recorder.record(reference, "Warning", "InvalidSimulation", ACTION, problem)
        self._cut_soon(node)
        if node.gpus.healing:
            asyncio.get_running_loop().call_later(CALM_S, self._look_again, node)
        return changed

    def _cut_soon(self, node: SimulatedNode) -> None:
        """Cut GPUs that the controller asks for, after the time that a driver would take."""
        if node.must_cut and node.name not in self._cutting:
            self._cutting.add(node.name)
            asyncio.get_running_loop().call_later(self._times.mig_seconds, self._cut, node)

    def _cut(self, node: SimulatedNode) -> None:
        self._cutting.discard(node.name)
        if node.cut():
            self.records.changed(node.name)

    def _look_again(self, node: SimulatedNode) -> None:
        if node.look():
            self.records.changed(node.name)

    def tell(self, uid: str, event: Event) -> None:
        """Something happened to a pod."""
        tracked = self._pods.get(uid)
        if tracked is None:
            return
        before = tracked.run
        tracked.run, instructions = step(before, event, self._clock())
        for instruction in instructions:
            self._execute(tracked, instruction)
        if tracked.run is not before or Over() in instructions:
            self._report(tracked)

    def recorded(self, uid: str) -> None:
        """The devices of a pod are on record."""
        self.tell(uid, Recorded())

    def _report(self, tracked: Tracked) -> None:
        if tracked.gone:
            if tracked.run.over:
                self._forget(tracked)
            return
        self.statuses.changed(tracked.run, patient=not tracked.process)

    def _arrive(self, pod: Pod) -> None:
        play = play_of(pod, self._times.job_seconds)
        node = self.nodes[pod.spec.node_name]
        if pod.status.start_time is not None:
            self._continue(pod, node, play)
            return
        now = self._clock()
        refusal = node.admit(pod)
        if refusal is not None:
            metrics.REJECTIONS.labels(refusal.reason).inc()
            fields = {"pod": pod.metadata.key, "node": node.name, "reason": refusal.reason}
            log.info("refused a pod: %s", refusal.message, extra=fields)
            tracked = self._track(reject(pod, now, refusal.reason, refusal.message), node, play)
            self._note(tracked.run, Note("Warning", refusal.reason, refusal.message))
            self._report(tracked)
            return
        tracked = self._track(accept(pod, node.address(pod), now, self._times.backoff_seconds), node, play)
        for problem in play.problems:
            self._note(tracked.run, Note("Warning", "InvalidSimulation", problem))
        if play.process and (volumes := unmounted_volumes(pod)):
            text = f"a process has no file system of its own: {', '.join(volumes)} not mounted"
            self._note(tracked.run, Note("Warning", "VolumesNotMounted", text))
        self._record_or_start(tracked)

    def _continue(self, pod: Pod, node: SimulatedNode, play: Play) -> None:
        now = self._clock()
        tracked = self._track(adopt(pod, now, self._times.backoff_seconds), node, play)
        self.statuses.assume(tracked.run)
        if tracked.run.over:
            if tracked.run.deleting:
                self._report(tracked)
            return
        node.keep(granted(tracked.run))
        node.reserve(pod)
        lost = node.allocate(pod)
        for run in tracked.run.runs:
            if run.state == RUNNING:
                tracked.runtime.resume(tracked.run, run.name, node.held(tracked.run.uid, run.name))
        if lost is not None:
            self.tell(tracked.run.uid, Fail(lost.reason, lost.message))
        else:
            self._record_or_start(tracked)

    def _record_or_start(self, tracked: Tracked) -> None:
        if tracked.run.uid in tracked.node.recording:
            self.records.changed(tracked.node.name)
        else:
            self.tell(tracked.run.uid, Recorded())

    def _track(self, run: PodRun, node: SimulatedNode, play: Play) -> Tracked:
        runtime = self.runtimes.process if play.process else self.runtimes.modelled
        tracked = self._pods[run.uid] = Tracked(run, node, runtime, play.process)
        return tracked

    def _update(self, pod: Pod) -> None:
        tracked = self._pods[pod.metadata.uid]
        known = tracked.run.pod
        if (
            pod.metadata.resource_version == known.metadata.resource_version
            and known.metadata.resource_version
        ):
            return
        resizes = not tracked.run.over and _asks_for_others(pod, tracked.run)
        self.tell(pod.metadata.uid, self._resized(tracked, pod) if resizes else Changed(pod))
        if resizes:
            self._grant_deferred(tracked.node)
        self._check_ready(tracked)

    def _resized(self, tracked: Tracked, pod: Pod) -> Changed:
        refusal = tracked.node.resize_refusal(pod)
        if refusal is None:
            tracked.node.keep(pod)
            return Changed(pod)
        reason = "Deferred" if tracked.node.can_ever_grant(pod) else "Infeasible"
        return Changed(pod, reason, refusal.message)

    def _check_ready(self, tracked: Tracked) -> None:
        """Write the status again when somebody (the node life cycle controller) changed our Ready."""
        written = self.statuses.last_ready(tracked.run.uid)
        seen = next((c.status for c in tracked.run.pod.status.conditions if c.type == "Ready"), None)
        if written is None or seen is None or seen == written:
            return
        version, uid = tracked.run.pod.metadata.resource_version, tracked.run.uid

        def later() -> None:
            current = self.lookup(uid)
            if current is not None and current.pod.metadata.resource_version == version:
                self.statuses.doubt(current)

        asyncio.get_running_loop().call_later(_DOUBT_S, later)

    def _vanish(self, uid: str) -> None:
        tracked = self._pods.get(uid)
        if tracked is None:
            return
        tracked.gone = True
        if tracked.run.over:
            self._forget(tracked)
        else:
            self.tell(uid, Gone())

    def _forget(self, tracked: Tracked) -> None:
        self._pods.pop(tracked.run.uid, None)
        self.statuses.forget(tracked.run.uid)
        tracked.runtime.forget(tracked.run)
        if tracked.wake is not None:
            tracked.wake.cancel()

    def _execute(self, tracked: Tracked, instruction: Instruction) -> None:
        run, node = tracked.run, tracked.node
        match instruction:
            case Start():
                name = instruction.container
                metrics.STARTS.labels("process" if tracked.process else "modelled").inc()
                tracked.runtime.start(run, name, instruction.attempt, node.held(run.uid, name))
            case Stop():
                tracked.runtime.stop(run, instruction.container, instruction.attempt, instruction.grace)
            case Wake():
                self._wake_at(tracked, instruction.at)
            case Note():
                self._note(run, instruction)
            case Over():
                if node.release(run.uid):
                    self.records.changed(node.name)
                    self._cut_soon(node)
                self._grant_deferred(node)

    def _wake_at(self, tracked: Tracked, at: float) -> None:
        """Send a Tick then; an earlier one that is waiting already leads to this one."""
        loop = asyncio.get_running_loop()
        when = loop.time() + max(0.0, at - self._clock())
        if tracked.wake is not None:
            if tracked.wake.when() <= when:
                return
            tracked.wake.cancel()
        tracked.wake = loop.call_at(when, self._tick, tracked)

    def _tick(self, tracked: Tracked) -> None:
        tracked.wake = None
        self.tell(tracked.run.uid, Tick())

    def _grant_deferred(self, node: SimulatedNode) -> None:
        for uid in list(node.pods):
            tracked = self._pods.get(uid)
            if tracked is not None and tracked.run.resize == "Deferred":
                self._reconsider(tracked)

    def _reconsider(self, tracked: Tracked) -> None:
        """Look again whether a pod can have the resources that it asks for."""
        pod = tracked.run.pod
        if not tracked.run.over and _asks_for_others(pod, tracked.run):
            self.tell(tracked.run.uid, self._resized(tracked, pod))

    def _note(self, run: PodRun, note: Note) -> None:
        if note.type == "Normal" and self._quiet:
            return
        reference = {
            "apiVersion": "v1",
            "kind": "Pod",
            "namespace": run.pod.metadata.namespace,
            "name": run.pod.metadata.name,
            "uid": run.uid,
        }
        self._recorder.record(reference, note.type, note.reason, ACTION, note.message)


def _asks_for_others(pod: Pod, run: PodRun) -> bool:
    """Whether the pod's resources are not those that it was granted."""
    containers = (*pod.spec.init_containers, *pod.spec.containers)
    return any(run.resources.get(c.name) != c.resources for c in containers)
