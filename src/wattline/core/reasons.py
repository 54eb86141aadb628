"""Why each pool is where it is: one code and one sentence with the numbers in it."""

from __future__ import annotations

from dataclasses import dataclass

from wattline.core.calibration.factors import Factors
from wattline.core.decision import PoolPlan, Reason, ReasonCode
from wattline.core.fleet import Role
from wattline.core.problem import Binding
from wattline.core.snapshot import PoolView
from wattline.core.stabilise import Change


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolCase:
    """What a reason is made from. Counts are GPUs unless named otherwise.

    before and plan: the setting followed until now and from now on. target: stabilised replicas.
    demand_rps and capacity_rps are the deployment's; other_w: change of the caps of the
    deployment's other phase, in watts summed over its GPUs. speed: share of its speed that the
    slowest replica has left. over_w: watts by which the bookings exceed what is usable. drift: why
    the models were found to be off in this tick. factors: corrections of the pool's models.
    """

    index: int
    role: Role
    before: PoolPlan
    plan: PoolPlan
    view: PoolView
    target: int
    change: Change
    binding: Binding
    demand_rps: float
    capacity_rps: float
    other_w: float
    speed: float
    outage: str | None
    feasible: bool
    over_w: float
    rise_w_per_s: float | None
    drift: str | None
    factors: Factors
    lowered: int
    waiting: int
    rate_limited: int
    silent: int


def reason(case: PoolCase) -> Reason:
    """Give the first reason that applies, in the order of `ReasonCode`."""
    code, why = _what_forbids(case) or _what_is_under_way(case) or _what_changed(case)
    return Reason(case.index, code, f"{_where(case)}: {why}{_corrected(case)}.")


def _corrected(case: PoolCase) -> str:
    """What the plan stands on besides the models."""
    slower, hungrier = max(case.factors.ttft, case.factors.itl), case.factors.power
    words = []
    if slower > 1.0:
        words.append(f"is planned at {slower:.2f} times the model's latency")
    if hungrier > 1.0:
        words.append(f"is expected to draw {hungrier:.2f} times the model's watts")
    return f"; calibration: {case.role.value} {' and '.join(words)}" if words else ""


def _where(case: PoolCase) -> str:
    """Where the pool is going, in numbers."""
    plan, before = case.plan.setting, case.before.setting
    words = f"{case.view.ready} of {case.target} replicas at {plan.cap_w:.0f} W"
    if plan.cap_w != before.cap_w:
        words += f" (from {before.cap_w:.0f} W)"
    if plan.clock < 1.0:
        words += f", clock at {plan.clock:.0%}"
    return words


def _served(case: PoolCase) -> str:
    return f"the deployment can serve {case.capacity_rps:.3g} of {case.demand_rps:.3g} requests/s"


def _what_forbids(case: PoolCase) -> tuple[ReasonCode, str] | None:
    if case.outage is not None:
        return ReasonCode.HELD_METRICS_OUTAGE, f"held, because {case.outage}; floors are kept"
    if not case.feasible:
        return (
            ReasonCode.INFEASIBLE_FLOOR,
            "even the floors do not fit into the budget; every cap is at its lowest",
        )
    if case.over_w > 0.0:
        return (
            ReasonCode.BUDGET_CUT,
            f"{case.over_w:.0f} W more are booked than may be; {case.lowered} GPUs are lowered "
            f"now and none is raised until the watts are seen to be free",
        )
    return None


def _what_is_under_way(case: PoolCase) -> tuple[ReasonCode, str] | None:
    if case.silent:
        return (
            ReasonCode.WAITING_FOR_REPORT,
            f"{case.silent} GPUs do not report what they enforce, so their replicas are not raised",
        )
    if case.rate_limited:
        return (
            ReasonCode.RATE_LIMITED,
            f"{case.rate_limited} GPUs wait, because bookings may rise by "
            f"{case.rise_w_per_s or 0.0:.0f} W per second",
        )
    if case.waiting:
        return (
            ReasonCode.WAITING_FOR_SETTLE,
            f"{case.waiting} GPUs wait for watts that lowered GPUs have not let go of yet",
        )
    missing = case.target - case.view.ready
    if missing > 0 and (case.view.starting or missing > 0):
        return (
            ReasonCode.STARTING,
            f"{case.view.starting} replicas are loading; {_served(case)} until then",
        )
    if missing < 0 or case.view.draining:
        leaving = max(case.view.draining, -missing)
        return (
            ReasonCode.DRAINING,
            f"{leaving} replicas finish their work; their watts return when they are parked",
        )
    return None


def _what_changed(case: PoolCase) -> tuple[ReasonCode, str]:
    if case.drift is not None:
        return (
            ReasonCode.MODEL_DRIFT,
            f"planned anew at once, because {case.drift}, window after window; {_served(case)}",
        )
    own_w = case.plan.setting.cap_w - case.before.setting.cap_w
    if case.change is Change.SAVES_ENERGY:
        return ReasonCode.ENERGY_SAVING, f"the same is served with fewer joules; {_served(case)}"
    if case.change is not Change.NONE and own_w * case.other_w < 0.0:
        to_prefill = (case.role is Role.PREFILL) == (own_w > 0.0)
        short, long = ("prefill", "decode") if to_prefill else ("decode", "prefill")
        code = ReasonCode.WATTS_TO_PREFILL if to_prefill else ReasonCode.WATTS_TO_DECODE
        return code, f"{short} is short, so watts move there from {long}; {_served(case)}"
    if case.change is not Change.NONE and case.plan.setting != case.before.setting:
        return ReasonCode.CAPS_CHANGED, _served(case)
    if case.speed < 1.0:
        return (
            ReasonCode.DERATED,
            f"its slowest replica runs at {case.speed:.0%} of its speed, which watts do not mend; "
            f"{_served(case)}",
        )
    if case.binding is Binding.BUDGET or case.binding is Binding.FLOOR:
        return ReasonCode.BUDGET_BOUND, f"the watt budget binds; {_served(case)}"
    if case.binding is Binding.GPUS:
        return ReasonCode.GPUS_BOUND, f"all GPUs are in use; {_served(case)}"
    if case.demand_rps > 0.0:
        return ReasonCode.DEMAND_MET, _served(case)
    return ReasonCode.STEADY, "no demand is seen"
