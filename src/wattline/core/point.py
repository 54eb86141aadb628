"""A replica at its capacity under one setting: what it serves, draws, and is limited by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import exp

from wattline.core.engine import EngineModel

LOADS = tuple(share / 20.0 for share in range(21))
"""Shares of a replica's rate at which `Point.curve_w` is given: fine, because draw rises steeply
from idle as soon as there is always something to decode."""


class Limit(StrEnum):
    """What keeps a replica from serving more."""

    TTFT = "ttft"
    ITL = "itl"
    KV = "kv"
    SEQS = "seqs"
    COMPUTE = "compute"


@dataclass(frozen=True, slots=True, kw_only=True)
class Margins:
    """What is kept free below the targets, and what is assumed about the traffic's spread.

    itl_fraction, ttft_fraction: share of the target that the model's mean may use. ttft_quantile:
    share of requests that must not wait too long. utilisation: most time that prompts may take.
    kv_fraction: share of the cache that may be held. batch_deviations: standard deviations by which
    the mean batch stays below the largest; cache_deviations: by which the cache held stays below
    what fits (running over costs all that was computed, so it weighs more); itl_deviations: by
    which the mean time between tokens of a request may be above the mean over requests (1.28: nine
    in ten). input_cv2, output_cv2: squared coefficients of variation of prompt work and output
    length (chat traces of Azure 2023: about 1 and 0.6).
    kv_bytes_per_s, kv_latency_s: moving a prompt's cache to decode (one 400 Gb/s port per GPU).
    """

    itl_fraction: float = 0.95
    ttft_fraction: float = 1.0
    ttft_quantile: float = 0.9
    utilisation: float = 0.95
    kv_fraction: float = 0.95
    batch_deviations: float = 1.0
    cache_deviations: float = 2.0
    itl_deviations: float = 1.28
    input_cv2: float = 1.0
    output_cv2: float = 0.6
    kv_bytes_per_s: float = 50e9
    kv_latency_s: float = 0.002


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One replica at its capacity under one setting.

    batch: sequences (decode, aggregated) or prompts (prefill) in a pass. utilisation: share of time
    in passes. busy_w: mean watts per GPU during passes. ttft_s and itl_s are means at this point,
    None where the role has none. A rate of 0: no load meets the target that `limit` names.
    """

    rate_rps: float
    batch: float
    utilisation: float
    busy_w: float
    draw_w: float
    curve_w: tuple[float, ...]
    ttft_s: float | None
    itl_s: float | None
    limit: Limit


def with_idle(engine: EngineModel, batch: float, watts: float) -> float:
    """Mean watts when the batch is Poisson around `batch`: with chance exp(-batch) it is empty."""
    empty = exp(-batch)
    return empty * engine.idle_w + (1.0 - empty) * watts


def load_curve(points: Sequence[tuple[float, float]]) -> list[float]:
    """Watts at `LOADS` between points of (load, watts), loads rising from 0 to 1."""
    loads = [load for load, _ in points]
    watts = [power for _, power in points]
    return [interpolate(loads, watts, load) for load in LOADS]


def interpolate(places: Sequence[float], values: Sequence[float], place: float) -> float:
    """Value at `place` on the line through points whose places rise; the last value beyond."""
    for left, right, low, high in zip(places, places[1:], values, values[1:], strict=False):
        if place <= right:
            return low + (high - low) * (place - left) / (right - left) if right > left else high
    return values[-1]


def make_point(
    *,
    engine: EngineModel,
    rate_rps: float,
    batch: float,
    utilisation: float,
    busy_w: float,
    curve: Sequence[float],
    ttft_s: float | None,
    itl_s: float | None,
    limit: Limit,
) -> Point:
    """Round a point to six digits; one without rate becomes `no_point`."""
    if rate_rps <= 0.0:
        return no_point(engine, limit)
    return Point(
        rate_rps=six_digits(rate_rps),
        batch=round(batch, 3),
        utilisation=round(utilisation, 6),
        busy_w=round(busy_w, 3),
        draw_w=round(curve[-1], 3),
        curve_w=tuple(round(watts, 3) for watts in curve),
        ttft_s=None if ttft_s is None else round(ttft_s, 6),
        itl_s=None if itl_s is None else round(itl_s, 6),
        limit=limit,
    )


def no_point(engine: EngineModel, limit: Limit) -> Point:
    """No load meets the targets."""
    return Point(
        rate_rps=0.0,
        batch=0.0,
        utilisation=0.0,
        busy_w=engine.idle_w,
        draw_w=engine.idle_w,
        curve_w=(engine.idle_w,) * len(LOADS),
        ttft_s=None,
        itl_s=None,
        limit=limit,
    )


def six_digits(value: float) -> float:
    """Round to six significant digits."""
    return float(f"{value:.6g}")
