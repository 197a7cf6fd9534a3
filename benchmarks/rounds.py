"""One round of the scheduler benchmark: pods created at once, one observer that watches them being bound.

The time of a round runs from the sending of the first create to the arrival of the last binding on the watch,
so everything that a user waits for is in it: creation, the scheduler's own watch, its decision, the binding.
Latencies run from the answer to a pod's create to the arrival of its binding.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any, TypeVar

import msgspec
import psutil
from benchmarks.contenders import SCHEDULER_NAME
from benchmarks.fleet import Fleet
from benchmarks.nodes import GPUS_PER_NODE, PATIENCE_S
from benchmarks.nullbinder import Pod

from gpufleet.kube.client import Client
from gpufleet.kube.kinds import EVENTS, NAMESPACES, PODS, SERVICE_ACCOUNTS
from gpufleet.kube.objects.meta import ObjectMeta, PartialObject

T = TypeVar("T")

NAMESPACE = "bench"
CONNECTIONS = 64
STUCK_S = 30.0
WARM_UP_PODS = 64


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """What one round measured.

    `seconds` end with the last binding, `told_seconds` with the last Event about one. `cpu_seconds` (until
    then) and `peak_mib` (resident memory) are by program.
    """

    contender: str
    pods: int
    seconds: float
    pods_per_second: float
    told_seconds: float
    median_latency_ms: float
    p99_latency_ms: float
    cpu_seconds: dict[str, float]
    peak_mib: dict[str, float]


class Regarding(msgspec.Struct, frozen=True):
    """The object of an Event."""

    name: str = ""


class Event(msgspec.Struct, frozen=True):
    """As much of an Event as tells that a pod was scheduled."""

    metadata: ObjectMeta
    reason: str = ""
    regarding: Regarding = Regarding()


class Observer:
    """The one witness: when each pod was seen bound, where, and when its Event was seen."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.bound_at: dict[str, float] = {}
        self.told_at: dict[str, float] = {}
        self.node_of: dict[str, str] = {}
        self._grew = asyncio.Event()

    async def watch_pods(self, resource_version: str) -> None:
        """Watch pods from `resource_version` until cancelled."""
        while True:
            stream = self._client.watch(PODS, NAMESPACE, resource_version=resource_version, type=Pod)
            async for event in stream:
                resource_version = event.resource_version or resource_version
                pod = event.object
                if pod and pod.spec.node_name and pod.metadata.name not in self.bound_at:
                    self.node_of[pod.metadata.name] = pod.spec.node_name
                    self._saw(pod.metadata.name, self.bound_at)

    async def watch_events(self, resource_version: str) -> None:
        """Watch Events from `resource_version` until cancelled."""
        while True:
            stream = self._client.watch(EVENTS, NAMESPACE, resource_version=resource_version, type=Event)
            async for event in stream:
                resource_version = event.resource_version or resource_version
                if event.object and event.object.reason == "Scheduled":
                    self._saw(event.object.regarding.name, self.told_at)

    def _saw(self, name: str, when: dict[str, float]) -> None:
        when.setdefault(name, time.perf_counter())
        self._grew.set()

    async def wait_for(self, count: int, fleet: Fleet, contender: str) -> None:
        """Wait until `count` pods were seen bound and told about; raises when the contender ends or hangs."""
        while min(len(self.bound_at), len(self.told_at)) < count:
            self._grew.clear()
            try:
                await asyncio.wait_for(self._grew.wait(), STUCK_S)
            except TimeoutError:
                fleet.must_run(contender)
                seen = f"{len(self.bound_at)} bindings and {len(self.told_at)} Events for {count} pods"
                hangs = f"{contender}: {seen}, then nothing for {STUCK_S:.0f} s"
                raise TimeoutError(f"{hangs}; {fleet.last_words(contender)}") from None


def pod_body(name: str) -> bytes:
    """A pod that asks for one GPU, a few cores and some memory."""
    asked = {"nvidia.com/gpu": "1", "cpu": "4", "memory": "16Gi"}
    container = {"name": "main", "image": "bench", "resources": {"requests": asked, "limits": asked}}
    spec = {
        "schedulerName": SCHEDULER_NAME,
        "containers": [container],
        "terminationGracePeriodSeconds": 0,
    }
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "bench"}},
        "spec": spec,
    }
    return json.dumps(body).encode()


async def create_pods(client: Client, names: Sequence[str]) -> dict[str, float]:
    """Create the pods over many connections at once; when each create was answered."""
    path = PODS.path(NAMESPACE)
    created: dict[str, float] = {}
    left = iter(names)

    async def worker() -> None:
        for name in left:
            await client.request("POST", path, body=pod_body(name))
            created[name] = time.perf_counter()

    await asyncio.gather(*(worker() for _ in range(CONNECTIONS)))
    return created


