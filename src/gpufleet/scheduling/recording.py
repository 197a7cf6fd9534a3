"""Recordings: all that one decision reads, as a file, and the same decision from that file.

A recording is the snapshot, the policy and who pauses, for those are the arguments of `cycle.decide` (its
ledger is a cache of the snapshot). So the plan of a recording is the plan of the live decision, byte for
byte. The file is one JSON document, gzipped where that is asked for: `format`, `version`, the `fields` of
every struct in it, and the `content`. Fields that a reader does not know mean that a newer gpufleet wrote the
file; fields that the file lacks have their defaults.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from gpufleet.fleet.encoding import Codec
from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.plans import Plan
from gpufleet.fleet.reasons import Reason
from gpufleet.fleet.snapshot import Snapshot
from gpufleet.scheduling.cycle import Policy, decide

FORMAT = "gpufleet.dev/snapshot"
VERSION = 1

_GZIP = b"\x1f\x8b"
_LEVEL = 6
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_MAKE = "gpufleet snapshot save FILE writes one"


class Recording(msgspec.Struct, frozen=True):
    """What a decision reads. Its fields are the arguments of `decide`, those without influence left out."""

    snapshot: Snapshot
    policy: Policy = Policy()
    paused: Mapping[str, Reason] = {}

    def decide(self) -> Plan:
        """The plan of the decision that was recorded."""
        return decide(self.snapshot, self.policy, None, self.paused)


CODEC = Codec(Recording)


class _File(msgspec.Struct, frozen=True):
    format: str
    version: int
    fields: Mapping[str, tuple[str, ...]]
    content: msgspec.Raw


def to_bytes(recording: Recording, *, compressed: bool = False) -> bytes:
    """The file of a recording; equal recordings give equal bytes."""
    head: dict[str, Any] = {"format": FORMAT, "version": VERSION, "fields": CODEC.fields}
    data = msgspec.json.encode({**head, "content": msgspec.Raw(CODEC.encode(recording))}) + b"\n"
    return gzip.compress(data, _LEVEL, mtime=0) if compressed else data


def from_bytes(data: bytes, source: str) -> Recording:
    """The recording of a file, gzipped or not; `source` names the file in errors.

    Raises GpufleetError: NotASnapshot, SnapshotTooNew or SnapshotDamaged.
    """
    if data.startswith(_GZIP):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise _damaged(source, str(error)) from None
    head = _head(data, source)
    if head.format != FORMAT:
        raise _not_one(source)
    if head.version > VERSION:
        raise _too_new(source, f"it is of version {head.version}, and this gpufleet reads up to {VERSION}")
    for struct, names in sorted(head.fields.items()):
        unknown = sorted(set(names) - set(CODEC.fields.get(struct, ())))
        if unknown:
            raise _too_new(source, f"it has {struct}.{unknown[0]}, which this gpufleet does not know")
    try:
        recording = CODEC.decode(head.content)
    except _UNREADABLE as error:
        raise _damaged(source, str(error)) from None
    for misplaced in _misplaced(recording.snapshot):
        raise _damaged(source, f"{misplaced} does not stand under its own name and node")
    return recording


def _head(data: bytes, source: str) -> _File:
    """The file with its content unread."""
    try:
        return msgspec.json.decode(data, type=_File)
    except _UNREADABLE as error:
        if f'"format":"{FORMAT}"'.encode() in data[:100]:
            raise _damaged(source, str(error)) from None
        raise _not_one(source) from None


def _misplaced(snapshot: Snapshot) -> Iterator[str]:
    """Nodes and pods that a hand has edited in one place and not in the other."""
    yield from (f"node {node.name}" for name, node in snapshot.nodes.items() if node.name != name)
    places = [("", snapshot.unbound), *snapshot.pods_by_node.items()]
    for place, pods in places:
        yield from (f"pod {pod.key}" for key, pod in pods.items() if pod.key != key or pod.node != place)


def _not_one(source: str) -> GpufleetError:
    return GpufleetError(reason="NotASnapshot", message=f"{source} is no saved snapshot", hint=_MAKE)


def _too_new(source: str, why: str) -> GpufleetError:
    return GpufleetError(
        reason="SnapshotTooNew",
        message=f"{source} was written by a newer gpufleet: {why}",
        hint="read it with the gpufleet that wrote it, or a later one",
    )


def _damaged(source: str, why: str) -> GpufleetError:
    return GpufleetError(
        reason="SnapshotDamaged", message=f"{source} is damaged: {why}", hint="copy or save it again"
    )
