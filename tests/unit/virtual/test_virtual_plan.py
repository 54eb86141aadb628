"""The demonstration's plan: shares of a budget, within every range, never above it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.virtual.plan import moving_shares, shared_out, targets_w

RANGES = st.lists(
    st.tuples(st.integers(100, 300), st.integers(0, 600)).map(
        lambda pair: (float(pair[0]), float(pair[0] + pair[1]))
    ),
    min_size=1,
    max_size=16,
)


@given(st.floats(0.0, 8000.0), RANGES, st.integers(0, 100), st.integers(0, 9))
def test_targets_are_within_every_range_and_use_the_budget(
    usable_w: float, ranges: list[tuple[float, float]], period: int, seed: int
) -> None:
    targets = shared_out(usable_w, ranges, moving_shares(len(ranges), period, seed))
    assert all(low <= watts <= high for watts, (low, high) in zip(targets, ranges, strict=True))
    floor_w, ceiling_w = (sum(pair[side] for pair in ranges) for side in (0, 1))
    assert sum(targets) <= max(usable_w, floor_w) + 1e-6
    # Whole watts: less than one per GPU is left over.
    assert sum(targets) >= min(max(usable_w, floor_w), ceiling_w) - 1.0 - len(ranges)


def test_the_favoured_half_changes_with_the_period() -> None:
    ranges = {f"GPU-{index}": (200.0, 700.0) for index in range(8)}
    even, odd = (list(targets_w(3200.0, ranges, period, 1).values()) for period in (0, 1))
    assert sum(even[:4]) > sum(even[4:])
    assert sum(odd[:4]) < sum(odd[4:])
    assert targets_w(3200.0, ranges, 0, 1) == dict(zip(ranges, even, strict=True))


def test_an_even_share_is_even() -> None:
    assert shared_out(1000.0, [(200.0, 700.0)] * 4, [1.0] * 4) == [250.0] * 4
    assert shared_out(100.0, [(200.0, 700.0)] * 2, [1.0] * 2) == [200.0] * 2
    assert shared_out(9999.0, [(200.0, 700.0)] * 2, [1.0] * 2) == [700.0] * 2
    assert shared_out(1000.0, [(200.0, 300.0), (200.0, 900.0)], [1.0, 1.0]) == pytest.approx(
        [300.0, 700.0]
    )
