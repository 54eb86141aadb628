"""Multiple-choice knapsack: one option per group, most value, weights within a capacity.

Method: the dual of the linear relaxation is solved exactly by cutting chords (each step finds the
vertex of the summed concave hull that lies farthest above a chord; Dantzig's greedy order without
building hulls; Sinha and Zoltners 1979, Dyer 1984). It gives the bound and a first solution; what
is left is filled greedily, then options whose Lagrangian loss exceeds the gap are removed (reduced
cost fixing) and the rest is merged group by group with dominated and hopeless states pruned
(Pisinger 1995), which proves the optimum when it ends within its limit of states.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from wattline.core.frontier import Floats, Ints


@dataclass(frozen=True, slots=True)
class Solution:
    """choice: index into the flat options, per group. gap is (bound - value) / |bound|."""

    choice: Ints
    value: float
    weight: float
    bound: float
    gap: float


@dataclass(frozen=True, slots=True)
class _Options:
    """Flat columns of options; group g owns start[g] to start[g + 1]."""

    value: Floats
    weight: Floats
    start: Ints

    @property
    def group(self) -> Ints:
        return np.repeat(np.arange(len(self.start) - 1), np.diff(self.start))


def solve(
    value: Floats,
    weight: Floats,
    start: Ints,
    capacity: float,
    *,
    gap: float = 0.0,
    most_states: int = 1_000_000,
) -> Solution | None:
    """Best choice of one option per group; None if even the lightest options weigh too much.

    value, weight: flat, integers in float64 of at most 2**42 in sum (so that sums are exact), both
    strictly ascending within a group. start: (groups + 1,) where each group begins. Stops early
    once the relative gap is at most `gap`; `most_states` bounds the work of the exact search.
    """
    options = _Options(value, weight, start)
    lightest, heaviest = start[:-1], start[1:] - 1
    if weight[lightest].sum() > capacity:
        return None
    if weight[heaviest].sum() <= capacity:
        return _solution(options, heaviest, float(value[heaviest].sum()))
    if len(lightest) == 1:
        best = np.searchsorted(weight, [capacity], side="right") - 1
        return _solution(options, best, float(value[best].sum()))
    price, choice, heavier, bound = _dual(options, capacity)
    choice = _fill_ties(options, choice, heavier, capacity)
    for _ in range(50):
        step = _best_upgrade(options, choice, capacity)
        if step is None:
            break
        choice[step[0]] = step[1]
    found = _solution(options, choice, bound)
    if found.gap <= gap:
        return found
    return _search(options, found, price, capacity, most_states)


def _solution(options: _Options, choice: Ints, bound: float) -> Solution:
    value = float(options.value[choice].sum())
    # Values are integers, so the optimum is at most the integer part of the bound; noise of its
    # floats is far below 0.01 for sums up to 2**42.
    bound = max(float(np.floor(bound + 0.01)), value)
    gap = (bound - value) / abs(bound) if bound != value else 0.0
    return Solution(choice, value, float(options.weight[choice].sum()), bound, gap)


def _dual(options: _Options, capacity: float) -> tuple[float, Ints, Ints, float]:
    """Price of weight at the dual's optimum, the choices on both sides of capacity, the bound."""
    value, weight, start = options.value, options.weight, options.start
    light, heavy = start[:-1].copy(), start[1:] - 1
    index = np.arange(len(value))
    while True:
        light_v, light_w = value[light].sum(), weight[light].sum()
        heavy_v, heavy_w = value[heavy].sum(), weight[heavy].sum()
        price = float((heavy_v - light_v) / (heavy_w - light_w))
        # Options between the two choices are all that a price between theirs can select.
        width = heavy - light + 1
        begin = np.cumsum(width) - width
        inside = np.repeat(light - begin, width) + index[: int(width.sum())]
        profit = value[inside] - price * weight[inside]
        best = np.maximum.reduceat(profit, begin)
        # Float noise of a profit is below one part in 1e15 of its terms.
        slack = 1e-12 * (np.abs(value[light]) + price * weight[heavy])
        if (best - np.maximum(profit[begin], profit[begin + width - 1]) <= slack).all():
            bound = light_v + price * (capacity - light_w)
            bound += float(np.maximum(best - profit[begin], 0.0).sum())
            return price, light, heavy, float(bound)
        at_best = np.where(profit >= np.repeat(best, width), inside, len(value))
        vertex = np.minimum.reduceat(at_best, begin)
        if weight[vertex].sum() <= capacity:
            light = vertex
        else:
            heavy = vertex


