"""The supervisor: a daemon that keeps the components of one fleet running.

It starts each component once what it depends on answers, restarts what dies (`lifecycle` says when), and
writes what it knows on every change. It can itself be killed at any moment: its children live on, and the
next supervisor adopts those that its records name, that answer, and that were started with the same
arguments; it ends the rest. One lock per fleet makes sure that there is never a second one. SIGTERM ends
everything in reverse order of start, SIGHUP reads the settings again, restarts what they change, tries at
once what waits after a failure, and tells the others to look whether something is missing.

    python -m gpufleet.local.supervisor --name NAME
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import msgspec
from prometheus_client import Gauge

from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube.process import configure_logging, serving
from gpufleet.local import lifecycle
from gpufleet.local.components import SUPERVISOR, Component, FileProbe, components
from gpufleet.local.components import supervisor as supervisor_component
from gpufleet.local.layout import Layout, layout_of, write_atomic
from gpufleet.local.lifecycle import Life
from gpufleet.local.locking import take
from gpufleet.local.observed import ComponentState, SupervisorState
from gpufleet.local.probes import answers
from gpufleet.local.processes import (
    COMPONENT_MARKER,
    Record,
    end,
    marked_processes,
    read_record,
    spawn,
    write_record,
)
from gpufleet.local.settings import read_settings

RUNNING = Gauge(
    "gpufleet_component_running",
    "1 while a component of the local fleet runs and answered, else 0.",
    ["component"],
)
RESTARTS = Gauge(
    "gpufleet_component_restarts",
    "How often a component of the local fleet ended by itself since this supervisor started.",
    ["component"],
)

log = logging.getLogger("gpufleet.supervisor")

TICK_S = 0.1
_PROBE_EVERY_S = 5.0
_ADOPTION_PROBE_S = 5.0
_CANNOT_EXECUTE = 127
_REAP_S = 10.0


class Watched:
    """A component with its process: a child of ours, or one that we adopted and whose exit code nobody tells
    us.
    """

    def __init__(self, component: Component) -> None:
        self.component = component
        self.life = Life()
        self.child: subprocess.Popen[bytes] | None = None
        self.record: Record | None = None
        self.adopted = False
        self.probe: Future[bool] | None = None
        self.probe_at = 0.0

    @property
    def name(self) -> str:
        """The component's name."""
        return self.component.name

    def ended(self) -> tuple[bool, int | None]:
        """Whether the process has ended, and with which code if we may know."""
        if self.child is not None:
            code = self.child.poll()
            return code is not None, code
        return self.record is None or not self.record.alive, None

    def state(self) -> ComponentState:
        """What others may know."""
        life = self.life
        return ComponentState(
            self.name,
            life.pid or None,
            life.state,
            life.restarts,
            life.last_exit,
            life.answering,
            life.failures,
            self.adopted and life.pid != 0,
        )


