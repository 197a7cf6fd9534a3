"""Who uses which GPU, computed from GPUNode objects: sums that add up, MIG counted as people count it."""

from __future__ import annotations

import json

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from gpufleet.cli.fleet_status import Cluster, Pods, node_lines
from gpufleet.cli.usage import GPU, Holder, counts, gpus_of, nodes_of, pods_of
from gpufleet.cli.usage_tables import text
from gpufleet.fleet.fractions import FRACTION_RESOURCE
from gpufleet.kube.gpunode import GPUAllocation, GPUDevice, GPUInstance, GPUNode, GPUNodeStatus
from gpufleet.kube.objects import Condition, Node, NodeSpec, NodeStatus, ObjectMeta

CONTRACT = {"node", "index", "uuid", "product", "memory_mib", "util_percent", "pods", "healthy"}


def device(index: int, *, healthy: bool = True, profiles: tuple[str, ...] = (), util: int = 0) -> GPUDevice:
    instances = tuple(
        GPUInstance(uuid=f"MIG-{index}-{start}", profile=profile, start=start, size=1, healthy=True)
        for start, profile in enumerate(profiles)
    )
    return GPUDevice(
        index=index,
        uuid=f"GPU-{index}",
        product="NVIDIA-H100-80GB-HBM3",
        memory_mib=81_559,
        healthy=healthy,
        util_percent=util,
        memory_used_mib=1000,
        mig_enabled=bool(profiles),
        instances=instances,
    )


def held(pod: str, *devices: str, resource: str = "nvidia.com/gpu", namespace: str = "ml") -> GPUAllocation:
    return GPUAllocation(
        namespace=namespace, pod=pod, pod_uid=pod, container="main", resource=resource, devices=devices
    )


def gpu_node(name: str, devices: tuple[GPUDevice, ...], *allocations: GPUAllocation) -> GPUNode:
    return GPUNode(
        metadata=ObjectMeta(name=name), status=GPUNodeStatus(devices=devices, allocations=allocations)
    )


def node(name: str, ready: str = "True") -> Node:
    status = NodeStatus(conditions=(Condition(type="Ready", status=ready),))
    return Node(metadata=ObjectMeta(name=name, labels={"gpufleet.dev/pool": "p"}), status=status)


@st.composite
def fleets(draw: st.DrawFn) -> list[GPUNode]:
    nodes = []
    for number in range(draw(st.integers(0, 3))):
        flags = draw(st.lists(st.booleans(), max_size=8))
        devices = tuple(device(index, healthy=healthy) for index, healthy in enumerate(flags))
        taken = draw(st.sets(st.sampled_from([one.uuid for one in devices]))) if devices else set()
        nodes.append(gpu_node(f"n{number}", devices, *(held(f"pod-{uuid}", uuid) for uuid in sorted(taken))))
    return nodes


@given(fleets())
def test_every_gpu_is_free_allocated_or_unhealthy(nodes: list[GPUNode]) -> None:
    gpus = gpus_of(nodes)
    sums = counts(gpus)
    broken_but_held = sum(not gpu.healthy and bool(gpu.pods) for gpu in gpus)
    assert sums.total is not None
    assert sums.total == (sums.free or 0) + (sums.allocated or 0) + (sums.unhealthy or 0) - broken_but_held


@given(fleets())
def test_the_sums_of_the_nodes_are_the_sums_of_the_fleet(nodes: list[GPUNode]) -> None:
    rows = nodes_of(nodes, [node(one.metadata.name) for one in nodes])
    sums = counts(gpus_of(nodes))
    assert (sum(row.gpus for row in rows), sum(row.free for row in rows)) == (sums.total, sums.free)
    assert (sum(row.allocated for row in rows), sum(row.unhealthy for row in rows)) == (
        sums.allocated,
        sums.unhealthy,
    )


def test_a_gpu_cut_by_mig_is_allocated_when_any_instance_is_held() -> None:
    cut = device(0, profiles=("1g.10gb", "3g.40gb", "1g.10gb"))
    [gpu] = gpus_of([gpu_node("n", (cut,), held("tenant", "MIG-0-1", resource="nvidia.com/mig-3g.40gb"))])
    assert gpu.pods == (Holder("ml", "tenant", "main"),)
    assert gpu.mig == "2x1g.10gb,1x3g.40gb"
    assert counts([gpu]).allocated == 1


