"""Which claims get a volume, and which volumes are taken back."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gpufleet.kube.objects import PersistentVolume, PersistentVolumeClaim, StorageClass
from gpufleet.local.simnodes.provisioner import is_reclaimed, storage_class_manifest, volume_for

LOCAL = msgspec.convert(storage_class_manifest(), StorageClass)


def _claim(node: str = "n-0", mode: str = "ReadWriteOnce", **spec: Any) -> PersistentVolumeClaim:
    annotations = {"volume.kubernetes.io/selected-node": node} if node else {}
    body = {
        "metadata": {"name": "c", "namespace": "x", "uid": "u", "annotations": annotations},
        "spec": {
            "accessModes": [mode],
            "resources": {"requests": {"storage": "5Gi"}},
            "storageClassName": "gpufleet-local",
            **spec,
        },
    }
    return msgspec.convert(body, PersistentVolumeClaim)


def test_a_claim_gets_a_volume_of_its_size_on_its_node() -> None:
    body = volume_for(_claim(), LOCAL)
    assert body is not None
    assert body["metadata"]["name"] == "pvc-u"
    assert body["spec"]["capacity"] == {"storage": "5Gi"}
    assert body["spec"]["claimRef"]["uid"] == "u"
    assert "n-0" in str(body["spec"]["nodeAffinity"])


def test_a_shared_claim_is_usable_everywhere() -> None:
    body = volume_for(_claim(mode="ReadWriteMany"), LOCAL)
    assert body is not None
    assert "nodeAffinity" not in body["spec"]


@pytest.mark.parametrize(
    "claim",
    [
        _claim(node=""),
        _claim(volumeName="taken"),
        _claim(storageClassName="other"),
        _claim(selector={"matchLabels": {"a": "b"}}),
    ],
)
def test_a_claim_that_waits_is_bound_or_is_not_ours_gets_none(claim: PersistentVolumeClaim) -> None:
    assert volume_for(claim, LOCAL) is None


def test_another_provisioners_class_is_left_alone_and_immediate_binding_needs_no_node() -> None:
    assert volume_for(_claim(), msgspec.structs.replace(LOCAL, provisioner="else")) is None
    immediate = msgspec.structs.replace(LOCAL, volume_binding_mode="Immediate")
    assert volume_for(_claim(node=""), immediate) is not None


@pytest.mark.parametrize(
    ("owner", "phase", "policy", "taken"),
    [
        ("gpufleet.dev/simulated", "Released", "Delete", True),
        ("gpufleet.dev/simulated", "Released", "Retain", False),
        ("gpufleet.dev/simulated", "Bound", "Delete", False),
        ("else", "Released", "Delete", False),
    ],
)
def test_only_our_released_volumes_are_deleted(owner: str, phase: str, policy: str, taken: bool) -> None:
    body = {
        "metadata": {"name": "v", "annotations": {"pv.kubernetes.io/provisioned-by": owner}},
        "spec": {"persistentVolumeReclaimPolicy": policy},
        "status": {"phase": phase},
    }
    assert is_reclaimed(msgspec.convert(body, PersistentVolume)) == taken
