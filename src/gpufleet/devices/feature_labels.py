"""The labels that describe a node's GPUs, with the keys and values of GPU Feature Discovery.

Existing manifests select nodes by these labels, so they are the same to the letter, with three differences.
Values are always valid label values (a long or odd name is cut and trimmed). On a node with several models
the one with most GPUs speaks for `nvidia.com/gpu.*` (a tie: the one that has the lowest index), each model
has its keys `gpufleet.dev/gpu.<product>.count` and `.memory`, and `gpufleet.dev/gpu.heterogeneous` says that
it is so; upstream takes one at random. A GPU that the driver has lost is not counted.
Source: k8s-device-plugin internal/lm, go-nvlib; docs/concepts/node-labels.md has the table.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import msgspec

from gpufleet.devices.inventory import GPU, ComputeInstance, GPUInstance, Inventory
from gpufleet.devices.plugin_config import GPU_RESOURCE, PluginConfig, Sharing
from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.mig import mig_resource

VENDOR = "nvidia.com/"
OURS = "gpufleet.dev/"

_LONGEST = 63
_DROPPED = re.compile(r"[^A-Za-z0-9\-_. ]")
# compute capability from which a family begins, oldest first; GPU Feature Discovery's rule
_FAMILIES = (
    ((1, 0), "tesla"), ((2, 0), "fermi"), ((3, 0), "kepler"), ((4, 0), "undefined"), ((5, 0), "maxwell"),
    ((6, 0), "pascal"), ((7, 0), "volta"), ((7, 5), "turing"), ((8, 0), "ampere"), ((8, 9), "ada-lovelace"),
    ((9, 0), "hopper"), ((10, 0), "blackwell"), ((11, 0), "undefined"), ((12, 0), "blackwell"),
    ((13, 0), "rubin"), ((14, 0), "undefined"),
)  # fmt: skip
_MODES = {0x030000: "graphics", 0x030200: "compute"}


def label_value(text: str) -> str:
    """A text as a label value: characters that none may have are dropped, blanks become dashes."""
    words = _DROPPED.sub("", text).split()
    return "-".join(words)[:_LONGEST].strip("-_.")


def feature_labels(
    inventory: Inventory, config: PluginConfig, timestamp: int | None = None
) -> dict[str, str]:
    """Every label of a node. `timestamp` (seconds) is that of the agent's start; None leaves its label out.

    A node without GPUs has only the timestamp and whether it is a virtual machine with a vGPU. Raises
    GpufleetError (MpsWithMig) where the config shares by MPS and a GPU is in MIG mode.
    """
    found = {f"{VENDOR}vgpu.present": str(inventory.vgpu is not None).lower()}
    if timestamp is not None:
        found[f"{VENDOR}gfd.timestamp"] = str(timestamp)
    if inventory.vgpu is not None:
        found[f"{VENDOR}vgpu.host-driver-version"] = label_value(inventory.vgpu.host_driver_version)
        found[f"{VENDOR}vgpu.host-driver-branch"] = label_value(inventory.vgpu.host_driver_branch)
    gpus = sorted((gpu for gpu in inventory.gpus if not gpu.lost), key=lambda gpu: gpu.index)
    if not gpus:
        return found
    found |= _versions(inventory) | _node(inventory, gpus, config) | _model(gpus, config.sharing)
    if config.mig_strategy == "single":
        found |= _single(gpus, config.sharing)
    elif config.mig_strategy == "mixed":
        found |= _mixed(gpus, config.sharing)
    return found


def _versions(inventory: Inventory) -> dict[str, str]:
    full = label_value(inventory.driver)
    driver = inventory.driver.split(".")
    if len(driver) not in (2, 3):
        raise GpufleetError(
            reason="DriverVersionUnreadable",
            message=f"the driver calls itself version {inventory.driver!r}, which has not two or three parts",
        )
    major, minor, revision = (*map(label_value, driver), "")[:3]
    cuda_major, cuda_minor = (str(number) for number in inventory.cuda)
    return {
        f"{VENDOR}cuda.driver.major": major,
        f"{VENDOR}cuda.driver.minor": minor,
        f"{VENDOR}cuda.driver.rev": revision,
        f"{VENDOR}cuda.driver-version.major": major,
        f"{VENDOR}cuda.driver-version.minor": minor,
        f"{VENDOR}cuda.driver-version.revision": revision,
        f"{VENDOR}cuda.driver-version.full": full,
        f"{VENDOR}cuda.runtime.major": cuda_major,
        f"{VENDOR}cuda.runtime.minor": cuda_minor,
        f"{VENDOR}cuda.runtime-version.major": cuda_major,
        f"{VENDOR}cuda.runtime-version.minor": cuda_minor,
        f"{VENDOR}cuda.runtime-version.full": f"{cuda_major}.{cuda_minor}",
    }


def _node(inventory: Inventory, gpus: Sequence[GPU], config: PluginConfig) -> dict[str, str]:
    """What is said of all GPUs together."""
    cut = any(gpu.mig == "on" for gpu in gpus)
    shared = config.sharing.strategy == "mps"
    if cut and shared:
        raise GpufleetError(
            reason="MpsWithMig",
            message="GPUs in MIG mode cannot be shared by MPS",
            hint="switch MIG mode off on this node, or give it a plugin config without sharing.mps",
        )
    modes = {_MODES.get(gpu.pci_class, "unknown") for gpu in gpus}
    cliques = {gpu.clique for gpu in gpus}
    found = {
        f"{VENDOR}gpu.machine": label_value(inventory.machine) or "unknown",
        f"{VENDOR}gpu.mode": modes.pop() if len(modes) == 1 else "unknown",
        f"{VENDOR}mig.capable": str(any(gpu.mig != "unsupported" for gpu in gpus)).lower(),
        f"{VENDOR}mps.capable": str(shared).lower(),
    }
    if config.mig_strategy != "none":
        found[f"{VENDOR}mig.strategy"] = config.mig_strategy
    if len(cliques) == 1 and (clique := label_value(cliques.pop())):
        found[f"{VENDOR}gpu.clique"] = clique
    return found


def _model(gpus: Sequence[GPU], sharing: Sharing) -> dict[str, str]:
    """The labels of the whole GPUs of the model that speaks for the node, and those of each model."""
    counts = Counter(label_value(gpu.name) for gpu in gpus)
    name, count = max(counts.items(), key=lambda pair: pair[1])
    first = next(gpu for gpu in gpus if label_value(gpu.name) == name)
    cut = all(gpu.mig == "on" for gpu in gpus if label_value(gpu.name) == name)
    major, minor = first.capability
    found = {
        **_shared("gpu", (name,), Sharing() if cut else sharing, GPU_RESOURCE),
        f"{VENDOR}gpu.count": str(count),
        f"{VENDOR}gpu.family": family(first.capability),
        f"{VENDOR}gpu.compute.major": str(major),
        f"{VENDOR}gpu.compute.minor": str(minor),
    }
    if cut:
        found[f"{VENDOR}gpu.replicas"] = "0"
    if first.memory_mib:
        found[f"{VENDOR}gpu.memory"] = str(first.memory_mib)
    if len(counts) > 1:
        found[f"{OURS}gpu.heterogeneous"] = "true"
        for model, number in counts.items():
            one = next(gpu for gpu in gpus if label_value(gpu.name) == model)
            key = f"{OURS}gpu.{model[: _LONGEST - len('gpu..memory')].strip('-_.')}"
            found[f"{key}.count"] = str(number)
            found[f"{key}.memory"] = str(one.memory_mib)
    return found


def family(capability: tuple[int, int]) -> str:
    """The architecture of a compute capability."""
    known = [name for first, name in _FAMILIES if first <= capability]
    return known[-1] if known else "undefined"


def _shared(key: str, product: Sequence[str], sharing: Sharing, resource: str) -> dict[str, str]:
    """Product, replicas and sharing strategy of a resource."""
    number = sharing.replicas(resource) if sharing.strategy != "none" else 1
    suffix = ("SHARED",) if number > 1 and sharing.resource_name(resource) == resource else ()
    return {
        f"{VENDOR}{key}.product": label_value(" ".join((*product, *suffix))),
        f"{VENDOR}{key}.replicas": str(number),
        f"{VENDOR}{key}.sharing-strategy": sharing.strategy if number > 1 else "none",
    }


class _Part(msgspec.Struct, frozen=True):
    """A MIG device with the GPU and the GPU instance that it is on."""

    gpu: GPU
    instance: GPUInstance
    compute: ComputeInstance

    @property
    def profile(self) -> str:
        """The profile; that of a compute instance smaller than its GPU instance says so."""
        whole = self.compute.slices == self.instance.slices
        return self.instance.profile if whole else f"{self.compute.slices}c.{self.instance.profile}"


def _parts(gpus: Sequence[GPU]) -> list[_Part]:
    return [
        _Part(gpu, instance, compute)
        for gpu in gpus
        if gpu.mig == "on"
        for instance in gpu.instances
        for compute in instance.compute
    ]


def _single(gpus: Sequence[GPU], sharing: Sharing) -> dict[str, str]:
    """The strategy under which MIG devices are `nvidia.com/gpu`, or the labels that say it cannot be."""
    cut = [gpu for gpu in gpus if gpu.mig == "on"]
    if not cut:
        return {}
    parts = _parts(gpus)
    covered = {part.gpu.uuid for part in parts}
    if len(cut) < len(gpus) or len(covered) < len(cut) or len({part.profile for part in parts}) != 1:
        return {
            f"{VENDOR}gpu.product": label_value(f"{cut[0].name} MIG INVALID"),
            f"{VENDOR}gpu.count": "0",
            f"{VENDOR}gpu.replicas": "0",
            f"{VENDOR}gpu.sharing-strategy": "",
            f"{VENDOR}gpu.memory": "0",
        }
    return _devices("gpu", parts, sharing, GPU_RESOURCE)


def _mixed(gpus: Sequence[GPU], sharing: Sharing) -> dict[str, str]:
    found: dict[str, str] = {}
    parts = _parts(gpus)
    for profile in sorted({part.profile for part in parts}):
        resource = mig_resource(profile)
        alike = [part for part in parts if part.profile == profile]
        found |= _devices(resource.removeprefix(VENDOR), alike, sharing, resource)
    return found


def _devices(key: str, parts: Sequence[_Part], sharing: Sharing, resource: str) -> dict[str, str]:
    """The labels of MIG devices of one profile."""
    first = parts[0]
    engines = first.compute.engines
    profile = first.profile.replace("+", ".")
    return {
        **_shared(key, (first.gpu.name, "MIG", profile), sharing, resource),
        f"{VENDOR}{key}.count": str(len(parts)),
        f"{VENDOR}{key}.memory": str(first.compute.memory_mib),
        f"{VENDOR}{key}.multiprocessors": str(first.compute.multiprocessors),
        f"{VENDOR}{key}.slices.gi": str(first.instance.slices),
        f"{VENDOR}{key}.slices.ci": str(first.compute.slices),
        f"{VENDOR}{key}.engines.copy": str(engines.copy),
        f"{VENDOR}{key}.engines.decoder": str(engines.decoder),
        f"{VENDOR}{key}.engines.encoder": str(engines.encoder),
        f"{VENDOR}{key}.engines.jpeg": str(engines.jpeg),
        f"{VENDOR}{key}.engines.ofa": str(engines.ofa),
    }
