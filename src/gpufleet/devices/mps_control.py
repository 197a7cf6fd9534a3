"""One MPS control daemon, by the program that starts it and talks to it.

`nvidia-cuda-mps-control -d` puts a daemon into the background, which writes its pid into its pipe folder; the
same program without arguments passes commands from its input on to that daemon and prints the answers. Which
daemon is meant is told by variables alone. A process is ours when the pid file names it and its environment
has our pipe folder, so that a pid which now belongs to somebody else is never signalled, and an agent that
comes later knows the daemon of the one before.

The folders are never removed: running containers have them mounted, and would keep a folder that nobody
writes to any more. What a daemon has been told is kept beside them (`RECORD`), for the next agent. The record
is there, and empty, before the daemon starts: one whose agent dies in between is found, and known as ours.
Source: NVIDIA's MPS guide, man nvidia-cuda-mps-control.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import psutil

from gpufleet.devices.mps import (
    PIPE_VARIABLE,
    PROBE,
    QUIT,
    RECORD,
    SERVERS,
    MpsDaemon,
    daemon_variables,
    limit_commands,
    log_folder,
    pipe_folder,
    server_commands,
    shared_memory_folder,
)
from gpufleet.fleet.errors import GpufleetError

PROGRAM = "nvidia-cuda-mps-control"
TIMEOUT_S = 10.0

_PID_FILE = "nvidia-cuda-mps-control.pid"
_PROGRAMS = ("nvidia-cuda-mps-control", "nvidia-cuda-mps-server")
_POLL_S = 0.05


class MpsControl:
    """The control daemon of `resource` below the MPS root.

    `command` is the program with whatever must stand before it (an interpreter, or what starts it outside
    the agent's container, where it outlives the agent). Calls raise GpufleetError (MpsFailed).
    """

    def __init__(
        self, root: Path, resource: str, command: Sequence[str] = (PROGRAM,), timeout_s: float = TIMEOUT_S
    ) -> None:
        self.resource = resource
        self._command = tuple(command)
        self._timeout_s = timeout_s
        self._pipe = Path(pipe_folder(str(root), resource))
        self._log = Path(log_folder(str(root), resource))
        self._shm = Path(shared_memory_folder(str(root)))
        self._record = self._pipe.parent / RECORD
        self._variables = {**os.environ, **daemon_variables(str(root), resource)}
        self._variables.pop("CUDA_VISIBLE_DEVICES", None)  # it would give the GPUs other indexes

    def recorded(self) -> MpsDaemon | None:
        """What the daemon was told last, whether or not it still runs; None when there was none."""
        try:
            return msgspec.json.decode(self._record.read_bytes(), type=MpsDaemon)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def process(self) -> psutil.Process | None:
        """The running daemon."""
        try:
            process = psutil.Process(int((self._pipe / _PID_FILE).read_text()))
        except (OSError, ValueError, psutil.Error):
            return None
        return process if self._ours(process) else None

    async def start(self) -> None:
        """Start the daemon, after anything of it that is left over has been ended."""
        await asyncio.to_thread(self._clean)
        self._record.touch()
        log = self._log / "start.log"
        with log.open("wb") as output:
            # The daemon may keep what it was started with, so nobody can wait for the end of a pipe.
            starter = await self._spawn("-d", stdin=subprocess.DEVNULL, output=output.fileno())
            code = await self._ended(starter, f"{self._command[-1]} -d")
        if code != 0:
            said = " ".join(log.read_text(errors="replace").split()) or "and said nothing"
            raise _failed(f"{self._command[-1]} -d ended with {code}: {said}")
        if not await self._until(lambda: self.process() is not None):
            raise _failed("the daemon was started and is not there")

    async def limit(self, daemon: MpsDaemon) -> None:
        """Tell the daemon, and the servers that it has, the limits of clients, and keep what was told."""
        await self.ask(*limit_commands(daemon))
        servers = [int(line) for line in (await self.ask(SERVERS)).split() if line.isdecimal()]
        if servers:
            await self.ask(*(line for one in servers for line in server_commands(daemon, one)))
        await self.probe(daemon)
        temporary = self._record.with_suffix(".tmp")
        temporary.write_bytes(msgspec.json.encode(daemon))
        temporary.replace(self._record)

    async def probe(self, daemon: MpsDaemon) -> None:
        """Ask the daemon for a limit. Raises GpufleetError: MpsFailed when it does not answer, MpsLimitsLost
        when it was told something else in the meantime.
        """
        answer, told = await self.ask(PROBE), daemon.thread_percentage(daemon.ceiling)
        try:
            known = float(answer)
        except ValueError:
            raise _failed(f"{PROBE} was answered by {answer[:80]!r}") from None
        if abs(known - told) >= 1:
            what = f"clients get {known:g} % of the threads, not {told} %"
            raise _failed(what, reason="MpsLimitsLost")

    async def ask(self, *commands: str) -> str:
        """Pass commands on to the daemon; what it prints."""
        asker = await self._spawn(stdin=subprocess.PIPE, output=subprocess.PIPE)
        text = "".join(f"{command}\n" for command in commands).encode()
        try:
            async with asyncio.timeout(self._timeout_s):
                answer, _ = await asker.communicate(text)
        except TimeoutError:
            raise _failed(f"{commands[0]} was not answered in {self._timeout_s:g} s") from None
        finally:
            await _kill(asker)
        said = answer.decode(errors="replace").strip()
        if asker.returncode != 0:
            raise _failed(f"{commands[0]}: {said or f'exit code {asker.returncode}'}")
        return said

    async def stop(self) -> None:
        """End the daemon and its servers: by its own command, and by a signal if that is not enough."""
        if self.process() is not None:
            with contextlib.suppress(GpufleetError):
                await self.ask(QUIT)
            await self._until(lambda: self.process() is None)
        await asyncio.to_thread(self._clean)

    def forget(self) -> None:
        """Keep no longer what the daemon was told."""
        self._record.unlink(missing_ok=True)

    def _clean(self) -> None:
        """Folders are there; processes of an earlier daemon are not, for its server would keep the GPUs."""
        for folder in (self._pipe, self._log, self._shm):
            folder.mkdir(parents=True, exist_ok=True)
        left = [process for process in psutil.process_iter() if self._ours(process)]
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        deadline = time.monotonic() + self._timeout_s
        while left := [process for process in left if _runs(process)]:
            if time.monotonic() >= deadline:
                raise _failed(f"process {left[0].pid} of the last daemon cannot be ended")
            time.sleep(_POLL_S)
        (self._pipe / _PID_FILE).unlink(missing_ok=True)

    def _ours(self, process: psutil.Process) -> bool:
        """Whether a process runs, is one of MPS, and uses our folder. A client may well use the same path."""
        try:
            if not _runs(process):
                return False
            if not any(Path(word).name in _PROGRAMS for word in process.cmdline()):
                return False
            return process.environ().get(PIPE_VARIABLE) == str(self._pipe)
        except (psutil.Error, OSError):
            return False

    async def _spawn(self, *arguments: str, stdin: int, output: int) -> asyncio.subprocess.Process:
        """Run the program, apart from the agent's signals."""
        try:
            return await asyncio.create_subprocess_exec(
                *self._command,
                *arguments,
                stdin=stdin,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._variables,
                start_new_session=True,
            )
        except OSError as error:
            raise _failed(f"cannot run {self._command[0]}: {error.strerror}") from error

    async def _ended(self, process: asyncio.subprocess.Process, what: str) -> int:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await process.wait()
        except TimeoutError:
            raise _failed(f"{what} did not return in {self._timeout_s:g} s") from None
        finally:
            await _kill(process)

    async def _until(self, condition: Callable[[], bool]) -> bool:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_s
        while not condition():
            if loop.time() >= deadline:
                return False
            await asyncio.sleep(_POLL_S)
        return True


async def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _runs(process: psutil.Process) -> bool:
    """Whether a process runs; one that only waits to be collected does not."""
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _failed(message: str, reason: str = "MpsFailed") -> GpufleetError:
    hint = "look into the control.log of the daemon, below the MPS root"
    return GpufleetError(reason=reason, message=message, hint=hint)
