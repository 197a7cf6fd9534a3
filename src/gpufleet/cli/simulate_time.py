"""`gpufleet simulate synthetic` and `run`: jobs that come and end, decided by the scheduler."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gpufleet.cli.options import everywhere, output_option
from gpufleet.cli.output import Cell, Column, print_data, table

if TYPE_CHECKING:
    from gpufleet.simulator.timeline import Timeline
    from gpufleet.simulator.traces import Load
    from gpufleet.simulator.waits import Summary, Waits

F = TypeVar("F", bound=Callable[..., Any])

INTERVAL_S = 1
_DAY_S = 86_400
_UNITS = (("d", _DAY_S), ("h", 3_600), ("m", 60), ("s", 1))


def _time_options(function: F) -> F:
    """--interval and --picture."""
    interval = click.option(
        "--interval",
        type=click.IntRange(min=0),
        default=INTERVAL_S,
        show_default=True,
        metavar="SECONDS",
        help="Decide at most so often: what happens sooner after a decision waits for the rest of it.",
    )
    picture = click.option(
        "--picture",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="Draw allocated GPUs, and those that jobs wait for, over time into FILE.svg or FILE.png.",
    )
    return interval(picture(function))


@click.command(
    "synthetic", short_help="A month of a fleet without data: jobs drawn as public traces have them"
)
@click.option(
    "--nodes",
    type=click.IntRange(min=1),
    default=400,
    show_default=True,
    metavar="N",
    help="Nodes with 8 GPUs each.",
)
@click.option(
    "--days",
    type=click.IntRange(min=1),
    default=30,
    show_default=True,
    metavar="D",
    help="Days for which jobs come; then it ends.",
)
@click.option(
    "--seed",
    type=int,
    default=42,
    show_default=True,
    metavar="S",
    help="What is drawn; the same seed gives the same jobs.",
)
@click.option(
    "--load",
    "load_percent",
    type=click.IntRange(min=1),
    default=90,
    show_default=True,
    metavar="PERCENT",
    help="GPU-seconds that jobs ask for, of those that there are.",
)
@click.option(
    "--write",
    "written",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the nodes and jobs to FILE (gzipped where it ends with .gz) instead of running them.",
)
@_time_options
@output_option("json")
@everywhere
def synthetic_command(
    nodes: int,
    days: int,
    seed: int,
    load_percent: int,
    written: Path | None,
    interval: int,
    picture: Path | None,
    output: str | None,
) -> None:
    """Let a fleet live for some days of virtual time with jobs that nobody had to collect.

    Shapes, durations and hours of arrival are those of public traces; the fleet is empty at the beginning.
    The scheduler is the one that runs in a cluster.

    \b
    gpufleet simulate synthetic --nodes 50 --days 7 --picture week.svg
    gpufleet simulate synthetic --nodes 4 --days 1 --write load.jsonl
    """
    from gpufleet.simulator.loadfile import write_load
    from gpufleet.simulator.synthetic import synthetic_load

    load = synthetic_load(nodes, days, seed, load_percent)
    if written is not None:
        write_load(load, written)
        sys.stderr.write(f"wrote {len(load.nodes)} nodes and {len(load.jobs)} jobs to {written}\n")
        return
    _simulate(load, days * _DAY_S, interval, picture, output)


@click.command(
    "run",
    short_help="Your own nodes and jobs from a file",
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--days",
    type=click.IntRange(min=1),
    metavar="D",
    help="Stop after so many days from second 0 (default: when nothing happens any more).",
)
@_time_options
@output_option("json")
@everywhere
def run_command(
    file: Path, days: int | None, interval: int, picture: Path | None, output: str | None
) -> None:
    """Let the jobs of FILE come to the nodes of FILE, run and end, decided by the scheduler that runs in a
    cluster.

    FILE has one JSON object a line, {"node": {...}}, {"job": {...}} or {"queue": {...}}, and may be gzipped;
    `gpufleet simulate synthetic --write FILE` makes an example. `gpufleet simulate FILE` is the same.

    \b
    gpufleet simulate run load.jsonl
    gpufleet simulate run load.jsonl.gz --picture load.svg -o json
    """
    from gpufleet.simulator.loadfile import read_load

    load = read_load(file)
    _simulate(load, None if days is None else days * _DAY_S, interval, picture, output)


def _simulate(
    load: Load, until_s: int | None, interval_s: int, picture: Path | None, output: str | None
) -> None:
    import time

    from gpufleet.cli.progress import progress
    from gpufleet.simulator.pictures import check_picture
    from gpufleet.simulator.timeline import simulate
    from gpufleet.simulator.timeline_pictures import draw_timeline
    from gpufleet.simulator.waits import answer, summary

    if picture is not None:
        check_picture(picture)
    doing = f"simulating {len(load.jobs)} jobs on {len(load.nodes)} nodes (percent)"
    began = time.perf_counter()
    with progress() as shown:
        timeline = simulate(load, until_s, interval_s, lambda share: shown.work(doing, int(100 * share), 100))
    seconds = time.perf_counter() - began
    if picture is not None:
        draw_timeline(timeline, picture)
    if output:
        print_data(answer(timeline, seconds), output)
    else:
        sys.stdout.write(_table(summary(timeline)))
        sys.stderr.write(_told(summary(timeline), timeline, seconds))


def _table(numbers: Summary) -> str:
    """A table with one line a size, and one for all."""
    columns = [Column("GPUS"), *(Column(title, number=True) for title in ("JOBS", "STARTED", "WAITING"))]
    columns += [Column(title, number=True) for title in ("MEAN WAIT", "P95 WAIT", "LONGEST WAIT")]
    rows: list[list[str | Cell]] = [[size, *_row(one)] for size, one in numbers.waits_by_size.items()]
    rows.append([Cell("all", "bold"), *(Cell(text, "bold") for text in _row(numbers.waits))])
    return table(columns, rows)


def _row(waits: Waits) -> list[str]:
    counts = [str(waits.jobs), str(waits.started), str(waits.waiting)]
    return [*counts, *map(_lasting, (waits.mean_s, waits.p95_s, waits.longest_s))]


def _told(numbers: Summary, timeline: Timeline, seconds: float) -> str:
    """What the table does not say, in two sentences."""
    times = "once" if numbers.evictions == 1 else f"{numbers.evictions} times"
    evictions = f"; jobs were evicted {times}" if numbers.evictions else ""
    return (
        f"utilisation {numbers.utilisation_percent:.1f} % of {timeline.capacity_milli / 1000:g} GPUs in "
        f"{_lasting(timeline.until_s)}; {numbers.ended} jobs ended, {numbers.running} run, "
        f"{numbers.waiting} wait{evictions}\n"
        f"{timeline.decisions} decisions, simulated in {seconds:.1f} s\n"
    )


def _lasting(seconds: float | None) -> str:
    """A time for people in its two largest units; `-` where there is none."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds:.2g} s" if seconds else "0 s"
    left, parts = round(seconds), list[str]()
    for name, unit in _UNITS:
        count, left = divmod(left, unit)
        if count or parts:
            parts.append(f"{count}{name}" if count else "")
    return " ".join(part for part in parts[:2] if part)
