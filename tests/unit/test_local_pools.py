"""The pools of a fleet file ask for what its nodes already are."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from tests.unit.pools_world import NOW, World

from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube.gpunode import GPUNode
from gpufleet.kube.gpupool import GPUPool
from gpufleet.kube.objects.meta import ObjectMeta
from gpufleet.local.fleetfile import load_fleet, parse_fleet, presets
from gpufleet.local.pools import pools
from gpufleet.local.simnodes.machines import Machine, machines, node_metadata, node_status, node_taints
from gpufleet.local.simnodes.node import SimulatedNode


def node(machine: Machine) -> dict[str, Any]:
    """A node as it registers."""
    body = node_metadata(machine)
    body["metadata"] |= {"uid": f"uid-{machine.name}", "resourceVersion": "1"}
    body["spec"]["taints"] = node_taints(machine)
    return {**body, "status": node_status(machine, SimulatedNode(machine).gpus.resources, 10250, 0.0)}


def world_of(text: str) -> World:
    fleet = parse_fleet(text, "fleet.yaml")
    found = machines(fleet, "local")
    gpu_nodes = [
        GPUNode(metadata=ObjectMeta(name=one.name, uid=f"gpu-{one.name}"), status=SimulatedNode(one).status())
        for one in found
    ]
    asked = [msgspec.convert(manifest, GPUPool) for manifest in pools(fleet, "local")]
    return World(asked, [node(machine) for machine in found], gpu_nodes)


def spec(text: str, name: str = "p") -> dict[str, Any]:
    found = {one["metadata"]["name"]: one["spec"] for one in pools(parse_fleet(text, "fleet.yaml"), "local")}
    wanted: dict[str, Any] = found[name]
    return wanted


@pytest.mark.parametrize("preset", presets())
def test_the_nodes_of_a_preset_are_as_its_pools_ask(preset: str) -> None:
    fleet, text = load_fleet(preset)
    world = world_of(text)
    plan = world.settle()
    assert all(not (change.labels or change.taints) for change in plan.nodes)
    assert world.pools
    for pool in world.pools.values():
        assert world.conditions(pool.metadata.name)["Ready"] == ("True", "PoolSettled")
        groups = [group for group in fleet.groups if group.pool == pool.metadata.name]
        assert pool.status.node_count == sum(group.count for group in groups)
        assert pool.status.gpus == sum(group.count * group.gpus for group in groups)
        assert pool.spec.disruption == "act"


def test_a_pool_asks_for_what_all_its_groups_have_in_common() -> None:
    text = """
groups:
  - {name: a, gpu: h100, pool: p, purpose: training, taints: ["x=1:NoSchedule", "y=2:NoExecute"],
     mig: all-balanced}
  - {name: b, gpu: l4, pool: p, purpose: training, taints: ["y=2:NoExecute"]}
"""
    asked = spec(text)
    assert asked["purpose"] == "training"
    assert asked["taints"] == [{"key": "y", "value": "2", "effect": "NoExecute"}]
    assert "mig" not in asked
    world = world_of(text)
    world.settle()
    assert world.conditions("p")["Ready"] == ("True", "PoolSettled")


def test_mig_and_sharing_of_a_file_are_those_of_its_pool() -> None:
    group = "groups: [{name: g, gpu: h100, pool: p, %s}]"
    assert spec(group % "mig: [3g.40gb, 1g.10gb]")["mig"] == {"profiles": ["3g.40gb", "1g.10gb"]}
    assert spec(group % "mig: all-1g.10gb")["mig"] == {"layout": "all-1g.10gb"}
    sharing = spec(group % "sharing: {timeSlicing: {replicas: 4, renameByDefault: true}}")["sharing"]
    assert sharing == {"mode": "timeSlicing", "replicas": 4, "rename": True}


def test_a_purpose_that_pools_do_not_know_stays_a_label_of_the_nodes() -> None:
    text = "groups: [{name: g, gpu: h100, pool: p, purpose: interactive}]"
    assert "purpose" not in spec(text)
    world = world_of(text)
    world.settle(NOW)
    assert world.labels("g-0")["gpufleet.dev/purpose"] == "interactive"


def test_groups_without_gpus_or_without_a_pool_make_none_and_a_group_of_that_name_is_in_it() -> None:
    text = """
groups: [{name: cpu, pool: system}, {name: g, gpu: h100}, {name: p, gpu: l4}, {name: q, gpu: l4, pool: p}]
"""
    world = world_of(text)
    assert set(world.pools) == {"p"}
    world.settle()
    assert [one.name for one in world.pools["p"].status.nodes] == ["p-0", "q-0"]


def test_a_pool_whose_name_no_object_can_have_is_refused_where_it_has_gpus() -> None:
    parse_fleet("groups: [{name: g, pool: Big_One}]", "fleet.yaml")
    with pytest.raises(GpufleetError, match="'Big_One' cannot name an object"):
        parse_fleet("groups: [{name: g, gpu: h100, pool: Big_One}]", "fleet.yaml")
