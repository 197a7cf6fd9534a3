"""Show something again and again: redrawn on a terminal, one after the other in a pipe."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator

import click

from gpufleet.cli.errors import INTERRUPTED
from gpufleet.cli.output import is_terminal

_HOME_AND_CLEAR = "\x1b[H\x1b[2J"


def show(render: Callable[[], str], *, watch: bool, interval_s: float) -> None:
    """Write what `render` returns to stdout, once or until Ctrl-C."""
    if not watch:
        _write(render())
        return
    with until_ctrl_c():
        while True:
            text = render()
            if is_terminal(sys.stdout):
                text = _HOME_AND_CLEAR + fitted(text, shutil.get_terminal_size().lines)
            _write(text)
            time.sleep(interval_s)


@contextlib.contextmanager
def until_ctrl_c() -> Iterator[None]:
    """For what has no other end: Ctrl-C is the way out and not an error to be told."""
    try:
        yield
    except KeyboardInterrupt:
        raise click.exceptions.Exit(INTERRUPTED) from None


def fitted(text: str, height: int) -> str:
    """The first lines of a text that a terminal of `height` lines shows without scrolling; the last one says
    how many are left out.
    """
    lines = text.splitlines(keepends=True)
    room = max(1, height - 2)
    if len(lines) <= room + 1:
        return text
    left = len(lines) - room
    return "".join(lines[:room]) + f"... {left} more lines: make the window higher, or look without --watch\n"


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
