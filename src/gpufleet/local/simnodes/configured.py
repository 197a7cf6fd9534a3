"""A runtime that starts a container only once the ConfigMaps and Secrets that it needs are there.

A kubelet does so too. A container that is only played would run without them, and a manifest whose Secret was
forgotten would look right here and fail on a real cluster. Containers that need none start at once, without a
question to the API server.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import msgspec

from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube.client import ApiError, Client
from gpufleet.kube.kinds import CONFIG_MAPS, SECRETS
from gpufleet.kube.objects import Container, Pod
from gpufleet.local.simnodes.environment import Source, container_environment, sources_of
from gpufleet.local.simnodes.podstate import NOT_MOUNTED, Exited, PodRun, StartFailed, container_of
from gpufleet.local.simnodes.processes import KILLED
from gpufleet.local.simnodes.runtimes import Runtime, Tell, start_failed


class Mounted(msgspec.Struct, frozen=True):
    """A volume of a pod that is made from a ConfigMap or Secret which must exist."""

    volume: str
    source: Source


def mounted_sources(pod: Pod) -> list[Mounted]:
    """The volumes of a pod that need a ConfigMap or Secret."""
    found = []
    for volume in pod.spec.volumes:
        if volume.config_map is not None and not volume.config_map.optional:
            found.append(Mounted(volume.name, Source("ConfigMap", volume.config_map.name)))
        if volume.secret is not None and not volume.secret.optional:
            found.append(Mounted(volume.name, Source("Secret", volume.secret.secret_name)))
    return found


async def texts_of(client: Client, source: Source, namespace: str) -> dict[str, str] | None:
    """The texts of a ConfigMap or Secret by key; None where it does not exist."""
    kind = CONFIG_MAPS if source.kind == "ConfigMap" else SECRETS
    try:
        found = await client.get(kind, source.name, namespace)
    except ApiError as error:
        if error.not_found:
            return None
        raise
    data: dict[str, str] = found.get("data") or {}
    if kind is CONFIG_MAPS:
        return data
    return {key: base64.b64decode(text).decode(errors="replace") for key, text in data.items()}


class ConfiguredRuntime:
    """`inner`, after a look at what the pod needs. `allocatable` gives a node's quantities by its name."""

    def __init__(
        self,
        inner: Runtime,
        client: Client,
        tell: Tell,
        allocatable: Callable[[str], Mapping[str, str]],
    ) -> None:
        self._inner = inner
        self._client = client
        self._tell = tell
        self._allocatable = allocatable
        self._looking: dict[tuple[str, str], asyncio.Task[None]] = {}

    def start(self, pod: PodRun, container: str, attempt: int, devices: tuple[str, ...]) -> None:
        """Start a container, or tell `StartFailed` when something that it needs is missing."""
        if not mounted_sources(pod.pod) and not sources_of(container_of(pod.pod, container)):
            self._inner.start(pod, container, attempt, devices)
            return
        self._look(pod, container, self._start_if_configured(pod, container, attempt, devices))

    def stop(self, pod: PodRun, container: str, attempt: int, grace: float) -> None:
        """Stop a container, also one that has not started because we are still looking."""
        looking = self._looking.pop((pod.uid, container), None)
        if looking is None:
            self._inner.stop(pod, container, attempt, grace)
            return
        looking.cancel()
        ended = Exited(container, attempt, KILLED)
        asyncio.get_running_loop().call_soon(self._tell, pod.uid, ended)

    def resume(self, pod: PodRun, container: str, devices: tuple[str, ...]) -> None:
        """Take over a container that ran before: it was configured then."""
        self._inner.resume(pod, container, devices)

    def forget(self, pod: PodRun) -> None:
        """Look no more."""
        for run in pod.runs:
            looking = self._looking.pop((pod.uid, run.name), None)
            if looking is not None:
                looking.cancel()
        self._inner.forget(pod)

    def _look(self, pod: PodRun, container: str, work: Coroutine[Any, Any, None]) -> None:
        self._looking[pod.uid, container] = asyncio.create_task(work)

    async def _start_if_configured(
        self, pod: PodRun, container: str, attempt: int, devices: tuple[str, ...]
    ) -> None:
        failed: StartFailed | None = None
        try:
            await self._check(pod.pod, container_of(pod.pod, container))
        except Exception as error:  # noqa: BLE001 - whatever went wrong, the pod must hear of it
            failed = start_failed(container, attempt, error)
        self._looking.pop((pod.uid, container), None)
        if failed is None:
            self._inner.start(pod, container, attempt, devices)
        else:
            self._tell(pod.uid, failed)

    async def _check(self, pod: Pod, container: Container) -> None:
        """Raise what a kubelet would say about the first thing that is missing."""
        namespace = pod.metadata.namespace
        mounted = mounted_sources(pod)
        wanted = sorted({one.source for one in mounted} | sources_of(container))
        texts = {source: await texts_of(self._client, source, namespace) for source in wanted}
        for one in mounted:
            if texts[one.source] is None:
                missing = f'{one.source.kind.lower()} "{one.source.name}" not found'
                text = f'MountVolume.SetUp failed for volume "{one.volume}" : {missing}'
                raise GpufleetError(reason=NOT_MOUNTED, message=text)
        container_environment(pod, container, texts, (), self._allocatable(pod.spec.node_name))
