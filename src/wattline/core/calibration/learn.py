"""From one tick to the next: what is seen is held against what the models say of the same load.

Comparisons are gathered over a window, weighted with the work behind them, and only while a pool
stands still: one limit on all of its serving GPUs, for as long as the answers that end now took.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, isfinite

from wattline.core.calibration.drift import Served, late, violation
from wattline.core.calibration.factors import (
    RIGHT,
    Comparison,
    Factors,
    FactorTerms,
    tightening,
)
from wattline.core.calibration.predict import Predicted, handover_s, predict
from wattline.core.calibration.sight import SAME_W, PoolSight
from wattline.core.calibration.state import (
    DeploymentCalibration,
    Pegged,
    RoleCalibration,
    SteadyPool,
)
from wattline.core.calibration.terms import CalibrationSettings
from wattline.core.fleet import Role, Setting, Slo
from wattline.core.mix import Mix
from wattline.core.snapshot import DemandView

# A pool has to stand still for as long as a mean answer takes at its target, within these bounds.
_LEAST_HOLD_S, _MOST_HOLD_S = 2.0, 60.0
# TTFT tells of a replica's speed only while at most this share of it is spent behind other prompts.
_CALM = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """One deployment's tick. `shares`: of its prompts, per pool."""

    now_s: float
    view: DemandView
    mix: Mix
    slo: Slo
    pools: Sequence[PoolSight]
    shares: Sequence[float]


def learn(
    before: DeploymentCalibration | None, tick: Tick, terms: CalibrationSettings
) -> DeploymentCalibration:
    """Take one tick of a deployment in; metrics must not be missing.

    A window of counts that was seen before adds nothing.
    """
    if before is None:
        before = first(tick)
    steady = _steady(before.pools, tick)
    until_s = round(tick.now_s - tick.view.age_s, 6)
    new = before.seen_until_s is None or until_s > before.seen_until_s
    if not new:
        return replace(before, pools=steady)
    gathered = _gathered(replace(before, pools=steady, seen_until_s=until_s), tick)
    return gathered if gathered.seconds < terms.window_s else _closed(gathered, tick, terms)


def first(tick: Tick) -> DeploymentCalibration:
    """Before the first tick: models are taken to be right, and to be newly made."""
    roles = sorted({pool.role for pool in tick.pools})
    start = DeploymentCalibration(roles=tuple(RoleCalibration(role=role) for role in roles))
    return replace(start, drift=start.drift.swept(tick.now_s))


def _steady(before: Sequence[SteadyPool], tick: Tick) -> tuple[SteadyPool, ...]:
    now = []
    for index, pool in enumerate(tick.pools):
        old = before[index] if index < len(before) else None
        same = (
            old is not None
            and old.limit_w is not None
            and pool.limit_w is not None
            and abs(old.limit_w - pool.limit_w) <= SAME_W
            and old.clock == pool.clock
        )
        if old is not None and same:
            now.append(old)
        else:
            now.append(SteadyPool(limit_w=pool.limit_w, clock=pool.clock, since_s=tick.now_s))
    return tuple(now)


def _gathered(state: DeploymentCalibration, tick: Tick) -> DeploymentCalibration:
    """Add a tick to the open window."""
    view = tick.view
    ended = float(view.completions or 0)
    seconds = view.window_s
    tokens = (view.output_tokens_sum or 0) + ended * tick.mix.input_tokens
    state = replace(
        state,
        seconds=round(state.seconds + seconds, 6),
        requests=state.requests + ended,
        ttft_sum=_weighted(state.ttft_sum, mean_ttft_s(view), ended),
        itl_sum=_weighted(state.itl_sum, mean_itl_s(view), ended),
        tokens=round(state.tokens + tokens, 3),
        estimate_tokens=round(state.estimate_tokens + seconds * state.estimate_tokens_per_s, 3),
    )
    ready = [pool.view.ready > 0 for pool in tick.pools]
    still = [_stands_still(*pair, tick) for pair in zip(state.pools, tick.pools, strict=True)]
    made = [
        _prediction(pool, share, tick, state) if up else Predicted()
        for pool, share, up in zip(tick.pools, tick.shares, ready, strict=True)
    ]
    roles = []
    for entry in state.roles:
        own = [
            index
            for index, pool in enumerate(tick.pools)
            if pool.role is entry.role and ready[index]
        ]
        if own and all(still[index] for index in own):
            entry = _compared(entry, own, made, tick, ended)
        roles.append(entry)
    return replace(state, roles=tuple(roles))


