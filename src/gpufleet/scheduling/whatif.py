"""What if: the fleet with some nodes more or less and some pods more, decided until nothing more starts.

The scenario is an edited copy of the snapshot and its outcome is what `cycle.decide` does there, so the
answer is the scheduler's own. Both the fleet as it is and the edited one are settled before they are
compared: bindings are carried out until there are none left. Nothing else is: evictions, cuts and volumes
stay what they would be, and pods for which they are meant are `soon`. A pod on a node that is removed is made
again by its owner and waits like any other; one without owner, or of a DaemonSet, is gone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.nodes import Node
from gpufleet.fleet.plans import Bind, Evict, Nominate, Plan, Unschedulable
from gpufleet.fleet.pods import Pod, PodShape, is_gpu_resource
from gpufleet.fleet.reasons import Reason
from gpufleet.fleet.selectors import Toleration
from gpufleet.fleet.snapshot import Snapshot
from gpufleet.scheduling.cycle import Policy, decide
from gpufleet.scheduling.node_copies import at_its_best, copied_devices, copies

State = Literal["running", "placed", "soon", "evicted", "pending", "other", "gone"]

STATES: dict[State, str] = {
    "running": "is bound already and stays",
    "placed": "would be bound now",
    "soon": "would start once somebody has ended, a GPU is cut or a volume is there",
    "evicted": "would have to end for another pod",
    "pending": "would wait",
    "other": "is left to another scheduler",
    "gone": "would end with its node",
}
"""What a state means for people."""

PRODUCT, POOL = "nvidia.com/gpu.product", "gpufleet.dev/pool"

_UNDER_WAY = frozenset({"WaitingForVictims", "WaitingForCut", "WaitingForDevices", "WaitingForVolume"})
_ENDS_WITH_ITS_NODE = ("", "DaemonSet", "Node")
"""Owners that do not make a pod again elsewhere."""


class Added(msgspec.Struct, frozen=True):
    """Empty nodes like one that there is."""

    like: str
    count: int


class Scenario(msgspec.Struct, frozen=True):
    """What is changed. `pods` are new and come after all that wait with their priority."""

    added: tuple[Added, ...] = ()
    removed: tuple[str, ...] = ()
    pods: tuple[Pod, ...] = ()


class Outcome(msgspec.Struct, frozen=True):
    """What becomes of one pod, where (empty: nowhere), and why. `beneficiary` is for whom it is evicted."""

    state: State
    node: str = ""
    reasons: tuple[Reason, ...] = ()
    beneficiary: str = ""


class GPUUse(msgspec.Struct, frozen=True):
    """A GPU resource on the nodes of one pool and product (empty: the nodes carry no such label). `total` are
    the healthy devices; `used` is what pods asked for, also on nodes that take no new ones.
    """

    pool: str
    product: str
    resource: str
    nodes: int
    total: int
    used: int
    free: int


class Summary(msgspec.Struct, frozen=True):
    """A settled fleet: pods by state, GPUs, and how many pods that do not run have each reason."""

    nodes: int
    pods: Mapping[str, int]
    gpus: tuple[GPUUse, ...]
    reasons: Mapping[str, int]


class Changed(msgspec.Struct, frozen=True):
    """A pod (`namespace/name`) whose state, node or beneficiary differs; None where there is no such pod."""

    pod: str
    before: Outcome | None
    after: Outcome | None


class Answer(msgspec.Struct, frozen=True):
    """The fleet as it is and as it would be, and the pods that make the difference, by name."""

    before: Summary
    after: Summary
    changed: tuple[Changed, ...]


def what_if(snapshot: Snapshot, policy: Policy, scenario: Scenario) -> Answer:
    """What a scenario would change. Raises GpufleetError (NotFound, AlreadyExists) for a node that does not
    exist, or a pod that does.
    """
    before = _settled(snapshot, policy)
    after = _settled(edited(snapshot, scenario), policy)
    then = {**_gone(snapshot, scenario), **after.outcomes}
    changed = tuple(
        Changed(key, before.outcomes.get(key), then.get(key))
        for key in sorted(before.outcomes.keys() | then.keys())
        if _place(before.outcomes.get(key)) != _place(then.get(key))
    )
    return Answer(_summary(before, before.outcomes), _summary(after, then), changed)


def with_usual_tolerations(
    pods: tuple[Pod, ...], snapshot: Snapshot
) -> tuple[tuple[Pod, ...], tuple[str, ...]]:
    """New pods with the tolerations that admission gives them, and the resources that these are about.

    Where Kubernetes runs with ExtendedResourceToleration, a pod that asks for a resource tolerates the taint
    of its name. Whether it does shows in the pods that are there: each that asks for it has the toleration.
    """
    tainted = {taint.key for node in snapshot.nodes.values() for taint in node.taints}
    there = {pod.shape for pod in snapshot.pods()}
    usual = {
        resource
        for resource in tainted
        if (asking := [shape for shape in there if _asks(shape, resource)])
        and all(_tolerates(shape, resource) for shape in asking)
    }
    found: dict[str, None] = {}
    changed = []
    for pod in pods:
        new = [name for name in sorted(usual) if _asks(pod.shape, name) and not _tolerates(pod.shape, name)]
        more = tuple(Toleration(name, "Exists") for name in new)
        shape = msgspec.structs.replace(pod.shape, tolerations=(*pod.shape.tolerations, *more))
        changed.append(msgspec.structs.replace(pod, shape=shape) if more else pod)
        found |= dict.fromkeys(new)
    return tuple(changed), tuple(found)


def _asks(shape: PodShape, resource: str) -> bool:
    return any(name == resource for name, _ in shape.requests)


def _tolerates(shape: PodShape, key: str) -> bool:
    return any(one.key in ("", key) and one.operator == "Exists" for one in shape.tolerations)


def edited(snapshot: Snapshot, scenario: Scenario) -> Snapshot:
    """The snapshot after the change, nothing decided yet; raises as `what_if` does."""
    for name in (*scenario.removed, *(added.like for added in scenario.added)):
        if name not in snapshot.nodes:
            raise _no_node(name, snapshot.nodes)
    nodes = {name: node for name, node in snapshot.nodes.items() if name not in scenario.removed}
    devices = {name: one for name, one in snapshot.devices.items() if name not in scenario.removed}
    limits = dict(snapshot.attach_limits)
    for added in _merged(scenario.added):
        for node in copies(at_its_best(snapshot.nodes[added.like]), added.count):
            nodes[node.name] = node
            if added.like in snapshot.devices:
                devices[node.name] = copied_devices(snapshot.devices[added.like], node.name)
            if added.like in limits:
                limits[node.name] = msgspec.structs.replace(limits[added.like], node=node.name)
    by_node = {name: pods for name, pods in snapshot.pods_by_node.items() if name not in scenario.removed}
    return msgspec.structs.replace(
        snapshot,
        nodes=nodes,
        devices=devices,
        attach_limits=limits,
        pods_by_node=by_node,
        unbound={**snapshot.unbound, **_made_again(snapshot, scenario), **_new(snapshot, scenario)},
    )


def _merged(added: Iterable[Added]) -> list[Added]:
    """How many nodes are added like each one; the same node may be named more than once."""
    counts: Counter[str] = Counter()
    for one in added:
        counts[one.like] += one.count
    return [Added(like, count) for like, count in counts.items()]


def _on(snapshot: Snapshot, names: Sequence[str]) -> list[Pod]:
    return [pod for name in names for pod in snapshot.pods_by_node.get(name, {}).values()]


def _ends(pod: Pod) -> bool:
    return pod.terminating or pod.owner_kind in _ENDS_WITH_ITS_NODE


def _made_again(snapshot: Snapshot, scenario: Scenario) -> dict[str, Pod]:
    """The pods of removed nodes that their owners make again, under the same name."""
    now = _latest(snapshot)
    return {
        pod.key: msgspec.structs.replace(
            pod, node="", nominated_node="", phase="Pending", created=now, reported=False, picks=()
        )
        for pod in _on(snapshot, scenario.removed)
        if not _ends(pod)
    }


def _gone(snapshot: Snapshot, scenario: Scenario) -> dict[str, Outcome]:
    return {
        pod.key: Outcome(
            "gone",
            reasons=(Reason("NodeNotFound", f"{pod.node} is removed, and nobody makes it again", pod.node),),
        )
        for pod in _on(snapshot, scenario.removed)
        if _ends(pod)
    }


def _new(snapshot: Snapshot, scenario: Scenario) -> dict[str, Pod]:
    known = {pod.key for pod in snapshot.pods()}
    for pod in scenario.pods:
        if pod.key in known:
            raise GpufleetError(
                reason="AlreadyExists",
                message=f"there is a pod {pod.key} already",
                hint="change the name in the manifest, or choose another namespace with -n",
            )
    now = _latest(snapshot)
    return {pod.key: msgspec.structs.replace(pod, created=now) for pod in scenario.pods}


def _latest(snapshot: Snapshot) -> float:
    """A moment after every pod was created."""
    return max((pod.created for pod in snapshot.pods()), default=0.0) + 1


class _Settled(msgspec.Struct, frozen=True):
    """A fleet where no more pod can be bound, what the last decision wants there, and every outcome."""

    snapshot: Snapshot
    outcomes: Mapping[str, Outcome]


def _settled(snapshot: Snapshot, policy: Policy) -> _Settled:
    placed: dict[str, Outcome] = {}
    while True:
        plan = decide(snapshot, policy)
        binds = [action for action in plan.actions if isinstance(action, Bind)]
        if not binds:
            return _Settled(snapshot, _outcomes(snapshot, policy, plan, placed))
        placed |= {action.pod.key: Outcome("placed", action.node, action.reasons) for action in binds}
        snapshot = _carried_out(snapshot, plan, binds)


def _carried_out(snapshot: Snapshot, plan: Plan, binds: Sequence[Bind]) -> Snapshot:
    """The snapshot with the bindings and nominations of a plan; who is bound runs."""
    by_node, unbound = dict(snapshot.pods_by_node), dict(snapshot.unbound)
    for action in plan.actions:
        if isinstance(action, Nominate) and action.pod.key in unbound:
            pod = unbound[action.pod.key]
            unbound[pod.key] = msgspec.structs.replace(pod, nominated_node=action.node)
    for action in binds:
        pod = unbound.pop(action.pod.key)
        runs = msgspec.structs.replace(
            pod, node=action.node, nominated_node="", phase="Running", picks=action.picks
        )
        by_node[action.node] = {**by_node.get(action.node, {}), pod.key: runs}
    return msgspec.structs.replace(snapshot, pods_by_node=by_node, unbound=unbound)


def _outcomes(
    snapshot: Snapshot, policy: Policy, plan: Plan, placed: Mapping[str, Outcome]
) -> dict[str, Outcome]:
    found: dict[str, Outcome] = {}
    for pods in snapshot.pods_by_node.values():
        for key, pod in pods.items():
            found[key] = placed.get(key) or Outcome("running", pod.node)
    nominated = {action.pod.key: action.node for action in plan.actions if isinstance(action, Nominate)}
    for key, pod in snapshot.unbound.items():
        found[key] = _undecided(pod, policy)
    for action in plan.actions:
        key = action.pod.key
        if isinstance(action, Evict):
            found[key] = Outcome("evicted", action.pod.node, action.reasons, action.beneficiary)
        elif isinstance(action, Unschedulable):
            soon = any(reason.code in _UNDER_WAY for reason in action.reasons)
            node = nominated.get(key, action.pod.nominated_node) if soon else ""
            found[key] = Outcome("soon" if soon else "pending", node, action.reasons)
    return found


def _undecided(pod: Pod, policy: Policy) -> Outcome:
    """What becomes of a pod about which nothing is decided."""
    if pod.terminating:
        return Outcome("pending", reasons=(Reason("Terminating", "it is being deleted", pod.key),))
    if not policy.responsible(pod):
        text = f"it is left to scheduler {pod.scheduler}"
        return Outcome("other", reasons=(Reason("OtherScheduler", text, pod.scheduler),))
    text = f"scheduling gates must be removed first: {', '.join(pod.gates)}"
    return Outcome("pending", reasons=(Reason("SchedulingGated", text, pod.key),))


def _place(outcome: Outcome | None) -> tuple[str, ...] | None:
    """What makes two outcomes different."""
    return None if outcome is None else (outcome.state, outcome.node, outcome.beneficiary)


def _summary(settled: _Settled, outcomes: Mapping[str, Outcome]) -> Summary:
    states = Counter(outcome.state for outcome in outcomes.values())
    reasons = Counter(
        code
        for outcome in outcomes.values()
        if outcome.state in ("pending", "soon")
        for code in dict.fromkeys(reason.code for reason in outcome.reasons)
    )
    return Summary(
        nodes=len(settled.snapshot.nodes),
        pods={state: states[state] for state in STATES},
        gpus=_gpus(settled.snapshot),
        reasons=dict(sorted(reasons.items())),
    )


def _gpus(snapshot: Snapshot) -> tuple[GPUUse, ...]:
    groups: dict[tuple[str, str, str], list[tuple[int, int]]] = {}
    for node in snapshot.nodes.values():
        used: Counter[str] = Counter()
        for pod in snapshot.pods_by_node.get(node.name, {}).values():
            for resource, amount in pod.shape.requests:
                used[resource] += amount
        for resource in sorted(filter(is_gpu_resource, {**node.allocatable, **used})):
            total = node.allocatable.get(resource, 0)
            if total or used[resource]:
                groups.setdefault((*_kind(node), resource), []).append((total, used[resource]))
    return tuple(
        GPUUse(
            *key,
            nodes=len(amounts),
            total=sum(total for total, _ in amounts),
            used=sum(used for _, used in amounts),
            free=sum(max(total - used, 0) for total, used in amounts),
        )
        for key, amounts in sorted(groups.items())
    )


def _kind(node: Node) -> tuple[str, str]:
    return node.labels.get(POOL, ""), node.labels.get(PRODUCT, "")


def _no_node(name: str, nodes: Mapping[str, Node]) -> GpufleetError:
    some = ", ".join(sorted(nodes)[:5]) + (", ..." if len(nodes) > 5 else "")
    hint = f"there are: {some}" if nodes else "there are none"
    return GpufleetError(reason="NotFound", message=f"there is no node {name}", hint=hint)
