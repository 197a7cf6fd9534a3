"""The supervisor and the life of a component: when it restarts, what it adopts, what it ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.supervised import (
    DIES,
    IGNORES_TERM,
    SERVE,
    answering,
    component,
    found_component,
    left_by_a_killed_supervisor,
    pid_of,
    prepared,
    record_of,
    state_of,
    supervising,
    wait_for,
)

from gpufleet.local import lifecycle
from gpufleet.local.components import (
    BRIDGE,
    CONTROL_PLANE,
    CONTROLLER,
    DEVICES,
    PACKAGE,
    SIMULATED_NODES,
    SUPERVISOR,
    Component,
    FileProbe,
    components,
    supervisor,
)
from gpufleet.local.down import end_processes
from gpufleet.local.layout import Layout, layout_of, prepare, tail
from gpufleet.local.lifecycle import Life
from gpufleet.local.observed import observe
from gpufleet.local.processes import (
    FLEET_MARKER,
    Record,
    end,
    end_marked,
    marked_processes,
    read_record,
    write_record,
)
from gpufleet.local.settings import PORT_NAMES, Options, Settings, choose_ports, write_settings

# ---------------------------------------------------------------------------------------- the pure life cycle

deaths = st.lists(st.floats(min_value=0, max_value=200, allow_nan=False), min_size=1, max_size=12)


def die_after(seconds: Sequence[float]) -> Life:
    """The life of a component that ran for so long each time, and when it died last."""
    life, now = Life(), 0.0
    for ran in seconds:
        life = lifecycle.probed(lifecycle.started(life, 1, now), True)
        now += ran
        life = lifecycle.exited(life, 1, now)
        now = life.retry_at
    return life


@given(deaths)
def test_a_restart_waits_at_least_half_a_second_and_at_most_thirty(seconds: list[float]) -> None:
    assert lifecycle.FIRST_DELAY_S <= die_after(seconds).delay <= lifecycle.LONGEST_DELAY_S


@given(deaths)
def test_every_death_counts_as_a_restart(seconds: list[float]) -> None:
    assert die_after(seconds).restarts == len(seconds)


@given(deaths)
def test_who_ran_for_a_minute_starts_over_with_the_shortest_delay(seconds: list[float]) -> None:
    assert die_after([*seconds, lifecycle.SETTLED_S + 1]).delay == lifecycle.FIRST_DELAY_S


def test_who_keeps_dying_waits_twice_as_long_each_time() -> None:
    delays = [die_after([0] * deaths).delay for deaths in range(1, 9)]
    assert delays == [0.5, 1, 2, 4, 8, 16, 30, 30]


def test_nothing_starts_before_its_delay_is_over() -> None:
    life = die_after([0])
    assert not lifecycle.wants_start(life, life.retry_at - 0.01)
    assert lifecycle.wants_start(life, life.retry_at)


def test_a_good_answer_makes_it_running_and_a_bad_one_later_is_only_noted() -> None:
    life = lifecycle.started(Life(), 7, 0)
    assert lifecycle.probed(life, False).state == "starting"
    running = lifecycle.probed(life, True)
    assert (running.state, running.answering) == ("running", True)
    silent = lifecycle.probed(running, False)
    assert (silent.state, silent.answering) == ("running", False)


def test_ends_without_an_answer_are_told_from_ends_after_one() -> None:
    life = lifecycle.exited(lifecycle.started(die_after([1]), 1, 5), 1, 6)
    assert (life.failures, life.restarts) == (2, 2)
    assert lifecycle.probed(lifecycle.started(life, 1, 7), True).failures == 0
    assert lifecycle.requested(life).failures == 0


def test_an_answer_that_comes_after_the_end_changes_nothing() -> None:
    life = die_after([1])
    assert lifecycle.probed(life, True) == life


def test_what_was_stopped_does_not_start_again_unless_asked() -> None:
    life = lifecycle.stopped(die_after([1]), 0)
    assert not lifecycle.wants_start(life, 1e9)
    assert lifecycle.wants_start(lifecycle.requested(life), 0)


# -------------------------------------------------------------------------------------------- real processes


@pytest.fixture
def layout(tmp_path: Path) -> Iterator[Layout]:
    with prepared(tmp_path) as made:
        yield made


def test_a_component_starts_only_after_what_it_depends_on_answers(layout: Layout) -> None:
    order = layout.root / "order"
    code = "import pathlib, sys; pathlib.Path({!r}).open('a').write('{} ')\n" + SERVE
    first = component(layout, "first", "import time; time.sleep(0.5)\n" + code.format(str(order), "first"))
    second = component(layout, "second", code.format(str(order), "second"), after=("first",))
    with supervising(layout, second, first):
        wait_for(lambda: answering(layout))
    assert order.read_text() == "first second "


def test_a_component_waits_for_the_file_it_needs(layout: Layout) -> None:
    gate = layout.run / "gate"
    with supervising(layout, component(layout, "patient", needs=gate)):
        time.sleep(0.5)
        assert not pid_of(layout, "patient")
        gate.touch()
        wait_for(lambda: answering(layout))


def test_what_is_killed_comes_back_and_is_counted(layout: Layout) -> None:
    with supervising(layout, component(layout, "etcd")):
        wait_for(lambda: answering(layout))
        first = pid_of(layout, "etcd")
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: pid_of(layout, "etcd") not in (first, 0) and answering(layout))
        found = found_component(layout, "etcd")
        assert (found.restarts, found.last_exit) == (1, -signal.SIGKILL)


def test_what_cannot_run_is_in_backoff_and_its_last_words_are_kept(layout: Layout) -> None:
    with supervising(layout, component(layout, "etcd", DIES)):
        wait_for(lambda: state_of(layout, "etcd") == "backoff")
        assert found_component(layout, "etcd").last_exit == 1
        assert tail(layout.log("etcd")) == ["no room for me"]


def test_a_program_that_does_not_exist_is_told_in_its_log(layout: Layout) -> None:
    broken = Component("etcd", ("/nowhere/etcd",), FileProbe(layout.ready_file("etcd")))
    with supervising(layout, broken):
        wait_for(lambda: state_of(layout, "etcd") == "backoff")
        assert "cannot start /nowhere/etcd" in tail(layout.log("etcd"))[-1]


def test_a_full_disk_does_not_end_the_supervisor(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gpufleet.local.supervisor.write_record", full)
    layout.log("silent").symlink_to("/dev/full")
    with supervising(layout, component(layout, "etcd"), component(layout, "silent")):
        wait_for(
            lambda: state_of(layout, "silent") == "backoff" and found_component(layout, "etcd").answering
        )
        layout.log("silent").unlink()
        wait_for(lambda: answering(layout))
    assert marked_processes(layout) == {}


def test_a_stop_ends_everything_also_what_ignores_sigterm(layout: Layout) -> None:
    stubborn = component(layout, "stubborn", IGNORES_TERM, grace_s=0.3)
    with supervising(layout, component(layout, "etcd"), stubborn):
        wait_for(lambda: answering(layout))
        pids = [pid_of(layout, "etcd"), pid_of(layout, "stubborn")]
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert marked_processes(layout) == {}


def test_components_end_in_the_reverse_order_of_their_start(layout: Layout) -> None:
    order = layout.root / "order"
    code = (
        "import pathlib, signal, sys, time\n"
        "def end(*_):\n    pathlib.Path({0!r}).open('a').write('{1} '); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n" + SERVE
    )
    first = component(layout, "first", code.format(str(order), "first"))
    second = component(layout, "second", code.format(str(order), "second"), after=("first",))
    with supervising(layout, first, second):
        wait_for(lambda: answering(layout))
    assert order.read_text() == "second first "


def test_a_new_supervisor_adopts_what_runs_as_it_should(layout: Layout) -> None:
    process = left_by_a_killed_supervisor(layout, "etcd")
    with supervising(layout, component(layout, "etcd")):
        wait_for(lambda: state_of(layout, "etcd") == "running")
        found = found_component(layout, "etcd")
        assert (found.pid, found.adopted, found.restarts) == (process.pid, True, 0)
    process.wait(5)


def test_what_was_adopted_is_restarted_when_it_dies(layout: Layout) -> None:
    process = left_by_a_killed_supervisor(layout, "etcd")
    with supervising(layout, component(layout, "etcd")):
        wait_for(lambda: answering(layout))
        process.kill()
        process.wait(5)
        wait_for(lambda: pid_of(layout, "etcd") not in (process.pid, 0) and answering(layout))
        assert found_component(layout, "etcd").restarts == 1


def test_what_was_started_with_other_arguments_is_ended_and_started_anew(layout: Layout) -> None:
    process = left_by_a_killed_supervisor(layout, "etcd", fingerprint="of older arguments")
    with supervising(layout, component(layout, "etcd")):
        wait_for(lambda: answering(layout))
        assert process.wait(5) == -signal.SIGTERM
        assert pid_of(layout, "etcd") != process.pid


def test_a_component_is_another_when_a_module_of_its_source_changes(layout: Layout) -> None:
    module = layout.root / "package" / "room" / "module.py"
    module.parent.mkdir(parents=True)
    module.write_text("one = 1")
    made = component(layout, "controller", inputs=(layout.root / "package",))
    first = made.fingerprint()
    assert made.fingerprint() == first
    module.write_text("one = 2")
    second = made.fingerprint()
    module.rename(module.with_name("renamed.py"))
    assert len({first, second, made.fingerprint()}) == 3


def test_every_process_of_ours_is_another_when_gpufleet_changes(layout: Layout) -> None:
    programs = {name: (name,) for name in CONTROL_PLANE}
    settings = Settings(dict.fromkeys(PORT_NAMES, 1), programs, Options(bridge="10.0.0.1"))
    ours = {one.name for one in (*components(layout, settings), supervisor(layout)) if PACKAGE in one.inputs}
    assert ours == {CONTROLLER, DEVICES, SIMULATED_NODES, BRIDGE, SUPERVISOR}


def test_what_hands_over_is_asked_to_when_a_successor_follows(layout: Layout) -> None:
    process = left_by_a_killed_supervisor(layout, "etcd", fingerprint="of older arguments")
    with supervising(layout, component(layout, "etcd", handover=signal.SIGUSR1)):
        wait_for(lambda: answering(layout))
        assert process.wait(5) == -signal.SIGUSR1


def test_what_runs_on_hears_of_an_up(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = layout.run / "heard"
    says = f"open({str(heard)!r}, 'a').write('x')"
    listens = f"import signal; signal.signal(signal.SIGHUP, lambda *_: {says})"
    listening = component(layout, "etcd", listens + SERVE, look_again=signal.SIGHUP)
    monkeypatch.setattr("gpufleet.local.supervisor.components", lambda *_: (listening,))
    write_settings(layout, Settings({}, {}))
    with supervising(layout, listening) as supervisor:
        wait_for(lambda: answering(layout))
        pid = pid_of(layout, "etcd")
        supervisor.request_reload()
        wait_for(heard.exists)
        assert pid_of(layout, "etcd") == pid


def test_a_component_without_record_is_ended_and_a_workload_is_left_alone(layout: Layout) -> None:
    stray = left_by_a_killed_supervisor(layout, "etcd")
    layout.record("etcd").unlink()
    workload = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(120)"],
        env={**os.environ, FLEET_MARKER: str(layout.root)},
        start_new_session=True,
    )
    try:
        with supervising(layout, component(layout, "etcd")):
            wait_for(lambda: answering(layout))
            assert stray.wait(5) == -signal.SIGTERM
            assert workload.poll() is None
    finally:
        workload.kill()
        workload.wait()


def test_a_record_of_another_process_with_that_pid_is_not_believed(layout: Layout) -> None:
    mine = record_of(os.getpid())
    write_record(layout.record("etcd"), Record(os.getpid(), mine.started - 3600, mine.boot))
    kept = read_record(layout.record("etcd"))
    assert kept is not None
    assert not kept.alive
    with supervising(layout, component(layout, "etcd")):
        wait_for(lambda: answering(layout))
        assert pid_of(layout, "etcd") != os.getpid()


def test_a_process_is_recognised_after_the_clock_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    before = record_of(os.getpid())
    boot_time, create_time = psutil.boot_time(), psutil.Process().create_time()
    monkeypatch.setattr(psutil, "boot_time", lambda: boot_time + 86_400)
    monkeypatch.setattr(psutil.Process, "create_time", lambda _: create_time + 86_400)
    assert before.alive


def test_a_process_of_an_earlier_boot_is_not_recognised() -> None:
    assert not msgspec.structs.replace(record_of(os.getpid()), boot="an earlier one").alive


def test_a_damaged_record_is_no_record(layout: Layout) -> None:
    layout.record("etcd").write_bytes(b'{"pid": 1')
    assert read_record(layout.record("etcd")) is None


def test_down_ends_what_a_killed_supervisor_left_and_its_workloads(layout: Layout) -> None:
    component_process = left_by_a_killed_supervisor(layout, "etcd")
    workload = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(120)"],
        env={**os.environ, FLEET_MARKER: str(layout.root)},
        start_new_session=True,
    )
    said: list[str] = []
    assert end_processes(layout, said.append)
    assert component_process.wait(5) == -signal.SIGTERM
    assert workload.wait(5) == -signal.SIGTERM
    assert said[0] == f"stopped etcd (pid {component_process.pid})"
    assert not end_processes(layout, said.append)


def test_another_fleets_processes_are_not_ours(layout: Layout, tmp_path: Path) -> None:
    other = layout_of("unit-2", {"XDG_STATE_HOME": str(tmp_path)})
    prepare(other)
    process = left_by_a_killed_supervisor(other, "etcd")
    try:
        assert end_marked(layout, grace_s=1) == 0
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


def test_a_zombie_has_ended() -> None:
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    record = Record.of(process.pid)
    wait_for(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE)
    assert record is None or not record.alive
    process.wait()


def test_ending_what_ignores_sigterm_takes_sigkill() -> None:
    process = subprocess.Popen([sys.executable, "-c", IGNORES_TERM, os.devnull])
    wait_for(lambda: psutil.Process(process.pid).status() == psutil.STATUS_SLEEPING)
    assert end([record_of(process.pid)], grace_s=0.3, reap=process.poll) == []
    assert process.poll() in (-signal.SIGKILL, -signal.SIGTERM)


def test_a_silent_supervisor_is_not_believed(layout: Layout) -> None:
    with supervising(layout, component(layout, "etcd")):
        wait_for(lambda: answering(layout))
    said = layout.supervisor_state.read_text()
    layout.supervisor_state.write_text(said.replace(f'"pid":{os.getpid()}', '"pid":999999999'))
    state = observe(layout)
    assert not state.supervised
    assert not state.running


# ------------------------------------------------------------------------------------------------------ ports


def test_ports_are_kept_while_they_are_free() -> None:
    ports, lost = choose_ports({}, ours=lambda _: False)
    assert len(set(ports.values())) == len(PORT_NAMES)
    assert choose_ports(ports, ours=lambda _: False, free=lambda _: True) == (ports, [])
    assert lost == []


@given(st.sets(st.sampled_from(PORT_NAMES)), st.sets(st.sampled_from(PORT_NAMES)))
def test_only_ports_that_others_took_are_replaced(taken: set[str], ours: set[str]) -> None:
    kept = {name: 2_000 + number for number, name in enumerate(PORT_NAMES)}
    held = {kept[name] for name in taken}
    ports, lost = choose_ports(kept, ours=lambda name: name in ours, free=lambda port: port not in held)
    assert set(lost) == taken - ours
    assert all((ports[name] == kept[name]) == (name not in lost) for name in PORT_NAMES)
    assert len(set(ports.values())) == len(PORT_NAMES)