class Supervisor:
    """The components of one fleet. `run` returns after a stop was asked for and everything has ended."""

    def __init__(self, layout: Layout, wanted: tuple[Component, ...], environ: Mapping[str, str]) -> None:
        self._layout = layout
        self._revision = layout.revision()
        self._environ = {key: value for key, value in environ.items() if key not in _NOT_INHERITED}
        self._watched = {component.name: Watched(component) for component in wanted}
        self._threads = ThreadPoolExecutor(max_workers=len(wanted), thread_name_prefix="probe")
        me, code = Record.of(os.getpid()), supervisor_component(layout).fingerprint()
        self._me = msgspec.structs.replace(me, fingerprint=code) if me else None
        self._written: tuple[tuple[ComponentState, ...], str] | None = None
        self._wake = threading.Event()
        self._stop = False
        self._reload = False

    def ready(self) -> bool:
        """Whether every component runs and answers."""
        return all(watched.life.answering for watched in list(self._watched.values()))

    def request_stop(self) -> None:
        """End everything; may be called from any thread."""
        self._stop = True
        self._wake.set()

    def request_reload(self) -> None:
        """Read the settings again; may be called from any thread."""
        self._reload = True
        self._wake.set()

    def run(self) -> None:
        """Adopt or start everything, then keep it running until a stop is requested."""
        self._write_state()
        self._adopt()
        while not self._stop:
            if self._reload:
                self._reload = False
                self._apply_settings()
            self.tick(time.monotonic())
            self._wake.wait(TICK_S)
            self._wake.clear()
        self._end_all()

    def tick(self, now: float) -> None:
        """One look at every component: has it ended, may it start, does it answer."""
        for watched in self._watched.values():
            if watched.life.pid:
                self._notice_end(watched, now)
            if lifecycle.wants_start(watched.life, now) and self._may_start(watched.component):
                self._start(watched, now)
            self._ask(watched, now)
        self._write_state()

    def _notice_end(self, watched: Watched, now: float) -> None:
        ended, code = watched.ended()
        if not ended:
            return
        watched.life = lifecycle.exited(watched.life, code, now)
        self._forget(watched)
        fields = {"exit": code, "restarts": watched.life.restarts, "retry_seconds": watched.life.delay}
        log.warning("component ended", extra={"component": watched.name, **fields})

    def _may_start(self, component: Component) -> bool:
        if component.needs is not None and not component.needs.exists():
            return False
        return all(self._watched[name].life.answering for name in component.after)

    def _start(self, watched: Watched, now: float) -> None:
        component = watched.component
        if isinstance(component.probe, FileProbe):
            component.probe.path.unlink(missing_ok=True)
        try:
            watched.child = spawn(self._layout, component.name, component.argv, self._environ)
        except OSError as error:
            watched.life = lifecycle.exited(lifecycle.started(watched.life, 0, now), _CANNOT_EXECUTE, now)
            with contextlib.suppress(OSError), self._layout.log(component.name).open("a") as output:
                output.write(f"cannot start {component.argv[0]}: {error}\n")
            log.warning(
                "component cannot be started", extra={"component": component.name, "error": str(error)}
            )
            return
        watched.adopted = False
        watched.life = lifecycle.started(watched.life, watched.child.pid, now)
        watched.probe_at = now
        record = Record.of(watched.child.pid)
        if record is not None:
            watched.record = msgspec.structs.replace(record, fingerprint=component.fingerprint())
            self._keep(watched.record, component)
        log.info("component started", extra={"component": component.name, "child": watched.child.pid})

    def _keep(self, record: Record, component: Component) -> None:
        """Without a record (a full disk) a component runs as well; only no later supervisor can adopt it."""
        try:
            write_record(self._layout.record(component.name), record)
        except OSError as error:
            log.warning("no record kept", extra={"component": component.name, "error": str(error)})

    def _ask(self, watched: Watched, now: float) -> None:
        """Take the answer of the probe that is out, and send the next one when it is due."""
        life = watched.life
        if watched.probe is not None:
            if not watched.probe.done():
                return
            watched.life = lifecycle.probed(life, watched.probe.result())
            watched.probe = None
            if watched.life.state == "running" and life.state == "starting":
                fields = {"child": life.pid, "seconds": round(now - life.since, 2)}
                log.info("component ready", extra={"component": watched.name, **fields})
            watched.probe_at = now + (_PROBE_EVERY_S if watched.life.answering else TICK_S)
        elif life.pid and now >= watched.probe_at:
            watched.probe = self._threads.submit(answers, watched.component.probe)

    def _adopt(self) -> None:
        """Take over what a killed supervisor left, in the order of start; end what cannot be taken over."""
        for watched in self._watched.values():
            record = read_record(self._layout.record(watched.name))
            if record is None or not record.alive:
                continue
            same = record.fingerprint == watched.component.fingerprint()
            if same and self._answers_soon(watched.component):
                watched.record, watched.adopted = record, True
                life = lifecycle.started(watched.life, record.pid, time.monotonic())
                watched.life = lifecycle.probed(life, True)
                self._look_again(watched)
                log.info("component adopted", extra={"component": watched.name, "child": record.pid})
        self._write_state()
        kept = {watched.life.pid for watched in self._watched.values()}
        strays = {
            pid: name
            for pid, name in marked_processes(self._layout).items()
            if name and name != SUPERVISOR and pid not in kept
        }
        asked: dict[signal.Signals, list[Record]] = {}
        for pid, name in strays.items():
            log.warning("ending what an earlier supervisor left", extra={"component": name, "child": pid})
            ask = self._watched[name].component.handover if name in self._watched else signal.SIGTERM
            if record := Record.of(pid):
                asked.setdefault(ask, []).append(record)
        for ask, records in asked.items():
            end(records, grace_s=5.0, ask=ask)

    def _answers_soon(self, component: Component) -> bool:
        deadline = time.monotonic() + _ADOPTION_PROBE_S
        while not answers(component.probe, timeout_s=1.0):
            if time.monotonic() > deadline or self._stop:
                return False
            time.sleep(TICK_S)
        return True

    def _apply_settings(self) -> None:
        """Take up changed settings: what was started with others is ended, and what has no process starts."""
        revision, settings = self._layout.revision(), read_settings(self._layout)
        if settings is None:
            return
        wanted = {component.name: component for component in components(self._layout, settings)}
        for name in [name for name in self._watched if name not in wanted]:
            self._end(self._watched.pop(name))
        for name, component in wanted.items():
            watched = self._watched.setdefault(name, Watched(component))
            watched.component = component
            if watched.record is not None and watched.record.fingerprint != component.fingerprint():
                log.info("restarting a component whose settings changed", extra={"component": name})
                self._end(watched, component.handover)
            else:
                self._look_again(watched)
            watched.life = lifecycle.requested(watched.life)
        self._revision = revision

    def _look_again(self, watched: Watched) -> None:
        """Tell a component that runs on that somebody typed `up`. One that does not answer yet may not have
        its handler, and is about to look at everything anyway.
        """
        if watched.component.look_again is not None and watched.life.answering:
            with contextlib.suppress(ProcessLookupError):
                os.kill(watched.life.pid, watched.component.look_again)

    def _end_all(self) -> None:
        for watched in reversed(self._watched.values()):
            self._end(watched)
            self._write_state()
        self._threads.shutdown(wait=False, cancel_futures=True)
        log.info("stopped")

    def _end(self, watched: Watched, ask: signal.Signals = signal.SIGTERM) -> None:
        record, code = watched.record, watched.life.last_exit
        if record is not None:
            end([record], grace_s=watched.component.grace_s, ask=ask, reap=watched.ended)
            if watched.child is not None:
                code = watched.child.wait(_REAP_S)
            fields = {"child": record.pid, "exit": code}
            log.info("component stopped", extra={"component": watched.name, **fields})
        watched.life = lifecycle.stopped(watched.life, code)
        self._forget(watched)

    def _forget(self, watched: Watched) -> None:
        watched.child = watched.record = watched.probe = None
        self._layout.record(watched.name).unlink(missing_ok=True)

    def _write_state(self) -> None:
        states = tuple(watched.state() for watched in self._watched.values())
        if self._me is None or (states, self._revision) == self._written:
            return
        for state in states:
            RUNNING.labels(state.name).set(state.state == "running")
            RESTARTS.labels(state.name).set(state.restarts)
        # A full disk must not end the supervisor: readers then see an older state until there is room again.
        with contextlib.suppress(OSError):
            data = msgspec.json.encode(SupervisorState(self._me, states, self._revision))
            write_atomic(self._layout.supervisor_state, data)
            self._written = (states, self._revision)


