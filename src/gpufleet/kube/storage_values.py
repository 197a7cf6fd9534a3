"""From storage objects to the values that decisions read."""

from __future__ import annotations

from gpufleet.fleet import selectors
from gpufleet.fleet.quantities import resource_amount
from gpufleet.fleet.volumes import AttachLimits, Claim, CSIDriver, StorageCapacity, StorageClass, Volume
from gpufleet.kube import objects
from gpufleet.kube.values import label_selector, node_selector

SELECTED_NODE = "volume.kubernetes.io/selected-node"
_CLASS_BETA = "volume.beta.kubernetes.io/storage-class"


def claim_value(claim: objects.PersistentVolumeClaim) -> Claim:
    """A claim."""
    meta, spec = claim.metadata, claim.spec
    request = spec.resources.requests.get("storage")
    return Claim(
        namespace=meta.namespace,
        name=meta.name,
        uid=meta.uid,
        phase=claim.status.phase,
        request=resource_amount("storage", request) if request else 0,
        storage_class=meta.annotations.get(_CLASS_BETA, spec.storage_class_name),
        volume=spec.volume_name,
        access_modes=spec.access_modes,
        volume_mode=spec.volume_mode,
        selector=label_selector(spec.selector) if spec.selector is not None else None,
        selected_node=meta.annotations.get(SELECTED_NODE, ""),
        terminating=meta.deletion_timestamp is not None,
    )


def volume_value(volume: objects.PersistentVolume) -> Volume:
    """A persistent volume."""
    meta, spec = volume.metadata, volume.spec
    reference = spec.claim_ref
    capacity = spec.capacity.get("storage")
    required = spec.node_affinity.required if spec.node_affinity else None
    return Volume(
        name=meta.name,
        capacity=resource_amount("storage", capacity) if capacity else 0,
        phase=volume.status.phase,
        storage_class=spec.storage_class_name,
        access_modes=spec.access_modes,
        volume_mode=spec.volume_mode,
        node_affinity=node_selector(required) if required else None,
        labels=meta.labels,
        claim=f"{reference.namespace}/{reference.name}" if reference else "",
        claim_uid=reference.uid if reference else "",
        csi_driver=spec.csi.driver if spec.csi else "",
        csi_handle=spec.csi.volume_handle if spec.csi else "",
        terminating=meta.deletion_timestamp is not None,
    )


def storage_class_value(storage_class: objects.StorageClass) -> StorageClass:
    """A storage class; its allowed topologies become node selector terms."""
    return StorageClass(
        storage_class.metadata.name,
        storage_class.provisioner,
        storage_class.volume_binding_mode == "WaitForFirstConsumer",
        tuple(
            selectors.NodeSelectorTerm(
                tuple(selectors.Requirement(e.key, "In", e.values) for e in term.match_label_expressions)
            )
            for term in storage_class.allowed_topologies
        ),
    )


def csi_driver_value(driver: objects.CSIDriver) -> CSIDriver:
    """A CSI driver."""
    return CSIDriver(driver.metadata.name, driver.spec.storage_capacity, driver.spec.attach_required)


def capacity_value(capacity: objects.CSIStorageCapacity) -> StorageCapacity:
    """Capacity that a driver reported."""
    topology = capacity.node_topology
    largest = capacity.maximum_volume_size
    return StorageCapacity(
        capacity.storage_class_name,
        resource_amount("storage", capacity.capacity),
        label_selector(topology) if topology is not None else None,
        resource_amount("storage", largest) if largest else None,
    )


def attach_limits_value(node: objects.CSINode) -> AttachLimits:
    """How many volumes of each driver a node can attach."""
    limits = {d.name: d.allocatable.count for d in node.spec.drivers or () if d.allocatable.count is not None}
    return AttachLimits(node.metadata.name, limits)
