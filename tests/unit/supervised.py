"""Supervisors and components that are small real processes, for the tests of a fleet's life."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gpufleet.local.components import Component, FileProbe
from gpufleet.local.layout import Layout, layout_of, prepare
from gpufleet.local.observed import ComponentState, observe
from gpufleet.local.processes import COMPONENT_MARKER, FLEET_MARKER, Record, end_marked, write_record
from gpufleet.local.supervisor import Supervisor

SERVE = """
import pathlib, signal, sys, time
pathlib.Path(sys.argv[1]).write_text("ready")
time.sleep(120)
"""
IGNORES_TERM = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SERVE
DIES = "import sys; sys.exit('no room for me')"


@contextlib.contextmanager
def prepared(folder: Path) -> Iterator[Layout]:
    """The layout of a fleet of which no process is left in the end."""
    made = layout_of("unit", {"XDG_STATE_HOME": str(folder)})
    prepare(made)
    yield made
    end_marked(made, grace_s=1)


def component(layout: Layout, name: str, code: str = SERVE, **rest: Any) -> Component:
    ready = layout.ready_file(name)
    return Component(name, (sys.executable, "-c", code, str(ready)), FileProbe(ready), **rest)


@contextlib.contextmanager
def supervising(layout: Layout, *components: Component) -> Iterator[Supervisor]:
    supervisor = Supervisor(layout, components, os.environ)
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    try:
        yield supervisor
    finally:
        supervisor.request_stop()
        thread.join(30)
        assert not thread.is_alive()


def wait_for(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


def answering(layout: Layout) -> bool:
    """Whether every component is known to answer."""
    components = observe(layout).components
    return bool(components) and all(one.answering for one in components)


def pid_of(layout: Layout, name: str) -> int:
    found = observe(layout).component(name)
    return (found.pid if found else None) or 0


def state_of(layout: Layout, name: str) -> str:
    found = observe(layout).component(name)
    return found.state if found else ""


def record_of(pid: int) -> Record:
    """The record of a process that is there."""
    record = Record.of(pid)
    assert record is not None
    return record


def found_component(layout: Layout, name: str) -> ComponentState:
    """What is known of a component that exists."""
    found = observe(layout).component(name)
    assert found is not None
    return found


def left_by_a_killed_supervisor(
    layout: Layout, name: str, code: str = SERVE, fingerprint: str = ""
) -> subprocess.Popen[bytes]:
    """A component that runs without supervisor, with its record, as after kill -9."""
    ready = layout.ready_file(name)
    ready.unlink(missing_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(ready)],
        env={**os.environ, FLEET_MARKER: str(layout.root), COMPONENT_MARKER: name},
        start_new_session=True,
    )
    wait_for(ready.exists)
    record = record_of(process.pid)
    mark = fingerprint or component(layout, name, code).fingerprint()
    write_record(layout.record(name), Record(record.pid, record.started, record.boot, mark))
    return process
