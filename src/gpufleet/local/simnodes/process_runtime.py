"""The runtime that runs containers as child processes of this machine.

What an earlier process of ours left running is found first and taken over when its pod asks for it; what no
pod asks for is ended. ConfigMaps and Secrets are read when a container starts, as a kubelet does. There is no
image and no file system of its own, so volumes are not mounted.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube.client import Client
from gpufleet.local.simnodes.configured import texts_of
from gpufleet.local.simnodes.environment import command_line, container_environment, sources_of
from gpufleet.local.simnodes.podlogs import ContainerFolder, container_folder, pod_folder
from gpufleet.local.simnodes.podstate import (
    Exited,
    HookFailed,
    PodRun,
    Probed,
    Started,
    StartFailed,
    container_of,
)
from gpufleet.local.simnodes.probing import Prober
from gpufleet.local.simnodes.processes import KILLED, Mark, ProcessContainer, base_environment, find, marked
from gpufleet.local.simnodes.runtimes import Tell, start_failed

log = logging.getLogger("gpufleet.local.simnodes")

SHUTDOWN_GRACE_S = 3.0
_AFTER_HOOK_S = 2.0
"""What a container has at least for its end after its preStop hook."""


class _Playing(msgspec.Struct, gc=True):
    """A container that is being played: None until it runs; `stop` is the grace once it is to stop, `hooked`
    says that its preStop hook was started.
    """

    mark: Mark
    container: ProcessContainer | None = None
    prober: Prober | None = None
    stop: float | None = None
    hooked: bool = False


class ProcessRuntime:
    """Runs containers as processes. `allocatable` gives a node's quantities by its name."""

    def __init__(
        self,
        client: Client,
        state: Path,
        tell: Tell,
        allocatable: Callable[[str], Mapping[str, str]],
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._client = client
        self._state = state
        self._tell = tell
        self._allocatable = allocatable
        self._base = base_environment(environ)
        self._found: dict[Mark, int] = {}
        self._playing: dict[tuple[str, str], _Playing] = {}
        self._lives: set[asyncio.Task[None]] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._session: aiohttp.ClientSession | None = None
        self._closing = False

    async def open(self) -> None:
        """See what an earlier process of ours has left running."""
        self._found = await asyncio.to_thread(find, self._state)
        self._session = aiohttp.ClientSession()

    async def end_strays(self) -> None:
        """Kill what was found and no pod has taken over."""
        for mark, group in self._found.items():
            log.warning("ended a stray container", extra={"container": str(mark), "pid": group})
            await ProcessContainer(mark, container_folder(self._state, "", "", "", ""), group).stop(0.0)
        self._found.clear()

    async def close(self, *, leave_running: bool) -> None:
        """Tell nothing any more. Containers get SIGTERM, a short grace, SIGKILL, or go on without us."""
        if not leave_running:
            await self._stop_all()
        leftovers = [*self._lives, *self._tasks]
        for task in leftovers:
            task.cancel()
        await asyncio.gather(*leftovers, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def _stop_all(self) -> None:
        self._closing = True
        for playing in self._playing.values():
            self._stop(playing, SHUTDOWN_GRACE_S)
        if self._lives:
            await asyncio.wait(self._lives, timeout=SHUTDOWN_GRACE_S + 2)

    def start(self, pod: PodRun, container: str, attempt: int, devices: tuple[str, ...]) -> None:
        """Start a container, take it over where it runs already, or tell how it ended where it has run."""
        mark = Mark(pod.uid, container, attempt)
        group = self._found.pop(mark, None)
        code = self._folder(pod, container).exit_code(attempt)
        if group is not None:
            self._play(pod, mark, self._continue(pod, mark, group, devices, started=True))
        elif code is not None:
            for event in (Started(container, attempt), Exited(container, attempt, code)):
                asyncio.get_running_loop().call_soon(self._tell, pod.uid, event)
        else:
            self._play(pod, mark, self._begin(pod, mark, devices))

    def stop(self, pod: PodRun, container: str, attempt: int, grace: float) -> None:
        """Stop a container, also one that is only being started."""
        playing = self._playing.get((pod.uid, container))
        if playing is not None and playing.mark.attempt == attempt:
            self._stop(playing, grace)
        else:
            ended = Exited(container, attempt, KILLED)
            asyncio.get_running_loop().call_soon(self._tell, pod.uid, ended)

    def resume(self, pod: PodRun, container: str, devices: tuple[str, ...]) -> None:
        """Take a container over; one that does not run any more has ended meanwhile."""
        run = pod.run(container)
        assert run is not None
        mark = Mark(pod.uid, container, run.attempt)
        group = self._found.pop(mark, None)
        if group is not None:
            self._play(pod, mark, self._continue(pod, mark, group, devices, started=False))
            return
        code = self._folder(pod, container).exit_code(run.attempt)
        ended = Exited(container, run.attempt, KILLED if code is None else code)
        asyncio.get_running_loop().call_soon(self._tell, pod.uid, ended)

    def forget(self, pod: PodRun) -> None:
        """Remove the pod's logs."""
        meta = pod.pod.metadata
        folder = pod_folder(self._state, meta.namespace, meta.name, meta.uid)
        self._later(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True))

    def _folder(self, pod: PodRun, container: str) -> ContainerFolder:
        meta = pod.pod.metadata
        return container_folder(self._state, meta.namespace, meta.name, meta.uid, container)

    def _later(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _stop(self, playing: _Playing, grace: float) -> None:
        playing.stop = grace
        if playing.container is not None and playing.prober is not None:
            self._later(self._end(playing, playing.container, playing.prober, grace))

    async def _end(
        self, playing: _Playing, container: ProcessContainer, prober: Prober, grace: float
    ) -> None:
        """The preStop hook, then SIGTERM with what is left of the grace. A fleet that ends runs no hooks."""
        began = time.monotonic()
        if grace > 0 and not (self._closing or playing.hooked):
            playing.hooked = True
            result = await prober.pre_stop(grace)
            if result is not None and not result.ok:
                mark = playing.mark
                self._say(mark.uid, HookFailed(mark.container, mark.attempt, result.message))
            if result is not None:
                grace = max(_AFTER_HOOK_S, grace - (time.monotonic() - began))
        await container.stop(grace)

    def _play(self, pod: PodRun, mark: Mark, life: Coroutine[Any, Any, None]) -> None:
        self._playing[pod.uid, mark.container] = _Playing(mark)
        task = asyncio.create_task(life)
        self._lives.add(task)
        task.add_done_callback(self._lives.discard)

    async def _begin(self, pod: PodRun, mark: Mark, devices: tuple[str, ...]) -> None:
        try:
            container, environment = await self._spawned(pod, mark, devices)
        except Exception as error:  # noqa: BLE001 - whatever went wrong, the pod must hear of it
            self._playing.pop((mark.uid, mark.container), None)
            self._say(mark.uid, start_failed(mark.container, mark.attempt, error))
            return
        self._say(mark.uid, Started(mark.container, mark.attempt))
        await self._accompany(container, self._prober(pod, container, environment))

    async def _continue(
        self, pod: PodRun, mark: Mark, group: int, devices: tuple[str, ...], *, started: bool
    ) -> None:
        container = ProcessContainer(mark, self._folder(pod, mark.container), group)
        log.info("took over a container", extra={"pod": pod.key, "container": str(mark), "pid": group})
        if started:
            self._say(mark.uid, Started(mark.container, mark.attempt))
        try:
            environment = await self._environment(pod, mark.container, devices)
        except GpufleetError:
            environment = self._base
        run = pod.run(mark.container)
        assert run is not None
        known = {} if started else {"started": run.started, "ready": run.ready}
        await self._accompany(container, self._prober(pod, container, environment, **known))

    async def _spawned(
        self, pod: PodRun, mark: Mark, devices: tuple[str, ...]
    ) -> tuple[ProcessContainer, Mapping[str, str]]:
        spec = container_of(pod.pod, mark.container)
        environment = await self._environment(pod, mark.container, devices)
        command = command_line(spec, environment)
        if not command:
            text = "a container of runtime process needs a command: there is no image to take one from"
            raise GpufleetError(reason="CreateContainerError", message=text)
        folder = self._folder(pod, mark.container)
        started = ProcessContainer.start(self._state, mark, folder, command, environment, spec.working_dir)
        return await started, environment

    async def _environment(self, pod: PodRun, container: str, devices: tuple[str, ...]) -> dict[str, str]:
        spec, namespace = container_of(pod.pod, container), pod.pod.metadata.namespace
        wanted = sorted(sources_of(spec))
        sources = {source: await texts_of(self._client, source, namespace) for source in wanted}
        allocatable = self._allocatable(pod.pod.spec.node_name)
        return self._base | container_environment(pod.pod, spec, sources, devices, allocatable)

    async def _accompany(self, container: ProcessContainer, prober: Prober) -> None:
        """Probe a running container and wait for its end."""
        mark = container.mark
        playing = self._playing[mark.uid, mark.container]
        playing.container, playing.prober = container, prober
        if playing.stop is not None or self._closing:
            self._stop(playing, SHUTDOWN_GRACE_S if playing.stop is None else playing.stop)
        probing = asyncio.create_task(prober.run())
        try:
            code = await container.ended()
        finally:
            probing.cancel()
            if self._playing.get((mark.uid, mark.container)) is playing:
                del self._playing[mark.uid, mark.container]
        self._say(mark.uid, Exited(mark.container, mark.attempt, code))

    def _prober(
        self, pod: PodRun, container: ProcessContainer, environment: Mapping[str, str], **known: bool
    ) -> Prober:
        assert self._session is not None
        mark, spec = container.mark, container_of(pod.pod, container.mark.container)

        def tell(kind: str, ok: bool, message: str) -> None:
            self._say(mark.uid, Probed(mark.container, mark.attempt, kind, ok, message))

        probes = marked(environment, self._state, mark, probe=True)
        return Prober(spec, self._session, probes, container.folder.path, tell, **known)

    def _say(self, uid: str, event: Started | StartFailed | Exited | Probed | HookFailed) -> None:
        if not self._closing:
            self._tell(uid, event)
