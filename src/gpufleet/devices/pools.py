"""Pools: which node belongs to which, and what must change so that each node is as its pool asks.

`decide` is a function of the snapshot: pools, nodes with the record of what pools changed on them, and the
nodes' devices. A node that one pool claims gets its labels, taints and wishes; one that no pool claims any
more gets back what it had; one that several claim is left exactly as it is, and each of them names the
others. What somebody else changed after us stays (`fleet/undo`) and is told as drift. A node is also left
alone while its record, or the pool that the record names, cannot be read: nobody knows what would be undone.
The plan of a snapshot to which its plan was applied is empty, and the order of pools and nodes is no matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from gpufleet.devices.pool_records import RECORD_ANNOTATION, NodeView, PoolRecord, taint_key
from gpufleet.devices.pool_status import Member, pool_status, turned
from gpufleet.devices.pool_wishes import Wish, asks_already, device_drift, wish_of
from gpufleet.fleet.reasons import Reason
from gpufleet.fleet.selectors import LabelSelector
from gpufleet.fleet.undo import Values, difference, settle
from gpufleet.kube.conventions.labels import POOL_LABEL, PURPOSE_LABEL
from gpufleet.kube.gpunode import GPUNode
from gpufleet.kube.gpupool import GPUPool, GPUPoolSpec, GPUPoolStatus
from gpufleet.kube.values import label_selector

GPU_TAINT = (taint_key("nvidia.com/gpu", "NoSchedule"), "present")


class PoolSnapshot(msgspec.Struct, frozen=True):
    """What a decision reads. `unread` are the names of pools that exist and do not decode."""

    pools: tuple[GPUPool, ...]
    nodes: tuple[NodeView, ...]
    gpu_nodes: Mapping[str, GPUNode] = {}
    unread: frozenset[str] = frozenset()


class NodeChange(msgspec.Struct, frozen=True):
    """One write to a node, of exactly this version: what becomes of labels and taints (by `key:effect`; None:
    it goes), and the record of it.
    """

    node: NodeView
    labels: dict[str, str | None]
    taints: dict[str, str | None]
    record: PoolRecord | None
    reasons: tuple[Reason, ...] = ()

    @property
    def annotations(self) -> dict[str, str | None]:
        """The record as the node carries it."""
        return {RECORD_ANNOTATION: self.record.text if self.record else None}


class DesiredChange(msgspec.Struct, frozen=True):
    """One write to the `spec.desired` of a node's GPUNode."""

    node: str
    uid: str
    version: str
    wish: Wish


class StatusChange(msgspec.Struct, frozen=True):
    """One write of a pool's status; `reasons` are those that its people should hear of."""

    pool: GPUPool
    status: GPUPoolStatus
    reasons: tuple[Reason, ...] = ()


class PoolPlan(msgspec.Struct, frozen=True):
    """What must be written. `found` has the status of every pool, changed or not."""

    nodes: tuple[NodeChange, ...] = ()
    desired: tuple[DesiredChange, ...] = ()
    statuses: tuple[StatusChange, ...] = ()
    found: Mapping[str, GPUPoolStatus] = {}

    @property
    def is_empty(self) -> bool:
        """Whether everything is as it should be."""
        return not (self.nodes or self.desired or self.statuses)


class _Claimant(NamedTuple):
    """A pool with what it wants of each node."""

    pool: GPUPool
    selector: LabelSelector
    labels: dict[str, str]
    taints: dict[str, str]

    @property
    def name(self) -> str:
        return self.pool.metadata.name


def decide(snapshot: PoolSnapshot, now: str) -> PoolPlan:
    """What must change; `now` (RFC 3339) is the time of conditions that turn."""
    living = {
        pool.metadata.name: pool
        for pool in snapshot.pools
        if pool.metadata.deletion_timestamp is None and pool.metadata.name not in snapshot.unread
    }
    claimants = [_claimant(living[name]) for name in sorted(living)]
    members: dict[str, list[Member]] = {one.name: [] for one in claimants}
    nodes: list[NodeChange] = []
    desired: list[DesiredChange] = []
    for node in sorted(snapshot.nodes, key=lambda one: one.name):
        gpu_node = snapshot.gpu_nodes.get(node.name)
        labels = node.released.labels
        claims = [one for one in claimants if one.selector.matches(labels)]
        blocked = _blocked(node, gpu_node, snapshot.unread)
        drift: tuple[Reason, ...] = (blocked,) if blocked else ()
        if len(claims) <= 1 and blocked is None:
            owner = claims[0] if claims else None
            change, drift = _settled(node, owner)
            nodes += [change] if change else []
            desired += _wished(gpu_node, owner)
        for one in claims:
            rivals = tuple(other.name for other in claims if other is not one)
            members[one.name].append(_member(one.pool.spec, node, gpu_node, drift, rivals))
    found = {one.name: pool_status(one.pool, members[one.name], now) for one in claimants}
    statuses = [
        StatusChange(one.pool, found[one.name], turned(one.pool.status, found[one.name]))
        for one in claimants
        if found[one.name] != one.pool.status
    ]
    return PoolPlan(tuple(nodes), tuple(desired), tuple(statuses), found)