async def empty(client: Client) -> None:
    """Delete the pods of the namespace and wait until they are gone; Events stay, alike for all."""
    deadline = time.monotonic() + PATIENCE_S
    while pods := (await client.list(PODS, NAMESPACE, type=PartialObject)).items:
        if time.monotonic() > deadline:
            raise TimeoutError("the pods of the last round do not go away")
        left = iter(pods)

        async def worker(left: Iterator[PartialObject] = left) -> None:
            for pod in left:
                await client.delete(PODS, pod.metadata.name, NAMESPACE, grace=0, missing_ok=True)

        await asyncio.gather(*(worker() for _ in range(CONNECTIONS)))


def cpu_seconds(fleet: Fleet) -> dict[str, float]:
    """Processor time that each program has used so far; the benchmark itself is the observer."""
    own = psutil.Process().cpu_times()
    return {**fleet.cpu_seconds(), "observer": own.user + own.system}


async def watch_memory(fleet: Fleet, peak: dict[str, float]) -> None:
    """Keep the highest resident memory of each program in `peak`, until cancelled."""
    while True:
        for name, mib in fleet.resident_mib().items():
            peak[name] = max(mib, peak.get(name, 0.0))
        await asyncio.sleep(0.25)


async def watched(work: Coroutine[Any, Any, T], *watches: Coroutine[Any, Any, None]) -> T:
    """What `work` returns while `watches` run; what a watch raises is raised here and ends the work."""
    working = asyncio.create_task(work)
    watching = [asyncio.create_task(watch) for watch in watches]
    try:
        done, _ = await asyncio.wait((working, *watching), return_when=asyncio.FIRST_COMPLETED)
        for watch in watching:
            if watch in done:
                await watch
        return await working
    finally:
        for task in (working, *watching):
            task.cancel()
        await asyncio.gather(working, *watching, return_exceptions=True)


async def measure(fleet: Fleet, client: Client, contender: str, argv: Sequence[str], pods: int) -> Round:
    """Run one round with a fresh process of the contender; warm-up pods prove that it is ready first."""
    await empty(client)
    fleet.start(contender, argv)
    try:
        await _bind(fleet, client, contender, [f"warm-{index:05}" for index in range(WARM_UP_PODS)], {})
        await empty(client)
        await asyncio.sleep(2.0)
        peak: dict[str, float] = {}
        return await _bind(fleet, client, contender, [f"pod-{index:05}" for index in range(pods)], peak)
    finally:
        fleet.stop(contender)


async def _bind(
    fleet: Fleet, client: Client, contender: str, names: Sequence[str], peak: dict[str, float]
) -> Round:
    observer = Observer(client)
    version = (await client.list(PODS, NAMESPACE, type=PartialObject)).resource_version

    async def work() -> tuple[dict[str, float], float, dict[str, float]]:
        await asyncio.sleep(0.2)
        before, started = cpu_seconds(fleet), time.perf_counter()
        created = await create_pods(client, names)
        await observer.wait_for(len(names), fleet, contender)
        return before, started, created

    before, started, created = await watched(
        work(), observer.watch_pods(version), observer.watch_events(version), watch_memory(fleet, peak)
    )
    after = cpu_seconds(fleet)
    check_capacity(contender, observer.node_of)
    seconds = max(observer.bound_at.values()) - started
    waits = sorted(max(0.0, observer.bound_at[name] - created[name]) for name in names)
    return Round(
        contender=contender,
        pods=len(names),
        seconds=round(seconds, 3),
        pods_per_second=round(len(names) / seconds, 1),
        told_seconds=round(max(observer.told_at.values()) - started, 3),
        median_latency_ms=round(1e3 * waits[len(waits) // 2], 1),
        p99_latency_ms=round(1e3 * waits[len(waits) * 99 // 100], 1),
        cpu_seconds={name: round(after[name] - before[name], 2) for name in after},
        peak_mib={name: round(mib, 1) for name, mib in sorted(peak.items())},
    )


def check_capacity(contender: str, node_of: dict[str, str]) -> None:
    """Raise when a node got more one-GPU pods than it has GPUs: a fast wrong scheduler is not fast."""
    node, count = Counter(node_of.values()).most_common(1)[0]
    if count > GPUS_PER_NODE:
        raise RuntimeError(f"{contender} bound {count} pods of one GPU to {node}, which has {GPUS_PER_NODE}")


async def prepare_namespace(client: Client) -> None:
    """The namespace of the benchmark, with its service account."""
    await client.create(
        NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    )
    deadline = time.monotonic() + PATIENCE_S
    while not (await client.list(SERVICE_ACCOUNTS, NAMESPACE, type=PartialObject)).items:
        if time.monotonic() > deadline:
            raise TimeoutError(f"namespace {NAMESPACE} gets no service account")
        await asyncio.sleep(0.1)
