"""Static splits of a budget between pools, for the sweeps in hindsight."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, product
from math import ceil, fsum

from wattline.core.fleet import Fleet
from wattline.core.snapshot import Budget
from wattline.sim.policies.common import fit_caps, limits_w, most_replicas, whole_watts

MAX_SPLITS = 100
"""Most splits of a fleet with more than two pools; the step widens to stay below it."""


def static_splits(fleet: Fleet, budget: Budget, step_w: float = 25.0) -> list[tuple[float, ...]]:
    """Caps per pool along sum of caps = budget - guard, with every replica on.

    One pool: one split. Two pools: from end to end of the line on which the budget is spent, in
    steps that move neither pool's cap by more than `step_w`. More pools: a grid over all but
    the last pool, which takes what is left; its step is widened until there are at most
    `MAX_SPLITS` splits (`widest_step_w` says what came out). Caps are whole watts inside the
    products' ranges; where the budget covers all largest limits, these are the only split.
    """
    limits = limits_w(fleet)
    serving = [most_replicas(pool) * pool.gpus_per_replica for pool in fleet.pools]
    usable_w = budget.usable_w - fsum(
        (pool.gpus - n) * low
        for pool, n, (low, _) in zip(fleet.pools, serving, limits, strict=True)
    )
    highest = tuple(high for _, high in limits)
    if fsum(n * high for n, high in zip(serving, highest, strict=True)) <= usable_w:
        return [highest]
    if (
        len(limits) == 1
        or fsum(n * lo for n, (lo, _) in zip(serving, limits, strict=True)) >= usable_w
    ):
        return [fit_caps(highest, serving, limits, usable_w)]
    if len(limits) == 2:
        return _line(serving, limits, usable_w, step_w)
    return _grid(serving, limits, usable_w, step_w)


def _remainder_w(caps: Sequence[float], serving: Sequence[int], usable_w: float) -> float:
    """Cap of the last pool when the others have `caps`."""
    spent_w = fsum(n * cap for n, cap in zip(serving[:-1], caps, strict=True))
    return (usable_w - spent_w) / serving[-1]


def _line(
    serving: Sequence[int], limits: Sequence[tuple[float, float]], usable_w: float, step_w: float
) -> list[tuple[float, ...]]:
    (low, high), (other_low, other_high) = limits
    start = max(low, (usable_w - serving[1] * other_high) / serving[0])
    end = min(high, (usable_w - serving[1] * other_low) / serving[0])
    ratio = serving[0] / serving[1]
    # Rounding down may add a watt to a step; a watt less in the step keeps the promise.
    count = max(1, ceil((end - start) * max(1.0, ratio) / max(1.0, step_w - 1.0)))
    splits = []
    for index in range(count + 1):
        first = whole_watts(start + (end - start) * index / count, low)
        second = min(other_high, _remainder_w([first], serving, usable_w))
        splits.append((first, whole_watts(second, other_low)))
    return list(dict.fromkeys(splits))


def _grid(
    serving: Sequence[int], limits: Sequence[tuple[float, float]], usable_w: float, step_w: float
) -> list[tuple[float, ...]]:
    widest = max(high - low for low, high in limits[:-1])
    points = ceil(widest / step_w) + 1
    while True:
        splits = _grid_of(serving, limits, usable_w, points)
        if len(splits) <= MAX_SPLITS or points <= 2:
            return splits
        points -= 1


def _grid_of(
    serving: Sequence[int], limits: Sequence[tuple[float, float]], usable_w: float, points: int
) -> list[tuple[float, ...]]:
    """List splits with `points` caps per pool; the last pool may leave watts unspent."""
    axes = [
        [whole_watts(low + (high - low) * k / (points - 1), low) for k in range(points)]
        for low, high in limits[:-1]
    ]
    low, high = limits[-1]
    splits = []
    for caps in product(*axes):
        last = _remainder_w(caps, serving, usable_w)
        if last >= low:
            splits.append((*caps, whole_watts(min(last, high), low)))
    return splits


def widest_step_w(splits: Sequence[tuple[float, ...]]) -> float:
    """Largest distance between neighbouring caps of one pool over all splits."""
    widest = 0.0
    for caps in zip(*splits, strict=True):
        levels = sorted(set(caps))
        widest = max([widest, *(b - a for a, b in pairwise(levels))])
    return widest
