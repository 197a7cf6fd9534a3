"""The kubelets' endpoint: what the API server asks a node for, over TLS, for all simulated nodes at once.

`kubectl logs` works: real files for process pods, a few true lines for simulated ones. Nothing can be
executed in a container that is only played, so exec, attach and port-forward say so. Only clients that
show a certificate of the cluster's authority for the group of its administrators, as the API server does,
are answered.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from pathlib import Path

import msgspec
from aiohttp import web

from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube.process import alive, metrics
from gpufleet.kube.times import format_micro_time, parse_time
from gpufleet.local.simnodes.kubelets import Kubelets, Tracked
from gpufleet.local.simnodes.logreader import LogReader
from gpufleet.local.simnodes.machines import HOST_ADDRESS
from gpufleet.local.simnodes.podlogs import (
    ContainerFolder,
    Line,
    LogOptions,
    container_folder,
    rendered,
    select,
)
from gpufleet.local.simnodes.podstate import ENDED, RUNNING, STOPPING, PodRun, Run, container_of

ALLOWED_GROUP = "system:masters"
_POLL_S = 0.5
_ABSENT = {
    "exec": "run a command in",
    "attach": "attach to",
    "portForward": "forward ports to",
    "run": "run a command in",
}


def tls_context(certificate: Path, key: Path, client_authority: Path) -> ssl.SSLContext:
    """A server context that asks every client for a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(client_authority)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


class Endpoint:
    """Serves logs and pods of all nodes; process containers leave their logs below `state`."""

    def __init__(self, kubelets: Kubelets, state: Path) -> None:
        self._kubelets = kubelets
        self._state = state
        self._runner: web.AppRunner | None = None

    async def start(self, port: int, context: ssl.SSLContext) -> int:
        """Listen on loopback (port 0: a free one); the port. Raises GpufleetError (PortTaken)."""
        application = web.Application(middlewares=[_only_administrators])
        router = application.router
        router.add_get("/healthz", alive)
        router.add_get("/metrics", metrics)
        router.add_get("/pods", self._pods)
        router.add_get("/containerLogs/{namespace}/{pod}/{container}", self._logs)
        for verb in _ABSENT:
            router.add_route("*", f"/{verb}/{{namespace}}/{{pod}}", _absent(verb))
            router.add_route("*", f"/{verb}/{{namespace}}/{{pod}}/{{rest:.*}}", _absent(verb))
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, HOST_ADDRESS, port, ssl_context=context).start()
        except OSError as error:
            await runner.cleanup()
            raise GpufleetError(
                reason="PortTaken",
                message=f"cannot listen on {HOST_ADDRESS}:{port}: {error.strerror}",
                hint="end what uses the port, or start the fleet under another name",
            ) from None
        self._runner = runner
        return int(runner.addresses[0][1])

    async def stop(self) -> None:
        """Close the endpoint and what is being followed."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _pods(self, _: web.Request) -> web.Response:
        pods = [run.pod for run in self._kubelets.runs()]
        body = msgspec.json.encode({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": pods})
        return web.Response(body=body, content_type="application/json")

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        names = request.match_info
        tracked = self._kubelets.find(names["namespace"], names["pod"])
        run = tracked.run.run(names["container"]) if tracked else None
        if tracked is None or run is None:
            text = f"container {names['container']} of pod {names['namespace']}/{names['pod']} is not here"
            return web.Response(status=404, text=text)
        try:
            options = log_options(request.query, time.time())
        except ValueError as error:
            return web.Response(status=400, text=f"cannot read the options: {error}")
        problem = no_logs(tracked, run, previous=options.previous)
        if problem:
            return web.Response(status=400, text=problem)
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        left = options.limit_bytes
        async for chunk in self._text(tracked, run, options):
            await response.write(chunk if left is None else chunk[:left])
            if left is not None:
                left -= len(chunk)
                if left <= 0:
                    break
        await response.write_eof()
        return response

    def _text(self, tracked: Tracked, run: Run, options: LogOptions) -> AsyncIterator[bytes]:
        if tracked.process:
            meta = tracked.run.pod.metadata
            folder = container_folder(self._state, meta.namespace, meta.name, meta.uid, run.name)
            return self._file(tracked, run, folder, options)
        return self._played(tracked, run.name, options)

    async def _file(
        self, tracked: Tracked, run: Run, folder: ContainerFolder, options: LogOptions
    ) -> AsyncIterator[bytes]:
        attempt = attempt_shown(run, previous=options.previous)
        assert attempt is not None
        reader = LogReader(folder, attempt, options)
        await asyncio.to_thread(reader.seek)
        while True:
            ended = not options.follow or not _plays(tracked, run.name, attempt)
            while piece := await asyncio.to_thread(reader.read, ended=ended):
                yield piece
            if ended:
                return
            await asyncio.sleep(_POLL_S)

    async def _played(self, tracked: Tracked, container: str, options: LogOptions) -> AsyncIterator[bytes]:
        told = 0
        while True:
            run = tracked.run.run(container)
            assert run is not None
            devices = tracked.node.held(tracked.run.uid, container)
            lines = played_lines(tracked.run, run, devices)
            yield rendered(select(lines, options) if not told else lines[told:], options)
            told = len(lines)
            if not options.follow or tracked.run.over or tracked.gone:
                return
            await asyncio.sleep(_POLL_S)


def attempt_shown(run: Run, *, previous: bool) -> int | None:
    """Which attempt of a container `logs` shows, or None when there is none (yet).

    While the container waits for its next attempt, that is the last one, also for `previous`.
    Source: pkg/kubelet/kubelet_pods.go validateContainerLogStatus.
    """
    if run.state in (RUNNING, STOPPING, ENDED):
        attempt = run.attempt - previous
    else:
        attempt = run.last.attempt if run.last is not None else -1
    return attempt if attempt >= 0 else None


def no_logs(tracked: Tracked, run: Run, *, previous: bool) -> str:
    """Why there is nothing to show, in a kubelet's words; empty when there is something."""
    if attempt_shown(run, previous=previous) is not None:
        return ""
    name = tracked.run.pod.metadata.name
    if previous:
        return f'previous terminated container "{run.name}" in pod "{name}" not found'
    if tracked.process:
        return f'container "{run.name}" in pod "{name}" is waiting to start: {run.reason}'
    return ""


