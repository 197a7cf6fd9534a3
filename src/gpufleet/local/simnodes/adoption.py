"""Adoption: the state of a pod that an earlier process of ours played, read back from the status it wrote."""

from __future__ import annotations

import msgspec

from gpufleet.kube.objects import ContainerStatus, Pod, ResourceRequirements
from gpufleet.kube.times import parse_time
from gpufleet.local.simnodes.podstate import ENDED, RUNNING, Ended, PodRun, Run, accept


def adopt(pod: Pod, now: float, first_backoff: float) -> PodRun:
    """The state of `pod`: containers that its status shows as running are taken to run still.

    It waits for `Recorded`, like a new one. A pod without container statuses that has failed was rejected.
    """
    status = pod.status
    found = {s.name: s for s in (*status.init_container_statuses, *status.container_statuses)}
    fresh = accept(pod, status.pod_ip, parse_time(status.start_time) or now, first_backoff)
    runs = tuple(_adopted(run, found.get(run.name)) for run in fresh.runs)
    initialized = all(_passed(run) for run in runs if run.role != "app")
    resources = {name: _granted(found.get(name), asked) for name, asked in fresh.resources.items()}
    adopted = msgspec.structs.replace(fresh, runs=runs, initialized=initialized, resources=resources)
    if status.phase not in ("Succeeded", "Failed"):
        return adopted
    return msgspec.structs.replace(
        adopted,
        stage="over",
        reason=status.reason,
        message=status.message,
        rejected=status.phase == "Failed" and not status.container_statuses,
    )


def _adopted(run: Run, seen: ContainerStatus | None) -> Run:
    if seen is None:
        return run
    state = seen.state
    ended = state.terminated or seen.last_state.terminated
    last = None
    if ended is not None:
        began, finished = parse_time(ended.started_at), parse_time(ended.finished_at)
        attempt = seen.restart_count - (state.running is not None)
        last = Ended(ended.exit_code, ended.reason, began, finished, attempt)
    run = msgspec.structs.replace(run, attempt=seen.restart_count, last=last)
    if state.running is not None:
        return msgspec.structs.replace(
            run,
            state=RUNNING,
            reason="",
            started_at=parse_time(state.running.started_at),
            started=bool(seen.started) or run.role == "init",
            ready=seen.ready,
        )
    if state.terminated is not None:
        return msgspec.structs.replace(run, state=ENDED, reason="")
    return run


def _granted(seen: ContainerStatus | None, asked: ResourceRequirements) -> ResourceRequirements:
    """What a container was granted: while it runs its status says so, and its spec may ask for others."""
    said = seen.resources if seen is not None else None
    if said is None or (said.requests, said.limits) == (asked.requests, asked.limits):
        return asked
    return said


def _passed(run: Run) -> bool:
    if run.role == "sidecar":
        return run.started
    return run.done and run.last is not None and run.last.exit_code == 0
