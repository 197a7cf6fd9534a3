"""`gpufleet mig`: what GPUs can be cut into, and how to get from one cut to another."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from gpufleet.cli.app import everywhere
from gpufleet.cli.output import print_data, styled
from gpufleet.fleet.errors import GpufleetError

if TYPE_CHECKING:
    from gpufleet.fleet.mig import Geometry, Placement
    from gpufleet.fleet.mig_planning import GPUCut, MigPlan

_INSTANCE = re.compile(r"(?P<profile>[0-9a-z.+]+)@(?P<start>[0-9]+)(?P<busy>\*?)")


@click.group("mig", short_help="What GPUs can be cut into, and how to get there")
@everywhere
def command() -> None:
    """What GPUs can be cut into by MIG, and how to get from one cut to another."""


@command.command("plan", short_help="The fewest instances to destroy for those that are wanted")
@click.option("--product", required=True, metavar="NAME", help="The GPU, as NVIDIA-H100-80GB-HBM3 or h100.")
@click.option(
    "--have",
    default="",
    metavar="INSTANCES",
    help="What is there: PROFILE@START,... with * after one that is in use, and ; between GPUs.",
)
@click.option("--want", metavar="PROFILES", help="The instances to add: PROFILE,...")
@click.option(
    "--layout", "layout_name", metavar="NAME", help="Cut every GPU into this layout, as all-balanced."
)
@click.option("-o", "--output", type=click.Choice(["json", "yaml"]), help="The form of the output.")
@everywhere
def plan_command(
    product: str, have: str, want: str | None, layout_name: str | None, output: str | None
) -> None:
    """Plan a change of MIG instances: what to destroy, what to create, or what is in the way.

    Instances in use are never touched. Idle ones stay where they can: no plan destroys fewer. With --want the
    instances of --have do not count towards what is wanted; with --layout they do. A start is a memory slice.

    With several GPUs an instance is written with its GPU, as 1:3g.40gb@4. Whether there is a plan is in the
    answer (`feasible`), not in the exit code.

    \b
    gpufleet mig plan --product h100 --have '1g.10gb@0*,2g.20gb@2' --want '3g.40gb,1g.10gb'
    gpufleet mig plan --product h100 --have '1g.10gb@6*;7g.80gb@0' --layout all-balanced
    """
    from gpufleet.fleet.mig import geometry_of, layout
    from gpufleet.fleet.mig_planning import plan, relayout
    from gpufleet.fleet.products import find_product

    if (want is None) == (layout_name is None):
        raise click.UsageError("give either --want or --layout")
    geometry = geometry_of(find_product(product))
    gpus = [_cut(geometry, text, index) for index, text in enumerate(have.split(";"))]
    if want is not None:
        found = plan(gpus, [word.strip() for word in want.split(",") if word.strip()])
    else:
        found = relayout(gpus, [layout(geometry, layout_name or "")] * len(gpus))
    answer = _answer(found)
    if output:
        print_data(answer, output)
    else:
        click.echo(_text(answer, found))


def _cut(geometry: Geometry, text: str, index: int) -> GPUCut:
    """The instances of one GPU as the user wrote them; raises GpufleetError for what no GPU can have."""
    from gpufleet.fleet.mig import place
    from gpufleet.fleet.mig_planning import GPUCut

    busy: list[Placement] = []
    idle: list[Placement] = []
    for word in filter(None, (part.strip() for part in text.split(","))):
        instance, used = _instance(geometry, word)
        (busy if used else idle).append(instance)
    slices = [number for one in busy + idle for number in range(one.start, one.start + one.size)]
    if len(set(slices)) < len(slices) or place(geometry, (), kept=busy + idle) is None:
        raise GpufleetError(
            reason="ImpossibleMigInstances",
            message=f"no GPU can have the instances of --have at once (GPU {index}: {text.strip()})",
            hint="instances may not overlap, and each profile has a limit; see nvidia-smi mig -lgi",
        )
    return GPUCut(geometry, tuple(sorted(busy)), tuple(sorted(idle)))


def _instance(geometry: Geometry, word: str) -> tuple[Placement, bool]:
    from gpufleet.fleet.mig import Placement

    match = _INSTANCE.fullmatch(word)
    if match is None:
        raise GpufleetError(
            reason="BadMigInstance",
            message=f"--have has {word!r}, which is not PROFILE@START or PROFILE@START*",
            hint="for example --have '1g.10gb@0*,2g.20gb@2'",
        )
    profile, start = geometry.profile(match["profile"]), int(match["start"])
    if start not in profile.starts:
        raise GpufleetError(
            reason="BadMigInstance",
            message=f"{profile.name} cannot start at memory slice {start}",
            hint=f"starts of {profile.name}: {', '.join(map(str, sorted(profile.starts)))}",
        )
    return Placement(start, profile.size, profile.name), bool(match["busy"])


def _answer(found: MigPlan) -> dict[str, Any]:
    several = len(found.gpus) > 1

    def texts(index: int, placements: tuple[Placement, ...]) -> list[str]:
        return [f"{index}:{one.text}" if several else one.text for one in placements]

    changes = list(enumerate(found.gpus))
    return {
        "feasible": found.feasible,
        "destroy": [text for index, change in changes for text in texts(index, change.destroy)],
        "create": [text for index, change in changes for text in texts(index, change.create)],
        "layout": [text for index, change in changes for text in texts(index, change.layout)],
        "blocked_by": [text for one in found.blocked_by for text in texts(one.gpu, (one.placement,))],
    }


def _text(answer: dict[str, Any], found: MigPlan) -> str:
    verdict = styled("yes", "green") if found.feasible else styled("no", "red")
    lines = [f"{'feasible':<10}  {verdict}"]
    for title in ("destroy", "create", "layout", "blocked_by"):
        if answer[title]:
            lines.append(f"{title.replace('_', ' '):<10}  {', '.join(answer[title])}")
    return "\n".join([*lines, *(f"{reason.message} [{reason.code}]" for reason in found.reasons)])
