"""Vendors' queue objects as their documentation describes them, and the queues that they are for gpufleet.

Written by hand from shared/research/schedulers.md, sections 2.2 and 3.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.queues import UNQUEUED, Queue, Quota
from gpufleet.kube.conventions.kai_queues import KaiQueue, kai_queue
from gpufleet.kube.conventions.kueue_queues import (
    KueueObject,
    cluster_queue,
    cohort_queue,
    local_queue,
    with_cohorts,
)
from gpufleet.kube.conventions.queue_amounts import seconds_of
from gpufleet.kube.conventions.queues import queue_tree
from gpufleet.kube.conventions.volcano_queues import VolcanoQueue, volcano_queue

GI = 1 << 30
CREATED = {"creationTimestamp": "1970-01-01T00:01:40Z"}
NOTHING = Quota(0, 0, weight=0)


def kai(name: str = "team", **spec: Any) -> Queue:
    return kai_queue(msgspec.convert({"metadata": {"name": name, **CREATED}, "spec": spec}, KaiQueue))


def volcano(name: str = "team", state: str = "Open", **spec: Any) -> Queue | None:
    body = {"metadata": {"name": name}, "spec": spec, "status": {"state": state}}
    return volcano_queue(msgspec.convert(body, VolcanoQueue))


def kueue(name: str = "team", namespace: str = "", **spec: Any) -> KueueObject:
    return msgspec.convert({"metadata": {"name": name, "namespace": namespace}, "spec": spec}, KueueObject)


def quotas(*flavors: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Resource groups: one flavor for each mapping from resource to its quota."""
    listed = [
        {"name": f"f{number}", "resources": [{"name": name, **quota} for name, quota in flavor.items()]}
        for number, flavor in enumerate(flavors)
    ]
    return [{"coveredResources": sorted({name for flavor in flavors for name in flavor}), "flavors": listed}]


def test_a_kai_queue_with_every_field() -> None:
    resources = {
        "gpu": {"quota": 2.5, "limit": -1, "overQuotaWeight": 2},
        "cpu": {"quota": 4000, "limit": 8000, "overQuotaWeight": 0.5},
        "memory": {"quota": 64000, "limit": -1, "overQuotaWeight": 1},
    }
    times = {"preemptMinRuntime": "4h", "reclaimMinRuntime": "1h30m"}
    body: dict[str, Any] = {"displayName": "Team", "parentQueue": "department", "priority": 200, **times}
    assert kai(resources=resources, **body) == Queue(
        name="team",
        rule="KAI Queue",
        parent="department",
        gpu=Quota(2500, None, weight=2000),
        cpu=Quota(4000, 8000, weight=500),
        memory=Quota(64 * 10**9, None, weight=1000),
        priority=200,
        created=100.0,
        preempt_min_runtime=4 * 3600,
        reclaim_min_runtime=5400,
    )


def test_a_kai_limit_that_is_not_written_is_zero_and_so_are_quota_and_weight() -> None:
    queue = kai(resources={"gpu": {"quota": 3}})
    assert queue.gpu == Quota(3000, 0, weight=0)
    assert (queue.cpu, queue.memory, queue.priority) == (NOTHING, NOTHING, 100)
    assert kai().gpu == NOTHING


def test_minus_one_is_unlimited_for_quota_and_limit_of_kai() -> None:
    resource = {"quota": -1, "limit": -1, "overQuotaWeight": 1}
    assert kai(resources={"gpu": resource}).gpu == Quota(None, None)


def test_tenths_of_gpus_are_exact_for_kai() -> None:
    resource = {"quota": 0.3, "limit": 0.7, "overQuotaWeight": 0.1}
    assert kai(resources={"gpu": resource}).gpu == Quota(300, 700, weight=100)


def test_a_volcano_queue_is_entitled_to_what_it_deserves_and_lends_what_is_not_reserved() -> None:
    queue = volcano(
        weight=4,
        priority=7,
        parent="root",
        capability={"nvidia.com/gpu": "16", "cpu": "100"},
        deserved={"nvidia.com/gpu": "8", "cpu": "64", "memory": "512Gi"},
        guarantee={"resource": {"nvidia.com/gpu": 2}},
    )
    assert queue == Queue(
        name="team",
        rule="Volcano Queue",
        gpu=Quota(8000, 16_000, 6000, 4000),
        cpu=Quota(64_000, 100_000, None, 4000),
        memory=Quota(512 * GI, None, None, 4000),
        priority=7,
    )


