from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.sim.exposure import ExposureMeter


def test_within_the_budget_nothing_counts() -> None:
    meter = ExposureMeter(budget_w=1000.0, enforced_w=1000.0, repair_s=5.0)
    meter.advance(60.0)
    assert meter.over_budget_ws == 0.0
    assert meter.exposure_ws == 0.0


def test_our_own_excess_counts_from_the_first_moment() -> None:
    meter = ExposureMeter(budget_w=1000.0, enforced_w=900.0, repair_s=5.0)
    meter.enforced_changed(10.0, 1100.0)
    meter.enforced_changed(12.0, 950.0)
    meter.advance(60.0)
    assert meter.over_budget_ws == pytest.approx(200.0)
    assert meter.exposure_ws == 0.0


def test_a_cut_is_exposure_until_the_stated_time_and_ours_after_it() -> None:
    meter = ExposureMeter(budget_w=1000.0, enforced_w=1000.0, repair_s=5.0)
    meter.budget_changed(10.0, 800.0, "cut")
    meter.advance(20.0)
    assert meter.exposure_ws == pytest.approx(200.0 * 5.0)
    assert meter.over_budget_ws == pytest.approx(200.0 * 5.0)
    assert meter.events[0].exposure_ws == pytest.approx(1000.0)


def test_a_rival_write_is_exposure_until_it_is_mended() -> None:
    meter = ExposureMeter(budget_w=1000.0, enforced_w=1000.0, repair_s=5.0)
    meter.raised_from_outside(10.0, 3, 300.0, "rival")
    meter.enforced_changed(10.0, 1300.0)
    meter.enforced_changed(11.0, 1000.0)
    meter.mended(11.0, 3)
    meter.enforced_changed(12.0, 1100.0)
    meter.advance(13.0)
    assert meter.exposure_ws == pytest.approx(300.0)
    assert meter.over_budget_ws == pytest.approx(100.0)


def test_what_exceeds_the_outside_share_is_ours() -> None:
    meter = ExposureMeter(budget_w=1000.0, enforced_w=1000.0, repair_s=5.0)
    meter.raised_from_outside(0.0, 0, 100.0, "rival")
    meter.enforced_changed(0.0, 1250.0)
    meter.advance(2.0)
    assert meter.exposure_ws == pytest.approx(200.0)
    assert meter.over_budget_ws == pytest.approx(300.0)


steps = st.lists(
    st.tuples(
        st.floats(0.01, 5.0),
        st.sampled_from(["enforced", "budget", "rival", "mended"]),
        st.floats(0.0, 2000.0),
    ),
    max_size=30,
)


@given(steps)
def test_both_shares_add_up_to_the_excess(actions: list[tuple[float, str, float]]) -> None:
    meter = ExposureMeter(budget_w=1000.0, enforced_w=900.0, repair_s=3.0)
    now_s, budget_w, enforced_w, excess_ws = 0.0, 1000.0, 900.0, 0.0
    for span_s, action, value in actions:
        excess_ws += max(0.0, enforced_w - budget_w) * span_s
        now_s += span_s
        if action == "enforced":
            enforced_w = value
            meter.enforced_changed(now_s, value)
        elif action == "budget":
            budget_w = value
            meter.budget_changed(now_s, value, "change")
        elif action == "rival":
            meter.raised_from_outside(now_s, 0, value, "rival")
        else:
            meter.mended(now_s, 0)
    total_ws = meter.over_budget_ws + meter.exposure_ws
    assert total_ws == pytest.approx(excess_ws, rel=1e-9, abs=1e-6)
    assert min(meter.over_budget_ws, meter.exposure_ws) >= 0.0