def test_a_pod_that_holds_two_instances_of_one_gpu_is_named_once() -> None:
    cut = device(0, profiles=("1g.10gb", "1g.10gb"))
    allocation = held("tenant", "MIG-0-0", "MIG-0-1", resource="nvidia.com/mig-1g.10gb")
    fleet = [gpu_node("n", (cut,), allocation)]
    assert len(gpus_of(fleet)[0].pods) == 1
    [pod] = pods_of(fleet)
    assert pod.resources == {"nvidia.com/mig-1g.10gb": 2}
    assert pod.memory_used_mib == 1000


def test_pods_of_a_shared_gpu_are_all_named() -> None:
    [gpu] = gpus_of([gpu_node("n", (device(0),), held("a", "GPU-0"), held("b", "GPU-0"))])
    assert [holder.name for holder in gpu.pods] == ["a", "b"]


def test_who_has_fractions_of_a_gpu_is_named_with_how_much() -> None:
    shared = msgspec.structs.replace(device(0), fraction_milli=800)
    parts = [
        msgspec.structs.replace(held(name, "GPU-0", resource=FRACTION_RESOURCE), milli=milli)
        for name, milli in (("a", 500), ("b", 300))
    ]
    fleet = [gpu_node("n", (shared,), *parts)]
    (gpu,) = gpus_of(fleet)
    assert ([holder.name for holder in gpu.pods], gpu.fraction_milli) == (["a", "b"], 800)
    rows = pods_of(fleet)
    assert [row.fraction_milli for row in rows] == [500, 300]
    told = text("pods", rows, None, headers=False, watch=False)
    assert [line.split("\t")[3] for line in told.splitlines()] == ["1x500m GPU", "1x300m GPU"]


def test_every_share_of_a_gpu_that_a_pod_holds_counts() -> None:
    both = msgspec.structs.replace(held("a", "GPU-0"), ids=("GPU-0::1", "GPU-0::3"))
    [pod] = pods_of([gpu_node("n", (device(0),), both)])
    assert (pod.resources, pod.devices) == ({"nvidia.com/gpu": 2}, ("GPU-0",))


def test_a_pod_is_as_busy_as_the_mean_of_its_gpus() -> None:
    [pod] = pods_of([gpu_node("n", (device(0, util=90), device(1, util=10)), held("a", "GPU-0", "GPU-1"))])
    assert pod.util_percent == 50


def test_a_node_that_reports_no_gpus_is_shown_with_none() -> None:
    [row] = nodes_of([], [node("cpu-1", ready="Unknown")])
    assert (row.gpus, row.ready, row.pool) == (0, False, "p")


def test_a_cordoned_node_is_told_from_one_that_takes_pods() -> None:
    closed = msgspec.structs.replace(node("b"), spec=NodeSpec(unschedulable=True))
    gone = msgspec.structs.replace(closed, status=NodeStatus(), metadata=ObjectMeta(name="c"))
    shown = text("nodes", nodes_of([], [node("a"), closed, gone]), None, headers=False, watch=False)
    assert [line.split("\t")[-1] for line in shown.splitlines()] == [
        "ready",
        "ready,cordoned",
        "! not ready,cordoned",
    ]


def test_status_names_the_nodes_that_are_missing_and_counts_those_that_are_cordoned() -> None:
    cluster = Cluster(6, 5, counts([]), Pods(0, 0), missing=("infer-1",), cordoned=2)
    assert node_lines(cluster, "gpufleet up") == [
        "6 of 7, 1 not ready, 2 cordoned",
        "! deleted: infer-1; gpufleet up registers what is missing",
    ]
    assert node_lines(Cluster(7, 7, counts([]), Pods(0, 0)), "") == ["7"]


def test_gpus_are_in_the_order_of_node_and_index() -> None:
    fleet = [gpu_node("b", (device(1), device(0))), gpu_node("a", (device(10), device(9)))]
    assert [(gpu.node, gpu.index) for gpu in gpus_of(fleet)] == [("a", 9), ("a", 10), ("b", 0), ("b", 1)]


def test_scripts_find_the_fields_that_they_rely_on() -> None:
    fields = {field.encode_name for field in msgspec.structs.fields(GPU)}
    assert fields >= CONTRACT
    [gpu] = gpus_of([gpu_node("n", (device(0),), held("a", "GPU-0"))])
    assert json.loads(msgspec.json.encode(gpu))["pods"] == [
        {"namespace": "ml", "name": "a", "container": "main"}
    ]
