"""Traffic made by seeded generators, with stated statistics.

Arrivals are a Poisson process whose rate moves: `rate = mean x swing(t) x surges(t) x wander(t)`.
Token counts are drawn from a table of published quantiles. Everything but the exponential gaps is
plain IEEE arithmetic; the gaps are put on a grid and times rounded to the microsecond, so that one
seed gives one trace on every CPU.

Statistics of the Azure conversation trace (Azure/AzurePublicDataset,
AzureLLMInferenceTrace_conv.csv, November 2023, CC-BY-4.0: 19,366 requests in 3,502 s, 5.53 per
second, mean 1,155 input and 211 output tokens) as computed from the file: the quantiles below; rank
correlation of input and output 0.07, taken as none; variance over mean of the number of arrivals
1.4 in windows of 1 s, 3.9 of 10 s, 16 of 60 s (a Poisson process has 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wattline.sim.traces import Floats, Ints, Trace, make_trace

SOURCE = "statistics of Azure LLM inference trace 2023, conversation (CC-BY-4.0)"
AZURE_MEAN_RPS = 5.53
AZURE_MEAN_INPUT_TOKENS = 1155.0
AZURE_MEAN_OUTPUT_TOKENS = 211.0
QUANTILES = (
    *(0.0, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65),
    *(0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.975, 0.99, 0.995, 0.999, 1.0),
)
AZURE_INPUT_TOKENS = (
    *(2, 29, 120, 181, 207, 372, 387, 396, 403, 414, 703, 984, 1020, 1045, 1071, 1097),
    *(1130, 1189, 1315, 1876, 2734, 4075, 4083, 4092, 4142, 4831, 6212, 14050),
)
AZURE_OUTPUT_TOKENS = (
    *(7, 16, 28, 41, 54, 67, 77, 85, 91, 96, 103, 113, 129, 151, 177, 217),
    *(384, 395, 400, 411, 424, 430, 451, 522, 601, 643, 954, 1000),
)

# The rate wanders by two noises, each a straight line between uniform draws at knots this far
# apart, with this half-width. A line between independent draws has 2/3 of their variance, a uniform
# draw 1/3 of its squared half-width: 0.045 slow and 0.016 fast, which gives the variances above.
_SLOW_KNOT_S, _SLOW_HALF_WIDTH = 180.0, 0.45
_FAST_KNOT_S, _FAST_HALF_WIDTH = 4.0, 0.27
_STEP_S = 1.0
_GAP_GRID = 2.0**-20


@dataclass(frozen=True, slots=True, kw_only=True)
class Swing:
    """A day's swing: the rate goes smoothly from trough to peak and back in `period_s`.

    The mean over a period is kept. `peak_at_s` is when the peak falls.
    """

    peak_to_trough: float
    period_s: float = 86_400.0
    peak_at_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Surge:
    """A crowd: from `at_s` the rate rises to `factor` x in `rise_s`, holds, and falls back."""

    at_s: float
    factor: float
    rise_s: float
    hold_s: float
    fall_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MixShift:
    """Prefill's share of the GPU work swings between `low_share` and `high_share`.

    One prompt token costs one unit of GPU time, one generated token `decode_token_cost` units; a
    request costs `work_units` on average, whatever the share, so that only the mix moves:
    input tokens = share x work_units, output tokens = (1 - share) x work_units / cost.
    """

    low_share: float
    high_share: float
    period_s: float
    decode_token_cost: float
    work_units: float


def wave(position: Floats) -> Floats:
    """Return a smooth wave of period 1: 0 at whole numbers, 1 half-way between, mean 1/2.

    A cubic within 0.0101 of (1 - cos(2 pi x)) / 2 that is exact arithmetic on every CPU.
    """
    phase = position - np.floor(position)
    up = 1.0 - np.abs(2.0 * phase - 1.0)
    result: Floats = up * up * (3.0 - 2.0 * up)
    return result


def swing_factor(swing: Swing | None, time_s: Floats) -> Floats:
    """Return the rate over its mean at `time_s`."""
    if swing is None:
        return np.ones(len(time_s))
    trough = 2.0 / (1.0 + swing.peak_to_trough)
    height = trough * (swing.peak_to_trough - 1.0)
    return trough + height * wave((time_s - swing.peak_at_s) / swing.period_s + 0.5)


def surge_factor(surges: Sequence[Surge], time_s: Floats) -> Floats:
    """Return by what the surges multiply the rate at `time_s`."""
    factor = np.ones(len(time_s))
    for surge in surges:
        high_s = surge.at_s + surge.rise_s
        low_s = high_s + surge.hold_s
        corners = [surge.at_s, high_s, low_s, low_s + surge.fall_s]
        factor *= np.interp(time_s, corners, [1.0, surge.factor, surge.factor, 1.0])
    return factor


def _wander(rng: np.random.Generator, edges_s: Floats, burstiness: float) -> Floats:
    """Factor of mean 1 by which the rate wanders; 1 throughout when burstiness is 0."""
    factor = np.ones(len(edges_s))
    for knot_s, half_width in (
        (_SLOW_KNOT_S, _SLOW_HALF_WIDTH),
        (_FAST_KNOT_S, _FAST_HALF_WIDTH),
    ):
        knots = np.arange(0.0, edges_s[-1] + 2.0 * knot_s, knot_s)
        draws = burstiness * half_width * (2.0 * rng.random(len(knots)) - 1.0)
        factor *= 1.0 + np.interp(edges_s, knots, draws)
    return np.maximum(factor, 0.0)


def _arrivals(
    rng: np.random.Generator,
    *,
    duration_s: float,
    mean_rps: float,
    swing: Swing | None,
    surges: Sequence[Surge],
    burstiness: float,
) -> Floats:
    """Draw times of a Poisson process whose rate moves as the module says."""
    steps = max(1, int(np.ceil(duration_s / _STEP_S)))
    edges_s = np.minimum(np.arange(steps + 1) * _STEP_S, duration_s)
    rate = mean_rps * swing_factor(swing, edges_s) * surge_factor(surges, edges_s)
    rate = rate * _wander(rng, edges_s, burstiness)
    # Expected arrivals up to each edge: the rate is a straight line in between.
    expected = np.concatenate([[0.0], np.cumsum(np.diff(edges_s) * (rate[1:] + rate[:-1]) / 2.0)])
    count = int(expected[-1] + 10.0 * np.sqrt(expected[-1]) + 20.0)
    # Whole grid steps add up exactly: a gap that differs in its last bit between two C libraries
    # neither changes nor shifts the rest.
    gaps = np.rint(rng.standard_exponential(count) / _GAP_GRID).astype(np.int64)
    unit_times = np.cumsum(gaps) * _GAP_GRID
    unit_times = unit_times[unit_times < expected[-1]]
    return np.sort(np.round(np.interp(unit_times, expected, edges_s), 6))


def _tokens(rng: np.random.Generator, count: int, table: Sequence[int], scale: Floats) -> Ints:
    drawn = np.interp(rng.random(count), QUANTILES, table) * scale
    return np.maximum(np.floor(drawn + 0.5), 1.0).astype(np.int64)


def conversation(
    *,
    seed: int,
    duration_s: float,
    mean_rps: float,
    swing: Swing | None = None,
    surges: Sequence[Surge] = (),
    burstiness: float = 1.0,
    mean_input_tokens: float = AZURE_MEAN_INPUT_TOKENS,
    mean_output_tokens: float = AZURE_MEAN_OUTPUT_TOKENS,
) -> Trace:
    """Generate chat traffic like the Azure conversation trace.

    `burstiness` scales how far the rate wanders: 1 as published, 0 a plain Poisson process. Other
    means than the published ones stretch the published distributions.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    time_s = _arrivals(
        rng,
        duration_s=duration_s,
        mean_rps=mean_rps,
        swing=swing,
        surges=surges,
        burstiness=burstiness,
    )
    ones = np.ones(len(time_s))
    inputs = _tokens(
        rng, len(time_s), AZURE_INPUT_TOKENS, ones * (mean_input_tokens / AZURE_MEAN_INPUT_TOKENS)
    )
    outputs = _tokens(
        rng,
        len(time_s),
        AZURE_OUTPUT_TOKENS,
        ones * (mean_output_tokens / AZURE_MEAN_OUTPUT_TOKENS),
    )
    return make_trace(
        time_s,
        inputs,
        outputs,
        duration_s=duration_s,
        source=f"generated chat traffic, seed {seed}",
        format="generated",
        notes=(f"Generated with the {SOURCE}, burstiness {burstiness:g}.",),
    )


