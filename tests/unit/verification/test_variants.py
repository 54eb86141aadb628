"""The checker can fail: every broken variant is caught, with a trace that a human can follow."""

import pytest

from wattline.verification.runs import run_variant
from wattline.verification.variants import Variant, variants


@pytest.mark.parametrize("variant", variants(), ids=lambda variant: variant.name)
def test_each_broken_variant_is_caught(variant: Variant) -> None:
    violation = run_variant(variant).exploration.violation
    assert violation is not None
    assert violation.what.startswith(("I1", "I2", "I3", "I5"))
    assert len(violation.lines) == len(violation.events) + 1
    assert all("booked" in line and "enforced" in line for line in violation.lines)
