"""Least expected draw that still serves a given rate: the second step of the energy objective.

With the rate of every deployment settled, pools of different roles no longer depend on each other,
so each role is one group of a knapsack whose options are watts booked against watts drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from wattline.core import frontier, knapsack
from wattline.core.decision import PoolPlan
from wattline.core.fleet import Role
from wattline.core.frontier import Floats, Ints, Mask
from wattline.core.problem import DeploymentProblem, PoolProblem, option_plan, role_order

# Options x roles looked at in one batch: bounds memory to some hundred MB.
_BATCH = 1 << 21


@dataclass(frozen=True, slots=True)
class _Table:
    """What the pools of one role could be together.

    option: (options, pools) replicas x number of settings + setting. rate, milliwatts: (options,).
    serves: (options,) whether any replica is up.
    """

    pools: tuple[PoolProblem, ...]
    option: Ints
    rate: Floats
    milliwatts: Floats
    serves: Mask


@dataclass(frozen=True, slots=True)
class _Task:
    """One role of one deployment: the rate it must reach and the rate it is expected to carry."""

    deployment: int
    columns: tuple[int, ...]
    pools: tuple[PoolProblem, ...]
    needed_rps: float
    expected_rps: float


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
    batches = list(_batches(tasks))
    chosen = np.zeros(len(tasks), dtype=np.int64)
    booked = 0.0
    for table, members in batches:
        drawn = _drawn_milliwatts(table, [tasks[t] for t in members], ready=True)
        chosen[members] = _cheapest(table, drawn, [tasks[t] for t in members])
        booked += float(table.milliwatts[chosen[members]].sum())
    if booked > capacity:
        within = _within(tasks, batches, capacity, gap, ready=True)
        if within is None:
            within = _within(tasks, batches, capacity, gap, ready=False)
        assert within is not None  # the plan that reached the needed rates fits
        chosen = within
    plans = [[pool.current for pool in deployment.pools] for deployment in deployments]
    for table, members in batches:
        for t in members:
            row = table.option[chosen[t]].tolist()
            for column, pool, option in zip(tasks[t].columns, tasks[t].pools, row, strict=True):
                plans[tasks[t].deployment][column] = option_plan(pool, option)
    return tuple(tuple(chosen_plans) for chosen_plans in plans)


def _tasks(index: int, deployment: DeploymentProblem, options: Ints, needed: float) -> list[_Task]:
    """Split the rate that one deployment must reach over its roles."""
    order = role_order(deployment)
    rates = [0.0] * len(order)
    for column, option in zip(order, options.tolist(), strict=True):
        replicas, setting = divmod(option, len(deployment.pools[column].settings))
        rates[column] = replicas * deployment.pools[column].rate_rps[setting]
    aggregated = sum(
        r for r, p in zip(rates, deployment.pools, strict=True) if p.role is Role.AGGREGATED
    )
    total = deployment.rate_rps(rates)
    mixed = 0.0 < aggregated < total
    tasks = []
    for role in Role:
        columns = tuple(i for i in order if deployment.pools[i].role is role)
        if not columns:
            continue
        path = aggregated if role is Role.AGGREGATED else total - aggregated
        # With both paths in use each keeps its rate; with one, it must reach what is needed.
        must = path if mixed else min(needed, path)
        share = path / total if total > 0 else 0.0
        expected = min(deployment.demand_rps, total) * share
        pools = tuple(deployment.pools[i] for i in columns)
        tasks.append(_Task(index, columns, pools, must, expected))
    return tasks


def _batches(tasks: Sequence[_Task]) -> Iterator[tuple[_Table, list[int]]]:
    """Group tasks over equal pools with the table of their options."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for t, task in enumerate(tasks):
        groups.setdefault(tuple(pool.key() for pool in task.pools), []).append(t)
    for members in groups.values():
        table = _table(tasks[members[0]].pools)
        rows = max(1, _BATCH // len(table.rate))
        for at in range(0, len(members), rows):
            yield table, members[at : at + rows]


def _table(pools: tuple[PoolProblem, ...]) -> _Table:
    if len(pools) == 1:
        option = _single_options(pools[0])[:, None]
    else:
        option = np.unique(
            np.concatenate((_splits(pools, by_draw=False), _splits(pools, by_draw=True))), axis=0
        )
    rate = np.zeros(len(option))
    milliwatts = np.zeros(len(option))
    serves = np.zeros(len(option), dtype=bool)
    for column, pool in enumerate(pools):
        replicas, setting = np.divmod(option[:, column], len(pool.settings))
        rate += replicas * np.array(pool.rate_rps)[setting]
        milliwatts += replicas * frontier.extra_milliwatts([pool])[0][setting]
        milliwatts += frontier.parked_milliwatts([pool])[0]
        serves |= replicas > 0
    return _Table(pools, option, rate, milliwatts, serves)


def _single_options(pool: PoolProblem) -> Ints:
    """All options of one pool; no replicas count once, with the lowest cap."""
    low, high = pool.replica_range
    size = len(pool.settings)
    options = np.arange(max(low, 1) * size, (high + 1) * size)
    if low > 0:
        return options
    caps = [setting.cap_w for setting in pool.settings]
    return np.concatenate(([caps.index(min(caps))], options))


def _splits(pools: Sequence[PoolProblem], *, by_draw: bool) -> Ints:
    merged = frontier.pool_frontiers([pools[0]], by_draw=by_draw)
    for pool in pools[1:]:
        single = frontier.pool_frontiers([pool], by_draw=by_draw)
        merged = frontier.in_parallel(merged, single)
    return merged.option[0, : merged.count[0]]


def _drawn_milliwatts(table: _Table, tasks: Sequence[_Task], *, ready: bool) -> Floats:
    """Find the expected draw (tasks, options) in whole milliwatts; infinite where too slow.

    All pools of a role carry the same load, as a share of their rate. With `ready`, options that
    serve nobody although replicas are up are out, unless there are no others.
    """
    needed = np.array([task.needed_rps for task in tasks])[:, None]
    expected = np.array([task.expected_rps for task in tasks])[:, None]
    safe = np.where(table.rate > 0, table.rate, 1.0)
    load = np.minimum(np.where(table.rate > 0, expected / safe, 0.0), 1.0)
    drawn = np.zeros((len(tasks), len(table.rate)))
    for column, pool in enumerate(table.pools):
        replicas, setting = np.divmod(table.option[:, column], len(pool.settings))
        curves = np.array([pool.curve_w(i) for i in range(len(pool.settings))])
        place = load * (curves.shape[1] - 1)
        left = np.minimum(place.astype(np.int64), curves.shape[1] - 2)
        low, high = curves[setting, left], curves[setting, left + 1]
        serving = replicas * pool.gpus_per_replica
        drawn += serving * (low + (high - low) * (place - left))
        drawn += (pool.gpus - serving) * pool.parked_draw
    possible = table.rate >= needed
    if ready:
        useful = possible & ((table.rate > 0) | ~table.serves)
        possible = np.where(useful.any(axis=1, keepdims=True), useful, possible)
    return np.where(possible, np.rint(drawn * 1000.0), np.inf)


def _cheapest(table: _Table, drawn: Floats, tasks: Sequence[_Task]) -> Ints:
    """Option of least draw per task: of equal ones the present plan, else the fewest watts."""
    equal = drawn == drawn.min(axis=1, keepdims=True)
    best: Ints = np.where(equal, table.milliwatts, np.inf).argmin(axis=1)
    for row, task in enumerate(tasks):
        if equal[row].sum() > 1:
            now = [pool.current_option() for pool in task.pools]
            present = np.flatnonzero((table.option == now).all(axis=1) & equal[row])
            if len(present):
                best[row] = present[0]
    return best


def _within(
    tasks: Sequence[_Task],
    batches: Sequence[tuple[_Table, list[int]]],
    capacity: float,
    gap: float,
    *,
    ready: bool,
) -> Ints | None:
    """Option per task of least draw in sum within the watts; None if not even the lightest fit."""
    found: dict[int, tuple[Floats, Floats, Ints]] = {}
    for table, members in batches:
        drawn = _drawn_milliwatts(table, [tasks[t] for t in members], ready=ready)
        watts = np.where(np.isfinite(drawn), table.milliwatts, np.inf)
        index = np.broadcast_to(np.arange(len(table.rate))[None, :, None], (*drawn.shape, 1))
        rows = frontier.pareto(-drawn, watts, index)
        for row, t in enumerate(members):
            width = rows.count[row]
            found[t] = (
                rows.rate[row, :width],
                rows.milliwatts[row, :width],
                rows.option[row, :width, 0],
            )
    ordered = [found[t] for t in range(len(tasks))]
    start = np.concatenate(([0], np.cumsum([len(value) for value, _, _ in ordered])))
    value = np.concatenate([value for value, _, _ in ordered])
    watts = np.concatenate([watts for _, watts, _ in ordered])
    option = np.concatenate([option for _, _, option in ordered])
    # Values must not be negative for a meaningful relative gap: count savings, not draw.
    value = value - np.repeat(value[start[:-1]], np.diff(start))
    solved = knapsack.solve(value, watts, start, capacity, gap=gap)
    return None if solved is None else option[solved.choice]
