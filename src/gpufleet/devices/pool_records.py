"""What a pool has changed on a node, as the node carries it.

The record is an annotation of the node and is written together with the changes that it tells of, so that it
is never behind or ahead of them, outlives the controller and ends with the node. It names the pool that owns
the changes: only in its name they are undone, which another pool does when it takes the node over.
"""

from __future__ import annotations

import msgspec

from gpufleet.fleet.undo import Changed, undone
from gpufleet.kube import objects

RECORD_ANNOTATION = "gpufleet.dev/pool-record"


class PoolRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """The changes of a pool: labels by key, taints by `key:effect`."""

    pool: str
    labels: dict[str, Changed] = {}
    taints: dict[str, Changed] = {}

    @property
    def text(self) -> str:
        """The value of the annotation: equal for equal records."""
        return msgspec.json.encode(self, order="sorted").decode()


_DECODER = msgspec.json.Decoder(PoolRecord)


class NodeView(msgspec.Struct, frozen=True):
    """A node as pools see it; taints are values by `key:effect`.

    `damaged`: there is a record that cannot be read, so nobody knows what to undo.
    """

    name: str
    uid: str
    version: str
    labels: dict[str, str]
    taints: dict[str, str]
    ready: bool
    record: PoolRecord | None = None
    damaged: bool = False

    @property
    def owner(self) -> str:
        """The pool whose changes the node carries; empty without any."""
        return self.record.pool if self.record else ""

    @property
    def released(self) -> NodeView:
        """The node as it is once its pool has taken back what it changed."""
        if self.record is None:
            return self
        labels = undone(self.labels, self.record.labels)
        taints = undone(self.taints, self.record.taints)
        return msgspec.structs.replace(self, labels=labels, taints=taints, record=None)


def node_view(node: objects.Node) -> NodeView:
    """What pools see of a node."""
    meta = node.metadata
    record, damaged = _read(meta.annotations.get(RECORD_ANNOTATION, ""))
    return NodeView(
        meta.name,
        meta.uid,
        meta.resource_version,
        dict(meta.labels),
        {taint_key(taint.key, taint.effect): taint.value for taint in node.spec.taints},
        any(one.type == "Ready" and one.status == "True" for one in node.status.conditions),
        record,
        damaged,
    )


def taint_key(key: str, effect: str) -> str:
    """How a taint is told from others: a node has one of each key and effect."""
    return f"{key}:{effect}"


def _read(text: str) -> tuple[PoolRecord | None, bool]:
    if not text:
        return None, False
    try:
        return _DECODER.decode(text), False
    except msgspec.DecodeError:
        return None, True
