"""Live equals offline: what the scheduler decided against a real API server is decided again from its files.

Pods, gangs and claims come and go at random on nodes that this test plays: it starts what is bound, ends what
is evicted, cordons, makes GPUs sick, cuts and says who holds which device. Now and then the server refuses a
binding, so that pods pause. Every decision is recorded, and a process with another hash seed decides all of
them again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.contract.servers import ControlPlane

from gpufleet.kube.client import ApiError, Client
from gpufleet.kube.conventions.picked_devices import picks_in
from gpufleet.kube.crds import establish
from gpufleet.kube.custom_resources import custom_resources
from gpufleet.kube.events import EventRecorder
from gpufleet.kube.gpunode_writes import create_gpu_node
from gpufleet.kube.kinds import (
    DISRUPTION_BUDGETS,
    GPU_NODES,
    NODES,
    PERSISTENT_VOLUME_CLAIMS,
    PODS,
    PRIORITY_CLASSES,
)
from gpufleet.scheduling.controller import SchedulingController
from gpufleet.scheduling.cycle import Policy
from gpufleet.scheduling.recordings import SNAPSHOT, Recordings

ROOT = Path(__file__).parents[2]
REPLAY = Path(__file__).parent / "replay.py"
GPU, H100 = "nvidia.com/gpu", "NVIDIA-H100-80GB-HBM3"
GPUS = 4
SCHEDULER = f"recorded-{os.getpid()}"
PRIORITIES = {"low": 1, "middle": 10, "high": 100}


class Refusing(Client):
    """A client whose server refuses every so many bindings."""

    bindings = 0

    async def bind(self, *arguments: Any, **named: Any) -> Any:
        self.bindings += 1
        if self.bindings % 13 == 0:
            raise ApiError(status=403, reason="Forbidden", message="admission said no")
        return await super().bind(*arguments, **named)


class Fleet:
    """The nodes and pods of one test, and everybody around the scheduler."""

    def __init__(self, client: Client, namespace: str, seed: int) -> None:
        self.client = client
        self.namespace = namespace
        self.draw = random.Random(seed)
        self.made = 0
        self.nodes = [f"{namespace}-{number}" for number in range(6)]

    async def prepare(self) -> None:
        await establish(self.client, custom_resources())
        for name, value in PRIORITIES.items():
            body = {"metadata": {"name": f"{self.namespace}-{name}"}, "value": value}
            await self.client.create(PRIORITY_CLASSES, body)
        for number, name in enumerate(self.nodes):
            await self._node(name, "x" if number % 2 else "y")
            if number < 4:
                await self._gpu_node(name, dynamic=number == 0)
        for app in ("a", "b"):
            spec = {"minAvailable": 1, "selector": {"matchLabels": {"app": app}}}
            body = {"metadata": {"name": app}, "spec": spec}
            await self.client.create(DISRUPTION_BUDGETS, body, self.namespace)

    async def step(self) -> None:
        """One thing happens."""
        happens = [self._create, self._create, self._delete, self._delete, self._nodes_change, self._sick]
        await self.draw.choice(happens)()
        await self._serve()

    async def _node(self, name: str, zone: str) -> None:
        labels = {
            "kubernetes.io/hostname": name,
            "topology.kubernetes.io/zone": zone,
            "fleet": self.namespace,
        }
        await self.client.create(NODES, {"metadata": {"name": name, "labels": labels}})
        status = {
            "allocatable": {"cpu": "16", "memory": "64Gi", "pods": "20", GPU: str(GPUS)},
            "capacity": {"cpu": "16", "memory": "64Gi", "pods": "20", GPU: str(GPUS)},
            "conditions": [{"type": "Ready", "status": "True"}],
        }
        await self.client.patch(NODES, name, {"status": status}, subresource="status")
        await self.client.patch(NODES, name, {"spec": {"taints": None}})

    async def _gpu_node(self, name: str, *, dynamic: bool) -> None:
        uid = (await self.client.get(NODES, name))["metadata"]["uid"]
        await create_gpu_node(self.client, name, uid)
        if dynamic:
            desired = {"dynamic": True, "allowModeSwitch": True}
            await self.client.patch(GPU_NODES, name, {"spec": {"desired": desired}})
        await self._devices(name, set())

    async def _devices(self, name: str, sick: set[int]) -> None:
        devices = [
            {
                "index": n,
                "uuid": f"GPU-{name}-{n}",
                "product": H100,
                "memoryMib": 81559,
                "healthy": n not in sick,
                "reason": "Xid79" if n in sick else "",
            }
            for n in range(GPUS)
        ]
        links = [[(100, 40, 10)[(row + n) % 3] for n in range(row)] for row in range(GPUS)]
        resources = [{"name": GPU, "capacity": GPUS, "healthy": GPUS - len(sick)}]
        status = {"devices": devices, "resources": resources, "links": links}
        await self.client.patch(GPU_NODES, name, {"status": status}, subresource="status")

    async def _create(self) -> None:
        self.made += 1
        if self.draw.random() < 0.3:
            size = self.draw.randint(2, 4)
            gang = {"gpufleet.dev/gang": f"g{self.made}", "gpufleet.dev/gang-size": str(size)}
            template = self._template()
            for member in range(size):
                await self._pod(f"g{self.made}-{member}", template, gang)
            return
        await self._pod(f"p{self.made}", self._template(), {})

    def _template(self) -> dict[str, Any]:
        draw = self.draw
        resource = GPU if draw.random() < 0.85 else "nvidia.com/mig-1g.10gb"
        amounts = {"cpu": draw.choice(["500m", "2"]), resource: str(draw.choice([1, 1, 2, 4]))}
        container: dict[str, Any] = {"name": "main", "image": "registry.invalid/x:1"}
        container["resources"] = {"requests": amounts, "limits": {resource: amounts[resource]}}
        spec: dict[str, Any] = {
            "schedulerName": SCHEDULER,
            "nodeSelector": {"fleet": self.namespace},
            "priorityClassName": f"{self.namespace}-{draw.choice(list(PRIORITIES))}",
            "containers": [container],
            "terminationGracePeriodSeconds": 30,
        }
        chosen = draw.random()
        selector = {"matchLabels": {"app": draw.choice("ab")}}
        if chosen < 0.15:
            term = {"labelSelector": selector, "topologyKey": "kubernetes.io/hostname"}
            affinity = {"requiredDuringSchedulingIgnoredDuringExecution": [term]}
            spec["affinity"] = {draw.choice(["podAntiAffinity", "podAffinity"]): affinity}
        elif chosen < 0.3:
            spread = {"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "labelSelector": selector}
            spread["whenUnsatisfiable"] = draw.choice(["DoNotSchedule", "ScheduleAnyway"])
            spec["topologySpreadConstraints"] = [spread]
        elif chosen < 0.4:
            container["ports"] = [{"containerPort": 80, "hostPort": 80}]
        return spec

    async def _pod(self, name: str, spec: dict[str, Any], labels: dict[str, str]) -> None:
        claims = self.draw.random() < 0.05
        if claims:
            claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
            await self.client.create(
                PERSISTENT_VOLUME_CLAIMS, {"metadata": {"name": name}, "spec": claim}, self.namespace
            )
            volume = {"name": "data", "persistentVolumeClaim": {"claimName": name}}
            spec = {**spec, "volumes": [volume]}
        metadata = {"name": name, "labels": {"app": self.draw.choice("ab"), **labels}}
        await self.client.create(PODS, {"metadata": metadata, "spec": spec}, self.namespace)

    async def _delete(self) -> None:
        pods = await self._pods()
        if len(pods) > 12:
            for one in self.draw.sample(pods, 2):
                await self._end(one)

    async def _nodes_change(self) -> None:
        if self.draw.random() < 0.3:
            name = self.draw.choice(self.nodes)
            cordoned = {"unschedulable": self.draw.random() < 0.4}
            await self.client.patch(NODES, name, {"spec": cordoned})

    async def _sick(self) -> None:
        if self.draw.random() < 0.3:
            sick = {number for number in range(GPUS) if self.draw.random() < 0.1}
            await self._devices(self.draw.choice(self.nodes[1:4]), sick)

    async def _pods(self) -> list[dict[str, Any]]:
        pods: list[dict[str, Any]] = (await self.client.list(PODS, namespace=self.namespace)).items
        return sorted(pods, key=lambda one: one["metadata"]["name"])

    async def _end(self, one: dict[str, Any]) -> None:
        with contextlib.suppress(ApiError):
            await self.client.delete(PODS, one["metadata"]["name"], self.namespace, grace=0)

    async def _serve(self) -> None:
        """What kubelets and agents do: start, end, and say who holds what."""
        pods = await self._pods()
        for one in pods:
            if one["metadata"].get("deletionTimestamp"):
                await self._end(one)
                continue
            waits = one["spec"].get("nodeName") and one["status"]["phase"] == "Pending"
            if waits and self.draw.random() < 0.7:
                await self._start(one["metadata"]["name"])
        for name in self.nodes[:4]:
            allocations = [
                {
                    "namespace": self.namespace,
                    "pod": one["metadata"]["name"],
                    "podUid": one["metadata"]["uid"],
                    "container": pick.container,
                    "resource": pick.resource,
                    "devices": list(pick.devices),
                }
                for one in pods
                if one["spec"].get("nodeName") == name and one["status"]["phase"] == "Running"
                for pick in picks_in(one["metadata"].get("annotations", {}))
            ]
            status = {"allocations": allocations}
            await self.client.patch(GPU_NODES, name, {"status": status}, subresource="status")

    async def _start(self, name: str) -> None:
        patch = {"status": {"phase": "Running"}}
        with contextlib.suppress(ApiError):
            await self.client.patch(PODS, name, patch, self.namespace, subresource="status")


@contextlib.asynccontextmanager
async def recording(plane: ControlPlane, folder: Path) -> AsyncIterator[None]:
    """A scheduler at work that records in a folder."""
    recordings = Recordings(folder, 100_000)

    async def leading() -> None:
        return None

    async with Refusing(plane.config) as client:
        recorder = EventRecorder(client, controller="gpufleet.dev/recorded", instance="test")
        policy = Policy(frozenset({SCHEDULER}))
        controller = SchedulingController(client, recorder, lambda: policy, recordings)
        async with asyncio.TaskGroup() as tasks:
            working = [tasks.create_task(controller.run(leading)), tasks.create_task(recorder.run())]
            try:
                yield
            finally:
                for task in working:
                    task.cancel()
    await asyncio.to_thread(recordings.close)


def replayed(folder: Path) -> dict[str, Any]:
    """What deciding all recordings again says, in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(REPLAY), str(folder)],
        env={**os.environ, "PYTHONHASHSEED": "4711"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


async def record(plane: ControlPlane, namespace: str, folder: Path, decisions: int, seed: int) -> None:
    """Let things happen until so many decisions are recorded."""
    async with Client(plane.config) as client:
        fleet = Fleet(client, namespace, seed)
        await fleet.prepare()
        async with recording(plane, folder):
            while len(list(folder.glob(f"*{SNAPSHOT}"))) < decisions:
                await fleet.step()


async def test_what_was_decided_live_is_decided_again_from_its_files(
    control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    await record(control_plane, namespace, tmp_path, 120, seed=1)
    found = await asyncio.to_thread(replayed, tmp_path)
    assert found["decisions"] >= 120
    assert (found["different"], found["again"]) == ([], [])
    assert found["actions"]["Bind"] > 10


async def test_the_process_records_until_its_last_decision(
    control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    kubeconfig = control_plane.write_kubeconfig(tmp_path / "config", {"token": "first-token"})
    folder = tmp_path / "recorded"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gpufleet.controller", "--rooms=scheduling", "--no-leader-election"),
        *(f"--kubeconfig={kubeconfig}", f"--scheduler-names={SCHEDULER}", "--metrics-port=0"),
        *(f"--record={folder}", "--record-last=5"),
        env={**os.environ, "PYTHONHASHSEED": "99"},
        cwd=ROOT,
    )
    try:
        async with Client(control_plane.config) as client:
            fleet = Fleet(client, namespace, seed=2)
            await fleet.prepare()
            while len(list(folder.glob(f"*{SNAPSHOT}"))) < 5:
                await fleet.step()
    finally:
        process.terminate()
        assert await process.wait() == 0
    found = await asyncio.to_thread(replayed, folder)
    assert (found["decisions"], found["different"], found["again"]) == (5, [], [])
    assert len(list(folder.iterdir())) == 10


@pytest.mark.full
@pytest.mark.timeout(1800)
async def test_a_thousand_live_decisions_are_decided_again_from_their_files(
    control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    await record(control_plane, namespace, tmp_path, 1200, seed=int.from_bytes(os.urandom(4)))
    found = await asyncio.to_thread(replayed, tmp_path)
    print(found)
    assert found["distinct"] >= 1000
    assert (found["different"], found["again"]) == ([], [])
    assert found["actions"].keys() >= {"Bind", "Evict", "Nominate", "Cut", "Unschedulable", "paused"}