def mix_shift(
    *,
    seed: int,
    duration_s: float,
    mean_rps: float,
    shift: MixShift,
    burstiness: float = 1.0,
) -> Trace:
    """Generate traffic whose prefill share of the work swings; lengths as in `conversation`."""
    rng = np.random.Generator(np.random.PCG64(seed))
    time_s = _arrivals(
        rng,
        duration_s=duration_s,
        mean_rps=mean_rps,
        swing=None,
        surges=(),
        burstiness=burstiness,
    )
    # Starts at the low share.
    share = shift.low_share + (shift.high_share - shift.low_share) * wave(time_s / shift.period_s)
    mean_input = share * shift.work_units
    mean_output = (1.0 - share) * shift.work_units / shift.decode_token_cost
    return make_trace(
        time_s,
        _tokens(rng, len(time_s), AZURE_INPUT_TOKENS, mean_input / AZURE_MEAN_INPUT_TOKENS),
        _tokens(rng, len(time_s), AZURE_OUTPUT_TOKENS, mean_output / AZURE_MEAN_OUTPUT_TOKENS),
        duration_s=duration_s,
        source=f"generated mix shift, seed {seed}",
        format="generated",
        notes=(
            f"Prefill's share of the work swings between {shift.low_share:g} and "
            f"{shift.high_share:g} every {shift.period_s:g} s, an output token counted as "
            f"{shift.decode_token_cost:g} input tokens.",
            f"Lengths are spread as in the {SOURCE}, burstiness {burstiness:g}.",
        ),
    )


def constant(
    *,
    seed: int,
    duration_s: float,
    rate_rps: float,
    input_tokens: int,
    output_tokens: int,
    poisson: bool = True,
) -> Trace:
    """Generate requests of one size, evenly spaced or as a Poisson process."""
    if poisson:
        time_s = _arrivals(
            np.random.Generator(np.random.PCG64(seed)),
            duration_s=duration_s,
            mean_rps=rate_rps,
            swing=None,
            surges=(),
            burstiness=0.0,
        )
    else:
        time_s = np.arange(int(duration_s * rate_rps)) / rate_rps
    kind = "Poisson" if poisson else "evenly spaced"
    return make_trace(
        time_s,
        np.full(len(time_s), input_tokens, dtype=np.int64),
        np.full(len(time_s), output_tokens, dtype=np.int64),
        duration_s=duration_s,
        source=f"generated constant traffic, seed {seed}",
        format="generated",
        notes=(f"{kind} arrivals, {input_tokens} input and {output_tokens} output tokens each.",),
    )
