"""What the policies to compare with share: plans, steps towards them, reasons, water levels."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, fsum

from wattline.core.decision import (
    SCHEMA,
    CapSteps,
    Decision,
    PoolPlan,
    Reason,
    ReasonCode,
    ReplicaStep,
)
from wattline.core.fleet import Fleet, Pool, Setting
from wattline.core.snapshot import Phase, Snapshot

# Watts are compared with this slack: caps are whole watts, sums of them are floats.
_EPSILON_W = 1e-6


def most_replicas(pool: Pool) -> int:
    """Replicas that the pool's GPUs and ceiling allow."""
    return min(pool.max_replicas, pool.gpus // pool.gpus_per_replica)


def all_replicas(fleet: Fleet, settings: Sequence[Setting]) -> tuple[PoolPlan, ...]:
    """Every pool with all its replicas at its setting."""
    return tuple(
        PoolPlan(most_replicas(pool), setting)
        for pool, setting in zip(fleet.pools, settings, strict=True)
    )


def limits_w(fleet: Fleet) -> list[tuple[float, float]]:
    """Smallest and largest power limit of one GPU of each pool."""
    products = [fleet.product_of(pool) for pool in fleet.pools]
    return [(product.min_limit_w, product.max_limit_w) for product in products]


def whole_watts(cap_w: float, low_w: float) -> float:
    """Round a cap down to whole watts, as limits are written in the field; not below `low_w`."""
    return max(low_w, float(floor(cap_w + _EPSILON_W)))


def water_level(
    gpus: Sequence[int], limits: Sequence[tuple[float, float]], total_w: float
) -> float:
    """Return the one cap for all GPUs, clamped to each pool's range, that spends `total_w`.

    The smallest limit of all where even the smallest limits exceed `total_w`, the largest where
    even the largest leave watts over.
    """
    low = min(limit[0] for limit in limits)
    high = max(limit[1] for limit in limits)
    edges = sorted({edge for limit in limits for edge in limit})

    def spent(level: float) -> float:
        return fsum(n * min(max(level, lo), hi) for n, (lo, hi) in zip(gpus, limits, strict=True))

    if spent(low) >= total_w:
        return low
    if spent(high) <= total_w:
        return high
    below = max(edge for edge in edges if spent(edge) <= total_w)
    rising = sum(n for n, (lo, hi) in zip(gpus, limits, strict=True) if lo <= below < hi)
    return below + (total_w - spent(below)) / rising


def fit_caps(
    caps_w: Sequence[float],
    gpus: Sequence[int],
    limits: Sequence[tuple[float, float]],
    total_w: float,
) -> tuple[float, ...]:
    """Scale caps down by one factor until their sum over GPUs is at most `total_w`.

    Caps stay inside the products' ranges: where a pool is at its smallest limit, the others give
    more. All at their smallest limits is the least that can be had, over `total_w` or not.
    """
    clamped = [min(max(cap, lo), hi) for cap, (lo, hi) in zip(caps_w, limits, strict=True)]
    pinned = [False] * len(clamped)
    while True:
        fixed_w = fsum(n * lo for n, (lo, _), pin in zip(gpus, limits, pinned, strict=True) if pin)
        free_w = fsum(n * cap for n, cap, pin in zip(gpus, clamped, pinned, strict=True) if not pin)
        if free_w <= 0.0:
            break
        factor = min(1.0, (total_w - fixed_w) / free_w)
        newly = [
            not pin and cap * factor < lo
            for cap, (lo, _), pin in zip(clamped, limits, pinned, strict=True)
        ]
        if not any(newly):
            return tuple(
                lo if pin else whole_watts(cap * factor, lo)
                for cap, (lo, _), pin in zip(clamped, limits, pinned, strict=True)
            )
        pinned = [pin or new for pin, new in zip(pinned, newly, strict=True)]
    return tuple(lo for lo, _ in limits)


def gpu_targets(
    snapshot: Snapshot, settings: Sequence[Setting], idle: Sequence[Setting]
) -> list[Setting]:
    """Give every GPU its pool's setting if it belongs to a replica, else the idle one."""
    return [
        settings[pool] if replica >= 0 else idle[pool]
        for pool, replica in zip(snapshot.gpus.pool, snapshot.gpus.replica, strict=True)
    ]


def direct_steps(snapshot: Snapshot, targets: Sequence[Setting]) -> CapSteps:
    """Write every setting that differs from the newest one sent, whatever is booked."""
    return _steps(targets, [i for i, t in enumerate(targets) if _differs(snapshot, i, t)])


def booked_steps(snapshot: Snapshot, targets: Sequence[Setting], interval_s: float) -> CapSteps:
    """Lower at once; raise, in the order of the GPUs, only out of watts that nobody has booked."""
    gpus = snapshot.gpus
    free_w = snapshot.budget.usable_w - fsum(gpus.booked_w)
    if snapshot.budget.rise_w_per_s is not None:
        free_w = min(free_w, snapshot.budget.rise_w_per_s * interval_s)
    now: list[int] = []
    for i, target in enumerate(targets):
        if not _differs(snapshot, i, target):
            continue
        need_w = max(0.0, target.cap_w - gpus.booked_w[i])
        if target.cap_w > gpus.granted_w[i] and need_w > max(0.0, free_w) + _EPSILON_W:
            continue
        free_w -= need_w
        now.append(i)
    return _steps(targets, now)


def _differs(snapshot: Snapshot, gpu: int, target: Setting) -> bool:
    gpus = snapshot.gpus
    if gpus.phase[gpu] is Phase.LOST:
        return False
    return abs(gpus.granted_w[gpu] - target.cap_w) > _EPSILON_W or gpus.clock[gpu] != target.clock


def _steps(targets: Sequence[Setting], chosen: Sequence[int]) -> CapSteps:
    return CapSteps(
        gpu=tuple(chosen),
        cap_w=tuple(targets[i].cap_w for i in chosen),
        clock=tuple(targets[i].clock for i in chosen),
    )


def replica_steps(
    snapshot: Snapshot, fleet: Fleet, plan: Sequence[PoolPlan]
) -> tuple[ReplicaStep, ...]:
    """List the starts and stops that lead to `plan`, as far as GPUs are free to start on."""
    steps = []
    for index, (pool, view, want) in enumerate(zip(fleet.pools, snapshot.pools, plan, strict=True)):
        change = want.replicas - view.ready - view.starting
        if change > 0:
            free = sum(
                1
                for member, phase in zip(snapshot.gpus.pool, snapshot.gpus.phase, strict=True)
                if member == index and phase is Phase.PARKED
            )
            change = min(change, free // pool.gpus_per_replica)
        if change:
            steps.append(ReplicaStep(index, change))
    return tuple(steps)


def present_plan(snapshot: Snapshot) -> tuple[PoolPlan, ...]:
    """Where the pools are or are already going: nothing changes."""
    return tuple(PoolPlan(view.ready + view.starting, view.setting) for view in snapshot.pools)


def decided(
    snapshot: Snapshot,
    plan: Sequence[PoolPlan],
    reasons: Sequence[tuple[ReasonCode, str]],
    *,
    caps: CapSteps | None = None,
    replicas: Sequence[ReplicaStep] = (),
    recommended: Sequence[PoolPlan] | None = None,
) -> Decision:
    """Wrap a plan as a decision, one reason per pool; admission is the loop's, the same for all."""
    return Decision(
        schema=SCHEMA,
        tick=snapshot.tick,
        recommended=tuple(plan if recommended is None else recommended),
        plan=tuple(plan),
        caps=CapSteps() if caps is None else caps,
        replicas=tuple(replicas),
        admission=(),
        reasons=tuple(
            Reason(pool, code, sentence) for pool, (code, sentence) in enumerate(reasons)
        ),
        next_state=None,
    )
