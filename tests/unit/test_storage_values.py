"""From claims, volumes and what else is said about storage to the values that decisions read."""

from __future__ import annotations

from typing import Any

import msgspec
from tests.unit.fleets import HOST, ZONE, equal, selector

from gpufleet.fleet.selectors import LabelSelector, NodeSelector, NodeSelectorTerm
from gpufleet.fleet.volumes import AttachLimits, Claim, CSIDriver, StorageCapacity, StorageClass, Volume
from gpufleet.kube import objects
from gpufleet.kube import storage_values as storage


def test_claims() -> None:
    body: dict[str, Any] = {
        "metadata": {
            "name": "data",
            "namespace": "team",
            "uid": "u",
            "annotations": {"volume.kubernetes.io/selected-node": "a"},
            "deletionTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {
            "storageClassName": "disk",
            "volumeName": "pv",
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
            "selector": {"matchLabels": {"x": "y"}},
        },
        "status": {"phase": "Bound"},
    }
    found = storage.claim_value(msgspec.convert(body, objects.PersistentVolumeClaim))
    assert found == Claim(
        "team",
        "data",
        "u",
        "Bound",
        1 << 30,
        "disk",
        "pv",
        ("ReadWriteOnce",),
        "Filesystem",
        selector(x="y"),
        "a",
        terminating=True,
    )
    body["metadata"]["annotations"] = {"volume.beta.kubernetes.io/storage-class": "old"}
    assert storage.claim_value(msgspec.convert(body, objects.PersistentVolumeClaim)).storage_class == "old"


def test_a_claim_without_a_class_is_told_from_one_of_no_class() -> None:
    for spec, expected in (({}, None), ({"storageClassName": ""}, "")):
        body = {"metadata": {"name": "c", "namespace": "n"}, "spec": spec}
        found = storage.claim_value(msgspec.convert(body, objects.PersistentVolumeClaim))
        assert found.storage_class == expected


def test_volumes() -> None:
    terms = [{"matchExpressions": [{"key": HOST, "operator": "In", "values": ["a"]}]}]
    body = {
        "metadata": {"name": "pv", "labels": {ZONE: "x"}},
        "spec": {
            "capacity": {"storage": "10Gi"},
            "storageClassName": "disk",
            "accessModes": ["ReadWriteOnce"],
            "claimRef": {"namespace": "team", "name": "data", "uid": "u"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": terms}},
            "csi": {"driver": "d", "volumeHandle": "h"},
        },
        "status": {"phase": "Bound"},
    }
    assert storage.volume_value(msgspec.convert(body, objects.PersistentVolume)) == Volume(
        "pv",
        10 << 30,
        "Bound",
        "disk",
        ("ReadWriteOnce",),
        "Filesystem",
        NodeSelector((NodeSelectorTerm((equal(HOST, "a"),)),)),
        {ZONE: "x"},
        "team/data",
        "u",
        "d",
        "h",
    )


def test_classes_drivers_capacities_and_limits() -> None:
    topology = [{"matchLabelExpressions": [{"key": ZONE, "values": ["x"]}]}]
    body: dict[str, Any] = {
        "metadata": {"name": "disk"},
        "provisioner": "p",
        "volumeBindingMode": "WaitForFirstConsumer",
        "allowedTopologies": topology,
    }
    found = storage.storage_class_value(msgspec.convert(body, objects.StorageClass))
    assert found == StorageClass("disk", "p", True, (NodeSelectorTerm((equal(ZONE, "x"),)),))
    driver = {"metadata": {"name": "d"}, "spec": {"storageCapacity": True, "attachRequired": False}}
    assert storage.csi_driver_value(msgspec.convert(driver, objects.CSIDriver)) == CSIDriver("d", True, False)
    body = {
        "metadata": {"name": "c", "namespace": "n"},
        "storageClassName": "disk",
        "capacity": "5Gi",
        "nodeTopology": {"matchLabels": {ZONE: "x"}},
        "maximumVolumeSize": "1Gi",
    }
    capacity = storage.capacity_value(msgspec.convert(body, objects.CSIStorageCapacity))
    assert capacity == StorageCapacity("disk", 5 << 30, LabelSelector((equal(ZONE, "x"),)), 1 << 30)
    body = {
        "metadata": {"name": "a"},
        "spec": {
            "drivers": [
                {"name": "d", "nodeID": "a", "allocatable": {"count": 3}},
                {"name": "e", "nodeID": "a"},
            ]
        },
    }
    assert storage.attach_limits_value(msgspec.convert(body, objects.CSINode)) == AttachLimits("a", {"d": 3})