def _fill_ties(options: _Options, choice: Ints, heavier: Ints, capacity: float) -> Ints:
    """Move groups to their heavier option, biggest step first, while the capacity holds."""
    step = options.weight[heavier] - options.weight[choice]
    room = capacity - float(options.weight[choice].sum())
    choice = choice.copy()
    for group in np.argsort(-step, kind="stable"):
        if 0.0 < step[group] <= room:
            choice[group] = heavier[group]
            room -= float(step[group])
    return choice


def _best_upgrade(options: _Options, choice: Ints, capacity: float) -> tuple[int, int] | None:
    """Group and option of the single change that gains most within what is left."""
    room = capacity - options.weight[choice].sum()
    width = np.diff(options.start)
    gain = options.value - np.repeat(options.value[choice], width)
    fits = options.weight - np.repeat(options.weight[choice], width) <= room
    gain = np.where(fits, gain, 0.0)
    best = int(np.argmax(gain))
    if gain[best] <= 0.0:
        return None
    return int(np.searchsorted(options.start, best, side="right")) - 1, best


def _search(
    options: _Options, found: Solution, price: float, capacity: float, most_states: int
) -> Solution:
    """Prove or improve `found` by merging groups; returns it as it is when states run out."""
    profit = options.value - price * options.weight
    best = np.maximum.reduceat(profit, options.start[:-1])
    loss = np.repeat(best, np.diff(options.start)) - profit
    # A solution's value is the dual's bound - its losses - price x weight left, so better ones use
    # only options that lose less than what separates us from the bound.
    dual = float(best.sum()) + price * capacity
    allowed = dual - found.value - 0.99
    keep = np.nonzero(loss <= allowed)[0]
    group = options.group[keep]
    members = np.bincount(group, minlength=len(best))
    if (members == 0).any():
        return replace(found, bound=found.value, gap=0.0)
    alone = members[group] == 1
    choice = np.zeros(len(best), dtype=np.int64)
    choice[group[alone]] = keep[alone]
    fixed = members == 1
    open_groups = np.nonzero(~fixed)[0]
    options_left = np.split(keep[~alone], np.cumsum(members[open_groups])[:-1])
    merged = _merge(
        options,
        options_left if len(open_groups) else [],
        loss,
        allowed - float(loss[choice[fixed]].sum()),
        capacity - float(options.weight[choice[fixed]].sum()),
        most_states,
    )
    if merged is None:
        return found
    choice[open_groups] = merged
    value = float(options.value[choice].sum())
    if options.weight[choice].sum() > capacity or value <= found.value:
        return replace(found, bound=found.value, gap=0.0)
    return _solution(options, choice, value)


def _merge(
    options: _Options,
    kept: list[Ints],
    loss: Floats,
    allowed: float,
    room: float,
    most_states: int,
) -> Ints | None:
    """Most valuable choice of one of `kept` per group that weighs at most `room`.

    States that lose more than `allowed` are dropped; if none is left the lightest options are
    returned. None when more than `most_states` states would have to be looked at.
    """
    lightest = np.array([float(options.weight[members].min()) for members in kept])
    room_after = room - (lightest.sum() - np.cumsum(lightest))
    weight, value, lost = np.zeros(1), np.zeros(1), np.zeros(1)
    parents: list[tuple[Ints, Ints]] = []
    for g, members in enumerate(kept):
        most_states -= len(weight) * len(members)
        if most_states < 0:
            return None
        new_weight = (weight[:, None] + options.weight[members]).ravel()
        new_value = (value[:, None] + options.value[members]).ravel()
        new_lost = (lost[:, None] + loss[members]).ravel()
        order = np.lexsort((-new_value, new_weight))
        order = order[(new_weight[order] <= room_after[g]) & (new_lost[order] <= allowed)]
        if len(order) == 0:
            return np.array([members[0] for members in kept], dtype=np.int64)
        top = np.maximum.accumulate(new_value[order])
        rising = np.ones(len(order), dtype=bool)
        rising[1:] = new_value[order][1:] > top[:-1]
        order = order[rising]
        parents.append((order // len(members), members[order % len(members)]))
        weight, value, lost = new_weight[order], new_value[order], new_lost[order]
    state = len(value) - 1
    choice = np.empty(len(kept), dtype=np.int64)
    for g in range(len(kept) - 1, -1, -1):
        before, picked = parents[g]
        choice[g] = picked[state]
        state = int(before[state])
    return choice
