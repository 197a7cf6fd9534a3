"""Random claims, volumes, classes and what nodes and drivers say about storage, as Kubernetes manifests."""

from __future__ import annotations

from tests.unit.draws import HOST, NAMES, ZONE, Draw, Manifest

OLD_ZONE = "failure-domain.beta.kubernetes.io/zone"

CLASSES = ("sc0", "sc1", "sc2")
DRIVERS = ("d0", "d1")
MODES = ("ReadWriteOnce", "ReadWriteMany", "ReadOnlyMany")
SIZES = ("1Gi", "2Gi", "3Gi")


def storage(draw: Draw, nodes: list[Manifest]) -> Manifest:
    """Everything that a cluster says about storage."""
    volumes = [_volume(draw, i) for i in range(draw.number(0, 7))]
    return {
        "claims": [_claim(draw, f"c{i}", volumes) for i in range(4) if draw.chance(0.95)],
        "volumes": volumes,
        "storageClasses": [_class(draw, name) for name in CLASSES if draw.chance(0.95)],
        "csiDrivers": [
            {"metadata": {"name": name}, "spec": {"storageCapacity": draw.chance(0.5)}}
            for name in DRIVERS
            if draw.chance(0.7)
        ],
        "csiNodes": [_csi_node(draw, node["metadata"]["name"]) for node in nodes if draw.chance(0.6)],
        "capacities": [_capacity(draw, f"cap{i}") for i in range(draw.number(0, 5))],
    }


def _class(draw: Draw, name: str) -> Manifest:
    result: Manifest = {
        "metadata": {"name": name},
        "provisioner": draw.one_of((*DRIVERS, "kubernetes.io/no-provisioner")),
        "volumeBindingMode": "WaitForFirstConsumer" if draw.chance(0.9) else "Immediate",
    }
    if draw.chance(0.2):
        zones = draw.some_of(("x", "y", "z"), 2)
        result["allowedTopologies"] = [{"matchLabelExpressions": [{"key": ZONE, "values": zones}]}]
    return result


def _volume(draw: Draw, index: int) -> Manifest:
    labels: dict[str, str] = {}
    for key, probability, values in (
        (ZONE, 0.2, ("x", "y", "x__y")),
        (OLD_ZONE, 0.1, ("x", "y")),
        ("t", 0.5, ("a", "b")),
    ):
        if draw.chance(probability):
            labels[key] = draw.one_of(values)
    metadata: Manifest = {"name": f"pv{index}", "labels": labels}
    if draw.chance(0.05):
        metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    spec: Manifest = {
        "capacity": {"storage": draw.one_of(SIZES)},
        "accessModes": draw.some_of(MODES, 2),
        "storageClassName": draw.one_of((*CLASSES, "")),
        "volumeMode": "Filesystem" if draw.chance(0.85) else "Block",
    }
    if draw.chance(0.7):
        spec["csi"] = {"driver": draw.one_of(DRIVERS), "volumeHandle": f"h{draw.one_of((index, index, 0))}"}
    else:
        spec["hostPath"] = {"path": "/data"}
    if draw.chance(0.5):
        terms = [{"matchExpressions": [_place(draw)]} for _ in range(draw.one_of((1, 1, 2)))]
        spec["nodeAffinity"] = {"required": {"nodeSelectorTerms": terms}}
    phase = draw.one_of(("Released", "Failed")) if draw.chance(0.1) else "Available"
    return {"metadata": metadata, "spec": spec, "status": {"phase": phase}}


def _place(draw: Draw) -> Manifest:
    if draw.chance(0.4):
        return {"key": HOST, "operator": "In", "values": [draw.one_of(NAMES[:3])]}
    return {"key": ZONE, "operator": draw.one_of(("In", "NotIn")), "values": [draw.one_of(("x", "y"))]}


def _claim(draw: Draw, name: str, volumes: list[Manifest]) -> Manifest:
    metadata: Manifest = {"name": name, "namespace": "default", "uid": f"u-{name}", "annotations": {}}
    spec: Manifest = {
        "accessModes": [draw.one_of((*MODES, "ReadWriteOncePod"))],
        "resources": {"requests": {"storage": draw.one_of(SIZES)}},
        "volumeMode": "Filesystem",
    }
    if draw.chance(0.95):
        spec["storageClassName"] = draw.one_of((*CLASSES, *CLASSES, ""))
    if draw.chance(0.2):
        spec["selector"] = {"matchLabels": {"t": draw.one_of(("a", "b"))}}
    claim: Manifest = {"metadata": metadata, "spec": spec, "status": {"phase": "Pending"}}
    free = [volume for volume in volumes if "claimRef" not in volume["spec"]]
    fate = draw.number(1, 100)
    reference = {"name": name, "namespace": "default", "uid": f"u-{name}"}
    if fate <= 30 and free:
        volume = draw.one_of(free)
        volume["spec"] |= {"claimRef": reference, "accessModes": spec["accessModes"]}
        volume["status"]["phase"] = claim["status"]["phase"] = "Bound"
        spec["volumeName"] = volume["metadata"]["name"]
        metadata["annotations"]["pv.kubernetes.io/bind-completed"] = "yes"
    elif 30 < fate <= 55 and free:
        by_whom = draw.one_of(({}, {"uid": f"u-{name}"}, {"uid": "u-earlier"}))
        volume = draw.one_of(free)
        volume["spec"]["claimRef"] = {"name": name, "namespace": "default", **by_whom}
        if draw.chance(0.7):
            volume["spec"] |= {
                "storageClassName": spec.get("storageClassName", ""),
                "volumeMode": "Filesystem",
            }
    elif 55 < fate <= 65:
        metadata["annotations"]["volume.kubernetes.io/selected-node"] = draw.one_of(NAMES[:3])
    elif 65 < fate <= 68:
        spec["volumeName"] = "pv-unknown"
    return claim


def _csi_node(draw: Draw, name: str) -> Manifest:
    drivers = []
    for driver in DRIVERS:
        if draw.chance(0.8):
            limit = {"allocatable": {"count": draw.number(0, 3)}} if draw.chance(0.7) else {}
            drivers.append({"name": driver, "nodeID": name, **limit})
    return {"metadata": {"name": name}, "spec": {"drivers": drivers}}


def _capacity(draw: Draw, name: str) -> Manifest:
    capacity: Manifest = {
        "metadata": {"name": name, "namespace": "kube-system"},
        "storageClassName": draw.one_of(CLASSES),
    }
    if draw.chance(0.9):
        capacity["capacity"] = draw.one_of(("1Gi", "2Gi", "9Gi"))
    if draw.chance(0.2):
        capacity["maximumVolumeSize"] = draw.one_of(("1Gi", "5Gi"))
    if draw.chance(0.9):
        zones = {"matchExpressions": [{"key": ZONE, "operator": "In", "values": ["x", "z"]}]}
        capacity["nodeTopology"] = draw.one_of(
            (
                {},
                {"matchLabels": {HOST: "n0"}},
                {"matchLabels": {HOST: "n1"}},
                {"matchLabels": {ZONE: "x"}},
                zones,
            )
        )
    return capacity
