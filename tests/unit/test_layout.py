"""State of a fleet: where it lies, who may read it, and that a crash never leaves half a file."""

import os
import stat
import threading
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpufleet.fleet.errors import GpufleetError
from gpufleet.local.layout import (
    Layout,
    begin_run,
    file_errors,
    fleets_home,
    known_fleets,
    layout_of,
    prepare,
    rotate,
    tail,
    write_atomic,
)
from gpufleet.local.locking import fleet_lock, take


def layout_in(folder: Path | str, name: str = "one") -> Layout:
    return layout_of(name, {"XDG_STATE_HOME": str(folder)})


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_state_lies_in_xdg_state_home(tmp_path: Path) -> None:
    assert fleets_home({"XDG_STATE_HOME": str(tmp_path), "HOME": "/elsewhere"}) == tmp_path / "gpufleet"


def test_state_lies_below_home_without_xdg() -> None:
    assert fleets_home({"HOME": "/home/ann"}) == Path("/home/ann/.local/state/gpufleet")


def test_a_relative_xdg_state_home_is_ignored_as_its_specification_says() -> None:
    assert fleets_home({"XDG_STATE_HOME": "state", "HOME": "/home/ann"}) == Path(
        "/home/ann/.local/state/gpufleet"
    )


def test_no_place_for_state_is_told_with_the_way_out() -> None:
    with pytest.raises(GpufleetError) as raised:
        fleets_home({})
    assert raised.value.reason == "NoStateFolder"
    assert "XDG_STATE_HOME" in raised.value.hint


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a_b", "a.b", "../x", "a/b", "a" * 64, "ä", "a\n"])
def test_a_name_that_is_no_dns_label_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(GpufleetError) as raised:
        layout_in(tmp_path, name)
    assert raised.value.reason == "BadFleetName"


@given(st.from_regex(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", fullmatch=True))
def test_every_dns_label_names_a_fleet_of_its_own(name: str) -> None:
    layout = layout_in("/state", name)
    assert layout.root == Path("/state/gpufleet") / name


def test_folders_are_private_even_when_they_were_not(tmp_path: Path) -> None:
    layout = layout_in(tmp_path)
    layout.root.mkdir(parents=True, mode=0o755)
    prepare(layout)
    for folder in (layout.root, layout.pki, layout.etcd, layout.logs, layout.run):
        assert mode(folder) == 0o700


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "gpufleet").write_text("a file is in the way")
    with pytest.raises(GpufleetError) as raised:
        prepare(layout_in(tmp_path))
    assert str(tmp_path / "gpufleet") in raised.value.message
    assert "XDG_STATE_HOME" in raised.value.hint


def test_a_full_disk_is_told_with_the_folder() -> None:
    with pytest.raises(GpufleetError) as raised, file_errors(Path("/state")):
        raise OSError(28, "No space left on device", "/state/x")
    assert raised.value.reason == "DiskFull"


def test_a_full_disk_is_found_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: FullDisk)
    with pytest.raises(GpufleetError) as raised:
        prepare(layout_in(tmp_path))
    assert raised.value.reason == "DiskFull"


class FullDisk:
    free = 1 << 20


def test_a_file_is_replaced_whole_and_private(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert mode(path) == 0o600


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    contents = {bytes([letter]) * 4096 for letter in b"abcd"}
    write_atomic(path, b"a" * 4096)
    seen: set[bytes] = set()
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for content in sorted(contents) * 20:
        write_atomic(path, content)
    stop.set()
    reader.join()
    assert seen <= contents


def test_only_fleets_that_were_started_are_known(tmp_path: Path) -> None:
    environ = {"XDG_STATE_HOME": str(tmp_path)}
    for name in ("b", "a", "never-started"):
        prepare(layout_of(name, environ))
    for name in ("b", "a"):
        layout_of(name, environ).settings.write_text("{}")
    assert known_fleets(environ) == ["a", "b"]


def test_a_log_that_grew_is_set_aside_and_the_one_before_dropped(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("older")
    rotate(log, limit_bytes=3)
    log.write_text("newer")
    rotate(log, limit_bytes=3)
    assert not log.exists()
    assert (tmp_path / "x.log.1").read_text() == "newer"


def test_the_tail_of_a_log_is_of_the_last_run_only(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    for lines in (["address already in use"], ["one", "two", "three"]):
        output = begin_run(log)
        os.write(output, "".join(f"{line}\n" for line in lines).encode())
        os.close(output)
    assert tail(log) == ["one", "two", "three"]
    assert tail(log, lines=2) == ["two", "three"]
    assert mode(log) == 0o600


def test_a_log_on_a_full_disk_is_closed_again(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.symlink_to("/dev/full")
    before = psutil.Process().num_fds()
    with pytest.raises(OSError):
        begin_run(log)
    assert psutil.Process().num_fds() == before


def test_a_log_that_never_was_has_no_tail(tmp_path: Path) -> None:
    assert tail(tmp_path / "none.log") == []


def test_a_lock_excludes_until_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    held = take(path)
    assert held is not None
    assert take(path) is None
    os.close(held)
    again = take(path)
    assert again is not None
    os.close(again)


def test_two_commands_on_one_fleet_take_turns(tmp_path: Path) -> None:
    layout = layout_in(tmp_path)
    order: list[str] = []
    first_holds, waiting = threading.Event(), threading.Event()

    def second() -> None:
        first_holds.wait(5)
        with fleet_lock(layout, waiting.set):
            order.append("second")

    other = threading.Thread(target=second)
    other.start()
    with fleet_lock(layout, lambda: None):
        first_holds.set()
        assert waiting.wait(5)
        order.append("first")
    other.join(5)
    assert order == ["first", "second"]


def test_waiting_for_a_busy_fleet_ends_with_an_error(tmp_path: Path) -> None:
    layout = layout_in(tmp_path)
    with (
        fleet_lock(layout, lambda: None),
        pytest.raises(GpufleetError) as raised,
        fleet_lock(layout, lambda: None, wait_s=0),
    ):
        pass
    assert raised.value.reason == "FleetBusy"


def test_the_lock_of_a_removed_fleet_excludes_nobody_who_starts_it_anew(tmp_path: Path) -> None:
    layout = layout_in(tmp_path)
    with fleet_lock(layout, lambda: None):
        (layout.root / "lock").unlink()
        with fleet_lock(layout, lambda: None, wait_s=0):
            assert (layout.root / "lock").exists()


def test_an_error_inside_the_lock_is_not_mistaken_for_a_busy_lock(tmp_path: Path) -> None:
    with pytest.raises(BlockingIOError), fleet_lock(layout_in(tmp_path), lambda: None):
        raise BlockingIOError
