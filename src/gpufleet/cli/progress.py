"""Progress on stderr: one live line with a bar on a terminal, a plain line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Protocol, Self

from gpufleet.cli.output import is_terminal, swallow_pipe

_PLAIN_EVERY_S = 10.0


class TerminalProgress(Protocol):
    """What `local.progress.Progress` asks for, as a context that tidies up the terminal."""

    def say(self, text: str) -> None: ...
    def work(self, text: str, done: int = 0, total: int = 0) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def progress() -> TerminalProgress:
    """The progress that suits stderr."""
    return LiveProgress() if is_terminal(sys.stderr) else PlainProgress()


class PlainProgress:
    """Lines: each new step once, and a step that lasts again every ten seconds with what is done of it."""

    def __init__(self) -> None:
        self._text = ""
        self._began = self._told = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to tidy up: every line was flushed."""

    def say(self, text: str) -> None:
        """A line that stays. A reader that has gone away (`up 2>&1 | head`) does not stop the work."""
        try:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()
        except BrokenPipeError:
            swallow_pipe(sys.stderr)

    def work(self, text: str, done: int = 0, total: int = 0) -> None:
        """What is being done now."""
        now = time.monotonic()
        if text != self._text:
            self._text, self._began, self._told = text, now, now
            self.say(text)
        elif now - self._told >= _PLAIN_EVERY_S:
            self._told = now
            share = f" {done}/{total}" if total else ""
            self.say(f"{text}{share} ({now - self._began:.0f} s)")


class LiveProgress:
    """One line that rich keeps redrawing: what is done, a bar when the amount is known, and for how long
    already.
    """

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
        from rich.progress import TimeElapsedColumn as Elapsed
        from rich.progress import TimeRemainingColumn as Remaining

        console = Console(stderr=True)
        task = TextColumn("{task.description}")
        self._spinner = Progress(SpinnerColumn(), task, Elapsed(), console=console, transient=True)
        self._bar = Progress(
            SpinnerColumn(), task, BarColumn(), MofNCompleteColumn(), Elapsed(), Remaining(), console=console,
            transient=True,
        )  # fmt: skip
        self._shown = self._spinner
        self._task = self._spinner.add_task("starting", total=None)
        self._text = ""

    def __enter__(self) -> Self:
        self._shown.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._shown.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        self._shown.console.print(text, highlight=False, markup=False)

    def work(self, text: str, done: int = 0, total: int = 0) -> None:
        """What is being done now."""
        wanted = self._bar if total else self._spinner
        if text != self._text or wanted is not self._shown:
            self._text = text
            self._shown.remove_task(self._task)
            self._shown.stop()
            self._shown = wanted
            self._task = wanted.add_task(text, total=total or None)
            wanted.start()
        self._shown.update(self._task, completed=done, total=total or None)
