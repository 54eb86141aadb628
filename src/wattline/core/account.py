"""The account that a decision gives of itself: facts and reasons."""

from __future__ import annotations

from collections.abc import Sequence

from wattline.core.decision import DeploymentFacts, Facts, PoolPlan, Reason
from wattline.core.derive import Layout
from wattline.core.problem import Allocation, DeploymentProblem, evaluate_deployment
from wattline.core.reasons import PoolCase, reason
from wattline.core.seen import Seen
from wattline.core.snapshot import Snapshot
from wattline.core.stabilise import Choice, booked_w
from wattline.core.transition import Transition, total_w


def facts_of(
    snapshot: Snapshot,
    seen: Seen,
    problems: Sequence[DeploymentProblem],
    best: Allocation,
    choice: Choice,
    rise_w: float | None,
    replanned: bool,
) -> Facts:
    """Put the numbers together that the reasons rest on."""
    deployments = []
    for number, (problem, demand, new, plans, rate, bound) in enumerate(
        zip(
            problems,
            seen.demand,
            best.plans,
            choice.plans,
            best.rate_rps,
            best.binding,
            strict=True,
        )
    ):
        capacity = rate if plans == new else evaluate_deployment(problem, plans)[0]
        deployments.append(
            DeploymentFacts(
                seen_rps=round(demand.seen_rps, 6),
                demand_rps=round(demand.rate_rps, 6),
                ahead_rps=round(demand.ahead_rps, 6),
                input_tokens=demand.mix.input_tokens,
                output_tokens=demand.mix.output_tokens,
                cached_fraction=demand.mix.cached_fraction,
                capacity_rps=round(capacity, 6),
                bound=bound.value,
                outage=demand.outage,
                output_cv2=demand.output_cv2,
                factors=demand.factors,
                drift=_drift(seen, number),
            )
        )
    return Facts(
        usable_w=round(snapshot.budget.usable_w, 3),
        unavailable_w=seen.unavailable_w,
        booked_w=total_w(seen.gpus.booked_w),
        planned_w=round(booked_w(problems, choice.plans), 3),
        rise_w=rise_w,
        gap=round(best.gap, 9),
        replanned=replanned,
        deployments=tuple(deployments),
    )


def _drift(seen: Seen, deployment: int) -> str | None:
    if deployment not in seen.drifted:
        return None
    return seen.state.calibration[deployment].why


def reasons_of(
    snapshot: Snapshot,
    layout: Layout,
    seen: Seen,
    best: Allocation,
    choice: Choice,
    plan: Sequence[PoolPlan],
    steps: Transition,
    facts: Facts,
) -> tuple[Reason, ...]:
    """Give every pool its reason, in the fleet's order."""
    pools = layout.settings.fleet.pools
    over_w = max(0.0, round(facts.booked_w - facts.usable_w, 3))
    reasons: list[Reason | None] = [None] * len(pools)
    for deployment, members in enumerate(layout.pools_of):
        numbers = facts.deployments[deployment]
        deltas = [
            (pools[index].role, plan[index].setting.cap_w - seen.present[index].setting.cap_w)
            for index in members
        ]
        for index in members:
            role = pools[index].role
            case = PoolCase(
                index=index,
                role=role,
                before=seen.present[index],
                plan=plan[index],
                view=snapshot.pools[index],
                target=seen.state.pools[index].replicas,
                change=choice.changes[deployment],
                binding=best.binding[deployment],
                demand_rps=numbers.demand_rps,
                capacity_rps=numbers.capacity_rps,
                other_w=sum(change_w for other, change_w in deltas if other is not role),
                speed=min(seen.speeds[index], default=1.0),
                outage=numbers.outage,
                drift=numbers.drift,
                factors=seen.demand[deployment].factors_of(role),
                feasible=best.feasible,
                over_w=over_w,
                rise_w_per_s=snapshot.budget.rise_w_per_s,
                lowered=steps.lowered[index],
                waiting=steps.waiting[index],
                rate_limited=steps.rate_limited[index],
                silent=steps.silent[index],
            )
            reasons[index] = reason(case)
    return tuple(entry for entry in reasons if entry is not None)
