"""Who we are, as it changes: tokens that rotate and programs that print credentials.

The transport asks for the headers before each request and reports a 401. A token file is read again when
it was last read more than a minute ago (the kubelet rotates projected tokens long before they expire) and
at once after a 401. An exec plugin runs again when its credential has expired and after a 401, once for
all requests that failed together: a refusal names the generation it happened with, and an older one than
the current is no news.
Source: k8s.io/client-go/transport/token_source.go, plugin/pkg/client/auth/exec/exec.go.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube.config import ClusterConfig, ExecPlugin
from gpufleet.kube.times import parse_time

TOKEN_MAX_AGE = 60.0
EXEC_TIMEOUT = 60.0
EXEC_VERSIONS = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")


class Credential(msgspec.Struct, frozen=True):
    """What to show the server now. `generation` grows with every change; certificate and key are PEM."""

    headers: Mapping[str, str]
    generation: int = 0
    certificate: bytes | None = None
    key: bytes | None = None


class Credentials(Protocol):
    """A source of credentials."""

    async def current(self) -> Credential:
        """The credential to use now."""

    async def refused(self, generation: int) -> bool:
        """The server answered 401 to `generation`. True when there is another credential to try."""


class FixedCredentials:
    """A token, a password, a client certificate or nothing: it never changes."""

    def __init__(self, config: ClusterConfig) -> None:
        headers: dict[str, str] = {}
        if config.token:
            headers["Authorization"] = f"Bearer {config.token}"
        elif config.username:
            pair = base64.b64encode(f"{config.username}:{config.password}".encode()).decode()
            headers["Authorization"] = f"Basic {pair}"
        self._credential = Credential(headers)

    async def current(self) -> Credential:
        """The one credential."""
        return self._credential

    async def refused(self, generation: int) -> bool:
        """There is no other."""
        return False


class TokenFile:
    """A bearer token in a file that someone else rotates."""

    def __init__(
        self, path: Path, fallback: str = "", *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = path
        self._clock = clock
        self._token = fallback
        self._credential: Credential | None = None
        self._read_at = 0.0

    async def current(self) -> Credential:
        """The token as of at most a minute ago."""
        if self._credential is None or self._clock() - self._read_at >= TOKEN_MAX_AGE:
            return self._read()
        return self._credential

    async def refused(self, generation: int) -> bool:
        """Read the file at once; True if it holds another token than the refused one."""
        return self._read().generation != generation

    def _read(self) -> Credential:
        self._read_at = self._clock()
        try:
            token = self._path.read_text().strip()
        except OSError as error:
            if not self._token:
                raise GpufleetError(
                    reason="TokenUnreadable",
                    message=f"cannot read the token file {self._path}: {error.strerror}",
                    hint="check tokenFile in your kubeconfig",
                ) from None
            token = ""
        token = token or self._token
        if self._credential is None or token != self._token:
            generation = self._credential.generation + 1 if self._credential else 0
            self._credential = Credential({"Authorization": f"Bearer {token}"}, generation)
        self._token = token
        return self._credential


class _ExecStatus(msgspec.Struct, frozen=True, rename="camel"):
    token: str = ""
    client_certificate_data: str = ""
    client_key_data: str = ""
    expiration_timestamp: str | None = None


class _ExecCredential(msgspec.Struct, frozen=True, rename="camel"):
    api_version: str
    kind: str
    status: _ExecStatus | None = None


class ExecCredentials:
    """A credential printed by a program (client.authentication.k8s.io)."""

    def __init__(
        self,
        plugin: ExecPlugin,
        *,
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if plugin.api_version not in EXEC_VERSIONS:
            raise _plugin_error(
                plugin, f"apiVersion {plugin.api_version!r} is not one of {', '.join(EXEC_VERSIONS)}"
            )
        self._plugin = plugin
        self._environ = environ
        self._clock = clock
        self._credential: Credential | None = None
        self._expires = 0.0
        self._lock = asyncio.Lock()

    async def current(self) -> Credential:
        """The last credential while it is valid, else the output of another run."""
        credential = self._credential
        if credential is not None and not self._expired():
            return credential
        async with self._lock:
            if self._credential is None or self._expired():
                await self._run()
            assert self._credential is not None
            return self._credential

    async def refused(self, generation: int) -> bool:
        """Run the program again, unless that has happened since `generation` was handed out."""
        async with self._lock:
            if self._credential is not None and self._credential.generation == generation:
                await self._run()
        return True

    def _expired(self) -> bool:
        return self._expires > 0.0 and self._clock() >= self._expires

    async def _run(self) -> None:
        status = self._parse(await self._output())
        generation = self._credential.generation + 1 if self._credential else 0
        self._expires = parse_time(status.expiration_timestamp)
        self._credential = Credential(
            {"Authorization": f"Bearer {status.token}"} if status.token else {},
            generation,
            status.client_certificate_data.encode() or None,
            status.client_key_data.encode() or None,
        )

    async def _output(self) -> bytes:
        plugin = self._plugin
        interactive = plugin.interactive_mode != "Never" and sys.stdin is not None and sys.stdin.isatty()
        if plugin.interactive_mode == "Always" and not interactive:
            raise _plugin_error(
                plugin, "it wants to ask questions (interactiveMode: Always), but there is no terminal"
            )
        spec = {
            "interactive": interactive,
            **({"cluster": plugin.cluster} if plugin.cluster is not None else {}),
        }
        told = {"apiVersion": plugin.api_version, "kind": "ExecCredential", "spec": spec}
        environ = {
            **self._environ,
            **dict(plugin.env),
            "KUBERNETES_EXEC_INFO": msgspec.json.encode(told).decode(),
        }
        try:
            process = await asyncio.create_subprocess_exec(
                plugin.command,
                *plugin.args,
                env=environ,
                stdin=None if interactive else asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=None if interactive else asyncio.subprocess.PIPE,
            )
        except OSError as error:
            raise _plugin_error(plugin, f"it cannot be started: {error.strerror}") from None
        try:
            async with asyncio.timeout(None if interactive else EXEC_TIMEOUT):
                output, complaint = await process.communicate()
        except TimeoutError:
            raise _plugin_error(plugin, f"it did not answer within {EXEC_TIMEOUT:.0f} s") from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if process.returncode != 0:
            last = (complaint or b"").decode(errors="replace").strip().splitlines()[-1:] or [
                "it said nothing"
            ]
            raise _plugin_error(plugin, f"it failed with exit code {process.returncode}: {last[0]}")
        return output

    def _parse(self, output: bytes) -> _ExecStatus:
        try:
            answer = msgspec.json.decode(output, type=_ExecCredential)
        except msgspec.DecodeError as error:
            raise _plugin_error(self._plugin, f"it did not print an ExecCredential: {error}") from None
        if answer.api_version != self._plugin.api_version:
            raise _plugin_error(
                self._plugin,
                f"it answered with {answer.api_version!r} instead of {self._plugin.api_version!r}",
            )
        status = answer.status or _ExecStatus()
        if bool(status.client_certificate_data) != bool(status.client_key_data):
            raise _plugin_error(self._plugin, "it gave a client certificate or a key but not both")
        if not status.token and not status.client_certificate_data:
            raise _plugin_error(self._plugin, "its answer has neither a token nor a client certificate")
        return status


def credentials_for(config: ClusterConfig) -> Credentials:
    """The source of credentials that a cluster's configuration names."""
    if config.exec_plugin is not None:
        return ExecCredentials(config.exec_plugin)
    if config.token_file:
        return TokenFile(Path(config.token_file), config.token)
    return FixedCredentials(config)


def _plugin_error(plugin: ExecPlugin, problem: str) -> GpufleetError:
    return GpufleetError(
        reason="ExecPluginFailed",
        message=f"the credential plugin {plugin.command!r}: {problem}",
        hint=plugin.install_hint.strip() or "run the command of `user.exec` in your kubeconfig by hand",
    )
