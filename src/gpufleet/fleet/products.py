"""GPU products: one table of what a GPU is, by the name that NVIDIA's tools give it.

`name` is the value of the label `nvidia.com/gpu.product` (GPU Feature Discovery writes the driver's name with
blanks as dashes), memory is what NVML reports as total, and `mig` names a geometry of `fleet.mig` or is
empty. Drivers before R470 leave out the prefix `NVIDIA-`; `find_product` takes both, and aliases for people.
Source: GPU Feature Discovery's labels and family rule, public nvidia-smi dumps (memory varies by some MiB
with the driver), the vendor's data sheets for power limits and links.
"""

from __future__ import annotations

import difflib

import msgspec

from gpufleet.fleet.errors import GpufleetError


class Product(msgspec.Struct, frozen=True):
    """One product. Memory in MiB, power limit in watts, `nvlink` links per GPU (0: PCIe only)."""

    name: str
    aliases: tuple[str, ...]
    memory_mib: int
    compute: tuple[int, int]
    power_w: int
    nvlink: int = 0
    mig: str = ""

    @property
    def family(self) -> str:
        """The architecture's name, from the compute capability as GPU Feature Discovery derives it."""
        known = [name for capability, name in _FAMILIES if capability <= self.compute]
        return known[-1] if known else "undefined"


_FAMILIES = (
    ((3, 0), "kepler"),
    ((5, 0), "maxwell"),
    ((6, 0), "pascal"),
    ((7, 0), "volta"),
    ((7, 5), "turing"),
    ((8, 0), "ampere"),
    ((8, 9), "ada-lovelace"),
    ((9, 0), "hopper"),
    ((10, 0), "blackwell"),
    ((13, 0), "rubin"),
)

# fmt: off
_TABLE = (
    # label value                      aliases               MiB  capability  W  NVLink  MIG geometry
    ("NVIDIA-GB200",                  "gb200",             189471, (10, 0),  1200, 18, "gb200"),
    ("NVIDIA-B200",                   "b200",              183359, (10, 0),  1000, 18, "b200-180gb"),
    ("NVIDIA-H200",                   "h200 h200-sxm",     143771, (9, 0),    700, 18, "h200-141gb"),
    ("NVIDIA-H200-NVL",               "h200-nvl",          143771, (9, 0),    600, 18, "h200-141gb"),
    ("NVIDIA-GH200-480GB",            "gh200",              97871, (9, 0),    900,  0, "h100-96gb"),
    ("NVIDIA-H100-80GB-HBM3",         "h100 h100-sxm",      81559, (9, 0),    700, 18, "h100-80gb"),
    ("NVIDIA-H100-NVL",               "h100-nvl",           95830, (9, 0),    400, 12, "h100-94gb"),
    ("NVIDIA-H100-PCIe",              "h100-pcie",          81559, (9, 0),    350, 12, "h100-80gb"),
    ("NVIDIA-A100-SXM4-80GB",         "a100 a100-80gb",     81920, (8, 0),    400, 12, "a100-80gb"),
    ("NVIDIA-A100-80GB-PCIe",         "a100-80gb-pcie",     81920, (8, 0),    300, 12, "a100-80gb"),
    ("NVIDIA-A100-SXM4-40GB",         "a100-40gb",          40960, (8, 0),    400, 12, "a100-40gb"),
    ("NVIDIA-A100-PCIE-40GB",         "a100-40gb-pcie",     40960, (8, 0),    250, 12, "a100-40gb"),
    ("NVIDIA-A30",                    "a30",                24576, (8, 0),    165,  4, "a30-24gb"),
    ("NVIDIA-A40",                    "a40",                46068, (8, 6),    300,  4, ""),
    ("NVIDIA-A10G",                   "a10g",               23028, (8, 6),    300,  0, ""),
    ("NVIDIA-A10",                    "a10",                23028, (8, 6),    150,  0, ""),
    ("NVIDIA-L4",                     "l4",                 23034, (8, 9),     72,  0, ""),
    ("NVIDIA-L40",                    "l40",                46068, (8, 9),    300,  0, ""),
    ("NVIDIA-L40S",                   "l40s",               46068, (8, 9),    350,  0, ""),
    ("NVIDIA-RTX-6000-Ada-Generation", "rtx-6000-ada",      49140, (8, 9),    300,  0, ""),
    ("Tesla-T4",                      "t4",                 15360, (7, 5),     70,  0, ""),
    ("Tesla-V100-SXM2-32GB",          "v100 v100-32gb",     32768, (7, 0),    300,  6, ""),
    ("Tesla-V100-SXM2-16GB",          "v100-16gb",          16384, (7, 0),    300,  6, ""),
    ("Tesla-P100-PCIE-16GB",          "p100",               16384, (6, 0),    250,  0, ""),
)
# fmt: on

PRODUCTS: dict[str, Product] = {
    name: Product(name, tuple(aliases.split()), memory, compute, power, nvlink, mig)
    for name, aliases, memory, compute, power, nvlink, mig in _TABLE
}
"""Every product by its label value."""


def _without_prefix(text: str) -> str:
    return text.lower().removeprefix("nvidia-").removeprefix("tesla-")


_BY_NAME: dict[str, Product] = {
    **{_without_prefix(product.name): product for product in PRODUCTS.values()},
    **{alias: product for product in PRODUCTS.values() for alias in product.aliases},
}


def find_product(text: str) -> Product:
    """The product of a label value or alias, whatever the case and the vendor's prefix.

    Raises GpufleetError (UnknownProduct) that names the nearest known product.
    """
    wanted = _without_prefix(text.strip().replace(" ", "-"))
    product = _BY_NAME.get(wanted)
    if product is not None:
        return product
    near = difflib.get_close_matches(wanted, _BY_NAME, n=1, cutoff=0.5)
    aliases = ", ".join(product.aliases[0] for product in PRODUCTS.values())
    raise GpufleetError(
        reason="UnknownProduct",
        message=f"there is no GPU product {text!r}",
        hint=f"did you mean {near[0]!r}? Known: {aliases}" if near else f"known products: {aliases}",
    )
