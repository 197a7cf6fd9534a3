"""`gpufleet status`: is the local fleet up, what runs, how many GPUs are free, what is pending."""

from __future__ import annotations

import click

from gpufleet.cli.cluster import existing_fleet
from gpufleet.cli.options import everywhere, fleet_name, output_option, watch_options
from gpufleet.cli.watching import show


@click.command(short_help="What runs, how many GPUs are free, what is pending")
@fleet_name
@output_option("wide", "json", "yaml")
@watch_options
@everywhere
def command(name: str | None, output: str | None, watch: bool, interval: float) -> None:
    """Show the state of a local fleet: its processes, GPUs and pods.

    The exit code is 0 whenever the question could be answered, also for a fleet that is stopped (`ready` is
    then false), and 5 for a fleet that does not exist.
    """
    layout = existing_fleet(name)
    from gpufleet.cli import fleet_status

    show(lambda: fleet_status.render(layout, output, watch=watch), watch=watch, interval_s=interval)
