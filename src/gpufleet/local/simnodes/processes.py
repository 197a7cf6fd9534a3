"""Containers as real child processes (`gpufleet.dev/runtime: process`).

Each container runs below a small shell that stays until it ends and leaves its exit code in a file, in a
process group of its own, marked by two environment variables: which fleet, and which attempt of which
container. The marks, not our memory, say what runs: after we were killed, `find` sees what still runs and
`ProcessContainer` takes it over, so no container ever runs twice, and its exit code is not lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec
import psutil

from gpufleet.fleet.errors import GpufleetError
from gpufleet.local.processes import COMPONENT_MARKER, FLEET_MARKER
from gpufleet.local.simnodes.podlogs import ContainerFolder

log = logging.getLogger("gpufleet.local.simnodes")

CONTAINER_MARKER = "GPUFLEET_CONTAINER"
KILLED = 137
_POLL_SECONDS = 0.2
_LENGTH_SECONDS = 1.0
_SHIM = 'trap : TERM; "$@"; code=$?; echo $code > "$0.new" && mv "$0.new" "$0"; exit $code'
_INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "USER")
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Mark(msgspec.Struct, frozen=True):
    """Which attempt of which container a process is."""

    uid: str
    container: str
    attempt: int

    def __str__(self) -> str:
        return f"{self.uid}/{self.container}/{self.attempt}"

    @classmethod
    def parse(cls, text: str) -> Mark | None:
        """The mark of a variable's value."""
        parts = text.split("/")
        if len(parts) != 3 or not parts[2].isdecimal():
            return None
        return cls(parts[0], parts[1], int(parts[2]))


def find(state: Path) -> dict[Mark, int]:
    """Every container of this fleet that still runs: its mark and the id of its process group.

    The shell of a container is the oldest of its processes that leads a group. What is left of a container
    whose shell is gone is ended here, because nobody could tell how it ends, and probes are.
    """
    ours: dict[str, list[psutil.Process]] = {}
    for process in psutil.process_iter():
        marker = _marker_of(process, state)
        if marker is not None and process.pid != os.getpid():
            ours.setdefault(marker, []).append(process)
    leaders: dict[Mark, int] = {}
    for marker, processes in ours.items():
        mark = Mark.parse(marker)
        first = min((one for one in processes if _leads(one)), key=psutil.Process.create_time, default=None)
        if mark is not None and first is not None:
            leaders[mark] = first.pid
            continue
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.kill()
    return leaders


def _leads(process: psutil.Process) -> bool:
    try:
        return os.getpgid(process.pid) == process.pid
    except ProcessLookupError:
        return False


def _marker_of(process: psutil.Process, state: Path) -> str | None:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        environment = process.environ()
    except (psutil.Error, OSError):
        return None
    return environment.get(CONTAINER_MARKER) if environment.get(FLEET_MARKER) == str(state) else None


def base_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What every process inherits of ours: the path and the user's surroundings, nothing else."""
    return {"PATH": _DEFAULT_PATH} | {name: environ[name] for name in _INHERITED if name in environ}


def marked(environment: Mapping[str, str], state: Path, mark: Mark, *, probe: bool = False) -> dict[str, str]:
    """The environment of a container's process, or of its probe's, by which all who clean up know it."""
    marker = f"{mark}/probe" if probe else str(mark)
    found = {**environment, FLEET_MARKER: str(state), CONTAINER_MARKER: marker}
    found.pop(COMPONENT_MARKER, None)
    return found


class ProcessContainer:
    """One attempt of a container, started by us or taken over."""

    def __init__(self, mark: Mark, folder: ContainerFolder, group: int) -> None:
        self.mark = mark
        self.folder = folder
        self.group = group
        self._over = asyncio.Event()
        self._child: subprocess.Popen[bytes] | None = None

    @classmethod
    async def start(
        cls,
        state: Path,
        mark: Mark,
        folder: ContainerFolder,
        command: list[str],
        environment: Mapping[str, str],
        working_dir: str,
    ) -> ProcessContainer:
        """Start a container; raises GpufleetError (RunContainerError) when its command cannot run."""
        child = await asyncio.to_thread(
            _spawn, mark, folder, command, marked(environment, state, mark), working_dir
        )
        container = cls(mark, folder, child.pid)
        container._child = child
        return container

    async def ended(self) -> int:
        """Wait until the container has ended; its exit code. What it left running ends with it."""
        length = 0
        watch = asyncio.create_task(_process_end(self.group, self._child))
        try:
            while not watch.done():
                await asyncio.wait([watch], timeout=_LENGTH_SECONDS)
                length = await asyncio.to_thread(
                    self.folder.note_length, self.mark.attempt, time.time(), length
                )
        finally:
            watch.cancel()
        self._signal_group(signal.SIGKILL)
        self._over.set()
        code = self.folder.exit_code(self.mark.attempt)
        return KILLED if code is None else code

    async def stop(self, grace: float) -> None:
        """Ask the main process to end, and kill the whole group after `grace` seconds."""
        if grace > 0 and not self._over.is_set():
            self._terminate()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await self._over.wait()
        if not self._over.is_set():
            self._signal_group(signal.SIGKILL)

    def _terminate(self) -> None:
        """SIGTERM to the container's main process alone: its children are its own to stop."""
        try:
            mains = psutil.Process(self.group).children()
            for main in mains:
                main.terminate()
        except psutil.Error:
            mains = []
        if not mains:
            self._signal_group(signal.SIGTERM)

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.group, number)


def _spawn(
    mark: Mark, folder: ContainerFolder, command: list[str], environment: Mapping[str, str], working_dir: str
) -> subprocess.Popen[bytes]:
    program = shutil.which(command[0], path=environment.get("PATH"))
    if program is None:
        text = f"exec: {command[0]!r}: executable file not found in $PATH"
        raise GpufleetError(reason="RunContainerError", message=text)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        with folder.log(mark.attempt).open("ab") as output:
            return subprocess.Popen(
                ["/bin/sh", "-c", _SHIM, str(folder.exit(mark.attempt)), program, *command[1:]],
                env=environment,
                cwd=working_dir or folder.path,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
    except OSError as error:
        text = f"cannot start {command[0]!r} in {working_dir or folder.path}: {error.strerror}"
        raise GpufleetError(reason="RunContainerError", message=text) from None


async def _process_end(pid: int, child: subprocess.Popen[bytes] | None) -> None:
    if hasattr(os, "pidfd_open"):
        await _readable_end(pid)
    else:
        await _polled_end(pid)
    if child is not None:
        await asyncio.to_thread(child.wait)


async def _readable_end(pid: int) -> None:
    """Wait for a process through a descriptor, which works for children and for others alike."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except OSError:  # Too many open files.
        await _polled_end(pid)
        return
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def _polled_end(pid: int) -> None:
    while psutil.pid_exists(pid):
        with contextlib.suppress(psutil.Error):
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return
        await asyncio.sleep(_POLL_SECONDS)
