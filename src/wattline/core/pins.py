"""Caps that operators have pinned, as the settings that a plan may choose from.

A pinned pool is planned at its cap, so that the others get the watts that it leaves, or have to do
without those that it takes. Where the cap does not fit, all GPUs else at their lowest limits, the
pins are ceilings: the plan takes what it can get below them.
"""

from __future__ import annotations

from collections.abc import Sequence

from wattline.core.derive import Layout
from wattline.core.fleet import Setting
from wattline.core.snapshot import PoolView

Grid = tuple[Setting, ...]
_FITS_W = 1e-6


def pinned_grids(
    layout: Layout, views: Sequence[PoolView], due: Sequence[int], available_w: float
) -> tuple[Grid | None, ...]:
    """Per pool the settings that its pin leaves, None for a pool without; empty without any pin.

    A pin outside the limits of its GPUs is taken as the nearest limit. due: replicas per pool that
    are about to serve.
    """
    if all(view.pinned_w is None for view in views):
        return ()
    caps_w = [
        None
        if view.pinned_w is None
        else min(max(view.pinned_w, product.min_limit_w), product.max_limit_w)
        for view, product in zip(views, layout.products, strict=True)
    ]
    fits = _least_booking_w(layout, views, due, caps_w) <= available_w + _FITS_W
    return tuple(
        None if cap_w is None else _exactly(grid, cap_w) if fits else _at_most(grid, cap_w)
        for grid, cap_w in zip(layout.grids, caps_w, strict=True)
    )


def _exactly(grid: Grid, cap_w: float) -> Grid:
    """The cap itself, under every clock ceiling that is offered."""
    clocks = sorted({setting.clock for setting in grid}, reverse=True)
    return tuple(Setting(cap_w, clock) for clock in clocks)


def _at_most(grid: Grid, cap_w: float) -> Grid:
    """What is offered up to the cap; never empty, because every grid has the lowest limit."""
    return tuple(setting for setting in grid if setting.cap_w <= cap_w)


def _least_booking_w(
    layout: Layout,
    views: Sequence[PoolView],
    due: Sequence[int],
    caps_w: Sequence[float | None],
) -> float:
    """Watts that any plan books which keeps the pins: all else at its lowest limit."""
    total_w = 0.0
    for index, (view, more, cap_w) in enumerate(zip(views, due, caps_w, strict=True)):
        pool = layout.settings.fleet.pools[index]
        parked_w = float(layout.parked_w[index])
        total_w += pool.gpus * parked_w
        if cap_w is not None:
            floor = min(pool.min_replicas, layout.most_replicas[index])
            replicas = max(view.ready + more, floor)
            total_w += replicas * pool.gpus_per_replica * (cap_w - parked_w)
    return total_w
