"""`gpufleet kubeconfig`: where the kubeconfig of a local fleet is, its content, or merged into the user's
own.
"""

from __future__ import annotations

import os
from pathlib import Path

import click

from gpufleet.cli.cluster import existing_fleet
from gpufleet.cli.options import everywhere, fleet_name
from gpufleet.fleet.errors import GpufleetError


@click.command(short_help="Where the kubeconfig is, what is in it, merge it into yours")
@click.argument("what", type=click.Choice(["path", "print"]), required=False)
@fleet_name
@click.option("--merge", is_flag=True, help="Add the fleet's context to your own kubeconfig and choose it.")
@click.option(
    "--into",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The kubeconfig to merge into (default: the first of $KUBECONFIG, else ~/.kube/config).",
)
@everywhere
def command(what: str | None, name: str | None, merge: bool, into: Path | None) -> None:
    """Show the path of a local fleet's kubeconfig (the default), print it, or merge it into your own.

    The kubeconfig holds an administrator's key: whoever can read it owns the fleet.
    """
    _check(what, into, merge=merge)
    layout = existing_fleet(name)
    if not layout.kubeconfig.exists():
        raise GpufleetError(
            reason="KubeconfigMissing",
            message=f"{layout.kubeconfig} does not exist",
            hint=f"gpufleet up --name {layout.name}",
        )
    if merge:
        from gpufleet.local.kubeconfig import context_name, merge_into

        target = into or _own_kubeconfig()
        if target.resolve() != layout.kubeconfig.resolve():
            merge_into(target, layout.kubeconfig)
        click.echo(f"context {context_name(layout.name)} is in {target} and is the current one")
    elif what == "print":
        click.echo(layout.kubeconfig.read_text(encoding="utf-8"), nl=False)
    else:
        click.echo(layout.kubeconfig)


def _check(what: str | None, into: Path | None, *, merge: bool) -> None:
    """Refuse what asks for two things at once, or for a file without saying what to do with it."""
    if merge and what:
        raise GpufleetError(
            reason="Usage",
            message=f"{what} and --merge exclude each other",
            hint=f"gpufleet kubeconfig {what}, or gpufleet kubeconfig --merge",
        )
    if into is not None and not merge:
        raise GpufleetError(
            reason="Usage",
            message="--into says where to merge, and --merge is missing",
            hint=f"gpufleet kubeconfig --merge --into {into}",
        )


def _own_kubeconfig() -> Path:
    """The file that kubectl would write to."""
    named = [part for part in os.environ.get("KUBECONFIG", "").split(os.pathsep) if part]
    if named:
        return Path(named[0]).expanduser()
    if not os.environ.get("HOME"):
        raise GpufleetError(
            reason="NoHome",
            message="HOME is not set, so you have no kubeconfig",
            hint="name it with --into FILE",
        )
    return Path.home() / ".kube" / "config"
