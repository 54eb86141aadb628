"""Requests per second and watts of one replica under each setting of a pool, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from wattline.core.engine import EngineModel, ForwardPass
from wattline.core.errors import InputError
from wattline.core.fleet import Fleet, Role, Setting, Slo
from wattline.core.mix import Mix
from wattline.core.operating_point import (
    LOADS,
    Limit,
    Margins,
    Point,
    interpolate,
    operating_point,
    six_digits,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """Capacity of one replica under each of a tuple of settings, as columns in their order.

    draw_w: mean watts per GPU at that rate; draw_curve_w: at the shares `LOADS` of it. idle_w: with
    the model loaded and nothing to do.
    """

    rate_rps: tuple[float, ...]
    draw_w: tuple[float, ...]
    draw_curve_w: tuple[tuple[float, ...], ...]
    idle_w: float
    points: tuple[Point, ...]

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

    `servers` is how many replicas share the queue: pooled, they wait less and may be fuller.
    `derate` is the speed left of a slowed GPU: less rate for the same watts. Remembered per
    arguments, so pass mixes that have been rounded (`rounded`).
    """
    bounds = Margins() if margins is None else margins
    points = []
    for setting in settings:

        def cost(work: ForwardPass, setting: Setting = setting) -> tuple[float, float]:
            """Seconds and watts of a pass under this setting."""
            spent = engine.cost(work, setting, derate)
            return spent.duration_s, spent.power_w

        points.append(operating_point(engine, role, cost, mix, slo, max(1, servers), bounds))
    return Capacity(
        rate_rps=tuple(point.rate_rps for point in points),
        draw_w=tuple(point.draw_w for point in points),
        draw_curve_w=tuple(point.curve_w for point in points),
        idle_w=engine.idle_w,
        points=tuple(points),
    )


def rounded(mix: Mix, step: float = 0.05) -> Mix:
    """Mix on a grid of relative steps, so that small changes do not need new tables."""
    return Mix(
        _on_grid(mix.input_tokens, step),
        _on_grid(mix.output_tokens, step),
        round(round(mix.cached_fraction / 0.02) * 0.02, 4),
    )


def fleet_capacity_rps(
    fleet: Fleet, engines: Sequence[EngineModel], mixes: Sequence[Mix]
) -> tuple[float, ...]:
    """Rate of each deployment (requests/s) with all of its GPUs serving at their largest limits.

    `engines` is per pool, `mixes` per deployment; a deployment without pools has rate 0.
    """
    rates = []
    for deployment, mix in zip(fleet.deployments, mixes, strict=True):
        sums: dict[Role, float] = {}
        for pool, engine in zip(fleet.pools, engines, strict=True):
            if pool.deployment != deployment.name:
                continue
            replicas = min(pool.max_replicas, pool.gpus // pool.gpus_per_replica)
            top = (Setting(fleet.product_of(pool).max_limit_w),)
            table = capacity(engine, pool.role, top, mix, deployment.slo, servers=replicas)
            sums[pool.role] = sums.get(pool.role, 0.0) + replicas * table.rate_rps[0]
        stages = [sums[role] for role in (Role.PREFILL, Role.DECODE) if role in sums]
        rates.append(min(stages, default=0.0) + sums.get(Role.AGGREGATED, 0.0))
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
