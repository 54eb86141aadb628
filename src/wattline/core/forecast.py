"""Forecasts of a request rate: what may come, so that the floor can rise in time.

A forecast may raise the floor of what is provided for; it never lowers what is seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import ceil, sqrt
from statistics import median
from typing import Literal

Method = Literal["last_value", "seasonal_holt", "oracle"]

# Damped Holt: level and trend weights, and the factor by which the trend fades per bin. Usual
# values for short, noisy series (Hyndman and Athanasopoulos, Forecasting, 3rd ed., section 8.2:
# a damping of 0.8 to 0.98; small trend weights).
_LEVEL_WEIGHT = 0.5
_TREND_WEIGHT = 0.1
_DAMPING = 0.9
# 90th percentile of a standard normal variable.
_Z90 = 1.2816


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Mean request rates of equal bins, oldest first.

    season_bins: bins per season (a day), 0 for none. future_rps: the true rates ahead in steps of
    `future_step_s`, for the oracle only.
    """

    rates_rps: tuple[float, ...]
    bin_s: float
    season_bins: int = 0
    future_rps: tuple[float, ...] | None = None
    future_step_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Quantiles:
    """10th, 50th and 90th percentile of the mean rate expected at the horizon."""

    p10_rps: float
    p50_rps: float
    p90_rps: float


def forecast(history: History, horizon_s: float, method: Method) -> Quantiles | None:
    """Rate at `horizon_s` from now, or None where `history` holds nothing to tell it from.

    `last_value`: the newest bin. `seasonal_holt`: the median of the same time in earlier seasons
    (from two seasons on) plus a damped Holt forecast of what is left. `oracle`: the largest bin
    mean of the true rate up to the horizon. Quantiles come from the method's own one-bin errors,
    which widen with the square root of the bins ahead.
    """
    if method == "oracle":
        return _oracle(history, horizon_s)
    rates = history.rates_rps
    if not rates:
        return None
    steps = max(1, ceil(horizon_s / history.bin_s))
    if method == "last_value":
        errors = [after - before for before, after in pairwise(rates)]
        return _spread(rates[-1], errors, steps)
    seasonal = _seasonal(rates, history.season_bins, steps)
    left = [rate - base for rate, base in zip(rates, seasonal, strict=False)]
    ahead, errors = _damped_holt(left, steps)
    return _spread(ahead + seasonal[len(rates) + steps - 1], errors, steps)


def _oracle(history: History, horizon_s: float) -> Quantiles | None:
    future = history.future_rps
    if not future:
        return None
    # Means over a bin, or over the horizon where that is shorter: single steps are mostly noise.
    width = max(1, round(min(history.bin_s, horizon_s) / history.future_step_s))
    seen = future[: max(width, ceil(horizon_s / history.future_step_s))]
    sums = [0.0, *accumulate(seen)]
    width = min(width, len(seen))
    best = max(end - start for start, end in zip(sums, sums[width:], strict=False)) / width
    return Quantiles(best, best, best)


def _seasonal(rates: Sequence[float], season_bins: int, steps: int) -> list[float]:
    """Median of all seasons at each bin and `steps` bins ahead; 0 throughout if not known.

    Needs two whole seasons: one alone would repeat its noise as if it were a pattern.
    """
    length = len(rates) + steps
    if season_bins <= 0 or len(rates) < 2 * season_bins:
        return [0.0] * length
    places = [median(rates[place::season_bins]) for place in range(season_bins)]
    return [places[index % season_bins] for index in range(length)]


def _damped_holt(series: Sequence[float], steps: int) -> tuple[float, list[float]]:
    """Forecast `steps` bins ahead, and the errors of the forecasts one bin ahead on the way."""
    level, trend = series[0], 0.0
    errors = []
    for value in series[1:]:
        expected = level + _DAMPING * trend
        errors.append(value - expected)
        new_level = expected + _LEVEL_WEIGHT * (value - expected)
        trend = _DAMPING * trend + _TREND_WEIGHT * (new_level - level - _DAMPING * trend)
        level = new_level
    reach, factor = 0.0, 1.0
    for _ in range(min(steps, 1000)):
        factor *= _DAMPING
        reach += factor
    return level + reach * trend, errors


def _spread(middle: float, errors: Sequence[float], steps: int) -> Quantiles:
    """Quantiles around `middle`, never negative; no spread without errors to judge it by."""
    half = 0.0
    if errors:
        half = _Z90 * sqrt(sum(error * error for error in errors) / len(errors) * steps)
    return Quantiles(max(0.0, middle - half), max(0.0, middle), max(0.0, middle + half))
