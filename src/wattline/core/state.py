"""What a decision must remember until the next tick. Recorded every tick, so it stays small."""

from __future__ import annotations

from dataclasses import dataclass

from wattline.core.calibration.state import DeploymentCalibration
from wattline.core.fleet import Setting
from wattline.core.followed import Recent

SCHEMA = "wattline.state/2"


@dataclass(frozen=True, slots=True, kw_only=True)
class DemandState:
    """One deployment's demand as remembered.

    seen_until_s: end of the newest window taken in (None: nothing seen yet). The other sums fade:
    fast_* over seconds, for the rate in a burst; calm_* more slowly, for the rate otherwise;
    prompt_* (over arrivals) and answer_* (over completions) give the mean request.
    mix_in_force: prompt tokens, output tokens and cached fraction that the plan stands on;
    demand_rps: the rate that it stands on. bins_rps: closed bins of the history, oldest first;
    bin_arrivals and bin_s: the open one. floor_rps: what the forecast asks for at least.
    spread: squared coefficient of variation of output lengths, None until decode showed it;
    spread_in_force: that which the plan stands on. itl_factor: see `core.correction`.
    """

    seen_until_s: float | None = None
    fast_s: float = 0.0
    fast_arrivals: float = 0.0
    calm_s: float = 0.0
    calm_arrivals: float = 0.0
    prompt_count: float = 0.0
    prompt_tokens: float = 0.0
    prompt_cached_tokens: float = 0.0
    answer_count: float = 0.0
    answer_tokens: float = 0.0
    mix_in_force: tuple[float, float, float] | None = None
    demand_rps: float = 0.0
    bins_rps: tuple[float, ...] = ()
    bin_arrivals: float = 0.0
    bin_s: float = 0.0
    floor_rps: float = 0.0
    spread: float | None = None
    spread_in_force: float | None = None
    itl_factor: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolState:
    """One pool's plan and what holds it back.

    replicas: the stabilised target. wanted: the newest raw targets, one per replan, for the
    stabilisation window. The times say when the setting and the replicas last changed. in_force:
    settings that its chips may still follow.
    """

    setting: Setting
    replicas: int
    wanted: tuple[int, ...] = ()
    setting_changed_s: float | None = None
    replicas_changed_s: float | None = None
    in_force: Recent = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Carried from `Decision.next_state` to the next `Snapshot.state`; both are recorded.

    time_s: when it was made. replan_s: when replicas are planned next. repair_s: when limits that
    differ from their grants are sent again next. excess_w: of the newest ticks, watts booked above
    what the grants need; what is in all of them is no transition but stuck. calibration: per
    deployment; empty where it is off.
    """

    schema: str = SCHEMA
    time_s: float = 0.0
    demand: tuple[DemandState, ...] = ()
    pools: tuple[PoolState, ...] = ()
    replan_s: float = 0.0
    repair_s: float = 0.0
    excess_w: tuple[float, ...] = ()
    calibration: tuple[DeploymentCalibration, ...] = ()
