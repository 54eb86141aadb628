"""What a tick decides: where to be, the steps that may be taken now, and why."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from wattline.core.fleet import Setting
from wattline.core.state import State

SCHEMA = "wattline.decision/1"


class ReasonCode(StrEnum):
    """Why a pool is where it is. One per pool and tick."""

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
class Decision:
    """Outcome of one tick.

    `recommended` is the raw optimum, `plan` the stabilised one (per pool, in the fleet's order);
    they are two series so that holding one back never feeds the other. `caps` and `replicas` are
    the steps that may be taken now on the way from the present to the plan. `admission` is per
    deployment.
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
