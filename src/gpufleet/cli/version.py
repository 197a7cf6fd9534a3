"""`gpufleet version`: what is installed here."""

from __future__ import annotations

import platform

import click

import gpufleet
from gpufleet.cli.options import everywhere, output_option
from gpufleet.cli.output import print_data


@click.command(short_help="Versions of gpufleet, Python and the control plane")
@output_option("json", "yaml")
@everywhere
def command(output: str | None) -> None:
    """Show the versions of gpufleet, of Python and of the Kubernetes that a local fleet runs."""
    from gpufleet.local.controlplane import KUBERNETES_VERSION

    versions = {
        "gpufleet": gpufleet.__version__,
        "python": platform.python_version(),
        "kubernetes": KUBERNETES_VERSION,
        "platform": f"{platform.system().lower()}/{platform.machine()}",
    }
    if output:
        print_data(versions, output)
        return
    for name, value in versions.items():
        click.echo(f"{name:<12}{value}")