def _weighted(total: float | None, value: float | None, weight: float) -> float | None:
    if value is None or not isfinite(value) or weight <= 0.0:
        return total
    return round((total or 0.0) + weight * value, 9)


def _stands_still(old: SteadyPool, pool: PoolSight, tick: Tick) -> bool:
    stood_s = tick.now_s - old.since_s
    return old.limit_w is not None and not pool.slowed and stood_s >= _answer_s(tick)


def _answer_s(tick: Tick) -> float:
    """How long a mean answer takes at its target, within bounds."""
    return min(_MOST_HOLD_S, max(_LEAST_HOLD_S, tick.mix.output_tokens * tick.slo.itl_s))


def _prediction(
    pool: PoolSight, share: float, tick: Tick, state: DeploymentCalibration
) -> Predicted:
    if pool.limit_w is None:
        return Predicted()
    view = tick.view
    arrived = max(0, (view.input_tokens_sum or 0) - (view.cached_tokens_sum or 0))
    return predict(
        pool.engine,
        pool.role,
        Setting(pool.limit_w, pool.clock),
        tick.mix,
        pool.view,
        tokens_per_s=share * arrived / view.window_s / pool.view.ready,
        slower=tightening(factors_of(state.roles, pool.role).ttft),
    )


def factors_of(roles: Sequence[RoleCalibration], role: Role) -> Factors:
    """Factors of a role as followed; all 1.0 where it is not there."""
    return next((entry.factors for entry in roles if entry.role is role), RIGHT)


def _compared(
    entry: RoleCalibration,
    own: Sequence[int],
    made: Sequence[Predicted],
    tick: Tick,
    ended: float,
) -> RoleCalibration:
    """Add what the pools of one role (`own`, by index) show beside what was predicted of them."""
    ttft_s, itl_s = _latencies(entry.role, own, made, tick)
    recent_s = _recent_s(entry.itl_recent_s, itl_s, tick)
    if itl_s is not None and recent_s is not None:
        # Answers that end now were made with the batches since they began: while load falls, the
        # present batch would make the model look too fast.
        itl_s = max(itl_s, recent_s)
    ttft = entry.ttft.plus(mean_ttft_s(tick.view), ttft_s, ended)
    queue_s = entry.queue_s
    if ttft is not entry.ttft:
        shares = [tick.shares[index] for index in own]
        queue_s += ended * (_mean([made[index].queue_s for index in own], shares) or 0.0)
    drawn = predicted = metered = 0.0
    for index in own:
        pool, draw_w = tick.pools[index], made[index].draw_w
        if pool.draw_w is not None and draw_w is not None and _works(pool, tick):
            drawn += pool.metered * pool.draw_w
            predicted += pool.metered * draw_w
            metered += pool.metered
    view = tick.view
    return replace(
        entry,
        ttft=ttft,
        queue_s=round(queue_s, 9),
        itl_recent_s=recent_s,
        itl=entry.itl.plus(mean_itl_s(view), itl_s, ended),
        power=entry.power.plus(drawn, predicted, view.window_s if metered else 0.0),
    )


def _recent_s(recent_s: float | None, itl_s: float | None, tick: Tick) -> float | None:
    """The predicted ITL, faded over as long as a mean answer takes."""
    if itl_s is None or recent_s is None:
        return itl_s if recent_s is None else recent_s
    kept = _answer_s(tick) / (_answer_s(tick) + tick.view.window_s)
    return round(itl_s + (recent_s - itl_s) * kept, 9)


def _latencies(
    role: Role, own: Sequence[int], made: Sequence[Predicted], tick: Tick
) -> tuple[float | None, float | None]:
    """Predicted TTFT and ITL that a role answers for; None for what it does not.

    Where one deployment has both ways through, nobody can tell whose latencies are seen.
    """
    roles = {pool.role for pool in tick.pools}
    if Role.AGGREGATED in roles and len(roles) > 1:
        return None, None
    shares = [tick.shares[index] for index in own]
    running = [tick.pools[index].view.running or 0.0 for index in own]
    if role is Role.DECODE:
        return None, _mean([made[index].itl_s for index in own], running)
    stage_s = _mean([made[index].stage_s for index in own], shares)
    if role is Role.AGGREGATED:
        return stage_s, _mean([made[index].itl_s for index in own], running)
    if stage_s is None:
        return None, None
    after_s = 0.0
    decodes = [index for index, pool in enumerate(tick.pools) if pool.role is Role.DECODE]
    if decodes:
        first_s = [made[index].itl_s for index in decodes]
        weights = [tick.pools[index].view.running or 0.0 for index in decodes]
        after_s = _mean(first_s, weights) or tick.slo.itl_s
        after_s += handover_s(tick.pools[own[0]].engine, tick.mix)
    return stage_s + after_s, None


