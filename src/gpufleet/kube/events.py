"""Events: what gpufleet tells people about objects, in events.k8s.io/v1.

Recording never waits and never fails: it notes the event in memory, and a background task writes. Equal
events (same object, type, reason, action and note) within six minutes are one Event with a series, so a
pod that stays pending for one cause is one Event with a count. The queue is bounded; what is pushed out
or cannot be written after a few tries is counted in gpufleet_events_dropped_total.
Source: k8s.io/client-go/tools/events, KEP-383.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Literal

from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube import kinds
from gpufleet.kube.client import Client
from gpufleet.kube.errors import ApiError
from gpufleet.kube.metrics import EVENTS_DROPPED
from gpufleet.kube.ratelimit import Backoff, TokenBucket
from gpufleet.kube.times import format_micro_time

log = logging.getLogger("gpufleet.kube.events")

SERIES_SECONDS = 360.0
REWRITE_SECONDS = 30.0
REMEMBERED = 8192
TRIES = 4
MAX_NOTE_BYTES = 1024
MAX_NAME = 63

_REFERENCE_FIELDS = ("apiVersion", "kind", "namespace", "name", "uid", "resourceVersion", "fieldPath")
_KINDS = {kind.kind: kind for kind in vars(kinds).values() if isinstance(kind, kinds.Kind)}

EventType = Literal["Normal", "Warning"]
_Key = tuple[str, str, str, str, str, str]


class _Series:
    """One Event: how often it happened, and how much of that the server knows."""

    __slots__ = (
        "action",
        "busy",
        "count",
        "first",
        "last",
        "name",
        "note",
        "reason",
        "regarding",
        "type",
        "written",
        "written_at",
    )

    def __init__(
        self,
        regarding: dict[str, str],
        severity: EventType,
        reason: str,
        action: str,
        note: str,
        now: float,
    ) -> None:
        self.regarding = regarding
        self.type = severity
        self.reason = reason
        self.action = action
        self.note = note
        self.count = 1
        self.first = self.last = now
        self.written = 0
        self.written_at = 0.0
        self.busy = False
        self.name = f"{regarding['name'][:MAX_NAME].rstrip('.-')}.{int(now * 1e6):x}"

    @property
    def namespace(self) -> str:
        return self.regarding.get("namespace") or "default"


class EventRecorder:
    """Writes Events as `controller` (a qualified name such as gpufleet.dev/scheduler) and `instance`.

    `run` must run for anything to be written. At most `queue` events wait; at most `qps` are written per
    second in the long run, by `writers` at once.
    """

    def __init__(
        self,
        client: Client,
        controller: str = "gpufleet.dev/scheduler",
        instance: str = "gpufleet",
        *,
        queue: int = 10_000,
        qps: float = 500.0,
        burst: int = 1000,
        writers: int = 4,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._controller = controller
        self._instance = instance[:128]
        self._limit = queue
        self._writers = writers
        self._clock = clock
        self._bucket = TokenBucket(qps, burst)
        self._series: OrderedDict[_Key, _Series] = OrderedDict()
        self._pending: OrderedDict[_Key, _Series] = OrderedDict()
        self._late: dict[_Key, _Series] = {}
        self._writing = 0
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.dropped = 0
        """How many events this recorder did not write."""

    def record(
        self,
        regarding: Mapping[str, Any] | Any,
        type: EventType,  # noqa: A002 - the field's name
        reason: str,
        action: str,
        note: str,
    ) -> None:
        """Note that something happened to an object: a decoded struct, or a dict (object or reference).

        `reason` is a CamelCase code, `action` what we did or tried, `note` the sentence for people.
        """
        reference = reference_to(regarding)
        note = _cut(note, MAX_NOTE_BYTES)
        identity = reference.get("uid") or f"{reference.get('namespace', '')}/{reference['name']}"
        key = (reference.get("kind", ""), identity, type, reason, action, note)
        now = self._clock()
        series = self._series.get(key)
        if series is None or now - series.last > SERIES_SECONDS:
            series = self._series[key] = _Series(reference, type, reason, action, note, now)
        else:
            series.count += 1
            series.last = now
        self._series.move_to_end(key)
        if len(self._series) > REMEMBERED:
            self._series.popitem(last=False)
        if series.busy or (series.written > 1 and now - series.written_at < REWRITE_SECONDS):
            self._late[key] = series
        else:
            self._enqueue(key, series)

    async def run(self) -> None:
        """Write what is recorded, until cancelled; what is left then counts as dropped. `flush` first."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(self._writers):
                    tasks.create_task(self._write_all())
                tasks.create_task(self._sweep())
        finally:
            for _ in {**self._pending, **self._late}:
                self._drop()
            self._pending.clear()
            self._late.clear()
            self._idle.set()

    async def flush(self, seconds: float | None = None) -> None:
        """Wait, at most for `seconds`, until all that was recorded so far is written or dropped, late counts
        included.
        """
        self._enqueue_late(float("inf"))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()

    def _enqueue(self, key: _Key, series: _Series) -> None:
        self._late.pop(key, None)
        self._pending[key] = series
        if len(self._pending) > self._limit:
            self._pending.popitem(last=False)
            self._drop()
        self._idle.clear()
        self._wake.set()

    def _enqueue_late(self, now: float) -> None:
        due = [key for key, series in self._late.items() if now - series.written_at >= REWRITE_SECONDS]
        for key in due:
            self._enqueue(key, self._late[key])

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(REWRITE_SECONDS / 6)
            self._enqueue_late(self._clock())

    async def _write_all(self) -> None:
        while True:
            while not self._pending:
                if not self._writing:
                    self._idle.set()
                self._wake.clear()
                await self._wake.wait()
            key, series = self._pending.popitem(last=False)
            self._writing += 1
            series.busy = True
            try:
                await self._bucket.acquire()
                await self._write(series)
            except asyncio.CancelledError:
                self._drop()
                raise
            finally:
                self._writing -= 1
                series.busy = False
            if series.written == 1 and key in self._late:
                self._enqueue(key, series)

    async def _write(self, series: _Series) -> None:
        backoff = Backoff(0.2, 5.0, jitter="half")
        for attempt in range(TRIES):
            try:
                await self._write_once(series)
                return
            except GpufleetError as error:
                final = (
                    isinstance(error, ApiError) and 400 <= error.status < 500 and not error.too_many_requests
                )
                if final or error.reason == "NotLeader" or attempt == TRIES - 1:
                    self._drop()
                    log.warning(
                        "an event was not written: %s",
                        error.message,
                        extra={"object": series.regarding.get("name"), "reason": series.reason},
                    )
                    return
            await asyncio.sleep(backoff.next())

    async def _write_once(self, series: _Series) -> None:
        count, now = series.count, self._clock()
        if series.written:
            observed = {"count": count, "lastObservedTime": format_micro_time(series.last)}
            try:
                await self._client.patch(kinds.EVENTS, series.name, {"series": observed}, series.namespace)
            except ApiError as error:
                if not error.not_found:
                    raise
                series.written = 0
        if not series.written:
            try:
                await self._client.create(kinds.EVENTS, self._manifest(series, count), series.namespace)
            except ApiError as error:
                if not error.already_exists:
                    raise
        series.written, series.written_at = count, now

    def _manifest(self, series: _Series, count: int) -> dict[str, Any]:
        manifest: dict[str, Any] = {
            "metadata": {"name": series.name, "namespace": series.namespace},
            "eventTime": format_micro_time(series.first),
            "type": series.type,
            "reason": series.reason,
            "action": series.action,
            "note": series.note,
            "regarding": series.regarding,
            "reportingController": self._controller,
            "reportingInstance": self._instance,
        }
        if count > 1:
            manifest["series"] = {"count": count, "lastObservedTime": format_micro_time(series.last)}
        return manifest

    def _drop(self) -> None:
        self.dropped += 1
        EVENTS_DROPPED.inc()


def reference_to(obj: Mapping[str, Any] | Any) -> dict[str, str]:
    """An ObjectReference to a decoded struct (its class is named as its kind) or to an object as dict."""
    if not isinstance(obj, Mapping):
        kind = _KINDS[type(obj).__name__]
        meta = obj.metadata
        found = {
            "apiVersion": kind.api_version,
            "kind": kind.kind,
            "namespace": meta.namespace,
            "name": meta.name,
            "uid": meta.uid,
            "resourceVersion": meta.resource_version,
        }
    elif "metadata" in obj:
        found = {**obj["metadata"], "apiVersion": obj.get("apiVersion", ""), "kind": obj.get("kind", "")}
    else:
        found = dict(obj)
    return {field: str(found[field]) for field in _REFERENCE_FIELDS if found.get(field)}


def _cut(text: str, size: int) -> str:
    encoded = text.encode()
    if len(encoded) <= size:
        return text
    return encoded[: size - 3].decode(errors="ignore") + "..."
