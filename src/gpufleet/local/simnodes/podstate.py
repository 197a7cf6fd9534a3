"""What is known about a pod on its node, what can happen to it, and what may have to be done.

A `PodRun` is the state, one `Run` per container; events come from the API server and from the runtime that
plays the containers, instructions go back to them. `podlife` has the rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from gpufleet.kube.objects import Container, Pod, ResourceRequirements

WAITING, STARTING, RUNNING, STOPPING, ENDED = "waiting", "starting", "running", "stopping", "ended"


NOT_MOUNTED = "ContainerCreating"
"""Why a container waits while a volume of its pod cannot be mounted."""


class Ended(msgspec.Struct, frozen=True):
    """How one run of a container ended."""

    exit_code: int
    reason: str
    started_at: float
    finished_at: float
    attempt: int


class Run(msgspec.Struct, frozen=True):
    """One container: `due` is when it may start (again), `attempt` which start of it this is."""

    name: str
    role: str  # init, sidecar or app
    state: str = WAITING
    reason: str = ""
    message: str = ""
    attempt: int = 0
    due: float = 0.0
    backoff: float = 0.0
    started_at: float = 0.0
    started: bool = False
    ready: bool = False
    last: Ended | None = None

    @property
    def live(self) -> bool:
        """Whether a runtime plays the container now."""
        return self.state in (STARTING, RUNNING, STOPPING)

    @property
    def restarts(self) -> int:
        """How often it was restarted: attempts that could not start, or have not yet, do not count."""
        return (
            self.last.attempt if self.last is not None and self.state in (WAITING, STARTING) else self.attempt
        )

    @property
    def done(self) -> bool:
        """Whether the container ended and does not come back."""
        return self.state == ENDED


class PodRun(msgspec.Struct, frozen=True):
    """A pod on its node.

    `stage` is recording (devices not on record yet), active, ending (containers are being stopped) or over.
    `resources` is what each container was granted, which a resize changes; `resize` is why one is pending.
    """

    pod: Pod
    address: str
    accepted_at: float
    runs: tuple[Run, ...]
    first_backoff: float
    stage: str = "recording"
    reason: str = ""
    message: str = ""
    rejected: bool = False
    initialized: bool = False
    resources: Mapping[str, ResourceRequirements] = {}
    resize: str = ""
    resize_message: str = ""

    @property
    def uid(self) -> str:
        """The pod's uid."""
        return self.pod.metadata.uid

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return self.pod.metadata.key

    @property
    def over(self) -> bool:
        """Whether nothing of the pod runs any more and nothing will."""
        return self.stage == "over"

    @property
    def deleting(self) -> bool:
        """Whether the API server waits for the pod's end."""
        return self.pod.metadata.deletion_timestamp is not None

    def run(self, container: str) -> Run | None:
        """The run of a container."""
        return next((run for run in self.runs if run.name == container), None)


class Recorded(msgspec.Struct, frozen=True):
    """The devices of the pod are on record (or it has none): containers may start."""


class Started(msgspec.Struct, frozen=True):
    """A container runs."""

    container: str
    attempt: int


class StartFailed(msgspec.Struct, frozen=True):
    """A container could not be started; it is tried again like one that failed."""

    container: str
    attempt: int
    reason: str
    message: str


class Exited(msgspec.Struct, frozen=True):
    """A container ended. `reason` is empty for Completed or Error by the code."""

    container: str
    attempt: int
    exit_code: int
    reason: str = ""


class Probed(msgspec.Struct, frozen=True):
    """A probe (startup, readiness or liveness) changed its verdict."""

    container: str
    attempt: int
    probe: str
    ok: bool
    message: str = ""


class HookFailed(msgspec.Struct, frozen=True):
    """The preStop hook of a container failed; the container is stopped all the same."""

    container: str
    attempt: int
    message: str


class Changed(msgspec.Struct, frozen=True):
    """The pod's object changed. `resize` is why its new resources cannot be granted now."""

    pod: Pod
    resize: str = ""
    resize_message: str = ""


class Gone(msgspec.Struct, frozen=True):
    """The pod's object is gone: what still runs is killed."""


class Fail(msgspec.Struct, frozen=True):
    """The node gives the pod up, for example because its devices are lost."""

    reason: str
    message: str


class Tick(msgspec.Struct, frozen=True):
    """Time has passed: a pause or the deadline may be over."""


Event = Recorded | Started | StartFailed | Exited | Probed | HookFailed | Changed | Gone | Fail | Tick


class Start(msgspec.Struct, frozen=True):
    """Start a container."""

    container: str
    attempt: int


class Stop(msgspec.Struct, frozen=True):
    """Stop a container within `grace` seconds; 0 kills it."""

    container: str
    attempt: int
    grace: float


class Wake(msgspec.Struct, frozen=True):
    """Send `Tick` at this time."""

    at: float


class Over(msgspec.Struct, frozen=True):
    """Nothing runs any more: devices are free, and a pod that is being deleted may go."""


class Note(msgspec.Struct, frozen=True):
    """An Event for people."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


Instruction = Start | Stop | Wake | Over | Note


def accept(pod: Pod, address: str, now: float, first_backoff: float) -> PodRun:
    """A pod that its node has admitted; it waits for `Recorded`."""
    inits = tuple(
        Run(c.name, "sidecar" if c.restart_policy == "Always" else "init", reason="PodInitializing")
        for c in pod.spec.init_containers
    )
    reason = "PodInitializing" if inits else "ContainerCreating"
    apps = tuple(Run(c.name, "app", reason=reason) for c in pod.spec.containers)
    granted = {c.name: c.resources for c in (*pod.spec.init_containers, *pod.spec.containers)}
    return PodRun(pod, address, now, inits + apps, first_backoff, initialized=not inits, resources=granted)


def reject(pod: Pod, now: float, reason: str, message: str) -> PodRun:
    """A pod that its node has refused: failed, nothing ran."""
    return msgspec.structs.replace(
        accept(pod, "", now, 0.0), stage="over", rejected=True, reason=reason, message=message
    )


def granted(pod: PodRun) -> Pod:
    """The pod's object with the resources that it was granted in its spec."""

    def given(containers: tuple[Container, ...]) -> tuple[Container, ...]:
        known = pod.resources
        return tuple(msgspec.structs.replace(c, resources=known.get(c.name, c.resources)) for c in containers)

    spec = pod.pod.spec
    mine = msgspec.structs.replace(
        spec, containers=given(spec.containers), init_containers=given(spec.init_containers)
    )
    return msgspec.structs.replace(pod.pod, spec=mine)


def container_of(pod: Pod, name: str) -> Container:
    """The container of that name."""
    return next(c for c in (*pod.spec.init_containers, *pod.spec.containers) if c.name == name)


def phase_of(pod: PodRun) -> str:
    """Pending, Running, Succeeded or Failed, by a kubelet's rule."""
    if pod.rejected or (pod.over and pod.reason):
        return "Failed"
    apps = [run for run in pod.runs if run.role == "app"]
    if pod.over:
        clean = all(run.last is not None and run.last.exit_code == 0 and run.done for run in apps)
        return "Succeeded" if clean else "Failed"
    if not pod.initialized or any(run.last is None and run.state in (WAITING, STARTING) for run in apps):
        return "Pending"
    return "Running"
