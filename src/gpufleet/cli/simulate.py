"""`gpufleet simulate`: scheduling policies on traces, and fleets in virtual time."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpufleet.cli.options import everywhere, output_option
from gpufleet.cli.output import Cell, Column, print_data, table
from gpufleet.cli.simulate_time import run_command, synthetic_command
from gpufleet.simulator.published import LIVE, POLICIES, SEEDS, VARIANTS

if TYPE_CHECKING:
    from gpufleet.simulator.runs import Run

SHOWN_LOADS = (60, 80, 90, 100, 110, 130)
ALL = "all"


class Seeds(click.ParamType[tuple[int, ...]]):
    """A seed, or a range of seeds as 42-51."""

    name = "seeds"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """The seeds in order; raises a usage error."""
        if isinstance(value, tuple):
            return value
        first, _, last = str(value).partition("-")
        if not (first.isdecimal() and (last or first).isdecimal()) or int(last or first) < int(first):
            self.fail(f"{value!r} is neither a seed nor a range of seeds as 42-51", param, ctx)
        return tuple(range(int(first), int(last or first) + 1))


class FileGroup(click.Group):
    """A group that takes a file instead of a command: `simulate FILE` is `simulate run FILE`."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, but for what is no command and looks like a file, or is one."""
        if args[0] not in self.commands and ({"/", "."} & set(args[0]) or Path(args[0]).is_file()):
            args = [run_command.name or "", *args]
        return super().resolve_command(ctx, args)


@click.group(
    "simulate", cls=FileGroup, short_help="Scheduling policies on traces, and fleets in virtual time"
)
@everywhere
def command() -> None:
    """Replay what a cluster was asked for through scheduling policies, and compare what they make of it; or
    let jobs come, run and end on a fleet in virtual time, from a FILE or drawn.

    \b
    gpufleet simulate openb --policy fgd --policy gpufleet
    gpufleet simulate synthetic --nodes 50 --days 7
    gpufleet simulate load.jsonl
    """


command.add_command(synthetic_command)
command.add_command(run_command)


@command.command("openb", short_help="The openb trace: how many GPUs a policy allocates before none fits")
@click.option(
    "--variant",
    "chosen",
    multiple=True,
    default=("default",),
    show_default=True,
    metavar="NAME",
    help=f"The load: {', '.join(VARIANTS)}, or another one of the folder; {ALL}: those named here.",
)
@click.option(
    "--policy",
    "policies",
    multiple=True,
    type=click.Choice([LIVE, *POLICIES, ALL]),
    default=(LIVE,),
    show_default=True,
    help=f"Who places the pods: {LIVE} is the scheduler as it runs in a fleet, the others are published.",
)
@click.option(
    "--seed",
    "seeds",
    multiple=True,
    type=Seeds(),
    default=(SEEDS[:1],),
    metavar="N|N-M",
    help=f"Order of arrivals and clones (default: {SEEDS[0]}; published are {SEEDS[0]}-{SEEDS[-1]}).",
)
@click.option(
    "--traces",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of the traces (default: traces of $GPUFLEET_SHARED, else ../shared/traces).",
)
@click.option(
    "--picture",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Draw allocation over arrived load into FILE.svg or FILE.png.",
)
@output_option("json", "yaml")
@everywhere
def openb_command(
    chosen: tuple[str, ...],
    policies: tuple[str, ...],
    seeds: tuple[tuple[int, ...], ...],
    traces: Path | None,
    picture: Path | None,
    output: str | None,
) -> None:
    """Let the pods of the openb trace arrive until they ask for 130 % of its 6,212 GPUs; no pod ever ends.

    Shown is the share of all GPUs that is allocated when so many have arrived: the higher at 100, the less
    is left in fragments that nobody can use. --variant, --policy and --seed may be given several times; then
    every combination is run, and the output is a list.

    \b
    gpufleet simulate openb --policy fgd --policy gpufleet --picture openb.svg
    gpufleet simulate openb --variant gpuspec33 --policy bestfit --policy fgd -o json
    """
    from gpufleet.simulator.pictures import check_picture, draw

    if picture is not None:
        check_picture(picture)
    runs = list(
        _runs(traces, _named(chosen, VARIANTS), _named(policies, (*POLICIES, LIVE)), _distinct(seeds))
    )
    if picture is not None:
        draw(runs, picture)
    if output:
        answers = [one.answer() for one in runs]
        print_data(answers[0] if len(answers) == 1 else answers, output)
    else:
        sys.stdout.write(_text(runs))


def _named(given: Sequence[str], every: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(name for one in given for name in (every if one == ALL else (one,))))


def _distinct(seeds: Sequence[tuple[int, ...]]) -> list[int]:
    return list(dict.fromkeys(seed for some in seeds for seed in some))


def _runs(
    folder: Path | None, variants: Sequence[str], policies: Sequence[str], seeds: Sequence[int]
) -> Iterator[Run]:
    """Every combination, with progress on stderr. Raises GpufleetError."""
    import os
    import time

    from gpufleet.cli.progress import progress
    from gpufleet.simulator.openb import find_traces, read_trace
    from gpufleet.simulator.runs import run

    found = find_traces(folder, os.environ, Path.cwd())
    traces = [read_trace(found, variant) for variant in variants]
    plan = [(trace, policy, seed) for trace in traces for policy in policies for seed in seeds]
    doing = f"replaying openb, {len(plan)} run{'s' if len(plan) > 1 else ''} (percent)"
    with progress() as shown:
        for number, (trace, policy, seed) in enumerate(plan):

            def tell(share: float, done: int = number) -> None:
                shown.work(doing, int(100 * (done + share) / len(plan)), 100)

            began = time.perf_counter()
            finished = run(trace, policy, seed, tell)
            yield finished._replace(seconds=time.perf_counter() - began)


def _text(runs: Sequence[Run]) -> str:
    """A table with one line a run, and the mean where a policy had several seeds."""
    from gpufleet.simulator.runs import mean_percent

    columns = [Column("VARIANT"), Column("POLICY"), Column("SEED", number=True)]
    columns += [Column(f"AT {load}", number=True) for load in SHOWN_LOADS]
    columns += [Column("MIGRATIONS", drop=1, number=True), Column("SECONDS", drop=2, number=True)]
    groups: dict[tuple[str, str], list[Run]] = {}
    for one in runs:
        groups.setdefault((one.variant, one.policy), []).append(one)
    rows: list[list[str | Cell]] = []
    for (variant, policy), same in groups.items():
        for one in same:
            percents = _percents(one.outcome.allocation_percent)
            end = [str(one.outcome.migrations), f"{one.seconds:.2f}"]
            rows.append([variant, policy, str(one.seed), *percents, *end])
        if len(same) > 1:
            means = [Cell(text, "bold") for text in _percents(mean_percent(same))]
            rows.append([variant, policy, Cell("mean", "bold"), *means, "", ""])
    return table(columns, rows)


def _percents(curve: dict[int, float]) -> list[str]:
    return [f"{curve[load]:.2f}" if load in curve else "-" for load in SHOWN_LOADS]
