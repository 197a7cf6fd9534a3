"""Saving a snapshot of a real API server, where gpufleet does not run, and asking it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.contract.servers import ControlPlane

from gpufleet.kube.client import Client
from gpufleet.kube.kinds import NODES, PODS, PRIORITY_CLASSES
from gpufleet.scheduling.recording import from_bytes

ROOT = Path(__file__).parents[2]
GPU = "nvidia.com/gpu"
MANIFEST = """
apiVersion: v1
kind: Pod
metadata: {{name: new}}
spec:
  priorityClassName: {priority}
  nodeSelector: {{fleet: {fleet}}}
  containers: [{{name: main, image: x, resources: {{limits: {{nvidia.com/gpu: 1}}}}}}]
"""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(control_plane: ControlPlane, tmp_path: Path) -> Run:
    """Run gpufleet in a process of its own, with a kubeconfig of the control plane."""
    kubeconfig = control_plane.write_kubeconfig(tmp_path / "config", {"token": "first-token"})

    def running(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", "import sys; from gpufleet.cli import main; sys.exit(main())", *arguments],
            env={**os.environ, "KUBECONFIG": str(kubeconfig)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return running


async def a_full_node(client: Client, namespace: str) -> None:
    """A node of one GPU with a pod on it, and a pod that waits for it."""
    node = f"{namespace}-node"
    labels = {"kubernetes.io/hostname": node, "fleet": namespace}
    await client.create(NODES, {"metadata": {"name": node, "labels": labels}})
    amounts = {"cpu": "8", "memory": "16Gi", "pods": "10", GPU: "1"}
    status = {
        "allocatable": amounts,
        "capacity": amounts,
        "conditions": [{"type": "Ready", "status": "True"}],
    }
    await client.patch(NODES, node, {"status": status}, subresource="status")
    await client.patch(NODES, node, {"spec": {"taints": None}})
    for name, place in (("holder", node), ("waits", "")):
        container = {"name": "main", "image": "x", "resources": {"limits": {GPU: "1"}}}
        spec: dict[str, Any] = {"containers": [container], "schedulerName": "gpufleet", "nodeName": place}
        if not place:
            spec = {**spec, "nodeSelector": {"fleet": namespace}}
        await client.create(PODS, {"metadata": {"name": name}, "spec": spec}, namespace)


async def prepare(plane: ControlPlane, namespace: str) -> None:
    async with Client(plane.config) as client:
        await a_full_node(client, namespace)
        await client.create(PRIORITY_CLASSES, {"metadata": {"name": f"{namespace}-high"}, "value": 100})


def test_a_saved_snapshot_answers_as_the_live_cluster_does(
    run: Run, control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    asyncio.run(prepare(control_plane, namespace))
    file = str(tmp_path / "cluster.json.gz")
    saved = run("snapshot", "save", file)
    assert saved.returncode == 0, saved.stderr
    assert saved.stderr.startswith(f"{file}: ")

    live = run("why", "waits", "-n", namespace, "-o", "json")
    offline = run("why", "waits", "-n", namespace, "-o", "json", "--snapshot", file)
    assert (live.returncode, offline.returncode) == (0, 0)
    assert json.loads(live.stdout) == json.loads(offline.stdout)

    plan = json.loads(run("decide", file, "-o", "json").stdout)
    (waits,) = [action for action in plan["actions"] if action["pod"] == f"{namespace}/waits"]
    assert waits["action"] == "Unschedulable"


def test_a_redacted_snapshot_names_nobody(
    run: Run, control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    asyncio.run(prepare(control_plane, namespace))
    file = tmp_path / "cluster.json"
    assert run("snapshot", "save", str(file), "--redact").returncode == 0
    data = file.read_bytes()
    assert namespace.encode() not in data
    assert b"holder" not in data
    assert GPU.encode() in data
    assert from_bytes(data, "x").snapshot.unbound


def test_what_if_asks_the_live_cluster_and_its_priority_classes(
    run: Run, control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    asyncio.run(prepare(control_plane, namespace))
    manifest = tmp_path / "pod.yaml"
    manifest.write_text(MANIFEST.format(priority=f"{namespace}-high", fleet=namespace))
    found = run("plan", "what-if", "-n", namespace, "-f", str(manifest), "-o", "json")
    assert (found.returncode, found.stderr) == (0, "")
    told = {one["pod"]: one["after"] for one in json.loads(found.stdout)["changed"]}
    assert told[f"{namespace}/new"]["state"] == "soon"
    assert told[f"{namespace}/holder"]["state"] == "evicted"
    assert told[f"{namespace}/holder"]["beneficiary"] == f"{namespace}/new"

    more = run(
        "plan", "what-if", "--add-nodes", f"like={namespace}-node,count=1", "-n", namespace, "-o", "json"
    )
    (waits,) = [one for one in json.loads(more.stdout)["changed"] if one["pod"] == f"{namespace}/waits"]
    assert waits["after"]["state"] == "placed"
