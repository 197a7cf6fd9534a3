"""What stands between a client and the API server: a wire that can be cut, a server that is busy."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Self
from urllib.parse import urlsplit

import msgspec
from aiohttp import ClientSession, DummyCookieJar, web

from gpufleet.kube.config import ClusterConfig
from gpufleet.kube.transport import tls_context


class Wire:
    """A TCP proxy. `cut` ends every connection; while `broken`, new ones are refused."""

    def __init__(self, config: ClusterConfig) -> None:
        parts = urlsplit(config.server)
        self._target = (parts.hostname or "", parts.port or 443)
        self._config = config
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.broken = False
        self.opened = 0
        """Connections since the last cut."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def config(self) -> ClusterConfig:
        """The cluster's configuration, by way of this wire."""
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        return msgspec.structs.replace(self._config, server=f"https://127.0.0.1:{port}")

    def cut(self) -> None:
        self.opened = 0
        for writer in self._writers:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._greet(reader, writer)
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        if self.broken:
            writer.transport.abort()
            upstream_writer.transport.abort()
            return
        self.opened += 1
        self._writers |= {writer, upstream_writer}
        for source, sink in ((reader, upstream_writer), (upstream_reader, writer)):
            task = asyncio.create_task(self._pump(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """What is said before bytes are passed on: nothing."""

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError):
                while data := await reader.read(65536):
                    writer.write(data)
                    await writer.drain()
        finally:
            self._writers.discard(writer)
            writer.close()


class Tunnel(Wire):
    """An HTTP proxy that knows CONNECT; whoever is asked for, the API server answers."""

    def __init__(self, config: ClusterConfig) -> None:
        super().__init__(config)
        self.asked: list[str] = []

    @property
    def config(self) -> ClusterConfig:
        """The cluster under a name that only this proxy understands."""
        proxy = super().config.server.replace("https", "http")
        return msgspec.structs.replace(self._config, server="https://kubernetes:1", proxy_url=proxy)

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.asked.append(head.split(b"\r\n")[0].decode())
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")


Answer = Callable[[web.Request], Awaitable[web.Response | None]]


class Front:
    """A plain HTTP server that answers by `answer`, or passes the request on where that returns None."""

    def __init__(self, config: ClusterConfig, answer: Answer) -> None:
        self._config = config
        self._answer = answer
        self._port = 0
        self.requests: list[str] = []
        """`METHOD /path` of every request that arrived."""

    async def __aenter__(self) -> Self:
        self._session = ClientSession(cookie_jar=DummyCookieJar(), skip_auto_headers=("Accept-Encoding",))
        application = web.Application()
        application.router.add_route("*", "/{rest:.*}", self._handle)
        self._runner = web.AppRunner(application)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
        await self._session.close()

    @property
    def config(self) -> ClusterConfig:
        """A configuration that leads here, without credentials: the front has its own."""
        return ClusterConfig(server=f"http://127.0.0.1:{self._port}", source="front")

    async def _handle(self, request: web.Request) -> web.Response:
        self.requests.append(f"{request.method} {request.path}")
        answer = await self._answer(request)
        if answer is not None:
            return answer
        headers = {
            name: request.headers[name] for name in ("Content-Type", "Accept") if name in request.headers
        }
        async with self._session.request(
            request.method,
            self._config.server + request.path_qs,
            data=await request.read(),
            headers=headers,
            ssl=tls_context(self._config),
        ) as response:
            return web.Response(
                status=response.status, body=await response.read(), content_type=response.content_type
            )
