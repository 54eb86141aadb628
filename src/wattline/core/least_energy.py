"""Least expected draw that still serves a given rate: the second step of the energy objective.

With the rate of every deployment settled, pools of different roles no longer depend on each other,
so each role is one group of a knapsack whose options are watts booked against watts drawn.

A pool that is alone in its role uses each setting with the fewest replicas that reach the rate.
Where draw is concave in load (it is, but for a model's last digits) and a parked GPU draws no more
than an idle one, another replica books more and draws no less, whatever the load: n f(x / n) does
not fall with n for a concave f >= 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from wattline.core import frontier, knapsack
from wattline.core.decision import PoolPlan
from wattline.core.fleet import Role
from wattline.core.frontier import Floats, Ints, Mask
from wattline.core.problem import (
    DeploymentProblem,
    PoolProblem,
    option_plan,
    path_rates_rps,
    role_order,
)

# Roles looked at in one batch: bounds memory to some ten MB.
_ROWS = 1 << 13


@dataclass(frozen=True, slots=True)
class _Task:
    """One role of one deployment: the rate it must reach and the rate it is expected to carry."""

    deployment: int
    columns: tuple[int, ...]
    pools: tuple[PoolProblem, ...]
    needed_rps: float
    expected_rps: float


@dataclass(frozen=True, slots=True)
class _Batch:
    """Options of tasks of one shape, a row per task.

    tasks: their indices. option: (rows, options, pools) replicas x number of settings + setting.
    milliwatts: booked. drawn: expected milliwatts, whole, infinite where the rate is not reached.
    useless: replicas are up but no load meets the targets.
    """

    tasks: list[int]
    option: Ints
    milliwatts: Floats
    drawn: Floats
    useless: Mask

    def ready(self) -> Floats:
        """Drawn milliwatts with useless options out, unless a task has no others."""
        useful = np.isfinite(self.drawn) & ~self.useless
        out = self.useless & useful.any(axis=1, keepdims=True)
        return np.where(out, np.inf, self.drawn)


def choose(
    deployments: Sequence[DeploymentProblem],
    options: Sequence[Ints],
    needed: Floats,
    capacity: float,
    gap: float,
) -> tuple[tuple[PoolPlan, ...], ...]:
    """Plans with the least expected draw at the forecast demand that reach the `needed` rates.

    options: per deployment, the option of each pool (in role order) of a plan that reaches them
    within `capacity` milliwatts. Where several pools share a role, only those splits of the rate
    are looked at that are efficient in watts booked or in watts drawn at full use. Replicas that
    have to be up are not left at a setting that serves nobody within the targets, if watts allow.
    """
    tasks = [
        task
        for d, deployment in enumerate(deployments)
        for task in _tasks(d, deployment, options[d], float(needed[d]))
    ]
    batches = [_batch(members, tasks) for members in _groups(tasks)]
    chosen = np.zeros(len(tasks), dtype=np.int64)
    booked = 0.0
    for batch in batches:
        best = _cheapest(batch, tasks)
        chosen[batch.tasks] = best
        booked += float(np.take_along_axis(batch.milliwatts, best[:, None], axis=1).sum())
    if booked > capacity:
        within = _within(batches, [batch.ready() for batch in batches], capacity, gap)
        if within is None:
            within = _within(batches, [batch.drawn for batch in batches], capacity, gap)
        assert within is not None  # the plan that reached the needed rates fits
        chosen = within
    plans = [[pool.current for pool in deployment.pools] for deployment in deployments]
    for batch in batches:
        for row, t in enumerate(batch.tasks):
            picked = batch.option[row, chosen[t]].tolist()
            for column, pool, option in zip(tasks[t].columns, tasks[t].pools, picked, strict=True):
                plans[tasks[t].deployment][column] = option_plan(pool, option)
    return tuple(tuple(own) for own in plans)


def _tasks(index: int, deployment: DeploymentProblem, options: Ints, needed: float) -> list[_Task]:
    """Split the rate that one deployment must reach over its roles."""
    order = role_order(deployment)
    rates = [0.0] * len(order)
    for column, option in zip(order, options.tolist(), strict=True):
        replicas, setting = divmod(option, len(deployment.pools[column].settings))
        rates[column] = replicas * deployment.pools[column].rate_rps[setting]
    paired, aggregated = path_rates_rps(deployment.role_rates_rps(rates))
    total = paired + aggregated
    mixed = paired > 0.0 and aggregated > 0.0
    tasks = []
    for role in Role:
        columns = tuple(i for i in order if deployment.pools[i].role is role)
        if not columns:
            continue
        path = aggregated if role is Role.AGGREGATED else paired
        # With both paths in use each keeps its rate; with one, it must reach what is needed.
        must = path if mixed else min(needed, path)
        share = path / total if total > 0 else 0.0
        expected = min(deployment.demand_rps, total) * share
        pools = tuple(deployment.pools[i] for i in columns)
        tasks.append(_Task(index, columns, pools, must, expected))
    return tasks


def _groups(tasks: Sequence[_Task]) -> Iterator[list[int]]:
    """Group tasks of single pools by shape; every task of several pools is a group of its own."""
    groups: dict[tuple[int, int], list[int]] = {}
    for t, task in enumerate(tasks):
        if len(task.pools) > 1:
            yield [t]
        else:
            pool = task.pools[0]
            shape = (len(pool.settings), len(pool.curve_w(0)))
            groups.setdefault(shape, []).append(t)
    for members in groups.values():
        for at in range(0, len(members), _ROWS):
            yield members[at : at + _ROWS]


def _batch(members: list[int], tasks: Sequence[_Task]) -> _Batch:
    """Options of tasks of one shape with what they book and draw."""
    group = [tasks[t] for t in members]
    needed = np.array([task.needed_rps for task in group])[:, None]
    expected = np.array([task.expected_rps for task in group])[:, None]
    if len(group[0].pools) == 1:
        option = _single_options([task.pools[0] for task in group], needed)[:, :, None]
    else:
        option = _splits(group[0].pools)[None, :, :]
    shape = option.shape[:2]
    rate, milliwatts, replicas = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for column in range(option.shape[2]):
        pools = [task.pools[column] for task in group]
        count, setting = np.divmod(option[:, :, column], len(pools[0].settings))
        rates = np.array([pool.rate_rps for pool in pools])
        extra = frontier.extra_milliwatts(pools)
        rate += count * np.take_along_axis(rates, setting, axis=1)
        milliwatts += count * np.take_along_axis(extra, setting, axis=1)
        milliwatts += frontier.parked_milliwatts(pools)[:, None]
        replicas += np.maximum(count, 0)
    load = np.divide(expected, rate, out=np.zeros(shape), where=rate > 0)
    drawn = np.zeros(shape)
    for column in range(option.shape[2]):
        pools = [task.pools[column] for task in group]
        drawn += _drawn_w(pools, option[:, :, column], np.minimum(load, 1.0))
    # A negative option stands for a setting that no allowed number of replicas makes fast enough.
    possible = (rate >= needed) & (option >= 0).all(axis=2)
    drawn = np.where(possible, np.rint(drawn * 1000.0), np.inf)
    return _Batch(members, option, milliwatts, drawn, (replicas > 0) & (rate <= 0))


def _single_options(pools: Sequence[PoolProblem], needed: Floats) -> Ints:
    """Each setting with the fewest replicas that reach the needed rate, (pools, settings)."""
    rate = np.array([pool.rate_rps for pool in pools])
    ranges = np.array([pool.replica_range for pool in pools], dtype=np.int64)
    low, high = ranges[:, :1], ranges[:, 1:]
    wanted = np.divide(needed, rate, out=np.zeros_like(rate), where=rate > 0)
    count = np.ceil(np.minimum(wanted, high + 1) - 1e-9).astype(np.int64)
    count = np.maximum(count + (count * rate < needed), low)
    settings = np.arange(rate.shape[1])
    return np.where(count <= high, count * rate.shape[1] + settings, -1)


def _splits(pools: Sequence[PoolProblem]) -> Ints:
    """Joint options of several pools that are efficient in watts booked or in watts drawn."""
    found = []
    for by_draw in (False, True):
        merged = frontier.pool_frontiers([pools[0]], by_draw=by_draw)
        for pool in pools[1:]:
            single = frontier.pool_frontiers([pool], by_draw=by_draw)
            merged = frontier.in_parallel(merged, single)
        found.append(merged.option[0, : merged.count[0]])
    return np.unique(np.concatenate(found), axis=0)


def _drawn_w(pools: Sequence[PoolProblem], option: Ints, load: Floats) -> Floats:
    """Expected watts of each row's pool at a load, as a share of its rate, (rows, options)."""
    curves_of: dict[tuple[int, int, float], Floats] = {}
    for pool in pools:
        key = (id(pool.draw_curve_w), id(pool.draw_w), pool.idle_w)
        if key not in curves_of:
            own = [pool.curve_w(index) for index in range(len(pool.settings))]
            curves_of[key] = np.array(own)
    which = {key: place for place, key in enumerate(curves_of)}
    curves = np.stack(list(curves_of.values()))
    row = np.array([which[id(pool.draw_curve_w), id(pool.draw_w), pool.idle_w] for pool in pools])[
        :, None
    ]
    count, setting = np.divmod(np.maximum(option, 0), curves.shape[1])
    place = load * (curves.shape[2] - 1)
    left = np.minimum(place.astype(np.int64), curves.shape[2] - 2)
    below, above = curves[row, setting, left], curves[row, setting, left + 1]
    serving = count * np.array([pool.gpus_per_replica for pool in pools])[:, None]
    parked = np.array([pool.gpus for pool in pools])[:, None] - serving
    parked_draw = np.array([pool.parked_draw for pool in pools])[:, None]
    watts: Floats = serving * (below + (above - below) * (place - left)) + parked * parked_draw
    return watts


