"""Preemption keeps disruption budgets where it can."""

from __future__ import annotations

from tests.unit.fleets import node, pod, selector
from tests.unit.preemptors import URGENT, choose, plan, running, victims
from tests.unit.random_fleets import evictions

from gpufleet.fleet.snapshot import DisruptionBudget, snapshot_of


def test_a_budget_is_kept_where_there_is_an_alternative_on_the_node() -> None:
    protect = DisruptionBudget("default", "pdb", selector(app="db"), 1)
    pods = [running(f"db{i}", labels={"app": "db"}, created=9) for i in range(2)]
    fleet = snapshot_of((node("a", gpus=3),), (*pods, running("web", created=1)), budgets=(protect,))
    assert len(victims(choose(URGENT, fleet)) & {"db0", "db1"}) == 1


def test_a_budget_is_kept_where_there_is_an_alternative_on_another_node() -> None:
    protect = DisruptionBudget("default", "pdb", selector(app="db"), 0)
    pods = (running("db", 2, labels={"app": "db"}), running("web", 2, "b", priority=9))
    fleet = snapshot_of((node("a", gpus=2), node("b", gpus=2)), pods, budgets=(protect,))
    assert victims(choose(URGENT, fleet)) == {"web"}


def test_a_budget_is_broken_where_there_is_no_alternative() -> None:
    protect = DisruptionBudget("default", "pdb", selector(app="db"), 0)
    fleet = snapshot_of((node("a", gpus=2),), (running("db", 2, labels={"app": "db"}),), budgets=(protect,))
    found = choose(URGENT, fleet)
    assert victims(found) == {"db"}
    assert found is not None
    assert found.cost.broken_budgets == 1


def test_budgets_are_spent_once_in_a_decision() -> None:
    """Two preemptors, one budget that lets one pod go: the second one turns to an unprotected pod."""
    protect = DisruptionBudget("default", "pdb", selector(app="db"), 1)
    pods = [
        running("db0", labels={"app": "db"}),
        running("db1", where="b", labels={"app": "db"}),
        running("web", where="c", priority=5),
        *(pod(f"new{i}", gpus=1, priority=10) for i in range(2)),
    ]
    found = plan([node(n, gpus=1) for n in "abc"], pods, budgets=(protect,))
    assert evictions(found).keys() == {"db0", "web"}


def test_a_pod_that_a_budget_counts_as_disrupted_already_costs_nothing() -> None:
    protect = DisruptionBudget("default", "pdb", selector(app="db"), 0, frozenset({"default/db"}))
    fleet = snapshot_of((node("a", gpus=2),), (running("db", 2, labels={"app": "db"}),), budgets=(protect,))
    found = choose(URGENT, fleet)
    assert found is not None
    assert found.cost.broken_budgets == 0


def test_a_budget_without_selector_and_one_of_another_namespace_protect_nothing() -> None:
    others = (
        DisruptionBudget("default", "none", None, 0),
        DisruptionBudget("elsewhere", "pdb", selector(app="db"), 0),
    )
    fleet = snapshot_of((node("a", gpus=2),), (running("db", 2, labels={"app": "db"}),), budgets=others)
    found = choose(URGENT, fleet)
    assert found is not None
    assert found.cost.broken_budgets == 0
