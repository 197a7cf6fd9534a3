"""Reading the output of a process container piece by piece, from where `logs` asks for.

A log may be larger than memory and is read while it grows: the start is searched backwards from the end, no
more than a piece is held at a time, and while the container runs a line is shown once it is whole, as a
kubelet's log has it. Only a line longer than a piece is shown in parts. These functions block: call them in a
thread.
"""

from __future__ import annotations

import os
from typing import BinaryIO

from gpufleet.local.simnodes.podlogs import ContainerFolder, LogOptions, clock_of, lines_of, rendered

PIECE = 1 << 20


class LogReader:
    """One request for the log of one attempt: `seek`, then `read` until it gives nothing."""

    def __init__(
        self, folder: ContainerFolder, attempt: int, options: LogOptions, *, piece: int = PIECE
    ) -> None:
        self._folder = folder
        self._attempt = attempt
        self._options = options
        self._piece = piece
        self._offset = 0
        self._end = 0
        self._clock: list[tuple[int, float]] = []

    def seek(self) -> None:
        """Go to the first line that is asked for; what is written later is read only by who follows."""
        try:
            with self._folder.log(self._attempt).open("rb") as file:
                self._end = file.seek(0, os.SEEK_END)
                start, tail = self._first_since(file), self._options.tail_lines
                if tail is not None:
                    start = last_lines(file, start, self._end, tail, self._piece)
                self._offset = start
        except FileNotFoundError:
            return

    def read(self, *, ended: bool) -> bytes:
        """The next piece, empty when there is none (yet); `ended`: nobody writes to the log any more."""
        try:
            with self._folder.log(self._attempt).open("rb") as file:
                return self._next(file, ended=ended)
        except FileNotFoundError:
            return b""

    def _next(self, file: BinaryIO, *, ended: bool) -> bytes:
        begin, limit = self._offset, self._piece
        if not self._options.follow:
            limit = min(limit, self._end - begin)
        inside = begin > 0 and _at(file, begin - 1, 1) != b"\n"
        data = _at(file, begin, limit)
        whole = data.rfind(b"\n") + 1
        if len(data) == self._piece:
            data = data[:whole] or data
        elif not ended:
            data = data[:whole]
        self._offset += len(data)
        if not self._options.timestamps or not data:
            return data
        if not self._clock or self._clock[-1][0] < self._offset:
            self._clock = self._dated(file)
        lines = list(lines_of(data, begin, self._clock))
        first = lines.pop(0).text if inside else b""
        return first + rendered(lines, self._options)

    def _first_since(self, file: BinaryIO) -> int:
        since = self._options.since
        if since is None:
            return 0
        older = max((length for length, at in self._dated(file) if at < since), default=0)
        return _next_line(file, older, self._end, self._piece)

    def _dated(self, file: BinaryIO) -> list[tuple[int, float]]:
        """Length and time of the log; what is newer than the last note is as old as the file."""
        clock, status = clock_of(self._folder, self._attempt), os.fstat(file.fileno())
        if not clock or clock[-1][0] < status.st_size:
            clock.append((status.st_size, status.st_mtime))
        return clock


def last_lines(file: BinaryIO, start: int, end: int, lines: int, piece: int = PIECE) -> int:
    """Where the last `lines` lines between two offsets begin; text after the last line feed is a line."""
    if lines <= 0:
        return end
    position = end - 1  # A line feed that ends the text begins no line.
    while position > start:
        begin = max(start, position - piece)
        block = _at(file, begin, position - begin)
        found = block.count(b"\n")
        if found >= lines:
            at = len(block)
            for _ in range(lines):
                at = block.rfind(b"\n", 0, at)
            return begin + at + 1
        lines, position = lines - found, begin
    return start


def _next_line(file: BinaryIO, offset: int, end: int, piece: int) -> int:
    """The first start of a line at or behind an offset."""
    if offset == 0:
        return 0
    position = offset - 1
    while position < end:
        block = _at(file, position, min(piece, end - position))
        found = block.find(b"\n")
        if found >= 0:
            return position + found + 1
        if not block:
            break
        position += len(block)
    return end


def _at(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    return file.read(max(0, length))
