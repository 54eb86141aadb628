from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.core.correction import corrected
from wattline.core.demand import Demand
from wattline.core.derive import held_rps, with_hold
from wattline.core.mix import Mix

TARGET_S = 0.05


def test_late_answers_raise_the_factor_and_it_stays_within_two() -> None:
    factor = 1.0
    seen = []
    for _ in range(60):
        factor = corrected(factor, 1.3 * TARGET_S, TARGET_S, 1.0)
        seen.append(factor)
    assert seen == sorted(seen)
    assert seen[0] > 1.0
    assert seen[-1] == 2.0


def test_met_targets_let_it_fade_to_one_and_no_further() -> None:
    factor = 1.5
    for _ in range(600):
        factor = corrected(factor, 0.5 * TARGET_S, TARGET_S, 1.0)
    assert factor == 1.0


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_nothing_measured_changes_nothing(missing: float | None) -> None:
    assert corrected(1.37, missing, TARGET_S, 1.0) == 1.37


@given(st.floats(1.0, 2.0), st.floats(0.0, 10.0), st.floats(0.0, 1e6))
def test_it_never_loosens(factor: float, itl_s: float, window_s: float) -> None:
    assert 1.0 <= corrected(factor, itl_s, TARGET_S, window_s) <= 2.0


def test_what_is_held_follows_littles_law() -> None:
    demand = Demand(
        rate_rps=10.0, ahead_rps=10.0, seen_rps=10.0, mix=Mix(1000.0, 200.0), outage=None
    )
    # 100 sequences x 1 token / 50 ms = 2,000 tokens/s = 10 requests/s of 200 tokens.
    assert held_rps(100.0, demand, TARGET_S) == pytest.approx(10.0)
    assert held_rps(None, demand, TARGET_S) == 0.0
    longer = replace(demand, mix=Mix(1000.0, 400.0))
    assert held_rps(100.0, longer, TARGET_S) == pytest.approx(5.0)


def test_settings_too_slow_for_the_batch_in_flight_are_marked_down() -> None:
    rates = (2.0, 4.0, 8.0)
    assert with_hold(rates, 0.0) is rates
    assert with_hold(rates, 4.0) == (0.5, 4.0, 8.0)
    assert with_hold(rates, 8.0) == (0.125, 1.0, 8.0)


@given(st.lists(st.floats(0.0, 50.0), min_size=2, max_size=10), st.floats(0.1, 60.0))
def test_marking_down_keeps_the_order_and_never_adds(rates: list[float], least: float) -> None:
    ordered = tuple(sorted(rates))
    held = with_hold(ordered, least)
    assert list(held) == sorted(held)
    assert all(after <= before for after, before in zip(held, ordered, strict=True))
