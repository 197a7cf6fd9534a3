"""Why a pod is where it is, or is nowhere: the verdict, what blocks, who holds what it needs, and what would
help.

The explanation asks the same searches and the same decision as the scheduler, on the same snapshot, and where
it says "this change would help" it has made the change on a copy and seen the pod placed. Verdicts: `running`
(bound), `soon` (it fits or room is being made), `not-now` (it fits on the empty fleet), `never` (not even
there: waiting does not help).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from gpufleet.fleet.plans import Bind, BindVolume, SelectNode, Unschedulable
from gpufleet.fleet.pods import Pod
from gpufleet.fleet.reasons import Reason
from gpufleet.fleet.snapshot import Snapshot
from gpufleet.scheduling import remedies
from gpufleet.scheduling.affinity import all_terms_test
from gpufleet.scheduling.changes import Change, helpful_changes, served
from gpufleet.scheduling.cuts import Cutting
from gpufleet.scheduling.cycle import Policy, consider, decide
from gpufleet.scheduling.gangs import Unit, subgroup_of, units
from gpufleet.scheduling.holders import Holder, holders, in_the_way
from gpufleet.scheduling.ledger import NOTHING_KEPT, Ledger, account_of
from gpufleet.scheduling.node_copies import at_its_best
from gpufleet.scheduling.placing import place
from gpufleet.scheduling.queue_remedies import CURABLE_QUEUES, exceeds_limit, queue_remedies
from gpufleet.scheduling.trial import Trial

_UNDER_WAY = frozenset({"WaitingForVictims", "WaitingForCut", "WaitingForDevices"})


class Explanation(msgspec.Struct, frozen=True):
    """The answer to "why?" for one pod. Pods `held_for` wait, too; others' room is held for them.
    `gang_rule` says by which convention the pod is of its `gang`.
    """

    namespace: str
    pod: str
    verdict: str
    reasons: tuple[Reason, ...]
    holders: tuple[Holder, ...] = ()
    held_for: tuple[Holder, ...] = ()
    changes: tuple[Change, ...] = ()
    node: str = ""
    gang: str = ""
    uid: str = ""
    gang_rule: str = ""

    def as_json(self) -> dict[str, Any]:
        """The explanation for scripts: every field present, numbers as numbers."""
        data: dict[str, Any] = msgspec.to_builtins(self)
        for reason, value in zip(data["reasons"], self.reasons, strict=True):
            reason.setdefault("subject", value.subject)
            reason.setdefault("nodes", value.nodes)
            reason.setdefault("evidence", dict(value.evidence))
        return data


def explain(snapshot: Snapshot, key: str, policy: Policy, finished: Pod | None = None) -> Explanation | None:
    """Explain the pod `namespace/name`, or None when the snapshot does not have it.

    A snapshot leaves finished pods out; `finished` is the pod when it is one of those.
    """
    pod = next((pod for pod in snapshot.pods() if pod.key == key), finished)
    if pod is None:
        return None
    if pod.finished:
        where = f" on {pod.node}" if pod.node else ""
        return _explanation(
            pod, "running", (Reason("Finished", f"ended{where}, phase {pod.phase}", pod.node),)
        )
    if pod.node:
        reasons = [Reason("Bound", f"bound to {pod.node}, phase {pod.phase}", pod.node)]
        if pod.terminating:
            text = f"it is being deleted; what it holds on {pod.node} is free once it has ended"
            reasons.insert(0, Reason("Terminating", text, pod.key))
        if pod.node not in snapshot.nodes:
            reasons.append(Reason("NodeNotFound", f"there is no node {pod.node}", pod.node))
        return _explanation(pod, "running", tuple(reasons))
    if pod.terminating:
        text = "it is being deleted, so it is not placed any more"
        return _explanation(pod, "never", (Reason("Terminating", text, pod.key),))
    if not policy.responsible(pod):
        text = f"spec.schedulerName is {pod.scheduler}, which gpufleet does not answer for"
        changes = _tried(snapshot, pod, policy, remedies.other_scheduler(snapshot, pod))
        reason = Reason("OtherScheduler", text, pod.scheduler)
        return _explanation(pod, "not-now", (reason,), changes=changes)
    if pod.gates:
        return _explain_gated(snapshot, pod, policy)
    return _explain_pending(snapshot, pod, policy)


def _explain_gated(snapshot: Snapshot, pod: Pod, policy: Policy) -> Explanation:
    """What keeps the pod back, and what would behind its gates."""
    change, opened = remedies.without_gates(snapshot, pod)
    behind = _explain_pending(opened, opened.unbound[pod.key], policy)
    fits = behind.verdict == "soon"
    then = "it fits without them" if fits else "it would wait without them, too"
    text = f"scheduling gates must be removed first: {', '.join(pod.gates)}; {then}"
    return _explanation(
        pod,
        "never" if behind.verdict == "never" else "not-now",
        (Reason("SchedulingGated", text, pod.key), *(() if fits else behind.reasons)),
        behind.holders,
        behind.held_for,
        (change,) if fits else (),
    )


def _explain_pending(snapshot: Snapshot, pod: Pod, policy: Policy) -> Explanation:
    plan, after = consider(snapshot, policy)
    actions = [action for action in plan.actions if action.pod.key == pod.key]
    if any(isinstance(action, Bind | SelectNode | BindVolume) for action in actions):
        text = "it fits now; the next decision places it"
        return _explanation(pod, "soon", (Reason("Schedulable", text, pod.key),))
    reasons = next(action.reasons for action in actions if isinstance(action, Unschedulable))
    if any(reason.code in _UNDER_WAY for reason in reasons):
        return _explanation(pod, "soon", reasons)
    if any(reason.code == "WaitingForVolume" for reason in reasons):
        changes = _tried(snapshot, pod, policy, remedies.with_volumes(snapshot, pod, reasons))
        return _explanation(pod, "soon", reasons, changes=changes)
    bound = {action.pod.key for action in plan.actions if isinstance(action, Bind)}
    queue = units(snapshot, policy.responsible)
    unit = next(unit for unit in queue if any(member.key == pod.key for member in unit.pods))
    starting = [member for member in unit.pods if member.key in bound]
    if (unit.surplus or starting) and subgroup_of(pod) not in unit.short(starting):
        # The gang runs without it, so it is one pod like any other.
        unit = Unit((pod,))
    verdict = "not-now" if unit.problem is not None or fits_empty(snapshot, unit) else "never"
    if any(reason.code in remedies.CURABLE for reason in reasons):
        changes = _tried(snapshot, pod, policy, remedies.remedies(snapshot, pod, unit))
        return _explanation(pod, verdict, reasons, changes=changes)
    if any(reason.code in CURABLE_QUEUES for reason in reasons):
        verdict = "never" if verdict == "never" or exceeds_limit(reasons) else "not-now"
        changes = _tried(snapshot, pod, policy, queue_remedies(snapshot, unit))
        return _explanation(pod, verdict, reasons, changes=changes)
    held, held_for = holders(in_the_way(after, unit), unit, bound)
    changes = helpful_changes(snapshot, policy, after, unit, pod, bound)
    return _explanation(pod, verdict, reasons, held, held_for, changes)


def _tried(
    snapshot: Snapshot, pod: Pod, policy: Policy, candidates: Iterable[tuple[Change, Snapshot]]
) -> tuple[Change, ...]:
    """The changes after which the pod is placed."""
    alone = Unit((pod,))
    return tuple(change for change, changed in candidates if served(decide(changed, policy), alone))


def fits_empty(snapshot: Snapshot, unit: Unit) -> bool:
    """Whether the unit would be placed if every node were ready, healthy, uncordoned and without pods.

    Whom the pods must be near may still come, so others' absence does not count.
    """
    nodes = {name: at_its_best(node) for name, node in snapshot.nodes.items()}
    empty = msgspec.structs.replace(snapshot, nodes=nodes, pods_by_node={})
    accounts = {name: account_of(node, {}, NOTHING_KEPT) for name, node in nodes.items()}
    pods = [_in_company(pod, snapshot) for pod in unit.pods]
    placed = place(pods, Trial(Ledger(empty, accounts)))
    if unit.enough([placement.pod for placement in placed]):
        return True
    return Cutting(Trial(Ledger(empty, accounts))).rooms(unit, pods) is not None


def _in_company(pod: Pod, snapshot: Snapshot) -> Pod:
    shape = pod.shape
    if not shape.affinity or all_terms_test(shape.affinity, snapshot.namespaces)(pod):
        return pod
    return msgspec.structs.replace(pod, shape=msgspec.structs.replace(shape, affinity=()))


def _explanation(
    pod: Pod,
    verdict: str,
    reasons: tuple[Reason, ...],
    holders: tuple[Holder, ...] = (),
    held_for: tuple[Holder, ...] = (),
    changes: tuple[Change, ...] = (),
) -> Explanation:
    return Explanation(
        pod.namespace,
        pod.name,
        verdict,
        reasons,
        holders,
        held_for,
        changes,
        pod.node,
        pod.gang.name if pod.gang else "",
        pod.uid,
        pod.gang.rule if pod.gang else "",
    )
