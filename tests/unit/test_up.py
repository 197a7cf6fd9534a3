"""`up` and `down`: they take turns, spare what they did not start, and find what others left."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.unit.supervised import (
    DIES,
    answering,
    component,
    found_component,
    left_by_a_killed_supervisor,
    prepared,
    record_of,
    state_of,
    supervising,
    wait_for,
)

from gpufleet.fleet.errors import GpufleetError
from gpufleet.local import controlplane, lifecycle
from gpufleet.local import up as up_module
from gpufleet.local.components import SUPERVISOR
from gpufleet.local.components import supervisor as supervisor_component
from gpufleet.local.down import down
from gpufleet.local.fleetfile import load_fleet
from gpufleet.local.layout import Layout, forget, known_fleets
from gpufleet.local.locking import fleet_lock
from gpufleet.local.observed import ComponentState, SupervisorState
from gpufleet.local.processes import COMPONENT_MARKER, FLEET_MARKER, Record
from gpufleet.local.progress import PortTakenError
from gpufleet.local.readiness import HOPELESS_AFTER, Wait
from gpufleet.local.settings import Settings, write_settings
from gpufleet.local.up import Request, Result, up

SLEEPS = (sys.executable, "-c", "import time; time.sleep(120)")
CONTROL_PLANE = {"etcd": ("etcd",), "kube-apiserver": ("api",), "kube-controller-manager": ("manager",)}


@pytest.fixture
def layout(tmp_path: Path) -> Iterator[Layout]:
    with prepared(tmp_path) as made:
        yield made


class Heard:
    """Remembers what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.worked: list[tuple[str, int, int]] = []
        self.waiting = threading.Event()

    def say(self, text: str) -> None:
        self.said.append(text)
        if "waiting for another" in text:
            self.waiting.set()

    def work(self, text: str, done: int = 0, total: int = 0) -> None:
        self.worked.append((text, done, total))


def bring_up(layout: Layout, heard: Heard, fleet: str | None = None) -> Result:
    return up(Request(layout.name, fleet), heard, {"XDG_STATE_HOME": str(layout.root.parent.parent)})


# ----------------------------------------------------------------------------------------------- taking turns


@pytest.fixture
def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """`up` writes its files and starts nothing."""

    def written(attempt: up_module._Attempt, _: object) -> bool:
        return attempt._write_all(attempt._settings(CONTROL_PLANE))

    monkeypatch.setattr(up_module._Attempt, "bring_up", written)


class Second(threading.Thread):
    """An `up` that finds the fleet busy and waits."""

    def __init__(self, layout: Layout, fleet: str | None = None) -> None:
        super().__init__()
        self._layout, self._fleet, self._heard = layout, fleet, Heard()
        self.result: Result | None = None
        self.start()
        assert self._heard.waiting.wait(10)

    def run(self) -> None:
        self.result = bring_up(self._layout, self._heard, self._fleet)

    def finished(self) -> Result:
        self.join(20)
        assert self.result is not None
        return self.result


@pytest.mark.usefixtures("no_processes")
@pytest.mark.parametrize(("asked", "nodes"), [(None, 64), ("large", 400)])
def test_an_up_that_waited_for_another_keeps_the_others_fleet_unless_asked_for_one(
    layout: Layout, asked: str | None, nodes: int
) -> None:
    bring_up(layout, Heard(), "small")
    with fleet_lock(layout, lambda: None):
        second = Second(layout, asked)
        layout.fleet_file.write_text(load_fleet("medium")[1])
    assert second.finished().fleet.nodes == nodes
    assert layout.fleet_file.read_text() == load_fleet(asked or "medium")[1]


@pytest.mark.usefixtures("no_processes")
def test_an_up_that_waited_for_a_purge_starts_anew(layout: Layout) -> None:
    bring_up(layout, Heard(), "medium")
    with fleet_lock(layout, lambda: None):
        second = Second(layout)
        forget(layout)
    assert second.finished().fleet.nodes == 7
    assert layout.pki.is_dir()
    assert layout.root.parent.stat().st_mode & 0o077 == 0


@pytest.mark.usefixtures("no_processes")
def test_a_purge_that_waited_for_an_up_forgets_what_it_wrote(layout: Layout) -> None:
    waiting = threading.Event()
    purging = threading.Thread(target=down, args=(layout, lambda _: waiting.set()), kwargs={"purge": True})
    with fleet_lock(layout, lambda: None):
        purging.start()
        assert waiting.wait(10)
        write_settings(layout, Settings({}, {}))
    purging.join(20)
    assert list(layout.root.parent.iterdir()) == []


def test_a_purge_that_was_killed_leaves_no_fleet_and_is_completed_by_the_next(layout: Layout) -> None:
    write_settings(layout, Settings({}, {}))
    left = layout.root.with_name(f".{layout.name}.removed")
    layout.root.rename(left)
    environ = {"XDG_STATE_HOME": str(layout.root.parent.parent)}
    assert known_fleets(environ) == []
    layout.root.mkdir()
    forget(layout)
    assert not left.exists()


# ---------------------------------------------------------------------------------------- what lived lives on


