"""Demand of a deployment, from what its frontends counted.

Windows of counts are added to sums that fade, so that nothing but a few numbers has to be
remembered. The rate is the calm one (over some 500 requests, at most a minute), or the one in a
burst (over seconds) less one standard deviation of its count, where that is larger. The plan stands
on values in force, which follow what is seen only when it has left a band around them: noise then
moves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite, sqrt

from wattline.core.calibration.factors import RIGHT, Factors, RoleFactors
from wattline.core.correction import corrected
from wattline.core.fleet import Role
from wattline.core.forecast import History, forecast
from wattline.core.mix import Mix
from wattline.core.settings import Settings
from wattline.core.snapshot import DemandView
from wattline.core.state import DemandState

# Requests that the expected mean request counts for at the start. Answers that end first are the
# short ones, so that what is expected of them has to stand longer.
_PRIOR_PROMPTS = 50.0
_PRIOR_ANSWERS = 500.0
# Bounds and steps of the spread of output lengths: between answers of almost one length and a tail
# that few services have.
_LEAST_SPREAD, _MOST_SPREAD, _SPREAD_STEP = 0.1, 3.0, 0.2
# Standard errors by which the mean prompt of one window must differ from the remembered one to be
# called other traffic, if lengths spread as wide as their mean; half as many if twice as wide.
_OTHER_TRAFFIC = 8.0
# The standard error of a rate that rests on a handful of requests is not taken for more than this.
_MOST_ERROR = 0.25
# Rising demand moves the value in force from this relative change on.
_UP_BAND = 0.02
# A forecast from the past may ask for at most this many times what is seen.
_FORECAST_BOUND = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What one deployment is to be provided for.

    rate_rps: requests per second that the watts are planned for (seen; the oracle's truth over
    seconds). ahead_rps: that replicas are planned for (at least rate_rps; raised by the forecast).
    seen_rps: as estimated now. mix: the mean request in force. output_cv2: squared coefficient of
    variation of output lengths, None if nothing shows it. error: standard error of the rate as
    a fraction of it. itl_factor: see `core.correction`; factors: corrections of the models, those
    above 1, per role. outage: the reason why the metrics cannot be used and everything is held,
    None in normal times.
    """

    rate_rps: float
    ahead_rps: float
    seen_rps: float
    mix: Mix
    outage: str | None
    output_cv2: float | None = None
    error: float = 0.0
    itl_factor: float = 1.0
    factors: tuple[RoleFactors, ...] = ()

    def factors_of(self, role: Role) -> Factors:
        """Corrections of the models of a role; all 1.0 where there are none."""
        return next((entry.factors for entry in self.factors if entry.role is role), RIGHT)


def observe(
    view: DemandView,
    state: DemandState,
    now_s: float,
    *,
    expected: Mix,
    context_tokens: float | None,
    horizon_s: float,
    itl_s: float,
    s: Settings,
) -> tuple[DemandState, Demand]:
    """Take one window of counts in; the state to remember and the demand to plan for.

    `expected` is the mean request to assume before any was seen, `context_tokens` the mean context
    of the sequences in decode (None: not known), `horizon_s` how far ahead replicas have to be
    planned, `itl_s` the target that observed latency is held against.
    """
    missing = outage_reason(view, s.stale_s)
    if missing is None:
        if state.seen_until_s is None:
            state = _start(state, expected)
        state = _in_force(_take_in(view, state, now_s, s), s)
        state = _spread(state, context_tokens, view.window_s, s)
        state = _close_bin(state, horizon_s, s)
        factor = corrected(state.itl_factor, view.itl_p50_s, itl_s, view.window_s)
        state = replace(state, itl_factor=factor)
    # One window that is late or lost is no outage yet.
    seen_s = state.seen_until_s
    outage = missing if seen_s is None or now_s - seen_s > s.stale_s else None
    mix = expected if state.mix_in_force is None else Mix(*state.mix_in_force)
    rate_rps = ahead_rps = state.demand_rps
    if missing is None and s.forecast == "oracle":
        rate_rps = max(rate_rps, _oracle(view, s.rate_window_s, s))
        ahead_rps = max(rate_rps, _oracle(view, horizon_s, s))
    ahead_rps = max(ahead_rps, state.floor_rps)
    return state, Demand(
        rate_rps=rate_rps,
        ahead_rps=ahead_rps,
        seen_rps=_seen_rps(state),
        mix=mix,
        outage=outage,
        output_cv2=state.spread_in_force,
        itl_factor=round(20.0 * state.itl_factor) / 20.0,
        error=round(min(_MOST_ERROR, 1.0 / sqrt(max(1.0, state.calm_arrivals))), 2),
    )


