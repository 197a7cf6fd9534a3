"""Watch streams: from chunks of bytes to events.

The server writes one JSON document per line; a line can be larger than any buffer, so chunks are joined and
split here. A line is decoded in one pass as `{type, object}` of the wanted type. A line that does not decode
that way is a bookmark (which has almost no object), an ERROR, or an object of a form that we do not
know: that one is reported to the caller instead of ending the stream.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Generic

import msgspec

from gpufleet.kube.decoding import T, decoder, identity, node_named_in
from gpufleet.kube.errors import Status, status_error
from gpufleet.kube.objects.meta import ObjectMeta, PartialObject

ADDED, MODIFIED, DELETED, BOOKMARK = "ADDED", "MODIFIED", "DELETED", "BOOKMARK"


class WatchEvent(msgspec.Struct, Generic[T], frozen=True):
    """One event. `type` is ADDED, MODIFIED, DELETED or BOOKMARK; a bookmark has no object.

    `object` is also None when the object did not decode; `problem` then says why, `metadata` whose it is and
    `node` to which node it is bound.
    """

    type: str
    object: T | None
    resource_version: str
    metadata: ObjectMeta | None = None
    problem: str = ""
    node: str = ""


class _Frame(msgspec.Struct, Generic[T], frozen=True, gc=False):
    type: str
    object: T


async def split_lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The non-empty lines of a stream, however it was cut; an unfinished last line is dropped."""
    rest: list[bytes] = []
    async for chunk in chunks:
        head, newline, tail = chunk.partition(b"\n")
        if not newline:
            rest.append(chunk)
            continue
        rest.append(head)
        first = b"".join(rest)
        lines = tail.split(b"\n")
        rest = [lines.pop()]
        if first:
            yield first
        for line in lines:
            if line:
                yield line


def decode_event(line: bytes, wanted: type[T]) -> WatchEvent[T]:
    """One line of a watch. Raises ApiError for ERROR events and msgspec.DecodeError for what is no event."""
    item = dict[str, Any] if wanted is dict else wanted
    try:
        frame = decoder(_Frame[item]).decode(line)  # type: ignore[valid-type]
    except msgspec.ValidationError as error:
        return _decode_partly(line, str(error))
    if frame.type in (ADDED, MODIFIED, DELETED):
        return WatchEvent(frame.type, frame.object, identity(frame.object).resource_version)
    return _decode_partly(line, f"unknown event type {frame.type!r}")


def _decode_partly(line: bytes, problem: str) -> WatchEvent[T]:
    frame = decoder(_Frame[msgspec.Raw]).decode(line)
    if frame.type == "ERROR":
        raise status_error(decoder(Status).decode(frame.object))
    metadata: ObjectMeta = decoder(PartialObject).decode(frame.object).metadata
    if frame.type == BOOKMARK:
        return WatchEvent(BOOKMARK, None, metadata.resource_version, metadata)
    return WatchEvent(
        frame.type, None, metadata.resource_version, metadata, problem, node_named_in(frame.object)
    )
