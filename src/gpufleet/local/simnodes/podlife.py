"""The life of a pod on its node: events in, the next state and instructions out.

The rules are a kubelet's: init containers one after the other, sidecars beside them, then the app containers
together; restarts by policy with a growing pause; an end by deletion or deadline that stops app containers
before sidecars; a final phase. Who plays the containers does not matter here: a runtime is told `Start` and
`Stop` and answers `Started`, `Exited`, `Probed`. No clock, no I/O: time comes with each event.
Source: pkg/kubelet/kuberuntime computePodActions.
"""

from __future__ import annotations

import msgspec

from gpufleet.kube.objects import Container
from gpufleet.local.simnodes.podstate import (
    ENDED,
    NOT_MOUNTED,
    RUNNING,
    STARTING,
    STOPPING,
    WAITING,
    Changed,
    Ended,
    Event,
    Exited,
    Fail,
    Gone,
    HookFailed,
    Instruction,
    Note,
    Over,
    PodRun,
    Probed,
    Recorded,
    Run,
    Start,
    Started,
    StartFailed,
    Stop,
    Tick,
    Wake,
    container_of,
)

MAX_BACKOFF_S = 300.0
BACKOFF_RESET_S = 600.0
DEFAULT_GRACE_S = 30


def step(pod: PodRun, event: Event, now: float) -> tuple[PodRun, tuple[Instruction, ...]]:
    """The state after an event, and what is to be done. Events about an earlier attempt change nothing."""
    out: list[Instruction] = []
    match event:
        case Recorded():
            if pod.stage == "recording":
                pod = msgspec.structs.replace(pod, stage="active")
        case Changed():
            pod = _changed(pod, event, out)
        case Gone():
            pod = _stop_all(_ending(pod, pod.reason, pod.message), 0.0, out)
        case Fail():
            out.append(Note("Warning", event.reason, event.message))
            pod = _ending(pod, event.reason, event.message)
        case Tick():
            pass
        case _:
            run = pod.run(event.container)
            if run is not None and run.attempt == event.attempt and run.live:
                pod = _with(pod, _after(pod, run, event, now, out))
    return _proceed(pod, now, out), tuple(out)


def _after(
    pod: PodRun,
    run: Run,
    event: Started | StartFailed | Exited | Probed | HookFailed,
    now: float,
    out: list[Instruction],
) -> Run:
    match event:
        case Started():
            if run.state != STARTING:
                return run
            container = container_of(pod.pod, run.name)
            started = container.startup_probe is None
            ready = started and container.readiness_probe is None
            return msgspec.structs.replace(
                run, state=RUNNING, reason="", message="", started_at=now, started=started, ready=ready
            )
        case StartFailed():
            mounting = event.reason == NOT_MOUNTED
            what, text = ("FailedMount", "") if mounting else ("Failed", "Error: ")
            out.append(Note("Warning", what, text + event.message))
            pause = max(pod.first_backoff, 1.0)
            return msgspec.structs.replace(
                run, state=WAITING, reason=event.reason, message=event.message, due=now + pause
            )
        case HookFailed():
            out.append(Note("Warning", "FailedPreStopHook", f"PreStopHook failed: {event.message}"))
            return run
        case Exited():
            return _exited(pod, run, event, now, out)
        case Probed():
            return _probed(pod, run, event, out)


def _exited(pod: PodRun, run: Run, event: Exited, now: float, out: list[Instruction]) -> Run:
    reason = event.reason or ("Completed" if event.exit_code == 0 else "Error")
    ended = Ended(event.exit_code, reason, run.started_at or now, now, run.attempt)
    run = msgspec.structs.replace(
        run, state=ENDED, reason="", message="", started=False, ready=False, last=ended
    )
    if pod.stage != "active" or not _comes_back(pod, run):
        return run
    lasted = now - ended.started_at
    pause = run.backoff if lasted < BACKOFF_RESET_S else 0.0
    following = min(MAX_BACKOFF_S, max(pod.first_backoff, 2 * pause))
    run = msgspec.structs.replace(run, state=WAITING, due=now + pause, backoff=following)
    if pause:
        text = f"back-off {pause:.0f}s restarting failed container={run.name} pod={pod.pod.metadata.name}"
        out.append(Note("Warning", "BackOff", f"Back-off restarting failed container {run.name}"))
        run = msgspec.structs.replace(run, reason="CrashLoopBackOff", message=text)
    return run


def _comes_back(pod: PodRun, run: Run) -> bool:
    policy = pod.pod.spec.restart_policy
    if run.role == "sidecar":
        return True
    failed = run.last is not None and run.last.exit_code != 0
    if run.role == "init":
        return failed and policy != "Never"
    return policy == "Always" or (policy == "OnFailure" and failed)


def _probed(pod: PodRun, run: Run, event: Probed, out: list[Instruction]) -> Run:
    if run.state != RUNNING:
        return run
    container = container_of(pod.pod, run.name)
    if not event.ok:
        out.append(Note("Warning", "Unhealthy", f"{event.probe.title()} probe failed: {event.message}"))
    match event.probe, event.ok:
        case "readiness", ok:
            return msgspec.structs.replace(run, ready=ok and run.started)
        case "startup", True:
            return msgspec.structs.replace(run, started=True, ready=container.readiness_probe is None)
        case (("startup" | "liveness"), False):
            out.append(
                Note(
                    "Normal", "Killing", f"Container {run.name} failed {event.probe} probe, will be restarted"
                )
            )
            out.append(Stop(run.name, run.attempt, _probe_grace(pod, container, event.probe)))
            return msgspec.structs.replace(run, state=STOPPING, ready=False)
    return run


