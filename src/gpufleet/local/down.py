"""End a fleet: gracefully, in the order that loses nothing, and then for certain.

The supervisor ends its components in reverse order of their start when it is asked to. What it leaves,
because it was killed or hangs, is ended here in the same order; last comes everything that carries the
fleet's marker, so that no process and no port outlives `down`.
"""

from __future__ import annotations

from collections.abc import Callable

from gpufleet.fleet.errors import GpufleetError
from gpufleet.local.components import (
    API_SERVER,
    BRIDGE,
    CONTROLLER,
    CONTROLLER_MANAGER,
    DEVICES,
    ETCD,
    SIMULATED_NODES,
    SUPERVISOR,
)
from gpufleet.local.layout import Layout, forget
from gpufleet.local.locking import fleet_lock
from gpufleet.local.observed import living_supervisor, observe, read_supervisor_state
from gpufleet.local.ports import is_listening
from gpufleet.local.processes import Record, end, end_marked, marked_processes, read_record
from gpufleet.local.settings import read_settings

ORDER_OF_END = (BRIDGE, SIMULATED_NODES, DEVICES, CONTROLLER, CONTROLLER_MANAGER, API_SERVER, ETCD)
_SUPERVISOR_GRACE_S = 60.0
_COMPONENT_GRACE_S = 10.0

Say = Callable[[str], object]


def down(layout: Layout, say: Say, *, purge: bool = False) -> bool:
    """End every process of a fleet, and with `purge` forget its state; whether there was anything to do.

    Raises GpufleetError when a process cannot be ended or a port stays held.
    """
    if not layout.root.exists() and not marked_processes(layout):
        return False
    with fleet_lock(layout, lambda: say("waiting for another gpufleet command on this fleet")):
        ended = end_processes(layout, say)
        existed = layout.exists
        # Where somebody removed the folder of a running fleet, hardly more than our lock is in there.
        if purge or not (existed or layout.etcd.exists()):
            forget(layout)
    return ended or (purge and existed)


def end_processes(layout: Layout, say: Say) -> bool:
    """End every process of a fleet whose lock is held, look at its ports; whether there was any process."""
    before = {component.name: component.pid for component in observe(layout).components if component.pid}
    supervisor = living_supervisor(layout)
    if supervisor is not None:
        _end_supervised(layout, supervisor, say)
    for name in ORDER_OF_END:
        record = read_record(layout.record(name))
        if record is not None and record.alive:
            _end_one(name, record, say)
        layout.record(name).unlink(missing_ok=True)
        layout.ready_file(name).unlink(missing_ok=True)
    strays = end_marked(layout, grace_s=3.0)
    if strays:
        say(f"ended {strays} more process{'es' if strays > 1 else ''} of this fleet")
    _check_ports(layout, say)
    return bool(before or strays)


def _end_supervised(layout: Layout, supervisor: Record, say: Say) -> None:
    """Let the supervisor end its components, telling each; a supervisor that hangs is killed."""
    running = {component.name: component.pid for component in observe(layout).components if component.pid}
    running.pop(SUPERVISOR, None)

    def tell() -> None:
        said = read_supervisor_state(layout)
        alive = {component.name for component in said.components if component.pid} if said else set()
        for name in [name for name in reversed(running) if name not in alive]:
            say(f"stopped {name} (pid {running.pop(name)})")

    if end([supervisor], grace_s=_SUPERVISOR_GRACE_S, reap=tell, poll_s=0.05):
        raise _stuck(SUPERVISOR, supervisor)
    tell()
    say(f"stopped {SUPERVISOR} (pid {supervisor.pid})")


def _end_one(name: str, record: Record, say: Say) -> None:
    if end([record], grace_s=_COMPONENT_GRACE_S):
        raise _stuck(name, record)
    say(f"stopped {name} (pid {record.pid})")


def _stuck(name: str, record: Record) -> GpufleetError:
    return GpufleetError(
        reason="ProcessStuck",
        message=f"{name} (pid {record.pid}) did not end, not even by SIGKILL",
        hint=f"see what it waits for: ps -o pid,stat,wchan:30,args -p {record.pid}; then gpufleet down",
    )


def _check_ports(layout: Layout, say: Say) -> None:
    """Our processes are gone, so a port that is still open is somebody else's: say so, `up` will move."""
    settings = read_settings(layout)
    for name, port in settings.ports.items() if settings else ():
        if is_listening(port):
            say(f"port {port} ({name}) is now used by another program; the next up chooses another port")
