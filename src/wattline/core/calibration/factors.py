"""Correction factors: how much slower, or hungrier, the real thing is than its model says.

A factor c follows the ratio of what is observed to what is predicted: c <- alpha x ratio +
(1 - alpha) x c, clamped. After n equal steps from 1 it is r + (1 - r) (1 - alpha)**n. It is applied
one-sided, as max(1, c): it may tighten a plan, never loosen it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite

from wattline.core.errors import InputError
from wattline.core.fleet import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorTerms:
    """alpha: weight of the newest ratio; least and most: clamp (NVIDIA Dynamo's 0.3, 0.5, 2.0)."""

    alpha: float = 0.3
    least: float = 0.5
    most: float = 2.0

    def __post_init__(self) -> None:
        if not 0.0 < self.alpha <= 1.0:
            raise InputError("calibration.alpha", self.alpha, "give above 0 and at most 1")
        if not 0.0 < self.least <= 1.0 <= self.most < 100.0:
            bounds = (self.least, self.most)
            raise InputError("calibration.least, most", bounds, "give 0 < least <= 1 <= most")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What one side did in a window: a value as observed and as predicted, and the work behind it.

    Seconds or watts, both in the same unit; None: not known. work: requests or tokens, whatever
    shows that there was something to measure.
    """

    observed: float | None
    predicted: float | None
    work: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """Factors of the replicas of one role; 1.0 is a model that is right."""

    ttft: float = 1.0
    itl: float = 1.0
    power: float = 1.0

    def __post_init__(self) -> None:
        for name in ("ttft", "itl", "power"):
            if not 0.01 <= getattr(self, name) <= 100.0:
                found = getattr(self, name)
                raise InputError(f"calibration: factor of {name}", found, "give 0.01 to 100")

    def followed(
        self,
        terms: FactorTerms,
        *,
        ttft: Comparison | None = None,
        itl: Comparison | None = None,
        power: Comparison | None = None,
    ) -> Factors:
        """The factors after one window; without a comparison a factor stays as it is."""
        return replace(
            self,
            ttft=_one(self.ttft, ttft, terms),
            itl=_one(self.itl, itl, terms),
            power=_one(self.power, power, terms),
        )


RIGHT = Factors()
"""Of a model that is right."""


@dataclass(frozen=True, slots=True)
class RoleFactors:
    """The factors of one role of a deployment."""

    role: Role
    factors: Factors


def follow(factor: float, seen: Comparison, terms: FactorTerms) -> float:
    """The factor after one window.

    Without work, or where a value is missing, not finite, or not above 0, nothing is learned.
    """
    observed, predicted = seen.observed, seen.predicted
    if observed is None or predicted is None or not seen.work > 0.0:
        return factor
    if not (isfinite(observed) and isfinite(predicted) and observed > 0.0 and predicted > 0.0):
        return factor
    # A ratio beyond the clamp by far is a defect of the measurement: it cannot overflow the mean.
    ratio = min(observed / predicted, 1e6)
    followed = terms.alpha * ratio + (1.0 - terms.alpha) * factor
    return round(min(terms.most, max(terms.least, followed)), 9)


def _one(factor: float, seen: Comparison | None, terms: FactorTerms) -> float:
    return factor if seen is None else follow(factor, seen, terms)


def tightening(factor: float) -> float:
    """A factor as it is applied: 1 or more."""
    return max(1.0, factor)
