"""What a tick decides: where to be, the steps that may be taken now, and why."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from wattline.core.calibration.factors import RoleFactors
from wattline.core.fleet import Setting
from wattline.core.state import State

SCHEMA = "wattline.decision/2"


class ReasonCode(StrEnum):
    """Why a pool is where it is. One per pool and tick.

    Where several hold, the first in this order is given: what forbids, then what is under way, then
    what changed, then what bounds.
    """

    HELD_METRICS_OUTAGE = "held_metrics_outage"
    INFEASIBLE_FLOOR = "infeasible_floor"
    BUDGET_CUT = "budget_cut"
    WAITING_FOR_REPORT = "waiting_for_report"
    RATE_LIMITED = "rate_limited"
    WAITING_FOR_SETTLE = "waiting_for_settle"
    STARTING = "starting"
    DRAINING = "draining"
    MODEL_DRIFT = "model_drift"
    WATTS_TO_PREFILL = "watts_to_prefill"
    WATTS_TO_DECODE = "watts_to_decode"
    ENERGY_SAVING = "energy_saving"
    CAPS_CHANGED = "caps_changed"
    DERATED = "derated"
    BUDGET_BOUND = "budget_bound"
    GPUS_BOUND = "gpus_bound"
    DEMAND_MET = "demand_met"
    STEADY = "steady"


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """Where a pool should be: serving replicas, and the setting of each of their GPUs."""

    replicas: int
    setting: Setting


@dataclass(frozen=True, slots=True)
class CapSteps:
    """Caps to send now, as columns: GPU index, watts, clock ceiling. Lowers and raises mixed."""

    gpu: tuple[int, ...] = ()
    cap_w: tuple[float, ...] = ()
    clock: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class ReplicaStep:
    """Replicas of pool `pool` (index) to start (positive) or to drain and stop (negative) now."""

    pool: int
    change: int


@dataclass(frozen=True, slots=True)
class Admission:
    """Busy thresholds of one deployment's frontends, as Dynamo's `/busy_threshold` has them.

    A worker is busy when any threshold that is set is strictly exceeded; a request is rejected when
    all eligible workers are busy. `None` leaves a threshold unset.
    """

    active_decode_blocks: float | None = None
    active_prefill_tokens: float | None = None
    active_prefill_tokens_frac: float | None = None


@dataclass(frozen=True, slots=True)
class Reason:
    """Why pool `pool` (index) got its plan: an enumerated code and one sentence."""

    pool: int
    code: ReasonCode
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentFacts:
    """The numbers behind one deployment's plan.

    seen_rps: as estimated now; demand_rps: what the plan stands on, backlog and rejected requests
    included; ahead_rps: what replicas are planned for. capacity_rps: of the plan, with the replicas
    that serve now. bound: what keeps the deployment from serving more. outage: why metrics cannot
    be used, None in normal times. output_cv2: spread of output lengths
    (squared coefficient of variation) as the contexts in decode show it, None if they do not.
    factors: corrections of the models that the plan stands on, those above 1. drift: why the models
    were found to be off in this tick, None in normal times.
    """

    seen_rps: float
    demand_rps: float
    ahead_rps: float
    input_tokens: float
    output_tokens: float
    cached_fraction: float
    capacity_rps: float
    bound: str
    outage: str | None
    output_cv2: float | None = None
    factors: tuple[RoleFactors, ...] = ()
    drift: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The numbers behind a decision.

    usable_w: budget less guard band. unavailable_w: of it, what GPUs hold that drain, are lost or
    did not follow a lowering. booked_w: now; planned_w: when the plan is reached. rise_w: how much
    bookings may grow in this tick, None for no limit. gap: how far the plan may be from the
    optimum, as a fraction. replanned: replicas were planned in this tick.
    """

    usable_w: float
    unavailable_w: float
    booked_w: float
    planned_w: float
    rise_w: float | None
    gap: float
    replanned: bool
    deployments: tuple[DeploymentFacts, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Outcome of one tick.

    `recommended` is the raw optimum, `plan` the stabilised one (per pool, in the fleet's order);
    they are two series so that holding one back never feeds the other. `caps` and `replicas` are
    the steps that may be taken now on the way from the present to the plan. `admission` is per
    deployment. `facts` are the numbers that the reasons rest on.
    """

    schema: str
    tick: int
    recommended: tuple[PoolPlan, ...]
    plan: tuple[PoolPlan, ...]
    caps: CapSteps
    replicas: tuple[ReplicaStep, ...]
    admission: tuple[Admission, ...]
    reasons: tuple[Reason, ...]
    next_state: State | None
    facts: Facts | None = None
