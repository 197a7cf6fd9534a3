"""How a pod asks to be played: annotations or labels under `gpufleet.dev/`.

`sim-duration` (30s, 2m, 1h30m) ends its containers after that time, `sim-exit-code` says with which code, and
`runtime: process` runs its commands as real child processes. Without a duration, pods that are meant to
end (restartPolicy Never or OnFailure) end after the fleet's jobSeconds, others run for ever. An
annotation wins over a label. A value that makes no sense is reported and otherwise ignored.
"""

from __future__ import annotations

import math
import re

import msgspec

from gpufleet.kube.objects import Pod

DURATION = "gpufleet.dev/sim-duration"
EXIT_CODE = "gpufleet.dev/sim-exit-code"
RUNTIME = "gpufleet.dev/runtime"

_ACCOUNT_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"
_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?")


class Play(msgspec.Struct, frozen=True):
    """How to play a pod. `duration` in seconds (infinite: it never ends by itself); `problems` for people."""

    process: bool = False
    duration: float = math.inf
    exit_code: int = 0
    problems: tuple[str, ...] = ()


def play_of(pod: Pod, job_seconds: float) -> Play:
    """How `pod` asks to be played; `job_seconds` is the duration of pods that end and do not say when."""
    problems: list[str] = []
    duration = job_seconds if pod.spec.restart_policy != "Always" else math.inf
    text = _value(pod, DURATION)
    if text is not None:
        seconds = parse_duration(text)
        if seconds is None:
            problems.append(f"{DURATION}: {text!r} is no duration; write for example 30s, 2m or 1h30m")
        else:
            duration = seconds
    code = _value(pod, EXIT_CODE) or "0"
    if not code.isdecimal() or int(code) > 255:
        problems.append(f"{EXIT_CODE}: {code!r} is no exit code; write a number from 0 to 255")
        code = "0"
    runtime = _value(pod, RUNTIME)
    if runtime not in (None, "process", "simulated"):
        problems.append(f"{RUNTIME}: {runtime!r} is unknown; write process or simulated")
    return Play(runtime == "process", duration, int(code), tuple(problems))


def unmounted_volumes(pod: Pod) -> tuple[str, ...]:
    """The volumes that the pod's containers mount, without the token that every pod gets."""
    containers = (*pod.spec.init_containers, *pod.spec.containers)
    mounts = (mount for container in containers for mount in container.volume_mounts)
    return tuple(dict.fromkeys(mount.name for mount in mounts if mount.mount_path != _ACCOUNT_PATH))


def parse_duration(text: str) -> float | None:
    """Seconds of `1h2m3.5s` or of a plain number; None for anything else."""
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    match = _DURATION.fullmatch(text)
    if match is None or not text:
        return None
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds


def _value(pod: Pod, key: str) -> str | None:
    return pod.metadata.annotations.get(key, pod.metadata.labels.get(key))
