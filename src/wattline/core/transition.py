"""From where the GPUs are to where a plan wants them: the steps that are allowed now.

Lowering is always allowed and comes at once. A raise is granted to whole replicas, out of watts
that nobody has booked, so that the sum of bookings never exceeds what is usable on the way. The
bookings are the ledger's: a lowered GPU keeps its old one until its report and settle time, so the
raises that need its watts wait by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from wattline.core.decision import CapSteps, PoolPlan, ReplicaStep
from wattline.core.snapshot import GpuTable, Phase, PoolView

# Limits are compared with this slack: registers hold whole watts or milliwatts.
_SAME_W = 0.0005
# A register may round to whole watts; only a larger difference from the grant is worth repairing.
_REPAIR_W = 0.75

_CODES = {phase: code for code, phase in enumerate(Phase)}
_READY, _STARTING, _DRAINING, _PARKED, _LOST = (
    _CODES[phase]
    for phase in (Phase.READY, Phase.STARTING, Phase.DRAINING, Phase.PARKED, Phase.LOST)
)

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class GpuArrays:
    """The columns of a GPU table that a transition needs, as arrays. Missing limits are NaN."""

    pool: Ints
    replica: Ints
    phase: Ints
    enforced_w: Floats
    granted_w: Floats
    booked_w: Floats
    clock: Floats
    derate: Floats

    @property
    def ready(self) -> Bools:
        """GPUs of replicas that serve."""
        serving: Bools = self.phase == _READY
        return serving

    @property
    def starting(self) -> Bools:
        """GPUs of replicas that load."""
        loading: Bools = self.phase == _STARTING
        return loading

    @property
    def parked(self) -> Bools:
        """GPUs that belong to no replica."""
        idle: Bools = self.phase == _PARKED
        return idle

    @property
    def silent(self) -> Bools:
        """GPUs whose enforced limit is not known."""
        return np.isnan(self.enforced_w)

    def with_ready(self, serving: Bools) -> GpuArrays:
        """The same, with the GPUs in `serving` counted as those of replicas that serve."""
        return replace(self, phase=np.where(serving, _READY, self.phase))


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """Steps to take now, and per pool how many GPUs wait for what.

    waiting: raises that found no free watts; rate_limited: raises held back by the limit on watts
    per second; silent: serving GPUs that cannot be raised because their limit is unknown.
    """

    caps: CapSteps
    lowered: tuple[int, ...]
    raised: tuple[int, ...]
    waiting: tuple[int, ...]
    rate_limited: tuple[int, ...]
    silent: tuple[int, ...]


def gpu_arrays(gpus: GpuTable) -> GpuArrays:
    """Turn the table's columns into arrays."""
    return GpuArrays(
        pool=np.array(gpus.pool, dtype=np.int64),
        replica=np.array(gpus.replica, dtype=np.int64),
        phase=np.array([_CODES[phase] for phase in gpus.phase], dtype=np.int64),
        enforced_w=np.array(gpus.enforced_w, dtype=np.float64),
        granted_w=np.array(gpus.granted_w, dtype=np.float64),
        booked_w=np.array(gpus.booked_w, dtype=np.float64),
        clock=np.array(gpus.clock, dtype=np.float64),
        derate=np.array(gpus.derate, dtype=np.float64),
    )


def held_elsewhere_w(gpus: GpuArrays, parked_w: Floats) -> float:
    """Watts above the parking limit booked for GPUs that drain or are lost: no plan can use them.

    `parked_w` is per pool.
    """
    away = (gpus.phase == _DRAINING) | (gpus.phase == _LOST)
    above = gpus.booked_w - parked_w[gpus.pool]
    return total_w(above[away & (above > 0.0)])


def excess_w(gpus: GpuArrays) -> float:
    """Watts booked above the newest grants: a transition under way, or limits that did not follow.

    GPUs that drain or are lost are left out; `held_elsewhere_w` counts them whole.
    """
    counted = (gpus.phase != _DRAINING) & (gpus.phase != _LOST)
    above = gpus.booked_w - gpus.granted_w
    return total_w(above[counted & (above > _SAME_W)])


