"""The status that a kubelet reports for a pod: a pure function of its state and of the conditions before.

What changes is compared with what was written last, so that a pod costs two patches from binding to Ready.
Conditions keep their transition time while their status stays; conditions that others own are never named,
and a strategic merge patch leaves them alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from gpufleet.kube import times
from gpufleet.kube.objects import Condition, Pod, ResourceRequirements
from gpufleet.local.simnodes.machines import HOST_ADDRESS
from gpufleet.local.simnodes.podstate import RUNNING, STOPPING, Ended, PodRun, Run, phase_of

OWN_CONDITIONS = ("PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready")
_RESIZE = "PodResizePending"
Reported = tuple[str, str]
"""Status and transition time of a condition."""
_Verdict = tuple[bool, str, str]


@lru_cache(maxsize=1024)
def _stamp_of(second: int) -> str:
    return times.format_time(second)


def _stamp(seconds: float) -> str:
    return _stamp_of(int(seconds))


def pod_status(pod: PodRun, reported: Mapping[str, Reported], now: float) -> dict[str, Any]:
    """The body of `status` for a strategic merge patch; `reported` are our conditions as they stand."""
    status: dict[str, Any] = {
        "observedGeneration": pod.pod.metadata.generation,
        "phase": phase_of(pod),
        "conditions": _conditions(pod, reported, now),
        "hostIP": HOST_ADDRESS,
        "hostIPs": [{"ip": HOST_ADDRESS}],
        "startTime": _stamp(pod.accepted_at),
        "reason": pod.reason or None,
        "message": pod.message or None,
    }
    if pod.rejected:
        return {**status, "conditions": [], "hostIP": None, "hostIPs": None}
    if pod.address and not pod.over:
        status |= {"podIP": pod.address, "podIPs": [{"ip": pod.address}]}
    images = {c.name: c.image for c in (*pod.pod.spec.init_containers, *pod.pod.spec.containers)}
    status["containerStatuses"] = [
        _container(pod, run, images[run.name]) for run in pod.runs if run.role == "app"
    ]
    inits = [_container(pod, run, images[run.name]) for run in pod.runs if run.role != "app"]
    if inits:
        status["initContainerStatuses"] = inits
    return status


def is_settled(pod: PodRun) -> bool:
    """Whether the status should be written at once: nothing better is expected to follow within moments."""
    if pod.over or pod.rejected or pod.resize:
        return True
    if any(run.reason == "CrashLoopBackOff" or run.message for run in pod.runs):
        return True
    return all(run.ready for run in pod.runs if run.role == "app")


def _conditions(pod: PodRun, reported: Mapping[str, Reported], now: float) -> list[dict[str, Any]]:
    present = {condition.type: condition for condition in pod.pod.status.conditions}
    verdicts = _verdicts(pod, present)
    if pod.resize:
        verdicts[_RESIZE] = (True, pod.resize, pod.resize_message)
    generation = pod.pod.metadata.generation
    found = [
        _condition(kind, verdict, reported.get(kind), generation, now) for kind, verdict in verdicts.items()
    ]
    if _RESIZE in present and not pod.resize:
        found.append({"type": _RESIZE, "$patch": "delete"})
    return found


def _verdicts(pod: PodRun, present: Mapping[str, Condition]) -> dict[str, _Verdict]:
    phase = phase_of(pod)
    finished = phase in ("Succeeded", "Failed")
    apps = [run for run in pod.runs if run.role != "init"]
    unready = [run.name for run in apps if not run.ready]
    if finished:
        ready: _Verdict = (False, "PodCompleted" if phase == "Succeeded" else "PodFailed", "")
    elif unready:
        ready = (False, "ContainersNotReady", f"containers with unready status: [{' '.join(unready)}]")
    else:
        ready = (True, "", "")
    gates = [gate.condition_type for gate in pod.pod.spec.readiness_gates]
    closed = [gate for gate in gates if gate not in present or present[gate].status != "True"]
    pod_ready = ready
    if ready[0] and closed:
        pod_ready = (
            False,
            "ReadinessGatesNotReady",
            f"corresponding condition of pod readiness gates {closed}",
        )
    waiting = [run.name for run in pod.runs if run.role != "app" and not (run.started or run.done)]
    initialized: _Verdict = (True, "PodCompleted" if phase == "Succeeded" else "", "")
    if not pod.initialized:
        text = f"containers with incomplete status: [{' '.join(waiting)}]"
        initialized = (False, "ContainersNotInitialized", text)
    sandbox = any(run.state in (RUNNING, STOPPING) or run.last for run in pod.runs) and not pod.over
    return {
        "PodReadyToStartContainers": (sandbox, "", ""),
        "Initialized": initialized,
        "ContainersReady": ready,
        "Ready": pod_ready,
    }


def _condition(
    kind: str, verdict: _Verdict, before: Reported | None, generation: int, now: float
) -> dict[str, Any]:
    holds, reason, message = verdict
    status = "True" if holds else "False"
    kept = before[1] if before is not None and before[0] == status else None
    return {
        "type": kind,
        "status": status,
        "reason": reason or None,
        "message": message or None,
        "lastProbeTime": None,
        "lastTransitionTime": kept or _stamp(now),
        "observedGeneration": generation,
    }


def _container(pod: PodRun, run: Run, image: str) -> dict[str, Any]:
    body: dict[str, Any] = {
        "name": run.name,
        "image": image,
        "imageID": f"gpufleet-sim://{image}" if run.started_at else "",
        "ready": run.ready or (run.role == "init" and run.done and _clean(run.last)),
        "started": run.started,
        "restartCount": run.restarts,
        "state": _state(pod, run),
    }
    if run.started_at:
        body["containerID"] = _container_id(pod, run, run.restarts)
    if run.last is not None and not run.done:
        body["lastState"] = {"terminated": _terminated(pod, run, run.last)}
    granted = pod.resources.get(run.name)
    if granted is not None and run.state in (RUNNING, STOPPING) and (granted.requests or granted.limits):
        body |= _granted(granted)
    return body


def _granted(granted: ResourceRequirements) -> dict[str, Any]:
    resources: dict[str, Any] = {}
    if granted.requests:
        resources["requests"] = granted.requests
    if granted.limits:
        resources["limits"] = granted.limits
    return {"allocatedResources": granted.requests, "resources": resources}


def _clean(ended: Ended | None) -> bool:
    return ended is not None and ended.exit_code == 0


def _state(pod: PodRun, run: Run) -> dict[str, Any]:
    if run.state in (RUNNING, STOPPING) and run.started_at:
        return {"running": {"startedAt": _stamp(run.started_at)}}
    if run.done and run.last is not None:
        return {"terminated": _terminated(pod, run, run.last)}
    waiting = {"reason": run.reason or "ContainerCreating"}
    return {"waiting": waiting | ({"message": run.message} if run.message else {})}


def _terminated(pod: PodRun, run: Run, ended: Ended) -> dict[str, Any]:
    return {
        "exitCode": ended.exit_code,
        "reason": ended.reason,
        "startedAt": _stamp(ended.started_at),
        "finishedAt": _stamp(ended.finished_at),
        "containerID": _container_id(pod, run, ended.attempt),
    }


def _container_id(pod: PodRun, run: Run, attempt: int) -> str:
    return f"gpufleet-sim://{pod.uid}/{run.name}/{attempt}"


def reported_by(pod: Pod) -> dict[str, Reported]:
    """Our conditions as the pod's object has them."""
    return {
        condition.type: (condition.status, condition.last_transition_time or "")
        for condition in pod.status.conditions
        if condition.type in (*OWN_CONDITIONS, _RESIZE)
    }


def reported_in(body: Mapping[str, Any]) -> dict[str, Reported]:
    """Our conditions as a body of `pod_status` has them."""
    return {
        entry["type"]: (entry["status"], entry["lastTransitionTime"])
        for entry in body["conditions"]
        if "$patch" not in entry
    }
