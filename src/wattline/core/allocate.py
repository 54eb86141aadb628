"""Choose replicas and settings of every pool within a watt budget.

Inside a deployment the efficient frontier of rate against watts is exact; between deployments a
multiple-choice knapsack picks one point of each frontier. docs/concepts/allocation.md explains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum
from typing import Literal

import numpy as np

from wattline.core import frontier, knapsack, least_energy
from wattline.core.decision import PoolPlan
from wattline.core.fleet import Role
from wattline.core.frontier import Floats, Frontiers, Ints
from wattline.core.problem import (
    Allocation,
    Binding,
    DeploymentProblem,
    Evaluation,
    PoolProblem,
    evaluate,
    evaluate_deployment,
    option_plan,
    role_order,
)

Objective = Literal["throughput", "energy"]

# Values become integers, so that sums are exact whatever their order: this many steps in total.
_STEPS = 2.0**36
# Where no demand is forecast, capacity above demand is measured against this share of the most.
_IDLE_SHARE = 0.05
# Headroom is a matter of taste: its optimum need not be proven.
_SPREAD_GAP = 1e-3
# Options that one batch may hold at once: bounds memory to some hundred MB.
_BATCH = 1 << 21


@dataclass(frozen=True, slots=True)
class _Points:
    """Frontier points of all deployments end to end; deployment d owns start[d] to start[d + 1].

    source: per deployment the frontiers it lies in and its row there.
    """

    rate: Floats
    milliwatts: Floats
    start: Ints
    source: list[tuple[Frontiers, int]]

    def option(self, deployment: int, point: int) -> Ints:
        """Option of each pool (in role order) at a point."""
        frontiers, row = self.source[deployment]
        options: Ints = frontiers.option[row, point - self.start[deployment]]
        return options


def allocate(
    deployments: Sequence[DeploymentProblem],
    usable_w: float,
    objective: Objective = "throughput",
    *,
    headroom: float = 1.0,
    gap: float = 1e-4,
) -> Allocation:
    """Choose replicas and a setting per pool so that the most demand is served within the watts.

    Pools with `fixed_replicas` get settings only (the fast loop). `headroom` (>= 1) multiplies the
    demand to provide for. The first aim is always the most demand served, weighted by priority; the
    `objective` says what is done next: `throughput` turns the watts that are left into capacity
    above demand, `energy` takes the plan with the least expected draw among those that serve as
    much. Ties keep the present plan. The search ends early at relative optimality gap `gap`. Same
    input, same output, on any machine.
    """
    points = _points(deployments)
    target = np.array([d.demand_rps * headroom for d in deployments])
    priority = np.array([d.priority for d in deployments])
    capacity = float(np.floor(usable_w * 1000.0 + 1e-4))
    served = _serve(points, target, priority, capacity, gap)
    if served is None:
        choice = points.start[:-1]
        value = bound = float((priority * np.minimum(points.rate[choice], target)).sum())
        plans = _plans(deployments, points, choice)
        return _allocation(deployments, points, choice, target, plans, value, bound, False)
    choice, value, bound = served
    if objective == "energy":
        needed = np.minimum(points.rate[choice], target)
        options = [points.option(d, int(point)) for d, point in enumerate(choice)]
        plans = least_energy.choose(deployments, options, needed, capacity, gap)
    else:
        choice = _spread(points, choice, target, priority, capacity, max(gap, _SPREAD_GAP))
        plans = _plans(deployments, points, choice)
    return _allocation(deployments, points, choice, target, plans, value, bound, True)


def _serve(
    points: _Points, target: Floats, priority: Floats, capacity: float, gap: float
) -> tuple[Ints, float, float] | None:
    """Point per deployment that serves most, its value and the bound; None if nothing fits."""
    # Beyond the first point that serves all demand a frontier only costs more.
    stop = np.array(
        [
            min(end, begin + int(np.searchsorted(points.rate[begin:end], rate)) + 1)
            for begin, end, rate in zip(points.start[:-1], points.start[1:], target, strict=True)
        ],
        dtype=np.int64,
    )
    index, start = _ranges(points.start[:-1], stop)
    owner = np.repeat(np.arange(len(target)), np.diff(start))
    value = np.minimum(points.rate[index], target[owner]) * priority[owner]
    best = float((target * priority).sum())
    solved = _solve(value, points.milliwatts[index], start, best, capacity, gap)
    if solved is None:
        return None
    choice = index[solved.choice]
    reached = float((np.minimum(points.rate[choice], target) * priority).sum())
    scale = best / _STEPS if best > 0 else 0.0
    return choice, reached, reached + (solved.bound - solved.value) * scale


def _spread(
    points: _Points, chosen: Ints, target: Floats, priority: Floats, capacity: float, gap: float
) -> Ints:
    """Points that turn the watts left over into capacity above demand, serving no less anywhere.

    The score of x times the demand is 1 - 1/x: the less headroom a deployment has, the more it
    gains, so that headroom is spread in proportion to demand and priority.
    """
    index, start = _ranges(chosen, points.start[1:])
    owner = np.repeat(np.arange(len(target)), np.diff(start))
    reference = np.maximum(target, _IDLE_SHARE * points.rate[points.start[1:] - 1])
    rate, base = points.rate[index], reference[owner]
    relative = np.divide(rate, base, out=np.zeros_like(rate), where=base > 0)
    score = np.minimum(relative, 1.0) + 1.0 - 1.0 / np.maximum(relative, 1.0)
    weight = priority * reference
    best = 2.0 * float(weight.sum())
    milliwatts = points.milliwatts[index]
    solved = _solve(score * weight[owner], milliwatts, start, best, capacity, gap)
    return chosen if solved is None else index[solved.choice]


def _solve(
    value: Floats, milliwatts: Floats, start: Ints, best: float, capacity: float, gap: float
) -> knapsack.Solution | None:
    """Knapsack over values of at most `best` in sum; choices index `value`."""
    steps = np.rint(value / best * _STEPS) if best > 0 else np.zeros_like(value)
    # Rounding can make neighbours equal: of those only the lightest may stay.
    first = np.ones(len(steps), dtype=bool)
    first[1:] = steps[1:] > steps[:-1]
    first[start[:-1]] = True
    kept = np.nonzero(first)[0]
    begins = np.searchsorted(kept, start)
    solved = knapsack.solve(steps[kept], milliwatts[kept], begins, capacity, gap=gap)
    if solved is None:
        return None
    return knapsack.Solution(
        kept[solved.choice], solved.value, solved.weight, solved.bound, solved.gap
    )


def _ranges(begin: Ints, end: Ints) -> tuple[Ints, Ints]:
    """List the indices of all ranges end to end, and where each range starts among them."""
    width = end - begin
    start = np.concatenate(([0], np.cumsum(width)))
    return np.repeat(begin - start[:-1], width) + np.arange(start[-1]), start


def _points(deployments: Sequence[DeploymentProblem]) -> _Points:
    """Frontier of every deployment; equal ones (sharing their tables) are computed once."""
    row_of: dict[tuple[object, ...], int] = {}
    unique: list[list[PoolProblem]] = []
    rows = []
    for deployment in deployments:
        pools = [deployment.pools[i] for i in role_order(deployment)]
        key = tuple(pool.key() for pool in pools)
        if key not in row_of:
            row_of[key] = len(unique)
            unique.append(pools)
        rows.append(row_of[key])
    solved: list[tuple[Frontiers, int] | None] = [None] * len(unique)
    for members in _batches(unique):
        frontiers = _deployment_frontiers([unique[i] for i in members])
        for row, i in enumerate(members):
            solved[i] = (frontiers, row)
    source = [found for found in (solved[row] for row in rows) if found is not None]
    rates = [frontiers.rate[row, : frontiers.count[row]] for frontiers, row in source]
    watts = [frontiers.milliwatts[row, : frontiers.count[row]] for frontiers, row in source]
    widths = [len(rate) for rate in rates]
    return _Points(
        rate=np.concatenate(rates),
        milliwatts=np.concatenate(watts),
        start=np.concatenate(([0], np.cumsum(widths))),
        source=source,
    )


def _batches(unique: Sequence[Sequence[PoolProblem]]) -> list[list[int]]:
    """Group deployments of one shape, so that each group is solved with one set of arrays."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, pools in enumerate(unique):
        shape = tuple((pool.role, len(pool.settings), _range_bits(pool)) for pool in pools)
        groups.setdefault(shape, []).append(i)
    batches = []
    for members in groups.values():
        width = max(len(pool.settings) << _range_bits(pool) for pool in unique[members[0]])
        rows = max(1, _BATCH // width)
        batches += [members[at : at + rows] for at in range(0, len(members), rows)]
    return batches


def _range_bits(pool: PoolProblem) -> int:
    """Pools whose replica ranges are of one order of magnitude are padded to one width."""
    low, high = pool.replica_range
    return (high - low).bit_length()


def _deployment_frontiers(batch: Sequence[Sequence[PoolProblem]]) -> Frontiers:
    """Frontiers of deployments of one shape; options are in role order."""
    by_role: dict[Role, Frontiers] = {}
    for column, pool in enumerate(batch[0]):
        single = frontier.pool_frontiers([pools[column] for pools in batch])
        role = pool.role
        by_role[role] = frontier.in_parallel(by_role[role], single) if role in by_role else single
    aggregated = by_role.pop(Role.AGGREGATED, None)
    paired = None
    for stage in by_role.values():
        paired = stage if paired is None else frontier.in_series(paired, stage)
    if paired is None or aggregated is None:
        only = aggregated if paired is None else paired
        assert only is not None  # a deployment has at least one pool
        return only
    return frontier.in_parallel(paired, aggregated)


def _plans(
    deployments: Sequence[DeploymentProblem], points: _Points, choice: Ints
) -> tuple[tuple[PoolPlan, ...], ...]:
    """Plans of the chosen points; a pool keeps its present plan where that is just as good."""
    plans = []
    for d, deployment in enumerate(deployments):
        order = role_order(deployment)
        options = points.option(d, int(choice[d]))
        own = list(deployment.pools)
        result = [pool.current for pool in own]
        for i, option in zip(order, options, strict=True):
            result[i] = option_plan(own[i], int(option))
        plans.append(tuple(result))
    return tuple(plans)


def _allocation(
    deployments: Sequence[DeploymentProblem],
    points: _Points,
    choice: Ints,
    target: Floats,
    plans: tuple[tuple[PoolPlan, ...], ...],
    value: float,
    bound: float,
    feasible: bool,
) -> Allocation:
    judged = [evaluate_deployment(d, chosen) for d, chosen in zip(deployments, plans, strict=True)]
    top = points.rate[points.start[1:] - 1]
    binding = []
    for (rate, _), wanted, most in zip(judged, target.tolist(), top.tolist(), strict=True):
        if not feasible:
            binding.append(Binding.FLOOR)
        elif rate >= wanted:
            binding.append(Binding.DEMAND)
        else:
            binding.append(Binding.GPUS if rate >= most else Binding.BUDGET)
    booked = [
        pool.booked_w(plan)
        for deployment, chosen in zip(deployments, plans, strict=True)
        for pool, plan in zip(deployment.pools, chosen, strict=True)
    ]
    return Allocation(
        plans=plans,
        rate_rps=tuple(rate for rate, _ in judged),
        booked_w=fsum(booked),
        draw_w=fsum(draw for _, draw in judged),
        value=value,
        bound=bound,
        gap=(bound - value) / bound if bound > value else 0.0,
        binding=tuple(binding),
        feasible=feasible,
    )


__all__ = [
    "Allocation",
    "Binding",
    "DeploymentProblem",
    "Evaluation",
    "Objective",
    "PoolProblem",
    "allocate",
    "evaluate",
]
