"""`gpufleet up`: start a local fleet, or take up what changed, and say how to reach it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gpufleet.cli.cluster import chosen_fleet
from gpufleet.cli.options import everywhere, fleet_name
from gpufleet.cli.output import styled
from gpufleet.cli.progress import progress

if TYPE_CHECKING:
    from gpufleet.local.up import Result


def _arguments(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> dict[str, tuple[str, ...]] | None:
    """COMPONENT=ARGUMENT pairs as arguments by component; None when none was given."""
    found: dict[str, tuple[str, ...]] = {}
    for value in values:
        component, equals, argument = value.partition("=")
        if not (component and equals and argument):
            raise click.BadParameter(f"{value!r} is not COMPONENT=ARGUMENT", ctx, param)
        found[component] = (*found.get(component, ()), argument)
    return found or None


@click.command(short_help="Start a local fleet, or take up what changed")
@click.option(
    "--fleet",
    metavar="FILE|PRESET",
    help="A fleet file, or small, medium, large (default: the last one, first small).",
)
@fleet_name
@click.option(
    "--scenario",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Run this scenario once the fleet is ready.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=1),
    default=180.0,
    show_default=True,
    metavar="SECONDS",
    help="How long the fleet may take to become ready, without building.",
)
@click.option(
    "--bridge",
    metavar="ADDRESS",
    help="One more address of this machine on which the API server answers, for containers; empty: none.",
)
@click.option(
    "--component-arg",
    "component_args",
    multiple=True,
    callback=_arguments,
    metavar="COMPONENT=ARGUMENT",
    help="One more argument for a component, as kube-apiserver=--v=4.",
)
@click.option("--authorization", hidden=True, help="Authorization mode of the API server.")
@click.option(
    "--unsafe-no-fsync/--fsync", default=None, hidden=True, help="Let etcd lose data in a power cut."
)
@everywhere
def command(
    fleet: str | None,
    name: str | None,
    scenario: Path | None,
    timeout: float,
    bridge: str | None,
    component_args: dict[str, tuple[str, ...]] | None,
    authorization: str | None,
    unsafe_no_fsync: bool | None,
) -> int:
    """Start a local fleet: the real Kubernetes control plane with simulated GPU nodes.

    On a running fleet it takes up what changed (fleet file, options, version) and otherwise does nothing.
    What is not given stays as it was at the last `up`. The control plane is built when it is needed for the
    first time.
    """
    from gpufleet.local.up import Request, up

    request = Request(
        name or chosen_fleet(None).name,
        fleet,
        bridge,
        authorization,
        unsafe_no_fsync,
        component_args,
        timeout,
    )
    with progress() as shown:
        result = up(request, shown)
    click.echo(_summary(result))
    if scenario is None:
        click.echo(_next_commands(result))
        return 0
    good = _play(scenario, result)
    click.echo(_next_commands(result))
    return 0 if good else 1


def _play(folder: Path, result: Result) -> bool:
    """Play a scenario on the fleet; whether every step came out as expected."""
    import asyncio

    from gpufleet.kube.client import Client
    from gpufleet.kube.config import load_config
    from gpufleet.local.scenario import play

    async def run() -> bool:
        config = load_config(str(result.layout.kubeconfig))
        async with Client(config, user_agent="gpufleet-scenario") as client:
            return await play(client, folder, click.echo)

    return asyncio.run(run())


def _summary(result: Result) -> str:
    if result.was_running and not result.changed:
        head = f"fleet {result.layout.name} is already running"
    else:
        head = f"fleet ready: {result.layout.name}, after {result.seconds:.1f} s"
    lines = [styled(head, "green")]
    for group in result.fleet.groups:
        gpus = f"{group.gpus} x {group.gpu}" if group.gpus else "no GPUs"
        cut = f", MIG {group.mig if isinstance(group.mig, str) else ' '.join(group.mig)}" if group.mig else ""
        nodes = f"{group.count} node{'s' if group.count > 1 else ''}"
        lines.append(f"  {group.name:<20}{nodes} of {gpus}{cut}")
    return "\n".join(lines)


def _next_commands(result: Result) -> str:
    name = result.layout.name
    flag = "" if name == "default" else f" --name {name}"
    return "\n".join(
        [
            "",
            f"export KUBECONFIG={result.layout.kubeconfig}",
            "",
            f"gpufleet status{flag}        what runs",
            f"gpufleet top gpus{flag}      who uses which GPU",
            f"gpufleet why POD{flag}       why a pod waits",
            f"gpufleet down{flag}          stop; the state stays",
        ]
    )
