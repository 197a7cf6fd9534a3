"""Where an unbound claim can get a volume: from the stock of existing volumes, or from a provisioner.

A fleet with local disks has a volume or a capacity object per node, so both are looked up by the label value
that ties them to a node instead of being tried one after the other.
Source: k8s.io/component-helpers/storage/volume (FindMatchingVolume), kube-scheduler's volumebinding plugin.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Generic, TypeVar

from gpufleet.fleet.nodes import Node
from gpufleet.fleet.selectors import NodeSelector, Requirement
from gpufleet.fleet.snapshot import Snapshot
from gpufleet.fleet.volumes import Claim, StorageCapacity, StorageClass, Volume
from gpufleet.scheduling.placement import Block

NO_PROVISIONER = "kubernetes.io/no-provisioner"

T = TypeVar("T")


class Stock:
    """The existing volumes that a claim could be bound to."""

    __slots__ = ("_by_node", "_claim", "_mine", "_volumes")

    def __init__(self, claim: Claim, snapshot: Snapshot) -> None:
        self._claim = claim
        self._volumes = snapshot.volumes
        fitting = [volume for volume in snapshot.volumes.values() if _fits(volume, claim)]
        self._mine = [volume for volume in fitting if _is_for(volume, claim)]
        free = [volume for volume in fitting if _is_free(volume, claim)]
        self._by_node = _Index((_anchor_of_selector(volume.node_affinity), volume) for volume in free)

    def best(self, node: Node, promised: Mapping[str, str], taken: Collection[str]) -> Volume | Block | None:
        """The volume that is meant for the claim already, or else the smallest free one within reach.

        `promised` maps volumes to the claims that got them in this decision, `taken` names volumes that other
        claims of the same pod get. A Block when the volume meant for the claim cannot be reached from the
        node.
        """
        mine = self._mine or [self._volumes[n] for n, claim in promised.items() if claim == self._claim.key]
        if mine:
            reached = (
                volume for volume in mine if volume.name not in taken and _affinity_admits(volume, node)
            )
            return next(reached, None) or out_of_reach(mine[0])
        candidates = (
            volume
            for volume in self._by_node.near(node.labels)
            if volume.name not in taken and volume.name not in promised and _affinity_admits(volume, node)
        )
        return min(candidates, key=lambda volume: (volume.capacity, volume.name), default=None)


class Provisioning:
    """Whether a volume can be made for a claim on a node."""

    __slots__ = ("_capacities", "_claim", "_class", "_exhausted", "_impossible", "_topology")

    def __init__(self, claim: Claim, snapshot: Snapshot) -> None:
        self._claim = claim
        self._class = storage_class = snapshot.storage_classes.get(claim.storage_class or "")
        name = storage_class.name if storage_class else "none"
        self._impossible = Block(
            "VolumeNodeConflict", f"no volume that fits claim {claim.key} can be used there"
        )
        self._topology = Block("VolumeNodeConflict", f"storage class {name} makes no volumes there")
        self._capacities = _capacities(storage_class, snapshot) if storage_class else None

    def block(self, node: Node) -> Block | None:
        """Why no volume is made for the claim there, or None. Capacity matters until a node is selected: from
        then on the volume may exist already and be what has used the capacity up.
        """
        storage_class = self._class
        if storage_class is None or storage_class.provisioner in ("", NO_PROVISIONER):
            return self._impossible
        topologies = storage_class.allowed_topologies
        if topologies and not any(term.matches(node.name, node.labels) for term in topologies):
            return self._topology
        if self._capacities is None or self._claim.selected_node:
            return None
        largest = max(
            (_largest(c) for c in self._capacities.near(node.labels) if _serves(c, node)), default=0
        )
        if largest >= self._claim.request:
            return None
        detail = f"storage class {storage_class.name}"
        return Block("StorageCapacityExceeded", detail, need=self._claim.request, have=largest)


class _Index(Generic[T]):
    """Things that nodes can reach, by the label value that ties them to nodes.

    An item comes with an anchor: an `In` requirement that any node which reaches it satisfies, or None.
    `near` gives a superset of what a node reaches.
    """

    __slots__ = ("_anchored", "_anywhere")

    def __init__(self, items: Iterable[tuple[Requirement | None, T]]) -> None:
        self._anywhere: list[T] = []
        self._anchored: dict[str, dict[str, list[T]]] = {}
        for anchor, item in items:
            if anchor is None:
                self._anywhere.append(item)
                continue
            by_value = self._anchored.setdefault(anchor.key, {})
            for value in dict.fromkeys(anchor.values):
                by_value.setdefault(value, []).append(item)

    def near(self, labels: Mapping[str, str]) -> Iterator[T]:
        """The items that a node with these labels may reach."""
        yield from self._anywhere
        for key, by_value in self._anchored.items():
            value = labels.get(key)
            if value is not None:
                yield from by_value.get(value, ())


def out_of_reach(volume: Volume) -> Block:
    """The block of a volume that a node cannot reach."""
    return Block("VolumeNodeConflict", f"volume {volume.name} cannot be reached from there")


def _anchor(requirements: Iterable[Requirement]) -> Requirement | None:
    return next((r for r in requirements if r.operator == "In"), None)


def _anchor_of_selector(selector: NodeSelector | None) -> Requirement | None:
    if selector is None or len(selector.terms) != 1:
        return None
    return _anchor(selector.terms[0].expressions)


def _fits(volume: Volume, claim: Claim) -> bool:
    return (
        volume.storage_class == (claim.storage_class or "")
        and volume.capacity >= claim.request
        and volume.volume_mode == claim.volume_mode
        and not volume.terminating
    )


def _is_for(volume: Volume, claim: Claim) -> bool:
    return volume.claim == claim.key and volume.claim_uid in ("", claim.uid)


def _is_free(volume: Volume, claim: Claim) -> bool:
    return (
        not volume.claim
        and volume.phase == "Available"
        and set(claim.access_modes) <= set(volume.access_modes)
        and (claim.selector is None or claim.selector.matches(volume.labels))
    )


def _affinity_admits(volume: Volume, node: Node) -> bool:
    """By node affinity alone: zone labels bind only volumes that are bound, as in kube-scheduler."""
    return volume.node_affinity is None or volume.node_affinity.matches(node.name, node.labels)


def _capacities(storage_class: StorageClass, snapshot: Snapshot) -> _Index[StorageCapacity] | None:
    """What is left for the class, or None when its driver does not say."""
    driver = snapshot.csi_drivers.get(storage_class.provisioner)
    if driver is None or not driver.capacity_tracked:
        return None
    return _Index(
        (_anchor(capacity.topology.requirements), capacity)
        for capacity in snapshot.storage_capacities
        if capacity.storage_class == storage_class.name and capacity.topology is not None
    )


def _serves(capacity: StorageCapacity, node: Node) -> bool:
    return capacity.topology is not None and capacity.topology.matches(node.labels)


def _largest(capacity: StorageCapacity) -> int:
    return capacity.capacity if capacity.maximum_volume is None else capacity.maximum_volume
