"""The decision of one tick: a pure function of a snapshot and the settings.

Two loops over one state. Every tick plans watts, for the replicas that serve; every
`replica_interval_s` replicas are planned as well. A burst is met with watts first, because caps
move in seconds and replicas in minutes. docs/concepts/decision.md explains the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from wattline.core.account import facts_of, reasons_of
from wattline.core.allocate import allocate
from wattline.core.calibration.tick import estimated
from wattline.core.decision import SCHEMA, Decision, Facts, PoolPlan
from wattline.core.derive import Layout
from wattline.core.fleet import Setting
from wattline.core.pins import Grid, pinned_grids
from wattline.core.problem import Allocation, DeploymentProblem
from wattline.core.seen import Seen, check, missing_targets, problems, see
from wattline.core.settings import Settings
from wattline.core.snapshot import Snapshot
from wattline.core.stabilise import Choice, choose, risen, steady_replicas
from wattline.core.state import State
from wattline.core.transition import cap_steps, free_gpus, replica_steps

_LAYOUTS: list[Layout] = []


def layout_of(settings: Settings, only: tuple[Grid | None, ...] = ()) -> Layout:
    """Layout of `settings`, made once: a memo over the newest few settings, by identity."""
    for layout in _LAYOUTS:
        if layout.settings is settings and layout.only == only:
            return layout
    layout = Layout(settings, only=only)
    _LAYOUTS.append(layout)
    del _LAYOUTS[:-4]
    return layout


def decide(snapshot: Snapshot, settings: Settings) -> Decision:
    """Decide one tick. Equal arguments give equal decisions, to the byte.

    InputError if the snapshot does not belong to the fleet of the settings.
    """
    layout = layout_of(settings)
    check(snapshot, settings)
    seen = see(snapshot, layout)
    layout = layout_of(settings, pinned_grids(layout, snapshot.pools, seen.due, seen.available_w))
    replanned = snapshot.time_s >= seen.state.replan_s or bool(seen.drifted)
    if replanned:
        wanted = problems(snapshot, layout, seen, replicas_too=True)
        recommended = _solve(wanted, seen.available_w, settings)
        seen = _with_replicas(snapshot, layout, seen, wanted, recommended)
    faced = problems(snapshot, layout, seen, replicas_too=False)
    best = _solve(faced, seen.available_w, settings)
    choice = _follow(snapshot, layout, seen, faced, best)
    return _finish(snapshot, layout, seen, faced, best, choice, replanned)


def problems_of(
    snapshot: Snapshot, settings: Settings, besides: Sequence[frozenset[Setting]]
) -> tuple[list[DeploymentProblem], float]:
    """Give the allocation problem that `decide` faces in a tick, and the watts it may spend.

    For judging other plans than the one that was taken; `besides` holds, per pool, settings to
    judge beside those that a decision offers. Pins bind decisions, not what may be judged.
    """
    layout = Layout(settings, besides)
    check(snapshot, settings)
    seen = see(snapshot, layout)
    return problems(snapshot, layout, seen, replicas_too=False), seen.available_w


def _solve(faced: Sequence[DeploymentProblem], usable_w: float, s: Settings) -> Allocation:
    return allocate(faced, usable_w, s.objective, headroom=s.headroom)


def _with_replicas(
    snapshot: Snapshot,
    layout: Layout,
    seen: Seen,
    faced: Sequence[DeploymentProblem],
    best: Allocation,
) -> Seen:
    """Replan replicas: the raw targets go through the stabilisation of each pool.

    Before they are due, on a drift, replicas of the drifted deployments may only rise.
    """
    settings, now_s = layout.settings, snapshot.time_s
    due = now_s >= seen.state.replan_s
    held = [demand.outage is not None for demand in seen.demand]
    present = [tuple(pool.current for pool in entry.pools) for entry in faced]
    rested = [True] * len(faced)
    usable_w, drifted = seen.available_w, missing_targets(seen)
    choice = choose(faced, best, present, held, rested, usable_w, settings, drifted)
    pools = list(seen.state.pools)
    for deployment, (members, plans) in enumerate(zip(layout.pools_of, choice.plans, strict=True)):
        for index, plan in zip(members, plans, strict=True):
            floor = min(settings.fleet.pools[index].min_replicas, layout.most_replicas[index])
            wanted = max(pools[index].replicas, floor) if held[deployment] else plan.replicas
            if deployment in seen.drifted:
                pools[index] = risen(pools[index], wanted, now_s)
            if due:
                pools[index] = steady_replicas(pools[index], wanted, floor, now_s, settings)
    replan_s = round(now_s + settings.replica_interval_s, 6) if due else seen.state.replan_s
    return replace(seen, state=replace(seen.state, pools=tuple(pools), replan_s=replan_s))


def _follow(
    snapshot: Snapshot,
    layout: Layout,
    seen: Seen,
    faced: Sequence[DeploymentProblem],
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
    usable_w, drifted = seen.available_w, missing_targets(seen)
    return choose(faced, best, present, held, rested, usable_w, layout.settings, drifted)


def _finish(
    snapshot: Snapshot,
    layout: Layout,
    seen: Seen,
    faced: Sequence[DeploymentProblem],
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
    facts = facts_of(snapshot, seen, faced, best, choice, rise_w, replanned)
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
        admission=seen.admission,
        reasons=reasons_of(snapshot, layout, seen, best, choice, plan, steps, facts),
        next_state=_next_state(snapshot, seen, plan, settings, repair, facts),
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
    seen: Seen,
    plan: Sequence[PoolPlan],
    settings: Settings,
    repair: bool,
    facts: Facts,
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
    estimates = [entry.capacity_rps for entry in facts.deployments]
    calibration = estimated(seen.state.calibration, seen.demand, estimates)
    return replace(seen.state, pools=pools, repair_s=repair_s, calibration=calibration)
