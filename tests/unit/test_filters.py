"""What keeps a pod off a node when only that node is looked at, and the reason that is given."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.fleets import (
    GPU,
    HOST,
    PRODUCT,
    equal,
    ledger,
    node,
    nodes_where,
    pod,
    toleration,
)

from gpufleet.fleet.nodes import Node
from gpufleet.fleet.pods import HostPort, Pod, PodShape
from gpufleet.fleet.reasons import CODES
from gpufleet.fleet.selectors import NodeSelector, NodeSelectorTerm, Requirement, Toleration
from gpufleet.scheduling.filters import FILTERS, pod_problem
from gpufleet.scheduling.ledger import Ledger
from gpufleet.scheduling.placement import Block
from gpufleet.scheduling.scores import SCORES


def first_block(incoming: Pod, fleet: Ledger, name: str = "a") -> Block | None:
    for rule in FILTERS:
        check = rule.prepare(incoming, fleet)
        block = check(fleet.accounts[name]) if check is not None else None
        if block is not None:
            return block
    return None


def block_on(target: Node, incoming: Pod, *running: Pod) -> Block | None:
    return first_block(incoming, ledger([target], running), target.name)


def test_an_empty_node_takes_a_small_pod() -> None:
    assert block_on(node(gpus=8), pod(gpus=1)) is None


def test_the_tables_use_documented_codes_and_unique_names() -> None:
    assert {score.reason for score in SCORES} <= CODES.keys()
    assert len({rule.name for rule in FILTERS}) == len(FILTERS)
    assert len({score.name for score in SCORES}) == len(SCORES)


# nodes that take no pods at all


def test_a_node_with_a_pod_that_cannot_be_read_takes_nobody() -> None:
    dark = msgspec.structs.replace(node(gpus=8), unread_pods=("ns/p", "ns/q"))
    assert block_on(dark, pod(gpus=1)) == Block("NodeUnaccounted", "ns/p, ns/q")


def test_a_node_that_is_not_ready_is_out_before_anyone_tainted_it() -> None:
    assert block_on(node(ready=False), pod()) == Block("NodeNotReady", "the node is not ready")


def test_a_node_that_is_not_ready_takes_a_pod_that_tolerates_what_it_is_tainted_with() -> None:
    sick = node(ready=False, taints=["node.kubernetes.io/not-ready:NoSchedule"])
    assert block_on(sick, pod(tolerations=["node.kubernetes.io/not-ready"])) is None
    assert block_on(sick, pod(tolerations=["node.kubernetes.io/unreachable"])) is not None
    lost = node(ready=False, taints=["node.kubernetes.io/unreachable:NoSchedule"])
    assert block_on(lost, pod(tolerations=["node.kubernetes.io/unreachable"])) is None
    assert block_on(lost, pod(tolerations=["node.kubernetes.io/not-ready"])) is not None


def test_an_untainted_node_that_is_not_ready_asks_for_both_tolerations() -> None:
    sick = node(ready=False)
    assert block_on(sick, pod(tolerations=["node.kubernetes.io/not-ready"])) is not None
    both = pod(tolerations=["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"])
    assert block_on(sick, both) is None


def test_tolerating_only_eviction_does_not_bring_a_pod_onto_a_node_that_is_not_ready() -> None:
    """Every pod gets NoExecute tolerations for five minutes by default; they are not an invitation."""
    usual = ["node.kubernetes.io/not-ready:NoExecute", "node.kubernetes.io/unreachable:NoExecute"]
    block = block_on(
        node(ready=False, taints=["node.kubernetes.io/not-ready:NoExecute"]), pod(tolerations=usual)
    )
    assert block is not None
    assert block.code == "NodeNotReady"


def test_a_cordoned_node_is_out_unless_the_pod_tolerates_cordons() -> None:
    assert block_on(node(unschedulable=True), pod()) == Block("NodeUnschedulable", "the node is cordoned")
    daemon = pod(tolerations=["node.kubernetes.io/unschedulable:NoSchedule"])
    assert block_on(node(unschedulable=True), daemon) is None


# taints


@pytest.mark.parametrize("effect", ["NoSchedule", "NoExecute"])
def test_a_taint_that_is_not_tolerated_is_named(effect: str) -> None:
    block = block_on(node(taints=[f"nvidia.com/gpu=present:{effect}"]), pod())
    assert block == Block("UntoleratedTaint", f"taint nvidia.com/gpu=present:{effect}")


def test_a_taint_that_only_asks_to_stay_away_blocks_nothing() -> None:
    assert block_on(node(taints=["a=b:PreferNoSchedule"]), pod()) is None


@pytest.mark.parametrize(
    ("given", "tolerated"),
    [
        (toleration("gpu=h100:NoSchedule"), True),
        (toleration("gpu=h100"), True),
        (toleration("gpu"), True),
        (toleration("*"), True),
        (toleration("gpu=l4:NoSchedule"), False),
        (toleration("gpu:NoExecute"), False),
        (toleration("cpu"), False),
        (Toleration(operator="Equal"), False),
    ],
)
def test_a_toleration_covers_what_it_names(given: Toleration, tolerated: bool) -> None:
    block = block_on(node(taints=["gpu=h100:NoSchedule"]), pod(tolerations=[given]))
    assert (block is None) == tolerated


def test_the_first_taint_that_is_not_tolerated_is_the_one_named() -> None:
    tainted = node(taints=["a:NoSchedule", "b:PreferNoSchedule", "c:NoSchedule"])
    block = block_on(tainted, pod(tolerations=["a"]))
    assert block == Block("UntoleratedTaint", "taint c:NoSchedule")


# node selector and node affinity


def test_a_node_selector_names_the_label_that_differs() -> None:
    wanted = {PRODUCT: "NVIDIA-H200"}
    expected = Block("NodeSelectorMismatch", f"label {PRODUCT} is not NVIDIA-H200")
    assert block_on(node(labels={PRODUCT: "NVIDIA-L4"}), pod(node_selector=wanted)) == expected
    assert block_on(node(), pod(node_selector=wanted)) == expected
    assert block_on(node(labels=wanted), pod(node_selector=wanted)) is None


def affinity_block(target: Node, *terms: NodeSelectorTerm) -> Block | None:
    return block_on(target, pod(node_affinity=NodeSelector(terms)))


@pytest.mark.parametrize(
    ("requirement", "failure"),
    [
        (equal("pool", "train"), "label pool is not train"),
        (equal("pool", "train", "serve"), "label pool is not one of train, serve"),
        (Requirement("pool", "NotIn", ("batch",)), "label pool is batch"),
        (Requirement("pool", "NotIn", ("batch", "dev")), "label pool is one of batch, dev"),
        (Requirement("fast", "Exists"), "label fast is missing"),
        (Requirement("pool", "DoesNotExist"), "label pool is set"),
        (Requirement("memory", "Gt", ("80",)), "label memory is not above 80"),
        (Requirement("memory", "Lt", ("80",)), "label memory is not below 80"),
        (Requirement("pool", "Gt", ("80",)), "label pool is not above 80"),
        (Requirement("pool", "Like", ("b*",)), "label pool is asked for by the unknown operator Like"),
    ],
)
def test_a_required_node_affinity_says_what_failed(requirement: Requirement, failure: str) -> None:
    target = node(labels={"pool": "batch", "memory": "80"})
    assert affinity_block(target, NodeSelectorTerm((requirement,))) == Block("NodeAffinityMismatch", failure)


def test_terms_of_a_required_node_affinity_are_alternatives() -> None:
    east, west = (NodeSelectorTerm((equal("zone", z),)) for z in ("east", "west"))
    assert affinity_block(node(labels={"zone": "west"}), east, west) is None
    assert affinity_block(node(labels={"zone": "north"}), east, west) == Block(
        "NodeAffinityMismatch", "label zone is not east, and label zone is not west"
    )


def test_all_requirements_of_a_term_must_hold() -> None:
    term = NodeSelectorTerm((equal("zone", "east"), equal("pool", "train")))
    assert affinity_block(node(labels={"zone": "east", "pool": "train"}), term) is None
    assert affinity_block(node(labels={"zone": "east"}), term) is not None


def test_a_term_over_the_node_name_finds_that_node() -> None:
    term = NodeSelectorTerm(fields=(equal("metadata.name", "a"),))
    assert affinity_block(node("a"), term) is None
    assert affinity_block(node("b"), term) == Block("NodeAffinityMismatch", "the node's name is not a")


def test_a_selector_without_terms_or_with_an_empty_term_names_no_node() -> None:
    assert affinity_block(node()) == Block("NodeAffinityMismatch", "the affinity names no node")
    assert affinity_block(node(), NodeSelectorTerm()) is not None


def test_node_selector_and_node_affinity_must_both_hold() -> None:
    both = pod(node_selector={"pool": "train"}, node_affinity=nodes_where(equal("zone", "east")))
    assert block_on(node(labels={"pool": "train", "zone": "east"}), both) is None
    assert block_on(node(labels={"pool": "train", "zone": "west"}), both) is not None
    assert block_on(node(labels={"pool": "serve", "zone": "east"}), both) is not None


# resources


def test_too_few_free_gpus_is_a_shortage_that_passes() -> None:
    block = block_on(node(gpus=8), pod(gpus=4), pod("other", gpus=6, node="a"))
    assert block == Block("InsufficientResource", GPU, need=4, have=2)


def test_more_gpus_than_the_node_has_never_fit() -> None:
    assert block_on(node(gpus=4), pod(gpus=8)) == Block("ExceedsNodeCapacity", GPU, need=8, have=4)


def test_gpus_that_are_sick_are_told_from_gpus_that_are_not_there() -> None:
    half = node(gpus=2, sick=2)
    assert block_on(half, pod(gpus=2)) is None
    assert block_on(half, pod(gpus=3)) == Block("DeviceUnhealthy", GPU, need=3, have=2, total=4)
    assert block_on(half, pod(gpus=5)) == Block("ExceedsNodeCapacity", GPU, need=5, have=4)
    assert block_on(node(sick=4), pod(gpus=1)) == Block("DeviceUnhealthy", GPU, need=1, have=0, total=4)
    busy = block_on(half, pod(gpus=2), pod("other", gpus=1, node="a"))
    assert busy == Block("InsufficientResource", GPU, need=2, have=1)


@pytest.mark.parametrize("offered", [{}, {"nvidia.com/mig-1g.10gb": 0}])
def test_a_resource_that_the_node_lacks_is_not_offered(offered: dict[str, int | str]) -> None:
    block = block_on(node(resources=offered), pod(resources={"nvidia.com/mig-1g.10gb": 1}))
    assert block == Block("ResourceNotOffered", "nvidia.com/mig-1g.10gb", need=1)


def test_a_full_node_runs_too_many_pods() -> None:
    block = block_on(node(pods=1), pod(), pod("other", node="a"))
    assert block == Block("TooManyPods", "pods", need=1, have=0)


def test_a_shortage_that_no_waiting_cures_is_named_before_one_that_passes() -> None:
    block = block_on(node(gpus=8, cpu="4"), pod(gpus=8, cpu="8"), pod("other", gpus=8, node="a"))
    assert block == Block("ExceedsNodeCapacity", "cpu", need=8000, have=4000)


def test_every_resource_that_is_short_is_named_gpus_first() -> None:
    block = block_on(node(gpus=8, cpu="4"), pod(gpus=1, cpu="2"), pod("other", gpus=8, cpu="3", node="a"))
    cpu = Block("InsufficientResource", "cpu", need=2000, have=1000)
    assert block == Block("InsufficientResource", GPU, need=1, have=0, more=(cpu,))


def test_an_overcommitted_node_takes_a_pod_that_asks_nothing_of_what_is_short() -> None:
    hog = pod("hog", cpu="80", memory="600Gi", node="a")
    assert block_on(node(cpu="64", gpus=8), pod(gpus=1, cpu="0", memory="0"), hog) is None
    assert block_on(node(cpu="64", gpus=8), pod(gpus=1, cpu="1m", memory="0"), hog) == Block(
        "InsufficientResource", "cpu", need=1, have=-16000
    )


def test_terminating_pods_hold_their_resources_until_they_are_gone() -> None:
    assert block_on(node(gpus=8), pod(gpus=1), pod("old", gpus=8, node="a", terminating=True)) is not None


RESOURCES = ("cpu", "memory", "pods", GPU, "nvidia.com/mig-1g.10gb", "example.com/nic")
request_amounts = st.dictionaries(st.sampled_from(RESOURCES), st.integers(0, 4))


@given(request_amounts, request_amounts, st.lists(request_amounts, max_size=4))
def test_a_pod_fits_exactly_when_no_resource_that_it_asks_for_would_be_exceeded(
    offered: dict[str, int], asked: dict[str, int], running: list[dict[str, int]]
) -> None:
    def shaped(name: str, requests: dict[str, int], where: str = "") -> Pod:
        return Pod("default", name, name, PodShape(requests=tuple(sorted(requests.items()))), node=where)

    others = [shaped(f"r{index}", requests, "a") for index, requests in enumerate(running)]
    block = block_on(Node("a", {HOST: "a"}, offered), shaped("p", asked), *others)
    total = {r: asked.get(r, 0) + sum(other.get(r, 0) for other in running) for r in RESOURCES}
    exceeded = {r for r in RESOURCES if asked.get(r, 0) > 0 and total[r] > offered.get(r, 0)}
    assert (block is None) == (not exceeded)
    if block is not None:
        hopeless = {r for r in exceeded if r != "pods" and asked[r] > offered.get(r, 0)}
        assert {part.detail for part in block.parts} == (hopeless or exceeded)
        codes = {
            "pods": "TooManyPods",
            **{r: "ExceedsNodeCapacity" if offered.get(r) else "ResourceNotOffered" for r in hopeless},
        }
        for part in block.parts:
            assert part.need == asked[part.detail]
            assert part.code == codes.get(part.detail, "InsufficientResource")


# host ports


@pytest.mark.parametrize(
    ("asked", "held", "conflict"),
    [
        (HostPort(80), HostPort(80), True),
        (HostPort(80), HostPort(81), False),
        (HostPort(80, "UDP"), HostPort(80, "TCP"), False),
        (HostPort(80, address="10.0.0.1"), HostPort(80, address="10.0.0.2"), False),
        (HostPort(80, address="10.0.0.1"), HostPort(80, address="10.0.0.1"), True),
        (HostPort(80, address="10.0.0.1"), HostPort(80), True),
        (HostPort(80, address="0.0.0.0"), HostPort(80, address="10.0.0.1"), True),
    ],
)
def test_two_pods_cannot_hold_one_port_of_a_node(asked: HostPort, held: HostPort, conflict: bool) -> None:
    block = block_on(node(), pod(host_ports=[asked]), pod("other", host_ports=[held], node="a"))
    assert (block is not None) == conflict


def test_a_taken_host_port_is_named() -> None:
    other = pod("other", host_ports=[8080, 9090], node="a")
    assert block_on(node(), pod(host_ports=[9090]), other) == Block("HostPortTaken", "host port 9090/TCP")


# order, equality and problems of the pod itself


def test_nodes_that_are_blocked_in_the_same_way_say_the_same() -> None:
    fleet = ledger([node(name, gpus=8, taints=["gpu:NoSchedule"]) for name in "abc"])
    assert len({first_block(pod(), fleet, name) for name in "abc"}) == 1


def test_a_node_that_is_not_ready_is_reported_as_that_and_not_by_its_taint() -> None:
    block = block_on(node(ready=False, taints=["node.kubernetes.io/not-ready:NoSchedule"]), pod(gpus=1))
    assert block is not None
    assert block.code == "NodeNotReady"


def test_pods_with_resource_claims_are_left_to_kube_scheduler() -> None:
    problem = pod_problem(pod(resource_claims=True), ledger([node()]))
    assert problem is not None
    assert problem.code == "DynamicResources"
    assert "with schedulerName default-scheduler, not gpufleet" in problem.detail
    alone = pod_problem(pod(resource_claims=True), ledger([node()]), {"gpufleet", "default-scheduler"})
    assert alone is not None
    assert "it does not run here" in alone.detail


def test_a_cluster_without_nodes_is_the_problem_of_every_pod() -> None:
    assert pod_problem(pod(), ledger()) == Block("NoNodes", "the cluster has no nodes")
    assert pod_problem(pod(), ledger([node()])) is None


def test_filters_with_nothing_to_say_about_a_pod_are_skipped() -> None:
    plain = pod()
    fleet = ledger([node(gpus=8)], [pod("other", node="a")])
    speaking = {rule.name for rule in FILTERS if rule.prepare(plain, fleet) is not None}
    assert speaking == {"node ready", "node schedulable", "taints", "resources"}
