"""What a simulated node takes, refuses and keeps, as a kubelet does."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from tests.unit.simnode_pods import container, pod

from gpufleet.devices.picks import Picks
from gpufleet.fleet.devices import DeviceClaim, DevicePick
from gpufleet.kube.conventions.picked_devices import annotated
from gpufleet.kube.gpunode import GPUNode
from gpufleet.kube.objects import Node, Pod, PodStatus
from gpufleet.kube.requests import device_claims
from gpufleet.local.fleetfile import parse_fleet
from gpufleet.local.simnodes.adoption import adopt
from gpufleet.local.simnodes.device_manager import Holdings
from gpufleet.local.simnodes.machines import machines
from gpufleet.local.simnodes.node import SimulatedNode, fault_problems, parse_faults
from gpufleet.local.simnodes.podstate import granted


def _node(rest: str = "gpu: h100, gpusPerNode: 2, cpu: 4, memory: 8Gi, pods: 3") -> SimulatedNode:
    return SimulatedNode(machines(parse_fleet(f"groups: [{{name: n, {rest}}}]", "f"), "f")[0])


def _cpu(name: str, cpu: str) -> Pod:
    return pod(name, containers=[container() | {"resources": {"requests": {"cpu": cpu}}}])


def _reason(node: SimulatedNode, subject: Pod) -> str:
    refusal = node.admit(subject)
    return refusal.reason if refusal else ""


def test_resources_are_counted_per_pod_and_come_back() -> None:
    node = _node()
    assert _reason(node, _cpu("a", "3")) == ""
    refusal = node.admit(_cpu("b", "1500m"))
    assert refusal is not None
    assert refusal.reason == "OutOfcpu"
    assert "requested: 1500, used: 3000, capacity: 4000" in refusal.message
    node.release("uid-a")
    assert _reason(node, _cpu("b", "1500m")) == ""


def test_a_shrunk_pod_makes_room_before_its_status_says_so() -> None:
    node = _node()
    assert _reason(node, _cpu("a", "3")) == ""
    held = {"name": "main", "allocatedResources": {"cpu": "3"}, "resources": {"requests": {"cpu": "3"}}}
    shrunk = _cpu("a", "1")
    node.keep(
        msgspec.structs.replace(shrunk, status=msgspec.convert({"containerStatuses": [held]}, PodStatus))
    )
    assert _reason(node, _cpu("b", "3")) == ""


def test_an_adopted_pod_has_what_it_was_granted_and_not_what_it_asks_for() -> None:
    asks = pod(containers=[container() | {"resources": {"requests": {"cpu": "4"}}}])
    held = {"name": "main", "allocatedResources": {"cpu": "1"}, "resources": {"requests": {"cpu": "1"}}}
    status = msgspec.convert({"containerStatuses": [held]}, PodStatus)
    run = adopt(msgspec.structs.replace(asks, status=status), 0.0, 10.0)
    assert granted(run).spec.containers[0].resources.requests == {"cpu": "1"}


def test_a_node_takes_no_more_pods_than_it_may() -> None:
    node = _node()
    assert [_reason(node, pod(f"p{n}")) for n in range(4)] == ["", "", "", "OutOfpods"]


def test_extended_resources_that_the_node_does_not_know_are_ignored_as_a_kubelet_does() -> None:
    wants = {"resources": {"limits": {"example.com/nic": "3"}}}
    assert _reason(_node(), pod(containers=[container() | wants])) == ""


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"nodeSelector": {"gpufleet.dev/pool": "n"}}, ""),
        ({"nodeSelector": {"gpufleet.dev/pool": "m"}}, "NodeAffinity"),
        ({"containers": [container(ports=[{"containerPort": 1, "hostPort": 80}])]}, "NodePorts"),
        ({"containers": [container(ports=[{"containerPort": 1, "hostPort": 81}])]}, ""),
    ],
)
def test_selectors_and_host_ports_are_checked_again(spec: dict[str, Any], reason: str) -> None:
    node = _node()
    assert (
        _reason(node, pod("first", containers=[container(ports=[{"containerPort": 9, "hostPort": 80}])]))
        == ""
    )
    assert _reason(node, pod("second", **spec)) == reason


def test_a_noexecute_taint_keeps_new_pods_out_and_a_noschedule_taint_does_not() -> None:
    for effect, reason in (("NoExecute", "TaintToleration"), ("NoSchedule", "")):
        node = _node()
        seen = {"metadata": {"name": "n-0"}, "spec": {"taints": [{"key": "k", "effect": effect}]}}
        node.observe(msgspec.convert(seen, Node))
        assert _reason(node, pod()) == reason


def test_devices_that_are_in_use_sick_or_unknown_are_told_apart() -> None:
    node = _node()
    assert _reason(node, pod("a", containers=[container(gpus=1)])) == ""
    assert _reason(node, pod("b", containers=[container(gpus=2)])) == "OutOfnvidia.com/gpu"
    other = {"resources": {"limits": {"nvidia.com/mig-1g.10gb": "1"}}}
    assert _reason(node, pod("c", containers=[container() | other])) == "UnexpectedAdmissionError"
    sick = {"metadata": {"annotations": {"gpufleet.dev/sim-unhealthy": "0=Xid79"}}}
    assert node.obey(msgspec.convert(sick, GPUNode))
    refusal = node.admit(pod("d", containers=[container(gpus=1)]))
    assert refusal is not None
    assert refusal.reason == "OutOfnvidia.com/gpu", (
        "one is healthy and one is in use: none is left, as for a kubelet"
    )
    node.release("uid-a")
    assert _reason(node, pod("e", containers=[container(gpus=1)])) == ""


def test_a_refused_pod_leaves_nothing_behind() -> None:
    node = _node()
    _reason(node, pod("big", containers=[container("a", gpus=1), container("b", gpus=2)]))
    assert list(node.pods) == []
    assert node.holdings == Holdings()


def test_claims_come_in_the_order_of_allocation_and_say_what_may_be_used_again() -> None:
    subject = pod(
        inits=[container("i", gpus=1), container("s", gpus=1, restartPolicy="Always")],
        containers=[container("a", gpus=2), container("b")],
    )
    gpu = "nvidia.com/gpu"
    assert device_claims(subject) == (
        DeviceClaim("i", gpu, 1, reusable=True),
        DeviceClaim("s", gpu, 1),
        DeviceClaim("a", gpu, 2),
    )


def _picked(**devices: list[str]) -> dict[str, str]:
    picks = [DevicePick(name, "nvidia.com/gpu", tuple(uuids)) for name, uuids in devices.items()]
    return annotated(picks)


def test_a_pod_gets_what_was_picked_for_it_container_by_container() -> None:
    node = _node("gpu: h100, gpusPerNode: 8")
    uuids = [gpu.uuid for gpu in node.gpus.inventory.gpus]
    asks = [container("b", gpus=2), container("a", gpus=2)]
    subject = pod("p", containers=asks, annotations=_picked(b=[uuids[6], uuids[2]], a=[uuids[5], uuids[1]]))
    assert node.admit(subject) is None
    assert set(node.held("uid-p", "b")) == {uuids[6], uuids[2]}
    assert set(node.held("uid-p", "a")) == {uuids[5], uuids[1]}
    assert node.gpus.picks == Picks(), "what is confirmed waits for nothing"


def test_a_pod_with_an_init_container_gets_what_was_picked_for_both() -> None:
    node = _node("gpu: h100, gpusPerNode: 8")
    uuids = [gpu.uuid for gpu in node.gpus.inventory.gpus]
    annotations = _picked(i=[uuids[6]], m=[uuids[6], uuids[3]])
    inits = [container("i", gpus=1)]
    assert (
        node.admit(pod("p", inits=inits, containers=[container("m", gpus=2)], annotations=annotations))
        is None
    )
    assert node.held("uid-p", "i") == (uuids[6],)
    assert set(node.held("uid-p", "m")) == {uuids[6], uuids[3]}


def test_a_picked_share_is_any_free_one_of_the_gpu() -> None:
    node = _node("gpu: l4, gpusPerNode: 2, sharing: {timeSlicing: {replicas: 2}}")
    uuids = [gpu.uuid for gpu in node.gpus.inventory.gpus]
    for name in ("p", "q"):
        assert (
            node.admit(pod(name, containers=[container(gpus=1)], annotations=_picked(main=[uuids[1]])))
            is None
        )
        assert node.held(f"uid-{name}", "main") == (uuids[1],)


def test_a_pick_that_somebody_has_got_already_costs_no_pod_its_life() -> None:
    node = _node("gpu: h100, gpusPerNode: 2")
    first, second = [gpu.uuid for gpu in node.gpus.inventory.gpus]
    for name in ("p", "q"):
        assert (
            node.admit(pod(name, containers=[container(gpus=1)], annotations=_picked(main=[first]))) is None
        )
    assert node.held("uid-q", "main") == (second,)
    assert node.gpus.picks == Picks()
    refusal = node.admit(pod("r", containers=[container(gpus=1)], annotations=_picked(main=[first])))
    assert refusal is not None
    assert node.gpus.picks == Picks(), "a pod that was refused waits for nothing"


def test_a_pod_that_lost_part_of_its_devices_is_told_so() -> None:
    node, subject = _node(), pod("a", containers=[container(gpus=2)])
    assert node.admit(subject) is None
    assert node.allocate(subject) is None, "what it holds already is enough"
    smaller = _node("gpu: h100, gpusPerNode: 1")
    smaller.restore(node.holdings.allocations())
    refusal = smaller.allocate(subject)
    assert refusal is not None
    assert refusal.reason == "UnexpectedAdmissionError"


def test_a_pod_keeps_its_shares_of_one_gpu_over_a_restart() -> None:
    subject = pod("a", containers=[container("x", gpus=2), container("y", gpus=1)])
    text = "gpu: l4, gpusPerNode: 1, sharing: {timeSlicing: {replicas: 4}}"
    before, after = _node(text), _node(text)
    assert before.admit(subject) is None
    after.restore(before.holdings.allocations())
    assert after.allocate(subject) is None
    assert after.admit(pod("b", containers=[container(gpus=2)])) is not None, "one share is left"


def test_addresses_are_unique_and_those_of_running_pods_are_kept() -> None:
    node, other = _node("pods: 1000"), _node("pods: 1000")
    first = node.address(pod("a"))
    other.reserve(pod("a", status={"podIP": first}))
    addresses = {other.address(pod(f"p{n}")) for n in range(1022)}
    assert len(addresses) == 1022
    assert first not in addresses


def test_faults_are_read_from_the_annotation() -> None:
    assert parse_faults("0=Xid79, 3") == {0: "Xid79", 3: "Unhealthy"}
    assert parse_faults("") == parse_faults("nonsense,=x") == {}


def test_faults_that_make_no_sense_are_told_with_what_would() -> None:
    assert fault_problems("0=Xid79, 1,", 2) == ()
    (harmless,) = fault_problems("1=Xid43", 2)
    assert "Xid 43 makes no GPU sick" in harmless
    assert fault_problems("9=foo,abc", 2) == (
        "gpufleet.dev/sim-unhealthy: there is no GPU 9; the node has 2, counted from 0",
        "gpufleet.dev/sim-unhealthy: 'abc' is no fault; write for example 0=Xid79,3",
    )