def watched(gpu_node: GPUNode) -> tuple[object, ...]:
    """What decisions read of a GPUNode: while it stays the same, readings and allocations may change."""
    devices = tuple(
        (one.index, one.uuid, one.product, one.healthy, one.mig_enabled, one.instances)
        for one in gpu_node.status.devices
    )
    return (gpu_node.metadata.uid, gpu_node.spec.desired, gpu_node.status.resources, devices)


def _claimant(pool: GPUPool) -> _Claimant:
    spec = pool.spec
    labels = {**spec.labels, POOL_LABEL: pool.metadata.name}
    if spec.purpose:
        labels[PURPOSE_LABEL] = spec.purpose
    taints = {taint_key(taint.key, taint.effect): taint.value for taint in spec.taints}
    if spec.gpu_taint:
        taints |= (GPU_TAINT,)
    return _Claimant(pool, label_selector(spec.node_selector), labels, taints)


def _blocked(node: NodeView, gpu_node: GPUNode | None, unread: frozenset[str]) -> Reason | None:
    """Why nothing may be undone on a node, and therefore nothing changed."""
    if node.damaged:
        text = (
            f"annotation {RECORD_ANNOTATION} of {node.name} is damaged; remove it if nothing is to be undone"
        )
        return Reason("PoolRecordUnreadable", text, node.name)
    held = {node.owner, gpu_node.spec.desired.pool if gpu_node else ""} & unread
    if held:
        text = f"pool {min(held)}, which holds {node.name}, cannot be read"
        return Reason("PoolRecordUnreadable", text, node.name)
    return None


def _settled(node: NodeView, owner: _Claimant | None) -> tuple[NodeChange | None, tuple[Reason, ...]]:
    """The write that makes labels and taints of a node right, and what others changed since."""
    if owner is None:
        return _written(node, node.released, None), ()
    start = node if node.owner == owner.name else node.released
    before = start.record or PoolRecord(owner.name)
    labels = settle(start.labels, owner.labels, before.labels)
    taints = settle(start.taints, owner.taints, before.taints)
    record = PoolRecord(owner.name, labels.changes, taints.changes)
    after = msgspec.structs.replace(node, labels=labels.values, taints=taints.values, record=record)
    return _written(node, after, owner), (
        *_drift("PoolLabelDrift", "label", node.labels, owner.labels, labels.drifted),
        *_drift("PoolTaintDrift", "taint", node.taints, owner.taints, taints.drifted),
    )


def _written(node: NodeView, after: NodeView, owner: _Claimant | None) -> NodeChange | None:
    if after == node:
        return None
    labels, taints = difference(node.labels, after.labels), difference(node.taints, after.taints)
    return NodeChange(node, labels, taints, after.record, _told(node, owner, labels, taints))


def _drift(code: str, what: str, have: Values, wanted: Values, keys: Iterable[str]) -> tuple[Reason, ...]:
    """One reason for all that somebody changed after us: set by hand what is asked for, and it is over."""
    texts = [
        f"{what} {key} is {'gone' if key not in have else repr(have[key])}, asked for is {wanted[key]!r}"
        for key in keys
    ]
    return (Reason(code, f"{'; '.join(texts)}; somebody changed it since, so it stays"),) if texts else ()


def _told(
    node: NodeView,
    owner: _Claimant | None,
    labels: Mapping[str, str | None],
    taints: Mapping[str, str | None],
) -> tuple[Reason, ...]:
    """What people see happen to the node; nothing where all was right and only the record is new."""
    changes = [
        f"{key}={value}" if value is not None else f"no {key}" for key, value in sorted(labels.items())
    ]
    changes += [
        f"taint {key}" if value is not None else f"no taint {key}" for key, value in sorted(taints.items())
    ]
    what = ", ".join(changes)
    if not what:
        return ()
    if owner is None:
        return (Reason("PoolUndone", f"what pool {node.owner} had changed is taken back: {what}", node.name),)
    return (Reason("PoolApplied", f"pool {owner.name} sets {what}", node.name),)


def _wished(gpu_node: GPUNode | None, owner: _Claimant | None) -> list[DesiredChange]:
    if gpu_node is None or (owner is None and not gpu_node.spec.desired.pool):
        return []
    wish = wish_of(owner.name, owner.pool.spec, gpu_node) if owner else Wish()
    meta = gpu_node.metadata
    if asks_already(gpu_node, wish):
        return []
    return [DesiredChange(meta.name, meta.uid, meta.resource_version, wish)]


def _member(
    spec: GPUPoolSpec,
    node: NodeView,
    gpu_node: GPUNode | None,
    drift: tuple[Reason, ...],
    rivals: tuple[str, ...],
) -> Member:
    devices = gpu_node.status.devices if gpu_node else ()
    if rivals:
        text = f"claimed by {', '.join(rivals)} too, so it is left as it is"
        reasons: tuple[Reason, ...] = (Reason("PoolConflict", text, node.name),)
    else:
        reasons = (*drift, *device_drift(spec, gpu_node, node.labels))
    return Member(node.name, node.ready, devices, reasons, rivals)
