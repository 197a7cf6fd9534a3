"""Attach limits: how many volumes a node can attach."""

from __future__ import annotations

from typing import Any

from tests.unit.fleets import claim, pod, volume, waiting_class
from tests.unit.storage_fleets import blocks, fleet_of, open_nodes, user

from gpufleet.fleet.volumes import AttachLimits, Claim, Volume
from gpufleet.scheduling.placement import Block


def attach(limit: int, *names: str, driver: str = "disk.example.com") -> dict[str, Any]:
    return {"attach_limits": {name: AttachLimits(name, {driver: limit}) for name in names}}


def disks(count: int) -> tuple[list[Claim], list[Volume]]:
    """Claims d0, d1, ... bound to CSI volumes."""
    names = [f"d{index}" for index in range(count)]
    many = ["ReadWriteMany"]
    claims = [claim(n, volume=f"pv-{n}", modes=many) for n in names]
    return claims, [volume(f"pv-{n}", driver="disk.example.com", modes=many) for n in names]


def test_a_node_attaches_no_more_volumes_than_its_limit() -> None:
    running = [user("r", "d0", "d1", where="a")]
    fleet = fleet_of(*disks(3), pods=running, **attach(2, "a", "b"))
    assert open_nodes(user("new", "d2"), fleet) == "bc"
    expected = Block("VolumeLimitExceeded", "disk.example.com", need=1, have=0)
    assert blocks(user("new", "d2"), fleet)["a"] == expected


def test_a_volume_that_is_attached_for_another_pod_counts_once() -> None:
    running = [user("r", "d0", "d1", where="a"), user("s", "d1", where="a")]
    fleet = fleet_of(*disks(3), pods=running, **attach(2, "a"))
    assert open_nodes(user("new", "d0", "d1"), fleet) == "abc"


def test_a_claim_that_is_still_to_be_provisioned_counts_for_its_driver() -> None:
    claims, volumes = disks(2)
    running = [user("r", "d0", "d1", where="a")]
    fleet = fleet_of([*claims, claim()], volumes, [waiting_class()], running, **attach(2, "a"))
    assert open_nodes(user(), fleet) == "bc"


def test_inline_volumes_count_one_each() -> None:
    running = [pod("r", inline_csi_drivers=["disk.example.com"], node="a")]
    fleet = fleet_of([], pods=running, **attach(2, "a"))
    assert open_nodes(pod("one", inline_csi_drivers=["disk.example.com"]), fleet) == "abc"
    assert open_nodes(pod("two", inline_csi_drivers=["disk.example.com"] * 2), fleet) == "bc"


def test_limits_of_other_drivers_do_not_matter() -> None:
    fleet = fleet_of(*disks(1), **attach(0, "a", driver="tape.example.com"))
    assert open_nodes(user("new", "d0"), fleet) == "abc"


def test_a_volume_without_csi_driver_is_not_counted() -> None:
    fleet = fleet_of([claim(volume="pv")], [volume()], **attach(0, "a"))
    assert open_nodes(user(), fleet) == "abc"