def cap_steps(
    gpus: GpuArrays,
    plan: Sequence[PoolPlan],
    parked_w: Floats,
    *,
    usable_w: float,
    rise_w: float | None,
    repair: bool,
) -> Transition:
    """Caps that may be sent now on the way to `plan`.

    `parked_w` gives the lowest limit per pool; `rise_w` how much the bookings may grow now (None:
    no limit). With `repair`, GPUs whose enforced limit differs from their grant are granted anew.
    Raises go to the pools that are furthest below their plan first, replica by replica, and stop at
    the first that does not fit, so that nothing overtakes it for ever.
    """
    target, clock = _targets(gpus, plan, parked_w)
    lower = target < gpus.granted_w - _SAME_W
    same = ~lower & (target <= gpus.granted_w + _SAME_W)
    send = lower | (same & (np.abs(clock - gpus.clock) > 1e-9))
    if repair:
        differs = np.abs(gpus.enforced_w - gpus.granted_w) > _REPAIR_W  # false for unknown limits
        send |= same & differs
    pools = len(plan)
    wanted = ~lower & ~same & gpus.ready
    unknown = np.bincount(gpus.pool[wanted & gpus.silent], minlength=pools)
    raises, new_cap, waiting, limited = _raises(gpus, target, wanted, usable_w, rise_w, pools)
    cap = np.where(lower | same, target, gpus.granted_w)
    cap[raises] = new_cap
    send[raises] = True
    chosen = np.flatnonzero(send)
    return Transition(
        caps=CapSteps(
            gpu=tuple(chosen.tolist()),
            cap_w=tuple(np.round(cap[chosen], 3).tolist()),
            clock=tuple(clock[chosen].tolist()),
        ),
        lowered=_counts(gpus.pool[lower], pools),
        raised=_counts(gpus.pool[raises], pools),
        waiting=waiting,
        rate_limited=limited,
        silent=tuple(unknown.tolist()),
    )


