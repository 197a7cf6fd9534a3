"""`gpufleet down`: end every process of a local fleet, and with --purge forget its state."""

from __future__ import annotations

import click

from gpufleet.cli.cluster import chosen_fleet, no_fleet
from gpufleet.cli.options import everywhere, fleet_name
from gpufleet.fleet.errors import GpufleetError
from gpufleet.local.layout import DEFAULT_FLEET


@click.command(short_help="Stop a local fleet; its state stays")
@fleet_name
@click.option("--purge", is_flag=True, help="Also remove the fleet's state: its objects, keys and logs.")
@everywhere
def command(name: str | None, purge: bool) -> None:
    """Stop a local fleet. Its state stays, and the next `up` continues with it.

    Works also when the fleet's supervisor was killed. A second `down` has nothing to do and succeeds; a fleet
    that was never started cannot be forgotten. One other than `default` is forgotten only by its name.
    """
    from gpufleet.local.down import down

    layout = chosen_fleet(name)
    if purge and name is None and layout.name != DEFAULT_FLEET:
        raise GpufleetError(
            reason="FleetNotNamed",
            message=f"--purge would forget fleet {layout.name}, because $KUBECONFIG names its kubeconfig",
            hint=f"gpufleet down --purge --name {layout.name} (or --name {DEFAULT_FLEET})",
        )
    known = layout.root.exists()
    did = down(layout, click.echo, purge=purge)
    if purge and not known and not did:
        raise no_fleet(layout)
    if purge:
        click.echo(f"fleet {layout.name} is stopped and forgotten")
    elif did and not layout.exists:
        click.echo(f"fleet {layout.name} is stopped; its state was gone already")
    elif did:
        click.echo(f"fleet {layout.name} is stopped; its state stays in {layout.root}")
    else:
        click.echo(f"fleet {layout.name} is not running")
