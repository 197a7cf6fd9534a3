"""Bytes to and from one API server: connections, TLS, proxies, and the credential of the moment.

Two pools: requests share a bounded one, watches (which keep their connection for minutes) get their own,
so that informers never starve writes. Every failure leaves as `Unreachable`; an answer of any code is an
`Answer`. One retry lives here: after a 401, if the credentials have something newer to show.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import tempfile
import typing
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from multidict import CIMultiDict
from yarl import URL

from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube.config import ClusterConfig
from gpufleet.kube.credentials import Credential, credentials_for
from gpufleet.kube.errors import Unreachable, api_error

CONNECT_TIMEOUT = 10.0
KEEPALIVE = ((socket.TCP_KEEPIDLE, 15), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))
_UNAUTHORIZED = 401


class Answer(typing.NamedTuple):
    """What the server said."""

    code: int
    body: bytes
    retry_after: str | None


class _Request(typing.NamedTuple):
    method: str
    url: URL
    body: bytes | None
    content_type: str
    limits: aiohttp.ClientTimeout
    guard: Callable[[], None] | None


class GuardedBody(aiohttp.BytesPayload):
    """A body that asks for permission at the moment it leaves.

    Between the decision to write and the first byte lie a connection, a handshake and whatever else the event
    loop has to do; a process can be stopped anywhere in between.
    """

    def __init__(self, value: bytes, guard: Callable[[], None]) -> None:
        super().__init__(value)
        self._guard = guard
        self.refusal: Exception | None = None

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        """Write the body, after the guard agreed. The headers wait for the first byte of the body."""
        try:
            self._guard()
        except Exception as refusal:
            self.refusal = refusal
            raise
        await super().write_with_length(writer, content_length)


class Transport:
    """Connections to the server of one `ClusterConfig`. Open it before use, inside the event loop that uses
    it.
    """

    def __init__(self, config: ClusterConfig, *, user_agent: str, connections: int) -> None:
        self._config = config
        self._base = config.server
        self._credentials = credentials_for(config)
        self._connections = connections
        self._headers = {"Accept": "application/json", "User-Agent": user_agent}
        self._prepared: dict[tuple[int, str], CIMultiDict[str]] = {}
        self._timeouts: dict[float, aiohttp.ClientTimeout] = {}
        self._proxy = proxy_for(config)
        self._server_hostname = config.tls_server_name or None
        self._tls: ssl.SSLContext | bool = True
        self._tls_generation = -1
        self._requests: aiohttp.ClientSession | None = None
        self._watches: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Make the two pools. Raises GpufleetError for certificates that cannot be used."""
        self._tls = tls_context(self._config)
        self._requests = _session(self._connections)
        self._watches = _session(0)

    async def close(self) -> None:
        """Close all connections."""
        for session in (self._requests, self._watches):
            if session is not None:
                await session.close()
        self._requests = self._watches = None

    async def send(
        self,
        method: str,
        target: str,
        body: bytes | None,
        content_type: str,
        seconds: float,
        guard: Callable[[], None] | None = None,
    ) -> Answer:
        """One request; `target` is path and query, already quoted. Raises Unreachable.

        `guard` is called when the body is about to leave; what it raises is raised here and nothing was sent.
        """
        limits = self._timeouts.get(seconds)
        if limits is None:
            limits = self._timeouts[seconds] = aiohttp.ClientTimeout(
                total=seconds, sock_connect=CONNECT_TIMEOUT
            )
        request = _Request(method, URL(self._base + target, encoded=True), body, content_type, limits, guard)
        credential = await self._credentials.current()
        answer = await self._exchange(request, credential)
        if answer.code == _UNAUTHORIZED and await self._credentials.refused(credential.generation):
            answer = await self._exchange(request, await self._credentials.current())
        return answer

    @contextlib.asynccontextmanager
    async def stream(self, target: str, seconds: float) -> AsyncIterator[AsyncIterator[bytes]]:
        """A GET whose body comes in chunks, for at most `seconds`. Raises ApiError and Unreachable."""
        session = self._watches
        if session is None:
            raise RuntimeError("the client is not open; use `async with Client(...)`")
        limits = aiohttp.ClientTimeout(total=seconds, sock_connect=CONNECT_TIMEOUT)
        credential = await self._credentials.current()
        response = await self._start_stream(session, target, limits, credential)
        if response.status == _UNAUTHORIZED and await self._credentials.refused(credential.generation):
            response.close()
            response = await self._start_stream(session, target, limits, await self._credentials.current())
        try:
            if response.status >= 400:
                answer = await self._whole(response)
                raise api_error(answer.code, answer.body, answer.retry_after)
            yield self._chunks(response)
        finally:
            response.close()

    async def _start_stream(
        self,
        session: aiohttp.ClientSession,
        target: str,
        limits: aiohttp.ClientTimeout,
        credential: Credential,
    ) -> aiohttp.ClientResponse:
        try:
            return await session.get(
                URL(self._base + target, encoded=True),
                headers=self._request_headers(credential, ""),
                timeout=limits,
                ssl=self._tls_for(credential),
                server_hostname=self._server_hostname,
                proxy=self._proxy,
            )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise unreachable(self._config, error) from error

    async def _whole(self, response: aiohttp.ClientResponse) -> Answer:
        try:
            return Answer(response.status, await response.read(), response.headers.get("Retry-After"))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise unreachable(self._config, error) from error

    async def _chunks(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        try:
            async for chunk in response.content.iter_any():
                yield chunk
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise unreachable(self._config, error) from error

    async def _exchange(self, request: _Request, credential: Credential) -> Answer:
        session = self._requests
        if session is None:
            raise RuntimeError("the client is not open; use `async with Client(...)`")
        body: bytes | GuardedBody | None = request.body
        if request.body is not None and request.guard is not None:
            body = GuardedBody(request.body, request.guard)
        try:
            async with session.request(
                request.method,
                request.url,
                data=body,
                headers=self._request_headers(credential, request.content_type),
                timeout=request.limits,
                ssl=self._tls_for(credential),
                server_hostname=self._server_hostname,
                proxy=self._proxy,
            ) as response:
                return Answer(response.status, await response.read(), response.headers.get("Retry-After"))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if isinstance(body, GuardedBody) and body.refusal is not None:
                raise body.refusal from None
            raise unreachable(self._config, error) from error

    def _request_headers(self, credential: Credential, content_type: str) -> CIMultiDict[str]:
        key = (credential.generation, content_type)
        headers = self._prepared.get(key)
        if headers is None:
            headers = CIMultiDict(self._headers)
            headers.extend(credential.headers)
            headers.extend(self._config.impersonate)
            if content_type:
                headers["Content-Type"] = content_type
            if len(self._prepared) > 32:
                self._prepared.clear()
            self._prepared[key] = headers
        return headers

    def _tls_for(self, credential: Credential) -> ssl.SSLContext | bool:
        if credential.certificate is not None and credential.generation != self._tls_generation:
            self._tls = tls_context(self._config, credential.certificate, credential.key)
            self._tls_generation = credential.generation
        return self._tls


def tls_context(
    config: ClusterConfig, certificate: bytes | None = None, key: bytes | None = None
) -> ssl.SSLContext | bool:
    """What TLS needs to know; a given certificate replaces the configured one. True for plain http."""
    if not config.server.startswith("https://"):
        return True
    try:
        context = ssl.create_default_context(cadata=config.ca_data.decode() if config.ca_data else None)
        # Certificate authorities of clusters often lack the key identifiers that strict mode asks for.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if config.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        certificate, key = certificate or config.client_certificate, key or config.client_key
        if certificate and key:
            _load_pair(context, certificate, key)
    except (ssl.SSLError, ValueError) as error:
        raise GpufleetError(
            reason="CertificateInvalid",
            message=f"{config.source}: the certificates for {config.server} do not load: {error}",
            hint="check certificate-authority-data, client-certificate-data and client-key-data",
        ) from None
    return context


def unreachable(config: ClusterConfig, error: Exception) -> Unreachable:
    """The error for a request without answer."""
    server, hint = config.server, _when_absent(config)
    match error:
        case aiohttp.ClientConnectorCertificateError():
            return Unreachable(
                reason="CertificateRejected",
                message=f"the certificate of {server} is not trusted: {error.certificate_error}",
                hint="is this kubeconfig of an older cluster on the same address?",
                permanent=True,
            )
        case aiohttp.ClientHttpProxyError():
            return Unreachable(
                reason="ProxyFailed",
                message=f"the proxy on the way to {server} answered {error.status} {error.message}",
                hint="check proxy-url in your kubeconfig, or HTTPS_PROXY and NO_PROXY",
            )
        case aiohttp.InvalidURL():
            return Unreachable(
                reason="KubeconfigInvalid", message=f"{server!r} is not the URL of a server", permanent=True
            )
        case aiohttp.ClientConnectorError():
            why = error.os_error.strerror or str(error.os_error)
            return Unreachable(
                reason="ServerUnreachable", message=f"cannot connect to {server}: {why}", hint=hint
            )
        case aiohttp.ConnectionTimeoutError():
            return Unreachable(
                reason="ServerUnreachable",
                message=f"cannot connect to {server}: no answer within {CONNECT_TIMEOUT:.0f} s",
                hint=_when_silent(config),
            )
        case TimeoutError():
            return Unreachable(
                reason="ServerTimeout",
                message=f"{server} did not answer in time",
                hint=_when_silent(config),
                sent=True,
            )
        case _:
            why = str(error) or type(error).__name__
            return Unreachable(
                reason="ConnectionLost",
                message=f"lost the connection to {server}: {why}",
                hint=hint,
                sent=True,
            )


def _when_absent(config: ClusterConfig) -> str:
    """What to do where nobody listens."""
    if not config.fleet:
        return "does that cluster run, and can it be reached from here?"
    name = f"--name {config.fleet}"
    return f"gpufleet up {name}, if the fleet is stopped; gpufleet status {name} shows what runs"


def _when_silent(config: ClusterConfig) -> str:
    """What to do with a server that hangs."""
    if not config.fleet:
        return "the server, or something on the way to it, hangs: does `kubectl get --raw /livez` answer?"
    name = f"--name {config.fleet}"
    return (
        f"gpufleet status {name} -o wide shows what hangs and its log; "
        f"gpufleet down {name}, then gpufleet up {name} start it anew"
    )


def _session(limit: int) -> aiohttp.ClientSession:
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=limit, socket_factory=_socket),
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=("Accept-Encoding", "User-Agent", "Content-Type"),
        auto_decompress=False,
    )
    # aiohttp sends PUT and DELETE a second time when a kept connection breaks. Whether to is ours to decide
    # (test_kube_transport guards this, as the attribute is private).
    session._retry_connection = False  # noqa: SLF001
    return session


def _socket(address: aiohttp.connector.AddrInfoType) -> socket.socket:
    family, kind, protocol, _, _ = address
    made = socket.socket(family=family, type=kind, proto=protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE:
        made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made


def _load_pair(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    handle, name = tempfile.mkstemp(prefix="gpufleet-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(certificate + b"\n" + key)
        context.load_cert_chain(name)
    finally:
        Path(name).unlink()


def proxy_for(config: ClusterConfig) -> URL | None:
    """The proxy on the way to a cluster: configured, else of the environment; none to loopback."""
    proxy = config.proxy_url
    if not proxy:
        parts = urlsplit(config.server)
        host = parts.hostname or ""
        if host in ("localhost", "::1") or host.startswith("127.") or urllib.request.proxy_bypass(host):
            return None
        proxy = urllib.request.getproxies().get(parts.scheme, "")
    if not proxy:
        return None
    if urlsplit(proxy).scheme not in ("http", "https"):
        raise GpufleetError(
            reason="ProxyUnsupported",
            message=f"the proxy {proxy!r} for {config.server} is neither http nor https",
            hint="use an HTTP proxy that supports CONNECT",
        )
    return URL(proxy)
