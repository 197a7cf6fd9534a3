"""Filters: what keeps a pod off a node, in one table, cheapest first.

The order is also the order of explanation: a node counts for the first filter that blocks it, and there once
for each resource that is short. Semantics are those of kube-scheduler 1.37; tests/unit/test_kube_scheduler.py
asks its plugins about random clusters. What differs is decided: a node that is not ready is out, and named as
such, before the node controller has tainted it; so is a node with a pod that gpufleet cannot read; what
differs for volumes is told in `volumes` and `attachments`. A shortage that waiting cures
(InsufficientResource, TooManyPods, DeviceUnhealthy) is told from one that it does not, and where a volume is
comes before who uses it.
"""

from __future__ import annotations

from collections.abc import Container

import msgspec

from gpufleet.fleet.pods import KUBE_SCHEDULER_NAME, SCHEDULER_NAME, Pod, is_gpu_resource
from gpufleet.fleet.selectors import Taint, Toleration, untolerated
from gpufleet.scheduling import affinity, attachments, fractions, nodeaffinity, spread, volumes
from gpufleet.scheduling.ledger import Ledger, NodeAccount
from gpufleet.scheduling.placement import Block, Check, Filter

_UNSCHEDULABLE = Taint("node.kubernetes.io/unschedulable", "NoSchedule")
_NOT_READY = Taint("node.kubernetes.io/not-ready", "NoSchedule")
_UNREACHABLE = Taint("node.kubernetes.io/unreachable", "NoSchedule")


def pod_problem(
    pod: Pod, ledger: Ledger, schedulers: Container[str] = frozenset({SCHEDULER_NAME})
) -> Block | None:
    """Why the pod, which has no gates, cannot be placed whatever the node, or None.

    `schedulers` are the names that gpufleet answers for.
    """
    if pod.shape.resource_claims:
        return Block("DynamicResources", _who_allocates(pod, schedulers))
    if (fault := fractions.fault(pod.shape)) is not None:
        return Block("FractionInvalid", fault)
    problem = volumes.volume_problem(pod, ledger.snapshot)
    if problem is None and not ledger.accounts:
        return Block("NoNodes", "the cluster has no nodes")
    return problem


def prepare_ready(pod: Pod, ledger: Ledger) -> Check | None:
    """Nodes that are not ready, unless the pod tolerates the taint that says so, or that soon will."""
    tolerations = pod.shape.tolerations

    def check(account: NodeAccount) -> Block | None:
        node = account.node
        if node.ready:
            return None
        taints = [taint for taint in node.taints if taint in (_NOT_READY, _UNREACHABLE)]
        if untolerated(taints or (_NOT_READY, _UNREACHABLE), tolerations) is None:
            return None
        return Block("NodeNotReady", "the node is not ready")

    return check


def prepare_schedulable(pod: Pod, ledger: Ledger) -> Check | None:
    """Cordoned nodes, unless the pod tolerates them."""
    if _tolerates(pod.shape.tolerations, _UNSCHEDULABLE):
        return None
    block = Block("NodeUnschedulable", "the node is cordoned")
    return lambda account: block if account.node.unschedulable else None


def prepare_accounted(pod: Pod, ledger: Ledger) -> Check | None:
    """Nodes with pods that could not be read: their GPUs look free and are not."""
    if not any(account.node.unread_pods for account in ledger.accounts.values()):
        return None

    def check(account: NodeAccount) -> Block | None:
        unread = account.node.unread_pods
        return Block("NodeUnaccounted", ", ".join(unread)) if unread else None

    return check


def prepare_taints(pod: Pod, ledger: Ledger) -> Check | None:
    """Taints NoSchedule and NoExecute that the pod does not tolerate."""
    tolerations = pod.shape.tolerations
    answers: dict[tuple[Taint, ...], Block | None] = {(): None}

    def check(account: NodeAccount) -> Block | None:
        taints = account.node.taints
        try:
            return answers[taints]
        except KeyError:
            taint = untolerated(taints, tolerations)
            block = Block("UntoleratedTaint", f"taint {taint}") if taint is not None else None
            answers[taints] = block
            return block

    return check


