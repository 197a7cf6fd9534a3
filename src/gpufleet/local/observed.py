"""What is known about a fleet's processes: the supervisor's last word, and what is true if it is silent.

The supervisor writes its state on every change. A reader believes it only while the supervisor lives; after a
kill -9 the records of the components are checked one by one, so that `status` never reports a dead process as
running.
"""

from __future__ import annotations

import msgspec

from gpufleet.kube.objects import Node
from gpufleet.local.components import SUPERVISOR
from gpufleet.local.layout import Layout
from gpufleet.local.lifecycle import State
from gpufleet.local.processes import Record, read_record


class ComponentState(msgspec.Struct, frozen=True):
    """One component. `answering` is what its last probe said, `failures` how often it ended in a row without
    ever answering; `last_exit` is the exit code of its last process (negative: the signal), None when
    unknown.
    """

    name: str
    pid: int | None
    state: State
    restarts: int = 0
    last_exit: int | None = None
    answering: bool = False
    failures: int = 0
    adopted: bool = False


class SupervisorState(msgspec.Struct, frozen=True):
    """The supervisor itself (its process) and its components in the order of their start.

    `revision` is that of the settings that it has taken up.
    """

    supervisor: Record
    components: tuple[ComponentState, ...]
    revision: str = ""


class FleetState(msgspec.Struct, frozen=True):
    """What is true now. The supervisor is the last of `components`."""

    supervised: bool
    components: tuple[ComponentState, ...]

    @property
    def running(self) -> bool:
        """Whether any process of the fleet is alive."""
        return any(component.pid for component in self.components)

    def component(self, name: str) -> ComponentState | None:
        """The component of a name, or None when this fleet has none."""
        return next((component for component in self.components if component.name == name), None)


def read_supervisor_state(layout: Layout) -> SupervisorState | None:
    """The supervisor's last word, or None when there never was one."""
    try:
        return msgspec.json.decode(layout.supervisor_state.read_bytes(), type=SupervisorState)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def living_supervisor(layout: Layout) -> Record | None:
    """The process of the running supervisor, if it runs."""
    said = read_supervisor_state(layout)
    return said.supervisor if said and said.supervisor.alive else None


def observe(layout: Layout) -> FleetState:
    """The state of a fleet's processes now, with or without a supervisor."""
    said = read_supervisor_state(layout)
    if said is None:
        return FleetState(False, ())
    if said.supervisor.alive:
        supervisor = ComponentState(SUPERVISOR, said.supervisor.pid, "running", answering=True)
        return FleetState(True, (*said.components, supervisor))
    components = tuple(_unsupervised(layout, component) for component in said.components)
    return FleetState(False, (*components, ComponentState(SUPERVISOR, None, "stopped")))


def _unsupervised(layout: Layout, last: ComponentState) -> ComponentState:
    record = read_record(layout.record(last.name))
    alive = record is not None and record.alive
    return msgspec.structs.replace(
        last,
        pid=record.pid if record and alive else None,
        state="running" if alive else "stopped",
        answering=alive and last.answering,
        failures=0,
    )


def node_ready(node: Node) -> bool:
    """Whether the kubelet of a node reports Ready."""
    return any(one.type == "Ready" and one.status == "True" for one in node.status.conditions)
