"""Bring a fleet up: check everything that can be checked, start the supervisor, wait until it works.

`up` is idempotent. On a running fleet it takes up what changed (fleet file, options, a newer gpufleet), tries
again at once what keeps failing, registers nodes again that were deleted, and nothing else; on one whose
supervisor was killed it starts a new one, which adopts what still runs. When it fails, a fleet that was down
is down again, and what lived lives on with its former settings.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from gpufleet.fleet.errors import GpufleetError
from gpufleet.local import controlplane, kubeconfig, pki
from gpufleet.local.components import (
    API_SERVER,
    CONTROL_PLANE,
    CONTROLLER,
    CONTROLLER_MANAGER,
    DEVICES,
    ETCD,
    SIMULATED_NODES,
    SUPERVISOR,
    supervisor,
)
from gpufleet.local.down import ORDER_OF_END, end_processes
from gpufleet.local.fleetfile import Fleet, load_fleet, parse_fleet
from gpufleet.local.layout import Layout, file_errors, forget, layout_of, prepare, write_atomic
from gpufleet.local.locking import fleet_lock
from gpufleet.local.observed import living_supervisor, observe
from gpufleet.local.processes import Record, end, marked_processes, spawn
from gpufleet.local.progress import PortTakenError, Progress, building
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
    "exporter": SIMULATED_NODES,
    "simulated-nodes-metrics": SIMULATED_NODES,
    "controller-metrics": CONTROLLER,
    "devices-metrics": DEVICES,
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
    """Bring a fleet up and return once it is ready.

    Raises GpufleetError; a fleet that was down is then down again, one that ran runs as before.
    """
    began = time.monotonic()
    layout = layout_of(request.name, environ)
    asked = load_fleet(request.fleet) if request.fleet is not None else None
    _check_limits()
    _check_bridge(request.bridge)
    _check_components(request.extra_args or {})
    with fleet_lock(layout, lambda: progress.say("waiting for another gpufleet command on this fleet")):
        prepare(layout)
        fleet, text = asked or _last_fleet(layout)
        was_running = living_supervisor(layout) is not None
        lived = observe(layout).running
        before = _Files.of(layout)
        attempt = _Attempt(layout, request, progress, environ, text, lived)
        try:
            changed = attempt.bring_up(fleet)
        except BaseException:
            if not lived:
                end_processes(layout, lambda _: None)
            before.restore(layout)
            if lived:
                _supervise(layout, environ)
            elif not layout.exists and not any(layout.logs.iterdir()):
                # Nothing was started, so there is nothing to look at or to continue with.
                forget(layout)
            raise
    return Result(layout, fleet, was_running, changed, time.monotonic() - began)


def _last_fleet(layout: Layout) -> tuple[Fleet, str]:
    """The fleet of the last `up`, else the default, and its text."""
    if not layout.fleet_file.exists():
        return load_fleet(DEFAULT_PRESET)
    text = layout.fleet_file.read_text(encoding="utf-8")
    return parse_fleet(text, str(layout.fleet_file)), text


class _Files(msgspec.Struct, frozen=True):
    """What the supervisor starts from, so that a failed change can be taken back."""

    settings: bytes | None
    fleet: bytes | None

    @classmethod
    def of(cls, layout: Layout) -> _Files:
        return cls(_content(layout.settings), _content(layout.fleet_file))

    def restore(self, layout: Layout) -> None:
        for path, content in ((layout.settings, self.settings), (layout.fleet_file, self.fleet)):
            if content is None:
                path.unlink(missing_ok=True)
            elif content != _content(path):
                write_atomic(path, content)
        settings = read_settings(layout)
        if settings is not None:
            kubeconfig.write_all(layout, settings.ports["api-server"])


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


class _Attempt(msgspec.Struct, frozen=True):
    """One `up` under the lock of its fleet, of which something `lived` before or nothing."""

    layout: Layout
    request: Request
    progress: Progress
    environ: Mapping[str, str]
    fleet_text: str
    lived: bool

    def bring_up(self, fleet: Fleet) -> bool:
        """Write what the supervisor reads, start or reload it, wait. Whether anything had to change."""
        programs = self._locate()
        for attempt in range(_ATTEMPTS_AT_PORTS):
            changed = self._write_all(self._settings(programs))
            started = _supervise(self.layout, self.environ)
            # The client of Kubernetes takes a while to import; meanwhile the control plane starts.
            from gpufleet.local.readiness import Wait

            wait = Wait(self.layout, self.progress, timeout_s=self.request.timeout_s, supervisor=started)
            try:
                asyncio.run(wait.until_ready(fleet))
            except PortTakenError as taken:
                if attempt == _ATTEMPTS_AT_PORTS - 1:
                    raise
                self.progress.say(f"{taken.message}; choosing others")
                if not self.lived:
                    end_processes(self.layout, lambda _: None)
            else:
                return changed or started is not None
        raise AssertionError("the last attempt returns or raises")

    def _locate(self) -> dict[str, tuple[str, ...]]:
        return controlplane.locate(CONTROL_PLANE, progress=building(self.progress), environ=self.environ)

    def _settings(self, programs: Mapping[str, tuple[str, ...]]) -> Settings:
        """The settings to run with: asked for, else as before; ports that others took are replaced."""
        kept = read_settings(self.layout)
        alive = {component.name for component in observe(self.layout).components if component.pid}
        ports, lost = choose_ports(kept.ports if kept else {}, ours=lambda name: _PORT_OWNERS[name] in alive)
        for name in lost:
            self.progress.say(f"another program uses the port of {name}; it moves to {ports[name]}")
        if "api-server" in lost:
            self.progress.say(f"the kubeconfig {self.layout.kubeconfig} was rewritten for the new port")
        given = {
            "bridge": self.request.bridge,
            "authorization": self.request.authorization,
            "unsafe_no_fsync": self.request.unsafe_no_fsync,
            "extra_args": self.request.extra_args,
        }
        options = msgspec.structs.replace(
            kept.options if kept else Options(), **{key: v for key, v in given.items() if v is not None}
        )
        return Settings(ports, dict(programs), options)

    def _write_all(self, settings: Settings) -> bool:
        """Certificates, kubeconfigs, fleet file and settings; whether any of them is new or different."""
        layout, data = self.layout, self.fleet_text.encode()
        with file_errors(layout.root):
            renewed = pki.ensure(layout.pki, bridge=settings.options.bridge)
            kubeconfig.write_all(layout, settings.ports["api-server"])
            same_fleet = _content(layout.fleet_file) == data
            if not same_fleet:
                write_atomic(layout.fleet_file, data)
        same_settings = read_settings(layout) == settings
        if not same_settings:
            write_settings(layout, settings)
        return bool(renewed) or not same_fleet or not same_settings


def _supervise(layout: Layout, environ: Mapping[str, str]) -> subprocess.Popen[bytes] | None:
    """Make sure that a supervisor of this very gpufleet runs and reads the settings; its process if it is
    new.

    One of another gpufleet, or one whose state somebody removed, is killed: its successor adopts its
    components.
    """
    wanted, running = supervisor(layout), living_supervisor(layout)
    if running is not None and running.fingerprint == wanted.fingerprint():
        os.kill(running.pid, signal.SIGHUP)
        return None
    others = [pid for pid, name in marked_processes(layout).items() if name == SUPERVISOR]
    end([record for pid in others if (record := Record.of(pid))], grace_s=5.0, ask=signal.SIGKILL)
    try:
        return spawn(layout, SUPERVISOR, wanted.argv, environ)
    except OSError as error:
        raise GpufleetError(
            reason="CannotStartProcess",
            message=f"the supervisor could not be started: {str(error.strerror).lower()}",
            hint="the limit on processes or memory may be reached: ulimit -a",
        ) from error


def _check_components(extra_args: Mapping[str, tuple[str, ...]]) -> None:
    unknown = sorted(set(extra_args) - set(ORDER_OF_END))
    if unknown:
        raise GpufleetError(
            reason="UnknownComponent",
            message=f"no such component: {', '.join(unknown)}",
            hint=f"there are {', '.join(reversed(ORDER_OF_END))}",
        )


def _check_bridge(address: str | None) -> None:
    """A bridge address must be one of this machine's, and not loopback, which pods cannot reach."""
    if not address:
        return
    try:
        loopback = ipaddress.ip_address(address).is_loopback
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
            probe.bind((address, 0))
    except (OSError, ValueError) as error:
        raise _bad_bridge(address, f"is no address of this machine: {error}") from error
    if loopback:
        raise _bad_bridge(address, "is loopback, where the API server listens already")


def _bad_bridge(address: str, why: str) -> GpufleetError:
    return GpufleetError(
        reason="BadBridge",
        message=f"--bridge {address} {why}",
        hint="use the address of the bridge that containers are on; ip -brief address shows them",
    )


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