def prepare_resources(pod: Pod, ledger: Ledger) -> Check | None:
    """Resources of which the node has too little. What the pod does not ask for never blocks, however
    overcommitted.
    """
    wanted = tuple(sorted((item for item in pod.shape.requests if item[1] > 0), key=_most_telling_first))
    if not wanted:
        return None

    def check(account: NodeAccount) -> Block | None:
        allocatable, used = account.node.allocatable, account.used
        for resource, amount in wanted:
            if amount > allocatable.get(resource, 0) - used.get(resource, 0):
                return _shortage(account, wanted)
        return None

    return check


def prepare_ports(pod: Pod, ledger: Ledger) -> Check | None:
    """Host ports that a pod on the node holds."""
    wanted = pod.shape.host_ports
    if not wanted:
        return None

    def check(account: NodeAccount) -> Block | None:
        if account.ports:
            for port in wanted:
                if any(port.conflicts(held) for held in account.ports):
                    address = f"{port.address}:" if port.address else ""
                    return Block("HostPortTaken", f"host port {address}{port.port}/{port.protocol}")
        return None

    return check


FILTERS: tuple[Filter, ...] = (
    Filter("node ready",        prepare_ready,                       local=True),
    Filter("node schedulable",  prepare_schedulable,                 local=True),
    Filter("node accounted",    prepare_accounted,                   local=True),
    Filter("taints",            prepare_taints,                      local=True),
    Filter("node selector",     nodeaffinity.prepare_node_selector,  local=True),
    Filter("node affinity",     nodeaffinity.prepare_required,       local=True),
    Filter("volume reach",      volumes.prepare_reach,               local=True),
    Filter("resources",         prepare_resources,                   local=True),
    Filter("GPU fraction",      fractions.prepare_room,              local=True),
    Filter("host ports",        prepare_ports,                       local=True),
    Filter("attach limits",     attachments.prepare_limits,          local=True),
    Filter("volume places",     volumes.prepare_nodes,               local=False),
    Filter("volumes in use",    volumes.prepare_use,                 local=False),
    Filter("pod affinity",      affinity.prepare_required,           local=False),
    Filter("topology spread",   spread.prepare_hard,                 local=False),
)  # fmt: skip


def _who_allocates(pod: Pod, schedulers: Container[str]) -> str:
    if KUBE_SCHEDULER_NAME in schedulers:
        return (
            "only kube-scheduler allocates ResourceClaims (DRA), and it does not run here: "
            f"nobody but gpufleet answers for {KUBE_SCHEDULER_NAME}"
        )
    return (
        "only kube-scheduler allocates ResourceClaims (DRA): it takes the pod with schedulerName "
        f"{KUBE_SCHEDULER_NAME}, not {pod.scheduler}"
    )


def _tolerates(tolerations: tuple[Toleration, ...], taint: Taint) -> bool:
    return any(toleration.tolerates(taint) for toleration in tolerations)


def _most_telling_first(request: tuple[str, int]) -> tuple[int, str]:
    """GPUs before other devices before CPU and memory: the scarcest thing is what people look for."""
    resource = request[0]
    if is_gpu_resource(resource):
        return 0, resource
    return (1 if "/" in resource else 2), resource


def _shortage(account: NodeAccount, wanted: tuple[tuple[str, int], ...]) -> Block | None:
    """Every resource that is short; if waiting cures one of them and another one not, only the latter."""
    lasting: list[Block] = []
    passing: list[Block] = []
    for resource, amount in wanted:
        capacity, free = account.node.allocatable.get(resource, 0), account.free(resource)
        if amount <= free:
            continue
        devices = capacity + account.node.unhealthy.get(resource, 0)
        if resource == "pods":
            passing.append(Block("TooManyPods", resource, amount, free))
        elif devices <= 0:
            lasting.append(Block("ResourceNotOffered", resource, amount))
        elif amount > devices:
            lasting.append(Block("ExceedsNodeCapacity", resource, amount, devices))
        elif amount > capacity:
            passing.append(Block("DeviceUnhealthy", resource, amount, capacity, total=devices))
        else:
            passing.append(Block("InsufficientResource", resource, amount, free))
    short = lasting or passing
    if len(short) < 2:
        return short[0] if short else None
    return msgspec.structs.replace(short[0], more=tuple(short[1:]))
