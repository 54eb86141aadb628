"""What a tick starts from: the snapshot taken in, with what was remembered."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite

from wattline.core.admit import InForce, Worker, worker_admission
from wattline.core.calibration.tick import calibrated, in_force, tightened
from wattline.core.decision import Admission, PoolPlan
from wattline.core.demand import Demand, observe
from wattline.core.derive import Layout, problem, replica_speeds
from wattline.core.errors import InputError
from wattline.core.fleet import Role
from wattline.core.followed import followed, with_newest
from wattline.core.problem import DeploymentProblem
from wattline.core.settings import Settings
from wattline.core.snapshot import Snapshot
from wattline.core.starts import with_those_due
from wattline.core.state import DemandState, PoolState, State
from wattline.core.transition import GpuArrays, excess_w, gpu_arrays, held_elsewhere_w

# Ticks over which watts booked above their grants must have persisted to count as stuck: longer
# than a lowering takes to be reported and to settle.
_STUCK_TICKS = 8
# A pause longer than this does not save up allowance to rise.
_LONGEST_TICK_S = 5.0
# Sequences whose mean context is known to some 5 %.
_ENOUGH_SEQUENCES = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a tick starts from.

    demand and admission are per deployment, speeds and present (the plan followed so far, with the
    replicas that serve) per pool. available_w: watts that a plan may book; unavailable_w: watts
    that GPUs hold which drain, are lost or did not follow. seconds: since the tick before. drifted:
    deployments whose models were found to be off in this tick. due: replicas per pool that are
    about to serve; in gpus, speeds and present they count as if they did.
    """

    gpus: GpuArrays
    due: tuple[int, ...]
    state: State
    demand: tuple[Demand, ...]
    admission: tuple[Admission, ...]
    speeds: tuple[tuple[float, ...], ...]
    present: tuple[PoolPlan, ...]
    available_w: float
    unavailable_w: float
    seconds: float
    drifted: frozenset[int] = frozenset()


def check(snapshot: Snapshot, settings: Settings) -> None:
    """Raise InputError if the snapshot does not belong to the fleet of the settings."""
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
    state = snapshot.state
    if state is not None and (
        len(state.pools) != len(fleet.pools) or len(state.demand) != len(fleet.deployments)
    ):
        sizes = (len(state.pools), len(state.demand))
        raise InputError("snapshot.state", sizes, "give the state of a decision for this fleet")


def see(snapshot: Snapshot, layout: Layout) -> Seen:
    """Take the snapshot in: demand, bookings that no plan can use, speeds, the present plan."""
    settings = layout.settings
    state = snapshot.state or _first_state(snapshot, layout)
    seconds = min(_LONGEST_TICK_S, max(0.0, snapshot.time_s - state.time_s))
    observed = [
        observe(
            view,
            state.demand[index],
            snapshot.time_s,
            expected=settings.expected_mix(index),
            context_tokens=_context_tokens(snapshot, layout, index),
            horizon_s=layout.horizon_s[index],
            itl_s=settings.fleet.deployments[index].slo.itl_s,
            s=settings,
        )
        for index, view in enumerate(snapshot.demand)
    ]
    demand = tuple(entry for _, entry in observed)
    gpus = gpu_arrays(snapshot.gpus)
    calibration, drifted = calibrated(snapshot, layout, gpus, state.calibration, demand)
    demand = in_force(demand, calibration)
    excess = (*state.excess_w, excess_w(gpus))[-_STUCK_TICKS:]
    stuck_w = min(excess) if len(excess) == _STUCK_TICKS else 0.0
    reserved_w = sum(view.reserved_w for view in snapshot.pools)
    pools = _with_in_force(snapshot, layout, state.pools)
    expected, due = with_those_due(snapshot, settings.fleet, gpus)
    unavailable_w = round(held_elsewhere_w(gpus, layout.parked_w) + stuck_w + reserved_w, 3)
    return Seen(
        gpus=expected,
        due=due,
        state=replace(
            state,
            time_s=snapshot.time_s,
            demand=tuple(remembered for remembered, _ in observed),
            pools=pools,
            excess_w=excess,
            calibration=calibration,
        ),
        demand=demand,
        admission=_admissions(snapshot, layout, demand, pools),
        speeds=replica_speeds(expected, len(snapshot.pools)),
        present=tuple(
            PoolPlan(view.ready + more, pool.setting)
            for view, more, pool in zip(snapshot.pools, due, state.pools, strict=True)
        ),
        available_w=max(0.0, round(snapshot.budget.usable_w - unavailable_w, 3)),
        unavailable_w=unavailable_w,
        seconds=seconds,
        drifted=drifted,
    )


def missing_targets(seen: Seen) -> frozenset[int]:
    """The drifted deployments that are late; others serve more than was thought, in time."""
    return frozenset(number for number in seen.drifted if seen.state.calibration[number].late)


def problems(
    snapshot: Snapshot, layout: Layout, seen: Seen, *, replicas_too: bool
) -> list[DeploymentProblem]:
    """Allocation problem of every deployment, with replicas to choose or those that serve."""
    present = seen.present
    if replicas_too:
        present = tuple(PoolPlan(pool.replicas, pool.setting) for pool in seen.state.pools)
    return [
        problem(
            layout,
            index,
            demand,
            present,
            snapshot.pools,
            seen.speeds,
            seen.due,
            replicas_too=replicas_too,
        )
        for index, demand in enumerate(seen.demand)
    ]


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


def _with_in_force(
    snapshot: Snapshot, layout: Layout, pools: tuple[PoolState, ...]
) -> tuple[PoolState, ...]:
    """Remember the settings in force for as long as chips may follow them."""
    return tuple(
        replace(
            pool,
            in_force=with_newest(pool.in_force, snapshot.time_s, view.setting, product.settle_s),
        )
        for pool, view, product in zip(pools, snapshot.pools, layout.products, strict=True)
    )


def _admissions(
    snapshot: Snapshot,
    layout: Layout,
    demand: tuple[Demand, ...],
    pools: tuple[PoolState, ...],
) -> tuple[Admission, ...]:
    """Thresholds from the replicas that serve and the caps that their chips follow."""
    fleet, engines = layout.settings.fleet, layout.settings.engines
    thresholds = []
    for deployment, members, wanted in zip(fleet.deployments, layout.pools_of, demand, strict=True):
        workers = [
            Worker(
                fleet.pools[index].role,
                engines[index],
                fleet.pools[index].gpus_per_replica,
                InForce(snapshot.pools[index].ready, followed(pools[index].in_force)),
            )
            for index in members
        ]
        thresholds.append(
            worker_admission(
                workers, wanted.mix, tightened(deployment.slo, wanted), wanted.seen_rps
            )
        )
    return tuple(thresholds)


def _context_tokens(snapshot: Snapshot, layout: Layout, deployment: int) -> float | None:
    """Mean tokens of context of the sequences in decode; None if too few run to tell."""
    tokens = running = 0.0
    for index in layout.pools_of[deployment]:
        view = snapshot.pools[index]
        if layout.settings.fleet.pools[index].role is not Role.DECODE:
            continue
        if view.active_kv_tokens is None or view.running is None:
            return None
        tokens += view.active_kv_tokens
        running += view.running
    if not running >= _ENOUGH_SEQUENCES or not isfinite(tokens):
        return None
    return tokens / running
