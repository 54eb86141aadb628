"""Mean request of a deployment, followed slowly: what admission thresholds are derived from."""

from __future__ import annotations

from math import exp, log

from wattline.core.mix import Mix
from wattline.sim.plant.outcomes import DemandCounters

_PROMPTS = 500.0
"""Prompts that the running means remember."""
_ANSWERS = 3000.0
"""Answers that they remember: far more than are in flight, because answers that end while the load
rises are the short ones."""
_RATE_S = 30.0
"""Seconds over which the rate of arrivals is a mean."""
_STEP = log(1.05)
"""Means move in steps of 5 %, so that thresholds change seldom."""


class RunningMix:
    """Running means of what a request looks like, starting from what is expected."""

    def __init__(self, expected: Mix) -> None:
        weight = 50.0
        self._requests = self._completions = weight
        self._input = expected.input_tokens * weight
        self._cached = self._input * expected.cached_fraction
        self._output = expected.output_tokens * weight

        self._seconds = self._arrivals = 0.0

    def add(self, counters: DemandCounters) -> None:
        """Take the counts of one tick in."""
        fade = _RATE_S / (_RATE_S + counters.window_s)
        self._seconds = self._seconds * fade + counters.window_s
        self._arrivals = self._arrivals * fade + counters.arrivals
        fade = _PROMPTS / (_PROMPTS + counters.arrivals)
        self._requests = self._requests * fade + counters.arrivals
        self._input = self._input * fade + counters.input_tokens_sum
        self._cached = self._cached * fade + counters.cached_tokens_sum
        fade = _ANSWERS / (_ANSWERS + counters.completions)
        self._completions = self._completions * fade + counters.completions
        self._output = self._output * fade + counters.output_tokens_sum

    @property
    def rate_rps(self) -> float | None:
        """Rate of arrivals in whole steps; None before anything was counted."""
        if self._seconds <= 0.0:
            return None
        return _stepped(self._arrivals / self._seconds) if self._arrivals > 0.0 else 0.0

    @property
    def current(self) -> Mix:
        """Means in whole steps."""
        return Mix(
            _stepped(self._input / self._requests),
            _stepped(self._output / self._completions),
            round(self._cached / self._input, 1),
        )


def _stepped(value: float) -> float:
    """`value` on a grid of 5 % steps, to six digits."""
    return float(f"{exp(_STEP * round(log(value) / _STEP)):.6g}")
