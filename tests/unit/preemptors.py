"""A pod that is more urgent than those that run, and what ends for it."""

from __future__ import annotations

from collections.abc import Iterable

from tests.unit.fleets import pod

from gpufleet.fleet.nodes import Node
from gpufleet.fleet.plans import Plan
from gpufleet.fleet.pods import Pod
from gpufleet.fleet.snapshot import Snapshot, snapshot_of
from gpufleet.scheduling.budgets import Budgets
from gpufleet.scheduling.cycle import Policy, decide
from gpufleet.scheduling.ledger import Ledger
from gpufleet.scheduling.preemption import Choice, Preemption
from gpufleet.scheduling.trial import Trial

URGENT = pod("urgent", gpus=2, priority=10)


def running(name: str, gpus: int = 1, where: str = "a", **rest: object) -> Pod:
    """A pod that runs on a node."""
    return pod(name, gpus=gpus, node=where, **rest)  # type: ignore[arg-type]


def choose(incoming: Pod, snapshot: Snapshot) -> Choice | None:
    """What a pod that finds no room would evict."""
    trial = Trial(Ledger.build(snapshot))
    return Preemption(trial, Budgets(snapshot.budgets)).choose(incoming)


def plan(nodes: Iterable[Node], pods: Iterable[Pod], **rest: object) -> Plan:
    """The decision about these nodes and pods."""
    return decide(snapshot_of(tuple(nodes), tuple(pods), **rest), Policy())


def victims(found: Choice | None) -> set[str]:
    """The names of those that end."""
    assert found is not None
    return {victim.name for victim in found.victims}
