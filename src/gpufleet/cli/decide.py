"""`gpufleet decide FILE`: what the scheduler would do with a saved snapshot, and why."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from gpufleet.cli.options import everywhere, output_option
from gpufleet.cli.output import printable, styled
from gpufleet.cli.recordings import read_recording, schedulers_option

if TYPE_CHECKING:
    from gpufleet.fleet.plans import Action, Plan

STYLES = {"Bind": "green", "Evict": "red", "Unschedulable": "yellow"}


@click.command("decide")
@click.argument("file")
@output_option("json", "text")
@schedulers_option("those in the file")
@everywhere
def command(file: str, output: str | None, schedulers: str | None) -> None:
    """Print the plan for a saved snapshot (FILE, or - for stdin): every action with its reasons.

    It is what the scheduler of a live cluster decides in this state. The same file gives the same bytes,
    on any machine. Nothing is carried out.

    \b
    gpufleet snapshot save cluster.json.gz
    gpufleet decide cluster.json.gz -o json
    """
    from gpufleet.fleet.plan_text import plan_bytes

    plan = read_recording(file, schedulers).decide()
    if output == "json":
        sys.stdout.write(plan_bytes(plan).decode())
    else:
        sys.stdout.write(render(plan))
    sys.stdout.flush()


def render(plan: Plan) -> str:
    """The plan for people: a line for each action, its reasons below."""
    if not plan.actions:
        return "nothing to do\n"
    return "".join(f"{line}\n" for action in plan.actions for line in _lines(action))


def _lines(action: Action) -> Iterator[str]:
    kind = type(action).__name__
    yield f"{styled(f'{kind:13}', STYLES.get(kind, ''))}  {printable(_what(action))}"
    width = max((len(reason.code) for reason in action.reasons), default=0)
    for reason in action.reasons:
        yield f"  {reason.code:{width}}  {printable(reason.message)}"


def _what(action: Action) -> str:
    from gpufleet.fleet import plans

    pod = action.pod.key
    match action:
        case plans.Bind():
            picked = [device for pick in action.picks for device in pick.devices]
            return f"{pod} to {action.node}" + (f" with {', '.join(picked)}" if picked else "")
        case plans.Evict():
            return f"{pod} from {action.pod.node} for {action.beneficiary}"
        case plans.Nominate():
            return f"{pod} to {action.node}" if action.node else f"{pod} to no node any more"
        case plans.SelectNode():
            return f"{action.node} for claim {action.claim} of {pod}"
        case plans.BindVolume():
            return f"{action.volume} to claim {action.claim} of {pod}"
        case plans.Cut():
            made = f"{action.profile}@{action.start}" if action.profile else "whole"
            return f"{action.gpu} of {action.node} for {pod}: {made}"
        case _:
            return pod
