"""What a controller's file may say of calibration; docs/concepts/calibration.md explains it."""

from __future__ import annotations

from pydantic import Field

from wattline.catalog.yaml_files import StrictModel
from wattline.core.calibration.drift import DriftTerms
from wattline.core.calibration.factors import FactorTerms
from wattline.core.calibration.terms import CalibrationSettings


class CalibrationSpec(StrictModel):
    """How the models are held against what is seen."""

    enabled: bool = True
    """Follow correction factors and drift at all."""
    latency: bool = True
    """Let factors of latency above 1 tighten plans."""
    power: bool = True
    """Let factors of power above 1 raise the draw that plans expect; bookings never follow them."""
    window_s: float = Field(default=10.0, gt=0.0, le=86_400.0)
    """Length of one comparison."""
    least_requests: int = Field(default=5, ge=1, le=1_000_000)
    """Requests that must have ended in a window for its latencies to count."""
    alpha: float = Field(default=0.3, gt=0.0, le=1.0)
    """Weight of the newest comparison in a factor."""
    least: float = Field(default=0.5, gt=0.0, le=1.0)
    """Lower clamp of a factor."""
    most: float = Field(default=2.0, ge=1.0, le=10.0)
    """Upper clamp of a factor."""
    step: float = Field(default=0.05, gt=0.0, le=0.5)
    """Change of a factor from which plans follow it."""
    drift: bool = True
    """Plan anew at once when targets are missed, or more is served than estimated."""
    drift_interval_s: float = Field(default=300.0, ge=0.0, le=86_400.0)
    """Nothing counts as drift for so long after the last one."""
    drift_windows: int = Field(default=3, ge=1, le=10_000)
    """Violating windows in a row that make a drift."""
    drift_over_estimate: float = Field(default=0.15, ge=0.0, le=100.0)
    """Excess of tokens per second above the estimate that is still no violation."""

    def settings(self) -> CalibrationSettings | None:
        """As the decision has them; None where it is off."""
        if not self.enabled:
            return None
        return CalibrationSettings(
            factors=FactorTerms(alpha=self.alpha, least=self.least, most=self.most),
            drift=DriftTerms(
                enabled=self.drift,
                interval_s=self.drift_interval_s,
                in_a_row=self.drift_windows,
                over_estimate=self.drift_over_estimate,
            ),
            window_s=self.window_s,
            least_requests=self.least_requests,
            step=self.step,
            apply_latency=self.latency,
            apply_power=self.power,
        )
