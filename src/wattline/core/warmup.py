"""A fresh state, warmed up with demand that somebody else recorded.

Without it the forecast knows nothing for its first bins, and the plan stands on the mean request
that the settings expect. Pure: the warmed state is recorded with the snapshot that it first comes
with, so that a replay needs nobody else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from wattline.core.settings import Settings
from wattline.core.state import DemandState, State


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """One deployment's demand before the state began.

    rates_rps: mean rates of bins as long as the settings' history has, oldest first, without gaps
    and up to now. The means of a request are None where nobody tells them.
    """

    rates_rps: tuple[float, ...]
    input_tokens: float | None = None
    output_tokens: float | None = None
    cached_fraction: float | None = None


def warm_up(state: State, past: Sequence[Past | None], settings: Settings) -> State:
    """The state with what is known of the time before it; None: nothing of that deployment.

    Bins go before those of the state's own, which they overlap. The mean request replaces the
    expected one as long as the state has closed no bin of its own: from then on what it saw itself
    counts.
    """
    demand = tuple(
        entry if known is None else _warm(entry, known, settings)
        for entry, known in zip(state.demand, past, strict=True)
    )
    return replace(state, demand=demand)


def _warm(state: DemandState, past: Past, settings: Settings) -> DemandState:
    # Both end now: of the time that the state has seen itself, its own bins count.
    older = past.rates_rps[: max(0, len(past.rates_rps) - len(state.bins_rps))]
    bins = (*older, *state.bins_rps)[-settings.history_bins :]
    warmed = replace(state, bins_rps=bins)
    if state.bins_rps or state.seen_until_s is None:
        return warmed
    if past.input_tokens is not None and state.prompt_count > 0.0:
        cached = _cached_fraction(state) if past.cached_fraction is None else past.cached_fraction
        tokens = round(state.prompt_count * past.input_tokens, 6)
        warmed = replace(
            warmed,
            prompt_tokens=tokens,
            prompt_cached_tokens=round(tokens * min(1.0, max(0.0, cached)), 6),
            mix_in_force=None,
        )
    if past.output_tokens is not None and state.answer_count > 0.0:
        tokens = round(state.answer_count * past.output_tokens, 6)
        warmed = replace(warmed, answer_tokens=tokens, mix_in_force=None)
    return warmed


def _cached_fraction(state: DemandState) -> float:
    return state.prompt_cached_tokens / state.prompt_tokens if state.prompt_tokens > 0.0 else 0.0