def _mean(values: Sequence[float | None], weights: Sequence[float]) -> float | None:
    """Weighted mean of what carries weight; None if any of that is missing."""
    total = weight = 0.0
    for value, share in zip(values, weights, strict=True):
        if share > 0.0:
            if value is None:
                return None
            total += share * value
            weight += share
    return total / weight if weight > 0.0 else None


def _works(pool: PoolSight, tick: Tick) -> bool:
    """Whether a pool's side has tokens to work on."""
    if pool.role is not Role.DECODE and (tick.view.input_tokens_sum or 0) > 0:
        return True
    return pool.role is not Role.PREFILL and (pool.view.running or 0.0) > 0.0


def mean_ttft_s(view: DemandView) -> float | None:
    """Mean TTFT of a window, the median where no mean is known; None if neither is."""
    return _positive(view.ttft_p50_s if view.ttft_mean_s is None else view.ttft_mean_s)


def mean_itl_s(view: DemandView) -> float | None:
    """Mean ITL of a window, the median where no mean is known; None if neither is."""
    return _positive(view.itl_p50_s if view.itl_mean_s is None else view.itl_mean_s)


def _positive(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) and value > 0.0 else None


def _closed(
    state: DeploymentCalibration, tick: Tick, terms: CalibrationSettings
) -> DeploymentCalibration:
    """End the window: the factors follow, and drift is judged."""
    n = state.requests
    enough = n >= terms.least_requests
    served = Served(
        ttft_s=state.ttft_sum / n if enough and state.ttft_sum is not None else None,
        itl_s=state.itl_sum / n if enough and state.itl_sum is not None else None,
        tokens_per_s=state.tokens / state.seconds,
        estimate_tokens_per_s=state.estimate_tokens / state.seconds,
    )
    drift, why, is_late = state.drift, state.why, state.late
    if enough:  # A window in which next to nothing ended is neither good nor bad.
        drift = drift.watched(served, tick.slo, terms.drift, tick.now_s)
        why = violation(served, tick.slo, terms.drift)
        is_late = late(served, tick.slo)
    return replace(
        state,
        roles=tuple(_followed(entry, terms, tick) for entry in state.roles),
        seconds=0.0,
        requests=0.0,
        ttft_sum=None,
        itl_sum=None,
        tokens=0.0,
        estimate_tokens=0.0,
        drift=drift,
        why=why,
        late=is_late,
    )


def _followed(entry: RoleCalibration, terms: CalibrationSettings, tick: Tick) -> RoleCalibration:
    calm = entry.calm + 1 if entry.queue_s <= _CALM * entry.ttft.predicted else 0
    # Answers that end now were queued as long ago as a mean answer takes.
    since = 1 + ceil(_answer_s(tick) / terms.window_s)
    ttft = entry.ttft.comparison(terms.least_requests) if calm >= since else None
    itl = entry.itl.comparison(terms.least_requests)
    power = entry.power.comparison(0.0)
    factors = entry.factors.followed(terms.factors, ttft=ttft, itl=itl, power=power)
    old = entry.in_force
    return RoleCalibration(
        role=entry.role,
        factors=factors,
        itl_recent_s=entry.itl_recent_s,
        calm=calm,
        in_force=Factors(
            ttft=_in_force(old.ttft, factors.ttft, terms.step) if terms.apply_latency else 1.0,
            itl=_in_force(old.itl, factors.itl, terms.step) if terms.apply_latency else 1.0,
            power=_in_force(old.power, factors.power, terms.step) if terms.apply_power else 1.0,
        ),
        windows=entry.windows + (ttft is not None or itl is not None or power is not None),
        pegged=Pegged(
            ttft=entry.pegged.ttft + _is_pegged(factors.ttft, ttft, terms.factors),
            itl=entry.pegged.itl + _is_pegged(factors.itl, itl, terms.factors),
            power=entry.pegged.power + _is_pegged(factors.power, power, terms.factors),
        ),
    )


def _is_pegged(factor: float, seen: Comparison | None, terms: FactorTerms) -> bool:
    return seen is not None and not terms.least < factor < terms.most


def _in_force(old: float, factor: float, step: float) -> float:
    """What is applied follows a factor only when it has moved by `step`, and is never below 1."""
    if factor <= 1.0:
        return 1.0
    return round(factor, 2) if abs(factor - old) >= step else old
