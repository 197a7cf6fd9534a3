"""Output of the command line: for people, for pipes, on a full disk, and what must not get there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpufleet.cli import errors, output
from gpufleet.cli.output import Cell, Column, printable, printable_fields, table
from gpufleet.cli.watching import fitted
from gpufleet.cli.why import render
from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.reasons import Reason
from gpufleet.scheduling.explain import Explanation

COLUMNS = (
    Column("NODE"),
    Column("GPU", number=True),
    Column("PRODUCT", drop=2),
    Column("POWER", drop=1),
    Column("UUID", wide=True),
)
ROWS: list[list[str | Cell]] = [
    ["train-1", "0", Cell("H100", "red"), "700W", "GPU-1"],
    ["train-10", "11", "H100", "7W", "GPU-22"],
]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make stdout a terminal of a width."""

    def become(columns: int) -> None:
        monkeypatch.setenv("GPUFLEET_FORCE_TTY", "1")
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setenv("TERM", "xterm")

    return become


def test_a_pipe_gets_tabs_and_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "10")
    monkeypatch.delenv("GPUFLEET_FORCE_TTY", raising=False)
    assert table(COLUMNS, ROWS) == (
        "NODE\tGPU\tPRODUCT\tPOWER\ntrain-1\t0\tH100\t700W\ntrain-10\t11\tH100\t7W\n"
    )


def test_a_terminal_gets_aligned_columns(
    terminal: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal(80)
    monkeypatch.setenv("NO_COLOR", "1")
    assert table(COLUMNS, ROWS, wide=True) == (
        "NODE      GPU  PRODUCT  POWER  UUID\n"
        "train-1     0  H100     700W   GPU-1\n"
        "train-10   11  H100     7W     GPU-22\n"
    )


def test_a_narrow_terminal_loses_the_least_important_columns_and_no_names(
    terminal: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    terminal(24)
    monkeypatch.setenv("NO_COLOR", "1")
    assert table(COLUMNS, ROWS).splitlines()[0] == "NODE      GPU  POWER"
    terminal(5)
    monkeypatch.setenv("NO_COLOR", "1")
    assert table(COLUMNS, ROWS).splitlines()[2] == "train-10   11"


def test_titles_can_be_left_out(terminal: Callable[[int], None]) -> None:
    assert table(COLUMNS, ROWS, headers=False).startswith("train-1\t")
    terminal(80)
    assert "NODE" not in table(COLUMNS, ROWS, headers=False)


@pytest.mark.parametrize(
    ("choice", "environ", "coloured"),
    [
        ("auto", {}, True),
        ("auto", {"NO_COLOR": "1"}, False),
        ("auto", {"NO_COLOR": ""}, True),
        ("auto", {"TERM": "dumb"}, False),
        ("always", {"NO_COLOR": "1"}, True),
        ("never", {}, False),
    ],
)
def test_colour_follows_the_option_then_the_environment(
    choice: str,
    environ: dict[str, str],
    coloured: bool,
    terminal: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal(80)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(output, "_choice", choice)
    assert ("\x1b[" in table(COLUMNS, ROWS)) is coloured


def test_no_terminal_no_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPUFLEET_FORCE_TTY", raising=False)
    assert "\x1b[" not in output.styled("text", "red")


# -------------------------------------------------------------------------- what others wrote in the cluster

EVIL = "x\n\x1b[31mz\x9b2J\u202e\x07"


@given(st.text())
def test_nothing_that_a_terminal_obeys_is_left_and_plain_text_stays(text: str) -> None:
    assert printable(text).isprintable()
    if text.isprintable():
        assert printable(text) == text


def test_a_name_in_a_table_an_explanation_or_an_error_cannot_move_the_cursor(
    terminal: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = table([Column("A"), Column("B")], [[EVIL, Cell(EVIL)]])
    told = Explanation("ns", "p", "never", (Reason("Bound", EVIL),), gang=EVIL)
    errors.report(GpufleetError(reason="NotFound", message=EVIL, hint=EVIL), "gpufleet", debug=False)
    terminal(200)
    aligned = table([Column("A")], [[EVIL]])
    monochrome = render(printable_fields(told)) + capsys.readouterr().err + shown + aligned
    for code in output.STYLES.values():
        monochrome = monochrome.replace(f"\x1b[{code}m", "")
    monochrome = monochrome.replace("\x1b[0m", "").replace("\x1b[1;31m", "").replace("\x1b[36m", "")
    assert all(line.replace("\t", "").isprintable() for line in monochrome.split("\n"))
    assert "x\\n\\x1b[31mz" in monochrome


def test_an_explanation_without_control_characters_is_shown_as_it_is() -> None:
    told = Explanation("ns", "p", "running", (Reason("Bound", "größer, 数", evidence={"need": 8}),), node="n")
    assert printable_fields(told) == told
    assert msgspec.to_builtins(printable_fields(told)) == msgspec.to_builtins(told)


# ---------------------------------------------------------------------------------------- full disk, watching


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_nobody_takes_is_no_defect(unbuffered: str) -> None:
    code = "import sys; from gpufleet.cli import main; sys.exit(main())"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code, "version"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
    assert done.returncode == 1
    assert done.stderr.startswith("error[OutputFailed]: cannot write the output: No space left on device\n")
    assert done.stderr.count("\n") == 2


def test_ctrl_c_is_the_way_out_of_a_watch() -> None:
    code = (
        "import sys; from gpufleet.cli.app import invoke, group\n"
        "import click; from gpufleet.cli.watching import show\n"
        "@click.command()\n"
        "def watch(): show(lambda: 'shown\\n', watch=True, interval_s=60)\n"
        "group.get_command = lambda ctx, name: watch\n"
        "sys.exit(invoke('gpufleet', ['status']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "shown\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == errors.INTERRUPTED
        assert process.stderr.read() == ""


@pytest.mark.parametrize("height", [1, 2, 3, 10, 24])
def test_what_is_watched_fits_into_the_terminal(height: int) -> None:
    text = "".join(f"row {number}\n" for number in range(23))
    shown = fitted(text, height).splitlines()
    assert len(shown) <= max(2, height - 1)
    if height < 24:
        assert shown[-1].startswith(f"... {23 - len(shown) + 1} more lines")
    else:
        assert "".join(f"{line}\n" for line in shown) == text
