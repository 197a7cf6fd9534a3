"""Random small fleets, and the rules of a plan read literally.

The fleets are small enough for brute force and crowded enough that pods compete: a few nodes, a handful of
templates with every kind of constraint, priorities, gangs, budgets, pods that are ending. The checks below
count from scratch and know nothing of ledgers, trials and searches.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from tests.unit.fleets import HOST, ZONE, near, node, pod, prefer_near, selector, spread_over

from gpufleet.fleet.nodes import Node
from gpufleet.fleet.plans import Bind, Evict, Nominate, Plan, Unschedulable
from gpufleet.fleet.pods import GANG_LABELS_RULE, GangRef, Pod
from gpufleet.fleet.snapshot import DisruptionBudget, Snapshot, snapshot_of
from gpufleet.scheduling.filters import FILTERS
from gpufleet.scheduling.ledger import Ledger

APPS = ("a", "b")

FACTOR = int(os.environ.get("GPUFLEET_TEST_FACTOR", "1"))
"""Multiplies the number of examples, for a long search."""


def examples(count: int) -> settings:
    """Settings for properties over whole fleets: so many examples, whatever time a busy machine takes."""
    return settings(max_examples=count * FACTOR, deadline=None, suppress_health_check=[HealthCheck.too_slow])


_LOCAL_FEATURES: tuple[dict[str, object], ...] = (
    {},
    {},
    {"host_ports": [80]},
    {"node_selector": {ZONE: "x"}},
    {"tolerations": ["*"]},
)
_ENTANGLED_FEATURES: tuple[dict[str, object], ...] = (
    {"affinity": [near(ZONE, app="a")]},
    {"affinity": [near(HOST, app="b")]},
    {"anti_affinity": [near(ZONE, app="b")]},
)
_WIDE_FEATURES: tuple[dict[str, object], ...] = (
    {"anti_affinity": [near(HOST, app="a")]},
    {"spread": [spread_over(ZONE, app="a")]},
    {"spread": [spread_over(HOST, app="b"), spread_over(ZONE, hard=False, app="b")]},
    {"preferred_pods": [prefer_near(5, ZONE, app="a"), prefer_near(-3, HOST, app="b")]},
)


@st.composite
def nodes(draw: st.DrawFn, most: int = 4) -> tuple[Node, ...]:
    """One to `most` nodes in two zones; some are tainted, cordoned or not ready."""
    return tuple(
        node(
            f"n{index}",
            gpus=draw(st.sampled_from([4, 2, 1, 0, 8])),
            sick=draw(st.sampled_from([0, 0, 0, 2])),
            cpu=draw(st.sampled_from(["4", "2", "8"])),
            pods=draw(st.sampled_from([6, 3, 110])),
            zone=draw(st.sampled_from(["x", "y"])),
            taints=draw(st.sampled_from([(), (), (), ("only=some:NoSchedule",)])),
            unschedulable=draw(st.integers(0, 9)) == 9,
            ready=draw(st.integers(0, 9)) != 9,
        )
        for index in range(draw(st.integers(1, most)))
    )


@st.composite
def templates(draw: st.DrawFn, *, wide: bool = True, entangled: bool = True) -> Pod:
    """A pod without name or place; `wide` allows constraints that look at other nodes, and `entangled` those
    by which the end of a pod on one node can open or close another node.
    """
    features = _LOCAL_FEATURES + (_WIDE_FEATURES if wide else ())
    features += _ENTANGLED_FEATURES if wide and entangled else ()
    return pod(
        "template",
        gpus=draw(st.sampled_from([1, 2, 0, 3, 4])),
        cpu=draw(st.sampled_from(["500m", "1", "2"])),
        labels={"app": draw(st.sampled_from(APPS))},
        priority=draw(st.integers(0, 3)),
        owner=draw(st.sampled_from(["", "rs"])),
        preempts=draw(st.integers(0, 5)) != 0,
        **draw(st.sampled_from(features)),  # type: ignore[arg-type]
    )


def instance(template: Pod, name: str, **changes: object) -> Pod:
    """A pod of a template."""
    return msgspec.structs.replace(template, name=name, uid=f"uid-{name}", **changes)


@st.composite
def fleets(
    draw: st.DrawFn, *, wide: bool = True, entangled: bool = True, gangs: bool = True, most_pods: int = 5
) -> Snapshot:
    """A crowded fleet: up to `most_pods` running pods on each node that fit there, as many pending ones, and
    disruption budgets. The members of a gang have one priority, but different shapes.
    """
    machines = draw(nodes())
    shapes = draw(st.lists(templates(wide=wide, entangled=entangled), min_size=1, max_size=4))
    sizes = {name: draw(st.integers(1, 3)) for name in ("g1", "g2")} if gangs else {}
    ranks = {name: draw(st.integers(0, 3)) for name in sizes}
    places = [machine.name for machine in machines for _ in range(draw(st.integers(0, most_pods)))]
    found: list[Pod] = []
    for index, place in enumerate([*places, *[""] * draw(st.integers(1, most_pods))]):
        template = draw(st.sampled_from(shapes))
        gang = draw(st.sampled_from(["", "", *sizes]))
        priority = template.priority + (0 if place else draw(st.integers(0, 2)))
        found.append(
            instance(
                template,
                f"p{index}",
                created=float(draw(st.integers(0, 3))),
                gang=GangRef(gang, sizes[gang], GANG_LABELS_RULE) if gang else None,
                node=place,
                phase="Running" if place else "Pending",
                priority=ranks.get(gang, priority),
                terminating=bool(place) and draw(st.integers(0, 4)) == 4,
            )
        )
    budgets = tuple(
        DisruptionBudget("default", f"pdb-{app}", selector(app=app), draw(st.integers(0, 1)))
        for app in draw(st.sets(st.sampled_from(APPS)))
    )
    return snapshot_of(machines, tuple(_that_fit(machines, found)), budgets=budgets)


def _that_fit(machines: Iterable[Node], found: Iterable[Pod]) -> list[Pod]:
    by_name = {machine.name: machine for machine in machines}
    kept: list[Pod] = []
    for new in found:
        if not new.node or not overcommitted([by_name[new.node]], [*kept, new]):
            kept.append(new)
    return kept


def pods_of(snapshot: Snapshot) -> list[Pod]:
    """Every pod of a snapshot."""
    return list(snapshot.pods())


def bound(pods: Iterable[Pod], plan: Plan) -> list[Pod]:
    """The pods once the bindings of a plan are carried out; whoever is evicted is still there."""
    places = {action.pod.key: action.node for action in plan.actions if isinstance(action, Bind)}
    return [msgspec.structs.replace(p, node=places[p.key]) if p.key in places else p for p in pods]


def overcommitted(machines: Iterable[Node], pods: Iterable[Pod]) -> list[str]:
    """What is used more than there is, counted by hand: `node resource`."""
    used: Counter[tuple[str, str]] = Counter()
    for other in pods:
        for resource, amount in other.shape.requests:
            used[other.node, resource] += amount
    return [
        f"{machine.name} {resource}"
        for machine in machines
        for (where, resource), amount in used.items()
        if where == machine.name and amount > machine.allocatable.get(resource, 0)
    ]


def broken_rules(snapshot: Snapshot, plan: Plan) -> list[str]:
    """Each binding that a filter forbids on the fleet of its moment: with what was bound before it, with who
    is ending still there, and without anyone for whom room is only held.
    """
    broken = []
    ledger = Ledger.build(snapshot)
    for action in plan.actions:
        if isinstance(action, Evict):
            ledger.end(action.pod.node, [action.pod.key])
        elif isinstance(action, Bind):
            account = ledger.accounts[action.node]
            for rule in FILTERS:
                check = rule.prepare(action.pod, ledger)
                if check is not None and (block := check(account)) is not None:
                    broken.append(f"{action.pod.name} on {action.node}: {block.code}")
            ledger.place(action.pod, action.node)
    return broken


def refusals(machines: Sequence[Node], pods: Iterable[Pod]) -> list[str]:
    """Pairs of pods in one topology domain of which one refuses the other; only equal namespaces occur."""
    labels = {machine.name: machine.labels for machine in machines}
    placed = [p for p in pods if p.node in labels]
    return [
        f"{one.name} refuses {other.name}"
        for one in placed
        for term in one.shape.anti_affinity
        for other in placed
        if one.key != other.key
        and term.selector is not None
        and term.selector.matches(other.labels)
        and labels[one.node].get(term.topology_key) is not None
        and labels[one.node].get(term.topology_key) == labels[other.node].get(term.topology_key)
    ]


def binds(plan: Plan) -> dict[str, str]:
    """Pod name to node, of the bindings."""
    return {action.pod.name: action.node for action in plan.actions if isinstance(action, Bind)}


def evictions(plan: Plan) -> dict[str, str]:
    """Victim's name to the beneficiary's key."""
    return {action.pod.name: action.beneficiary for action in plan.actions if isinstance(action, Evict)}


def nominations(plan: Plan) -> dict[str, str]:
    """Pod name to node, of the nominations."""
    return {action.pod.name: action.node for action in plan.actions if isinstance(action, Nominate)}


def reports(plan: Plan) -> dict[str, tuple[str, ...]]:
    """Pod name to the codes of its report."""
    return {
        action.pod.name: tuple(reason.code for reason in action.reasons)
        for action in plan.actions
        if isinstance(action, Unschedulable)
    }
