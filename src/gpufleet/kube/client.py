"""The client: one method per verb of the Kubernetes API, for every kind.

Failures that cannot have had an effect are tried again, others only for reads (see `gpufleet.kube.retry`).
A client with a `guard` (the lease of a leader) asks it right before every write leaves, and
bounds the write to the seconds between the end of our lease's renewal and its expiry, so that no write
outlives our leadership.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Literal, Self
from urllib.parse import urlencode

import msgspec

from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube.config import ClusterConfig
from gpufleet.kube.decoding import Listing, T, decode, decode_page
from gpufleet.kube.errors import ApiError, NotLeader, Unreachable, api_error
from gpufleet.kube.kinds import PODS, Kind
from gpufleet.kube.metrics import RETRIES, RequestMetrics
from gpufleet.kube.ratelimit import TokenBucket
from gpufleet.kube.retry import Retry
from gpufleet.kube.transport import Answer, Transport
from gpufleet.kube.watch import WatchEvent, decode_event, split_lines

__all__ = ["ApiError", "Client", "Listing", "NotLeader", "Unreachable", "WatchEvent"]

log = logging.getLogger("gpufleet.kube.client")

REQUEST_TIMEOUT = 30.0
WATCH_GRACE = 15.0
PATCH_TYPES = {
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "json": "application/json-patch+json",
}
_JSON = "application/json"
_APPLY = "application/apply-patch+yaml"
_READS = ("GET", "HEAD")
_encode = msgspec.json.encode


class _Call(msgspec.Struct, gc=False):
    verb: str
    kind: str
    method: str
    path: str
    params: Mapping[str, str] | None = None
    body: bytes | None = None
    content_type: str = _JSON
    seconds: float = REQUEST_TIMEOUT


class Client:
    """A client of one cluster: `async with Client(config) as client`.

    `qps` and `burst` limit what this client sends (None: no limit), `guard` is called right before every
    write and raises NotLeader to stop it, `connections` bounds concurrent requests, `deadline` is how many
    seconds a request may spend on being tried again, and `patience` how many one try may take.
    """

    def __init__(
        self,
        config: ClusterConfig,
        *,
        user_agent: str = "gpufleet",
        qps: float | None = None,
        burst: int | None = None,
        guard: Callable[[], None] | None = None,
        guarded_write_seconds: float = 5.0,
        connections: int = 64,
        deadline: float = 30.0,
        patience: float = REQUEST_TIMEOUT,
    ) -> None:
        self.config = config
        self._transport = Transport(config, user_agent=user_agent, connections=connections)
        self._bucket = TokenBucket(qps, burst or max(1, int(qps * 2))) if qps is not None else None
        self._guard = guard
        self._guarded_seconds = guarded_write_seconds
        self._slots = asyncio.Semaphore(connections)
        self._deadline = deadline
        self._patience = patience
        self._metrics = RequestMetrics()

    async def __aenter__(self) -> Self:
        await self._transport.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._transport.close()

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: bytes | None = None,
        content_type: str = _JSON,
        timeout: float | None = None,  # noqa: ASYNC109 - of one attempt; a cancel scope would end the retries too
    ) -> bytes:
        """Any request; the body of the answer. Raises ApiError, Unreachable, NotLeader."""
        seconds = timeout or REQUEST_TIMEOUT
        return await self._send(
            _Call(method.lower(), "raw", method, path, params, body, content_type, seconds)
        )

    async def get(
        self,
        kind: Kind,
        name: str,
        namespace: str | None = None,
        *,
        type: type[T] = dict,  # type: ignore[assignment] # noqa: A002 - reads best at the call
    ) -> T:
        """One object; a namespaced kind without namespace means the configured one."""
        path = kind.path(self._namespace(kind, namespace), name)
        return decode(await self._send(_Call("get", kind.plural, "GET", path)), type)

    async def list(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        labels: str = "",
        fields: str = "",
        type: type[T] = dict,  # type: ignore[assignment] # noqa: A002
        limit: int = 500,
        resource_version: str = "",
    ) -> Listing[T]:
        """All objects of a namespace, or of all namespaces, read in chunks of `limit`.

        Without `resource_version` the list is the newest state; "0" accepts what the server has in memory.
        When the server forgets the chunks' snapshot on the way (410), the list is read again in one piece.
        """
        path = kind.path(namespace)
        fixed = {"labelSelector": labels, "fieldSelector": fields}
        start = {**fixed, "limit": str(limit) if limit else "", "resourceVersion": resource_version}
        items: list[T] = []
        skipped: dict[str, str] = {}
        params = start
        while True:
            try:
                body = await self._send(_Call("list", kind.plural, "GET", path, params))
            except ApiError as error:
                if not (error.gone and params is not start):
                    raise
                items, skipped, params = [], {}, {**fixed, "limit": ""}
                start = params
                continue
            page, token = decode_page(body, type, kind)
            items += page.items
            skipped |= page.skipped
            if not token:
                return Listing(items, page.resource_version, skipped)
            params = {**fixed, "limit": str(limit), "continue": token}

    async def create(
        self,
        kind: Kind,
        obj: Any,
        namespace: str | None = None,
        *,
        type: type[T] = dict,  # type: ignore[assignment] # noqa: A002
    ) -> T:
        """Create an object; its namespace is the argument, its own, or the configured one."""
        own, _ = _names(obj)
        path = kind.path(self._namespace(kind, namespace or own))
        call = _Call("create", kind.plural, "POST", path, body=_manifest(kind, obj))
        return decode(await self._send(call), type)

    async def replace(
        self,
        kind: Kind,
        obj: Any,
        *,
        subresource: str | None = None,
        type: type[T] = dict,  # type: ignore[assignment] # noqa: A002
    ) -> T:
        """Replace an object; with a resourceVersion in it, only that version (else ApiError.conflict)."""
        namespace, name = _names(obj)
        path = kind.path(self._namespace(kind, namespace), name, subresource)
        call = _Call("update", kind.plural, "PUT", path, body=_manifest(kind, obj))
        return decode(await self._send(call), type)

    async def patch(
        self,
        kind: Kind,
        name: str,
        patch: Mapping[str, Any] | Sequence[Any],
        namespace: str | None = None,
        *,
        strategy: Literal["merge", "strategic", "json"] = "merge",
        subresource: str | None = None,
        type: type[T] = dict,  # type: ignore[assignment] # noqa: A002
    ) -> T:
        """Patch an object. A metadata.resourceVersion inside a merge or strategic patch guards it."""
        path = kind.path(self._namespace(kind, namespace), name, subresource)
        content_type = PATCH_TYPES[strategy]
        call = _Call("patch", kind.plural, "PATCH", path, body=_encode(patch), content_type=content_type)
        return decode(await self._send(call), type)

    async def apply(
        self,
        kind: Kind,
        obj: Any,
        *,
        field_manager: str,
        force: bool = True,
        subresource: str | None = None,
        type: type[T] = dict,  # type: ignore[assignment] # noqa: A002
    ) -> T:
        """Server-side apply: the object has these fields and `field_manager` owns them.

        Without `force`, a field that another manager owns with another value raises ApiError.conflict.
        """
        namespace, name = _names(obj)
        path = kind.path(self._namespace(kind, namespace), name, subresource)
        params = {"fieldManager": field_manager, "force": "true" if force else "false"}
        call = _Call("apply", kind.plural, "PATCH", path, params, _manifest(kind, obj), _APPLY)
        return decode(await self._send(call), type)

    async def delete(
        self,
        kind: Kind,
        name: str,
        namespace: str | None = None,
        *,
        uid: str | None = None,
        grace: int | None = None,
        propagation: Literal["Foreground", "Background", "Orphan"] | None = None,
        missing_ok: bool = False,
    ) -> None:
        """Delete an object; with `uid`, only that one. `grace` is in seconds.

        `missing_ok` accepts that it is gone already, also that another object of its name took its place.
        """
        options: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions"}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        if grace is not None:
            options["gracePeriodSeconds"] = grace
        if propagation is not None:
            options["propagationPolicy"] = propagation
        path = kind.path(self._namespace(kind, namespace), name)
        try:
            await self._send(_Call("delete", kind.plural, "DELETE", path, body=_encode(options)))
        except ApiError as error:
            replaced = uid is not None and error.conflict and "precondition" in error.message
            if not (missing_ok and (error.not_found or replaced)):
                raise

    async def bind(
        self, namespace: str, pod: str, *, uid: str, node: str, annotations: Mapping[str, str] | None = None
    ) -> None:
        """Bind the pod with this uid to a node; `annotations` are added to the pod in the same write.

        Raises ApiError.conflict when the pod is bound already or is another one.
        """
        metadata: dict[str, Any] = {"name": pod, "namespace": namespace, "uid": uid}
        if annotations:
            metadata["annotations"] = annotations
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": metadata,
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        }
        path = PODS.path(namespace, pod, "binding")
        await self._send(_Call("bind", "pods", "POST", path, body=_encode(binding)))

    async def watch(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        resource_version: str,
        labels: str = "",
        fields: str = "",
        type: type[T] = dict,  # type: ignore[assignment] # noqa: A002
        seconds: int | None = None,
    ) -> AsyncGenerator[WatchEvent[T], None]:
        """Events after `resource_version` until the server ends the stream (after `seconds`, else 5 to 10
        minutes).

        Bookmarks included. Raises ApiError (410: the version is too old, list again) and Unreachable. An
        event whose object does not decode has `problem` set.
        """
        seconds = seconds or random.randint(300, 600)
        params = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(seconds),
            "labelSelector": labels,
            "fieldSelector": fields,
        }
        target = _target(kind.path(namespace), params)
        started = time.monotonic()
        if self._bucket is not None:
            await self._bucket.acquire()
        code = 0
        try:
            async with self._transport.stream(target, seconds + WATCH_GRACE) as chunks:
                code = 200
                async for line in split_lines(chunks):
                    yield decode_event(line, type)
        except ApiError as error:
            code = error.status
            raise
        except msgspec.DecodeError as error:
            message = f"the watch of {kind.plural} sent something that is no event: {error}"
            raise GpufleetError(reason="UnexpectedObject", message=message) from None
        finally:
            self._metrics.observe("watch", kind.plural, code, time.monotonic() - started)

    @contextlib.asynccontextmanager
    async def stream(
        self, path: str, *, params: Mapping[str, str] | None = None, seconds: float
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """A GET whose body is read in chunks, for at most `seconds`: the logs of a container."""
        async with self._transport.stream(_target(path, params or {}), seconds) as chunks:
            yield chunks

    def _namespace(self, kind: Kind, namespace: str | None) -> str | None:
        return namespace or self.config.namespace if kind.namespaced else None

    async def _send(self, call: _Call) -> bytes:
        call.seconds = min(call.seconds, self._patience)
        if self._guard is not None and call.method not in _READS:
            call.seconds = min(call.seconds, self._guarded_seconds)
            call.params = {**(call.params or {}), "timeout": f"{call.seconds:g}s"}
        target = _target(call.path, call.params) if call.params else call.path
        until = time.monotonic() + self._deadline
        retry: Retry | None = None
        while True:
            problem: ApiError | Unreachable
            try:
                answer = await self._attempt(call, target)
            except Unreachable as error:
                problem = error
            else:
                if answer.code < 400:
                    return answer.body
                problem = api_error(answer.code, answer.body, answer.retry_after)
            retry = retry or Retry(reads=call.method in _READS)
            delay = retry.delay(problem)
            if delay is None or time.monotonic() + delay > until:
                raise problem
            log.debug(
                "trying again",
                extra={"verb": call.verb, "kind": call.kind, "problem": str(problem), "delay": delay},
            )
            RETRIES.labels(call.verb, call.kind).inc()
            await asyncio.sleep(delay)

    async def _attempt(self, call: _Call, target: str) -> Answer:
        if self._bucket is not None:
            await self._bucket.acquire()
        guard = self._guard if call.method not in _READS else None
        async with self._slots:
            if guard is not None:
                guard()
            started = time.monotonic()
            code = 0
            try:
                answer = await self._transport.send(
                    call.method, target, call.body, call.content_type, call.seconds, guard
                )
                code = answer.code
                return answer
            finally:
                self._metrics.observe(call.verb, call.kind, code, time.monotonic() - started)


def _target(path: str, params: Mapping[str, str]) -> str:
    query = urlencode({name: value for name, value in params.items() if value})
    return f"{path}?{query}" if query else path


def _names(obj: Any) -> tuple[str | None, str]:
    if isinstance(obj, dict):
        metadata = obj.get("metadata", {})
        return metadata.get("namespace"), metadata.get("name", "")
    return obj.metadata.namespace or None, obj.metadata.name


def _manifest(kind: Kind, obj: Any) -> bytes:
    encoded = _encode(obj)
    if isinstance(obj, dict) and "kind" in obj and "apiVersion" in obj:
        return encoded
    head = f'{{"apiVersion":"{kind.api_version}","kind":"{kind.kind}"'.encode()
    return head + (b"}" if encoded == b"{}" else b"," + encoded[1:])