def test_a_volcano_guarantee_alone_is_lent_to_nobody() -> None:
    queue = volcano(guarantee={"resource": {"nvidia.com/gpu": "3"}})
    assert queue is not None
    assert queue.gpu == Quota(3000, None, 0, 1000)


def test_the_root_of_volcano_is_the_cluster_and_a_closed_queue_takes_nobody_in() -> None:
    assert volcano("root") is None
    closing, below = volcano(state="Closing"), volcano(parent="org")
    assert closing is not None
    assert below is not None
    assert (closing.closed, below.parent) == ("its state is Closing", "org")


def test_a_cluster_queue_may_borrow_everything_its_cohort_has_unless_it_says_how_much() -> None:
    groups = quotas({
        "nvidia.com/gpu": {"nominalQuota": 8, "borrowingLimit": "4", "lendingLimit": "6"},
        "cpu": {"nominalQuota": "9"},
    })  # fmt: skip
    team = kueue(cohortName="all", resourceGroups=groups, fairSharing={"weight": "2"})
    assert cluster_queue(team) == Queue(
        name="team",
        rule="Kueue ClusterQueue",
        parent="cohort:all",
        gpu=Quota(8000, 12_000, 6000, 2000),
        cpu=Quota(9000, None, None, 2000),
        memory=Quota(0, 0, None, 2000),
    )


def test_a_cluster_queue_without_cohort_has_its_nominal_quota_and_no_more() -> None:
    groups = quotas({"nvidia.com/gpu": {"nominalQuota": 8}})
    assert cluster_queue(kueue(resourceGroups=groups)).gpu == Quota(8000, 8000)


def test_quotas_of_several_flavors_add_up() -> None:
    groups = quotas(
        {"nvidia.com/gpu": {"nominalQuota": 4, "lendingLimit": 1}},
        {"nvidia.com/gpu": {"nominalQuota": 6, "borrowingLimit": 2}},
    )
    assert cluster_queue(kueue(cohortName="c", resourceGroups=groups)).gpu == Quota(10_000, None, 7000)


def test_a_local_queue_is_named_with_its_namespace_and_has_no_quota_of_its_own() -> None:
    queue = local_queue(kueue("user-queue", "team-ns", clusterQueue="team"))
    assert (queue.name, queue.parent, queue.gpu) == ("team-ns/user-queue", "team", Quota())
    assert local_queue(kueue(stopPolicy="Hold")).closed == "its stopPolicy is Hold"
    assert not local_queue(kueue(stopPolicy="None")).closed


def test_cohorts_have_what_their_members_have_and_only_the_topmost_cannot_borrow() -> None:
    groups = quotas({"nvidia.com/gpu": {"nominalQuota": 2}})
    top = cohort_queue(kueue("top", resourceGroups=groups))
    middle = cohort_queue(kueue("middle", parentName="top"))
    team = cluster_queue(
        kueue(cohortName="middle", resourceGroups=quotas({"nvidia.com/gpu": {"nominalQuota": 8}}))
    )
    tree = queue_tree((top, middle, team, local_queue(kueue("q", "ns", clusterQueue="team"))))
    assert tree.problems == {}
    assert tree.paths["ns/q"] == ("ns/q", "team", "cohort:middle", "cohort:top")
    assert tree.guarantees["cohort:middle"][0] == 8000
    assert tree.guarantees["cohort:top"][0] == 10_000
    assert tree.queues["cohort:middle"].gpu.limit is None
    assert tree.queues["cohort:top"].gpu.limit == 10_000


def test_a_cohort_that_is_only_named_is_there() -> None:
    team = cluster_queue(kueue(cohortName="all", resourceGroups=quotas({"cpu": {"nominalQuota": 1}})))
    found = with_cohorts([team])
    assert [queue.name for queue in found] == ["team", "cohort:all"]
    assert found[1].cpu.limit == 1000


def test_queues_of_one_name_of_two_vendors_are_a_mistake_that_is_told() -> None:
    other = volcano()
    assert other is not None
    tree = queue_tree((kai(), other))
    assert tree.problems == {
        "team": "there are 2 queues named team (KAI Queue, Volcano Queue); names must differ"
    }
    assert set(tree.queues) == {UNQUEUED}


def test_durations_are_read_as_go_writes_them() -> None:
    assert [seconds_of(text) for text in ("30s", "1h30m", "1.5h", "0s", "2500ms")] == [30, 5400, 5400, 0, 2]
    for text in ("", "soon", "5", "1h-3m"):
        with pytest.raises(GpufleetError, match="not a duration"):
            seconds_of(text)
