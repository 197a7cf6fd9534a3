"""Storage: claims, volumes, classes, and what CSI drivers and nodes can take."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from gpufleet.kube.objects.meta import APIStruct, LabelSelector, ObjectMeta, ObjectReference
from gpufleet.kube.objects.placement import NodeSelector


class VolumeResources(APIStruct, frozen=True, kw_only=True):
    """What a claim asks for: `storage` to a quantity string."""

    requests: Mapping[str, str] = {}
    limits: Mapping[str, str] = {}


class PersistentVolumeClaimSpec(APIStruct, frozen=True, kw_only=True):
    """What a claim wants. `storage_class_name` None is unset, an empty string asks for no class."""

    access_modes: tuple[str, ...] = ()
    resources: VolumeResources = VolumeResources()
    storage_class_name: str | None = None
    volume_name: str = ""
    volume_mode: str = "Filesystem"
    selector: LabelSelector | None = None


class PersistentVolumeClaimStatus(APIStruct, frozen=True, kw_only=True):
    """`phase` is Pending, Bound or Lost."""

    phase: str = "Pending"
    access_modes: tuple[str, ...] = ()
    capacity: Mapping[str, str] = {}


class PersistentVolumeClaim(APIStruct, frozen=True, kw_only=True):
    """A claim."""

    metadata: ObjectMeta
    spec: PersistentVolumeClaimSpec = PersistentVolumeClaimSpec()
    status: PersistentVolumeClaimStatus = PersistentVolumeClaimStatus()


class TemplateMeta(APIStruct, frozen=True, kw_only=True):
    """Metadata of a template: only labels and annotations count."""

    labels: Mapping[str, str] = {}
    annotations: Mapping[str, str] = {}


class PersistentVolumeClaimTemplate(APIStruct, frozen=True, kw_only=True):
    """A claim to be made for a pod."""

    metadata: TemplateMeta = TemplateMeta()
    spec: PersistentVolumeClaimSpec = PersistentVolumeClaimSpec()


class VolumeNodeAffinity(APIStruct, frozen=True, kw_only=True):
    """The nodes that can reach a volume."""

    required: NodeSelector | None = None


class CSIPersistentVolumeSource(APIStruct, frozen=True, kw_only=True):
    """The CSI driver and handle of a volume."""

    driver: str
    volume_handle: str = ""


class PersistentVolumeSpec(APIStruct, frozen=True, kw_only=True):
    """A volume; `claim_ref` names the claim it is bound to or kept for."""

    capacity: Mapping[str, str] = {}
    access_modes: tuple[str, ...] = ()
    storage_class_name: str = ""
    volume_mode: str = "Filesystem"
    claim_ref: ObjectReference | None = None
    node_affinity: VolumeNodeAffinity | None = None
    csi: CSIPersistentVolumeSource | None = None
    persistent_volume_reclaim_policy: str = ""


class PersistentVolumeStatus(APIStruct, frozen=True, kw_only=True):
    """`phase` is Available, Bound, Released, Failed or Pending."""

    phase: str = "Pending"


class PersistentVolume(APIStruct, frozen=True, kw_only=True):
    """A volume."""

    metadata: ObjectMeta
    spec: PersistentVolumeSpec = PersistentVolumeSpec()
    status: PersistentVolumeStatus = PersistentVolumeStatus()


class TopologySelectorLabelRequirement(APIStruct, frozen=True, kw_only=True):
    """A label that must have one of the values."""

    key: str
    values: tuple[str, ...] = ()


class TopologySelectorTerm(APIStruct, frozen=True, kw_only=True):
    """A conjunction of label requirements."""

    match_label_expressions: tuple[TopologySelectorLabelRequirement, ...] = ()


class StorageClass(APIStruct, frozen=True, kw_only=True):
    """A class; `volume_binding_mode` is Immediate or WaitForFirstConsumer."""

    metadata: ObjectMeta
    provisioner: str = ""
    parameters: Mapping[str, str] = {}
    reclaim_policy: str = "Delete"
    volume_binding_mode: str = "Immediate"
    allowed_topologies: tuple[TopologySelectorTerm, ...] = ()


class CSIDriverSpec(APIStruct, frozen=True, kw_only=True):
    """What a driver supports; `storage_capacity` says that it publishes CSIStorageCapacity objects."""

    attach_required: bool = True
    storage_capacity: bool = False


class CSIDriver(APIStruct, frozen=True, kw_only=True):
    """A CSI driver."""

    metadata: ObjectMeta
    spec: CSIDriverSpec = CSIDriverSpec()


class VolumeNodeResources(APIStruct, frozen=True, kw_only=True):
    """How many volumes of a driver a node can attach; None is no limit."""

    count: int | None = None


class CSINodeDriver(APIStruct, frozen=True, kw_only=True):
    """A driver on a node."""

    name: str
    node_id: str = msgspec.field(default="", name="nodeID")
    topology_keys: tuple[str, ...] = ()
    allocatable: VolumeNodeResources = VolumeNodeResources()


class CSINodeSpec(APIStruct, frozen=True, kw_only=True):
    """The drivers of a node; the API sends null when there are none."""

    drivers: tuple[CSINodeDriver, ...] | None = ()


class CSINode(APIStruct, frozen=True, kw_only=True):
    """The CSI drivers of the node of the same name."""

    metadata: ObjectMeta
    spec: CSINodeSpec = CSINodeSpec()


class CSIStorageCapacity(APIStruct, frozen=True, kw_only=True):
    """Bytes left for a class on the nodes that match `node_topology`."""

    metadata: ObjectMeta
    storage_class_name: str
    capacity: str = "0"
    maximum_volume_size: str | None = None
    node_topology: LabelSelector | None = None
