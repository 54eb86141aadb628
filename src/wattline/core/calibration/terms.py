"""Settings of calibration; `Settings.calibration` is None where it is off."""

from __future__ import annotations

from dataclasses import dataclass

from wattline.core.calibration.drift import DriftTerms
from wattline.core.calibration.factors import FactorTerms
from wattline.core.errors import InputError

_FACTORS = FactorTerms()
_DRIFT = DriftTerms()


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationSettings:
    """How models are held against what is seen.

    window_s: length of one comparison; answers take seconds, so a shorter one says little.
    least_requests: that must have ended in a window for its latencies to count. step: what a factor
    must have moved by for plans to follow it, so that noise moves nothing. apply_latency,
    apply_power: whether factors of latency tighten plans, and those of power raise the draw that is
    expected; the factors are followed either way.
    """

    factors: FactorTerms = _FACTORS
    drift: DriftTerms = _DRIFT
    window_s: float = 10.0
    least_requests: int = 5
    step: float = 0.05
    apply_latency: bool = True
    apply_power: bool = True

    def __post_init__(self) -> None:
        for name, good, remedy in (
            ("window_s", 0.0 < self.window_s <= 86_400.0, "above 0, at most a day"),
            ("least_requests", 1 <= self.least_requests <= 1_000_000, "1 to 1,000,000"),
            ("step", 0.0 < self.step <= 0.5, "above 0, at most 0.5"),
        ):
            if not good:
                raise InputError(f"calibration.{name}", getattr(self, name), f"give {remedy}")
