"""Data on stdout: tables for people, tab-separated lines for pipes, JSON and YAML for programs.

What comes from a cluster was written by whoever may create a pod there. Tables show it by `printable`, and so
does every other text for people, because an escape sequence can rewrite what an operator sees (kubectl:
CVE-2021-25743). On a terminal a table is aligned, coloured, and loses its least important columns when it is
too wide; in a pipe nothing is coloured, dropped or cut. Colour never carries meaning alone.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TextIO, TypeVar

STYLES = {"bold": "1", "red": "31", "green": "32", "yellow": "33", "blue": "34", "cyan": "36", "dim": "2"}

T = TypeVar("T")

_choice = "auto"


class Column(NamedTuple):
    """A column of a table. `wide` ones are shown with -o wide; on a narrow terminal those with the highest
    `drop` go first (0: never). Numbers are set right.
    """

    title: str
    drop: int = 0
    wide: bool = False
    number: bool = False


class Cell(NamedTuple):
    """A text with a style of `STYLES`."""

    text: str
    style: str = ""


def choose_colour(choice: str) -> None:
    """Set what --color said: auto, always or never."""
    global _choice
    _choice = choice


def is_terminal(stream: TextIO) -> bool:
    """Whether people look at the stream; GPUFLEET_FORCE_TTY makes it so."""
    return bool(os.environ.get("GPUFLEET_FORCE_TTY")) or stream.isatty()


def swallow_pipe(stream: TextIO) -> None:
    """Let what is still to be written to a stream go into nothing, because nobody reads it any more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def use_colour(stream: TextIO) -> bool:
    """Whether to colour what goes to the stream: --color, then NO_COLOR and TERM, then whether it is a
    terminal.
    """
    if _choice != "auto":
        return _choice == "always"
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return is_terminal(stream)


def printable(text: str) -> str:
    """The text in one line that a terminal only shows: control and invisible characters as `\\x1b`, `\\n`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> str:
    """`printable` for a text of several lines, with its tabs."""
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


def printable_fields(value: T) -> T:
    """A struct with every text in it made `printable`."""
    import msgspec

    return msgspec.convert(_printable_data(msgspec.to_builtins(value)), type(value))


def _printable_data(data: Any) -> Any:
    match data:
        case str():
            return printable(data)
        case list() | tuple():
            return [_printable_data(item) for item in data]
        case dict():
            return {key: _printable_data(item) for key, item in data.items()}
        case _:
            return data


def styled(text: str, style: str, stream: TextIO | None = None) -> str:
    """The text in a style of `STYLES`, if the stream takes colour."""
    if not style or not use_colour(stream or sys.stdout):
        return text
    return f"\x1b[{STYLES[style]}m{text}\x1b[0m"


def table(
    columns: Sequence[Column],
    rows: Iterable[Sequence[str | Cell]],
    *,
    wide: bool = False,
    headers: bool = True,
) -> str:
    """A table as text, ready for stdout."""
    shown = [number for number, column in enumerate(columns) if wide or not column.wide]
    cells = [[_cell(row[number]) for number in shown] for row in rows]
    heads = [columns[number] for number in shown]
    if not is_terminal(sys.stdout):
        lines = [[cell.text for cell in row] for row in cells]
        if headers:
            lines.insert(0, [column.title for column in heads])
        return "".join("\t".join(line) + "\n" for line in lines)
    return _aligned(heads, cells, headers=headers)


def print_data(data: Any, form: str) -> None:
    """Write data as JSON or YAML to stdout."""
    if form == "yaml":
        import yaml

        sys.stdout.write(yaml.safe_dump(data, sort_keys=False))
    else:
        sys.stdout.write(json.dumps(data, indent=None if form == "jsonl" else 2) + "\n")
    sys.stdout.flush()


def _cell(value: str | Cell) -> Cell:
    cell = value if isinstance(value, Cell) else Cell(value)
    return cell._replace(text=printable(cell.text))


def _aligned(columns: list[Column], rows: list[list[Cell]], *, headers: bool) -> str:
    widths = [
        max([len(row[number].text) for row in rows] + [len(column.title) if headers else 0])
        for number, column in enumerate(columns)
    ]
    kept = _fitting(columns, widths, shutil.get_terminal_size().columns)
    lines = [[Cell(column.title, "bold") for column in columns]] if headers else []
    text = []
    for row in lines + rows:
        parts = [_padded(row[number], columns[number], widths[number]) for number in kept]
        text.append("  ".join(parts).rstrip() + "\n")
    return "".join(text)


def _fitting(columns: list[Column], widths: list[int], room: int) -> list[int]:
    """The numbers of the columns to show in `room` characters: the most droppable ones are left out first."""
    kept = list(range(len(columns)))
    while sum(widths[number] + 2 for number in kept) - 2 > room:
        worst = max(kept, key=lambda number: (columns[number].drop, number))
        if not columns[worst].drop:
            break
        kept.remove(worst)
    return kept


def _padded(cell: Cell, column: Column, width: int) -> str:
    text = cell.text.rjust(width) if column.number else cell.text.ljust(width)
    return styled(text, cell.style)
