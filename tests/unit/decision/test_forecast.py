"""Forecasts on series whose future is known."""

from math import pi, sin

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.core.forecast import History, Method, forecast


def history(rates: list[float], season_bins: int = 0) -> History:
    return History(rates_rps=tuple(rates), bin_s=60.0, season_bins=season_bins)


@pytest.mark.parametrize("method", ["last_value", "seasonal_holt", "oracle"])
def test_no_history_gives_no_forecast(method: Method) -> None:
    assert forecast(history([]), 60.0, method) is None


def test_the_last_value_is_the_last_value() -> None:
    ahead = forecast(history([5.0, 9.0, 7.0]), 600.0, "last_value")
    assert ahead is not None
    assert ahead.p50_rps == 7.0


@pytest.mark.parametrize("method", ["last_value", "seasonal_holt"])
def test_a_level_series_stays_level_and_certain(method: Method) -> None:
    ahead = forecast(history([4.0] * 20), 300.0, method)
    assert ahead is not None
    assert (ahead.p10_rps, ahead.p50_rps, ahead.p90_rps) == pytest.approx((4.0, 4.0, 4.0))


def test_a_trend_is_continued_but_damped() -> None:
    rates = [10.0 + step for step in range(30)]
    ahead = forecast(history(rates), 5 * 60.0, "seasonal_holt")
    assert ahead is not None
    assert 39.0 < ahead.p50_rps < 44.0


def test_a_season_is_known_after_two_of_them() -> None:
    rates = [20.0 + 10.0 * sin(2 * pi * step / 24) for step in range(54)]
    ahead = forecast(history(rates, season_bins=24), 12 * 60.0, "seasonal_holt")
    blind = forecast(history(rates), 12 * 60.0, "seasonal_holt")
    truth = 20.0 + 10.0 * sin(2 * pi * 65 / 24)
    assert ahead is not None
    assert blind is not None
    assert ahead.p50_rps == pytest.approx(truth, abs=1.0)
    assert abs(blind.p50_rps - truth) > 5.0


def test_noise_widens_the_quantiles_and_more_so_further_ahead() -> None:
    rates = [10.0, 14.0] * 10
    near = forecast(history(rates), 60.0, "seasonal_holt")
    far = forecast(history(rates), 600.0, "seasonal_holt")
    assert near is not None
    assert far is not None
    assert 0.0 < near.p90_rps - near.p10_rps < far.p90_rps - far.p10_rps


def test_the_oracle_gives_the_largest_bin_ahead() -> None:
    future = (10.0,) * 60 + (50.0,) * 60 + (10.0,) * 60
    ahead = forecast(
        History(rates_rps=(), bin_s=60.0, future_rps=future, future_step_s=1.0), 180.0, "oracle"
    )
    near = forecast(
        History(rates_rps=(), bin_s=60.0, future_rps=future, future_step_s=1.0), 30.0, "oracle"
    )
    assert ahead is not None
    assert near is not None
    assert (ahead.p50_rps, near.p50_rps) == (50.0, 10.0)


@given(
    st.lists(st.floats(0.0, 1e6), min_size=1, max_size=60),
    st.integers(0, 30),
    st.floats(1.0, 1e5),
    st.sampled_from(["last_value", "seasonal_holt"]),
)
def test_quantiles_are_ordered_and_never_negative(
    rates: list[float], season: int, horizon_s: float, method: Method
) -> None:
    ahead = forecast(history(rates, season), horizon_s, method)
    assert ahead is not None
    assert 0.0 <= ahead.p10_rps <= ahead.p50_rps <= ahead.p90_rps < float("inf")
