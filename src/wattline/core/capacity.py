"""Requests per second and watts of one replica under each setting of a pool, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from wattline.core.engine import EngineModel, ForwardPass
from wattline.core.errors import InputError
from wattline.core.fleet import Fleet, Role, Setting, Slo
from wattline.core.mix import Mix
from wattline.core.operating_point import operating_point
from wattline.core.point import LOADS, Limit, Margins, Point, interpolate, six_digits
from wattline.core.problem import path_rates_rps

# Targets that no setting meets are relaxed by the first of these factors that some setting meets.
_RELAXED = (1.0, 2.0, 4.0, 8.0, 16.0, 64.0)
_BEST_EFFORT = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """Capacity of one replica under each of a tuple of settings, as columns in their order.

    draw_w: mean watts per GPU at that rate; draw_curve_w: at the shares `LOADS` of it. idle_w: with
    the model loaded and nothing to do. relaxed: 1.0, or the factor by which the targets had to be
    relaxed because no setting meets them; rates then are a thousandth of those at the relaxed
    targets, so that such a replica gets watts after all that can meet their targets, but gets them.
    """

    rate_rps: tuple[float, ...]
    draw_w: tuple[float, ...]
    draw_curve_w: tuple[tuple[float, ...], ...]
    idle_w: float
    points: tuple[Point, ...]
    relaxed: float = 1.0

    def draw_at(self, index: int, rate_rps: float) -> float:
        """Mean watts per GPU when a replica under setting `index` carries `rate_rps`."""
        most = self.rate_rps[index]
        load = min(1.0, rate_rps / most) if most > 0.0 else 0.0
        return interpolate(LOADS, self.draw_curve_w[index], load)


@lru_cache(maxsize=4096)
def capacity(
    engine: EngineModel,
    role: Role,
    settings: tuple[Setting, ...],
    mix: Mix,
    slo: Slo,
    *,
    servers: int = 4,
    margins: Margins | None = None,
    derate: float = 1.0,
) -> Capacity:
    """Capacity of one replica of `role` under each setting.

    `servers` (at least 1) replicas share the queue: pooled, they wait less and may be fuller.
    `derate` is the speed left of a slowed GPU: less rate for the same watts. Remembered per
    arguments, so pass mixes that have been rounded (`rounded`).
    """
    bounds = Margins() if margins is None else margins
    points: list[Point] = []
    for relaxed in _RELAXED:
        targets = Slo(slo.ttft_s * relaxed, slo.itl_s * relaxed)
        points = []
        for setting in settings:

            def cost(work: ForwardPass, setting: Setting = setting) -> tuple[float, float]:
                """Seconds and watts of a pass under this setting."""
                spent = engine.cost(work, setting, derate)
                return spent.duration_s, spent.power_w

            points.append(operating_point(engine, role, cost, mix, targets, servers, bounds))
        if any(point.rate_rps > 0.0 for point in points):
            break
    worth = 1.0 if relaxed == 1.0 else _BEST_EFFORT
    return Capacity(
        rate_rps=tuple(six_digits(point.rate_rps * worth) for point in points),
        draw_w=tuple(point.draw_w for point in points),
        draw_curve_w=tuple(point.curve_w for point in points),
        idle_w=engine.idle_w,
        points=tuple(points),
        relaxed=relaxed,
    )


def rounded(mix: Mix, step: float = 0.05) -> Mix:
    """Mix on a grid of relative steps, so that small changes do not need new tables."""
    return Mix(
        _on_grid(mix.input_tokens, step),
        _on_grid(mix.output_tokens, step),
        round(round(mix.cached_fraction / 0.02) * 0.02, 4),
    )


def fleet_capacity_rps(
    fleet: Fleet,
    engines: Sequence[EngineModel],
    mixes: Sequence[Mix],
    margins: Margins | None = None,
) -> tuple[float, ...]:
    """Rate of each deployment (requests/s) with all of its GPUs serving at their largest limits.

    `engines` is per pool, `mixes` per deployment. A deployment without pools, or whose targets no
    replica meets, has rate 0.
    """
    rates = []
    for deployment, mix in zip(fleet.deployments, mixes, strict=True):
        sums: dict[Role, float] = {}
        for pool, engine in zip(fleet.pools, engines, strict=True):
            if pool.deployment != deployment.name:
                continue
            replicas = min(pool.max_replicas, pool.gpus // pool.gpus_per_replica)
            top = (Setting(fleet.product_of(pool).max_limit_w),)
            servers = max(1, replicas)
            table = capacity(
                engine, pool.role, top, mix, deployment.slo, servers=servers, margins=margins
            )
            rate = replicas * table.rate_rps[0] if table.relaxed == 1.0 else 0.0
            sums[pool.role] = sums.get(pool.role, 0.0) + rate
        rates.append(sum(path_rates_rps(sums)))
    return tuple(rates)


def _on_grid(value: float, step: float) -> float:
    if not value > 0.0:
        raise InputError("mix", value, "give token counts above 0")
    grid = 1.0
    while grid < value:
        grid *= 1.0 + step
    return six_digits(grid)


__all__ = [
    "LOADS",
    "Capacity",
    "Limit",
    "Margins",
    "Point",
    "capacity",
    "fleet_capacity_rps",
    "rounded",
]