def played_lines(pod: PodRun, run: Run, devices: Iterable[str]) -> list[Line]:
    """What is true about a container that is only played."""
    image = container_of(pod.pod, run.name).image
    rows = [
        (pod.accepted_at, f"simulated: {image} is played on node {pod.pod.spec.node_name}, it is not run")
    ]
    uuids = ", ".join(devices)
    if uuids:
        rows.append((pod.accepted_at, f"devices: {uuids}"))
    if run.last is not None:
        ended = run.last
        rows.append((ended.started_at, "container started"))
        rows.append((ended.finished_at, f"container ended with exit code {ended.exit_code} ({ended.reason})"))
    if run.state == RUNNING:
        rows.append((run.started_at, f"container started (restarts: {run.attempt})"))
    return [Line(f"{format_micro_time(at)} {text}\n".encode(), at) for at, text in rows]


def log_options(query: Mapping[str, str], now: float) -> LogOptions:
    """The options of a log request; raises ValueError for one that makes no sense."""

    def flag(name: str) -> bool:
        return query.get(name, "").lower() in ("true", "1", "t")

    def number(name: str) -> int | None:
        text = query.get(name, "")
        return int(text) if text else None

    since = parse_time(query.get("sinceTime", "")) or None
    seconds = number("sinceSeconds")
    return LogOptions(
        follow=flag("follow"),
        previous=flag("previous"),
        timestamps=flag("timestamps"),
        tail_lines=number("tailLines"),
        limit_bytes=number("limitBytes"),
        since=since if seconds is None else now - seconds,
    )


def _plays(tracked: Tracked, container: str, attempt: int) -> bool:
    run = tracked.run.run(container)
    return run is not None and run.live and run.attempt == attempt and not tracked.gone


def _absent(verb: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handler(_: web.Request) -> web.Response:
        text = f"cannot {_ABSENT[verb]} a simulated container: gpufleet's local nodes serve logs only"
        return web.Response(status=501, text=text)

    return handler


@web.middleware
async def _only_administrators(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    transport = request.transport
    certificate = transport.get_extra_info("peercert") if transport else None
    names = [
        value
        for part in (certificate or {}).get("subject", ())
        for key, value in part
        if key == "organizationName"
    ]
    if ALLOWED_GROUP not in names:
        return web.Response(status=403, text=f"only clients of group {ALLOWED_GROUP} are answered")
    return await handler(request)
