"""What the GPU table shows of every pool: its limit, its draw, whether it is whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wattline.core.engine import EngineModel
from wattline.core.fleet import Role
from wattline.core.snapshot import GpuTable, PoolView
from wattline.core.transition import Bools, Floats, GpuArrays, Ints

SAME_W = 1.0
"""Limits that differ by no more are one limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSight:
    """One pool as the GPU table shows it.

    limit_w and clock: of all serving GPUs, None where they differ or are not known. draw_w: mean
    over the serving GPUs whose draw is known, None if there is none; metered: their number.
    slowed: a serving GPU is slowed by heat or hardware, which no model knows of.
    """

    role: Role
    engine: EngineModel
    view: PoolView
    limit_w: float | None
    clock: float
    draw_w: float | None
    metered: int
    slowed: bool


def sights(
    gpus: GpuTable,
    arrays: GpuArrays,
    views: Sequence[PoolView],
    roles: Sequence[Role],
    engines: Sequence[EngineModel],
) -> list[PoolSight]:
    """Every pool of the fleet, in order."""
    count = len(views)
    ready, owner = arrays.ready, arrays.pool
    serving = np.bincount(owner[ready], minlength=count)
    reported = ready & ~arrays.silent
    known_limits = np.bincount(owner[reported], minlength=count)
    low_w, high_w = _bounds(arrays.enforced_w, owner, reported, count)
    slow_clock, fast_clock = _bounds(arrays.clock, owner, ready, count)
    slowest, _ = _bounds(arrays.derate, owner, ready, count)
    draw = np.array(gpus.draw_w, dtype=np.float64)
    known = ready & np.isfinite(draw)
    metered = np.bincount(owner[known], minlength=count)
    drawn = np.bincount(owner[known], weights=draw[known], minlength=count)
    found = []
    for pool, view in enumerate(views):
        alike = 0 < serving[pool] == known_limits[pool]
        alike = alike and high_w[pool] - low_w[pool] <= SAME_W
        alike = alike and slow_clock[pool] == fast_clock[pool]
        found.append(
            PoolSight(
                role=roles[pool],
                engine=engines[pool],
                view=view,
                limit_w=round(float(high_w[pool]), 3) if alike else None,
                clock=float(fast_clock[pool]) if alike else 1.0,
                draw_w=float(drawn[pool] / metered[pool]) if metered[pool] else None,
                metered=int(metered[pool]),
                slowed=bool(slowest[pool] < 1.0),
            )
        )
    return found


def _bounds(values: Floats, owner: Ints, among: Bools, count: int) -> tuple[Floats, Floats]:
    """Least and largest value per pool, of the GPUs `among`; infinite where there are none."""
    low, high = np.full(count, np.inf), np.full(count, -np.inf)
    np.minimum.at(low, owner[among], values[among])
    np.maximum.at(high, owner[among], values[among])
    return low, high
