"""Storage as a scheduler sees it: claims, volumes, classes, what a node may attach, and capacity."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from gpufleet.fleet.selectors import LabelSelector, NodeSelector, NodeSelectorTerm


class Claim(msgspec.Struct, frozen=True):
    """A PersistentVolumeClaim. `phase` is Pending, Bound or Lost; `request` in bytes.

    `storage_class` None means that the claim names none and got none by default; an empty string asks for a
    volume without class. `selected_node` is the annotation volume.kubernetes.io/selected-node.
    """

    namespace: str
    name: str
    uid: str
    phase: str
    request: int = 0
    storage_class: str | None = None
    volume: str = ""
    access_modes: tuple[str, ...] = ()
    volume_mode: str = "Filesystem"
    selector: LabelSelector | None = None
    selected_node: str = ""
    terminating: bool = False

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"


class Volume(msgspec.Struct, frozen=True):
    """A PersistentVolume. `claim` is `namespace/name` of its claimRef, `claim_uid` its uid; `capacity` in
    bytes.
    """

    name: str
    capacity: int
    phase: str = "Available"
    storage_class: str = ""
    access_modes: tuple[str, ...] = ()
    volume_mode: str = "Filesystem"
    node_affinity: NodeSelector | None = None
    labels: Mapping[str, str] = {}
    claim: str = ""
    claim_uid: str = ""
    csi_driver: str = ""
    csi_handle: str = ""
    terminating: bool = False


class StorageClass(msgspec.Struct, frozen=True):
    """A StorageClass. `waits` is volumeBindingMode WaitForFirstConsumer."""

    name: str
    provisioner: str
    waits: bool = False
    allowed_topologies: tuple[NodeSelectorTerm, ...] = ()


class CSIDriver(msgspec.Struct, frozen=True):
    """A CSIDriver object; `capacity_tracked` is spec.storageCapacity, `attaches` is spec.attachRequired."""

    name: str
    capacity_tracked: bool = False
    attaches: bool = True


class StorageCapacity(msgspec.Struct, frozen=True):
    """A CSIStorageCapacity object: bytes left for a class on the nodes that match `topology` (None matches
    none).
    """

    storage_class: str
    capacity: int
    topology: LabelSelector | None = None
    maximum_volume: int | None = None


class AttachLimits(msgspec.Struct, frozen=True):
    """A CSINode object: how many volumes of each driver its node may attach (a driver without limit is
    absent).
    """

    node: str
    limits: Mapping[str, int] = {}
