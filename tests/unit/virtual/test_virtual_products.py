"""The virtual products are those of the catalog."""

from __future__ import annotations

import pytest

from wattline.catalog.products import gpu
from wattline.core.errors import InputError
from wattline.virtual.products import PRODUCTS, profile


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_has_the_catalogs_numbers(name: str) -> None:
    virtual = PRODUCTS[name]
    known = gpu(virtual.catalog_name)
    assert gpu(virtual.nvml_name.replace(" ", "-")).name == known.name
    assert (virtual.min_limit_w, virtual.default_limit_w, virtual.max_limit_w) == (
        known.min_limit_w,
        known.default_limit_w,
        known.max_limit_w,
    )
    assert virtual.idle_w == known.idle_w
    assert virtual.memory_bytes == known.hbm_bytes
    assert virtual.settle_s == known.settle_s
    if known.max_clock_mhz is not None:
        assert virtual.max_clock_mhz == known.max_clock_mhz
        assert virtual.min_clock_mhz == known.min_clock_mhz


def test_profiles_have_as_many_gpus_as_asked_for() -> None:
    assert profile("h200") == ("h200",) * 8
    assert profile("mixed") == ("h100",) * 4 + ("h200",) * 2 + ("b200",) * 2
    assert len(profile("mixed", 3)) == 3


def test_an_unknown_profile_is_refused() -> None:
    with pytest.raises(InputError, match="h100, h200, b200, mixed"):
        profile("a100")
