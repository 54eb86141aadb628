"""The decision of one tick: a pure function of a snapshot and the settings.

Two loops over one state. Every tick plans watts, for the replicas that serve; every
`replica_interval_s` replicas are planned as well. A burst is met with watts first, because caps
move in seconds and replicas in minutes. docs/concepts/decision.md explains the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from wattline.core.admit import InForce, Worker, worker_admission
from wattline.core.allocate import allocate
from wattline.core.decision import (
    SCHEMA,
    Admission,
    Decision,
    DeploymentFacts,
    Facts,
    PoolPlan,
    Reason,
)
from wattline.core.demand import Demand, observe
from wattline.core.derive import Layout, problem, replica_speeds
from wattline.core.errors import InputError
from wattline.core.problem import Allocation, DeploymentProblem, evaluate_deployment
from wattline.core.reasons import PoolCase, reason
from wattline.core.settings import Settings
from wattline.core.snapshot import Snapshot
from wattline.core.stabilise import Choice, booked_w, choose, steady_replicas
from wattline.core.state import DemandState, PoolState, State
from wattline.core.transition import (
    GpuArrays,
    Transition,
    cap_steps,
    excess_w,
    free_gpus,
    gpu_arrays,
    held_elsewhere_w,
    replica_steps,
    total_w,
)

# Ticks over which watts booked above their grants must have persisted to count as stuck: longer
# than a lowering takes to be reported and to settle.
_STUCK_TICKS = 8
# A pause longer than this does not save up allowance to rise.
_LONGEST_TICK_S = 5.0

_LAYOUTS: list[Layout] = []


def layout_of(settings: Settings) -> Layout:
    """Layout of `settings`, made once: a memo over the newest few settings, by identity."""
    for layout in _LAYOUTS:
        if layout.settings is settings:
            return layout
    layout = Layout(settings)
    _LAYOUTS.append(layout)
    del _LAYOUTS[:-4]
    return layout


def decide(snapshot: Snapshot, settings: Settings) -> Decision:
    """Decide one tick. Equal arguments give equal decisions, to the byte.

    InputError if the snapshot does not belong to the fleet of the settings.
    """
    layout = layout_of(settings)
    _check(snapshot, settings)
    seen = _see(snapshot, layout)
    replanned = snapshot.time_s >= seen.state.replan_s
    wanted = None
    if replanned:
        wanted = _problems(snapshot, layout, seen, replicas_too=True)
        recommended = _solve(wanted, seen.available_w, settings)
        seen = _with_replicas(snapshot, layout, seen, wanted, recommended)
    problems = _problems(snapshot, layout, seen, replicas_too=False)
    best = _solve(problems, seen.available_w, settings)
    choice = _follow(snapshot, layout, seen, problems, best)
    return _finish(snapshot, layout, seen, problems, best, choice, replanned)


def problems_of(snapshot: Snapshot, settings: Settings) -> tuple[list[DeploymentProblem], float]:
    """The allocation problem that `decide` faces in a tick, and the watts it may spend.

    For judging other plans than the one that was taken.
    """
    layout = layout_of(settings)
    _check(snapshot, settings)
    seen = _see(snapshot, layout)
    return _problems(snapshot, layout, seen, replicas_too=False), seen.available_w


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What a tick starts from: arrays, demand, state, and the plan followed so far (per pool)."""

    gpus: GpuArrays
    state: State
    demand: tuple[Demand, ...]
    speeds: tuple[tuple[float, ...], ...]
    present: tuple[PoolPlan, ...]
    available_w: float
    unavailable_w: float
    seconds: float


def _check(snapshot: Snapshot, settings: Settings) -> None:
    fleet = settings.fleet
    for where, found, want in (
        ("snapshot.pools", len(snapshot.pools), len(fleet.pools)),
        ("snapshot.demand", len(snapshot.demand), len(fleet.deployments)),
        ("snapshot.gpus", len(snapshot.gpus.pool), fleet.gpu_count),
    ):
        if found != want:
            raise InputError(where, found, f"the fleet of the settings has {want}")
    owners = snapshot.gpus.pool
    if owners and (min(owners) < 0 or max(owners) >= len(fleet.pools)):
        raise InputError("snapshot.gpus.pool", max(owners), "name pools of the fleet by index")


