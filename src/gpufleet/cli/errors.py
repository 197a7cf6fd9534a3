"""The boundary between errors and the user: what happened, what to type next, and an exit code. No traceback.

The table of exit codes is the contract with scripts. A defect of ours is one line with the way to see more.
"""

from __future__ import annotations

import difflib
import sys
import traceback
from typing import TextIO

import click

from gpufleet.cli.output import printable_lines, use_colour
from gpufleet.fleet.errors import GpufleetError

FAILED, USAGE, DEFECT, NO_ACCESS, NOT_FOUND, TIMEOUT, INTERRUPTED = 1, 2, 3, 4, 5, 6, 130
BROKEN_PIPE, TERMINATED = 141, 143

CODES = {
    "Unauthorized": NO_ACCESS,
    "Forbidden": NO_ACCESS,
    "NoPermission": NO_ACCESS,
    "NotFound": NOT_FOUND,
    "FleetNotFound": NOT_FOUND,
    "ContainerNotFound": NOT_FOUND,
    "ContextNotFound": NOT_FOUND,
    "NoCluster": NOT_FOUND,
    "TracesNotFound": NOT_FOUND,
    "KubeconfigMissing": NOT_FOUND,
    "Timeout": TIMEOUT,
    "ServerTimeout": TIMEOUT,
    "FleetBusy": TIMEOUT,
    "BadBridge": USAGE,
    "BadFleetName": USAGE,
    "FleetNotNamed": USAGE,
    "UnknownComponent": USAGE,
    "UnknownVariant": USAGE,
    "Usage": USAGE,
}
"""Exit code by reason; every other reason is 1."""


class Terminated(BaseException):
    """SIGTERM arrived; like KeyboardInterrupt, so that what was started is cleaned up on the way out."""


def exit_code(error: BaseException) -> int:
    """The exit code that tells a script what kind of failure this was."""
    match error:
        case GpufleetError():
            return CODES.get(error.reason, FAILED)
        case click.UsageError():
            return USAGE
        case KeyboardInterrupt() | click.Abort():
            return INTERRUPTED
        case Terminated():
            return TERMINATED
        case BrokenPipeError():
            return BROKEN_PIPE
        case click.exceptions.Exit():
            return error.exit_code
        case click.ClickException():
            return FAILED
        case _:
            return DEFECT


def report(error: BaseException, program: str, *, debug: bool, stream: TextIO | None = None) -> int:
    """Say on stderr what went wrong and what to do; the exit code."""
    out = stream or sys.stderr
    code = exit_code(error)
    if (
        debug
        and code not in (INTERRUPTED, BROKEN_PIPE, TERMINATED)
        and not isinstance(error, click.exceptions.Exit)
    ):
        out.write("".join(traceback.format_exception(error)))
    match error:
        case click.exceptions.Exit() | BrokenPipeError():
            pass
        case GpufleetError():
            _say(out, error.reason, error.message, error.hint)
        case click.UsageError():
            _say(out, "Usage", _usage_message(error), _usage_hint(error, program))
        case click.ClickException():
            _say(out, "Failed", error.format_message(), "")
        case KeyboardInterrupt() | click.Abort():
            _say(out, "Interrupted", "stopped by Ctrl-C", "")
        case Terminated():
            _say(out, "Interrupted", "stopped by SIGTERM", "")
        case _:
            what = f"{type(error).__name__}: {error}".splitlines()[0]
            _say(out, "Internal", f"gpufleet failed in a way it should not: {what}", _debug_hint(program))
    return code


def nearest(word: str, known: list[str]) -> str:
    """The one of `known` that `word` was probably meant to be, or nothing."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return close[0] if close else ""


def _say(out: TextIO, reason: str, message: str, hint: str) -> None:
    head, hint_head = f"error[{reason}]:", "hint:"
    if use_colour(out):
        head, hint_head = f"\x1b[1;31m{head}\x1b[0m", f"\x1b[36m{hint_head}\x1b[0m"
    out.write(f"{head} {printable_lines(message)}\n")
    if hint:
        out.write(f"  {hint_head} {printable_lines(hint)}\n")


def _usage_message(error: click.UsageError) -> str:
    """The sentence of click, the way ours are written: no capital, no full stop, no guess (the hint has
    that).
    """
    if isinstance(error, click.exceptions.NoArgsIsHelpError) and isinstance(error.ctx.command, click.Group):
        return f"what to do is missing: {', '.join(error.ctx.command.list_commands(error.ctx))}"
    text = error.message if isinstance(error, click.NoSuchOption) else error.format_message()
    text = text.strip().removesuffix(".")
    return text[:1].lower() + text[1:]


def _usage_hint(error: click.UsageError, program: str) -> str:
    path = error.ctx.command_path if error.ctx else program
    if isinstance(error, click.NoSuchOption) and error.possibilities:
        return f"did you mean {error.possibilities[0]}? see {path} --help"
    return f"{path} --help"


def _debug_hint(program: str) -> str:
    arguments = " ".join(sys.argv[1:])
    return f"please report it with the output of: {program} --debug {arguments}"
