"""Volumes of a pod: where they can be used, how many a node can attach, and what is written to bind them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.fleets import (
    HOST,
    ZONE,
    claim,
    equal,
    ledger,
    node,
    nodes_where,
    pod,
    selector,
    storage,
    volume,
    waiting_class,
)

from gpufleet.fleet.nodes import Node
from gpufleet.fleet.plans import BindVolume, SelectNode
from gpufleet.fleet.pods import Pod
from gpufleet.fleet.selectors import LabelSelector, NodeSelector, NodeSelectorTerm, Requirement
from gpufleet.fleet.volumes import (
    AttachLimits,
    Claim,
    CSIDriver,
    StorageCapacity,
    StorageClass,
    Volume,
)
from gpufleet.scheduling.filters import FILTERS, pod_problem
from gpufleet.scheduling.ledger import Ledger
from gpufleet.scheduling.placement import Block
from gpufleet.scheduling.provisioning import NO_PROVISIONER
from gpufleet.scheduling.volumes import prepare_nodes, prepare_use, volume_actions

NODES = [node("a", zone="x"), node("b", zone="x"), node("c", zone="y")]
LOCAL = waiting_class(provisioner=NO_PROVISIONER)
GI = 2**30


def user(name: str = "new", *claims: str, where: str = "", namespace: str = "default") -> Pod:
    return pod(name, claims=claims or ("data",), node=where, namespace=namespace)


def blocks(incoming: Pod, fleet: Ledger) -> dict[str, Block | None]:
    checks = [rule.prepare(incoming, fleet) for rule in FILTERS]
    return {
        name: next((b for check in checks if check is not None and (b := check(account))), None)
        for name, account in fleet.accounts.items()
    }


def open_nodes(incoming: Pod, fleet: Ledger) -> str:
    return "".join(name for name, block in blocks(incoming, fleet).items() if block is None)


def fleet_of(
    claims: Iterable[Claim],
    volumes: Iterable[Volume] = (),
    classes: Iterable[StorageClass] = (),
    pods: Iterable[Pod] = (),
    nodes: Iterable[Node] = NODES,
    **rest: Any,
) -> Ledger:
    return ledger(nodes, pods, **storage(claims=claims, volumes=volumes, classes=classes), **rest)


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


# existing volumes for claims that wait


def bound_to(incoming: Pod, fleet: Ledger, name: str) -> dict[str, str]:
    """Claims (without namespace) and the volumes they get on a node, or `new` where one is provisioned."""
    return {
        action.claim.removeprefix("default/"): action.volume if isinstance(action, BindVolume) else "new"
        for action in volume_actions(incoming, name, fleet)
    }


def test_a_waiting_claim_goes_where_a_volume_exists() -> None:
    fleet = fleet_of([claim()], [volume("pv-b", node="b"), volume("pv-c", node="c")], [LOCAL])
    assert open_nodes(user(), fleet) == "bc"
    expected = Block("VolumeNodeConflict", "no volume that fits claim default/data can be used there")
    assert blocks(user(), fleet)["a"] == expected
    assert volume_actions(user(), "c", fleet) == (BindVolume("default/data", "pv-c", user()),)
    assert fleet.promised_volumes == {"pv-c": "default/data"}


def test_the_smallest_volume_that_fits_is_taken() -> None:
    sizes = {"large": "9Gi", "small": "1Gi", "fits": "4Gi", "also-fits": "4Gi"}
    stock = [volume(name, node="a", size=size) for name, size in sizes.items()]
    assert bound_to(user(), fleet_of([claim(size="3Gi")], stock, [LOCAL]), "a") == {"data": "also-fits"}


@pytest.mark.parametrize(
    "unfit",
    [
        {"size": "1Gi"},
        {"storage_class": "tape"},
        {"modes": ["ReadOnlyMany"]},
        {"volume_mode": "Block"},
        {"phase": "Released"},
        {"terminating": True},
        {"claim": "default/else", "claim_uid": "uid-else"},
        {"claim": "default/data", "claim_uid": "uid-of-an-earlier-claim-of-that-name"},
        {"labels": {"tier": "slow"}},
        {"node": "b"},
    ],
)
def test_a_volume_that_does_not_fit_is_not_taken(unfit: dict[str, Any]) -> None:
    fast: dict[str, Any] = {"labels": {"tier": "fast"}}
    bad, good = volume("bad", **{**fast, **unfit}), volume("good", **fast)
    wanted = claim(size="2Gi", selector=selector(tier="fast"))
    assert "a" not in open_nodes(user(), fleet_of([wanted], [bad], [LOCAL]))
    assert bound_to(user(), fleet_of([wanted], [bad, good], [LOCAL]), "a") == {"data": "good"}


def test_a_volume_meant_for_the_claim_is_taken_before_any_other() -> None:
    meant = volume("meant", claim="default/data", node="c", labels={"tier": "slow"})
    fleet = fleet_of(
        [claim(selector=selector(tier="fast"))], [meant, volume("small", size="1Gi")], [waiting_class()]
    )
    assert open_nodes(user(), fleet) == "c"
    assert bound_to(user(), fleet, "c") == {"data": "meant"}


def test_a_volume_that_was_reserved_already_is_not_written_again() -> None:
    reserved = volume("pv", claim="default/data", claim_uid="uid-data", node="b")
    fleet = fleet_of([claim()], [reserved], [LOCAL])
    assert open_nodes(user(), fleet) == "b"
    assert volume_actions(user(), "b", fleet) == ()


def test_two_claims_of_one_pod_get_two_volumes_and_the_smaller_claim_chooses_first() -> None:
    stock = [volume("ten", node="a", size="10Gi"), volume("five", node="a", size="5Gi")]
    claims = [claim("big", size="5Gi"), claim("little", size="1Gi")]
    fleet = fleet_of(claims, stock, [LOCAL])
    both = user("new", "big", "little")
    assert bound_to(both, fleet, "a") == {"big": "ten", "little": "five"}
    assert open_nodes(both, fleet_of(claims, stock[:1], [LOCAL])) == ""


def test_a_volume_promised_to_one_pod_is_not_promised_to_another() -> None:
    claims = [claim("one"), claim("two")]
    fleet = fleet_of(claims, [volume("pv-a", node="a"), volume("pv-b", node="b")], [LOCAL])
    first, second = user("first", "one"), user("second", "two")
    waiting = prepare_nodes(second, fleet)
    assert waiting is not None
    account = fleet.place(first, "a")
    assert bound_to(first, fleet, "a") == {"one": "pv-a"}
    waiting.placed(first, account)
    assert [name for name, each in fleet.accounts.items() if waiting(each) is None] == ["b"]
    assert open_nodes(second, fleet) == "b"


def test_a_pod_that_shares_a_promised_claim_follows_it() -> None:
    shared = claim(modes=["ReadWriteMany"])
    stock = [volume(f"pv-{n}", node=n, modes=["ReadWriteMany"]) for n in "abc"]
    fleet = fleet_of([shared], stock, [LOCAL])
    fleet.place(user("first"), "b")
    assert bound_to(user("first"), fleet, "b") == {"data": "pv-b"}
    assert open_nodes(user("second"), fleet) == "b"
    assert bound_to(user("second"), fleet, "b") == {"data": "pv-b"}


# provisioning


def test_a_claim_can_be_provisioned_on_any_node() -> None:
    fleet = fleet_of([claim()], classes=[waiting_class()])
    assert open_nodes(user(), fleet) == "abc"
    assert volume_actions(user(), "b", fleet) == (SelectNode("default/data", "b", user()),)


def test_an_existing_volume_is_taken_before_a_new_one_is_made() -> None:
    fleet = fleet_of([claim()], [volume("pv-b", node="b")], [waiting_class()])
    assert open_nodes(user(), fleet) == "abc"
    assert bound_to(user(), fleet.fork(), "b") == {"data": "pv-b"}
    assert bound_to(user(), fleet.fork(), "c") == {"data": "new"}


def test_allowed_topologies_limit_where_volumes_are_made() -> None:
    only_y = waiting_class(allowed_topologies=(NodeSelectorTerm((equal(ZONE, "y", "z"),)),))
    fleet = fleet_of([claim()], classes=[only_y])
    assert open_nodes(user(), fleet) == "c"
    assert blocks(user(), fleet)["a"] == Block(
        "VolumeNodeConflict", "storage class disk makes no volumes there"
    )


def test_a_selected_node_is_the_only_one_and_is_not_written_again() -> None:
    fleet = fleet_of([claim(selected="b")], classes=[waiting_class()])
    assert open_nodes(user(), fleet) == "b"
    assert blocks(user(), fleet)["a"] == Block(
        "VolumeNodeConflict", "claim default/data is being bound for b"
    )
    assert volume_actions(user(), "b", fleet) == ()


def test_pods_that_share_an_unbound_claim_stay_together_within_one_decision() -> None:
    fleet = fleet_of([claim(modes=["ReadWriteMany"])], classes=[waiting_class()])
    second = prepare_nodes(user("second"), fleet)
    assert second is not None
    account = fleet.place(user("first"), "b")
    second.placed(user("first"), account)
    assert [name for name, each in fleet.accounts.items() if second(each) is None] == ["b"]


def test_a_selected_node_where_nothing_can_be_provisioned_is_still_out() -> None:
    assert open_nodes(user(), fleet_of([claim(selected="b")], [volume(node="b")], [LOCAL])) == ""


def tracked(*capacities: StorageCapacity) -> dict[str, Any]:
    driver = CSIDriver("disk.example.com", capacity_tracked=True)
    return {"csi_drivers": {driver.name: driver}, "storage_capacities": capacities}


def capacity(
    gi: int, where: LabelSelector | None, maximum: int | None = None, name: str = "disk"
) -> StorageCapacity:
    return StorageCapacity(name, gi * GI, where, maximum * GI if maximum is not None else None)


def on_host(name: str) -> LabelSelector:
    return LabelSelector((equal(HOST, name),))


def test_storage_capacity_limits_where_volumes_are_made() -> None:
    left = tracked(
        capacity(5, on_host("a")), capacity(20, on_host("b")), capacity(90, on_host("a"), name="tape")
    )
    fleet = fleet_of([claim(size="10Gi")], classes=[waiting_class()], **left)
    assert open_nodes(user(), fleet) == "b"
    detail = "storage class disk"
    assert blocks(user(), fleet) == {
        "a": Block("StorageCapacityExceeded", detail, need=10 * GI, have=5 * GI),
        "b": None,
        "c": Block("StorageCapacityExceeded", detail, need=10 * GI, have=0),
    }


def test_the_largest_single_volume_counts_where_it_is_known() -> None:
    fleet = fleet_of(
        [claim(size="10Gi")], classes=[waiting_class()], **tracked(capacity(99, on_host("a"), 5))
    )
    assert open_nodes(user(), fleet) == ""


def test_every_label_that_a_capacity_names_must_match() -> None:
    a_in_y = LabelSelector((equal(HOST, "a"), equal(ZONE, "y")))
    a_in_x = LabelSelector((equal(HOST, "a"), equal(ZONE, "x")))
    for topology, expected in ((a_in_y, ""), (a_in_x, "a")):
        fleet = fleet_of([claim()], classes=[waiting_class()], **tracked(capacity(9, topology)))
        assert open_nodes(user(), fleet) == expected


def test_a_capacity_that_matches_every_node_or_none_does_so() -> None:
    anywhere = fleet_of([claim()], classes=[waiting_class()], **tracked(capacity(9, LabelSelector())))
    nowhere = fleet_of([claim()], classes=[waiting_class()], **tracked(capacity(9, None)))
    assert (open_nodes(user(), anywhere), open_nodes(user(), nowhere)) == ("abc", "")


def test_capacity_does_not_matter_where_the_driver_does_not_track_it() -> None:
    untracked: dict[str, Any] = {"csi_drivers": {"disk.example.com": CSIDriver("disk.example.com")}}
    assert open_nodes(user(), fleet_of([claim()], classes=[waiting_class()], **untracked)) == "abc"


def test_capacity_that_is_used_up_meanwhile_does_not_move_a_claim_whose_node_is_selected() -> None:
    fleet = fleet_of(
        [claim(selected="a", size="10Gi")], classes=[waiting_class()], **tracked(capacity(1, on_host("a")))
    )
    assert open_nodes(user(), fleet) == "a"


# attach limits


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


# properties


@st.composite
def stocks(draw: st.DrawFn) -> tuple[list[Claim], list[Volume], list[Pod]]:
    claims = [
        claim(
            f"c{i}",
            size=f"{draw(st.integers(1, 3))}Gi",
            modes=draw(st.sampled_from([["ReadWriteOnce"], ["ReadWriteMany"], ["ReadWriteOncePod"]])),
            storage_class=draw(st.sampled_from(["disk", "local"])),
        )
        for i in range(draw(st.integers(1, 4)))
    ]
    volumes = [
        volume(
            f"v{i}",
            size=f"{draw(st.integers(1, 4))}Gi",
            modes=["ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"],
            storage_class=draw(st.sampled_from(["disk", "local"])),
            node=draw(st.sampled_from(["", "a", "b", "c"])),
        )
        for i in range(draw(st.integers(0, 5)))
    ]
    users = [
        user(
            f"p{i}",
            *draw(
                st.lists(st.sampled_from(claims).map(lambda c: c.name), min_size=1, max_size=2, unique=True)
            ),
        )
        for i in range(draw(st.integers(1, 4)))
    ]
    return claims, volumes, users


CLASSES = [waiting_class("disk"), waiting_class("local", provisioner=NO_PROVISIONER)]


@given(stocks(), st.data())
def test_a_decision_promises_each_volume_once_and_each_claim_one_place(
    stock: tuple[list[Claim], list[Volume], list[Pod]], data: st.DataObject
) -> None:
    claims, volumes, users = stock
    fleet = fleet_of(claims, volumes, CLASSES)
    by_name = {v.name: v for v in volumes}
    told = {u.key: (prepare_use(u, fleet), prepare_nodes(u, fleet)) for u in users}
    got: dict[str, tuple[str, str]] = {}
    for incoming in users:
        choices = open_nodes(incoming, fleet)
        use, places = told[incoming.key]
        for name, account in fleet.accounts.items():
            fits = (use is None or use(account) is None) and (places is None or places(account) is None)
            assert fits == (name in choices)
        if not choices:
            continue
        where = data.draw(st.sampled_from(choices))
        account = fleet.place(incoming, where)
        for action in volume_actions(incoming, where, fleet):
            place = (action.volume, where) if isinstance(action, BindVolume) else ("", where)
            assert got.setdefault(action.claim, place) == place
        assert {f"default/{name}" for name in incoming.shape.claims} <= got.keys()
        for checks in told.values():
            for check in checks:
                if check is not None:
                    check.placed(incoming, account)
    taken = [name for name, _ in got.values() if name]
    assert len(set(taken)) == len(taken)
    for key, (name, where) in got.items():
        wanted = next(c for c in claims if c.key == key)
        if name:
            v = by_name[name]
            assert v.capacity >= wanted.request
            assert v.storage_class == wanted.storage_class
            assert v.node_affinity is None or v.node_affinity.matches(where, {HOST: where})
        else:
            assert wanted.storage_class == "disk"


def test_a_volume_is_found_however_it_is_tied_to_its_nodes() -> None:
    either = nodes_where(equal(ZONE, "y")).terms + nodes_where(equal(HOST, "a")).terms
    not_x = NodeSelector((NodeSelectorTerm((Requirement(ZONE, "NotIn", ("x",)),)),))
    elsewhere = msgspec.structs.replace(volume(), node_affinity=not_x)
    assert open_nodes(user(), fleet_of([claim()], [elsewhere], [LOCAL])) == "c"
    tied = msgspec.structs.replace(volume(), node_affinity=NodeSelector(either))
    assert open_nodes(user(), fleet_of([claim()], [tied], [LOCAL])) == "ac"
