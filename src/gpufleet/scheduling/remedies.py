"""What would cure a pod that no node is looked at for: each remedy with the snapshot after it.

Gates, the name of another scheduler, claims that do not exist and gangs that are not complete or not
understood. `explain` asks the decision about every one of them and offers those after which the pod is
placed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from gpufleet.fleet.gangs import Gang
from gpufleet.fleet.pods import GANG_LABEL, GANG_LABELS_RULE, GANG_SIZE_LABEL, SCHEDULER_NAME, Pod
from gpufleet.fleet.reasons import Reason
from gpufleet.fleet.snapshot import Snapshot
from gpufleet.scheduling.changes import Change
from gpufleet.scheduling.gangs import Unit, described, subgroup_of

CURABLE = frozenset({"ClaimNotFound", "GangIncomplete", "GangInvalid"})
"""Codes of reasons for which there may be a remedy here."""

Remedy = tuple[Change, Snapshot]


def without_gates(snapshot: Snapshot, pod: Pod) -> Remedy:
    """The pod, and those of its gang that are gated, too, without gates."""
    gated = [mate for mate in _with_mates(snapshot, pod) if mate.gates]
    opened = _replaced(snapshot, (msgspec.structs.replace(mate, gates=()) for mate in gated))
    gates = sorted({gate for mate in gated for gate in mate.gates})
    what = "the scheduling gate" if len(gates) == 1 else "the scheduling gates"
    text = f"{_every(pod, gated)}remove {what} {', '.join(gates)} (it is for whoever set it to do so)"
    return Change("remove-gates", text), opened


def other_scheduler(snapshot: Snapshot, pod: Pod) -> Iterator[Remedy]:
    """The pod, and those of its gang that say the same scheduler, decided about by gpufleet."""
    theirs = [mate for mate in _with_mates(snapshot, pod) if mate.scheduler == pod.scheduler]
    ours = (msgspec.structs.replace(mate, scheduler=SCHEDULER_NAME) for mate in theirs)
    text = f"{_every(pod, theirs)}create it again with schedulerName: {SCHEDULER_NAME}"
    yield Change("change-scheduler", text), _replaced(snapshot, ours)


def remedies(snapshot: Snapshot, pod: Pod, unit: Unit) -> Iterator[Remedy]:
    """What would cure the problem of a unit, or of claims of its pods."""
    if unit.problem is None:
        yield from _claims(snapshot, unit)
        return
    if pod.gang is None or not pod.gang.name:
        yield _single(snapshot, pod)
        return
    kept_back = [mate for mate in _with_mates(snapshot, pod) if mate.key not in {p.key for p in unit.pods}]
    if unit.problem.code == "GangIncomplete":
        if kept_back:
            yield from _let_in(snapshot, kept_back)
        elif "need" in unit.problem.evidence:
            yield _completed(snapshot, unit)
    yield _resized(snapshot, unit)


def with_volumes(snapshot: Snapshot, pod: Pod, reasons: Iterable[Reason]) -> Iterator[Remedy]:
    """As if the claims that wait for their volumes had them: the pod's own and those of its gang."""
    keys = dict.fromkeys(reason.subject for reason in reasons if reason.code == "WaitingForVolume")
    provided = [
        msgspec.structs.replace(mate, shape=msgspec.structs.replace(mate.shape, claims=()))
        for mate in _with_mates(snapshot, pod)
    ]
    text = (
        f"provide a volume for {', '.join(keys)}: run the provisioner, or create the claim with another class"
    )
    yield Change("provide-volume", text), _replaced(snapshot, provided)


def _claims(snapshot: Snapshot, unit: Unit) -> Iterator[Remedy]:
    """As if every claim that is missing existed and its volume could be used everywhere."""
    missing: list[str] = []
    changed: list[Pod] = []
    for pod in unit.pods:
        there = tuple(name for name in pod.shape.claims if f"{pod.namespace}/{name}" in snapshot.claims)
        missing += [f"{pod.namespace}/{name}" for name in pod.shape.claims if name not in there]
        changed.append(msgspec.structs.replace(pod, shape=msgspec.structs.replace(pod.shape, claims=there)))
    names = ", ".join(dict.fromkeys(missing))
    what = "the PersistentVolumeClaim" if len(set(missing)) == 1 else "the PersistentVolumeClaims"
    yield Change("create-claim", f"create {what} {names}"), _replaced(snapshot, changed)


