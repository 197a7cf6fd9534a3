"""`gpufleet completion SHELL`: the script that makes a shell ask gpufleet what may follow."""

from __future__ import annotations

import click

from gpufleet.cli.app import COMPLETE_VARIABLE, everywhere, group


@click.command(short_help="Tab completion for bash, zsh and fish")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@everywhere
def command(shell: str) -> None:
    """Print a completion script for a shell.

    \b
    bash:  source <(gpufleet completion bash)
    zsh:   source <(gpufleet completion zsh)
    fish:  gpufleet completion fish | source
    """
    from click.shell_completion import get_completion_class

    scripts = get_completion_class(shell)
    if scripts is None:
        raise click.UsageError(f"no completion for {shell}")
    click.echo(scripts(group, {}, "gpufleet", COMPLETE_VARIABLE).source())
