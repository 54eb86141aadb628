"""When the models in force have to be looked at again.

A window violates when a latency is above its target, or more tokens are served than the plan was
estimated for. Three in a row, and at least five minutes after the last good sweep, are drift. Low
load never is, and neither is power alone. Constants are those of NVIDIA Dynamo's power planner.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite

from wattline.core.errors import InputError
from wattline.core.fleet import Slo


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftTerms:
    """When violations count, and how many make a drift.

    interval_s: nothing is counted until so long after the last good sweep. in_a_row: violating
    windows, one after the other. over_estimate: relative excess of tokens per second above the
    estimate that is still no violation.
    """

    enabled: bool = True
    interval_s: float = 300.0
    in_a_row: int = 3
    over_estimate: float = 0.15

    def __post_init__(self) -> None:
        for name, good, remedy in (
            ("interval_s", 0.0 <= self.interval_s < 1e9, "0 or more"),
            ("in_a_row", 1 <= self.in_a_row <= 10_000, "1 to 10,000"),
            ("over_estimate", 0.0 <= self.over_estimate < 1e6, "0 or more"),
        ):
            if not good:
                raise InputError(f"calibration.{name}", getattr(self, name), f"give {remedy}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What one window showed. None: not measured.

    ttft_s, itl_s: latencies in seconds; tokens_per_s: served; estimate_tokens_per_s: what the plan
    in force was estimated to serve.
    """

    ttft_s: float | None = None
    itl_s: float | None = None
    tokens_per_s: float | None = None
    estimate_tokens_per_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """What is remembered. swept_s: last good sweep (or answer to a drift), None before the first.

    violations: windows in a row. fired: drifts so far; fired_s: the newest.
    """

    swept_s: float | None = None
    violations: int = 0
    fired: int = 0
    fired_s: float | None = None

    def watched(self, served: Served, slo: Slo, terms: DriftTerms, now_s: float) -> Drift:
        """Take one window in; `fired` is one higher if it completes a drift.

        The count goes on after that, so that a sweep which fails is asked for again; a good one
        resets it (`swept`).
        """
        if not terms.enabled:
            return self
        if self.swept_s is not None and now_s - self.swept_s < terms.interval_s:
            return self
        if violation(served, slo, terms) is None:
            return self if self.violations == 0 else replace(self, violations=0)
        count = self.violations + 1
        if count < terms.in_a_row:
            return replace(self, violations=count)
        return replace(self, violations=count, fired=self.fired + 1, fired_s=now_s)

    def swept(self, now_s: float) -> Drift:
        """After a good sweep."""
        return replace(self, swept_s=now_s, violations=0)


def late(served: Served, slo: Slo) -> bool:
    """Whether a latency is above its target."""
    return _above(served.ttft_s, slo.ttft_s) or _above(served.itl_s, slo.itl_s)


def violation(served: Served, slo: Slo, terms: DriftTerms) -> str | None:
    """What of a window violates, in words; None if nothing does. Thresholds are strict."""
    if _above(served.ttft_s, slo.ttft_s):
        return f"TTFT is {served.ttft_s or 0.0:.3g} s, the target {slo.ttft_s:.3g} s"
    if _above(served.itl_s, slo.itl_s):
        return f"ITL is {served.itl_s or 0.0:.3g} s, the target {slo.itl_s:.3g} s"
    estimate = served.estimate_tokens_per_s
    if estimate is None or not isfinite(estimate) or estimate <= 0.0:
        return None
    if _above(served.tokens_per_s, estimate * (1.0 + terms.over_estimate)):
        tokens = served.tokens_per_s or 0.0
        return f"{tokens:.4g} tokens/s are served, the plan was estimated at {estimate:.4g}"
    return None


def _above(value: float | None, limit: float) -> bool:
    return value is not None and isfinite(value) and value > limit
