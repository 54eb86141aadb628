"""What is believed of the demand after windows of counts."""

from dataclasses import replace

import numpy as np
import pytest
from decision_fixtures import MIX, make_site
from hypothesis import given
from hypothesis import strategies as st

from wattline.core.demand import Demand, observe
from wattline.core.mix import Mix
from wattline.core.settings import Settings
from wattline.core.snapshot import DemandView
from wattline.core.state import DemandState

SETTINGS = make_site().settings


def window(rate: float, mix: Mix = MIX, seconds: float = 1.0, age_s: float = 0.0) -> DemandView:
    site = make_site()
    site.rate_rps, site.mix = rate, mix
    return replace(site.demand(seconds), age_s=age_s)


def blind(age_s: float) -> DemandView:
    return replace(
        window(0.0, age_s=age_s),
        window_s=0.0,
        arrivals=None,
        input_tokens_sum=None,
        cached_tokens_sum=None,
        completions=None,
        output_tokens_sum=None,
        rejected=None,
    )


def follow(
    views: list[DemandView],
    state: DemandState | None = None,
    *,
    start_s: float = 0.0,
    step_s: float = 1.0,
    settings: Settings = SETTINGS,
    context_tokens: float | None = None,
) -> tuple[DemandState, Demand]:
    """Take `views` in, one per step; returns the last outcome."""
    state = state or DemandState()
    for index, view in enumerate(views):
        state, demand = observe(
            view,
            state,
            start_s + step_s * (index + 1),
            expected=MIX,
            context_tokens=context_tokens,
            itl_s=0.05,
            horizon_s=60.0,
            s=settings,
        )
    return state, demand


def test_a_steady_rate_is_seen_as_it_is() -> None:
    _, demand = follow([window(20.0)] * 120)
    assert demand.rate_rps == pytest.approx(20.0, rel=0.02)
    assert demand.mix == MIX
    assert demand.outage is None


def test_a_burst_is_seen_within_seconds_and_forgotten_slowly() -> None:
    state, calm = follow([window(20.0)] * 120)
    state, burst = follow([window(100.0)] * 5, state, start_s=120.0)
    assert burst.rate_rps > 1.5 * calm.rate_rps
    _, after = follow([window(20.0)] * 5, state, start_s=125.0)
    assert after.rate_rps > 1.2 * calm.rate_rps


def test_noise_within_the_band_moves_nothing() -> None:
    state, before = follow([window(40.0)] * 300)
    views = [window(40.0 + (1.0 if index % 2 else -1.0)) for index in range(100)]
    _, after = follow(views, state, start_s=300.0)
    assert (after.rate_rps, after.mix) == (before.rate_rps, before.mix)


def test_a_new_mix_is_followed() -> None:
    other = Mix(3000.0, 50.0, 0.5)
    state, _ = follow([window(40.0)] * 60)
    _, demand = follow([window(40.0, other)] * 300, state, start_s=60.0)
    assert demand.mix.input_tokens == pytest.approx(3000.0, rel=0.05)
    assert demand.mix.output_tokens == pytest.approx(50.0, rel=0.1)
    assert demand.mix.cached_fraction == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("tokens", [150.0, 4000.0])
def test_other_traffic_is_followed_at_once(tokens: float) -> None:
    state, _ = follow([window(300.0, Mix(1000.0, 200.0))] * 60)
    other = Mix(tokens, 200.0)
    state, demand = follow([window(150.0, other)], state, start_s=60.0)
    assert demand.mix.input_tokens == pytest.approx(tokens, rel=0.01)
    assert demand.rate_rps == pytest.approx(150.0, rel=0.01)
    _, demand = follow([window(150.0, other)] * 5, state, start_s=61.0)
    assert demand.rate_rps == pytest.approx(150.0, rel=0.02)


