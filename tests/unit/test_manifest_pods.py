"""Pods of manifests without a cluster: as many, as large and as constrained as the real ones would be."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.unit.fleets import GPU

from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.pods import Pod
from gpufleet.kube.manifest_pods import ManifestPods, manifest_pods
from gpufleet.kube.manifests import read_manifests

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("GPUFLEET_SHARED", ROOT.parent / "shared")) / "manifests"
PRIMER = ROOT / "examples" / "primer"


def found(text: str, namespace: str = "default", **priorities: int) -> ManifestPods:
    return manifest_pods(list(yaml.safe_load_all(text)), namespace=namespace, priorities=priorities)


def asked(one: Pod, resource: str = GPU) -> int:
    return dict(one.shape.requests).get(resource, 0)


DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: chat, labels: {team: web}}
spec:
  replicas: 3
  template:
    metadata: {labels: {app: chat}}
    spec:
      priorityClassName: high
      nodeSelector: {zone: x}
      tolerations: [{key: nvidia.com/gpu, operator: Exists}]
      affinity: null
      containers:
        - name: main
          resources: {limits: {nvidia.com/gpu: 2, cpu: 0.5}}
"""


def test_a_deployment_makes_its_replicas_with_all_that_decides_where_they_fit() -> None:
    pods = found(DEPLOYMENT, "team-a", high=7).pods
    assert [one.key for one in pods] == ["team-a/chat-0", "team-a/chat-1", "team-a/chat-2"]
    (shape,) = {one.shape for one in pods}
    assert (asked(pods[0]), asked(pods[0], "cpu")) == (2, 500)
    assert shape.node_selector == (("zone", "x"),)
    assert shape.tolerations[0].key == "nvidia.com/gpu"
    assert pods[0].labels == {"app": "chat"}
    assert (pods[0].owner_kind, pods[0].owner_name, pods[0].priority) == ("ReplicaSet", "chat", 7)
    assert [claim.count for claim in pods[0].device_claims] == [2]
    assert len({one.uid for one in pods}) == 3


def test_a_priority_class_that_is_not_known_is_remarked() -> None:
    pods = found(DEPLOYMENT)
    assert pods.remarks == ("the value of priority class high is not known; 0 is assumed",)
    own = f"{DEPLOYMENT}---\nkind: PriorityClass\nmetadata: {{name: high}}\nvalue: 9\n"
    assert (found(own).pods[0].priority, found(own).remarks) == (9, ())


def test_a_bare_pod_keeps_its_name_namespace_and_gang() -> None:
    text = """
    kind: Pod
    metadata: {name: w0, namespace: own, labels: {gpufleet.dev/gang: g, gpufleet.dev/gang-size: "2"}}
    spec: {nodeName: somewhere, containers: [{name: main, resources: {requests: {nvidia.com/gpu: "1"}}}]}
    """
    (one,) = found(text).pods
    assert (one.key, one.node, one.owner_kind) == ("own/w0", "", "")
    assert one.gang is not None
    assert (one.gang.name, one.gang.minimum) == ("g", 2)


def test_the_leader_and_the_workers_of_a_group_are_counted_once() -> None:
    template = "{spec: {containers: [{name: c, resources: {limits: {nvidia.com/gpu: 1}}}]}}"
    text = f"""
    kind: LeaderWorkerSet
    metadata: {{name: vllm}}
    spec:
      replicas: 2
      leaderWorkerTemplate: {{size: 4, leaderTemplate: {template}, workerTemplate: {template}}}
    """
    names = [one.name for one in found(text).pods]
    assert len(names) == 8
    assert sum("leadertemplate" in name for name in names) == 2
    without = text.replace(f"leaderTemplate: {template}, ", "")
    assert len(found(without).pods) == 8


def test_pods_of_a_daemon_set_are_left_out_with_a_remark() -> None:
    text = DEPLOYMENT.replace("kind: Deployment", "kind: DaemonSet")
    assert not found(text).pods
    assert found(text).remarks == ("DaemonSet/chat runs on every node and is left out",)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("nvidia.com/gpu: 2", "nvidia.com/gpu: $GPUS", "BadQuantity"),
        ("tolerations: [", "tolerations: [7, ", "InvalidManifest"),
        ("replicas: 3", "replicas: 999999", "InvalidManifest"),
        ("{zone: x}", "[zone]", "InvalidManifest"),
    ],
)
def test_pods_that_cannot_be_read_are_an_error_with_a_remedy(old: str, new: str, reason: str) -> None:
    with pytest.raises(GpufleetError) as caught:
        found(DEPLOYMENT.replace(old, new), high=1)
    assert caught.value.reason == reason
    assert caught.value.hint


def test_the_primers_workloads_are_read() -> None:
    counts = {}
    for path in sorted(PRIMER.glob("[0-9]*.yaml")):
        counts[path.name] = len(manifest_pods(read_manifests(path), namespace="x", priorities={}).pods)
    assert counts["10-inference.yaml"] >= 1
    assert counts["30-second-gang.yaml"] >= 2


def test_no_public_manifest_breaks_it() -> None:
    if not SHARED.is_dir():
        pytest.skip(f"no public manifests in {SHARED}; name their parent: GPUFLEET_SHARED")
    read, refused = 0, []
    for path in sorted(SHARED.rglob("*.y*ml")):
        try:
            documents: list[Any] = list(yaml.safe_load_all(path.read_text()))
        except (yaml.YAMLError, UnicodeDecodeError):
            continue
        manifests = [one for one in documents if isinstance(one, dict)]
        try:
            manifest_pods(manifests, namespace="default", priorities={})
            read += 1
        except GpufleetError as error:
            refused.append(f"{path.name}: {error}")
    assert read > 30
    assert all("$GPU_PER_NODE" in why for why in refused), refused
