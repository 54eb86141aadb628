"""From the raw optimum to a plan worth following: changes must pay, and must not oscillate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from math import ceil

from wattline.core.decision import PoolPlan
from wattline.core.problem import (
    Allocation,
    DeploymentProblem,
    evaluate_deployment,
)
from wattline.core.settings import Settings
from wattline.core.state import PoolState

_FITS_W = 1e-6


class Change(StrEnum):
    """Why a deployment's plan changed, or that it did not."""

    NONE = "none"
    FORCED = "forced"
    DRIFT = "drift"
    SERVES_MORE = "serves_more"
    MORE_CAPACITY = "more_capacity"
    SAVES_ENERGY = "saves_energy"


@dataclass(frozen=True, slots=True)
class Choice:
    """Plans to follow per deployment and pool, and what changed in each deployment."""

    plans: tuple[tuple[PoolPlan, ...], ...]
    changes: tuple[Change, ...]


def choose(
    problems: Sequence[DeploymentProblem],
    best: Allocation,
    present: Sequence[tuple[PoolPlan, ...]],
    held: Sequence[bool],
    rested: Sequence[bool],
    usable_w: float,
    s: Settings,
    drifted: frozenset[int] = frozenset(),
) -> Choice:
    """Keep each deployment's present plan unless the best one is worth the change.

    `held`: deployments that must not change (their metrics are missing). `rested`: those whose last
    change is long enough ago for another that is not urgent. `drifted`: those that miss their
    targets because their models are off; they follow the best plan if it serves more at all. When
    what would be kept no longer fits, the best plan is taken everywhere.
    """
    plans, changes = [], []
    for number, (problem, new, old, hold, rest) in enumerate(
        zip(problems, best.plans, present, held, rested, strict=True)
    ):
        change = Change.NONE if new == old else _worth(problem, new, old, hold, rest, s)
        if change is Change.NONE and number in drifted and new != old and not hold:
            better = evaluate_deployment(problem, new)[0] > evaluate_deployment(problem, old)[0]
            change = Change.DRIFT if better else change
        changes.append(change)
        plans.append(old if change is Change.NONE else new)
    if booked_w(problems, plans) > usable_w + _FITS_W:
        changes = [
            change if new == kept or change is not Change.NONE else Change.FORCED
            for change, new, kept in zip(changes, best.plans, plans, strict=True)
        ]
        plans = list(best.plans)
    return Choice(tuple(plans), tuple(changes))


def booked_w(problems: Sequence[DeploymentProblem], plans: Sequence[Sequence[PoolPlan]]) -> float:
    """Watts that the plans book, parked GPUs included."""
    return sum(
        pool.booked_w(plan)
        for problem, chosen in zip(problems, plans, strict=True)
        for pool, plan in zip(problem.pools, chosen, strict=True)
    )


def _worth(
    problem: DeploymentProblem,
    new: Sequence[PoolPlan],
    old: Sequence[PoolPlan],
    held: bool,
    rested: bool,
    s: Settings,
) -> Change:
    """Why `new` is worth leaving `old` for; NONE if it is not."""
    if any(
        plan.setting not in pool.settings for pool, plan in zip(problem.pools, old, strict=True)
    ):
        return Change.FORCED
    if held:
        return Change.NONE
    target = problem.demand_rps * s.headroom
    old_rate, old_draw = evaluate_deployment(problem, old)
    new_rate, new_draw = evaluate_deployment(problem, new)
    old_value, new_value = min(old_rate, target), min(new_rate, target)
    gain = new_value - old_value
    if gain > s.urgent_gain * old_value:
        return Change.SERVES_MORE
    if not rested or _only_small(new, old, s.cap_deadband_w):
        return Change.NONE
    if gain > s.min_gain * old_value:
        return Change.SERVES_MORE
    if s.objective == "energy":
        saves = old_draw - new_draw > s.min_gain * old_draw and gain > -s.min_gain * old_value
        return Change.SAVES_ENERGY if saves else Change.NONE
    thin = old_rate < s.spare_enough * target
    more = thin and new_rate - old_rate > s.spare_gain * old_rate and gain >= 0.0
    return Change.MORE_CAPACITY if more else Change.NONE


def _only_small(new: Sequence[PoolPlan], old: Sequence[PoolPlan], deadband_w: float) -> bool:
    """Say whether nothing but caps change, and those by less than the deadband."""
    return all(
        after.replicas == before.replicas
        and after.setting.clock == before.setting.clock
        and abs(after.setting.cap_w - before.setting.cap_w) < deadband_w
        for after, before in zip(new, old, strict=True)
    )


def risen(state: PoolState, wanted: int, now_s: float) -> PoolState:
    """Raise the target to `wanted` at once, without a hold; never lower it."""
    if wanted <= state.replicas:
        return state
    return replace(state, replicas=wanted, replicas_changed_s=now_s)


def steady_replicas(
    state: PoolState, wanted: int, floor: int, now_s: float, s: Settings
) -> PoolState:
    """Take one raw target in; up at once, down to the most wanted within the window.

    Before the window is full nothing falls: a fresh start has seen too little to take away.
    """
    window = max(1, ceil(s.replica_down_s / max(s.replica_interval_s, 1e-9)))
    recent = (*state.wanted, wanted)[-window:]
    target = state.replicas
    if wanted > target:
        target = wanted
    elif len(recent) == window:
        target = min(target, max(recent))
    target = max(target, floor)
    changed_s = state.replicas_changed_s
    if changed_s is not None and now_s - changed_s < s.replica_hold_s:
        target = max(state.replicas, floor)
    if target != state.replicas:
        changed_s = now_s
    return replace(state, replicas=target, wanted=recent, replicas_changed_s=changed_s)
