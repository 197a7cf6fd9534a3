"""A search finds the best node, as the tables of filters and scores read one by one say."""

from __future__ import annotations

from hypothesis import given
from tests.unit.fleets import GPU, HOST, ZONE, ledger, near, node, pod, prefer_near, spread_over
from tests.unit.random_fleets import examples, fleets, instance, templates

from gpufleet.fleet.pods import Pod
from gpufleet.fleet.snapshot import Snapshot
from gpufleet.scheduling.filters import FILTERS
from gpufleet.scheduling.ledger import Ledger
from gpufleet.scheduling.scores import SCORES
from gpufleet.scheduling.search import Search


def best_by_the_tables(incoming: Pod, fleet: Ledger) -> str | None:
    checks = [check for rule in FILTERS if (check := rule.prepare(incoming, fleet)) is not None]
    scores = [(s.weight, value) for s in SCORES if (value := s.prepare(incoming, fleet)) is not None]
    points = {
        name: sum(weight * value(account) for weight, value in scores)
        for name, account in fleet.accounts.items()
        if all(check(account) is None for check in checks)
    }
    return min(points, key=lambda name: (-points[name], name), default=None)


@examples(80)
@given(fleets(), templates())
def test_the_best_node_passes_every_filter_and_scores_highest(snapshot: Snapshot, template: Pod) -> None:
    fleet, incoming = Ledger.build(snapshot), instance(template, "new")
    search = Search(incoming, fleet)
    assert search.best() == best_by_the_tables(incoming, fleet)
    blocked = dict(search.blocks())
    assert (search.best() is None) == (blocked.keys() == fleet.accounts.keys())
    assert blocked == {name: b for name in fleet.accounts if (b := search.blocked(name)) is not None}
    assert sum(reason.nodes for reason in search.reasons()) == sum(len(b.parts) for b in blocked.values())


@examples(60)
@given(fleets(entangled=False), templates())
def test_pods_of_one_question_placed_one_by_one_go_where_new_searches_would_send_them(
    snapshot: Snapshot, template: Pod
) -> None:
    fleet = Ledger.build(snapshot)
    shared = Search(instance(template, "new-0"), fleet)
    for index in range(6):
        where = shared.best()
        assert where == best_by_the_tables(instance(template, f"new-{index}"), fleet)
        if where is None:
            break
        new = instance(template, f"new-{index}")
        shared.placed(new, fleet.place(new, where))


def test_ties_go_to_the_first_node_by_name() -> None:
    for names in ("abc", "cba"):
        assert Search(pod(), ledger([node(name) for name in names])).best() == "a"


def test_a_fleet_without_nodes_has_no_best_node() -> None:
    assert Search(pod(), ledger()).best() is None
    assert Search(pod(), ledger()).reasons() == ()


def why(search: Search) -> tuple[str, str, dict[str, int | str]]:
    choice = search.choose()
    assert choice is not None
    node, reason = choice
    assert reason.subject == node == search.best()
    return node, reason.code, dict(reason.evidence)


def test_the_reason_names_what_decided() -> None:
    only = Search(pod(gpus=1), ledger([node("a", gpus=1), node("b")]))
    assert why(only) == ("a", "OnlyFit", {})
    packed = Search(pod(gpus=1), ledger([node("a", gpus=8), node("b", gpus=1)]))
    assert why(packed) == ("b", "BestFit", {"measure": 100, "next": 93})
    replicas = Search(
        pod("r1", owner="rs"), ledger([node("a"), node("b")], [pod("r0", owner="rs", node="a")])
    )
    assert why(replicas) == ("b", "SpreadReplicas", {"measure": 100, "next": 99})
    liked = [prefer_near(1, ZONE, app="db")]
    fleet = ledger([node("a", zone="x"), node("b", zone="y")], [pod("db", labels={"app": "db"}, node="b")])
    assert why(Search(pod(preferred_pods=liked), fleet)) == (
        "b",
        "PreferenceMatched",
        {"measure": 100, "next": 0},
    )


def test_a_preference_that_is_equal_on_the_best_nodes_decided_nothing() -> None:
    spot = [node("a", gpus=8), node("b", gpus=4), node("c", gpus=2, taints=["spot:PreferNoSchedule"])]
    assert why(Search(pod(gpus=2), ledger(spot))) == ("b", "BestFit", {"measure": 98, "next": 94})
    assert why(Search(pod(gpus=2), ledger([node("a", gpus=4), spot[1]]))) == ("a", "BestFit", {})


