"""Bring a fleet up: check everything that can be checked, start the supervisor, wait until it works.

`up` is idempotent. On a running fleet it takes up what changed (fleet file, options, a newer gpufleet) and
nothing else; on one whose supervisor was killed it starts a new one, which adopts what still runs. When it
fails it ends what it started, and the data of the fleet stays as it was.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping

import msgspec

from gpufleet.fleet.errors import GpufleetError
from gpufleet.local import controlplane, kubeconfig, pki
from gpufleet.local.components import (
    API_SERVER,
    CONTROL_PLANE,
    CONTROLLER,
    CONTROLLER_MANAGER,
    ETCD,
    SIMULATED_NODES,
    SUPERVISOR,
)
from gpufleet.local.down import end_processes
from gpufleet.local.fleetfile import Fleet, load_fleet, parse_fleet
from gpufleet.local.layout import Layout, file_errors, layout_of, prepare, write_atomic
from gpufleet.local.locking import fleet_lock
from gpufleet.local.observed import living_supervisor, observe
from gpufleet.local.processes import spawn
from gpufleet.local.readiness import PortTakenError, Progress, Wait
from gpufleet.local.settings import Options, Settings, choose_ports, read_settings, write_settings

DEFAULT_PRESET = "small"
_FILES_NEEDED = 1024
_FILES_WANTED = 65_536
_PORT_OWNERS = {
    "etcd-client": ETCD,
    "etcd-peer": ETCD,
    "api-server": API_SERVER,
    "controller-manager": CONTROLLER_MANAGER,
    "kubelet": SIMULATED_NODES,
    "simulated-nodes-metrics": SIMULATED_NODES,
    "controller-metrics": CONTROLLER,
    "supervisor-metrics": SUPERVISOR,
}
_ATTEMPTS_AT_PORTS = 3


class Request(msgspec.Struct, frozen=True):
    """What `up` is asked for. None means: as it was before (a new fleet: the default)."""

    name: str
    fleet: str | None = None
    bridge: str | None = None
    authorization: str | None = None
    unsafe_no_fsync: bool | None = None
    extra_args: Mapping[str, tuple[str, ...]] | None = None
    timeout_s: float = 180.0


class Result(msgspec.Struct, frozen=True):
    """A fleet that is ready. `was_running` says that there was a supervisor already; `changed` that it had to
    act.
    """

    layout: Layout
    fleet: Fleet
    was_running: bool
    changed: bool
    seconds: float


def up(request: Request, progress: Progress, environ: Mapping[str, str] = os.environ) -> Result:
    """Bring a fleet up and return once it is ready. Raises GpufleetError, leaving nothing half-running."""
    began = time.monotonic()
    layout = layout_of(request.name, environ)
    fleet, text, source = _chosen_fleet(layout, request)
    _check_limits()
    prepare(layout)
    with fleet_lock(layout, lambda: progress.say("waiting for another gpufleet command on this fleet")):
        programs = _locate(progress, environ)
        progress.work("starting")
        was_running = living_supervisor(layout) is not None
        try:
            changed = _bring_up(layout, request, fleet, text, source, programs, progress)
        except BaseException:
            if not was_running:
                end_processes(layout, lambda _: None)
            raise
    return Result(layout, fleet, was_running, changed, time.monotonic() - began)


def _chosen_fleet(layout: Layout, request: Request) -> tuple[Fleet, str, str]:
    """The fleet to bring up, its text and where that came from: what was asked for, the last one, the
    default.
    """
    if request.fleet is None and layout.fleet_file.exists():
        settings = read_settings(layout)
        text = layout.fleet_file.read_text(encoding="utf-8")
        return parse_fleet(text, str(layout.fleet_file)), text, settings.fleet_source if settings else ""
    source = request.fleet or DEFAULT_PRESET
    fleet, text = load_fleet(source)
    return fleet, text, source


def _locate(progress: Progress, environ: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    def tell(event: controlplane.BuildProgress | str) -> None:
        if isinstance(event, str):
            progress.say(event)
        else:
            progress.work(f"building {event.target}", event.done, event.total)

    return controlplane.locate(CONTROL_PLANE, progress=tell, environ=environ)


def _bring_up(
    layout: Layout,
    request: Request,
    fleet: Fleet,
    text: str,
    source: str,
    programs: Mapping[str, tuple[str, ...]],
    progress: Progress,
) -> bool:
    """Write what the supervisor reads, start or reload it, wait. Whether anything had to change."""
    for attempt in range(_ATTEMPTS_AT_PORTS):
        settings, fresh = _settings(layout, request, source, programs, progress)
        changed = _write_all(layout, settings, text)
        supervisor = _start_or_reload(layout, reload=changed)
        wait = Wait(layout, progress, timeout_s=request.timeout_s, supervisor=supervisor)
        try:
            asyncio.run(wait.until_ready(fleet.nodes))
        except PortTakenError as taken:
            if attempt == _ATTEMPTS_AT_PORTS - 1:
                raise
            progress.say(f"{taken.message}; choosing others")
            end_processes(layout, lambda _: None)
            layout.log(taken.component).unlink(missing_ok=True)
        else:
            return changed or fresh or supervisor is not None
    raise AssertionError("the last attempt returns or raises")


def _settings(
    layout: Layout,
    request: Request,
    source: str,
    programs: Mapping[str, tuple[str, ...]],
    progress: Progress,
) -> tuple[Settings, bool]:
    """The settings to run with, and whether this fleet is new."""
    kept = read_settings(layout)
    alive = {component.name for component in observe(layout).components if component.pid}
    ports, lost = choose_ports(kept.ports if kept else {}, ours=lambda name: _PORT_OWNERS[name] in alive)
    for name in lost:
        progress.say(f"another program uses the port of {name}; it moves to {ports[name]}")
    if "api-server" in lost:
        progress.say(f"the kubeconfig {layout.kubeconfig} was rewritten for the new port")
    before = kept.options if kept else Options()
    given = {
        "bridge": request.bridge,
        "authorization": request.authorization,
        "unsafe_no_fsync": request.unsafe_no_fsync,
        "extra_args": request.extra_args,
    }
    options = msgspec.structs.replace(before, **{k: v for k, v in given.items() if v is not None})
    return Settings(ports, dict(programs), options, source), kept is None


def _write_all(layout: Layout, settings: Settings, fleet_text: str) -> bool:
    """Certificates, kubeconfigs, fleet file and settings; whether any of them is new or different."""
    with file_errors(layout.root):
        renewed = pki.ensure(layout.pki, bridge=settings.options.bridge)
        kubeconfig.write_all(layout, settings.ports["api-server"])
        data = fleet_text.encode()
        same_fleet = layout.fleet_file.exists() and layout.fleet_file.read_bytes() == data
        if not same_fleet:
            write_atomic(layout.fleet_file, data)
    same_settings = read_settings(layout) == settings
    if not same_settings:
        write_settings(layout, settings)
    return bool(renewed) or not same_fleet or not same_settings


def _start_or_reload(layout: Layout, *, reload: bool) -> subprocess.Popen[bytes] | None:
    """Make sure that there is a supervisor and that it knows the settings; its process if it was started
    here.
    """
    running = living_supervisor(layout)
    if running is not None:
        if reload:
            os.kill(running.pid, signal.SIGHUP)
        return None
    argv = [sys.executable, "-P", "-m", "gpufleet.local.supervisor", "--name", layout.name]
    try:
        return spawn(layout, SUPERVISOR, argv, os.environ)
    except OSError as error:
        raise GpufleetError(
            reason="CannotStartProcess",
            message=f"the supervisor could not be started: {str(error.strerror).lower()}",
            hint="the limit on processes or memory may be reached: ulimit -a",
        ) from error


def _check_limits() -> None:
    """Enough open files for the control plane; the soft limit is raised as far as the hard one allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _FILES_NEEDED:
        raise GpufleetError(
            reason="TooFewOpenFiles",
            message=f"this shell allows {hard} open files for each process, a fleet needs {_FILES_NEEDED}",
            hint=f"ulimit -n {_FILES_NEEDED} (the administrator may have to raise the hard limit)",
        )
    wanted = _FILES_WANTED if hard == resource.RLIM_INFINITY else min(hard, _FILES_WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
