"""What `logs` shows of a process container: which attempt, by a kubelet's rule, and which of its lines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpufleet.local.simnodes.endpoint import attempt_shown
from gpufleet.local.simnodes.logreader import LogReader
from gpufleet.local.simnodes.podlogs import ContainerFolder, LogOptions, lines_of, rendered, select
from gpufleet.local.simnodes.podstate import ENDED, RUNNING, STARTING, STOPPING, WAITING, Ended, Run


def run(state: str, attempt: int, ended: int | None) -> Run:
    last = None if ended is None else Ended(1, "Error", 0.0, 1.0, ended)
    return Run("main", "app", state, attempt=attempt, last=last)


@pytest.mark.parametrize(
    ("what", "now", "previous"),
    [
        (run(WAITING, 0, None), None, None),
        (run(STARTING, 0, None), None, None),
        (run(RUNNING, 0, None), 0, None),
        (run(STOPPING, 0, None), 0, None),
        (run(ENDED, 0, 0), 0, None),
        (run(WAITING, 0, 0), 0, 0),
        (run(STARTING, 1, 0), 0, 0),
        (run(RUNNING, 1, 0), 1, 0),
        (run(WAITING, 1, 1), 1, 1),
        (run(RUNNING, 2, 1), 2, 1),
        (run(ENDED, 2, 2), 2, 1),
    ],
)
def test_logs_show_the_newest_attempt_and_previous_the_one_before(
    what: Run, now: int | None, previous: int | None
) -> None:
    assert attempt_shown(what, previous=False) == now
    assert attempt_shown(what, previous=True) == previous


def _read(folder: ContainerFolder, options: LogOptions, piece: int = 1 << 20) -> bytes:
    reader = LogReader(folder, 0, options, piece=piece)
    reader.seek()
    return b"".join(iter(lambda: reader.read(ended=True), b""))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.text("ab\r\n", min_size=1, max_size=6), st.booleans()), max_size=6),
    st.none() | st.integers(0, 6),
    st.none() | st.integers(0, 9),
    st.booleans(),
    st.integers(1, 9),
)
def test_a_log_read_in_pieces_from_its_end_is_what_all_of_it_would_have_given(
    tmp_path: Path,
    writes: list[tuple[str, bool]],
    tail: int | None,
    since: int | None,
    dated: bool,
    piece: int,
) -> None:
    folder, data = ContainerFolder(tmp_path), b""
    clock: list[tuple[int, float]] = []
    for second, (text, noted) in enumerate(writes, 1):
        data += text.encode()
        clock += [(len(data), float(second))] if noted else []
    folder.log(0).write_bytes(data)
    folder.times(0).write_text("".join(f"{at} {length}\n" for length, at in clock))
    os.utime(folder.log(0), (8.0, 8.0))
    options = LogOptions(tail_lines=tail, since=since, timestamps=dated)
    lines = lines_of(data, 0, [*clock, (len(data), 8.0)])
    assert _read(folder, options, piece) == rendered(select(lines, options), options)


def test_a_progress_bar_is_one_line(tmp_path: Path) -> None:
    folder = ContainerFolder(tmp_path)
    folder.log(0).write_bytes(b"start\n10%\r20%\r30%\ndone\n")
    assert _read(folder, LogOptions(tail_lines=2)) == b"10%\r20%\r30%\ndone\n"
    assert _read(folder, LogOptions(tail_lines=2, timestamps=True)).count(b"Z ") == 2


def test_who_follows_gets_a_line_once_it_is_whole_and_the_rest_at_the_end(tmp_path: Path) -> None:
    folder, options = ContainerFolder(tmp_path), LogOptions(follow=True, tail_lines=1)
    with folder.log(0).open("ab", buffering=0) as file:
        file.write(b"one\ntw")
        reader = LogReader(folder, 0, LogOptions(follow=True))
        reader.seek()
        assert [reader.read(ended=False), reader.read(ended=False)] == [b"one\n", b""]
        file.write(b"o\nthr")
        assert [reader.read(ended=False), reader.read(ended=False)] == [b"two\n", b""]
        assert [reader.read(ended=True), reader.read(ended=True)] == [b"thr", b""]
    late = LogReader(folder, 0, options)
    late.seek()
    assert late.read(ended=False) == b""
    assert late.read(ended=True) == b"thr"


def test_a_line_that_never_ends_is_shown_in_parts_dated_once(tmp_path: Path) -> None:
    folder, options = ContainerFolder(tmp_path), LogOptions(follow=True, timestamps=True)
    folder.log(0).write_bytes(b"x" * 10)
    os.utime(folder.log(0), (8.0, 8.0))
    reader = LogReader(folder, 0, options, piece=4)
    reader.seek()
    parts = [reader.read(ended=False) for _ in range(3)]
    assert parts == [b"1970-01-01T00:00:08.000000Z xxxx", b"xxxx", b""]


def test_a_log_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert _read(ContainerFolder(tmp_path), LogOptions(tail_lines=3, since=1.0)) == b""
