"""Tables of queues: the report of a live cluster, and how its rows are shown."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gpufleet.cli.cluster import client_for
from gpufleet.cli.output import Cell, Column, is_terminal, printable, styled, table

if TYPE_CHECKING:
    from gpufleet.kube.config import ClusterConfig
    from gpufleet.scheduling.queue_report import QueueReport, QueueRow

F = TypeVar("F", bound=Callable[..., Any])

QUEUES = (
    Column("QUEUE"),
    Column("GUARANTEE", number=True),
    Column("LIMIT", number=True),
    Column("ALLOCATED", number=True),
    Column("REQUESTED", drop=1, number=True),
    Column("FAIR SHARE", number=True),
    Column("RUNNING", drop=2, number=True),
    Column("WAITING", drop=2, number=True),
    Column("FROM", drop=3),
)

SHARES = (
    Column("QUEUE"),
    Column("PRIORITY", drop=2, number=True),
    Column("WEIGHT", number=True),
    Column("REQUESTED", number=True),
    Column("GUARANTEED", number=True),
    Column("BORROWED", number=True),
    Column("FAIR SHARE", number=True),
    Column("ALLOCATED", number=True),
    Column("USED", drop=1, number=True),
)

NO_QUEUES = (
    "no queues: pods are taken by priority and age, and share everything (docs/concepts/fair-share.md)\n"
)


def resource_option(function: F) -> F:
    """--resource: which resource the table is about."""
    choices = click.Choice(["gpu", "cpu", "memory"])
    return click.option(
        "--resource", type=choices, default="gpu", show_default=True, help="Which resource the table shows."
    )(function)


def report_of(config: ClusterConfig, command: str) -> QueueReport:
    """The report of a live cluster."""
    from gpufleet.kube.snapshot import load_snapshot
    from gpufleet.scheduling.queue_report import queue_report

    async def load() -> QueueReport:
        async with client_for(config, command) as client:
            return queue_report((await load_snapshot(client))[0])

    return asyncio.run(load())


def queues_text(report: QueueReport, resource: str) -> str:
    """Every queue with what it may have and has."""
    rows: list[list[str | Cell]] = []
    for row in report.queues:
        part, told = _told(row, resource)
        limits = [_or(part.guarantee, told, "all"), _or(part.limit, told, "-")]
        have = [told(part.allocated), told(part.requested), told(part.fair_share)]
        rows.append([_name(row), *limits, *have, str(row.running), str(row.waiting), row.rule])
    return _text(report, QUEUES, rows)


def shares_text(report: QueueReport, resource: str) -> str:
    """Every queue with how its fair share came about."""
    from gpufleet.scheduling.queue_report import weight_of

    rows: list[list[str | Cell]] = []
    for row in report.queues:
        part, told = _told(row, resource)
        used = f"{part.allocated * 100 // part.fair_share} %" if part.fair_share else "-"
        how = [told(part.in_quota), told(part.fair_share - part.in_quota), told(part.fair_share)]
        asked = [str(row.priority), weight_of(part), told(part.requested)]
        rows.append([_name(row), *asked, *how, told(part.allocated), used])
    return _text(report, SHARES, rows)


def _text(report: QueueReport, columns: Sequence[Column], rows: Sequence[Sequence[str | Cell]]) -> str:
    if not report.queues:
        return NO_QUEUES
    notes = [f"{row.name}: {row.problem}" for row in report.queues if row.problem]
    notes += [f"{name}: {problem}" for name, problem in report.broken.items()]
    text = table(columns, rows)
    if notes and is_terminal(sys.stdout):
        text += f"\n{styled('Not usable', 'bold')}\n" + "".join(f"  {printable(note)}\n" for note in notes)
    return text


def _name(row: QueueRow) -> Cell:
    return Cell("  " * row.depth + row.name, "yellow" if row.problem else "")


def _told(row: QueueRow, resource: str) -> tuple[Any, Callable[[int], str]]:
    from gpufleet.fleet.queues import told_amounts
    from gpufleet.scheduling.queue_report import resource_of

    return resource_of(row, resource), lambda amount: told_amounts(resource, amount)[0]


def _or(amount: int | None, told: Callable[[int], str], unbounded: str) -> str:
    return unbounded if amount is None else told(amount)
