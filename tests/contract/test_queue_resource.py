"""The Queue on a real API server: what makes sense is read exactly, the rest is refused in words."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.contract.servers import ControlPlane

from gpufleet.fleet.queues import NO_QUEUES, Quota
from gpufleet.kube.client import ApiError, Client
from gpufleet.kube.crds import establish
from gpufleet.kube.custom_resources import custom_resources
from gpufleet.kube.kinds import QUEUES
from gpufleet.kube.queue import Queue, queue_value
from gpufleet.kube.snapshot import load_snapshot

GI = 1 << 30


@contextlib.asynccontextmanager
async def cluster(control_plane: ControlPlane) -> AsyncIterator[Client]:
    """A client of a cluster that serves queues; those are gone afterwards."""
    async with Client(control_plane.config) as client:
        await establish(client, custom_resources())
        try:
            yield client
        finally:
            for queue in (await client.list(QUEUES, type=Queue)).items:
                await client.delete(QUEUES, queue.metadata.name, missing_ok=True)


async def create(client: Client, name: str, **spec: Any) -> Queue:
    return await client.create(QUEUES, {"metadata": {"name": name}, "spec": spec}, type=Queue)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"guarantee": {"gpu": "four"}}, "spec.guarantee.gpu"),
        ({"guarantee": {"gpu": "0.1234"}}, "should match"),
        ({"limit": {"gpu": -1}}, "should be greater than or equal to 0"),
        ({"limit": {"memory": "64GB"}}, "spec.limit.memory"),
        ({"limit": {"gpu": 2.5}}, "must be of type"),
        ({"guarantee": {"gpu": "2.5"}, "limit": {"gpu": 2}}, "gpu: the guarantee is more than the limit"),
        ({"guarantee": {"memory": "1Ti"}, "limit": {"memory": "64Gi"}}, "memory: the guarantee is more"),
        ({"guarantee": {"gpu": 2}, "lendingLimit": {"gpu": 3}}, "only what is guaranteed can be lent"),
        ({"weight": -1}, "spec.weight"),
        ({"parent": "Team A"}, "spec.parent"),
        ({"parent": "bad"}, "a queue is not its own parent"),
    ],
)
async def test_a_queue_that_makes_no_sense_is_refused(
    control_plane: ControlPlane, spec: dict[str, Any], words: str
) -> None:
    async with cluster(control_plane) as client:
        with pytest.raises(ApiError) as caught:
            await create(client, "bad", **spec)
        assert caught.value.status == 422
        assert words in caught.value.message


async def test_a_name_that_no_label_can_hold_is_refused(control_plane: ControlPlane) -> None:
    async with cluster(control_plane) as client:
        with pytest.raises(ApiError, match="at most 63 characters"):
            await create(client, "x" * 64)


async def test_amounts_are_read_as_people_write_them(control_plane: ControlPlane) -> None:
    async with cluster(control_plane) as client:
        made = await create(
            client,
            "team",
            guarantee={"gpu": "2.5", "cpu": "10", "memory": "64Gi"},
            limit={"gpu": 8, "cpu": "20"},
            lendingLimit={"gpu": "500m"},
            weight=3,
            priority=-2,
        )
        value = queue_value(made)
        assert value.gpu == Quota(2500, 8000, 500, 3000)
        assert value.cpu == Quota(10_000, 20_000, None, 3000)
        assert value.memory == Quota(64 * GI, None, None, 3000)
        assert (value.parent, value.priority, value.created > 0) == ("", -2, True)


async def test_queues_are_part_of_a_snapshot_and_the_vendors_kinds_need_not_be_there(
    control_plane: ControlPlane,
) -> None:
    async with cluster(control_plane) as client:
        assert (await load_snapshot(client))[0].queues == NO_QUEUES
        await create(client, "research", limit={"gpu": 16})
        await create(client, "vision", parent="research", guarantee={"gpu": 4})
        await create(client, "lost", parent="gone")
        tree = (await load_snapshot(client))[0].queues
        assert tree.paths["vision"] == ("vision", "research")
        assert tree.guarantees["research"][0] == 4000
        assert tree.problems == {"lost": "queue lost names the parent gone, which does not exist"}
