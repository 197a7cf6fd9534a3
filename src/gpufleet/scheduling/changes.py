"""What would make a pending unit fit: single changes, each made on a copy of the snapshot and seen to work.

Candidates are the smallest edits that people make: drop one selector or affinity, tolerate one taint, ask for
fewer GPUs, end one workload, raise the priority, add nodes like those there are. Ordered by how little they
ask of others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from gpufleet.fleet.pods import Pod, is_gpu_resource
from gpufleet.fleet.selectors import Toleration, untolerated
from gpufleet.scheduling.gangs import Unit
from gpufleet.scheduling.ledger import Ledger, account_of
from gpufleet.scheduling.trial import Trial

LIMIT = 5
"""How many changes are offered; more would not be read."""


class Change(msgspec.Struct, frozen=True):
    """One change that makes the unit fit. `kind` is a stable word, `message` says what to do."""

    kind: str
    message: str


def helpful_changes(ledger: Ledger, unit: Unit, pod: Pod) -> tuple[Change, ...]:
    """Changes that each, alone, let the unit be placed now; at most LIMIT."""
    found: list[Change] = []
    for change, pods, changed in _candidates(ledger, unit, pod):
        if _fits(pods, changed, unit.needed):
            found.append(change)
            if len(found) == LIMIT:
                break
    return tuple(found)


_Candidate = tuple[Change, Sequence[Pod], Ledger]


def _candidates(ledger: Ledger, unit: Unit, pod: Pod) -> Iterator[_Candidate]:
    yield from _relaxed(ledger, unit, pod)
    yield from _smaller(ledger, unit, pod)
    yield from _without_others(ledger, unit)
    yield from _more_nodes(ledger, unit)


def _relaxed(ledger: Ledger, unit: Unit, pod: Pod) -> Iterator[_Candidate]:
    for key, value in pod.shape.node_selector:
        rest = tuple(item for item in pod.shape.node_selector if item[0] != key)
        change = Change("drop-node-selector", f"remove {key}={value} from the nodeSelector")
        yield change, _reshaped(unit, node_selector=rest), ledger
    if pod.shape.node_affinity is not None:
        change = Change("drop-node-affinity", "remove the required node affinity")
        yield change, _reshaped(unit, node_affinity=None), ledger
    for field, words in (
        ("affinity", "the required pod affinity"),
        ("anti_affinity", "the required pod anti-affinity"),
        ("spread", "the topology spread constraints"),
        ("host_ports", "the host ports"),
    ):
        if getattr(pod.shape, field):
            yield (
                Change(f"drop-{field.replace('_', '-')}", f"remove {words}"),
                _reshaped(unit, **{field: ()}),
                ledger,
            )
    taints = {
        taint
        for account in ledger.accounts.values()
        if (taint := untolerated(account.node.taints, pod.shape.tolerations))
    }
    for taint in sorted(taints, key=str):
        more = (*pod.shape.tolerations, Toleration(taint.key, "Exists", "", taint.effect))
        yield (
            Change("tolerate-taint", f"tolerate the taint {taint}"),
            _reshaped(unit, tolerations=more),
            ledger,
        )


def _smaller(ledger: Ledger, unit: Unit, pod: Pod) -> Iterator[_Candidate]:
    for resource, amount in pod.shape.requests:
        if not is_gpu_resource(resource):
            continue
        most = max((account.free(resource) for account in ledger.accounts.values()), default=0)
        for fewer in range(min(amount - 1, most), 0, -1):
            requests = tuple((r, fewer if r == resource else a) for r, a in pod.shape.requests)
            pods = _reshaped(unit, requests=requests)
            if _fits(pods, ledger, unit.needed):
                yield Change("ask-fewer", f"ask for {fewer} {resource} instead of {amount}"), pods, ledger
                break


def _without_others(ledger: Ledger, unit: Unit) -> Iterator[_Candidate]:
    mine = unit.gang
    groups: dict[str, set[str]] = {}
    for account in ledger.accounts.values():
        for other in account.pods.values():
            if any(is_gpu_resource(resource) for resource, _ in other.shape.requests):
                groups.setdefault(_group(other), set()).add(other.key)
    for group, keys in sorted(groups.items(), key=lambda item: (len(item[1]), item[0])):
        if group == f"gang {mine}":
            continue
        accounts = {
            name: account.without(keys) if keys & account.pods.keys() else account
            for name, account in ledger.accounts.items()
        }
        change = Change("end-workload", f"end {group} ({len(keys)} pods)")
        yield change, unit.pods, Ledger(ledger.snapshot, accounts)


def _more_nodes(ledger: Ledger, unit: Unit) -> Iterator[_Candidate]:
    """One empty copy of each kind of node, as many times as the unit has pods."""
    kinds: dict[str, str] = {}
    for name, account in sorted(ledger.accounts.items()):
        offered = ", ".join(
            f"{v} {k}" for k, v in sorted(account.node.allocatable.items()) if is_gpu_resource(k)
        )
        kinds.setdefault(offered or "no GPU", name)
    for offered, name in sorted(kinds.items()):
        for count in range(1, len(unit.pods) + 1):
            accounts = dict(ledger.accounts)
            for index in range(count):
                label = f"{name} (new {index})"
                labels = {**ledger.accounts[name].node.labels, "kubernetes.io/hostname": label}
                node = msgspec.structs.replace(
                    ledger.accounts[name].node, name=label, labels=labels, ready=True, unschedulable=False
                )
                accounts[label] = account_of(node, {})
            nodes = {key: account.node for key, account in accounts.items()}
            grown = Ledger(msgspec.structs.replace(ledger.snapshot, nodes=nodes), accounts)
            if _fits(unit.pods, grown, unit.needed):
                text = f"add {count} node{'s' if count > 1 else ''} like {name} ({offered})"
                yield Change("add-nodes", text), unit.pods, grown
                break


def _fits(pods: Sequence[Pod], ledger: Ledger, needed: int) -> bool:
    trial = Trial(ledger)
    placed = 0
    for pod in pods:
        node = trial.search(pod).best()
        if node is not None:
            trial.place(pod, node)
            placed += 1
    return placed >= needed


def _reshaped(unit: Unit, **changes: object) -> tuple[Pod, ...]:
    return tuple(
        msgspec.structs.replace(pod, shape=msgspec.structs.replace(pod.shape, **changes)) for pod in unit.pods
    )


def _group(pod: Pod) -> str:
    if pod.gang is not None:
        return f"gang {pod.gang_key}"
    return f"{pod.owner_kind} {pod.namespace}/{pod.owner_name}" if pod.owner_name else f"pod {pod.key}"
