"""The text of a node's page: DCGM exporter's series, whose sums are right, and what is missing."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.samples import Sample as Series
from tests.unit.exported import SimulatedNode, allocation, of, parsed, pod_each, replicas_of, value

from gpufleet.devices.backend import Sample
from gpufleet.devices.exporter_fields import DEFAULT_FIELDS, FIELDS, choose
from gpufleet.devices.exporter_text import NOT_READ, Options, Source, layout, render, tail
from gpufleet.devices.inventory import GPU, Inventory
from gpufleet.devices.timeline import LoseGPU, RaiseXid
from gpufleet.kube.gpunode import GPUAllocation

SEVEN = dict.fromkeys(range(7), "1g.10gb")
ALONE = SimulatedNode("node-0")
ALONE.work()


def page(
    node: SimulatedNode, held: list[GPUAllocation] | None = None, options: Options | None = None
) -> list[Series]:
    laid = layout(node.name, node.inventory, held or [], options)
    return parsed(render(laid, node.backend.sample()))


def test_a_series_looks_as_dcgm_exporter_writes_it() -> None:
    node = SimulatedNode("node-0", profiles={0: "3g.40gb"})
    text = render(layout("node-0", node.inventory, pod_each(node.devices)), node.backend.sample())
    gpu = node.inventory.gpus[0]
    start = (
        f'DCGM_FI_DEV_SM_CLOCK{{gpu="0",UUID="{gpu.uuid}",pci_bus_id="00000000:07:00.0",device="nvidia0",'
        'modelName="NVIDIA H100 80GB HBM3"'
    )
    end = 'Hostname="node-0",DCGM_FI_DRIVER_VERSION="580.95.05"'
    instance = f'GPU_I_PROFILE="3g.40gb",GPU_I_ID="{gpu.instances[0].id}"'
    assert text.splitlines()[:4] == [
        "# HELP DCGM_FI_DEV_SM_CLOCK SM clock frequency (in MHz).",
        "# TYPE DCGM_FI_DEV_SM_CLOCK gauge",
        f"{start},{end}}} 345",
        f'{start},{instance},{end},container="main",namespace="team-a",pod="pod-0"}} 345',
    ]


def test_integers_are_integers_and_floats_have_six_decimals() -> None:
    text = render(layout("node-0", ALONE.inventory), ALONE.backend.sample())
    numbers = {line.split("{")[0]: line.rsplit(" ", 1)[1] for line in text.splitlines() if line[:4] == "DCGM"}
    assert set(numbers) == DEFAULT_FIELDS
    for name, number in numbers.items():
        assert number.lstrip("-").isdecimal() if FIELDS[name].whole_numbers else number[-7] == ".", name


@pytest.mark.parametrize(
    ("option", "labels"),
    [("upper", {"Hostname"}), ("lower", {"hostname"}), ("both", {"Hostname", "hostname"})],
)
def test_the_label_of_the_host_name_is_chosen(option: str, labels: set[str]) -> None:
    options = msgspec.convert({"hostname": option}, Options)
    for one in page(ALONE, options=options):
        if one.name.startswith("DCGM"):
            assert {name for name in one.labels if name.lower() == "hostname"} == labels
            assert {one.labels[name] for name in labels} == {"node-0"}


def test_names_are_those_of_before_those_to_come_or_both_with_the_same_values() -> None:
    def values(names: str) -> dict[str, float]:
        options = msgspec.convert({"names": names}, Options)
        return {one.name: one.value for one in page(ALONE, options=options) if one.name.startswith("DCGM")}

    classic, new, both = values("classic"), values("new"), values("both")
    for name in DEFAULT_FIELDS:
        renamed = FIELDS[name].new or name
        assert classic[name] == new[renamed]
        assert (name in new) == (not FIELDS[name].new)
    assert both == classic | new


def test_the_label_of_the_driver_follows_the_name_of_its_metric() -> None:
    both = page(ALONE, options=Options(names="both"))
    [old], [new] = of(both, "DCGM_FI_DEV_GPU_TEMP"), of(both, "DCGM_FI_DEV_GPU_TEMP_CELSIUS")
    assert old.labels["DCGM_FI_DRIVER_VERSION"] == new.labels["DCGM_FI_SYSTEM_DRIVER_VERSION"]
    assert set(old.labels) ^ set(new.labels) == {"DCGM_FI_DRIVER_VERSION", "DCGM_FI_SYSTEM_DRIVER_VERSION"}


def test_a_gpu_that_nobody_holds_has_no_labels_of_a_pod() -> None:
    for one in page(ALONE):
        assert not {"pod", "namespace", "container"} & set(one.labels)


def test_a_gpu_held_alone_has_its_container_on_every_series() -> None:
    for one in page(ALONE, pod_each(ALONE.devices)):
        if one.name.startswith("DCGM"):
            assert [one.labels[name] for name in ("namespace", "pod", "container")] == [
                "team-a",
                "pod-0",
                "main",
            ]
            assert "pod_uid" not in one.labels


def test_the_uid_of_a_pod_is_a_label_where_it_is_asked_for() -> None:
    series = page(ALONE, pod_each(ALONE.devices), Options(pod_uid=True))
    assert of(series, "DCGM_FI_DEV_GPU_TEMP", pod_uid="uid-of-pod-0")


@pytest.mark.parametrize("pods", [2, 3, 10])
def test_series_of_a_shared_gpu_sum_to_its_value(pods: int) -> None:
    whole = {one.name: one.value for one in page(ALONE) if one.name.startswith("DCGM")}
    shared = page(ALONE, replicas_of(ALONE.devices[0], 10, pods))
    for name, expected in whole.items():
        series = of(shared, name)
        assert math.isclose(sum(one.value for one in series), expected, rel_tol=1e-5, abs_tol=1e-5), name
        if FIELDS[name].split == "whole":
            assert ["pod" in one.labels for one in series] == [False]
        else:
            assert sorted(one.labels["pod"] for one in series) == sorted(f"pod-{n}" for n in range(pods))


def test_an_instance_that_is_shared_is_divided_as_well() -> None:
    node = SimulatedNode("node-0", profiles={0: "3g.40gb"})
    node.work()
    instance = str(node.inventory.gpus[0].instances[0].id)
    alone, shared = page(node), page(node, replicas_of(node.devices[0], 4))
    for name in ("DCGM_FI_DEV_FB_USED", "DCGM_FI_PROF_SM_ACTIVE"):
        series = of(shared, name, GPU_I_ID=instance)
        assert len(series) == 4
        assert math.isclose(
            sum(one.value for one in series), value(alone, name, GPU_I_ID=instance), rel_tol=1e-5
        )


def test_memory_of_a_shared_gpu_is_that_of_a_pods_processes() -> None:
    gpu = ALONE.devices[0]
    samples = [Sample(gpu, None, {"DCGM_FI_DEV_FB_USED": 1000})]
    laid = layout("node-0", ALONE.inventory, replicas_of(gpu, 2))
    series = parsed(render(laid, samples, {(gpu, None): {"uid-of-pod-0": 600, "uid-of-pod-1": 200}}))
    used = {one.labels["pod"]: one.value for one in of(series, "DCGM_FI_DEV_FB_USED")}
    assert used == {"pod-0": 700, "pod-1": 300}


def test_seven_instances_of_eight_gpus_have_all_their_series_and_their_pods() -> None:
    node = SimulatedNode("node-0", gpus=8, profiles=SEVEN)
    series = page(node, pod_each(node.devices))
    counts: dict[tuple[str, str], int] = {}
    for one in series:
        if one.name.startswith("DCGM"):
            key = (one.labels["UUID"], one.labels.get("GPU_I_ID", ""))
            counts[key] = counts.get(key, 0) + 1
            assert ("pod" in one.labels) == ("GPU_I_ID" in one.labels)
    assert len(counts) == 64
    assert min(counts.values()) >= 26
    assert value(series, "gpufleet_unmapped_devices") == 0


def test_the_last_xid_is_a_value_and_not_a_label() -> None:
    before = page(ALONE)
    node = SimulatedNode("node-0")
    node.run(RaiseXid(at=0, gpu=0, code=79))
    [old], [new] = of(before, "DCGM_FI_DEV_XID_ERRORS"), of(page(node), "DCGM_FI_DEV_XID_ERRORS")
    assert (old.value, new.value) == (0, 79)
    assert old.labels == new.labels


def test_the_info_of_a_shared_gpu_names_everyone_who_holds_it() -> None:
    series = page(ALONE, replicas_of(ALONE.devices[0], 3))
    info = of(series, "gpufleet_gpu_info", UUID=ALONE.devices[0], node="node-0", GPU_I_ID="")
    assert [one.value for one in info] == [1, 1, 1]
    assert {one.labels["pod"] for one in info} == {"pod-0", "pod-1", "pod-2"}
    assert math.isclose(sum(one.value for one in of(series, "gpufleet_gpu_share_ratio")), 1, abs_tol=1e-5)


def test_a_device_that_nobody_knows_is_counted() -> None:
    held = [*pod_each(ALONE.devices), allocation("lost", "GPU-gone"), allocation("lost", "MIG-gone")]
    assert value(page(ALONE, held), "gpufleet_unmapped_devices", node="node-0") == 2


def test_what_would_need_dcgm_before_hopper_is_a_gap_with_its_reason() -> None:
    series = page(SimulatedNode("node-0", gpus=2, product="a100-80gb"))
    gaps = {one.labels["field"]: one for one in of(series, "gpufleet_metric_unavailable")}
    assert not of(series, "DCGM_FI_PROF_SM_ACTIVE")
    assert gaps["DCGM_FI_PROF_SM_ACTIVE"].value == 2
    assert "DCGM" in gaps["DCGM_FI_PROF_SM_ACTIVE"].labels["reason"]


def test_utilisation_that_no_instance_has_is_a_gap() -> None:
    node = SimulatedNode("node-0", profiles=SEVEN)
    series = page(node)
    assert not of(series, "DCGM_FI_DEV_GPU_UTIL")
    assert value(series, "gpufleet_metric_unavailable", field="DCGM_FI_DEV_GPU_UTIL") == 8


def test_a_metric_that_the_driver_never_mentions_is_a_gap_too() -> None:
    options = Options(fields=choose(["DCGM_FI_DEV_RETIRED_SBE"]))
    assert value(page(ALONE, options=options), "gpufleet_metric_unavailable", field="DCGM_FI_DEV_RETIRED_SBE")


def test_a_number_that_is_none_is_left_out() -> None:
    gpu = ALONE.devices[0]
    samples = [Sample(gpu, None, {"DCGM_FI_DEV_GPU_TEMP": math.nan, "DCGM_FI_DEV_SM_CLOCK": 345})]
    series = parsed(render(layout("node-0", ALONE.inventory), samples))
    assert not of(series, "DCGM_FI_DEV_GPU_TEMP")
    assert value(series, "gpufleet_metric_unavailable", field="DCGM_FI_DEV_GPU_TEMP") == 1


def test_a_lost_gpu_lacks_everything_and_still_has_its_holder() -> None:
    node = SimulatedNode("node-0", gpus=2)
    held = pod_each(node.devices)
    node.run(LoseGPU(at=0, gpu=1, message="fallen off the bus"))
    series = page(node, held)
    assert [one.labels["gpu"] for one in of(series, "DCGM_FI_DEV_GPU_TEMP")] == ["0"]
    assert value(series, "gpufleet_metric_unavailable", field="*", reason="fallen off the bus") == 1
    assert of(series, "gpufleet_gpu_info", gpu="1", pod="pod-1")
    assert value(series, "gpufleet_unmapped_devices") == 0


def test_a_gpu_that_was_not_sampled_yet_lacks_everything() -> None:
    series = parsed(render(layout("node-0", ALONE.inventory), ()))
    assert value(series, "gpufleet_metric_unavailable", field="*", reason=NOT_READ) == 1
    assert not [one for one in series if one.name.startswith("DCGM")]


def test_the_end_of_a_page_tells_ages_durations_and_failures() -> None:
    sources = (Source("driver", 31.5, 0.25, {"Timeout": 2, "GpuLost": 1}), Source("kubelet", 4.0))
    series = parsed(tail("node-0", sources))
    assert value(series, "gpufleet_sample_age_seconds", source="driver") == 31.5
    assert value(series, "gpufleet_sample_age_seconds", source="kubelet") == 4
    assert [one.labels["source"] for one in of(series, "gpufleet_sample_duration_seconds")] == ["driver"]
    assert value(series, "gpufleet_sample_failures_total", reason="Timeout") == 2


@settings(max_examples=200)
@given(st.text(), st.text(min_size=1), st.text(min_size=1))
def test_any_text_is_a_label_that_prometheus_reads_back(model: str, pod: str, node: str) -> None:
    inventory = Inventory("580", gpus=(GPU(0, "GPU-a", model),))
    laid = layout(node, inventory, [allocation(pod, "GPU-a")])
    text = render(laid, [Sample("GPU-a", None, {"DCGM_FI_DEV_GPU_TEMP": 40})])
    [line] = [one for one in text.split("\n") if one.startswith("DCGM_FI_DEV_GPU_TEMP{")]
    [series] = parsed(f"{line}\n")
    assert series.labels["Hostname"] == node
    assert series.labels["pod"] == pod
    assert series.labels.get("modelName", "") == model
