"""Draw against the budget, over one second."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class DrawMeter:
    """Follows the mean of the last second of the fleet's draw, sample by sample.

    A limit regulates a mean of about one second, so shorter excursions are not held against it.
    """

    def __init__(self, sample_s: float) -> None:
        self._sample_s = sample_s
        self._window = max(1, round(1.0 / sample_s))
        self._tail: NDArray[np.float64] = np.zeros(0)
        self.peak_1s_w = 0.0
        self.over_budget_ws = 0.0

    def add(self, fleet_w: NDArray[np.float64], budget_w: float) -> float:
        """Take samples in; the largest 1 s mean that ends in them (their mean if too few)."""
        if len(fleet_w) == 0:
            return 0.0
        joined = np.concatenate([self._tail, fleet_w])
        self._tail = joined[-(self._window - 1) :] if self._window > 1 else np.zeros(0)
        if len(joined) < self._window:
            return float(fleet_w.mean())
        sums = np.cumsum(np.concatenate([[0.0], joined]))
        means = (sums[self._window :] - sums[: -self._window]) / self._window
        over_w = np.maximum(means - budget_w, 0.0)
        self.over_budget_ws += float(over_w.sum()) * self._sample_s
        peak_w = float(means.max())
        self.peak_1s_w = max(self.peak_1s_w, peak_w)
        return peak_w
