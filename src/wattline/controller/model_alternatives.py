"""Would another tensor-parallel size serve more per GPU? Advice only: replicas stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from wattline.controller.model_engines import Found, Member, found_of, requests_of
from wattline.controller.models_settings import AicSpec
from wattline.core.capacity import capacity
from wattline.core.engine import EngineModel
from wattline.core.errors import WattlineError
from wattline.core.fleet import Fleet, Setting, Slo
from wattline.core.mix import Mix
from wattline.drivers.aic import Request, Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """A pool with replicas of another size. speedup: its rate per GPU over that of today's size."""

    pool: str
    gpus_per_replica: int
    speedup: float


def best_alternatives(
    found: Found,
    members: Sequence[Member],
    fleet: Fleet,
    slo: Slo,
    mix: Mix,
    aic: AicSpec,
    ask: Callable[[list[Request]], list[Table] | None],
) -> tuple[Alternative, ...]:
    """The best other size of each pool, at the largest limit; pools without one are left out.

    A size that the library cannot estimate, or that does not fit the memory, is no alternative.
    """
    best = []
    for member, engine in zip(members, found.engines, strict=True):
        today = _rate_per_gpu(member, engine, fleet, slo, mix)
        options = []
        for size in aic.alternatives:
            other = _resized(member, size)
            if other is None:
                continue
            try:
                tables = ask(requests_of([other], aic, mix))
                if tables is None:
                    continue
                built = found_of([other], fleet, tables).engines[0]
            except WattlineError:
                continue
            rate = _rate_per_gpu(other, built, fleet, slo, mix)
            if today > 0.0:
                speedup = round(rate / today, 4)
                options.append(
                    Alternative(pool=member.pool.name, gpus_per_replica=size, speedup=speedup)
                )
        if options:
            best.append(max(options, key=lambda option: option.speedup))
    return tuple(best)


def _resized(member: Member, size: int) -> Member | None:
    """The pool with replicas of `size` GPUs; None for today's size, and where they do not fit."""
    if size == member.tp or member.pool.gpus % size:
        return None
    experts = None
    if member.moe is not None:
        experts = (1, size) if member.spec.expert_parallel else (size, 1)
    return replace(member, pool=replace(member.pool, gpus_per_replica=size), tp=size, moe=experts)


def _rate_per_gpu(member: Member, engine: EngineModel, fleet: Fleet, slo: Slo, mix: Mix) -> float:
    """Requests per second and GPU at the largest limit; 0 where the targets cannot be met."""
    replicas = max(1, member.pool.gpus // member.tp)
    largest = (Setting(fleet.product_of(member.pool).max_limit_w),)
    table = capacity(engine, member.pool.role, largest, mix, slo, servers=replicas)
    return table.rate_rps[0] / member.tp if table.relaxed == 1.0 else 0.0