def outage_reason(view: DemandView, stale_s: float) -> str | None:
    """Why the counts cannot be used; None if they can. Zero is only zero when measured."""
    if not isfinite(view.age_s) or view.age_s > stale_s:
        return f"the newest metrics are {view.age_s:.0f} s old"
    counts = (
        view.arrivals,
        view.input_tokens_sum,
        view.cached_tokens_sum,
        view.completions,
        view.output_tokens_sum,
    )
    if any(count is None or not isfinite(count) or count < 0 for count in counts):
        return "the metrics are missing"
    if not 0.0 < view.window_s < float("inf"):
        return "the metrics cover no time"
    return None


def _start(state: DemandState, expected: Mix) -> DemandState:
    """Begin with what is expected, as if some requests of it had been seen."""
    return replace(
        state,
        prompt_count=_PRIOR_PROMPTS,
        prompt_tokens=_PRIOR_PROMPTS * expected.input_tokens,
        prompt_cached_tokens=_PRIOR_PROMPTS * expected.input_tokens * expected.cached_fraction,
        answer_count=_PRIOR_ANSWERS,
        answer_tokens=_PRIOR_ANSWERS * expected.output_tokens,
    )


def _take_in(view: DemandView, state: DemandState, now_s: float, s: Settings) -> DemandState:
    """Add the part of the window that is new; a window seen twice adds nothing."""
    until_s = round(now_s - view.age_s, 6)
    new_s = view.window_s
    if state.seen_until_s is not None:
        new_s = min(new_s, until_s - state.seen_until_s)
    if new_s <= 0.0:
        return state
    part = new_s / view.window_s
    arrivals = part * (view.arrivals or 0)
    # Division only: exp and pow differ in the last bit between processors.
    fast = s.rate_window_s / (s.rate_window_s + new_s)
    longest = s.mix_window_s / (s.mix_window_s + new_s)
    calm = min(longest, s.mix_requests / (s.mix_requests + arrivals))
    prompt_tokens = part * (view.input_tokens_sum or 0)
    if _other_traffic(state, arrivals, prompt_tokens):
        # What was seen before says nothing about it: neither its rate nor its prompts.
        calm = fast = 0.0
    ended = part * (view.completions or 0)
    # Answers that end while the load rises are the short ones: their mean is only worth something
    # over far longer than an answer takes.
    answers = max(longest, s.mix_requests / (s.mix_requests + ended))
    return replace(
        state,
        seen_until_s=until_s,
        fast_s=_fade(state.fast_s, fast, new_s),
        fast_arrivals=_fade(state.fast_arrivals, fast, arrivals),
        calm_s=_fade(state.calm_s, calm, new_s),
        calm_arrivals=_fade(state.calm_arrivals, calm, arrivals),
        prompt_count=_fade(state.prompt_count, calm, arrivals),
        prompt_tokens=_fade(state.prompt_tokens, calm, prompt_tokens),
        prompt_cached_tokens=_fade(
            state.prompt_cached_tokens, calm, part * (view.cached_tokens_sum or 0)
        ),
        answer_count=_fade(state.answer_count, answers, ended),
        answer_tokens=_fade(state.answer_tokens, answers, part * (view.output_tokens_sum or 0)),
        bin_arrivals=round(state.bin_arrivals + arrivals, 6),
        bin_s=round(state.bin_s + new_s, 6),
    )


def _other_traffic(state: DemandState, arrivals: float, prompt_tokens: float) -> bool:
    """Whether the prompts that arrived are of another mean length than those remembered.

    Fewer than 64 prompts never are, whatever their length: the error alone is too large. Of three
    hundred the mean must be off by 60 %, of a thousand by 40 % (of the larger one).
    """
    if arrivals <= 0.0 or state.prompt_count <= 0.0:
        return False
    now, before = prompt_tokens / arrivals, state.prompt_tokens / state.prompt_count
    error = sqrt(1.0 / arrivals + 1.0 / state.prompt_count)
    return abs(now - before) > _OTHER_TRAFFIC * error * max(now, before)


def _fade(total: float, factor: float, added: float) -> float:
    return round(total * factor + added, 6)