def _see(snapshot: Snapshot, layout: Layout) -> _Seen:
    """Take the snapshot in: demand, bookings that no plan can use, speeds, the present plan."""
    settings = layout.settings
    state = snapshot.state or _first_state(snapshot, layout)
    observed = [
        observe(
            view,
            state.demand[index],
            snapshot.time_s,
            expected=settings.expected_mix(index),
            horizon_s=layout.horizon_s[index],
            s=settings,
        )
        for index, view in enumerate(snapshot.demand)
    ]
    gpus = gpu_arrays(snapshot.gpus)
    excess = (*state.excess_w, excess_w(gpus))[-_STUCK_TICKS:]
    stuck_w = min(excess) if len(excess) == _STUCK_TICKS else 0.0
    unavailable_w = round(held_elsewhere_w(gpus, layout.parked_w) + stuck_w, 3)
    return _Seen(
        gpus=gpus,
        state=replace(
            state,
            time_s=snapshot.time_s,
            demand=tuple(remembered for remembered, _ in observed),
            excess_w=excess,
        ),
        demand=tuple(demand for _, demand in observed),
        speeds=replica_speeds(gpus, len(snapshot.pools)),
        present=tuple(
            PoolPlan(view.ready, pool.setting)
            for view, pool in zip(snapshot.pools, state.pools, strict=True)
        ),
        available_w=max(0.0, round(snapshot.budget.usable_w - unavailable_w, 3)),
        unavailable_w=unavailable_w,
        seconds=min(_LONGEST_TICK_S, max(0.0, snapshot.time_s - state.time_s)),
    )


def _first_state(snapshot: Snapshot, layout: Layout) -> State:
    """State before the first tick: what is there is what was wanted."""
    return State(
        time_s=snapshot.time_s,
        demand=tuple(DemandState() for _ in snapshot.demand),
        pools=tuple(
            PoolState(setting=view.setting, replicas=view.ready + view.starting)
            for view in snapshot.pools
        ),
        replan_s=snapshot.time_s,
        repair_s=snapshot.time_s + layout.settings.repair_s,
    )


def _problems(
    snapshot: Snapshot, layout: Layout, seen: _Seen, *, replicas_too: bool
) -> list[DeploymentProblem]:
    present = seen.present
    if replicas_too:
        present = tuple(PoolPlan(pool.replicas, pool.setting) for pool in seen.state.pools)
    return [
        problem(
            layout, index, demand, present, snapshot.pools, seen.speeds, replicas_too=replicas_too
        )
        for index, demand in enumerate(seen.demand)
    ]


def _solve(problems: Sequence[DeploymentProblem], usable_w: float, s: Settings) -> Allocation:
    return allocate(problems, usable_w, s.objective, headroom=s.headroom)


def _with_replicas(
    snapshot: Snapshot,
    layout: Layout,
    seen: _Seen,
    problems: Sequence[DeploymentProblem],
    best: Allocation,
) -> _Seen:
    """Replan replicas: the raw targets go through the stabilisation of each pool."""
    settings = layout.settings
    held = [demand.outage is not None for demand in seen.demand]
    present = [tuple(pool.current for pool in entry.pools) for entry in problems]
    rested = [True] * len(problems)
    choice = choose(problems, best, present, held, rested, seen.available_w, settings)
    pools = list(seen.state.pools)
    for deployment, (members, plans) in enumerate(zip(layout.pools_of, choice.plans, strict=True)):
        for index, plan in zip(members, plans, strict=True):
            floor = min(settings.fleet.pools[index].min_replicas, layout.most_replicas[index])
            wanted = max(pools[index].replicas, floor) if held[deployment] else plan.replicas
            pools[index] = steady_replicas(pools[index], wanted, floor, snapshot.time_s, settings)
    state = replace(
        seen.state,
        pools=tuple(pools),
        replan_s=round(snapshot.time_s + settings.replica_interval_s, 6),
    )
    return replace(seen, state=state)


def _follow(
    snapshot: Snapshot,
    layout: Layout,
    seen: _Seen,
    problems: Sequence[DeploymentProblem],
    best: Allocation,
) -> Choice:
    """Choose the settings to follow, out of the raw optimum for the replicas that serve."""
    hold_s, now_s = layout.settings.cap_hold_s, snapshot.time_s
    present, rested = [], []
    for members in layout.pools_of:
        present.append(tuple(seen.present[index] for index in members))
        times = [seen.state.pools[index].setting_changed_s for index in members]
        rested.append(all(time_s is None or now_s - time_s >= hold_s for time_s in times))
    held = [demand.outage is not None for demand in seen.demand]
    return choose(problems, best, present, held, rested, seen.available_w, layout.settings)