def _let_in(snapshot: Snapshot, kept_back: list[Pod]) -> Iterator[Remedy]:
    gated = [mate for mate in kept_back if mate.gates and not mate.terminating]
    if gated:
        names = ", ".join(sorted(mate.name for mate in gated))
        change = Change("remove-gates", f"remove the scheduling gates of {names}")
        yield change, _replaced(snapshot, (msgspec.structs.replace(mate, gates=()) for mate in gated))


def _completed(snapshot: Snapshot, unit: Unit) -> Remedy:
    evidence = unit.problem.evidence if unit.problem is not None else {}
    missing = int(evidence["need"]) - int(evidence["have"])
    group = str(evidence.get("subgroup", ""))
    alike = (pod for pod in unit.pods if not group or subgroup_of(pod) == group)
    model = next(alike, unit.pods[0])
    if group and model.gang is not None:
        model = msgspec.structs.replace(model, gang=msgspec.structs.replace(model.gang, subgroup=group))
    more = [
        msgspec.structs.replace(model, name=f"{model.name} (new {i})", uid=f"{model.uid} (new {i})")
        for i in range(1, missing + 1)
    ]
    what = "1 more pod" if missing == 1 else f"{missing} more pods"
    part = f"subgroup {group} of " if group else ""
    change = Change("complete-gang", f"create {what} of {part}gang {unit.gang} like {model.name}")
    return change, _replaced(snapshot, more)


def _single(snapshot: Snapshot, pod: Pod) -> Remedy:
    text = f"remove {GANG_SIZE_LABEL}, or name the gang with {GANG_LABEL}"
    return Change("name-gang", text), _replaced(snapshot, [msgspec.structs.replace(pod, gang=None)])


def _resized(snapshot: Snapshot, unit: Unit) -> Remedy:
    """As many as there are, as the size that its object states, or all of its pods."""
    size = _there(unit)
    rule = next((pod.gang.rule for pod in unit.pods if pod.gang is not None), "")
    known = described(unit.gang, unit.pods, snapshot.gangs)
    if known is None or known in snapshot.gangs.values():
        key = known.key if known is not None else unit.gang
        verb = "create" if known is None else "change"
        text = f"{verb} the {rule} of gang {unit.gang}, with a minimum of {size}"
        gangs = {**snapshot.gangs, key: Gang(key, rule, size)}
        return Change("resize-gang", text), msgspec.structs.replace(snapshot, gangs=gangs)
    text = f"set {GANG_SIZE_LABEL} to {size} on every pod of gang {unit.gang}"
    if rule != GANG_LABELS_RULE:
        text = f"state {size} as the size on every pod of gang {unit.gang} ({rule})"
    stated = (
        msgspec.structs.replace(
            pod, gang=msgspec.structs.replace(pod.gang, minimum=size, problem="", stated=None)
        )
        for pod in unit.pods
        if pod.gang is not None
    )
    return Change("resize-gang", text), _replaced(snapshot, stated)


def _there(unit: Unit) -> int:
    evidence = unit.problem.evidence if unit.problem is not None else {}
    have = evidence.get("have")
    return have if isinstance(have, int) and "subgroup" not in evidence else len(unit.pods) + unit.running


def _with_mates(snapshot: Snapshot, pod: Pod) -> list[Pod]:
    """The pod and, if it is of a gang, every other pod of the gang that is not bound."""
    if not pod.gang_key:
        return [pod]
    return [other for other in snapshot.unbound.values() if other.gang_key == pod.gang_key]


def _every(pod: Pod, changed: list[Pod]) -> str:
    return f"every pod of gang {pod.gang_key}: " if len(changed) > 1 else ""


def _replaced(snapshot: Snapshot, pods: Iterable[Pod]) -> Snapshot:
    return msgspec.structs.replace(snapshot, unbound={**snapshot.unbound, **{pod.key: pod for pod in pods}})
