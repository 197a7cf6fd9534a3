"""An observer of a cluster: all that pods and GPUNodes ever looked like, from before the first of them.

It runs in a thread of its own, waits for the fleet's kubeconfig, lists and watches, and goes on where it was
whenever the API server comes back. What it could not see happen (a gap that only a new list closes) it still
sees the result of, deletions included.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube.client import ApiError, Client
from gpufleet.kube.config import load_config
from gpufleet.kube.kinds import GPU_NODES, PODS, Kind

Known = dict[str, dict[str, Any]]
AGAIN_S = 0.1


class Sighting(msgspec.Struct, frozen=True):
    """One object as it looked at `at` (seconds since the epoch); `gone` when it was deleted.

    The sightings of one list are told one by one; all but the last of them are `partial`: only after that one
    does what was seen belong to one moment again.
    """

    at: float
    plural: str
    object: dict[str, Any]
    gone: bool = False
    partial: bool = False

    @property
    def uid(self) -> str:
        """The uid of the object."""
        return str(self.object["metadata"]["uid"])

    @property
    def node(self) -> str:
        """Where a pod is bound; empty when it is not."""
        return str(self.object["spec"].get("nodeName", ""))


class Observer:
    """Watches a fleet: `with Observer(kubeconfig) as observer`.

    `gaps` counts new lists from the first pod on: between the end of a watch and its new list, only the
    result of what happened was seen. (Before that, a server that still takes in our CRDs ends watches.)
    """

    def __init__(self, kubeconfig: Path) -> None:
        self.sightings: list[Sighting] = []
        self.gaps = 0
        self._begun = False
        self.objects_at_start: dict[str, int] = {}
        self.problem: BaseException | None = None
        self._kubeconfig = kubeconfig
        self._thread = threading.Thread(target=self._main, name="observer", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = threading.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join(timeout=30)
        assert not self._thread.is_alive()
        assert self.problem is None, self.problem

    def pods(self, **labels: str) -> list[Sighting]:
        """All sightings of pods with these labels, in order."""
        seen = (sighting for sighting in list(self.sightings) if sighting.plural == PODS.plural)
        return [one for one in seen if labels.items() <= one.object["metadata"].get("labels", {}).items()]

    def nodes_of(self, sightings: Iterable[Sighting]) -> dict[str, set[str]]:
        """Every node that each uid was ever bound to; an empty set for pods that never were."""
        nodes: dict[str, set[str]] = {}
        for sighting in sightings:
            nodes.setdefault(sighting.uid, set()).update({sighting.node} - {""})
        return nodes

    def _main(self) -> None:
        try:
            asyncio.run(self._observe())
        except BaseException as error:  # noqa: BLE001 - told to the test, which would otherwise trust a dead observer
            self.problem = error

    async def _observe(self) -> None:
        while not self._kubeconfig.exists() and not self._stopping.is_set():
            await asyncio.sleep(AGAIN_S)
        if self._stopping.is_set():
            return
        async with (
            Client(load_config(str(self._kubeconfig)), user_agent="observer", deadline=0.0) as client,
            asyncio.TaskGroup() as tasks,
        ):
            watching = [tasks.create_task(self._follow(client, kind)) for kind in (PODS, GPU_NODES)]
            while not self._stopping.is_set():
                await asyncio.sleep(AGAIN_S)
            for task in watching:
                task.cancel()

    async def _follow(self, client: Client, kind: Kind) -> None:
        known: Known = {}
        version = ""
        while True:
            try:
                if not version:
                    version = await self._read_all(client, kind, known)
                async for event in client.watch(kind, resource_version=version):
                    version = event.resource_version
                    if event.object is not None:
                        self._see(kind, known, event.object, gone=event.type == "DELETED")
            except ApiError as error:
                version = "" if error.gone else version
                await asyncio.sleep(AGAIN_S)
            except GpufleetError:
                await asyncio.sleep(AGAIN_S)

    async def _read_all(self, client: Client, kind: Kind, known: Known) -> str:
        listing = await client.list(kind)
        self._begun |= kind is PODS and bool(listing.items)
        if self._begun and kind.plural in self.objects_at_start:
            self.gaps += 1
        self.objects_at_start.setdefault(kind.plural, len(listing.items))
        listed = {item["metadata"]["uid"] for item in listing.items}
        news = [(known[uid], True) for uid in known if uid not in listed]
        news += [(item, False) for item in listing.items if _is_news(known, item)]
        for number, (item, gone) in enumerate(news, 1):
            self._see(kind, known, item, gone=gone, partial=number < len(news))
        return listing.resource_version

    def _see(
        self, kind: Kind, known: Known, seen: dict[str, Any], *, gone: bool = False, partial: bool = False
    ) -> None:
        if gone:
            known.pop(seen["metadata"]["uid"], None)
        else:
            known[seen["metadata"]["uid"]] = seen
        self._begun |= kind is PODS
        self.sightings.append(Sighting(time.time(), kind.plural, seen, gone, partial))


def _is_news(known: Known, seen: dict[str, Any]) -> bool:
    before = known.get(seen["metadata"]["uid"])
    return before is None or before["metadata"]["resourceVersion"] != seen["metadata"]["resourceVersion"]
