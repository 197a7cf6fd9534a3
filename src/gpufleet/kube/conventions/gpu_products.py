"""Which GPU a pod asks for, by the labels of nodes that vendors and clouds select one by.

Instance types stand for the GPU that they come with. A MIG resource names a profile, and some profiles only
one kind of GPU has.
Source: GPU Feature Discovery's labels, the clouds' accelerator labels and instance lists.
"""

from __future__ import annotations

from collections.abc import Iterable

from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.mig import GEOMETRIES, MIG_RESOURCE_PREFIX, dotted
from gpufleet.fleet.products import PRODUCTS, Product, find_product

_LABELS = frozenset({
    "nvidia.com/gpu.product", "cloud.google.com/gke-accelerator", "serving.kserve.io/gke-accelerator",
    "karpenter.k8s.aws/instance-gpu-name", "k8s.amazonaws.com/accelerator", "gpu.nvidia.com/model",
})  # fmt: skip
"""Labels and annotations whose value is a name of a GPU."""

_INSTANCE_LABELS = frozenset({
    "node.kubernetes.io/instance-type", "beta.kubernetes.io/instance-type",
    "sagemaker.amazonaws.com/compute-type", "karpenter.k8s.aws/instance-family",
})  # fmt: skip

_INSTANCES = (
    # instance types that begin so               product
    ("p6-b200", "b200"), ("p5en", "h200"), ("p5e", "h200"), ("p5", "h100"), ("p4de", "a100-80gb"),
    ("p4d", "a100-40gb"), ("p3", "v100-16gb"), ("g6e", "l40s"), ("g6", "l4"), ("g5", "a10g"), ("g4dn", "t4"),
    ("a4-highgpu", "b200"), ("a3-ultragpu", "h200"), ("a3-", "h100"), ("a2-ultragpu", "a100-80gb"),
    ("a2-", "a100-40gb"), ("g2-", "l4"), ("standard_nd96isr_h200", "h200"), ("standard_nd96isr_h100", "h100"),
    ("standard_nc40ads_h100", "h100-nvl"), ("standard_nc80adis_h100", "h100-nvl"),
    ("standard_nd96amsr_a100", "a100-80gb"), ("standard_nc24ads_a100", "a100-80gb-pcie"),
)  # fmt: skip

_OTHER_NAMES = {
    "tesla-t4": "t4",
    "tesla-a100": "a100-40gb",
    "tesla-v100": "v100-16gb",
    "h100-80gb": "h100",
    "h100-mega-80gb": "h100",
    "h200-141gb": "h200",
    "h100-sxm4-80gb": "h100",
    "h100-sxm5-80gb": "h100",
}


def product_of(selectors: Iterable[tuple[str, str]], resources: Iterable[str] = ()) -> Product | None:
    """The product that these labels of nodes, or these resources, stand for; None when they name none."""
    for label, value in selectors:
        found = None
        if label in _LABELS:
            found = named_product(value)
        elif label in _INSTANCE_LABELS:
            found = _of_instance(value)
        if found is not None:
            return found
    profiles = (name.removeprefix(MIG_RESOURCE_PREFIX) for name in resources if "/mig-" in name)
    return next((found for profile in profiles if (found := _with_profile(profile))), None)


def named_product(text: str) -> Product | None:
    """The product of a name as clouds and people write it (`nvidia-l4`, `NVIDIA-H100-80GB-HBM3-SHARED`)."""
    name = text.lower().removesuffix("-shared").split("-mig-")[0]
    for one in (name, _OTHER_NAMES.get(name.removeprefix("nvidia-"), "")):
        try:
            return find_product(one)
        except GpufleetError:
            continue
    return None


def _of_instance(instance: str) -> Product | None:
    name = instance.lower().removeprefix("ml.")
    found = next((product for begin, product in _INSTANCES if name.startswith(begin)), None)
    return find_product(found) if found else None


def _with_profile(profile: str) -> Product | None:
    """The product with a MIG profile, when only one geometry has it."""
    having = [
        name for name, one in GEOMETRIES.items() if any(dotted(known) == profile for known in one.profiles)
    ]
    if len(having) != 1:
        return None
    return next((product for product in PRODUCTS.values() if product.mig == having[0]), None)
