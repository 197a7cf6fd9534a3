"""`gpufleet up`: start a local fleet, or take up what changed, and say how to reach it."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gpufleet.cli.cluster import chosen_fleet
from gpufleet.cli.options import Seconds, everywhere, fleet_name
from gpufleet.cli.output import printable_lines, styled
from gpufleet.cli.progress import progress
from gpufleet.local.layout import DEFAULT_FLEET

if TYPE_CHECKING:
    from gpufleet.local.scenario import Scenario
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
    type=Seconds(1),
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

    On a running fleet it takes up what changed (fleet file, options, gpufleet itself), tries again at once
    what keeps failing, registers deleted nodes again, and otherwise does nothing. What is not given stays as
    it was at the last `up`. The control plane is built when it is needed for the first time.
    """
    from gpufleet.local.up import Request, up

    request = Request(
        chosen_fleet(name).name,
        fleet,
        bridge,
        authorization,
        unsafe_no_fsync,
        component_args,
        timeout,
    )
    script = _load(scenario) if scenario else None
    with progress() as shown:
        result = up(request, shown)
    click.echo(_summary(result))
    if script is not None and not script.fits(result.fleet):
        click.echo(f"not played: {scenario} needs the preset {script.fleet}, this fleet has other machines")
        script = None
    if scenario is None or script is None:
        click.echo(_next_commands(result, "POD -n NAMESPACE"))
        return 0
    good, waiting = _play(scenario, script, result)
    click.echo(_next_commands(result, f"{waiting or 'POD'} -n {script.namespace}"))
    return 0 if good else 1


def _say(line: str) -> None:
    click.echo(printable_lines(line))


def _load(folder: Path) -> Scenario:
    from gpufleet.local.scenario import load

    return load(folder)


def _play(folder: Path, scenario: Scenario, result: Result) -> tuple[bool, str]:
    """Play a scenario on the fleet; whether every step came out as expected, and a pod that waits now."""
    import asyncio

    from gpufleet.kube.client import Client
    from gpufleet.kube.config import load_config
    from gpufleet.local.scenario import first_waiting, play

    async def run() -> tuple[bool, str]:
        config = load_config(str(result.layout.kubeconfig))
        async with Client(config, user_agent="gpufleet-scenario") as client:
            good = await play(client, folder, scenario, _say)
            return good, await first_waiting(client, scenario)

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


def _next_commands(result: Result, pod: str) -> str:
    name, program = result.layout.name, _program()
    flag = "" if name == DEFAULT_FLEET else f" --name {name}"
    told = [
        (f"{program} status{flag}", "what runs"),
        (f"{program} top gpus{flag}", "who uses which GPU"),
        (f"{program} why {pod}{flag}", "why a pod waits"),
        (f"{program} down{flag}", "stop; the state stays"),
    ]
    width = max(len(line) for line, _ in told) + 4
    lines = [f"{line:<{width}}{what}" for line, what in told]
    return "\n".join(["", f"export KUBECONFIG={shlex.quote(str(result.layout.kubeconfig))}", "", *lines])


def _program() -> str:
    """What to type for this very gpufleet: its name if the shell finds it, else the path of its script."""
    name, script = click.get_current_context().find_root().info_name or "gpufleet", Path(sys.argv[0])
    found = shutil.which("gpufleet")
    if script.name != "gpufleet" or not script.exists() or (found and script.samefile(found)):
        return name
    path, here = script.absolute(), Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))
