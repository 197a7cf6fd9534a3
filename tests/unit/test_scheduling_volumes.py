"""Claims of a pod: what keeps it from every node, where a bound volume can be used, and by whom."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from tests.unit.fleets import ZONE, claim, equal, node, pod, volume, waiting_class
from tests.unit.storage_fleets import blocks, fleet_of, open_nodes, user

from gpufleet.fleet.selectors import NodeSelectorTerm
from gpufleet.fleet.volumes import Claim, CSIDriver, StorageClass, Volume
from gpufleet.scheduling.filters import pod_problem
from gpufleet.scheduling.ledger import Ledger
from gpufleet.scheduling.placement import Block


def problem(
    *claims: Claim, volumes: Iterable[Volume] = (), classes: Iterable[StorageClass] = ()
) -> Block | None:
    return pod_problem(user(), fleet_of(claims, volumes, classes))


# problems that hold whatever the node


def test_a_claim_that_does_not_exist_is_named_with_its_namespace() -> None:
    assert problem() == Block("ClaimNotFound", "claim default/data does not exist")
    elsewhere = claim(namespace="other", volume="pv")
    assert problem(elsewhere, volumes=[volume()]) == Block(
        "ClaimNotFound", "claim default/data does not exist"
    )


def test_a_lost_claim_stays_lost() -> None:
    assert problem(claim(volume="pv", phase="Lost")) == Block(
        "ClaimLost", "claim default/data lost its volume pv"
    )
    gone = Block("ClaimLost", "claim default/data is bound to volume pv, which does not exist")
    assert problem(claim(volume="pv")) == gone


@pytest.mark.parametrize("bound_to", ["", "pv"])
def test_a_claim_that_is_being_deleted_takes_no_more_pods(bound_to: str) -> None:
    going = claim(volume=bound_to, terminating=True)
    expected = Block("ClaimTerminating", "claim default/data is being deleted")
    assert problem(going, volumes=[volume()], classes=[waiting_class()]) == expected


def test_a_claim_of_immediate_binding_must_be_bound_first() -> None:
    immediate = StorageClass("disk", "disk.example.com")
    assert problem(claim(), classes=[immediate]) == Block(
        "ClaimUnbound", "claim default/data is not bound yet by storage class disk"
    )
    assert problem(claim(volume="pv"), volumes=[volume()], classes=[immediate]) is None


@pytest.mark.parametrize("name", [None, ""])
def test_a_claim_without_class_must_be_bound_first(name: str | None) -> None:
    block = problem(claim(storage_class=name))
    assert block == Block("ClaimUnbound", "claim default/data is not bound and names no storage class")


def test_a_claim_that_waits_for_a_volume_named_by_its_author_is_unbound() -> None:
    block = problem(claim(volume="pv", phase="Pending"), volumes=[volume()], classes=[waiting_class()])
    assert block == Block("ClaimUnbound", "claim default/data waits to be bound to volume pv")


def test_a_class_that_does_not_exist_is_named() -> None:
    detail = "claim default/data names storage class disk, which does not exist"
    assert problem(claim()) == Block("StorageClassNotFound", detail)


def test_a_claim_that_waits_for_its_first_consumer_is_no_problem() -> None:
    assert problem(claim(), classes=[waiting_class()]) is None


# bound claims


def test_a_bound_volume_keeps_the_pod_where_it_can_be_reached() -> None:
    fleet = fleet_of([claim(volume="pv")], [volume(node="b")])
    assert open_nodes(user(), fleet) == "b"
    expected = Block("VolumeNodeConflict", "volume pv cannot be reached from there")
    assert blocks(user(), fleet)["a"] == expected


def test_a_volume_without_node_affinity_goes_anywhere() -> None:
    assert open_nodes(user(), fleet_of([claim(volume="pv")], [volume()])) == "abc"


@pytest.mark.parametrize("label", [ZONE, "failure-domain.beta.kubernetes.io/zone"])
def test_zone_labels_of_a_volume_tie_it_to_its_zones(label: str) -> None:
    def tied(zones: str) -> Ledger:
        return fleet_of([claim(volume="pv")], [volume(labels={label: zones})])

    assert open_nodes(user(), tied("y")) == "c"
    assert open_nodes(user(), tied("x__y")) == "abc"
    assert open_nodes(user(), tied("z")) == ""


def test_zone_labels_do_not_matter_on_nodes_without_zones() -> None:
    fleet = fleet_of([claim(volume="pv")], [volume(labels={ZONE: "y"})], nodes=[node("a")])
    assert open_nodes(user(), fleet) == "a"


# one pod, one node


def test_a_read_write_once_pod_claim_admits_one_pod() -> None:
    single = claim(volume="pv", modes=["ReadWriteOncePod"])
    fleet = fleet_of([single], [volume()], pods=[user("holder", where="a")])
    expected = Block("VolumeInUse", "claim default/data is in use by default/holder")
    assert blocks(user(), fleet) == dict.fromkeys("abc", expected)


def test_a_read_write_once_claim_that_is_attached_admits_one_node() -> None:
    fleet = fleet_of([claim(volume="pv")], [volume(driver="disk")], pods=[user("holder", where="b")])
    assert open_nodes(user(), fleet) == "b"
    assert blocks(user(), fleet)["a"] == Block("VolumeInUse", "claim default/data is in use on b")


@pytest.mark.parametrize("driver", ["", "nfs"])
def test_what_is_not_attached_is_used_from_many_nodes(driver: str) -> None:
    """As a host path or NFS: nothing on a real cluster keeps the second pod back."""
    fleet = fleet_of(
        [claim(volume="pv")],
        [volume(driver=driver)],
        pods=[user("holder", where="b")],
        csi_drivers={"nfs": CSIDriver("nfs", attaches=False)},
    )
    assert open_nodes(user(), fleet) == "abc"


@pytest.mark.parametrize("mode", ["ReadWriteOnce", "ReadWriteOncePod"])
def test_where_a_volume_is_comes_before_who_uses_it(mode: str) -> None:
    disk = volume(driver="disk", node="b")
    fleet = fleet_of([claim(volume="pv", modes=[mode])], [disk], pods=[user("holder", where="b")])
    elsewhere = Block("VolumeNodeConflict", "volume pv cannot be reached from there")
    assert blocks(user(), fleet)["a"] == blocks(user(), fleet)["c"] == elsewhere


def test_where_a_volume_is_comes_before_what_is_free_there() -> None:
    full = fleet_of(
        [claim(volume="pv")],
        [volume(node="b")],
        pods=[pod("full", gpus=1, node="a")],
        nodes=[node("a", gpus=1), node("b")],
    )
    found = blocks(pod("new", gpus=1, claims=["data"]), full)
    codes = {name: block.code for name, block in found.items() if block is not None}
    assert codes == {"a": "VolumeNodeConflict", "b": "ResourceNotOffered"}


def test_where_a_claim_can_be_bound_comes_before_who_uses_it() -> None:
    single = claim(modes=["ReadWriteOncePod"])
    only_c = waiting_class(allowed_topologies=(NodeSelectorTerm((equal(ZONE, "y"),)),))
    fleet = fleet_of([single], classes=[only_c], pods=[user("holder", where="c")])
    codes = {name: block.code for name, block in blocks(user(), fleet).items() if block is not None}
    assert codes == {"a": "VolumeNodeConflict", "b": "VolumeNodeConflict", "c": "VolumeInUse"}


@pytest.mark.parametrize("modes", [["ReadWriteMany"], ["ReadOnlyMany"], ["ReadWriteOnce", "ReadWriteMany"]])
def test_a_claim_that_many_may_use_is_never_in_use(modes: list[str]) -> None:
    fleet = fleet_of(
        [claim(volume="pv", modes=modes)],
        [volume(modes=modes, driver="disk")],
        pods=[user("holder", where="b")],
    )
    assert open_nodes(user(), fleet) == "abc"


def test_what_the_bound_volume_can_do_counts_as_it_does_when_attaching() -> None:
    shared = volume(modes=["ReadWriteOnce", "ReadWriteMany"], driver="disk")
    assert (
        open_nodes(user(), fleet_of([claim(volume="pv")], [shared], pods=[user("holder", where="b")]))
        == "abc"
    )


def test_a_claim_of_the_same_name_elsewhere_is_another_claim() -> None:
    holder = user("holder", where="b", namespace="other")
    disk = volume(driver="disk")
    assert open_nodes(user(), fleet_of([claim(volume="pv")], [disk], pods=[holder])) == "abc"


def test_a_pod_does_not_stand_in_its_own_way() -> None:
    single = claim(volume="pv", modes=["ReadWriteOncePod"])
    fleet = fleet_of([single], [volume()], pods=[user("new", where="a")])
    assert open_nodes(user("new"), fleet) == "abc"


def test_a_volume_that_a_pod_of_a_deleted_node_holds_is_still_in_use() -> None:
    disk = volume(driver="disk")
    fleet = fleet_of([claim(volume="pv")], [disk], pods=[user("holder", where="gone")])
    assert set(blocks(user(), fleet).values()) == {
        Block("VolumeInUse", "claim default/data is in use on gone")
    }