def test_a_reason_is_about_the_fleet_as_it_is_after_earlier_placements() -> None:
    fleet = ledger([node("a", gpus=2), node("b", gpus=8)])
    search = Search(pod(gpus=1), fleet)
    found = []
    for index in range(3):
        where, code, _ = why(search)
        found.append((where, code))
        new = pod(f"p{index}", gpus=1)
        search.placed(new, fleet.place(new, where))
    assert found == [("a", "BestFit"), ("a", "BestFit"), ("b", "OnlyFit")]


@examples(80)
@given(fleets(), templates())
def test_the_reason_is_the_highest_tier_in_which_the_two_best_nodes_differ(
    snapshot: Snapshot, template: Pod
) -> None:
    fleet, incoming = Ledger.build(snapshot), instance(template, "new")
    search = Search(incoming, fleet)
    fitting = [name for name in fleet.accounts if search.blocked(name) is None]
    measures = {s: m for s in SCORES if (m := s.prepare(incoming, fleet)) is not None}

    def tiers(name: str) -> list[int]:
        weights = sorted({score.weight for score in SCORES}, reverse=True)
        account = fleet.accounts[name]
        return [sum(m(account) for s, m in measures.items() if s.weight == weight) for weight in weights]

    ranked = sorted(fitting, key=lambda name: ([-tier for tier in tiers(name)], name))
    choice = search.choose()
    assert (choice[0] if choice else None) == (ranked[0] if ranked else None)
    if choice is None:
        return
    reason = choice[1]
    if len(ranked) == 1:
        assert reason.code == "OnlyFit"
        return
    best, second = (fleet.accounts[name] for name in ranked[:2])
    pairs = list(zip(tiers(ranked[0]), tiers(ranked[1]), strict=True))
    differing = next((index for index, (mine, other) in enumerate(pairs) if mine != other), None)
    if differing is None:
        assert (reason.code, reason.evidence) == ("BestFit", {})
        return
    weight = sorted({score.weight for score in SCORES}, reverse=True)[differing]
    said = (reason.code, reason.evidence["measure"], reason.evidence["next"])
    assert said in [(s.reason, m(best), m(second)) for s, m in measures.items() if s.weight == weight]
    assert int(said[1]) > int(said[2])


def test_reasons_count_nodes_once_by_the_first_filter_that_blocks_them() -> None:
    nodes = [node("a", gpus=1), node("b", gpus=8, ready=False), node("c"), node("d", gpus=1)]
    search = Search(pod(gpus=2), ledger(nodes))
    assert [(reason.code, reason.nodes) for reason in search.reasons()] == [
        ("ExceedsNodeCapacity", 2),
        ("NodeNotReady", 1),
        ("ResourceNotOffered", 1),
    ]


def test_reasons_are_the_same_tuple_until_something_changes() -> None:
    fleet = ledger([node("a", gpus=1)])
    search = Search(pod(gpus=2), fleet)
    first = search.reasons()
    assert search.reasons() is first
    search.placed(pod("p", gpus=1), fleet.place(pod("p", gpus=1), "a"))
    assert search.reasons() is not first


def test_a_search_that_looks_at_other_nodes_says_so() -> None:
    fleet = ledger([node("a")])
    assert Search(pod(gpus=1, preferred_pods=[prefer_near(1, app="x")]), fleet).checks_locally
    assert not Search(pod(spread=[spread_over(HOST, app="x")]), fleet).checks_locally
    refused = ledger([node("a")], [pod("r", node="a", anti_affinity=[near(HOST, app="x")])])
    assert not Search(pod(labels={"app": "x"}), refused).checks_locally
    assert Search(pod(labels={"app": "y"}), refused).checks_locally


def test_whether_a_node_allows_a_pod_is_asked_of_an_account_that_need_not_exist() -> None:
    fleet = ledger([node("a", gpus=1)], [pod("v", gpus=1, node="a")])
    search = Search(pod(gpus=1), fleet)
    assert not search.allows(fleet.accounts["a"])
    assert search.allows(fleet.accounts["a"].without(["default/v"]))
    assert fleet.accounts["a"].free(GPU) == 0
