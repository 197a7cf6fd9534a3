"""What an agent says in its GPUNode."""

from __future__ import annotations

from tests.unit.inventories import SEVEN, gpu, instance_of, node, uuid_of, whole

from gpufleet.devices.backend import Sample
from gpufleet.devices.device_health import Illness
from gpufleet.devices.inventory import GPUInstance, Inventory
from gpufleet.devices.node_report import node_status
from gpufleet.kube.gpunode import GPUAllocation, GPUNodeStatus, GPUResource

NOBODY = frozenset[str]()


def held(*devices: str) -> GPUAllocation:
    return GPUAllocation(
        namespace="n", pod="p", pod_uid="u", container="c", resource="nvidia.com/gpu", devices=devices
    )


def status_of(inventory: Inventory, *allocations: GPUAllocation) -> GPUNodeStatus:
    return node_status(inventory, {}, NOBODY, (), allocations, ())


def test_a_sick_gpu_is_told_with_its_reason_and_a_quarantined_one_too() -> None:
    health = {uuid_of(0): Illness("Xid79", "", 0.0, 0.0)}
    status = node_status(whole(3), health, frozenset({uuid_of(0), uuid_of(1)}), (), (), ())
    assert [(one.healthy, one.reason) for one in status.devices] == [
        (False, "Xid79"),
        (False, "Quarantined"),
        (True, ""),
    ]
    assert status.summary is not None
    assert status.summary.unhealthy == 2


def test_readings_are_those_of_the_gpu_and_not_of_its_instances() -> None:
    values = {
        "DCGM_FI_DEV_GPU_UTIL": 93.4,
        "DCGM_FI_DEV_FB_USED": 70123.0,
        "DCGM_FI_DEV_GPU_TEMP": 61.0,
        "DCGM_FI_DEV_POWER_USAGE": 512.6,
    }
    samples = [Sample(uuid_of(0), None, values), Sample(uuid_of(0), 1, {"DCGM_FI_DEV_FB_USED": 1.0})]
    first, second = node_status(whole(2), {}, NOBODY, (), (), samples).devices
    assert (first.util_percent, first.memory_used_mib, first.temperature_c, first.power_w) == (
        93,
        70123,
        61,
        513,
    )
    assert (second.util_percent, second.memory_used_mib) == (0, 0)


def test_a_gpu_counts_as_allocated_when_a_container_holds_any_part_of_it() -> None:
    cut = node(SEVEN, SEVEN, None, None)
    status = status_of(cut, held(instance_of(0, 2), instance_of(0, 3)), held(uuid_of(2)))
    assert status.summary is not None
    assert (status.summary.gpus, status.summary.allocated) == (4, 2)
    assert status.summary.mig == "14x1g.10gb"


def test_only_instances_that_a_pod_can_use_are_told() -> None:
    half_made = GPUInstance(9, "1g.10gb", 6, 1, 1)
    cut = gpu(0, ("3g.40gb",))
    cut = type(cut)(index=0, uuid=cut.uuid, name=cut.name, mig="on", instances=(*cut.instances, half_made))
    (device,) = status_of(Inventory(gpus=(cut,))).devices
    assert [(one.profile, one.start, one.size) for one in device.instances] == [("3g.40gb", 0, 4)]
    assert device.mig_enabled


def test_resources_and_allocations_are_told_as_they_are() -> None:
    offered = GPUResource(name="nvidia.com/gpu", capacity=2, healthy=1)
    status = node_status(whole(2), {}, NOBODY, [offered], [held(uuid_of(1))], ())
    assert status.resources == (offered,)
    assert status.allocations == (held(uuid_of(1)),)
    empty = status_of(Inventory())
    assert empty.summary is not None
    assert (empty.summary.gpus, empty.summary.product, empty.summary.mig) == (0, "", "off")
