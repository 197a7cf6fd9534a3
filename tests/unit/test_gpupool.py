"""The GPUPool as the API server gets to know it, and as it is read and written."""

from __future__ import annotations

from typing import Any

import msgspec
from tests.unit.pools_world import pool

from gpufleet.kube.crds import crd_manifest
from gpufleet.kube.custom_resources import custom_resources
from gpufleet.kube.gpupool import GPU_POOL, GPUPool, GPUPoolStatus, PoolDevices, pool_status_patch
from gpufleet.kube.values import label_selector


def schema(*path: str) -> dict[str, Any]:
    """The schema of a field."""
    found: dict[str, Any] = crd_manifest(GPU_POOL)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for name in path:
        found = found["items"] if name == "[]" else found["properties"][name]
    return found


def test_the_pool_is_one_of_the_installed_resources_and_belongs_to_no_namespace() -> None:
    definition = next(one for one in custom_resources() if one["spec"]["names"]["kind"] == "GPUPool")
    assert definition["metadata"]["name"] == "gpupools.gpufleet.dev"
    assert definition["spec"]["scope"] == "Cluster"
    assert definition["spec"]["names"]["shortNames"] == ["gpup"]
    assert "status" in definition["spec"]["versions"][0]["subresources"]


def test_taints_are_told_apart_by_key_and_effect() -> None:
    taints = schema("spec", "taints")
    assert taints["x-kubernetes-list-map-keys"] == ["key", "effect"]
    assert taints["items"]["required"] == ["key", "effect"]


def test_money_is_whole_millionths() -> None:
    price = schema("spec", "price")
    assert price["properties"]["perGpuHourMicros"]["type"] == "integer"
    assert price["required"] == ["perGpuHourMicros"]


def test_the_standard_taint_and_disruption_are_only_there_when_they_are_asked_for() -> None:
    asked = pool()
    assert (asked.spec.gpu_taint, asked.spec.taints, asked.spec.disruption) == (False, (), "advise")


def test_both_ways_to_select_nodes_must_hold() -> None:
    expression = {"key": "rack", "operator": "NotIn", "values": ["r9"]}
    asked = pool(nodeSelector={"matchLabels": {"zone": "a"}, "matchExpressions": [expression]})
    selector = label_selector(asked.spec.node_selector)
    assert selector.matches({"zone": "a", "rack": "r1"})
    assert selector.matches({"zone": "a"})
    assert not selector.matches({"zone": "a", "rack": "r9"})
    assert not selector.matches({"zone": "b"})


def test_a_status_that_is_written_reads_as_it_was_and_clears_what_it_does_not_have() -> None:
    status = GPUPoolStatus(node_count=2, devices=(PoolDevices(product="x", gpus=8),))
    patch = msgspec.json.decode(msgspec.json.encode(pool_status_patch(status)))
    assert patch["status"]["nodes"] == []
    assert patch["status"]["readyNodes"] == 0
    body = {"metadata": {"name": "p"}, "spec": msgspec.to_builtins(pool().spec), **patch}
    assert msgspec.convert(body, GPUPool).status == status
