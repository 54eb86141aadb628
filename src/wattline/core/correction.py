"""One-sided correction of decode by the latency that is seen.

A model may be wrong, and a batch may be larger than it should: where answers come slower than the
target, decode is taken to be that much slower than the model says, and gets more watts. The factor
grows with what the target is missed by and fades when it is met again; it never falls below 1, so a
correction can tighten a plan and never loosen it.
"""

from __future__ import annotations

from math import isfinite

_GROWTH_PER_S = 0.5
"""Growth of the factor per second and per unit of excess over the target: answers end seconds after
the batch that slowed them, so a quicker growth would overshoot (assumed)."""
_FADE_PER_S = 0.005
"""Fading per second while the target is met: two minutes for a factor of 1.8 (assumed)."""
_LONGEST_S = 10.0
"""A longer window says no more than one of this length."""
_MOST = 2.0
"""Largest correction: the clamp of the coefficients in Dynamo's closed-loop design."""
_MET = 0.95
"""Share of the target under which the median has to stay for the factor to fade."""


def corrected(factor: float, itl_p50_s: float | None, target_s: float, window_s: float) -> float:
    """The factor after a window in which the median time between tokens was `itl_p50_s`.

    A missing measurement (no answer ended) leaves it as it is.
    """
    if itl_p50_s is None or not isfinite(itl_p50_s):
        return factor
    seconds = min(max(0.0, window_s), _LONGEST_S)
    over = min(1.0, itl_p50_s / target_s - _MET)
    change = _GROWTH_PER_S * over if over > 0.0 else -_FADE_PER_S
    return round(min(_MOST, max(1.0, factor * (1.0 + change * seconds))), 6)
