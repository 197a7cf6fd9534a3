"""Simulated GPUs: no device goes to two pods, and readings follow who holds what."""

from __future__ import annotations

import re
from itertools import pairwise

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from gpufleet.devices import report
from gpufleet.devices.simulated import Claim, Holder, NodeDevices, Shortage, device_of, make_devices
from gpufleet.fleet.mig import GEOMETRIES, layout
from gpufleet.fleet.products import find_product
from gpufleet.kube.gpunode import GPUAllocation

H100, L4 = find_product("h100"), find_product("l4")
GPU = "nvidia.com/gpu"
BALANCED = layout(GEOMETRIES["h100-80gb"], "all-balanced")


def _whole(count: int = 8) -> NodeDevices:
    return make_devices("f", "n", H100, count)


def _cut() -> NodeDevices:
    return make_devices("f", "n", H100, 2, profiles=BALANCED)


def _shared(count: int = 2, replicas: int = 3) -> NodeDevices:
    return make_devices("f", "n", L4, count, replicas=replicas, renamed=True)


def _pod(name: str) -> Holder:
    return Holder("default", name, f"uid-{name}")


def _take(state: NodeDevices, pod: str, count: int, resource: str = GPU, now: float = 0.0) -> NodeDevices:
    after = state.allocate(_pod(pod), [Claim("main", resource, count)], now)
    assert isinstance(after, NodeDevices)
    return after


def _indexes(state: NodeDevices, pod: str) -> list[int]:
    index = {device.uuid: device.index for device in state.devices}
    return [index[uuid] for holding in state.held(f"uid-{pod}") for uuid in holding.devices]


def _emptied(state: NodeDevices) -> NodeDevices:
    for holding in state.holdings:
        state = state.release(holding.holder.uid, 0.0)
    return state


_STATES = st.sampled_from([_whole(), _cut(), _shared()])
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(0, 5), st.integers(1, 4)),
        st.tuples(st.just("release"), st.integers(0, 5), st.just(0)),
        st.tuples(st.just("break"), st.integers(0, 7), st.just(0)),
    ),
    max_size=25,
)


@given(_STATES, _STEPS)
def test_no_device_id_is_ever_held_by_two_pods(state: NodeDevices, steps: list[tuple[str, int, int]]) -> None:
    resources = [offer.resource for offer in state.offers()]
    for step, (kind, number, count) in enumerate(steps):
        if kind == "take" and not state.held(f"uid-p{number}"):
            resource = resources[(number + step) % len(resources)]
            after = state.allocate(_pod(f"p{number}"), [Claim("main", resource, count)], float(step))
            if isinstance(after, Shortage):
                assert after.available is not None
                assert after.available < count
            else:
                broken = {device.uuid for device in state.devices if device.fault}
                assert not broken & {uuid for h in after.held(f"uid-p{number}") for uuid in h.devices}
                state = after
        elif kind == "release":
            state = state.release(f"uid-p{number}", float(step))
        elif kind == "break":
            state = state.with_health({number: "Xid79"}, ())
        ids = [one for holding in state.holdings for one in holding.ids]
        assert len(ids) == len(set(ids))


_CLAIMS = st.lists(st.tuples(st.integers(1, 3), st.booleans()), min_size=1, max_size=3)


@given(_STATES, st.lists(_CLAIMS, max_size=4))
def test_recorded_allocations_restore_what_every_container_held(
    state: NodeDevices, pods: list[list[tuple[int, bool]]]
) -> None:
    resource = state.offers()[0].resource
    for number, counts in enumerate(pods):
        claims = [Claim(f"c{n}", resource, count, init) for n, (count, init) in enumerate(counts)]
        after = state.allocate(_pod(f"p{number}"), claims, 0.0)
        state = after if isinstance(after, NodeDevices) else state
    read_back = msgspec.json.decode(
        msgspec.json.encode(report.allocations(state)), type=tuple[GPUAllocation, ...]
    )
    back = report.restored(_emptied(state), read_back, 5.0)
    assert back.holdings == state.holdings
    assert back.offers() == state.offers()
    claim = [Claim("main", resource, 1)]
    assert isinstance(back.allocate(_pod("q"), claim, 6.0), type(state.allocate(_pod("q"), claim, 6.0)))


def test_what_was_recorded_and_is_gone_or_taken_is_not_restored() -> None:
    held = report.allocations(_take(_shared(1, 3), "a", 2, "nvidia.com/gpu.shared"))
    smaller = report.restored(_shared(1, 1), held, 0.0)
    assert smaller.holdings == ()
    taken = report.restored(_take(_shared(1, 3), "b", 1, "nvidia.com/gpu.shared"), held, 0.0)
    assert [holding.ids for holding in taken.held("uid-a")] == [held[0].ids[1:]]


def test_the_lowest_free_index_is_given_first() -> None:
    state = _take(_take(_whole(), "a", 2), "b", 1)
    assert (_indexes(state, "a"), _indexes(state, "b")) == ([0, 1], [2])
    assert _indexes(_take(state.release("uid-a", 1.0), "c", 3), "c") == [0, 1, 3]


def test_a_pod_gets_all_its_claims_or_none() -> None:
    claims = [Claim("a", GPU, 6), Claim("b", GPU, 3)]
    assert _whole().allocate(_pod("p"), claims, 0.0) == Shortage(GPU, 3, 2)


