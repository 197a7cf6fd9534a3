"""The table of GPU products and how people name them."""

from __future__ import annotations

import pytest

from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.mig import GEOMETRIES
from gpufleet.fleet.products import PRODUCTS, find_product


@pytest.mark.parametrize(
    "text",
    [
        "h100",
        "H100",
        "NVIDIA-H100-80GB-HBM3",
        "H100-80GB-HBM3",
        "NVIDIA H100 80GB HBM3",
        "nvidia-h100-80gb-hbm3",
    ],
)
def test_a_product_is_found_by_label_alias_driver_name_and_old_driver_name(text: str) -> None:
    assert find_product(text).name == "NVIDIA-H100-80GB-HBM3"


def test_every_name_and_alias_leads_to_its_own_product() -> None:
    for product in PRODUCTS.values():
        for text in (product.name, *product.aliases):
            assert find_product(text) is product


def test_an_unknown_product_names_the_nearest_one() -> None:
    with pytest.raises(GpufleetError) as caught:
        find_product("h10")
    assert caught.value.reason == "UnknownProduct"
    assert "'h100'" in caught.value.hint


def test_a_product_like_no_other_lists_the_known_ones() -> None:
    with pytest.raises(GpufleetError) as caught:
        find_product("quantum-9000")
    assert caught.value.hint.startswith("known products: ")
    assert "l4" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "family"),
    [("t4", "turing"), ("v100", "volta"), ("a10g", "ampere"), ("l4", "ada-lovelace"), ("h200", "hopper")],
)
def test_the_family_follows_the_compute_capability(name: str, family: str) -> None:
    assert find_product(name).family == family


def test_every_mig_geometry_that_a_product_names_exists() -> None:
    for product in PRODUCTS.values():
        assert not product.mig or product.mig in GEOMETRIES