def test_an_up_that_fails_ends_only_what_did_not_live_before(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    etcd = left_by_a_killed_supervisor(layout, "etcd")
    silent = SupervisorState(Record(999_999_999, 0.0), (ComponentState("etcd", etcd.pid, "running"),))
    layout.supervisor_state.write_bytes(msgspec.json.encode(silent))
    supervised: list[Layout] = []
    monkeypatch.setattr(up_module, "_supervise", lambda layout, _: supervised.append(layout))

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(controlplane, "locate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bring_up(layout, Heard())
    assert etcd.poll() is None
    assert supervised == [layout]


@pytest.mark.parametrize("lived", [False, True])
def test_a_port_that_was_taken_ends_only_a_fleet_of_which_nothing_lived(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, lived: bool
) -> None:
    outcomes = iter([PortTakenError("controller"), None])
    ended: list[Layout] = []

    async def until_ready(*_: object) -> None:
        if outcome := next(outcomes):
            raise outcome

    monkeypatch.setattr(Wait, "until_ready", until_ready)
    monkeypatch.setattr(up_module, "_supervise", lambda *_: None)
    monkeypatch.setattr(up_module, "end_processes", lambda layout, _: ended.append(layout))
    monkeypatch.setattr(controlplane, "locate", lambda *_, **__: CONTROL_PLANE)
    fleet, text = load_fleet("small")
    up_module._Attempt(layout, Request(layout.name), Heard(), os.environ, text, lived).bring_up(fleet)
    assert ended == ([] if lived else [layout])


def test_down_ends_the_processes_of_a_fleet_whose_folder_is_gone(layout: Layout) -> None:
    etcd = left_by_a_killed_supervisor(layout, "etcd")
    forget(layout)
    assert down(layout, lambda _: None)
    assert etcd.wait(5) == -signal.SIGTERM
    assert not layout.root.exists()
    assert not down(layout, lambda _: None)
    assert not layout.root.exists()


def marked_supervisor(layout: Layout) -> subprocess.Popen[bytes]:
    environ = {**os.environ, FLEET_MARKER: str(layout.root), COMPONENT_MARKER: SUPERVISOR}
    return subprocess.Popen(SLEEPS, env=environ, start_new_session=True)


def test_up_ends_a_supervisor_whose_state_is_gone_and_starts_its_own(layout: Layout) -> None:
    foreign = marked_supervisor(layout)
    started = up_module._supervise(layout, os.environ)
    assert foreign.wait(5) == -signal.SIGKILL
    assert started is not None
    started.wait(20)


@pytest.mark.parametrize("outdated", [False, True])
def test_up_replaces_a_supervisor_of_another_gpufleet_and_reloads_one_of_this(
    layout: Layout, outdated: bool
) -> None:
    running = marked_supervisor(layout)
    code = "older" if outdated else supervisor_component(layout).fingerprint()
    me = msgspec.structs.replace(record_of(running.pid), fingerprint=code)
    layout.supervisor_state.write_bytes(msgspec.json.encode(SupervisorState(me, ())))
    started = up_module._supervise(layout, os.environ)
    assert running.wait(5) == -(signal.SIGKILL if outdated else signal.SIGHUP)
    assert (started is not None) == outdated
    if started is not None:
        started.wait(20)


# ---------------------------------------------------------------------------------------------------- waiting


def said_by_supervisor(layout: Layout, state: ComponentState, revision: str | None = None) -> None:
    said = SupervisorState(record_of(os.getpid()), (state,), revision or layout.revision())
    layout.supervisor_state.write_bytes(msgspec.json.encode(said))


def failing(times: int) -> ComponentState:
    return ComponentState("controller", None, "backoff", restarts=times, last_exit=1, failures=times)


def test_only_failures_after_the_wait_began_make_it_hopeless(layout: Layout) -> None:
    said_by_supervisor(layout, failing(7))
    wait = Wait(layout, Heard(), timeout_s=5)
    wait._check_alive()
    said_by_supervisor(layout, failing(6 + HOPELESS_AFTER))
    wait._check_alive()
    said_by_supervisor(layout, failing(7 + HOPELESS_AFTER))
    with pytest.raises(GpufleetError) as raised:
        wait._check_alive()
    assert raised.value.reason == "ComponentFailed"


def test_failures_with_the_former_settings_do_not_count(layout: Layout) -> None:
    wait = Wait(layout, Heard(), timeout_s=5)
    said_by_supervisor(layout, failing(7), revision="the former one")
    wait._check_alive()
    said_by_supervisor(layout, failing(7))
    with pytest.raises(GpufleetError):
        wait._check_alive()


def test_every_turn_of_a_wait_is_told(layout: Layout) -> None:
    heard = Heard()
    wait = Wait(layout, heard, timeout_s=5)
    answers = iter([False, False, True])

    async def condition() -> bool:
        return next(answers)

    asyncio.run(wait._until(condition, "waiting", poll_s=0))
    assert [text for text, _, _ in heard.worked] == ["waiting"] * 3


def test_an_up_makes_a_component_in_backoff_start_at_once(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "FIRST_DELAY_S", 3600.0)
    with supervising(layout, component(layout, "etcd", DIES)) as supervisor:
        wait_for(lambda: state_of(layout, "etcd") == "backoff")
        write_settings(layout, Settings({}, {}))
        mended = component(layout, "etcd")
        monkeypatch.setattr("gpufleet.local.supervisor.components", lambda *_: (mended,))
        supervisor.request_reload()
        wait_for(lambda: answering(layout))
        assert found_component(layout, "etcd").failures == 0