def _probe_grace(pod: PodRun, container: Container, kind: str) -> float:
    probe = container.startup_probe if kind == "startup" else container.liveness_probe
    own = probe.termination_grace_period_seconds if probe is not None else None
    return float(own if own is not None else _grace(pod))


def _grace(pod: PodRun) -> float:
    meta, spec = pod.pod.metadata, pod.pod.spec
    if meta.deletion_timestamp is not None and meta.deletion_grace_period_seconds is not None:
        return float(meta.deletion_grace_period_seconds)
    own = spec.termination_grace_period_seconds
    return float(DEFAULT_GRACE_S if own is None else own)


def _changed(pod: PodRun, event: Changed, out: list[Instruction]) -> PodRun:
    before = pod
    pod = msgspec.structs.replace(
        pod, pod=event.pod, resize=event.resize, resize_message=event.resize_message
    )
    if not event.resize and not pod.over:
        spec = event.pod.spec
        granted = {c.name: c.resources for c in (*spec.init_containers, *spec.containers)}
        pod = msgspec.structs.replace(pod, resources=granted)
    if not pod.deleting or pod.over:
        if pod.deleting and not before.deleting:
            out.append(Over())
        return pod
    if not before.deleting:
        out.append(Note("Normal", "Killing", f"Stopping pod {pod.pod.metadata.name}"))
        return _ending(pod, pod.reason, pod.message)
    if _grace(pod) < _grace(before):
        return _stop_all(pod, _grace(pod), out)
    return pod


def _ending(pod: PodRun, reason: str, message: str) -> PodRun:
    if pod.over:
        return pod
    return msgspec.structs.replace(pod, stage="ending", reason=reason, message=message)


def _stop_all(pod: PodRun, grace: float, out: list[Instruction]) -> PodRun:
    for run in pod.runs:
        if run.live:
            out.append(Stop(run.name, run.attempt, grace))
            pod = _with(pod, msgspec.structs.replace(run, state=STOPPING, ready=False))
    return pod


def _proceed(pod: PodRun, now: float, out: list[Instruction]) -> PodRun:
    """Do everything that can be done now."""
    if pod.over or pod.stage == "recording":
        return pod
    if pod.stage == "active" and pod.deleting:
        pod = _ending(pod, pod.reason, pod.message)
    if pod.stage == "active":
        pod = _meet_deadline(pod, now, out)
    if pod.stage == "active":
        pod = _advance(pod, now, out)
    if pod.stage == "ending":
        pod = _wind_down(pod, out)
    due = [run.due for run in pod.runs if run.state == WAITING and run.due > now]
    if pod.stage == "active" and due:
        out.append(Wake(min(due)))
    return pod


def _meet_deadline(pod: PodRun, now: float, out: list[Instruction]) -> PodRun:
    seconds = pod.pod.spec.active_deadline_seconds
    if seconds is None:
        return pod
    deadline = pod.accepted_at + seconds
    if now < deadline:
        out.append(Wake(deadline))
        return pod
    text = "Pod was active on the node longer than the specified deadline"
    out.append(Note("Normal", "DeadlineExceeded", text))
    return _ending(pod, "DeadlineExceeded", text)


def _advance(pod: PodRun, now: float, out: list[Instruction]) -> PodRun:
    for run in pod.runs:
        if run.role == "app":
            continue
        if run.state == WAITING and run.due <= now:
            pod = _start(pod, run, out)
        current = pod.run(run.name)
        assert current is not None
        if current.role == "sidecar" and (current.started or pod.initialized):
            continue
        if current.done:
            if current.last is not None and current.last.exit_code == 0:
                continue
            return _ending(pod, pod.reason, pod.message)
        if not pod.initialized:
            return pod
    if not pod.initialized:
        pod = msgspec.structs.replace(pod, initialized=True)
    for run in pod.runs:
        if run.role == "app" and run.state == WAITING and run.due <= now:
            pod = _start(pod, run, out)
    if all(run.done for run in pod.runs if run.role == "app"):
        return _ending(pod, pod.reason, pod.message)
    return pod


def _start(pod: PodRun, run: Run, out: list[Instruction]) -> PodRun:
    attempt = run.restarts + 1 if run.last is not None else run.attempt
    out.append(Start(run.name, attempt))
    reason = "" if run.last is not None else "ContainerCreating"
    return _with(
        pod, msgspec.structs.replace(run, state=STARTING, attempt=attempt, reason=reason, message="")
    )


def _wind_down(pod: PodRun, out: list[Instruction]) -> PodRun:
    live = [run for run in pod.runs if run.live]
    apps = [run for run in live if run.role != "sidecar"]
    for run in apps or live:
        if run.state != STOPPING:
            out.append(Stop(run.name, run.attempt, _grace(pod)))
            pod = _with(pod, msgspec.structs.replace(run, state=STOPPING, ready=False))
    if not live:
        out.append(Over())
        return msgspec.structs.replace(pod, stage="over")
    return pod


def _with(pod: PodRun, run: Run) -> PodRun:
    runs = tuple(run if other.name == run.name else other for other in pod.runs)
    return msgspec.structs.replace(pod, runs=runs)
