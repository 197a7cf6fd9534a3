"""The device manager of a simulated kubelet: no device goes to two pods, and what was recorded comes back."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from gpufleet.devices.picks import Picks
from gpufleet.devices.plugin_config import PluginConfig, SharedResource, Sharing
from gpufleet.devices.plugin_node import PluginNode
from gpufleet.devices.simulated_node import simulated_inventory
from gpufleet.fleet.devices import DeviceClaim, device_of
from gpufleet.fleet.mig import GEOMETRIES, layout
from gpufleet.fleet.products import find_product
from gpufleet.kube.gpunode import GPUAllocation
from gpufleet.local.simnodes.device_manager import Holder, Holdings, Shortage

GPU, SHARED, SLICE = "nvidia.com/gpu", "nvidia.com/gpu.shared", "nvidia.com/mig-1g.10gb"
BALANCED = layout(GEOMETRIES["h100-80gb"], "all-balanced")


class Played(msgspec.Struct, frozen=True):
    """A node with its holdings: what a test does to it gives another one."""

    node: PluginNode
    holdings: Holdings = Holdings()

    def take(self, pod: str, *claims: DeviceClaim) -> Holdings | Shortage:
        def prefer(resource: str, available: object, must: object, size: int) -> object:
            return self.node.preferred(resource, Picks(), available, must, size)  # type: ignore[arg-type]

        return self.holdings.allocate(holder(pod), claims, self.node.offer, prefer)  # type: ignore[arg-type]

    def after(self, pod: str, count: int, resource: str = GPU) -> Played:
        taken = self.take(pod, DeviceClaim("main", resource, count))
        assert isinstance(taken, Holdings)
        return Played(self.node, taken)

    def released(self, pod: str) -> Played:
        return Played(self.node, self.holdings.release(f"uid-{pod}"))

    def sick(self, *indexes: int) -> Played:
        gone = {self.node.inventory.gpus[index % len(self.node.inventory.gpus)].uuid for index in indexes}
        return Played(self.node.derive(self.node.inventory, self.node.config, gone), self.holdings)

    def indexes(self, pod: str) -> list[int]:
        index = {gpu.uuid: gpu.index for gpu in self.node.inventory.gpus}
        return [index[uuid] for held in self.holdings.of(f"uid-{pod}") for uuid in held.devices]


def holder(pod: str) -> Holder:
    return Holder("default", pod, f"uid-{pod}")


def played(product: str, count: int, profiles: tuple[str, ...] | None = None, replicas: int = 1) -> Played:
    sharing = Sharing("time-slicing", (SharedResource(GPU, replicas, SHARED),)) if replicas > 1 else Sharing()
    inventory = simulated_inventory(find_product(product), count, node="f/n", profiles=profiles)
    return Played(PluginNode().derive(inventory, PluginConfig(mig_strategy="mixed", sharing=sharing), ()))


WHOLE, CUT, SLICED = played("h100", 8), played("h100", 2, BALANCED), played("l4", 2, replicas=3)
_NODES = st.sampled_from([WHOLE, CUT, SLICED])
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(0, 5), st.integers(1, 4)),
        st.tuples(st.just("release"), st.integers(0, 5), st.just(0)),
        st.tuples(st.just("break"), st.integers(0, 7), st.just(0)),
    ),
    max_size=25,
)


@given(_NODES, _STEPS)
def test_no_device_id_is_ever_held_by_two_pods(node: Played, steps: list[tuple[str, int, int]]) -> None:
    resources = [one.name for one in node.node.offer.resources]
    broken: set[str] = set()
    for step, (kind, number, count) in enumerate(steps):
        if kind == "take" and not node.holdings.of(f"uid-p{number}"):
            resource = resources[(number + step) % len(resources)]
            after = node.take(f"p{number}", DeviceClaim("main", resource, count))
            if isinstance(after, Shortage):
                assert after.available is not None
                assert after.available < count
            else:
                given_out = {one for held in after.of(f"uid-p{number}") for one in held.ids}
                gpus = {d.gpu for r in node.node.offer.resources for d in r.devices if d.id in given_out}
                assert not gpus & broken
                node = Played(node.node, after)
        elif kind == "release":
            node = node.released(f"p{number}")
        elif kind == "break":
            node = node.sick(number)
            broken = {node.node.inventory.gpus[number % len(node.node.inventory.gpus)].uuid}
        ids = [one for holding in node.holdings.all for one in holding.ids]
        assert len(ids) == len(set(ids))


_CLAIMS = st.lists(st.tuples(st.integers(1, 3), st.booleans()), min_size=1, max_size=3)


@given(_NODES, st.lists(_CLAIMS, max_size=4))
def test_recorded_allocations_restore_what_every_container_held(
    node: Played, pods: list[list[tuple[int, bool]]]
) -> None:
    resource = node.node.offer.resources[0].name
    for number, counts in enumerate(pods):
        claims = [DeviceClaim(f"c{n}", resource, count, init) for n, (count, init) in enumerate(counts)]
        after = node.take(f"p{number}", *claims)
        node = Played(node.node, after) if isinstance(after, Holdings) else node
    encoded = msgspec.json.encode(node.holdings.allocations())
    read_back = msgspec.json.decode(encoded, type=tuple[GPUAllocation, ...])
    assert Holdings().restore(read_back, node.node.offer) == node.holdings


def test_what_was_recorded_and_is_gone_or_taken_is_not_restored() -> None:
    one = played("l4", 1, replicas=3)
    held = one.after("a", 2, SHARED).holdings.allocations()
    assert Holdings().restore(held, played("l4", 1).node.offer) == Holdings()
    taken = one.after("b", 1, SHARED)
    back = taken.holdings.restore(held, taken.node.offer)
    assert [holding.ids for holding in back.of("uid-a")] == [held[0].ids[1:]]


def test_the_lowest_free_index_is_given_first() -> None:
    node = WHOLE.after("a", 2).after("b", 1)
    assert (node.indexes("a"), node.indexes("b")) == ([0, 1], [2])
    assert node.released("a").after("c", 3).indexes("c") == [0, 1, 3]


def test_a_pod_gets_all_its_claims_or_none() -> None:
    assert WHOLE.take("p", DeviceClaim("a", GPU, 6), DeviceClaim("b", GPU, 3)) == Shortage(GPU, 3, 2)


def test_an_unknown_resource_is_told_apart_from_a_used_up_one() -> None:
    assert WHOLE.take("p", DeviceClaim("a", SLICE, 1)) == Shortage(SLICE, 1, None)
    assert WHOLE.after("q", 8).take("p", DeviceClaim("a", GPU, 1)) == Shortage(GPU, 1, 0)


def test_devices_of_init_containers_serve_the_later_containers_of_the_pod() -> None:
    claims = (
        DeviceClaim("init", GPU, 2, reusable=True),
        DeviceClaim("main", GPU, 1),
        DeviceClaim("side", GPU, 2),
    )
    holdings = played("h100", 3).take("p", *claims)
    assert isinstance(holdings, Holdings)
    init, main, side = (set(holding.ids) for holding in holdings.all)
    assert main < init
    assert not main & side
    assert len(init | side) == 3


def test_shared_gpus_spread_within_a_pod_and_over_pods() -> None:
    node = SLICED.after("a", 1, SHARED).after("b", 1, SHARED)
    assert (node.indexes("a"), node.indexes("b")) == ([0], [1])
    assert node.after("c", 2, SHARED).indexes("c") == [0, 1]


def test_instances_of_a_gpu_in_use_are_given_before_those_of_an_idle_one() -> None:
    node = CUT.after("a", 1, SLICE)
    busy = frozenset({node.node.inventory.gpus[0].uuid})
    node = Played(msgspec.structs.replace(node.node, busy=busy), node.holdings).after("b", 1, SLICE)
    on_first = {c.uuid for i in node.node.inventory.gpus[0].instances for c in i.compute}
    assert {device_of(one) for held in node.holdings.all for one in held.ids} <= on_first


def test_a_pod_keeps_the_sick_gpu_that_it_holds_and_nobody_else_gets_it() -> None:
    node = played("h100", 3).after("a", 1).sick(0)
    assert node.after("b", 1).indexes("b") == [1]
    assert node.indexes("a") == [0]
