"""The queues of a live snapshot: objects of every convention by name, and the tree that they make."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.queues import Queue, QueueTree
from gpufleet.kube.conventions.queues import QueueConvention, queue_tree, unread_queue
from gpufleet.kube.store import Change

log = logging.getLogger("gpufleet.kube.queues")


class QueueTable:
    """Keeps queues; `on_change` is called after every change that a decision could care about."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._queues: dict[tuple[str, str], Queue] = {}
        self._tree: QueueTree | None = None

    def tree(self) -> QueueTree:
        """The tree of all queues; the same object until something changes."""
        if self._tree is None:
            self._tree = queue_tree(self._queues.values())
        return self._tree

    def listen(
        self, convention: QueueConvention
    ) -> tuple[Callable[[Change[Any]], None], Callable[[str, str | None], None]]:
        """Who takes the changes of one kind of object, and who is told of those that do not decode."""
        resource = convention.kind.resource

        def changed(change: Change[Any]) -> None:
            queue = None
            if change.new is not None:
                try:
                    queue = convention.read(change.new)
                except GpufleetError as error:
                    told = {"kind": resource, "object": change.key, "problem": error.message}
                    log.warning("a queue cannot be read", extra=told)
                    queue = unread_queue(convention, change.key)
            self._put((resource, change.key), queue)

        def unread(key: str, node: str | None) -> None:
            self._put((resource, key), None if node is None else unread_queue(convention, key))

        return changed, unread

    def _put(self, key: tuple[str, str], queue: Queue | None) -> None:
        if self._queues.get(key) == queue:
            return
        if queue is None:
            del self._queues[key]
        else:
            self._queues[key] = queue
        self._tree = None
        self._on_change()
