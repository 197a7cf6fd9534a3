"""Never a second registrar: where anything in a cluster says that there may be another, we do not register.

A sign of another registrar is a change of a shape's objects or of its host. Any number of signs is added to
any shape, ours already included, and they are judged as the agent judges them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.test_ownership_shapes import SHAPES, shape_facts

from gpufleet.devices.ownership import STALE_AFTER_S, ownership
from gpufleet.devices.ownership_facts import HostFacts

Shape = dict[str, Any]
WHOLE_HOST = HostFacts(driver="580.95.05", library="/usr/lib64", gpus=8, toolkit="/usr/bin/nvidia-ctk")
RESOURCES = ("nvidia.com/gpu", "nvidia.com/gpu.shared", "nvidia.com/mig-1g.10gb", "volcano.sh/vgpu-number")
PLUGINS = (
    {"name": "nvidia-device-plugin", "image": "nvcr.io/nvidia/k8s-device-plugin:v0.18.0"},
    {"name": "hami-vgpu", "image": "projecthami/hami:v2.5"},
    {"name": "volcano-device-plugin", "image": "volcanosh/volcano-vgpu-device-plugin:v1.11"},
    {"name": "gpus", "image": "corp/registry/fake-gpu-operator/device-plugin:1"},
    {"name": "plugin", "image": "corp/dra-driver-gpu:1"},
    {"name": "own", "image": "corp/our-nvidia-plugin:1",
     "volumeMounts": [{"name": "plugins", "mountPath": "/plugins"}]},
)  # fmt: skip
FOLDER = [{"name": "plugins", "hostPath": {"path": "/var/lib/kubelet/device-plugins/"}}]


def pod_spec(container: dict[str, Any]) -> Shape:
    return {"containers": [container], "volumes": FOLDER}


def capacity(amount: str, zero_for_s: float = 0.0) -> Callable[[Shape, int], None]:
    """A resource that is not one of ours, and for how long it has been zero."""

    def add(shape: Shape, number: int) -> None:
        others = [name for name in RESOURCES if name not in shape.get("ours", ())]
        name = others[number % len(others)]
        shape["node"]["status"]["capacity"][name] = amount
        shape["zeroForS"] = {**shape.get("zeroForS", {}), name: zero_for_s}

    return add


def plugin_pod(shape: Shape, number: int) -> None:
    node = shape["node"]["metadata"]["name"]
    sidecar = {**PLUGINS[number % len(PLUGINS)], "restartPolicy": "Always"}
    spec = {**pod_spec(PLUGINS[number % len(PLUGINS)]), "nodeName": node}
    if number % 2:
        spec = {**spec, "containers": [{"name": "main", "image": "pause"}], "initContainers": [sidecar]}
    meta = {"name": f"plugin-{number}", "namespace": "other"}
    shape["pods"] = [
        *(shape.get("pods") or []),
        {"metadata": meta, "spec": spec, "status": {"phase": "Pending"}},
    ]


def plugin_daemon_set(shape: Shape, number: int) -> None:
    """One whose pods do not run yet, and may by their selector."""
    labels = sorted(shape["node"]["metadata"]["labels"].items())
    spec = {**pod_spec(PLUGINS[number % len(PLUGINS)]), "nodeSelector": dict(labels[: number % 3])}
    one = {
        "metadata": {"name": f"plugin-{number}", "namespace": "other"},
        "spec": {"template": {"spec": spec}},
    }
    shape["daemonSets"] = [*(shape.get("daemonSets") or []), one]


def operator(shape: Shape, number: int) -> None:
    """A GPU operator, on a node that it is not told to keep away from."""
    labels = shape["node"]["metadata"]["labels"]
    labels.pop("nvidia.com/gpu.deploy.operands", None)
    labels["nvidia.com/gpu.deploy.device-plugin"] = ("true", "paused-for-mig-change", "")[number % 3]
    kind, crd = (("ClusterPolicy", "clusterpolicies"), ("GPUCluster", "gpuclusters"))[number % 2]
    shape["crds"] = [*(shape.get("crds") or []), f"{crd}.nvidia.com"]
    one = {"kind": kind, "metadata": {"name": f"operator-{number}"}, "spec": {}}
    shape["operators"] = [*(shape.get("operators") or []), one]


def unreadable_operator(shape: Shape, number: int) -> None:
    operator(shape, number)
    shape["operators"] = None


def device_class(shape: Shape, number: int) -> None:
    name = RESOURCES[number % 3]
    one = {"metadata": {"name": f"class-{number}"}, "spec": {"extendedResourceName": name}}
    shape["deviceClasses"] = [*(shape.get("deviceClasses") or []), one]


def resource_slice(shape: Shape, number: int) -> None:
    where = ({"nodeName": shape["node"]["metadata"]["name"]}, {"allNodes": True})[number % 2]
    one = {"metadata": {"name": f"slice-{number}"}, "spec": {"driver": "gpu.nvidia.com", **where}}
    shape["resourceSlices"] = [*(shape.get("resourceSlices") or []), one]


def cloud(shape: Shape, number: int) -> None:
    """The node turns out to be one whose plugin comes with it."""
    meta, node = shape["node"]["metadata"], shape["node"]
    meta["labels"].pop("gke-no-default-nvidia-gpu-device-plugin", None)
    match number % 4:
        case 0:
            meta["labels"]["eks.amazonaws.com/compute-type"] = "auto"
        case 1:
            meta["labels"].pop("eks.amazonaws.com/compute-type", None)
            node["spec"]["providerID"] = "gce://project/zone/node"
            meta["labels"]["cloud.google.com/gke-accelerator"] = "nvidia-l4"
        case 2:
            node["spec"]["providerID"] = "azure:///node"
            node["status"]["conditions"].append({"type": "UnhealthyNvidiaDevicePlugin", "status": "False"})
        case 3:
            node["spec"]["providerID"] = "aws:///zone/i-1"
            node["status"]["nodeInfo"]["osImage"] = "Bottlerocket OS 1.50.0 (aws-k8s-1.34-nvidia)"


SIGNS: dict[str, Callable[[Shape, int], None]] = {
    "capacity": capacity("8"),
    "capacity that is no number": capacity("plenty"),
    "capacity that was there until now": capacity("0", STALE_AFTER_S - 1),
    "pod": plugin_pod,
    "daemon set": plugin_daemon_set,
    "operator": operator,
    "unreadable operator": unreadable_operator,
    "device class": device_class,
    "resource slice": resource_slice,
    "cloud": cloud,
}
HOST_SIGNS: dict[str, dict[str, tuple[str, ...]]] = {
    "socket": {"sockets": ("/var/lib/kubelet/device-plugins/nvidia-gpu.sock",)},
    "service": {"services": ("nvidia-k8s-device-plugin.service",)},
}
NAMES = [*SIGNS, *HOST_SIGNS]


@cache
def shape_of(name: str) -> Shape:
    shape: Shape = yaml.safe_load(next(path for path in SHAPES if path.stem == name).read_text())
    return shape


def registers(shape: Shape, signs: list[tuple[str, int]]) -> bool:
    """Whether we would register on a whole host, with signs added."""
    shape, host = copy.deepcopy(shape), WHOLE_HOST
    for name, number in signs:
        if name in SIGNS:
            SIGNS[name](shape, number)
        else:
            host = msgspec.structs.replace(host, **HOST_SIGNS[name])
    return ownership(shape_facts(shape, host)).registers


REGISTERING = [path.stem for path in SHAPES if registers(shape_of(path.stem), [])]


def test_the_shapes_in_which_we_register_are_those_that_say_so() -> None:
    wanted = [
        path.stem for path in SHAPES if shape_of(path.stem)["expect"]["device-plugin"].startswith("ours run")
    ]
    bare = ["aks-driver-none", "bare", "eks-al2023-without-driver", "gke-opted-out-no-driver", "no-gpu"]
    on_host = ["bare-plugin-service"]
    assert sorted(REGISTERING) == sorted([*wanted, *bare, *on_host]), "some differ by their host alone"


@pytest.mark.parametrize("sign", NAMES)
@pytest.mark.parametrize("name", REGISTERING)
def test_one_sign_of_another_registrar_is_enough(name: str, sign: str) -> None:
    for number in range(12):
        assert not registers(shape_of(name), [(sign, number)]), number


signs = st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 11)), min_size=1, max_size=4)


@given(st.sampled_from([path.stem for path in SHAPES]), signs)
def test_no_signs_together_hide_each_other(name: str, added: list[tuple[str, int]]) -> None:
    assert not registers(shape_of(name), added)
