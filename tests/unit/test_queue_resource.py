"""The Queue as the API server gets to know it, and as decisions read it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.queues import Queue as Value
from gpufleet.fleet.queues import Quota
from gpufleet.kube.custom_resources import custom_resources
from gpufleet.kube.queue import Queue, queue_value


def value(**spec: Any) -> Value:
    return queue_value(msgspec.convert({"metadata": {"name": "team"}, "spec": spec}, Queue))


def test_the_queue_is_one_of_the_installed_resources_and_belongs_to_no_namespace() -> None:
    definition = next(one for one in custom_resources() if one["spec"]["names"]["kind"] == "Queue")
    assert definition["metadata"]["name"] == "queues.gpufleet.dev"
    assert definition["spec"]["scope"] == "Cluster"
    assert definition["spec"]["names"]["shortNames"] == ["gpuq"]
    columns = [c["name"] for c in definition["spec"]["versions"][0]["additionalPrinterColumns"]]
    assert columns == ["Parent", "Guarantee", "Limit", "Weight", "Priority", "Age"]


@pytest.mark.parametrize(
    ("written", "gpu", "cpu"),
    [("2.5", 2500, 2500), ("500m", 500, 500), (3, 3000, 3000), ("0.001", 1, 1), ("0", 0, 0)],
)
def test_counts_are_thousandths(written: int | str, gpu: int, cpu: int) -> None:
    found = value(limit={"gpu": written, "cpu": written})
    assert (found.gpu.limit, found.cpu.limit, found.memory.limit) == (gpu, cpu, None)


@pytest.mark.parametrize(
    ("written", "amount"), [("64Gi", 64 << 30), ("1.5Gi", 3 << 29), (5, 5), ("2G", 2 * 10**9), ("0.5", 0)]
)
def test_memory_is_bytes(written: int | str, amount: int) -> None:
    assert value(guarantee={"memory": written}).memory.guarantee == amount


def test_a_guarantee_that_is_not_stated_is_what_the_queues_below_have() -> None:
    found = value(guarantee={"gpu": 0}, weight=0)
    assert found.gpu == Quota(0, weight=0)
    assert found.cpu == Quota(0, weight=0, includes_children=True)


def test_what_is_no_quantity_is_refused_in_words() -> None:
    with pytest.raises(GpufleetError, match="'many' is not a Kubernetes quantity"):
        value(limit={"gpu": "many"})
