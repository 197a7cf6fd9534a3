"""What the nodes of a fleet file look like, and what a changed file changes on nodes that exist."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.selectors import Taint
from gpufleet.kube.objects import Node
from gpufleet.local.fleetfile import load_fleet, parse_fleet
from gpufleet.local.names import label_problem, parse_taint
from gpufleet.local.simnodes.machines import (
    Machine,
    machines,
    merged_taints,
    node_metadata,
    node_status,
    node_taints,
    numbered,
    pod_address,
    pod_ordinal,
    pod_range,
)
from gpufleet.local.simnodes.node import SimulatedNode
from gpufleet.local.simnodes.registration import adoption_patch, status_patch


def _machine(text: str = "groups: [{name: g, gpu: h100, taints: ['a=b:NoSchedule']}]") -> Machine:
    return machines(parse_fleet(text, "f"), "fleet")[0]


def _existing(machine: Machine, **spec: Any) -> Node:
    body = node_metadata(machine)
    body["spec"] |= {"taints": node_taints(machine)} | spec
    return msgspec.convert(body, Node)


def test_racks_are_filled_one_after_the_other_and_lie_in_one_zone_each() -> None:
    found = machines(load_fleet("large")[0], "x")
    racks: dict[str, set[str]] = {}
    sizes: dict[str, int] = {}
    for machine in found:
        rack = machine.labels["gpufleet.dev/rack"]
        racks.setdefault(rack, set()).add(machine.labels["topology.kubernetes.io/zone"])
        sizes[rack] = sizes.get(rack, 0) + 1
    assert set(sizes.values()) == {20}
    assert all(len(zones) == 1 for zones in racks.values())
    assert len({zone for zones in racks.values() for zone in zones}) == 4


def test_labels_and_resources_come_from_the_file_and_the_devices() -> None:
    machine = machines(load_fleet("small")[0], "x")[4]
    assert machine.name == "shared-0"
    assert machine.labels["gpufleet.dev/pool"] == "shared"
    assert machine.labels["nvidia.com/mig-1g.10gb.count"] == "16"
    status = node_status(machine, SimulatedNode(machine).gpus.resources, 10250, 0.0)
    assert status["capacity"]["nvidia.com/mig-3g.40gb"] == "8"
    assert "nvidia.com/gpu" not in status["capacity"]
    assert (status["capacity"]["cpu"], status["capacity"]["memory"]) == ("192", "2Ti")


def test_every_pod_of_the_largest_fleet_can_have_an_address_of_its_own() -> None:
    found = machines(parse_fleet("groups: [{name: g, count: 1000, pods: 1000}]", "f"), "x")
    some = [(m, o) for m in (found[0], found[1], found[999]) for o in (0, 1, 255, 256, 1023)]
    addresses = [pod_address(machine, ordinal) for machine, ordinal in some]
    assert len(set(addresses)) == len(some)
    assert [pod_ordinal(m, a) for (m, _), a in zip(some, addresses, strict=True)] == [o for _, o in some]
    assert pod_ordinal(found[0], pod_address(found[1], 0)) is None
    assert pod_ordinal(found[0], "") is None


def test_nodes_keep_their_pod_addresses_when_the_fleet_file_changes() -> None:
    before = machines(parse_fleet("groups: [{name: a, count: 2}, {name: b}]", "f"), "x")
    ranges = {machine.name: pod_range(machine) for machine in before}
    assert ranges == {"a-0": "10.64.0.0/22", "a-1": "10.64.4.0/22", "b-0": "10.64.8.0/22"}
    changed = machines(parse_fleet("groups: [{name: c, count: 2}, {name: a}, {name: d}]", "f"), "x")
    after = {machine.name: pod_range(machine) for machine in numbered(changed, ranges)}
    assert after["a-0"] == ranges["a-0"]
    new = {after[name] for name in ("c-0", "c-1", "d-0")}
    assert len(new | set(ranges.values())) == 6, "pods of b-0 may not be gone yet"
    assert list(numbered(before, {})) == list(before)


def test_a_node_without_pod_addresses_gets_some_and_others_keep_what_they_have() -> None:
    bare = _existing(_machine(), podCIDR="")
    assert adoption_patch(_machine(), bare) == {
        "spec": {"podCIDR": "10.64.0.0/22", "podCIDRs": ["10.64.0.0/22"]}
    }
    assert adoption_patch(_machine(), _existing(_machine(), podCIDR="192.168.0.0/24")) == {}


def test_a_node_that_is_as_the_file_says_needs_no_write() -> None:
    assert adoption_patch(_machine(), _existing(_machine())) == {}


def test_a_changed_file_takes_its_old_labels_and_taints_back_and_nothing_else() -> None:
    before = _machine("groups: [{name: g, gpu: h100, labels: {old: x}, taints: ['a=b:NoSchedule']}]")
    after = _machine("groups: [{name: g, gpu: h100, labels: {new: y}, taints: ['c=d:NoExecute']}]")
    theirs = {"key": "theirs", "effect": "NoSchedule"}
    existing = _existing(before, taints=[*node_taints(before), theirs], unschedulable=True)
    patch = adoption_patch(after, existing)
    assert patch["metadata"]["labels"] == {"old": None, "new": "y"}
    assert patch["spec"] == {"taints": [theirs, {"key": "c", "effect": "NoExecute", "value": "d"}]}
    assert "resourceVersion" in patch["metadata"]


def test_a_taint_that_people_removed_does_not_come_back() -> None:
    machine = _machine()
    assert merged_taints(machine, [], "a=b:NoSchedule") is None


def test_adopted_conditions_keep_their_times_and_lost_gpus_are_removed() -> None:
    machine = _machine("groups: [{name: g}]")
    existing = msgspec.convert(
        {
            "metadata": {"name": "g-0"},
            "status": {
                "capacity": {"nvidia.com/gpu": "8", "vendor/else": "1"},
                "conditions": [
                    {"type": "Ready", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z"},
                    {"type": "DiskPressure", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z"},
                ],
            },
        },
        Node,
    )
    status = status_patch(node_status(machine, SimulatedNode(machine).gpus.resources, 1, 1e9), existing)
    times = {c["type"]: c["lastTransitionTime"] for c in status["conditions"]}
    assert times["Ready"] == "2020-01-01T00:00:00Z"
    assert times["DiskPressure"] != "2020-01-01T00:00:00Z"
    assert status["capacity"]["nvidia.com/gpu"] is None
    assert "vendor/else" not in status["capacity"]


def test_taints_and_labels_follow_the_rules_of_kubernetes() -> None:
    assert parse_taint("nvidia.com/gpu=present:NoSchedule") == Taint(
        "nvidia.com/gpu", "NoSchedule", "present"
    )
    assert parse_taint("key:NoExecute") == Taint("key", "NoExecute")
    for text in ("key", "key=v", "=v:NoSchedule", "key=a b:NoSchedule", "key=v:Never"):
        with pytest.raises(GpufleetError, match="InvalidTaint"):
            parse_taint(text)
    assert not label_problem("example.com/a.b_c-d", "")
    assert not label_problem("a", "x" * 63)
    for key, value in (("-a", ""), ("A/b", "x"), ("a/b/c", ""), ("a", "x" * 64), ("a" * 64, ""), ("", "")):
        assert label_problem(key, value)
