"""Settings of the decision: the static half of its input, recorded once per run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wattline.core.calibration.terms import CalibrationSettings
from wattline.core.engine import EngineModel
from wattline.core.errors import InputError
from wattline.core.fleet import Fleet
from wattline.core.forecast import Method
from wattline.core.mix import Mix


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to decide. `engines` holds one model per pool, in the fleet's order.

    What to aim for
        objective: `throughput` serves the most within the targets and turns what is left of the
        watts into capacity; `energy` serves as much with the fewest joules.
        headroom: capacity to provide over the demand (1.1: a tenth more), because arrivals cluster
        and models err.

    What may be chosen
        cap_step_w: distance of neighbouring power limits, in watts: 50 settings between 200 and
        700 W. On 16 GPUs a step is 160 W, about 1 % of their budget.
        clock_steps: clock ceilings offered beside the caps, as fractions of the maximum. None: none
        for throughput, tenths of the maximum down to a half for energy.

    How demand is seen
        expected: per deployment, the mean request before any was seen (empty: 1,024 prompt tokens
        and 256 output tokens).
        rate_window_s: time constant over which counts fade for the rate in a burst. mix_requests,
        mix_window_s: the calm rate and the mean request are taken over so many requests (a mean of
        500 is known to about 4 %), but over no more than so many seconds; the mean answer over at
        least both, because answers that end while the load rises are the short ones.
        stale_s: metrics older than this are an outage.
        mix_deadband, demand_deadband: relative change of mean request and falling demand below
        which the plan keeps standing on the old value (noise of a minute's traffic).
        drain_s: time in which a backlog is to be worked off.

    Forecast (raises the floor of the replica plan only)
        forecast: method. history_bin_s, history_bins: length and number of bins remembered.
        season_s: length of a season in seconds, 0 for none; the history must hold two.

    How fast to follow
        replica_interval_s: between two plans of replicas; caps are planned every tick.
        replica_down_s: replicas fall only to the largest number wanted within this time.
        replica_hold_s: least time between two changes of replicas of a pool.
        cap_hold_s: least time between two changes of a pool's setting, unless a change is urgent:
        the plan no longer fits, or serves less than `urgent_gain` would.
        cap_deadband_w: smaller changes of a cap are left alone unless needed to fit.
        min_gain, urgent_gain: relative gain in requests served (or watts saved) from which a change
        is worth making, and is worth making at once. spare_gain: the same for capacity that no
        demand asks for, and spare_enough: capacity over what is to be provided from which more is
        not worth a change.
        repair_s: how often limits that differ from their grants are granted anew.

    Calibration
        calibration: how models are held against what is seen; None: they are not.
    """

    fleet: Fleet
    engines: tuple[EngineModel, ...]
    objective: Literal["throughput", "energy"] = "throughput"
    headroom: float = 1.1
    cap_step_w: float = 10.0
    clock_steps: tuple[float, ...] | None = None
    expected: tuple[Mix, ...] = ()
    rate_window_s: float = 10.0
    mix_requests: float = 500.0
    mix_window_s: float = 60.0
    stale_s: float = 10.0
    mix_deadband: float = 0.03
    demand_deadband: float = 0.1
    drain_s: float = 10.0
    forecast: Method = "seasonal_holt"
    history_bin_s: float = 30.0
    history_bins: int = 40
    season_s: float = 0.0
    replica_interval_s: float = 30.0
    replica_down_s: float = 300.0
    replica_hold_s: float = 30.0
    cap_hold_s: float = 30.0
    cap_deadband_w: float = 15.0
    min_gain: float = 0.03
    urgent_gain: float = 0.1
    spare_gain: float = 0.05
    spare_enough: float = 1.25
    repair_s: float = 5.0
    calibration: CalibrationSettings | None = None

    def __post_init__(self) -> None:
        if len(self.engines) != len(self.fleet.pools):
            raise InputError(
                "settings.engines",
                len(self.engines),
                f"give one engine for each of the {len(self.fleet.pools)} pools",
            )
        if self.expected and len(self.expected) != len(self.fleet.deployments):
            raise InputError(
                "settings.expected",
                len(self.expected),
                f"give one mean request for each of {len(self.fleet.deployments)} deployments",
            )
        for name in (
            "cap_step_w",
            "rate_window_s",
            "mix_requests",
            "mix_window_s",
            "drain_s",
            "history_bin_s",
        ):
            self._check(name, getattr(self, name) > 0, "above 0")
        for name in ("stale_s", "replica_interval_s", "replica_down_s", "replica_hold_s"):
            self._check(name, getattr(self, name) >= 0, "0 or more")
        for name in (
            "cap_hold_s",
            "cap_deadband_w",
            "min_gain",
            "urgent_gain",
            "spare_gain",
            "repair_s",
        ):
            self._check(name, getattr(self, name) >= 0, "0 or more")
        self._check("headroom", 1.0 <= self.headroom < 100.0, "1 or more")
        clocks = (1.0,) if self.clock_steps is None else self.clock_steps
        good = len(clocks) > 0 and all(0.0 < clock <= 1.0 for clock in clocks)
        self._check("clock_steps", good, "at least one, each above 0 and at most 1")
        self._check("history_bins", 1 <= self.history_bins <= 10_000, "1 to 10,000")

    def _check(self, name: str, good: bool, remedy: str) -> None:
        if not good:
            raise InputError(f"settings.{name}", getattr(self, name), f"give {remedy}")

    def expected_mix(self, deployment: int) -> Mix:
        """Mean request of a deployment before any was seen."""
        return self.expected[deployment] if self.expected else Mix(1024.0, 256.0)
