"""Node labels that describe GPUs, as GPU Feature Discovery writes them under the mixed MIG strategy.

Pure: a function of the devices. Existing manifests select nodes by these keys, so keys and values are the
same to the letter where a value can be derived; what only the real driver knows (engines, multiprocessors) is
left out. Source: k8s-device-plugin internal/lm.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpufleet.devices.simulated import GPU_RESOURCE, Device, NodeDevices
from gpufleet.fleet import mig

_P = "nvidia.com/"
DRIVER = "580.95.05"
CUDA = (13, 0)


def feature_labels(state: NodeDevices) -> dict[str, str]:
    """The labels of a node; empty without GPUs. All devices are of one product."""
    if not state.devices:
        return {}
    first = state.devices[0]
    labels = {
        f"{_P}gpu.present": "true",
        f"{_P}gpu.machine": "gpufleet-simulated",
        f"{_P}gpu.family": first.product.family,
        f"{_P}gpu.memory": str(first.product.memory_mib),
        f"{_P}gpu.compute.major": str(first.product.compute[0]),
        f"{_P}gpu.compute.minor": str(first.product.compute[1]),
        f"{_P}gpu.count": str(len(state.devices)),
        f"{_P}gpu.mode": "compute",
        f"{_P}mig.capable": str(bool(first.product.mig)).lower(),
        f"{_P}mps.capable": "false",
        **_driver_labels(),
        **_sharing_labels(state),
    }
    if first.product.mig:
        labels[f"{_P}mig.strategy"] = "mixed"
    return labels | _mig_labels(state.devices)


def _driver_labels() -> dict[str, str]:
    labels = {
        f"{_P}cuda.driver-version.full": DRIVER,
        f"{_P}cuda.runtime-version.full": f"{CUDA[0]}.{CUDA[1]}",
    }
    parts = ("major", "minor", "revision"), ("major", "minor", "rev")
    for text, new, old in zip(DRIVER.split("."), *parts, strict=True):
        labels[f"{_P}cuda.driver-version.{new}"] = labels[f"{_P}cuda.driver.{old}"] = text
    for number, name in zip(CUDA, ("major", "minor"), strict=True):
        labels[f"{_P}cuda.runtime-version.{name}"] = labels[f"{_P}cuda.runtime.{name}"] = str(number)
    return labels


def _sharing_labels(state: NodeDevices) -> dict[str, str]:
    first = state.devices[0]
    shared = first.replicas > 1
    suffix = "-SHARED" if shared and state.shared_resource == GPU_RESOURCE else ""
    return {
        f"{_P}gpu.product": first.product.name + suffix,
        f"{_P}gpu.replicas": "0" if first.mig_enabled else str(first.replicas),
        f"{_P}gpu.sharing-strategy": "time-slicing" if shared else "none",
    }


def _mig_labels(devices: Sequence[Device]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for device in devices:
        geometry = mig.geometry_of(device.product) if device.instances else None
        for instance in device.instances or ():
            assert geometry is not None
            prefix = mig.mig_resource(instance.profile)
            compute = str(geometry.profile(instance.profile).compute)
            count = int(labels.get(f"{prefix}.count", "0")) + 1
            labels |= {
                f"{prefix}.product": f"{device.product.name}-MIG-{instance.profile.replace('+', '.')}",
                f"{prefix}.count": str(count),
                f"{prefix}.replicas": "1",
                f"{prefix}.sharing-strategy": "none",
                f"{prefix}.memory": str(instance.memory_mib),
                f"{prefix}.slices.gi": compute,
                f"{prefix}.slices.ci": compute,
            }
    return labels
