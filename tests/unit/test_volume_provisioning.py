"""Where a claim that waits for its first consumer gets a volume: one that exists, or a new one."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.fleets import HOST, ZONE, claim, equal, nodes_where, selector, volume, waiting_class
from tests.unit.storage_fleets import LOCAL, blocks, bound_to, fleet_of, open_nodes, user

from gpufleet.fleet.plans import BindVolume, SelectNode
from gpufleet.fleet.pods import Pod
from gpufleet.fleet.selectors import LabelSelector, NodeSelector, NodeSelectorTerm, Requirement
from gpufleet.fleet.volumes import Claim, CSIDriver, StorageCapacity, Volume
from gpufleet.scheduling.placement import Block
from gpufleet.scheduling.provisioning import NO_PROVISIONER
from gpufleet.scheduling.volumes import prepare_nodes, prepare_use, volume_actions

# existing volumes


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


def test_a_volume_is_found_however_it_is_tied_to_its_nodes() -> None:
    either = nodes_where(equal(ZONE, "y")).terms + nodes_where(equal(HOST, "a")).terms
    not_x = NodeSelector((NodeSelectorTerm((Requirement(ZONE, "NotIn", ("x",)),)),))
    elsewhere = msgspec.structs.replace(volume(), node_affinity=not_x)
    assert open_nodes(user(), fleet_of([claim()], [elsewhere], [LOCAL])) == "c"
    tied = msgspec.structs.replace(volume(), node_affinity=NodeSelector(either))
    assert open_nodes(user(), fleet_of([claim()], [tied], [LOCAL])) == "ac"


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


# storage capacity


GI = 2**30


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
