"""Probes and preStop hooks of process containers, really executed: HTTP, TCP and exec on this machine's
loopback.

First the startup probe until it passes, then liveness and readiness side by side. A verdict is told when it
changes, after as many results in a row as the probe's thresholds say. A gRPC probe is a TCP connection here.
Source: pkg/kubelet/prober, pkg/kubelet/lifecycle.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import aiohttp
import msgspec

from gpufleet.kube.objects import Container, Probe
from gpufleet.local.simnodes.machines import HOST_ADDRESS

_MAX_OUTPUT = 200
_REAP_S = 5.0


class Result(msgspec.Struct, frozen=True):
    """What one probe found."""

    ok: bool
    message: str = ""


class Verdict:
    """What a probe says about a container; None: nothing yet.

    A change needs `success_threshold` or `failure_threshold` results in a row.
    """

    def __init__(self, probe: Probe, current: bool | None) -> None:
        self._probe = probe
        self.current = current
        self._last: bool | None = None
        self._row = 0

    def changes(self, result: Result) -> bool:
        """Whether this result changes the verdict."""
        self._row = self._row + 1 if result.ok == self._last else 1
        self._last = result.ok
        needed = self._probe.success_threshold if result.ok else self._probe.failure_threshold
        if result.ok == self.current or self._row < needed:
            return False
        self.current = result.ok
        return True


class Prober:
    """The probes of one running container; `tell(kind, ok, message)` hears verdicts. Run until cancelled.

    `started` and `ready` are what earlier probes of the same container have found.
    """

    def __init__(
        self,
        container: Container,
        session: aiohttp.ClientSession,
        environment: Mapping[str, str],
        folder: Path,
        tell: Callable[[str, bool, str], None],
        *,
        started: bool = False,
        ready: bool = False,
    ) -> None:
        self._started = started
        self._first = {"startup": None, "readiness": ready, "liveness": True}
        self._container = container
        self._session = session
        self._environment = environment
        self._folder = folder
        self._tell = tell

    async def run(self) -> None:
        """Startup first, then liveness and readiness together."""
        if self._container.startup_probe is not None and not self._started:
            await self._watch("startup", self._container.startup_probe)
        async with asyncio.TaskGroup() as tasks:
            if self._container.liveness_probe is not None:
                tasks.create_task(self._watch("liveness", self._container.liveness_probe))
            if self._container.readiness_probe is not None:
                tasks.create_task(self._watch("readiness", self._container.readiness_probe))

    async def pre_stop(self, grace: float) -> Result | None:
        """Run the container's preStop hook, for at most `grace` seconds; None where it has none."""
        lifecycle = self._container.lifecycle
        hook = lifecycle.pre_stop if lifecycle is not None else None
        if hook is None:
            return None
        if hook.sleep is not None:
            await asyncio.sleep(min(hook.sleep.seconds, grace))
            return Result(ok=True)
        return await self.once(Probe(exec=hook.exec, http_get=hook.http_get, timeout_seconds=int(grace)))

    async def _watch(self, kind: str, probe: Probe) -> None:
        verdict = Verdict(probe, self._first[kind])
        await asyncio.sleep(probe.initial_delay_seconds)
        while True:
            result = await self.once(probe)
            if verdict.changes(result):
                self._tell(kind, result.ok, result.message)
                if kind == "startup" or (kind == "liveness" and not result.ok):
                    return
            await asyncio.sleep(max(1, probe.period_seconds))

    async def once(self, probe: Probe) -> Result:
        """Execute a probe once, within its timeout; one that cannot be executed has failed."""
        try:
            async with asyncio.timeout(max(1, probe.timeout_seconds)):
                if probe.http_get is not None:
                    return await self._http(probe)
                if probe.exec is not None:
                    return await self._exec(probe.exec.command)
                return await self._connect(probe)
        except TimeoutError:
            return Result(ok=False, message=f"no answer within {max(1, probe.timeout_seconds)}s")
        except (OSError, TypeError, ValueError) as error:
            return Result(ok=False, message=f"cannot execute the probe: {error}")

    async def _http(self, probe: Probe) -> Result:
        assert probe.http_get is not None
        get = probe.http_get
        host, port = get.host or HOST_ADDRESS, self._port(get.port)
        url = f"{get.scheme.lower()}://{host}:{port}/{get.path.removeprefix('/')}"
        headers = {"User-Agent": "kube-probe/1.37", **{h.name: h.value for h in get.http_headers}}
        try:
            async with self._session.get(url, headers=headers, allow_redirects=False, ssl=False) as answer:
                ok = 200 <= answer.status < 400
                return Result(ok, "" if ok else f"HTTP probe failed with statuscode: {answer.status}")
        except aiohttp.ClientError as error:
            return Result(ok=False, message=f"Get {url!r}: {error}")

    async def _connect(self, probe: Probe) -> Result:
        port: int | str = 0
        host = ""
        if probe.tcp_socket is not None:
            host, port = probe.tcp_socket.host, probe.tcp_socket.port
        elif probe.grpc is not None:
            port = probe.grpc.port
        try:
            _, writer = await asyncio.open_connection(host or HOST_ADDRESS, self._port(port))
        except OSError as error:
            return Result(ok=False, message=str(error))
        writer.close()
        return Result(ok=True)

    async def _exec(self, command: Sequence[str]) -> Result:
        process = await asyncio.create_subprocess_exec(
            *command,
            env=dict(self._environment),
            cwd=self._folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            output, _ = await process.communicate()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_REAP_S):
                    await process.wait()
        return Result(process.returncode == 0, output[:_MAX_OUTPUT].decode(errors="replace").strip())

    def _port(self, port: int | str) -> int:
        if isinstance(port, int):
            return port
        named = next((p.container_port for p in self._container.ports if p.name == port), None)
        return named if named is not None else int(port) if port.isdecimal() else 0
