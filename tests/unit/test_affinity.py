"""Pod affinity and anti-affinity: examples in words, and a brute-force reading of the rule as an oracle."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.fleets import HOST, ZONE, ledger, near, node, pod, prefer_near, selector

from gpufleet.fleet.nodes import Node
from gpufleet.fleet.pods import Pod, PodAffinityTerm, WeightedPodAffinityTerm
from gpufleet.fleet.selectors import LabelSelector, Requirement
from gpufleet.scheduling.affinity import prepare_preferred, prepare_required
from gpufleet.scheduling.ledger import Ledger
from gpufleet.scheduling.placement import Block

WEB, CACHE = {"app": "web"}, {"app": "cache"}
FLEET = [node("a", zone="x"), node("b", zone="x"), node("c", zone="y"), node("d")]


def open_nodes(incoming: Pod, fleet: Ledger) -> str:
    check = prepare_required(incoming, fleet)
    return "".join(n for n, account in fleet.accounts.items() if check is None or check(account) is None)


def block(incoming: Pod, fleet: Ledger, name: str) -> Block | None:
    check = prepare_required(incoming, fleet)
    assert check is not None
    return check(fleet.accounts[name])


def preferred(incoming: Pod, fleet: Ledger) -> dict[str, int]:
    measure = prepare_preferred(incoming, fleet)
    assert measure is not None
    return {name: measure(account) for name, account in fleet.accounts.items()}


# required affinity


def test_affinity_follows_a_pod_into_its_zone() -> None:
    fleet = ledger(FLEET, [pod("cache", labels=CACHE, node="a")])
    assert open_nodes(pod(affinity=[near(ZONE, app="cache")]), fleet) == "ab"


def test_affinity_blocks_say_what_is_missing() -> None:
    fleet = ledger(FLEET, [pod("cache", labels=CACHE, node="a")])
    incoming = pod(affinity=[near(ZONE, app="cache")])
    assert block(incoming, fleet, "c") == Block(
        "PodAffinityUnmatched", f"no pod that it needs is in the same {ZONE}"
    )
    assert block(incoming, fleet, "d") == Block("PodAffinityUnmatched", f"label {ZONE} is missing")


def test_one_pod_must_match_all_terms_at_once() -> None:
    both = pod(affinity=[near(ZONE, app="cache"), near(HOST, tier="1")])
    apart = [pod("1", labels=CACHE, node="a"), pod("2", labels={"tier": "1"}, node="b")]
    assert open_nodes(both, ledger(FLEET, apart)) == ""
    together = pod("3", labels={"app": "cache", "tier": "1"}, node="b")
    assert open_nodes(both, ledger(FLEET, [*apart, together])) == "b"


def test_the_first_pod_of_a_group_goes_anywhere_the_key_exists() -> None:
    first = pod(labels=WEB, affinity=[near(ZONE, app="web")])
    assert open_nodes(first, ledger(FLEET)) == "abc"
    assert open_nodes(first, ledger(FLEET, [pod("mate", labels=WEB, node="c")])) == "c"


def test_a_pod_that_does_not_match_its_own_affinity_waits_for_one_that_does() -> None:
    assert open_nodes(pod(labels=WEB, affinity=[near(ZONE, app="cache")]), ledger(FLEET)) == ""


def test_a_mate_in_another_namespace_is_no_mate() -> None:
    elsewhere = pod("mate", labels=WEB, namespace="other", node="c")
    assert open_nodes(pod(labels=WEB, affinity=[near(ZONE, app="web")]), ledger(FLEET, [elsewhere])) == "abc"


def test_a_mate_on_a_node_without_the_key_is_as_good_as_none() -> None:
    lost = pod("mate", labels=WEB, node="d")
    assert open_nodes(pod(labels=WEB, affinity=[near(ZONE, app="web")]), ledger(FLEET, [lost])) == "abc"


def test_a_namespace_selector_adds_namespaces_by_label() -> None:
    term = PodAffinityTerm(ZONE, selector(app="cache"), ("default",), selector(team="ml"))
    cache = pod("cache", labels=CACHE, namespace="prod", node="c")
    ours = {"prod": {"team": "ml"}, "default": {}}
    theirs = {"prod": {"team": "web"}, "default": {}}
    assert open_nodes(pod(affinity=[term]), ledger(FLEET, [cache], namespaces=ours)) == "c"
    assert open_nodes(pod(affinity=[term]), ledger(FLEET, [cache], namespaces=theirs)) == ""


def test_an_empty_namespace_selector_means_every_namespace() -> None:
    term = PodAffinityTerm(ZONE, selector(app="cache"), (), LabelSelector())
    cache = pod("cache", labels=CACHE, namespace="unlisted", node="c")
    assert open_nodes(pod(affinity=[term]), ledger(FLEET, [cache])) == "c"


def test_a_term_without_selector_matches_no_pod_and_one_with_an_empty_selector_every_pod() -> None:
    cache = pod("cache", labels=CACHE, node="c")
    assert open_nodes(pod(affinity=[PodAffinityTerm(ZONE, None, ("default",))]), ledger(FLEET, [cache])) == ""
    anything = PodAffinityTerm(ZONE, LabelSelector(), ("default",))
    assert open_nodes(pod(affinity=[anything]), ledger(FLEET, [cache])) == "c"


def test_pods_that_are_ending_still_attract() -> None:
    ending = pod("cache", labels=CACHE, node="c", terminating=True)
    assert open_nodes(pod(affinity=[near(ZONE, app="cache")]), ledger(FLEET, [ending])) == "c"


# required anti-affinity


def test_anti_affinity_keeps_out_of_the_domain() -> None:
    fleet = ledger(FLEET, [pod("other", labels=WEB, node="a")])
    incoming = pod(labels=WEB, anti_affinity=[near(ZONE, app="web")])
    assert open_nodes(incoming, fleet) == "cd"
    assert block(incoming, fleet, "b") == Block(
        "PodAntiAffinityConflict", f"a pod that it avoids is in the same {ZONE}"
    )


def test_pods_that_run_can_refuse_a_newcomer() -> None:
    guard = pod("guard", node="a", anti_affinity=[near(ZONE, app="web")])
    fleet = ledger(FLEET, [guard])
    assert open_nodes(pod(labels=WEB), fleet) == "cd"
    assert open_nodes(pod(labels=CACHE), fleet) == "abcd"
    assert block(pod(labels=WEB), fleet, "b") == Block(
        "PodAntiAffinityConflict", f"a pod in the same {ZONE} refuses it"
    )


def test_a_running_pod_refuses_by_the_namespaces_of_its_own_term() -> None:
    guard = pod("guard", node="a", anti_affinity=[near(HOST, namespaces=["other"], app="web")])
    assert open_nodes(pod(labels=WEB), ledger(FLEET, [guard])) == "abcd"
    assert open_nodes(pod(labels=WEB, namespace="other"), ledger(FLEET, [guard])) == "bcd"


def test_a_node_that_is_refused_twice_gets_the_same_reason_whoever_refused_first() -> None:
    by_host = pod("1", node="a", anti_affinity=[near(HOST, app="web")])
    by_zone = pod("2", node="a", anti_affinity=[near(ZONE, app="web")])
    reasons = {
        block(pod(labels=WEB), ledger(FLEET, both), "a") for both in ([by_host, by_zone], [by_zone, by_host])
    }
    assert len(reasons) == 1


def test_affinity_of_running_pods_towards_a_newcomer_binds_nobody() -> None:
    fan = pod("fan", node="a", affinity=[near(HOST, app="web")])
    assert open_nodes(pod(labels=WEB), ledger(FLEET, [fan])) == "abcd"


def test_where_no_pod_has_terms_there_is_nothing_to_ask() -> None:
    assert prepare_required(pod(labels=WEB), ledger(FLEET, [pod("other", labels=WEB, node="a")])) is None


def test_affinity_and_anti_affinity_hold_together() -> None:
    running = [pod("cache", labels=CACHE, node="a"), pod("web", labels=WEB, node="a")]
    beside = pod(labels=WEB, affinity=[near(ZONE, app="cache")], anti_affinity=[near(HOST, app="web")])
    assert open_nodes(beside, ledger(FLEET, running)) == "b"


# preferred terms


def test_a_preferred_pod_raises_its_domain() -> None:
    fleet = ledger(FLEET, [pod("cache", labels=CACHE, node="a")])
    assert preferred(pod(preferred_pods=[prefer_near(10, ZONE, app="cache")]), fleet) == {
        "a": 100, "b": 100, "c": 0, "d": 0,
    }  # fmt: skip


def test_a_disliked_pod_lowers_its_domain_by_how_many_there_are() -> None:
    running = [pod(str(i), labels=WEB, node=n) for i, n in enumerate("aab")]
    assert preferred(pod(preferred_pods=[prefer_near(-10, HOST, app="web")]), ledger(FLEET, running)) == {
        "a": 0, "b": 50, "c": 100, "d": 100,
    }  # fmt: skip


def test_the_heavier_term_wins_over_more_pods() -> None:
    running = [pod("cache", labels=CACHE, node="a"), *(pod(str(i), labels=WEB, node="c") for i in range(9))]
    wishes = [prefer_near(60, HOST, app="cache"), prefer_near(40, HOST, app="web")]
    scores = preferred(pod(preferred_pods=wishes), ledger(FLEET, running))
    assert scores == {"a": 60, "b": 0, "c": 40, "d": 0}


def test_a_term_that_is_the_same_everywhere_says_nothing() -> None:
    running = [pod(n.name, labels=WEB, node=n.name) for n in FLEET]
    assert set(
        preferred(pod(preferred_pods=[prefer_near(-5, HOST, app="web")]), ledger(FLEET, running)).values()
    ) == {0}


# the oracle


def means(term: PodAffinityTerm, other: Pod, namespaces: dict[str, dict[str, str]]) -> bool:
    named = other.namespace in term.namespaces
    chosen = term.namespace_selector is not None and term.namespace_selector.matches(
        namespaces[other.namespace]
    )
    return (named or chosen) and term.selector is not None and term.selector.matches(other.labels)


def fits_by_the_book(
    incoming: Pod,
    target: Node,
    nodes: Sequence[Node],
    running: Sequence[Pod],
    namespaces: dict[str, dict[str, str]],
) -> bool:
    """The rule as Kubernetes documents it, with every pair of pods looked at."""
    by_name = {n.name: n for n in nodes}

    def shares(other: Pod, key: str) -> bool:
        there = by_name[other.node].labels
        return key in there and there[key] == target.labels.get(key)

    wanted = incoming.shape.affinity
    for other in running:
        if any(
            means(t, other, namespaces) and shares(other, t.topology_key)
            for t in incoming.shape.anti_affinity
        ):
            return False
        if any(
            means(t, incoming, namespaces) and shares(other, t.topology_key)
            for t in other.shape.anti_affinity
        ):
            return False
    if not wanted:
        return True
    if any(t.topology_key not in target.labels for t in wanted):
        return False
    mates = [other for other in running if all(means(t, other, namespaces) for t in wanted)]
    if all(any(shares(mate, t.topology_key) for mate in mates) for t in wanted):
        return True
    placed_mates = [m for m in mates if any(t.topology_key in by_name[m.node].labels for t in wanted)]
    return not placed_mates and all(means(t, incoming, namespaces) for t in wanted)


NAMESPACES = {"default": {"team": "ml"}, "other": {"team": "web"}}
terms = st.builds(
    PodAffinityTerm,
    topology_key=st.sampled_from([HOST, ZONE, "rack"]),
    selector=st.sampled_from(
        [
            selector(app="web"),
            selector(app="cache"),
            LabelSelector(),
            LabelSelector((Requirement("tier", "Exists"),)),
            None,
        ]
    ),
    namespaces=st.sampled_from([("default",), ("other",), ("default", "other"), ()]),
    namespace_selector=st.sampled_from([None, None, selector(team="ml"), LabelSelector()]),
)
term_lists = st.lists(terms, max_size=2)


@st.composite
def fleets(draw: st.DrawFn) -> tuple[list[Node], list[Pod]]:
    nodes = [
        node(
            f"n{i}",
            zone=draw(st.sampled_from(["", "x", "y"])),
            labels=draw(st.sampled_from([{}, {"rack": "r"}, {"rack": "s"}])),
        )
        for i in range(draw(st.integers(1, 5)))
    ]
    return nodes, draw(pods_on(nodes, "r", 6))


@st.composite
def pods_on(draw: st.DrawFn, nodes: Sequence[Node], prefix: str, most: int) -> list[Pod]:
    return [
        draw(some_pod(f"{prefix}{i}", [n.name for n in nodes])) for i in range(draw(st.integers(0, most)))
    ]


@st.composite
def some_pod(draw: st.DrawFn, name: str, places: Sequence[str] = ("",)) -> Pod:
    return pod(
        name,
        namespace=draw(st.sampled_from(["default", "default", "other"])),
        labels=draw(st.sampled_from([WEB, CACHE, {"app": "web", "tier": "1"}, {}])),
        affinity=draw(term_lists) if name == "new" else (),
        anti_affinity=draw(term_lists),
        node=draw(st.sampled_from(places)),
    )


@given(fleets(), some_pod("new"))
def test_the_filter_is_the_rule_read_literally(fleet: tuple[list[Node], list[Pod]], incoming: Pod) -> None:
    nodes, running = fleet
    accounts = ledger(nodes, running, namespaces=NAMESPACES)
    check = prepare_required(incoming, accounts)
    for target in nodes:
        fits = check is None or check(accounts.accounts[target.name]) is None
        assert fits == fits_by_the_book(incoming, target, nodes, running, NAMESPACES)


@given(
    fleets(),
    some_pod("new"),
    st.lists(st.tuples(st.integers(1, 100), terms, st.booleans()), max_size=3),
    st.data(),
)
def test_being_told_of_placements_equals_preparing_anew(
    fleet: tuple[list[Node], list[Pod]],
    incoming: Pod,
    wishes: list[tuple[int, PodAffinityTerm, bool]],
    data: st.DataObject,
) -> None:
    nodes, running = fleet
    accounts = ledger(nodes, running, namespaces=NAMESPACES)
    wishful = pod(
        "wishful",
        preferred_pods=[WeightedPodAffinityTerm(w if like else -w, term) for w, term, like in wishes],
    )
    told, told_score = prepare_required(incoming, accounts), prepare_preferred(wishful, accounts)
    for other in data.draw(pods_on(nodes, "p", 4)):
        account = accounts.place(other, other.node)
        if told is None and other.shape.anti_affinity:
            told = prepare_required(incoming, accounts)
        elif told is not None:
            told.placed(other, account)
        if told_score is not None:
            told_score.placed(other, account)
        fresh, fresh_score = prepare_required(incoming, accounts), prepare_preferred(wishful, accounts)
        for each in accounts.accounts.values():
            if told is None or fresh is None:
                assert told is fresh
            else:
                assert told(each) == fresh(each)
            if told_score is not None and fresh_score is not None:
                assert told_score(each) == fresh_score(each)
                assert 0 <= told_score(each) <= 100