def test_an_unknown_resource_is_told_apart_from_a_used_up_one() -> None:
    claim = [Claim("a", "nvidia.com/mig-1g.10gb", 1)]
    assert _whole().allocate(_pod("p"), claims=claim, now=0.0) == Shortage("nvidia.com/mig-1g.10gb", 1, None)
    assert _take(_whole(2), "q", 2).allocate(_pod("p"), [Claim("a", GPU, 1)], 0.0) == Shortage(GPU, 1, 0)


def test_devices_of_init_containers_serve_the_later_containers_of_the_pod() -> None:
    claims = [Claim("init", GPU, 2, reusable=True), Claim("main", GPU, 1), Claim("side", GPU, 2)]
    state = _whole(3).allocate(_pod("p"), claims, 0.0)
    assert isinstance(state, NodeDevices)
    init, main, side = (set(holding.ids) for holding in state.holdings)
    assert main < init
    assert not main & side
    assert len(init | side) == 3


def test_shared_gpus_spread_within_a_pod_and_pack_across_pods() -> None:
    resource = "nvidia.com/gpu.shared"
    state = _take(_shared(), "a", 1, resource)
    state = _take(state, "b", 1, resource)
    assert _indexes(state, "a") == _indexes(state, "b") == [0]
    state = _take(state, "c", 2, resource)
    assert _indexes(state, "c") == [0, 1]
    assert [(o.capacity, o.healthy) for o in state.offers()] == [(6, 6)]


def test_a_cut_gpu_offers_its_instances_and_not_itself() -> None:
    offers = {offer.resource: offer.capacity for offer in _cut().offers()}
    assert offers == {"nvidia.com/mig-1g.10gb": 4, "nvidia.com/mig-2g.20gb": 2, "nvidia.com/mig-3g.40gb": 2}


def test_sick_and_quarantined_gpus_are_not_given_and_stay_with_their_holder() -> None:
    state = _take(_whole(3), "a", 1)
    state = state.with_health({0: "Xid79"}, [state.devices[1].uuid])
    assert [(o.capacity, o.healthy) for o in state.offers()] == [(3, 1)]
    assert _indexes(_take(state, "b", 1), "b") == [2]
    assert _indexes(state, "a") == [0]
    assert [state.why_unusable(device) for device in state.devices] == ["Xid79", "Quarantined", ""]
    assert [o.healthy for o in state.with_health({}, ()).offers()] == [3]


def test_uuids_follow_from_fleet_node_and_index_alone() -> None:
    assert make_devices("f", "n", H100, 8) == make_devices("f", "n", H100, 8)
    everywhere = [make_devices(f, n, H100, 8).devices for f in "fg" for n in "nm"]
    assert len({device.uuid for devices in everywhere for device in devices}) == 32
    pattern = r"(GPU|MIG)-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    instances = [i.uuid for device in _cut().devices for i in device.instances or ()]
    assert all(re.fullmatch(pattern, uuid) for uuid in [_cut().devices[0].uuid, *instances])
    assert len(instances) == len(set(instances)) == 8


def test_a_gpu_warms_up_smoothly_while_held_and_cools_down_after() -> None:
    idle = _whole(1)
    busy = _take(idle, "a", 1, now=100.0)
    device = busy.devices[0]
    utils = [busy.reading(device, 100.0 + second).util_percent for second in range(30)]
    assert utils[0] == 0
    assert utils[29] > 85
    assert max(abs(b - a) for a, b in pairwise(utils)) < 30
    hot, cold = busy.reading(device, 400.0), idle.reading(device, 400.0)
    assert hot.temperature_c > cold.temperature_c + 30
    assert hot.power_w > 5 * cold.power_w
    assert cold.memory_used_mib < 0.02 * H100.memory_mib < 0.8 * H100.memory_mib < hot.memory_used_mib
    assert [busy.settled(100.0 + second) for second in (0, 30)] == [False, True]
    after = busy.release("uid-a", 400.0)
    assert after.reading(device, 400.0) == hot
    assert after.reading(device, 1000.0).util_percent == 0


@given(_STATES, st.floats(0, 1e6), st.integers(1, 4))
def test_readings_stay_within_what_the_product_can_do(state: NodeDevices, now: float, count: int) -> None:
    after = state.allocate(_pod("p"), [Claim("c", state.offers()[0].resource, count)], 0.0)
    state = after if isinstance(after, NodeDevices) else state
    for device in state.devices:
        reading = state.reading(device, now)
        assert 0 <= reading.util_percent <= 100
        assert 0 <= reading.memory_used_mib <= device.product.memory_mib
        assert 25 <= reading.temperature_c <= 90
        assert 0 < reading.power_w <= device.product.power_w


def test_the_report_counts_gpus_not_instances() -> None:
    state = _take(_cut(), "a", 1, "nvidia.com/mig-1g.10gb")
    status = report.device_status(state, 0.0)
    assert status.summary is not None
    assert (status.summary.gpus, status.summary.allocated, status.summary.unhealthy) == (2, 1, 0)
    assert status.summary.mig == "4x1g.10gb,2x2g.20gb,2x3g.40gb"
    assert status.allocations[0].devices == (state.holdings[0].ids[0],)
    assert [len(device.instances) for device in status.devices] == [4, 4]


def test_the_report_names_a_shared_gpu_by_its_uuid() -> None:
    state = _take(_shared(), "a", 2, "nvidia.com/gpu.shared")
    devices = report.allocations(state)[0].devices
    assert set(devices) == {device.uuid for device in state.devices}
    assert all(device_of(one) == one for one in devices)


def test_a_node_without_gpus_offers_nothing() -> None:
    assert NodeDevices().offers() == ()
    status = report.device_status(NodeDevices(), 0.0)
    assert (status.devices, status.resources, status.allocations) == ((), (), ())
