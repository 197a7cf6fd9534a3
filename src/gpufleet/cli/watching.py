"""Show something again and again: redrawn on a terminal, one after the other in a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from gpufleet.cli.output import is_terminal

_HOME_AND_CLEAR = "\x1b[H\x1b[2J"


def show(render: Callable[[], str], *, watch: bool, interval_s: float) -> None:
    """Write what `render` returns to stdout, once or until Ctrl-C."""
    while True:
        text = render()
        if watch and is_terminal(sys.stdout):
            sys.stdout.write(_HOME_AND_CLEAR)
        sys.stdout.write(text)
        sys.stdout.flush()
        if not watch:
            return
        time.sleep(interval_s)
