"""The command line, one module per noun, each imported only when its command runs.

This package itself imports nothing but the table of commands, so that `gpufleet --help` answers in the time
that Python needs to start: click alone takes longer than that (test_cli_startup guards it).
"""

from __future__ import annotations

import os
import sys


def main() -> int:
    """The command `gpufleet`; the exit code."""
    return _run("gpufleet")


def kubectl_main() -> int:
    """The same as a plugin of kubectl: `kubectl gpufleet`."""
    return _run("kubectl gpufleet")


def _run(program: str) -> int:
    arguments = sys.argv[1:]
    if arguments in ([], ["--help"], ["-h"], ["help"]) and "_GPUFLEET_COMPLETE" not in os.environ:
        return _print_overview(program)
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    from gpufleet.cli.app import invoke

    return invoke(program, arguments)


def _print_overview(program: str) -> int:
    from gpufleet.cli.commands import overview

    try:
        sys.stdout.write(overview(program))
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