def _cheapest(batch: _Batch, tasks: Sequence[_Task]) -> Ints:
    """Option of least draw per task: of equal ones the present plan, else the fewest watts."""
    drawn = batch.ready()
    equal = drawn == drawn.min(axis=1, keepdims=True)
    best: Ints = np.where(equal, batch.milliwatts, np.inf).argmin(axis=1)
    for row in np.nonzero(equal.sum(axis=1) > 1)[0].tolist():
        now = [pool.current_option() for pool in tasks[batch.tasks[row]].pools]
        present = np.flatnonzero((batch.option[row] == now).all(axis=1) & equal[row])
        if len(present):
            best[row] = present[0]
    return best


def _within(
    batches: Sequence[_Batch], drawn: Sequence[Floats], capacity: float, gap: float
) -> Ints | None:
    """Option per task of least draw in sum within the watts; None if not even the lightest fit."""
    found: dict[int, tuple[Floats, Floats, Ints]] = {}
    for batch, draw in zip(batches, drawn, strict=True):
        watts = np.where(np.isfinite(draw), batch.milliwatts, np.inf)
        index = np.broadcast_to(np.arange(draw.shape[1])[None, :, None], (*draw.shape, 1))
        rows = frontier.pareto(-draw, watts, index)
        for row, t in enumerate(batch.tasks):
            width = rows.count[row]
            found[t] = (
                rows.rate[row, :width],
                rows.milliwatts[row, :width],
                rows.option[row, :width, 0],
            )
    ordered = [found[t] for t in range(len(found))]
    start = np.concatenate(([0], np.cumsum([len(value) for value, _, _ in ordered])))
    value = np.concatenate([value for value, _, _ in ordered])
    watts = np.concatenate([watts for _, watts, _ in ordered])
    option = np.concatenate([option for _, _, option in ordered])
    # Values must not be negative for a meaningful relative gap: count savings, not draw.
    value = value - np.repeat(value[start[:-1]], np.diff(start))
    solved = knapsack.solve(value, watts, start, capacity, gap=gap)
    return None if solved is None else option[solved.choice]
