"""How a long-running process of gpufleet behaves towards Kubernetes and whoever is on duty.

It serves `/metrics` (Prometheus text), `/healthz` (alive) and `/readyz` (does its work) over plain HTTP,
writes one structured line per event to stderr (JSON, or a human form on a terminal), and stops on SIGTERM or
SIGINT.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import prometheus_client
from aiohttp import web

from gpufleet.kube.times import format_micro_time

Page = Callable[[web.Request], Awaitable[web.Response]]

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class JSONLines(logging.Formatter):
    """One JSON object a line: ts, level, logger, msg, and whatever the call put into `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "ts": format_micro_time(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "msg": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class HumanLines(logging.Formatter):
    """Time, level, message, then the fields as key=value, for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{key}={value}" for key, value in _fields(record).items())
        text = f"{self.formatTime(record, '%H:%M:%S')} {record.levelname.lower():7} {record.getMessage()}"
        return f"{text}  {fields}".rstrip() + (
            f"\n{self.formatException(record.exc_info)}" if record.exc_info else ""
        )


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in record.__dict__.items() if key not in _STANDARD}


def configure_logging(level: str = "INFO") -> None:
    """Log to stderr: for people on a terminal, JSON lines elsewhere."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(HumanLines() if sys.stderr.isatty() else JSONLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)


def stop_requested() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set; call it inside the running loop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


@contextlib.asynccontextmanager
async def serving(
    port: int,
    *,
    ready: Callable[[], bool],
    host: str = "127.0.0.1",
    ready_file: Path | None = None,
    pages: Mapping[str, Page] = MappingProxyType({}),
) -> AsyncIterator[int]:
    """Serve metrics, probes and more `pages` by path on `port` (0: a free one) and yield the port.

    `ready_file`, where given, is written with `{"pid", "port"}` once the server listens. Raises OSError when
    the port is taken.
    """
    application = web.Application()
    application.router.add_get("/metrics", metrics)
    application.router.add_get("/healthz", alive)
    application.router.add_get("/readyz", _readiness(ready))
    for path, page in pages.items():
        application.router.add_get(path, page)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        actual = int(runner.addresses[0][1])
        if ready_file is not None:
            await asyncio.to_thread(_write, ready_file, {"pid": os.getpid(), "port": actual})
        yield actual
    finally:
        await runner.cleanup()


def _write(path: Path, content: dict[str, int]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content))
    temporary.replace(path)


async def metrics(_: web.Request) -> web.Response:
    """Everything that this process counts, as Prometheus reads it."""
    return web.Response(
        body=prometheus_client.generate_latest(),
        headers={"Content-Type": prometheus_client.CONTENT_TYPE_LATEST},
    )


async def alive(_: web.Request) -> web.Response:
    """Says ok: this process runs."""
    return web.Response(text="ok")


def _readiness(ready: Callable[[], bool]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(text="ok") if ready() else web.Response(text="not ready", status=503)

    return handler