def _seen_rps(state: DemandState) -> float:
    """Calm rate, or the rate in a burst less one standard deviation of its count."""
    if state.fast_s <= 0.0:
        return 0.0
    calm = state.calm_arrivals / state.calm_s
    burst = (state.fast_arrivals - sqrt(state.fast_arrivals)) / state.fast_s
    return max(calm, burst, 0.0)


def _raw_mix(state: DemandState) -> tuple[float, float, float]:
    """Prompt tokens, output tokens and cached share of the mean request, as seen now."""
    prompt = state.prompt_tokens / state.prompt_count if state.prompt_count > 0.0 else 1.0
    answer = state.answer_tokens / state.answer_count if state.answer_count > 0.0 else 1.0
    cached = state.prompt_cached_tokens / state.prompt_tokens if state.prompt_tokens > 0.0 else 0.0
    return max(1.0, prompt), max(1.0, answer), min(1.0, cached)


def _in_force(state: DemandState, s: Settings) -> DemandState:
    """Let the values in force follow what is seen where it has left the band around them."""
    mix, raw = state.mix_in_force, _raw_mix(state)
    # The mean of n requests is known to about 1 / sqrt(n): lengths spread about as wide as their
    # mean in the public traces.
    band = max(s.mix_deadband, 1.0 / sqrt(max(1.0, min(state.prompt_count, state.answer_count))))
    if mix is None or _moved(mix, raw, band):
        mix = (_three_digits(raw[0]), _three_digits(raw[1]), round(raw[2], 3))
    seen, demand = _seen_rps(state), state.demand_rps
    if seen > demand * (1.0 + _UP_BAND) or seen < demand * (1.0 - s.demand_deadband):
        demand = _three_digits(seen)
    return replace(state, mix_in_force=mix, demand_rps=demand)


def _spread(
    state: DemandState, context_tokens: float | None, new_s: float, s: Settings
) -> DemandState:
    """Follow the spread of output lengths, which the mean context in decode shows.

    A sequence met at a random time holds its prompt and, by the inspection paradox, (1 + cv2) / 2
    of the mean output.
    """
    if context_tokens is None:
        return state
    prompt, answer, _ = _raw_mix(state)
    shown = min(_MOST_SPREAD, max(_LEAST_SPREAD, 2.0 * (context_tokens - prompt) / answer - 1.0))
    fade = s.mix_window_s / (s.mix_window_s + new_s)
    spread = shown if state.spread is None else state.spread * fade + shown * (1.0 - fade)
    in_force = state.spread_in_force
    if in_force is None or abs(spread - in_force) > _SPREAD_STEP:
        in_force = round(round(spread / _SPREAD_STEP) * _SPREAD_STEP, 3)
    return replace(state, spread=round(spread, 6), spread_in_force=in_force)


def _moved(old: tuple[float, float, float], new: tuple[float, float, float], band: float) -> bool:
    old_computed, new_computed = old[0] * (1.0 - old[2]), new[0] * (1.0 - new[2])
    pairs = ((old[0], new[0]), (old[1], new[1]), (old_computed, new_computed))
    return any(abs(after - before) > band * before for before, after in pairs)


def _close_bin(state: DemandState, horizon_s: float, s: Settings) -> DemandState:
    """Close the open bin of the history when it is full, and forecast anew."""
    if state.bin_s < s.history_bin_s:
        return state
    rate = round(state.bin_arrivals / state.bin_s, 6)
    bins = (*state.bins_rps, rate)[-s.history_bins :]
    floor_rps = 0.0
    if s.forecast != "oracle":
        history = History(
            rates_rps=bins, bin_s=s.history_bin_s, season_bins=round(s.season_s / s.history_bin_s)
        )
        ahead = forecast(history, horizon_s, s.forecast)
        if ahead is not None:
            floor_rps = _three_digits(min(ahead.p50_rps, _FORECAST_BOUND * _seen_rps(state)))
    return replace(state, bins_rps=bins, bin_arrivals=0.0, bin_s=0.0, floor_rps=floor_rps)


def _oracle(view: DemandView, horizon_s: float, s: Settings) -> float:
    history = History(
        rates_rps=(),
        bin_s=s.history_bin_s,
        future_rps=view.future_rps,
        future_step_s=view.future_step_s,
    )
    truth = forecast(history, horizon_s, "oracle")
    return 0.0 if truth is None else _three_digits(truth.p50_rps)


def _three_digits(value: float) -> float:
    """`value` to three significant digits: fewer distinct values, fewer derivations."""
    return float(f"{value:.3g}")
