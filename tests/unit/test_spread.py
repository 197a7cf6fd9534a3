"""Topology spread: examples in words, and a brute-force reading of the rule as an oracle."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.fleets import HOST, ZONE, equal, ledger, node, nodes_where, pod, selector, spread_over

from gpufleet.fleet.nodes import Node
from gpufleet.fleet.pods import Pod, SpreadConstraint
from gpufleet.fleet.selectors import LabelSelector, untolerated
from gpufleet.scheduling.domains import Domains
from gpufleet.scheduling.ledger import Ledger
from gpufleet.scheduling.placement import Block
from gpufleet.scheduling.spread import prepare_hard, prepare_soft

WEB = {"app": "web"}


def web(name: str = "new", *constraints: SpreadConstraint, where: str = "", terminating: bool = False) -> Pod:
    return pod(name, labels=WEB, spread=constraints, node=where, terminating=terminating)


def zones(*names: str) -> list[Node]:
    """Nodes a, b, c, ... in the named zones."""
    return [node(letter, zone=zone) for letter, zone in zip("abcdef", names, strict=False)]


def open_nodes(incoming: Pod, fleet: Ledger) -> str:
    check = prepare_hard(incoming, fleet)
    assert check is not None
    return "".join(name for name, account in fleet.accounts.items() if check(account) is None)


def preferred(incoming: Pod, fleet: Ledger) -> dict[str, int]:
    measure = prepare_soft(incoming, fleet)
    assert measure is not None
    return {name: measure(account) for name, account in fleet.accounts.items()}


def test_a_pod_goes_where_it_keeps_the_difference_within_max_skew() -> None:
    fleet = ledger(zones("x", "x", "y"), [web("1", where="a")])
    assert open_nodes(web("new", spread_over(app="web")), fleet) == "c"
    assert open_nodes(web("new", spread_over(max_skew=2, app="web")), fleet) == "abc"


def test_the_block_names_the_key_and_the_limit() -> None:
    fleet = ledger(zones("x", "y"), [web("1", where="a")])
    check = prepare_hard(web("new", spread_over(app="web")), fleet)
    assert check is not None
    assert check(fleet.accounts["a"]) == Block(
        "TopologySpreadExceeded", f"spread over {ZONE} would differ by more than 1"
    )


def test_a_node_without_the_key_is_out() -> None:
    fleet = ledger([node("a", zone="x"), node("b")])
    check = prepare_hard(web("new", spread_over(app="web")), fleet)
    assert check is not None
    assert check(fleet.accounts["b"]) == Block("TopologySpreadExceeded", f"label {ZONE} is missing")


def test_a_node_without_one_key_counts_for_no_constraint() -> None:
    """The zone of a node without a rack is no eligible domain, so an empty one does not lower the minimum."""
    racked = [node(n, zone=z, labels={"rack": "r"}) for n, z in (("a", "x"), ("b", "y"))]
    constraints = (spread_over(app="web"), spread_over("rack", max_skew=9, app="web"))
    fleet = ledger([*racked, node("c", zone="z")], [web("1", where="a"), web("2", where="b")])
    assert open_nodes(web("new", *constraints), fleet) == "ab"


def test_a_pod_that_its_own_selector_does_not_match_adds_nothing() -> None:
    fleet = ledger(zones("x", "y"), [web("1", where="a")])
    assert open_nodes(pod(labels={"app": "db"}, spread=[spread_over(app="web")]), fleet) == "ab"


def test_only_pods_of_the_same_namespace_count() -> None:
    elsewhere = pod("1", labels=WEB, namespace="other", node="a")
    assert open_nodes(web("new", spread_over(app="web")), ledger(zones("x", "y"), [elsewhere])) == "ab"


def test_pods_that_are_ending_do_not_count() -> None:
    ending = web("1", where="a", terminating=True)
    assert open_nodes(web("new", spread_over(app="web")), ledger(zones("x", "y"), [ending])) == "ab"


def test_too_few_domains_count_as_an_empty_one() -> None:
    fleet = ledger(zones("x", "y"), [web("1", where="a"), web("2", where="b")])
    assert open_nodes(web("new", spread_over(app="web")), fleet) == "ab"
    assert open_nodes(web("new", spread_over(min_domains=2, app="web")), fleet) == "ab"
    assert open_nodes(web("new", spread_over(min_domains=3, app="web")), fleet) == ""


def test_domains_that_node_affinity_excludes_do_not_count_unless_ignored() -> None:
    constraint = spread_over(app="web")
    wants_x_or_y = nodes_where(equal(ZONE, "x", "y"))
    fleet = ledger(zones("x", "y", "z"), [web("1", where="a"), web("2", where="b")])

    def new(policy: str) -> Pod:
        chosen = msgspec.structs.replace(constraint, node_affinity_policy=policy)
        return pod(labels=WEB, spread=[chosen], node_affinity=wants_x_or_y)

    assert open_nodes(new("Honor"), fleet)[:2] == "ab"
    assert open_nodes(new("Ignore"), fleet) == "c"


def test_domains_that_a_taint_closes_count_unless_taints_are_honoured() -> None:
    closed = node("c", zone="z", taints=["gpu:NoSchedule"])
    fleet = ledger([*zones("x", "y"), closed], [web("1", where="a"), web("2", where="b")])
    honour = msgspec.structs.replace(spread_over(app="web"), node_taints_policy="Honor")
    assert open_nodes(web("new", spread_over(app="web")), fleet) == "c"
    assert open_nodes(web("new", honour), fleet)[:2] == "ab"


def test_an_empty_selector_counts_no_pods_as_in_kube_scheduler() -> None:
    anything = SpreadConstraint(1, ZONE, True, LabelSelector())
    fleet = ledger(zones("x", "y"), [web("1", where="a"), web("2", where="a")])
    assert open_nodes(web("new", anything), fleet) == "ab"


def test_a_missing_selector_matches_no_pod() -> None:
    nothing = SpreadConstraint(1, ZONE, True, None)
    fleet = ledger(zones("x", "y"), [web("1", where="a"), web("2", where="a")])
    assert open_nodes(web("new", nothing), fleet) == "ab"


def test_every_hard_constraint_must_hold() -> None:
    fleet = ledger(zones("x", "x", "y"), [web("1", where="a"), web("2", where="c")])
    both = (spread_over(app="web"), spread_over(HOST, app="web"))
    assert open_nodes(web("new", *both), fleet) == "b"


def test_soft_constraints_block_nothing_and_prefer_fewer_pods() -> None:
    soft = spread_over(hard=False, app="web")
    fleet = ledger(zones("x", "y", "z"), [web("1", where="a"), web("2", where="a"), web("3", where="b")])
    assert prepare_hard(web("new", soft), fleet) is None
    assert preferred(web("new", soft), fleet) == {"a": 0, "b": 50, "c": 100}


def test_an_even_fleet_gets_no_preference() -> None:
    assert preferred(web("new", spread_over(hard=False, app="web")), ledger(zones("x", "y"))) == {
        "a": 0,
        "b": 0,
    }


def test_a_soft_constraint_puts_nodes_without_its_key_last() -> None:
    fleet = ledger([*zones("x", "y"), node("c")], [web("1", where="a")])
    assert preferred(web("new", spread_over(hard=False, app="web")), fleet) == {"a": 0, "b": 100, "c": 0}


# the oracle


def fewest_by_the_book(
    c: SpreadConstraint, incoming: Pod, nodes: Sequence[Node], pods: Sequence[Pod]
) -> dict[str, int]:
    """Pods per eligible domain, read off the documentation."""
    keys = {other.topology_key for other in incoming.shape.spread if other.hard == c.hard}
    domains: dict[str, int] = {}
    for n in nodes:
        affine = all(n.labels.get(k) == v for k, v in incoming.shape.node_selector)
        tolerable = untolerated(n.taints, incoming.shape.tolerations) is None
        if not all(key in n.labels for key in keys):
            continue
        if c.node_affinity_policy == "Honor" and not affine:
            continue
        if c.node_taints_policy == "Honor" and not tolerable:
            continue
        here = [
            p for p in pods if p.node == n.name and p.namespace == incoming.namespace and not p.terminating
        ]
        matching = [
            p for p in here if c.selector and c.selector.requirements and c.selector.matches(p.labels)
        ]
        domains[n.labels[c.topology_key]] = domains.get(n.labels[c.topology_key], 0) + len(matching)
    return domains


def fits_by_the_book(incoming: Pod, target: Node, nodes: Sequence[Node], pods: Sequence[Pod]) -> bool:
    for c in incoming.shape.spread:
        if not c.hard:
            continue
        if c.topology_key not in target.labels:
            return False
        domains = fewest_by_the_book(c, incoming, nodes, pods)
        fewest = min(domains.values()) if domains and len(domains) >= c.min_domains else 0
        itself = int(c.selector is not None and c.selector.matches(incoming.labels))
        if domains.get(target.labels[c.topology_key], 0) + itself - fewest > c.max_skew:
            return False
    return True


nodes_strategy = st.lists(
    st.builds(
        lambda zone, rack, taints: (zone, rack, taints),
        st.sampled_from(["", "x", "y", "z"]),
        st.sampled_from(["", "r", "s"]),
        st.sampled_from([(), ("gpu:NoSchedule",), ("soft:PreferNoSchedule",)]),
    ),
    min_size=1,
    max_size=6,
).map(
    lambda rows: [
        node(f"n{i}", zone=zone, labels={"rack": rack} if rack else {}, taints=taints)
        for i, (zone, rack, taints) in enumerate(rows)
    ]
)
constraints_strategy = st.lists(
    st.builds(
        SpreadConstraint,
        max_skew=st.integers(1, 2),
        topology_key=st.sampled_from([ZONE, "rack", HOST]),
        hard=st.booleans(),
        selector=st.sampled_from([selector(app="web"), selector(app="web", tier="1"), LabelSelector(), None]),
        min_domains=st.integers(1, 3),
        node_affinity_policy=st.sampled_from(["Honor", "Ignore"]),
        node_taints_policy=st.sampled_from(["Honor", "Ignore"]),
    ),
    min_size=1,
    max_size=3,
)


@st.composite
def pods_strategy(draw: st.DrawFn, nodes: Sequence[Node], prefix: str, most: int) -> list[Pod]:
    return [
        pod(
            f"{prefix}{index}",
            namespace=draw(st.sampled_from(["default", "default", "other"])),
            labels=draw(st.sampled_from([WEB, {"app": "web", "tier": "1"}, {"app": "db"}])),
            node=draw(st.sampled_from([n.name for n in nodes])),
            terminating=draw(st.sampled_from([False, False, True])) and prefix == "r",
        )
        for index in range(draw(st.integers(0, most)))
    ]


@st.composite
def incoming_strategy(draw: st.DrawFn) -> Pod:
    return pod(
        labels=draw(st.sampled_from([WEB, {"app": "db"}, {"app": "web", "tier": "1"}])),
        spread=draw(constraints_strategy),
        node_selector=draw(st.sampled_from([{}, {ZONE: "x"}, {"rack": "r"}])),
        tolerations=draw(st.sampled_from([(), ("gpu",)])),
    )


@given(st.data())
def test_the_filter_is_the_rule_read_literally(data: st.DataObject) -> None:
    nodes = data.draw(nodes_strategy)
    running = data.draw(pods_strategy(nodes, "r", 8))
    incoming = data.draw(incoming_strategy())
    fleet = ledger(nodes, running)
    check = prepare_hard(incoming, fleet)
    for target in nodes:
        fits = check is None or check(fleet.accounts[target.name]) is None
        assert fits == fits_by_the_book(incoming, target, nodes, running)


@given(st.data())
def test_the_soft_score_ranks_by_pods_in_the_domain(data: st.DataObject) -> None:
    nodes = data.draw(nodes_strategy)
    running = data.draw(pods_strategy(nodes, "r", 8))
    soft = msgspec.structs.replace(data.draw(constraints_strategy)[0], hard=False)
    incoming = pod(labels=WEB, spread=[soft])
    scores = preferred(incoming, ledger(nodes, running))
    domains = fewest_by_the_book(soft, incoming, nodes, running)
    known = {
        n.name: domains[value]
        for n in nodes
        if (value := n.labels.get(soft.topology_key)) in domains and value
    }
    assert all(0 <= score <= 100 for score in scores.values())
    for (a, pods_a), (b, pods_b) in product(known.items(), repeat=2):
        assert (scores[a] > scores[b]) == (pods_a < pods_b)


@given(st.data())
def test_being_told_of_placements_equals_preparing_anew(data: st.DataObject) -> None:
    nodes = data.draw(nodes_strategy)
    fleet = ledger(nodes, data.draw(pods_strategy(nodes, "r", 5)))
    incoming = data.draw(incoming_strategy())
    told_hard, told_soft = prepare_hard(incoming, fleet), prepare_soft(incoming, fleet)
    for other in data.draw(pods_strategy(nodes, "p", 6)):
        account = fleet.place(other, other.node)
        for told in (told_hard, told_soft):
            if told is not None:
                told.placed(other, account)
        fresh_hard, fresh_soft = prepare_hard(incoming, fleet), prepare_soft(incoming, fleet)
        for account in fleet.accounts.values():
            if told_hard is not None and fresh_hard is not None:
                assert told_hard(account) == fresh_hard(account)
            if told_soft is not None and fresh_soft is not None:
                assert told_soft(account) == fresh_soft(account)


@given(st.dictionaries(st.sampled_from("abc"), st.integers(0, 3), min_size=1), st.data())
def test_domains_know_their_extremes_after_every_addition(
    counts: dict[str, int], data: st.DataObject
) -> None:
    domains = Domains("zone", dict(counts))
    for value in data.draw(st.lists(st.sampled_from(sorted(counts)), max_size=12)):
        domains.add(value)
        counts[value] += 1
        assert (domains.lowest, domains.highest) == (min(counts.values()), max(counts.values()))
    assert domains.counts == counts