def replica_steps(
    targets: Sequence[int],
    views: Sequence[PoolView],
    free_gpus: Sequence[int],
    gpus_per_replica: Sequence[int],
) -> tuple[ReplicaStep, ...]:
    """Replicas to start or to drain now, per pool.

    Those on the way count as there. Only parked GPUs (`free_gpus`, booked at their lowest limit)
    can start a replica; only the surplus is drained.
    """
    steps = []
    for pool, (target, view) in enumerate(zip(targets, views, strict=True)):
        change = target - view.ready - view.starting
        if change > 0:
            change = min(change, free_gpus[pool] // gpus_per_replica[pool])
        if change:
            steps.append(ReplicaStep(pool, change))
    return tuple(steps)


def free_gpus(gpus: GpuArrays, pools: int) -> tuple[int, ...]:
    """Per pool: parked GPUs whose limit is known, hence may take a replica."""
    return _counts(gpus.pool[gpus.parked & ~gpus.silent], pools)


def _targets(gpus: GpuArrays, plan: Sequence[PoolPlan], parked_w: Floats) -> tuple[Floats, Floats]:
    """Cap and clock ceiling wanted for every GPU.

    Serving GPUs take the plan's; draining ones keep theirs, to finish their work in time, unless
    the plan is lower; all others are parked at their lowest limit.
    """
    planned = np.array([entry.setting.cap_w for entry in plan], dtype=np.float64)[gpus.pool]
    clocks = np.array([entry.setting.clock for entry in plan], dtype=np.float64)[gpus.pool]
    parked = parked_w[gpus.pool]
    draining = gpus.phase == _DRAINING
    target = np.where(gpus.ready, planned, parked)
    target = np.where(draining, np.minimum(gpus.granted_w, planned), target)
    # A GPU that is not serving is never raised: a grant below its parking limit does not exist.
    return target, np.where(gpus.ready, clocks, gpus.clock)


def _raises(
    gpus: GpuArrays,
    target: Floats,
    wanted: Bools,
    usable_w: float,
    rise_w: float | None,
    pools: int,
) -> tuple[Ints, Floats, tuple[int, ...], tuple[int, ...]]:
    """GPUs to raise, their new caps, and per pool the GPUs that wait or are held by the rate."""
    none = np.zeros(0, dtype=np.int64), np.zeros(0), (0,) * pools, (0,) * pools
    candidates = np.flatnonzero(wanted)
    if not candidates.size:
        return none
    blocked = _replica_keys(gpus, np.flatnonzero(gpus.ready & gpus.silent))
    keys = _replica_keys(gpus, candidates)
    candidates = candidates[~np.isin(keys, blocked)]
    free_w = usable_w - total_w(gpus.booked_w)
    if not candidates.size or free_w < 0.0:
        return (*none[:2], _counts(gpus.pool[candidates], pools), none[3])
    order = _by_shortage(gpus, target, candidates, pools)
    candidates = candidates[order]
    cost = _milliwatts(np.maximum(target[candidates] - gpus.booked_w[candidates], 0.0))
    starts = _group_starts(_replica_keys(gpus, candidates))
    sums = np.cumsum(np.add.reduceat(cost, starts))
    limit_w = free_w if rise_w is None else min(free_w, rise_w)
    fitting = int(np.searchsorted(sums, int(limit_w * 1000.0 + 0.5), side="right"))
    end = int(starts[fitting]) if fitting < starts.size else candidates.size
    chosen, caps = candidates[:end], target[candidates[:end]]
    rest = _counts(gpus.pool[candidates[end:]], pools)
    if end == candidates.size or rise_w is None or rise_w >= free_w:
        return chosen, caps, rest, none[3]
    stop = int(starts[fitting + 1]) if fitting + 1 < starts.size else candidates.size
    left_w = rise_w - (int(sums[fitting - 1]) / 1000.0 if fitting else 0.0)
    partly = candidates[end:stop]
    part = _partial_caps(gpus, target, partly, left_w)
    grows = part > gpus.granted_w[partly] + _SAME_W
    return (
        np.concatenate([chosen, partly[grows]]),
        np.concatenate([caps, part[grows]]),
        none[3],
        rest,
    )


def _partial_caps(gpus: GpuArrays, target: Floats, replica: Ints, left_w: float) -> Floats:
    """Caps that share `left_w` among the GPUs of one replica, rounded down to milliwatts."""
    base = np.maximum(gpus.booked_w[replica], gpus.granted_w[replica])
    share = np.floor(max(0.0, left_w) / replica.size * 1000.0) / 1000.0
    caps: Floats = np.minimum(target[replica], np.round(base + share, 3))
    return caps


def _by_shortage(gpus: GpuArrays, target: Floats, candidates: Ints, pools: int) -> Ints:
    """Order of `candidates`: pools furthest below their plan first, then by replica and index."""
    serving = np.flatnonzero(gpus.ready)
    missing = np.maximum(target[serving] - gpus.granted_w[serving], 0.0)
    planned = np.bincount(gpus.pool[serving], weights=target[serving], minlength=pools)
    short = np.bincount(gpus.pool[serving], weights=missing, minlength=pools)
    ratio = np.round(short / np.maximum(planned, 1.0), 6)
    pool = gpus.pool[candidates]
    order: Ints = np.lexsort((candidates, gpus.replica[candidates], pool, -ratio[pool]))
    return order


def _replica_keys(gpus: GpuArrays, chosen: Ints) -> Ints:
    """One number per replica: pool and number in the pool."""
    width = int(gpus.replica.max(initial=0)) + 2
    keys: Ints = gpus.pool[chosen] * width + gpus.replica[chosen] + 1
    return keys


def _group_starts(keys: Ints) -> Ints:
    """Places where a run of equal keys begins."""
    return np.concatenate([[0], np.flatnonzero(keys[1:] != keys[:-1]) + 1])


def _counts(pool: Ints, pools: int) -> tuple[int, ...]:
    return tuple(np.bincount(pool, minlength=pools).tolist())


def _milliwatts(watts: Floats) -> Ints:
    """Watts as whole milliwatts, whose sums do not depend on the order of adding."""
    rounded: Ints = np.rint(watts * 1000.0).astype(np.int64)
    return rounded


def total_w(watts: Floats) -> float:
    """Sum of `watts` in whole milliwatts: the same on every processor."""
    return int(np.sum(_milliwatts(watts))) / 1000.0
