"""The command group: finds a command's module when it is named, and turns every outcome into an exit code."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

import gpufleet
from gpufleet.cli import errors
from gpufleet.cli.commands import COMMANDS, overview
from gpufleet.cli.output import choose_colour, swallow_pipe
from gpufleet.fleet.errors import GpufleetError

COMPLETE_VARIABLE = "_GPUFLEET_COMPLETE"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class LazyGroup(click.Group):
    """A group that knows its commands from the table and imports a command's module only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command, in the order of the help text."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, or None."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(COMMANDS[cmd_name][0])
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with a guess for a command that does not exist."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            guess = errors.nearest(name, list(COMMANDS))
            raise UnknownCommand(name, guess, ctx)
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Names of commands from the table, because a shell that waits for Tab cannot wait for imports."""
        found = [
            CompletionItem(name, help=COMMANDS[name][1]) for name in COMMANDS if name.startswith(incomplete)
        ]
        return found + click.Command.shell_complete(self, ctx, incomplete)

    def get_help(self, ctx: click.Context) -> str:
        """The overview of all commands."""
        return overview(ctx.command_path).rstrip()


class UnknownCommand(click.UsageError):
    """A command that does not exist."""

    def __init__(self, name: str, guess: str, ctx: click.Context) -> None:
        super().__init__(f"no such command: {name}" + (f"; did you mean {guess}?" if guess else ""), ctx)


def _set_colour(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value:
        choose_colour(value)


def _show_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        click.echo(f"gpufleet {gpufleet.__version__}")
        ctx.exit()


def everywhere(command: Any) -> Any:
    """The options that every command has: --color and --debug."""
    colour = click.option(
        "--color",
        type=click.Choice(["auto", "always", "never"]),
        callback=_set_colour,
        expose_value=False,
        help="Colour of the output; auto: on a terminal, unless NO_COLOR is set.",
    )
    debug = click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
    return colour(debug(command))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, callback=_show_version, expose_value=False, help="Show the version.")
@everywhere
def group() -> None:
    """The GPU layer for Kubernetes."""


def invoke(program: str, arguments: Sequence[str]) -> int:
    """Run one command line; the exit code. Errors are told on stderr, never raised."""
    debug = bool(os.environ.get("GPUFLEET_DEBUG")) or "--debug" in arguments
    signal.signal(signal.SIGTERM, _terminate)
    try:
        if COMPLETE_VARIABLE in os.environ:
            return _complete(program, os.environ[COMPLETE_VARIABLE])
        with group.make_context(program, list(arguments)) as context:
            result = group.invoke(context)
        sys.stdout.flush()
    except BrokenPipeError:
        swallow_pipe(sys.stdout)
        return errors.BROKEN_PIPE
    except BaseException as error:  # noqa: BLE001 - this is where every error becomes words and an exit code
        return errors.report(_told(error), program, debug=debug)
    return result if isinstance(result, int) else 0


def _told(error: BaseException) -> BaseException:
    """The error as it is told: output that its place does not take (a full disk) is no defect of ours."""
    if not isinstance(error, OSError) or error.errno not in _FULL or error.filename is not None:
        return error
    swallow_pipe(sys.stdout)
    return GpufleetError(
        reason="OutputFailed",
        message=f"cannot write the output: {error.strerror}",
        hint="write it to another place",
    )


def _complete(program: str, instruction: str) -> int:
    """Answer the shell, which asks by an environment variable what may follow."""
    from click.shell_completion import shell_complete

    return shell_complete(group, {}, program, COMPLETE_VARIABLE, instruction)


def _terminate(*_: object) -> None:
    raise errors.Terminated
