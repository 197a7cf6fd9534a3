"""Fractions on a node: who has which, what is withdrawn for them, what is told, and whose load is whose."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from tests.unit.inventories import instance_of, node, uuid_of, whole
from tests.unit.simnode_pods import container, pod

from gpufleet.devices.attribution import entities
from gpufleet.devices.fraction_pods import (
    FractionPod,
    carrying,
    fraction_allocations,
    fraction_condition,
    fraction_pod,
    fraction_pods,
    fraction_problems,
)
from gpufleet.devices.node_report import node_status
from gpufleet.devices.picks import Picks, picks_of
from gpufleet.devices.plugin_config import PluginConfig
from gpufleet.devices.plugin_node import PluginNode
from gpufleet.devices.resources import gpu_resources
from gpufleet.fleet.devices import WHOLE_RESOURCE, DevicePick
from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.fractions import FRACTION_RESOURCE
from gpufleet.kube.conventions.picked_devices import VISIBLE_ANNOTATION, annotated
from gpufleet.kube.fraction_policies import VISIBLE_DEVICES, VISIBLE_PATH
from gpufleet.kube.gpunode import GPUAllocation
from gpufleet.kube.objects import Pod

TOLD = [{"name": VISIBLE_DEVICES, "valueFrom": {"fieldRef": {"fieldPath": VISIBLE_PATH}}}]
MIXED = PluginConfig(mig_strategy="mixed")


def sharing(name: str, *gpus: int, asked: dict[str, str] | None = None, env: Any = TOLD, **rest: Any) -> Pod:
    """A pod bound with parts of these GPUs."""
    picks = annotated([DevicePick("main", FRACTION_RESOURCE, tuple(uuid_of(gpu) for gpu in gpus))])
    asked = {"gpu-fraction": "0.5"} if asked is None else asked
    return pod(name, annotations={**asked, **picks}, containers=[container(env=env)], **rest)


def part(name: str, *gpus: int, **rest: Any) -> FractionPod:
    found = fraction_pod(sharing(name, *gpus, **rest))
    assert found is not None
    return found


def holding(name: str, *uuids: str) -> GPUAllocation:
    """What a pod holds of the kubelet."""
    return GPUAllocation(
        namespace="team",
        pod=name,
        pod_uid=f"uid-{name}",
        container="c",
        resource=WHOLE_RESOURCE,
        devices=uuids,
    )


def test_the_binding_says_the_devices_of_a_fraction_twice_and_of_anything_else_once() -> None:
    parts = annotated([DevicePick("main", FRACTION_RESOURCE, ("GPU-1", "GPU-2"))])
    assert parts[VISIBLE_ANNOTATION] == "GPU-1,GPU-2"
    assert VISIBLE_ANNOTATION not in annotated([DevicePick("main", WHOLE_RESOURCE, ("GPU-1",))])


def test_a_pod_has_its_fraction_from_its_binding_to_its_end() -> None:
    assert part("p", 1, 2).devices == (uuid_of(1), uuid_of(2))
    assert part("p", 1, status={"phase": "Running"}).key == "default/p"
    assert part("p", 1, metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"}).key == "default/p"
    for phase in ("Succeeded", "Failed"):
        assert fraction_pod(sharing("p", 1, status={"phase": phase})) is None
    assert fraction_pod(pod("p", annotations={"gpu-fraction": "0.5"})) is None
    whole_pick = annotated([DevicePick("main", WHOLE_RESOURCE, (uuid_of(0),))])
    assert fraction_pod(pod("p", annotations=whole_pick)) is None


def test_what_was_given_counts_also_for_a_pod_that_no_longer_says_what_it_asked_for() -> None:
    silent = part("p", 0, asked={})
    assert carrying([silent]) == {uuid_of(0)}
    assert silent.milli(whole(1)) == 1000


def test_memory_is_as_much_of_a_gpu_as_it_is_of_its_memory() -> None:
    gpu = msgspec.structs.replace(whole(1).gpus[0], memory_mib=80000)
    inventory = msgspec.structs.replace(whole(1), gpus=(gpu,))
    assert part("p", 0, asked={"gpu-memory": "20000"}).milli(inventory) == 250


def test_no_kubelet_is_expected_to_ask_for_fractions() -> None:
    assert picks_of(sharing("p", 0)) == ()


def test_a_gpu_with_fractions_is_offered_as_unhealthy_and_counted_as_healthy() -> None:
    plugin = PluginNode().derive(whole(3), MIXED, {uuid_of(2)}, (), {uuid_of(1), uuid_of(2)})
    devices = plugin.offer.resource(WHOLE_RESOURCE).devices
    assert [(one.healthy, one.usable) for one in devices] == [(True, True), (True, False), (False, False)]
    (resource,) = gpu_resources(plugin.offer)
    assert (resource.capacity, resource.healthy, resource.carrying, resource.usable) == (3, 2, 1, 1)
    back = plugin.derive(whole(3), MIXED, {uuid_of(2)})
    assert [one.usable for one in back.offer.resource(WHOLE_RESOURCE).devices] == [True, True, False]


def test_a_kubelet_that_has_not_heard_of_it_is_advised_against_it_and_refused() -> None:
    plugin = PluginNode().derive(whole(2), MIXED, (), (), {uuid_of(0)})
    ids = [uuid_of(0), uuid_of(1)]
    assert plugin.preferred(WHOLE_RESOURCE, Picks(), ids, [], 1) == (uuid_of(1),)
    assert plugin.preferred(WHOLE_RESOURCE, Picks(), ids, [], 2) == (uuid_of(1),)
    stale = annotated([DevicePick("main", WHOLE_RESOURCE, (uuid_of(0),))])
    picks = Picks().bound(picks_of(pod("stale", annotations=stale)))
    assert plugin.preferred(WHOLE_RESOURCE, picks, ids, [], 1) == (uuid_of(1),)
    for asked in ([uuid_of(0)], ids):
        with pytest.raises(GpufleetError) as refused:
            plugin.grant(WHOLE_RESOURCE, asked)
        assert refused.value.reason == "DeviceCarriesFractions"
    assert plugin.grant(WHOLE_RESOURCE, [uuid_of(1)])[0][0].gpu == uuid_of(1)


def test_the_record_says_per_gpu_how_much_fractions_take() -> None:
    pods = [part("a", 0, asked={"gpu-fraction": "0.3"}), part("b", 0, 1)]
    parts = fraction_allocations(pods, whole(3))
    status = node_status(whole(3), {}, frozenset(), (), (*parts, holding("c", uuid_of(2))), ())
    assert [one.fraction_milli for one in status.devices] == [800, 500, 0]
    assert [(one.pod, one.resource, one.milli) for one in status.allocations] == [
        ("a", FRACTION_RESOURCE, 300),
        ("b", FRACTION_RESOURCE, 500),
        ("c", WHOLE_RESOURCE, 0),
    ]
    assert status.summary is not None
    assert status.summary.allocated == 3


def test_whoever_holds_a_gpu_with_fractions_whole_is_told_with_those_who_share_it() -> None:
    cut = node(None, ("1g.10gb",))
    pods = fraction_pods([sharing("b", 0), sharing("a", 0, 1)])
    held = [holding("w", uuid_of(0)), holding("i", instance_of(1, 1)), holding("o", uuid_of(5))]
    found = fraction_problems(pods, held, cut)
    assert [(one.code, one.subject) for one in found] == [
        ("FractionConflict", uuid_of(0)),
        ("FractionConflict", uuid_of(1)),
    ]
    assert (
        found[0].message == f"team/w holds GPU {uuid_of(0)}, which carries fractions of default/a, default/b"
    )
    condition = fraction_condition(found)
    assert condition[:3] == ("Fractions", False, "FractionConflict")
    assert fraction_condition(())[:3] == ("Fractions", True, "FractionsWithheld")


@pytest.mark.parametrize(
    "env", [[], [{"name": VISIBLE_DEVICES, "value": "all"}], [{**TOLD[0], "name": "OTHER"}]]
)
def test_a_container_that_does_not_learn_its_gpu_is_told(env: Any) -> None:
    (found,) = fraction_problems([part("p", 0, env=env)], (), whole(1))
    assert found.code == "FractionNotDelivered"
    assert "container main of default/p" in found.message
    assert fraction_problems([part("p", 0)], (), whole(1)) == ()


def test_where_others_hand_out_gpus_nothing_can_be_withheld() -> None:
    (found,) = fraction_problems((), (), whole(1), withheld=False)
    assert fraction_condition((found,))[1:3] == (False, "FractionsNotWithheld")


def test_the_readings_of_a_gpu_are_divided_by_fractions() -> None:
    pods = [part("a", 0, asked={"gpu-fraction": "0.3"}), part("b", 0, asked={"gpu-fraction": "0.1"})]
    (entity,) = entities(whole(1), fraction_allocations(pods, whole(1)))
    assert dict(zip([one.pod for one in entity.holders], entity.shares(), strict=True)) == {
        "a": 0.75,
        "b": 0.25,
    }
    both = (*fraction_allocations(pods[:1], whole(1)), holding("w", uuid_of(0)))
    (entity,) = entities(whole(1), both)
    assert [one.weight for one in entity.holders] == [300, 1000]
