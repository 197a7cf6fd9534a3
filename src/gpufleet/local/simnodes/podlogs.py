"""Where process containers leave their output, and how `logs` reads it.

`<state>/pods/<namespace>_<pod>_<uid>/<container>/<attempt>.log` has the raw output, written by the process
itself, so that it outlives us. Beside it, `<attempt>.times` says how long the file was when: that is what
timestamps and `sinceSeconds` are made of, true to about a second. `<attempt>.exit` is the exit code.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from gpufleet.kube.times import format_micro_time

_LONGEST_NAME = 200


class LogOptions(msgspec.Struct, frozen=True):
    """What `logs` asks for; None is no limit. Times in seconds since the epoch."""

    follow: bool = False
    previous: bool = False
    timestamps: bool = False
    tail_lines: int | None = None
    limit_bytes: int | None = None
    since: float | None = None


class Line(msgspec.Struct, frozen=True):
    """One line with its line feed, and when it was written (0.0: unknown)."""

    text: bytes
    time: float = 0.0


class ContainerFolder(msgspec.Struct, frozen=True):
    """The folder of one container."""

    path: Path

    def log(self, attempt: int) -> Path:
        """The output of an attempt."""
        return self.path / f"{attempt}.log"

    def times(self, attempt: int) -> Path:
        """The length of the output over time: lines of `<seconds> <bytes>`."""
        return self.path / f"{attempt}.times"

    def exit(self, attempt: int) -> Path:
        """The exit code of an attempt that has ended."""
        return self.path / f"{attempt}.exit"

    def exit_code(self, attempt: int) -> int | None:
        """The recorded exit code; None when the attempt has left none."""
        try:
            return int(self.exit(attempt).read_text())
        except (OSError, ValueError):
            return None

    def note_length(self, attempt: int, now: float, known: int) -> int:
        """Record the length of the log if it is not `known`; the length, or `known` where that failed."""
        try:
            length = self.log(attempt).stat().st_size
            if length != known:
                with self.times(attempt).open("a") as file:
                    file.write(f"{now:.3f} {length}\n")
        except OSError:
            return known
        return length


def pod_folder(state: Path, namespace: str, name: str, uid: str) -> Path:
    """The folder of a pod's logs; a long name is cut, because names of files have at most 255 bytes."""
    return state / "pods" / f"{f'{namespace}_{name}'[:_LONGEST_NAME]}_{uid}"


def container_folder(state: Path, namespace: str, name: str, uid: str, container: str) -> ContainerFolder:
    """The folder of a container's logs."""
    return ContainerFolder(pod_folder(state, namespace, name, uid) / container)


def clock_of(folder: ContainerFolder, attempt: int) -> list[tuple[int, float]]:
    """Length and time of the log, ascending."""
    try:
        rows = folder.times(attempt).read_text().splitlines()
    except FileNotFoundError:
        return []
    pairs = (row.split() for row in rows)
    return [(int(pair[1]), float(pair[0])) for pair in pairs if len(pair) == 2]


def lines_of(data: bytes, start: int, clock: list[tuple[int, float]]) -> Iterator[Line]:
    """The lines of `data`, which begins at offset `start` of the log; only a line feed ends a line."""
    begin = 0
    while begin < len(data):
        end = data.find(b"\n", begin) + 1 or len(data)
        position = bisect.bisect_right(clock, (start + begin, float("inf")))
        time = clock[min(position, len(clock) - 1)][1] if clock else 0.0
        yield Line(data[begin:end], time)
        begin = end


def select(lines: Iterable[Line], options: LogOptions) -> list[Line]:
    """The lines that are asked for: not older than `since`, then the last `tail_lines` of them."""
    chosen = [line for line in lines if options.since is None or line.time >= options.since or not line.time]
    if options.tail_lines is not None:
        chosen = chosen[-options.tail_lines :] if options.tail_lines else []
    return chosen


def rendered(lines: Iterable[Line], options: LogOptions) -> bytes:
    """The lines as they are sent, without the limit of bytes."""
    if not options.timestamps:
        return b"".join(line.text for line in lines)
    return b"".join(f"{format_micro_time(line.time)} ".encode() + line.text for line in lines)