@pytest.mark.parametrize("arrivals", [1, 5, 30, 100, 1000])
@pytest.mark.parametrize("sigma", [0.83, 1.27])  # of a lognormal: as wide as the mean, and twice
def test_chance_is_never_taken_for_other_traffic(arrivals: int, sigma: float) -> None:
    drawn = np.random.default_rng(arrivals).lognormal(0.0, sigma, (400, arrivals))
    sums = 1000.0 * drawn.sum(axis=1) / np.exp(0.5 * sigma**2)
    views = [
        replace(window(float(arrivals)), input_tokens_sum=round(total), cached_tokens_sum=0)
        for total in sums
    ]
    state = DemandState()
    for index, view in enumerate(views):
        before = state.calm_s
        state, _ = follow([view], state, start_s=float(index))
        assert index == 0 or state.calm_s > min(before, 1.0)


def test_measured_zero_is_zero_and_missing_is_an_outage() -> None:
    state, _ = follow([window(20.0)] * 60)
    _, idle = follow([window(0.0)] * 300, state, start_s=60.0)
    assert idle.outage is None
    assert idle.rate_rps < 1.0
    held, gap = follow([blind(5.0)] * 5, state, start_s=60.0)
    assert gap.outage is None, "one late window is no outage"
    _, outage = follow([blind(20.0)] * 20, held, start_s=65.0)
    assert outage.outage is not None
    assert outage.rate_rps == pytest.approx(20.0, rel=0.05), "what was known is held"


def test_metrics_that_stand_still_are_an_outage_and_are_not_counted_twice() -> None:
    state, _ = follow([window(20.0)] * 60)
    views = [window(20.0, age_s=float(age)) for age in range(1, 31)]
    after, demand = follow(views, state, start_s=60.0)
    assert demand.outage is not None
    assert "old" in demand.outage
    assert after.calm_arrivals == state.calm_arrivals


def test_nothing_seen_yet_is_an_outage_with_the_expected_mix() -> None:
    _, demand = follow([blind(0.0)])
    assert demand.outage is not None
    assert demand.mix == MIX


def test_overlapping_windows_count_only_what_is_new() -> None:
    _, demand = follow([window(20.0, seconds=10.0)] * 60)
    assert demand.rate_rps == pytest.approx(20.0, rel=0.03)


def test_the_spread_of_answers_follows_the_context_in_decode() -> None:
    context = MIX.input_tokens + MIX.output_tokens * (1.0 + 1.4) / 2.0
    _, demand = follow([window(50.0)] * 300, context_tokens=context)
    assert demand.output_cv2 == pytest.approx(1.4, abs=0.2)


def test_a_rising_history_raises_what_replicas_are_planned_for() -> None:
    views = [window(10.0 + 0.05 * second) for second in range(600)]
    _, demand = follow(views)
    assert demand.ahead_rps > demand.rate_rps


def test_the_oracle_knows_the_peak_ahead_and_never_plans_for_less_than_is_seen() -> None:
    oracle = replace(SETTINGS, forecast="oracle")
    rising = replace(window(20.0), future_rps=(20.0,) * 30 + (90.0,) * 60)
    _, demand = follow([rising] * 60, settings=oracle)
    assert demand.ahead_rps > 50.0
    falling = replace(window(20.0), future_rps=(0.0,) * 90)
    _, demand = follow([falling] * 60, settings=oracle)
    assert demand.ahead_rps >= demand.rate_rps >= 19.0


@given(
    st.lists(
        st.tuples(
            st.integers(0, 10**6), st.integers(0, 10**9), st.sampled_from([0.0, 0.5, 1.0, 60.0])
        ),
        min_size=1,
        max_size=20,
    )
)
def test_any_counts_give_finite_demand(rows: list[tuple[int, int, float]]) -> None:
    views = [
        replace(
            window(0.0),
            window_s=seconds,
            arrivals=arrivals,
            input_tokens_sum=tokens,
            cached_tokens_sum=tokens,
            completions=arrivals,
            output_tokens_sum=tokens,
        )
        for arrivals, tokens, seconds in rows
    ]
    _, demand = follow(views)
    assert 0.0 <= demand.rate_rps < float("inf")
    assert demand.ahead_rps >= demand.rate_rps
    assert demand.mix.input_tokens >= 1.0
    assert 0.0 <= demand.mix.cached_fraction <= 1.0


def test_the_state_stays_small() -> None:
    state, _ = follow([window(20.0, seconds=30.0)] * 200, step_s=30.0)
    assert len(state.bins_rps) == SETTINGS.history_bins
