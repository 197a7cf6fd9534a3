"""Attach limits: how many volumes of a CSI driver a node can take.

A volume counts once on a node, however many pods there use it; a claim that is not bound yet will be one
volume of its class's driver. In-line CSI volumes count one each, because the limit is about volumes in use on
the node; kube-scheduler leaves them out.
Source: k8s.io/kubernetes 1.37 pkg/scheduler/framework/plugins/nodevolumelimits.
"""

from __future__ import annotations

from collections import Counter

from gpufleet.fleet.pods import Pod
from gpufleet.fleet.snapshot import Snapshot
from gpufleet.scheduling.ledger import Ledger, NodeAccount
from gpufleet.scheduling.placement import Block, Check
from gpufleet.scheduling.volumes import claim_keys

_Attached = tuple[str, str]
"""A driver and what identifies one of its volumes."""


def prepare_limits(pod: Pod, ledger: Ledger) -> Check | None:
    """The filter of nodes that can attach no more volumes of a driver that the pod needs."""
    snapshot = ledger.snapshot
    mine = _volumes_of(pod, snapshot)
    drivers = {driver for driver, _ in mine}
    if not any(not drivers.isdisjoint(node.limits) for node in snapshot.attach_limits.values()):
        return None
    known: dict[str, frozenset[_Attached]] = {}

    def attached(other: Pod) -> frozenset[_Attached]:
        volumes = known.get(other.key)
        if volumes is None:
            volumes = known[other.key] = _volumes_of(other, snapshot)
        return volumes

    def check(account: NodeAccount) -> Block | None:
        node = snapshot.attach_limits.get(account.name)
        if node is None or drivers.isdisjoint(node.limits):
            return None
        others = [other for other in account.pods.values() if _uses_volumes(other)]
        there = frozenset().union(*(attached(other) for other in others))
        used = Counter(driver for driver, _ in there)
        for driver, more in sorted(Counter(driver for driver, _ in mine - there).items()):
            limit = node.limits.get(driver)
            if limit is not None and used[driver] + more > limit:
                return Block("VolumeLimitExceeded", driver, need=more, have=max(0, limit - used[driver]))
        return None

    return check


def _uses_volumes(pod: Pod) -> bool:
    return bool(pod.shape.claims or pod.shape.inline_csi_drivers)


def _volumes_of(pod: Pod, snapshot: Snapshot) -> frozenset[_Attached]:
    volumes = {(driver, f"{pod.key}#{index}") for index, driver in enumerate(pod.shape.inline_csi_drivers)}
    for key in claim_keys(pod):
        volume = _volume_of(key, snapshot)
        if volume is not None:
            volumes.add(volume)
    return frozenset(volumes)


def _volume_of(key: str, snapshot: Snapshot) -> _Attached | None:
    claim = snapshot.claims.get(key)
    if claim is None:
        return None
    volume = snapshot.volumes.get(claim.volume)
    if volume is not None:
        return (volume.csi_driver, volume.csi_handle) if volume.csi_driver else None
    storage_class = snapshot.storage_classes.get(claim.storage_class or "")
    return (storage_class.provisioner, f"claim {key}") if storage_class is not None else None
