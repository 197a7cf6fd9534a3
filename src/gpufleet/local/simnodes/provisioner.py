"""Simulated storage: volumes for the claims of the local fleet's storage classes.

A claim of a class whose provisioner is `gpufleet.dev/simulated` gets a volume as soon as the scheduler has
selected a node for it (or at once, for immediate binding). A volume is usable from that node only, as a
local disk is, unless the claim asks for ReadWriteMany. The path is never touched: simulated pods do not read
files. A released volume with reclaim policy Delete is deleted.
"""

from __future__ import annotations

import logging
from typing import Any

from gpufleet.kube.client import ApiError, Client
from gpufleet.kube.informers import Change, Informer
from gpufleet.kube.kinds import PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES, STORAGE_CLASSES
from gpufleet.kube.objects import (
    PartialObject,
    PersistentVolume,
    PersistentVolumeClaim,
    StorageClass,
)
from gpufleet.kube.storage_values import SELECTED_NODE
from gpufleet.kube.workqueue import WorkQueue
from gpufleet.local.simnodes.workers import Workers

log = logging.getLogger("gpufleet.local.simnodes")

PROVISIONER = "gpufleet.dev/simulated"
CLASS_NAME = "gpufleet-local"
PROVISIONED_BY = "pv.kubernetes.io/provisioned-by"
_SHARED = ("ReadWriteMany", "ReadOnlyMany")
_NO_CLAIM, _NO_VOLUME = "claim:", "volume:"


def volume_for(claim: PersistentVolumeClaim, storage_class: StorageClass) -> dict[str, Any] | None:
    """The volume that a claim gets now; None while it needs none or must wait for its node."""
    spec, meta = claim.spec, claim.metadata
    if spec.volume_name or meta.deletion_timestamp or spec.storage_class_name != storage_class.metadata.name:
        return None
    if storage_class.provisioner != PROVISIONER or spec.selector is not None:
        return None
    node = meta.annotations.get(SELECTED_NODE, "")
    if not node and storage_class.volume_binding_mode == "WaitForFirstConsumer":
        return None
    body: dict[str, Any] = {
        "capacity": {"storage": spec.resources.requests.get("storage", "1Gi")},
        "accessModes": list(spec.access_modes),
        "persistentVolumeReclaimPolicy": storage_class.reclaim_policy,
        "storageClassName": storage_class.metadata.name,
        "volumeMode": spec.volume_mode,
        "hostPath": {"path": f"/var/lib/gpufleet-simulated/pvc-{meta.uid}"},
        "claimRef": {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "namespace": meta.namespace,
            "name": meta.name,
            "uid": meta.uid,
        },
    }
    if node and not set(spec.access_modes) & set(_SHARED):
        term = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}
        body["nodeAffinity"] = {"required": {"nodeSelectorTerms": [term]}}
    return {
        "metadata": {"name": f"pvc-{meta.uid}", "annotations": {PROVISIONED_BY: PROVISIONER}},
        "spec": body,
    }


def is_reclaimed(volume: PersistentVolume) -> bool:
    """Whether a volume of ours is to be deleted: its claim is gone and its policy says so."""
    ours = volume.metadata.annotations.get(PROVISIONED_BY) == PROVISIONER
    released = volume.status.phase == "Released" and volume.metadata.deletion_timestamp is None
    return ours and released and volume.spec.persistent_volume_reclaim_policy == "Delete"


class Provisioner:
    """Watches claims, classes and volumes; makes and deletes volumes."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.claims = Informer(client, PERSISTENT_VOLUME_CLAIMS, PersistentVolumeClaim)
        self.classes = Informer(client, STORAGE_CLASSES, StorageClass)
        self.volumes = Informer(client, PERSISTENT_VOLUMES, PersistentVolume)
        self._queue: WorkQueue[str] = WorkQueue()
        self.workers = Workers(self._queue, self._work, concurrency=8, what="volume")
        self.claims.subscribe(self._claim_changed)
        self.classes.subscribe(self._class_changed)
        self.volumes.subscribe(self._volume_changed)

    @property
    def informers(self) -> tuple[Informer[Any], ...]:
        """What must run beside the workers."""
        return self.claims, self.classes, self.volumes

    async def offer(self) -> None:
        """Create the default storage class, unless there is one of its name."""
        try:
            await self._client.create(STORAGE_CLASSES, storage_class_manifest(), type=PartialObject)
        except ApiError as error:
            if not error.already_exists:
                raise

    def _claim_changed(self, change: Change[PersistentVolumeClaim]) -> None:
        if change.new is not None:
            self._queue.add(_NO_CLAIM + change.key)

    def _class_changed(self, change: Change[StorageClass]) -> None:
        for key in self.claims.items():
            self._queue.add(_NO_CLAIM + key)

    def _volume_changed(self, change: Change[PersistentVolume]) -> None:
        if change.new is not None and is_reclaimed(change.new):
            self._queue.add(_NO_VOLUME + change.key)

    async def _work(self, key: str) -> None:
        if key.startswith(_NO_VOLUME):
            await self._reclaim(key.removeprefix(_NO_VOLUME))
        else:
            await self._provision(key.removeprefix(_NO_CLAIM))

    async def _provision(self, key: str) -> None:
        claim = self.claims.get(key)
        storage_class = self._class_of(claim) if claim else None
        body = volume_for(claim, storage_class) if claim and storage_class else None
        if body is None:
            return
        try:
            await self._client.create(PERSISTENT_VOLUMES, body, type=PartialObject)
        except ApiError as error:
            if not error.already_exists:
                raise
            return
        log.info("made a volume", extra={"claim": key, "volume": body["metadata"]["name"]})

    def _class_of(self, claim: PersistentVolumeClaim) -> StorageClass | None:
        return self.classes.get(claim.spec.storage_class_name or "")

    async def _reclaim(self, name: str) -> None:
        volume = self.volumes.get(name)
        if volume is not None and is_reclaimed(volume):
            await self._client.delete(PERSISTENT_VOLUMES, name, uid=volume.metadata.uid, missing_ok=True)
            log.info("deleted a released volume", extra={"volume": name})


def storage_class_manifest() -> dict[str, Any]:
    """The default storage class of a local fleet."""
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {
            "name": CLASS_NAME,
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
        },
        "provisioner": PROVISIONER,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "WaitForFirstConsumer",
    }
