"""What becomes of the outcomes of model sweeps: closed at the start, open at run time.

A sweep asks a performance predictor for operating points. This is the state machine around it,
without the sweep itself: outcomes come in as values. The first sweep that fails, or whose best
point misses the targets, disables the predictor (fail closed: nothing was ever known to be good).
Later failures keep the last good configuration (fail open); too many in a row disable too, until
somebody enables again. After NVIDIA Dynamo's power optimiser.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite
from typing import Generic, TypeVar

from wattline.core.calibration.factors import tightening
from wattline.core.errors import InputError
from wattline.core.fleet import Slo

Config = TypeVar("Config")


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepTerms:
    """most_failures: in a row, after which sweeps are disabled.

    regression: relative loss of throughput against the last good sweep from which it is counted.
    retry_s: pause after a failure.
    """

    most_failures: int = 5
    regression: float = 0.05
    retry_s: float = 30.0

    def __post_init__(self) -> None:
        for name, good, remedy in (
            ("most_failures", 1 <= self.most_failures <= 10_000, "1 to 10,000"),
            ("regression", 0.0 <= self.regression < 1.0, "0 to below 1"),
            ("retry_s", 0.0 <= self.retry_s < 1e9, "0 or more"),
        ):
            if not good:
                raise InputError(f"models.{name}", getattr(self, name), f"give {remedy}")


@dataclass(frozen=True, kw_only=True)  # no slots: Python 3.11 cannot make C[X]() of one
class Swept(Generic[Config]):
    """A sweep that came to an end: what it found and what that promises.

    config: whatever the caller works with. ttft_s, itl_s: predicted at the chosen point, None for a
    side that has none. throughput: of the whole fleet under it, in any unit that stays the same.
    """

    config: Config
    ttft_s: float | None
    itl_s: float | None
    throughput: float


@dataclass(frozen=True, slots=True)
class SweepFailed:
    """A sweep that came to none, or that could not begin; `why` in one line."""

    why: str


@dataclass(frozen=True, kw_only=True)  # no slots: Python 3.11 cannot make C[X]() of one
class Reoptimiser(Generic[Config]):
    """What is remembered of sweeps. `disabled` says why none runs, None while they may.

    config: of the last good sweep, None before; throughput: its promise. failures: in a row.
    sweeps, failed, regressions: since the start. tried_s, good_s: newest attempt, newest good one.
    answered: the drift counter (`Drift.fired`) that the last good sweep answered.
    """

    terms: SweepTerms = SweepTerms()
    config: Config | None = None
    throughput: float = 0.0
    disabled: str | None = None
    why: str | None = None
    failures: int = 0
    sweeps: int = 0
    failed: int = 0
    regressions: int = 0
    tried_s: float | None = None
    good_s: float | None = None
    answered: int = 0

    def due(self, now_s: float, drifts: int = 0) -> bool:
        """Whether a sweep should run: at the start, after a drift, and again after a failure.

        `drifts` is the drift counter as it is now. Never while disabled: the predictor is then not
        even built.
        """
        if self.disabled is not None:
            return False
        if self.failures and self.tried_s is not None and now_s - self.tried_s < self.terms.retry_s:
            return False
        return self.config is None or self.failures > 0 or drifts > self.answered

    def after(
        self,
        outcome: Swept[Config] | SweepFailed,
        slo: Slo,
        now_s: float,
        *,
        drifts: int = 0,
        ttft_factor: float = 1.0,
        itl_factor: float = 1.0,
    ) -> Reoptimiser[Config]:
        """Take an outcome in. While disabled nothing changes.

        The factors are those in force: a point counts as good only if its latencies times
        max(1, factor) meet the targets.
        """
        if self.disabled is not None:
            return self
        if isinstance(outcome, Swept):
            outcome = _judged(outcome, slo, ttft_factor, itl_factor)
        if isinstance(outcome, SweepFailed):
            return self._after_failure(outcome.why, now_s)
        least = self.throughput * (1.0 - self.terms.regression)
        worse = self.config is not None and outcome.throughput < least
        return replace(
            self,
            config=outcome.config,
            throughput=outcome.throughput,
            why=None,
            failures=0,
            sweeps=self.sweeps + 1,
            regressions=self.regressions + worse,
            tried_s=now_s,
            good_s=now_s,
            answered=drifts,
        )

    def _after_failure(self, why: str, now_s: float) -> Reoptimiser[Config]:
        failures = self.failures + 1
        disabled = None
        if self.config is None:
            disabled = f"the first sweep failed: {why}"
        elif failures >= self.terms.most_failures:
            disabled = f"{failures} sweeps failed in a row: {why}"
        return replace(
            self,
            disabled=disabled,
            why=why,
            failures=failures,
            sweeps=self.sweeps + 1,
            failed=self.failed + 1,
            tried_s=now_s,
        )

    def disable(self, why: str) -> Reoptimiser[Config]:
        """Stop sweeping by command; the last good configuration stays."""
        return replace(self, disabled=why)

    def enable(self) -> Reoptimiser[Config]:
        """Allow sweeps again, by command; the next one is due at once.

        Without a good one so far it is a first sweep again, and fails closed.
        """
        return replace(self, disabled=None, why=None, failures=0, tried_s=None, answered=-1)


def _judged(
    swept: Swept[Config], slo: Slo, ttft_factor: float, itl_factor: float
) -> Swept[Config] | SweepFailed:
    """The sweep itself if its point is real and meets the targets."""
    for name, value, target, factor in (
        ("TTFT", swept.ttft_s, slo.ttft_s, ttft_factor),
        ("ITL", swept.itl_s, slo.itl_s, itl_factor),
    ):
        if value is None:
            continue
        corrected = value * tightening(factor)
        if not (isfinite(corrected) and corrected > 0.0):
            return SweepFailed(f"the predicted {name} is {value}")
        if corrected > target:
            return SweepFailed(
                f"the best point's {name} is {corrected:.3g} s, the target {target:.3g} s"
            )
    if not (isfinite(swept.throughput) and swept.throughput > 0.0):
        return SweepFailed(f"the predicted throughput is {swept.throughput}")
    return swept