def _finish(
    snapshot: Snapshot,
    layout: Layout,
    seen: _Seen,
    problems: Sequence[DeploymentProblem],
    best: Allocation,
    choice: Choice,
    replanned: bool,
) -> Decision:
    """Put together steps, admission, reasons and the state to remember."""
    settings, budget = layout.settings, snapshot.budget
    plan = _per_pool(layout, choice.plans)
    repair = snapshot.time_s >= seen.state.repair_s
    rise_w = None if budget.rise_w_per_s is None else round(budget.rise_w_per_s * seen.seconds, 3)
    steps = cap_steps(
        seen.gpus,
        plan,
        layout.parked_w,
        usable_w=budget.usable_w,
        rise_w=rise_w,
        repair=repair,
    )
    targets = [pool.replicas for pool in seen.state.pools]
    starts = replica_steps(
        targets,
        snapshot.pools,
        free_gpus(seen.gpus, len(plan)),
        layout.gpus_per_replica,
    )
    facts = _facts(snapshot, seen, problems, best, choice, rise_w, replanned)
    return Decision(
        schema=SCHEMA,
        tick=snapshot.tick,
        recommended=tuple(
            PoolPlan(pool.wanted[-1] if pool.wanted else pool.replicas, entry.setting)
            for pool, entry in zip(seen.state.pools, _per_pool(layout, best.plans), strict=True)
        ),
        plan=tuple(
            PoolPlan(target, entry.setting) for target, entry in zip(targets, plan, strict=True)
        ),
        caps=steps.caps,
        replicas=starts,
        admission=_admissions(snapshot, layout, seen),
        reasons=_reasons(snapshot, layout, seen, best, choice, plan, steps, facts),
        next_state=_next_state(snapshot, seen, plan, settings, repair),
        facts=facts,
    )


def _per_pool(layout: Layout, plans: Sequence[Sequence[PoolPlan]]) -> tuple[PoolPlan, ...]:
    """Plans per deployment and pool as one tuple in the fleet's order."""
    flat: list[PoolPlan | None] = [None] * len(layout.grids)
    for members, chosen in zip(layout.pools_of, plans, strict=True):
        for index, plan in zip(members, chosen, strict=True):
            flat[index] = plan
    return tuple(plan for plan in flat if plan is not None)


def _next_state(
    snapshot: Snapshot,
    seen: _Seen,
    plan: Sequence[PoolPlan],
    settings: Settings,
    repair: bool,
) -> State:
    pools = tuple(
        pool
        if pool.setting == entry.setting
        else replace(pool, setting=entry.setting, setting_changed_s=snapshot.time_s)
        for pool, entry in zip(seen.state.pools, plan, strict=True)
    )
    repair_s = seen.state.repair_s
    if repair:
        repair_s = round(snapshot.time_s + settings.repair_s, 6)
    return replace(seen.state, pools=pools, repair_s=repair_s)


def _admissions(snapshot: Snapshot, layout: Layout, seen: _Seen) -> tuple[Admission, ...]:
    """Thresholds from the caps and replicas in force now."""
    fleet, engines = layout.settings.fleet, layout.settings.engines
    thresholds = []
    for deployment, members, demand in zip(
        fleet.deployments, layout.pools_of, seen.demand, strict=True
    ):
        workers = [
            Worker(
                fleet.pools[index].role,
                engines[index],
                fleet.pools[index].gpus_per_replica,
                InForce(snapshot.pools[index].ready, snapshot.pools[index].setting),
            )
            for index in members
        ]
        thresholds.append(worker_admission(workers, demand.mix, deployment.slo))
    return tuple(thresholds)


def _facts(
    snapshot: Snapshot,
    seen: _Seen,
    problems: Sequence[DeploymentProblem],
    best: Allocation,
    choice: Choice,
    rise_w: float | None,
    replanned: bool,
) -> Facts:
    deployments = []
    for problem_, demand, new, plans, rate, bound in zip(
        problems,
        seen.demand,
        best.plans,
        choice.plans,
        best.rate_rps,
        best.binding,
        strict=True,
    ):
        capacity = rate if plans == new else evaluate_deployment(problem_, plans)[0]
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


def _reasons(
    snapshot: Snapshot,
    layout: Layout,
    seen: _Seen,
    best: Allocation,
    choice: Choice,
    plan: Sequence[PoolPlan],
    steps: Transition,
    facts: Facts,
) -> tuple[Reason, ...]:
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
