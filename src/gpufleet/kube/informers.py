"""Informers: a local copy of one collection that follows the server, and a stream of what changed in it.

List once, then watch from that version. Each event and each bookmark moves the version; a stream that
ends or breaks is resumed from there, so nothing is missed and nothing is read twice. Only when the server
has forgotten the version (410) the collection is listed again, and the difference to the copy is
delivered as changes, deletes included. Handlers therefore see a gapless history, whatever happened to
connections, servers or etcd. The model is client-go's reflector (tools/cache/reflector.go); a delete and
re-creation inside a gap is reported as both, where client-go reports an update.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Generic, TypeVar

from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube.client import Client
from gpufleet.kube.decoding import identity
from gpufleet.kube.errors import ApiError
from gpufleet.kube.kinds import Kind
from gpufleet.kube.metrics import (
    INFORMER_EVENTS,
    INFORMER_HANDLER_FAILURES,
    INFORMER_RELISTS,
    INFORMER_SKIPPED,
)
from gpufleet.kube.ratelimit import Backoff
from gpufleet.kube.store import Change, Store
from gpufleet.kube.watch import BOOKMARK, DELETED, WatchEvent

__all__ = ["Change", "Informer"]

T = TypeVar("T")

Unread = Callable[[str, str | None], None]
"""Takes the key of an object that exists but does not decode, and the node it is bound to (empty: none); the
node is None once the object is gone.
"""

log = logging.getLogger("gpufleet.kube.informers")

BACKOFF_SECONDS = (0.8, 30.0)
_SHORT_STREAM = 1.0


class Informer(Generic[T]):
    """A local copy of the objects of one kind, kept by `run`.

    `namespace`, `labels` and `fields` narrow the collection; `indexes` name functions from an object to the
    values it is looked up by. An `optional` kind need not be served: until it is, there are none. All methods
    belong to the event loop that runs `run`.
    """

    def __init__(
        self,
        client: Client,
        kind: Kind,
        type: type[T],  # noqa: A002 - reads best at the call
        *,
        namespace: str | None = None,
        labels: str = "",
        fields: str = "",
        indexes: Mapping[str, Callable[[T], Iterable[str]]] | None = None,
        watch_seconds: int | None = None,
        optional: bool = False,
    ) -> None:
        self.kind = kind
        self.resource_version = ""
        """The version that the copy has reached; empty before the first list and after a 410."""
        self.relists = 0
        """How often the whole collection was read, the first time included."""
        self._client = client
        self._type = type
        self._namespace = namespace
        self._labels = labels
        self._fields = fields
        self._watch_seconds = watch_seconds
        self._optional = optional
        self._store: Store[T] = Store(indexes)
        self._handlers: list[Callable[[Change[T]], None]] = []
        self._unread_handlers: list[Unread] = []
        self._unread: dict[str, str] = {}
        self._synced = asyncio.Event()
        self._backoff = Backoff(*BACKOFF_SECONDS, jitter="half")
        self._failing = False
        self._events = INFORMER_EVENTS.labels(kind.plural)

    def subscribe(self, handler: Callable[[Change[T]], None], unread: Unread | None = None) -> None:
        """Call `handler` for every change from now on, in order; what is known already comes first, as adds.

        `unread` is told of objects that do not decode, until they do, which comes as a change, or are gone.
        An exception in a handler is logged and counted and does not reach the other handlers.
        """
        for key, obj in self._store.objects.items():
            self._call(handler, Change(key, None, obj))
        self._handlers.append(handler)
        if unread is not None:
            for key, node in self._unread.items():
                unread(key, node)
            self._unread_handlers.append(unread)

    def get(self, key: str) -> T | None:
        """The object of a key (`namespace/name`, or `name` for cluster scope)."""
        return self._store.objects.get(key)

    def items(self) -> Mapping[str, T]:
        """All objects by key: a live view."""
        return self._store.objects

    def by_index(self, index: str, value: str) -> list[T]:
        """The objects that an index finds under a value."""
        return self._store.by_index(index, value)

    async def synced(self) -> None:
        """Wait until the first list was delivered to the handlers."""
        await self._synced.wait()

    async def run(self) -> None:
        """Keep the copy until cancelled. Errors of the server are logged and tried again, never raised."""
        while True:
            try:
                if not self.resource_version:
                    await self._relist()
                await self._follow()
            except GpufleetError as error:
                delay = self._after(error)
                await asyncio.sleep(delay)

    async def _relist(self) -> None:
        # The first list may come from the server's memory; later ones must not go back in time.
        version = "" if self.relists else "0"
        try:
            listing = await self._client.list(
                self.kind,
                self._namespace,
                labels=self._labels,
                fields=self._fields,
                type=self._type,
                resource_version=version,
            )
        except ApiError as error:
            if error.not_found and self._optional:
                self._synced.set()
            raise
        self.relists += 1
        INFORMER_RELISTS.labels(self.kind.plural).inc()
        if listing.skipped:
            INFORMER_SKIPPED.labels(self.kind.plural).inc(len(listing.skipped))
        self._deliver(self._store.replacement(listing.items, keep=listing.skipped))
        for key in self._unread.keys() - listing.skipped.keys():
            self._tell_unread(key, None)
        for key, node in listing.skipped.items():
            self._tell_unread(key, node)
        self.resource_version = listing.resource_version
        self._synced.set()

    async def _follow(self) -> None:
        started = asyncio.get_running_loop().time()
        stream = self._client.watch(
            self.kind,
            self._namespace,
            resource_version=self.resource_version,
            labels=self._labels,
            fields=self._fields,
            type=self._type,
            seconds=self._watch_seconds,
        )
        silent = True
        async with contextlib.aclosing(stream) as events:
            async for event in events:
                silent = False
                self._handle(event)
                self._recovered()
        if silent and asyncio.get_running_loop().time() - started < _SHORT_STREAM:
            raise GpufleetError(reason="WatchEnded", message=f"the watch of {self.kind.plural} ended at once")
        self._recovered()

    def _handle(self, event: WatchEvent[T]) -> None:
        if event.type == BOOKMARK:
            self._check_history(event.resource_version)
        elif event.problem:
            self._handle_undecodable(event)
        elif event.object is not None:
            if event.type == DELETED:
                self._remove(identity(event.object).key)
            else:
                self._deliver(self._store.difference(event.object))
        self.resource_version = event.resource_version

    def _handle_undecodable(self, event: WatchEvent[T]) -> None:
        key = event.metadata.key if event.metadata else ""
        if event.type == DELETED:
            self._remove(key)
            return
        self._tell_unread(key, event.node)
        INFORMER_SKIPPED.labels(self.kind.plural).inc()
        log.error(
            "left out an object that does not decode: %s",
            event.problem,
            extra={"kind": self.kind.resource, "object": key, "problem": event.problem},
        )

    def _remove(self, key: str) -> None:
        self._deliver(self._store.removal(key))
        if key in self._unread:
            self._tell_unread(key, None)

    def _tell_unread(self, key: str, node: str | None) -> None:
        if node is None:
            del self._unread[key]
        else:
            self._unread[key] = node
        for handler in self._unread_handlers:
            handler(key, node)

    def _check_history(self, version: str) -> None:
        if (
            version.isdecimal()
            and self.resource_version.isdecimal()
            and int(version) < int(self.resource_version)
        ):
            raise ApiError(
                status=410,
                reason="Expired",
                message=f"the server's history went back to {version}: restored etcd?",
            )

    def _deliver(self, changes: Iterable[Change[T]]) -> None:
        for change in changes:
            self._store.apply(change)
            self._unread.pop(change.key, None)
            self._events.inc()
            for handler in self._handlers:
                self._call(handler, change)

    def _call(self, handler: Callable[[Change[T]], None], change: Change[T]) -> None:
        try:
            handler(change)
        except Exception:
            INFORMER_HANDLER_FAILURES.labels(self.kind.plural).inc()
            log.exception("a handler failed", extra={"kind": self.kind.resource, "object": change.key})

    def _recovered(self) -> None:
        if self._failing:
            log.info("following again", extra={"kind": self.kind.resource})
            self._failing = False
            self._backoff.reset()

    def _after(self, error: GpufleetError) -> float:
        expired = isinstance(error, ApiError) and _version_is_lost(error)
        if expired:
            self.resource_version = ""
        absent = self._optional and isinstance(error, ApiError) and error.not_found
        level = logging.INFO if absent or (expired and not self._failing) else logging.WARNING
        if absent and self._failing:
            level = logging.DEBUG
        delay = 0.0 if expired and not self._failing else self._backoff.next()
        if isinstance(error, ApiError) and error.retry_after is not None:
            delay = max(delay, error.retry_after)
        log.log(
            level,
            "%s: %s",
            "listing again" if expired else "watch interrupted" if self.resource_version else "list failed",
            error.message,
            extra={"kind": self.kind.resource, "reason": error.reason, "delay": delay},
        )
        self._failing = True
        return delay


def _version_is_lost(error: ApiError) -> bool:
    if error.gone or error.status == 400:
        return True
    causes = error.details.causes if error.details else ()
    return any(cause.reason == "ResourceVersionTooLarge" for cause in causes)
