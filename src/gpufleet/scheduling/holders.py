"""Who holds what a unit waits for: resources, host ports and places that anti-affinity closes.

The unit is placed as far as it fits, and what then keeps out its next pod is looked at on the nodes where
somebody's end would let the pod in: a node that is cordoned or too small is nobody's fault.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from collections.abc import Set as AbstractSet
from typing import NamedTuple

import msgspec

from gpufleet.fleet.devices import WHOLE_RESOURCE
from gpufleet.fleet.pods import Pod
from gpufleet.scheduling.affinity import term_test
from gpufleet.scheduling.gangs import Unit
from gpufleet.scheduling.ledger import Ledger, NodeAccount
from gpufleet.scheduling.placing import place
from gpufleet.scheduling.trial import Trial

_HELD = frozenset({"InsufficientResource", "TooManyPods", "HostPortTaken", "PodAntiAffinityConflict"})
"""What somebody's end cures."""


class Holder(msgspec.Struct, frozen=True):
    """Pods of one owner that hold what the pod waits for; `amount` is the sum over `nodes`, and of ports and
    places the number of pods. `ending` pods are terminating; `preemptible` ones have a lower priority than
    every pod that waits.
    """

    namespace: str
    workload: str
    resource: str
    amount: int
    pods: int
    priority: int
    preemptible: bool
    nodes: tuple[str, ...]
    ending: bool = False


class Hold(NamedTuple):
    """One pod that holds something on a node."""

    pod: Pod
    node: str
    resource: str
    amount: int


def in_the_way(ledger: Ledger, unit: Unit) -> list[Hold]:
    """Every pod that holds what the unit waits for, and how much of it."""
    trial = Trial(ledger)
    placed = {key for account in ledger.accounts.values() for key in account.pods}
    waiting = [pod for pod in unit.pods if pod.key not in placed]
    fitting = {placement.pod.key for placement in place(waiting, trial)}
    mine = {pod.key for pod in unit.pods}
    found: dict[tuple[str, str], Hold] = {}
    asked = set()
    for pod in waiting:
        question = trial.question(pod)
        if pod.key in fitting or question in asked:
            continue
        asked.add(question)
        for hold in _holds(pod, trial):
            if hold.pod.key not in mine:
                found[hold.pod.key, hold.resource] = hold
    return list(found.values())


def holders(holds: list[Hold], unit: Unit, real: Container[str]) -> tuple[tuple[Holder, ...], ...]:
    """Who holds something, and for whom room is only held: pods that are neither bound nor in `real`."""
    held = [hold for hold in holds if hold.pod.node or hold.pod.key in real]
    reserved = [hold for hold in holds if not hold.pod.node and hold.pod.key not in real]
    return tuple(_grouped(held, unit)), tuple(_grouped(reserved, unit))


def _grouped(holds: list[Hold], unit: Unit) -> list[Holder]:
    lowest = min(pod.priority for pod in unit.pods)
    preempts = all(pod.preempts for pod in unit.pods)
    groups: dict[tuple[str, str, str, int, bool, bool], list[Hold]] = {}
    for hold in holds:
        pod = hold.pod
        lower = preempts and bool(pod.node) and pod.priority < lowest and not pod.terminating
        own_gang = bool(unit.gang) and pod.gang_key == unit.gang
        key = (
            pod.namespace,
            pod.workload,
            hold.resource,
            pod.priority,
            lower and not own_gang,
            pod.terminating,
        )
        groups.setdefault(key, []).append(hold)
    found = [
        Holder(
            namespace,
            workload,
            resource,
            amount=sum(hold.amount for hold in members),
            pods=len(members),
            priority=priority,
            preemptible=preemptible,
            nodes=tuple(sorted({hold.node for hold in members})),
            ending=ending,
        )
        for (namespace, workload, resource, priority, preemptible, ending), members in groups.items()
    ]
    return sorted(found, key=lambda h: (h.resource, -h.amount, h.namespace, h.workload, h.priority, h.ending))


def _holds(pod: Pod, trial: Trial) -> Iterator[Hold]:
    accounts = trial.ledger.accounts
    opponents: Callable[[NodeAccount], Iterator[Hold]] | None = None
    for node, block in trial.search(pod).blocks():
        if any(part.code not in _HELD for part in block.parts):
            continue
        if block.code == "PodAntiAffinityConflict":
            opponents = opponents or _opponents(pod, trial.ledger)
            yield from opponents(accounts[node])
        elif block.code == "HostPortTaken":
            yield from _port_holds(pod, accounts[node])
        else:
            short = {part.detail for part in block.parts}
            yield from _resource_holds(
                short | {WHOLE_RESOURCE} if pod.shape.fraction else short, accounts[node]
            )


def _resource_holds(short: AbstractSet[str], account: NodeAccount) -> Iterator[Hold]:
    for other in account.pods.values():
        requests = dict(other.shape.requests)
        fraction = other.shape.fraction
        if fraction is not None and WHOLE_RESOURCE in short:
            milli = fraction.on(account.node) or 0
            yield Hold(other, account.name, "milli-GPU", milli * fraction.devices)
        for resource in sorted(short):
            if amount := requests.get(resource, 0):
                yield Hold(other, account.name, resource, amount)


def _port_holds(pod: Pod, account: NodeAccount) -> Iterator[Hold]:
    for other in account.pods.values():
        for port in other.shape.host_ports:
            if any(port.conflicts(wanted) for wanted in pod.shape.host_ports):
                yield Hold(other, account.name, f"host port {port.port}/{port.protocol}", 1)


def _opponents(pod: Pod, ledger: Ledger) -> Callable[[NodeAccount], Iterator[Hold]]:
    """Who keeps the pod off a node by anti-affinity, in either direction."""
    namespaces = ledger.snapshot.namespaces
    avoided = [(term.topology_key, term_test(term, namespaces)) for term in pod.shape.anti_affinity]
    places: dict[tuple[str, str], list[Hold]] = {}
    for account in ledger.accounts.values():
        labels = account.node.labels
        for other in account.pods.values():
            keys = {key for key, meant in avoided if meant(other)}
            keys |= {t.topology_key for t in other.shape.anti_affinity if term_test(t, namespaces)(pod)}
            for key in keys & labels.keys():
                hold = Hold(other, account.name, f"anti-affinity by {key}", 1)
                places.setdefault((key, labels[key]), []).append(hold)

    domains = sorted({key for key, _ in places})

    def on(account: NodeAccount) -> Iterator[Hold]:
        labels = account.node.labels
        for key in domains:
            if key in labels:
                yield from places.get((key, labels[key]), ())

    return on
