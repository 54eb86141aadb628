"""What calibration remembers from tick to tick; recorded with the state, so it stays small."""

from __future__ import annotations

from dataclasses import dataclass

from wattline.core.calibration.drift import Drift
from wattline.core.calibration.factors import RIGHT, Comparison, Factors
from wattline.core.fleet import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """A comparison being gathered: sums over ticks, each weighted with its work."""

    work: float = 0.0
    observed: float = 0.0
    predicted: float = 0.0

    def plus(self, observed: float | None, predicted: float | None, work: float) -> Sums:
        """With one tick more; one in which something is missing adds nothing."""
        if observed is None or predicted is None or not work > 0.0:
            return self
        return Sums(
            work=round(self.work + work, 6),
            observed=round(self.observed + work * observed, 9),
            predicted=round(self.predicted + work * predicted, 9),
        )

    def comparison(self, least_work: float) -> Comparison | None:
        """The means; None without enough work."""
        if self.work < least_work or self.work <= 0.0:
            return None
        return Comparison(
            observed=self.observed / self.work,
            predicted=self.predicted / self.work,
            work=self.work,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pegged:
    """Closed windows after which a factor stood at one of its bounds."""

    ttft: int = 0
    itl: int = 0
    power: int = 0


_NOTHING = Sums()
_NEVER = Pegged()
_NO_DRIFT = Drift()


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleCalibration:
    """One role of a deployment.

    factors: as followed; in_force: as applied, 1 or more. ttft, itl, power: the open window.
    itl_recent_s: the predicted ITL, faded over as long as an answer takes (None: none so far).
    queue_s: sum of what the open window's predicted TTFTs owe to the queue; calm: closed windows in
    a row in which that was little. windows: closed ones from which something was learned; pegged:
    those that ended at a clamp.
    """

    role: Role
    factors: Factors = RIGHT
    in_force: Factors = RIGHT
    ttft: Sums = _NOTHING
    itl: Sums = _NOTHING
    power: Sums = _NOTHING
    itl_recent_s: float | None = None
    queue_s: float = 0.0
    calm: int = 0
    windows: int = 0
    pegged: Pegged = _NEVER


@dataclass(frozen=True, slots=True, kw_only=True)
class SteadyPool:
    """A pool's enforced limit (None: GPUs differ, or it is not known) and clock, and since when."""

    limit_w: float | None
    clock: float
    since_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentCalibration:
    """One deployment. `pools` are its own, in the fleet's order.

    seen_until_s: end of the newest window of counts taken in. The open window: seconds it covers,
    requests that ended, their latencies times their number (None: none was measured), tokens
    served, and the estimate (tokens/s) times the seconds. estimate_tokens_per_s: of the plan in
    force. drift: see `core.calibration.drift`; why: the newest violation, None after a good window;
    late: it is one of latency.
    """

    roles: tuple[RoleCalibration, ...] = ()
    pools: tuple[SteadyPool, ...] = ()
    seen_until_s: float | None = None
    seconds: float = 0.0
    requests: float = 0.0
    ttft_sum: float | None = None
    itl_sum: float | None = None
    tokens: float = 0.0
    estimate_tokens: float = 0.0
    estimate_tokens_per_s: float = 0.0
    drift: Drift = _NO_DRIFT
    why: str | None = None
    late: bool = False