_NOT_INHERITED = frozenset({"KUBECONFIG", COMPONENT_MARKER})


def main() -> int:
    """Supervise one fleet until SIGTERM."""
    parser = argparse.ArgumentParser(prog="gpufleet-supervisor", description=__doc__)
    parser.add_argument("--name", required=True)
    layout = layout_of(parser.parse_args().name)
    try:
        settings = read_settings(layout)
        if settings is None:
            sys.stderr.write(f"fleet {layout.name} has no settings; `gpufleet up` writes them\n")
            return 1
        if take(layout.run / "supervisor.lock") is None:
            sys.stderr.write(f"another supervisor of fleet {layout.name} is running\n")
            return 1
    except GpufleetError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    configure_logging()
    supervisor = Supervisor(layout, components(layout, settings), os.environ)
    try:
        asyncio.run(_supervise(supervisor, settings.ports["supervisor-metrics"]))
    except OSError as error:
        sys.stderr.write(f"the supervisor ends: {error}\n")
        return 1
    return 0


async def _supervise(supervisor: Supervisor, port: int) -> None:
    """Supervise in a thread, because waiting for processes blocks, while this loop serves metrics and
    signals.
    """
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, supervisor.request_stop)
    loop.add_signal_handler(signal.SIGHUP, supervisor.request_reload)
    async with serving(port, ready=supervisor.ready):
        await asyncio.to_thread(supervisor.run)


if __name__ == "__main__":
    sys.exit(main())
