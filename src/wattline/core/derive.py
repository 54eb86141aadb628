"""From a snapshot to the allocation problem: rates and watts of every pool under every setting.

A `Layout` is what settings imply for ever: which pools form a deployment, which settings a pool may
choose from. It also remembers derived tables, because demand in force seldom changes; what is
remembered never changes an outcome.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import fsum, isfinite

import numpy as np

from wattline.core.capacity import Capacity, Margins, capacity
from wattline.core.decision import PoolPlan
from wattline.core.demand import Demand
from wattline.core.engine import EngineModel, ForwardPass
from wattline.core.fleet import GpuProduct, Role, Setting, Slo
from wattline.core.problem import DeploymentProblem, PoolProblem
from wattline.core.settings import Settings
from wattline.core.snapshot import PoolView
from wattline.core.starts import without_those_due
from wattline.core.transition import Floats, GpuArrays

# Clock ceilings offered when joules are to be saved, as fractions of the maximum clock. Below about
# half of it, static power outweighs what a slower clock saves.
_ENERGY_CLOCKS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
# Margins when joules are saved: nothing else leaves room for chance then, so that 99 in 100
# requests have to fit, where a fleet that is short of watts plans for 90: 2.3 standard deviations
# of the batch, times 1.3 because contexts spread as well. The rate is taken two standard errors
# above what is seen.
_SAVING = Margins(ttft_quantile=0.99, batch_deviations=3.0)
_SAVING_ERRORS = 2.0
# Prompt tokens, in means, that must be computed within this share of the TTFT target when joules
# are saved: a long prompt behind another one. 19 in 20 are shorter than three means when lengths
# spread as wide as their mean (exponential: ln 20).
_LONG_PROMPTS = 6.0
_TTFT_SHARE = 0.95
# Caps under a clock ceiling are so many steps apart.
_COARSE = 4.0
_TABLES = 4096
Draws = tuple[tuple[float, ...], tuple[tuple[float, ...], ...]]
"""Watts per GPU under each setting: at the full rate, and as curves over the load."""

# A backlog never makes a pool look slower than this share of its rate.
_LEAST_SHARE = 0.2


class Layout:
    """What `settings` imply for every tick.

    `besides`: settings per pool that are judged beside those that the decision offers. `only`: per
    pool the settings that it may choose from instead, None for a pool that is free; empty: all are.
    """

    def __init__(
        self,
        settings: Settings,
        besides: Sequence[frozenset[Setting]] | None = None,
        only: tuple[tuple[Setting, ...] | None, ...] = (),
    ) -> None:
        self.settings = settings
        self.only = only
        fleet = settings.fleet
        names = {deployment.name: index for index, deployment in enumerate(fleet.deployments)}
        self.deployment_of = tuple(names[pool.deployment] for pool in fleet.pools)
        members: list[list[int]] = [[] for _ in fleet.deployments]
        for index, deployment in enumerate(self.deployment_of):
            members[deployment].append(index)
        self.pools_of = tuple(tuple(pools) for pools in members)
        products = {product.name: product for product in fleet.products}
        self.products = tuple(products[pool.gpu] for pool in fleet.pools)
        grids = {name: _grid(product, settings) for name, product in products.items()}
        self.grids = tuple(grids[pool.gpu] for pool in fleet.pools)
        if besides is not None:
            self.grids = tuple(
                (*grid, *sorted(extra.difference(grid), key=lambda s: (s.cap_w, s.clock)))
                for grid, extra in zip(self.grids, besides, strict=True)
            )
        if only:
            self.grids = tuple(own or grid for grid, own in zip(self.grids, only, strict=True))
        self.parked_w: Floats = np.array([product.min_limit_w for product in self.products])
        self.gpus_per_replica = tuple(pool.gpus_per_replica for pool in fleet.pools)
        self.most_replicas = tuple(
            min(pool.max_replicas, pool.gpus // pool.gpus_per_replica) for pool in fleet.pools
        )
        self.horizon_s = tuple(
            settings.replica_interval_s + max(fleet.pools[pool].startup_s for pool in pools)
            for pools in self.pools_of
        )
        kinds: dict[object, int] = {}
        self._kind = tuple(
            kinds.setdefault((engine, pool.role, pool.gpu, own), len(kinds))
            for engine, pool, own in zip(
                settings.engines, fleet.pools, only or (None,) * len(fleet.pools), strict=True
            )
        )
        self._tables: dict[tuple[object, ...], Capacity] = {}
        self._rates: dict[tuple[object, ...], tuple[float, ...]] = {}
        self._least: dict[tuple[int, int], tuple[tuple[float, ...], ...]] = {}
        self._draws: dict[tuple[int, float], tuple[Draws, Capacity]] = {}

    def slo(self, pool: int) -> Slo:
        """Targets of the pool's deployment."""
        return self.settings.fleet.deployments[self.deployment_of[pool]].slo

    def table(
        self, pool: int, demand: Demand, servers: int, derate: float = 1.0, slo: Slo | None = None
    ) -> Capacity:
        """Rates and draws of one replica of `pool` under each setting of its grid.

        `servers` replicas share a queue; `derate` is the speed left of a slowed one; `slo` are
        targets other than the deployment's.
        """
        slo = self.slo(pool) if slo is None else slo
        key = (self._kind[pool], demand.mix, demand.output_cv2, slo, servers, derate)
        found = self._tables.get(key)
        if found is None:
            if len(self._tables) >= max(_TABLES, 2 * len(self.grids)):
                self._tables.clear()
                self._rates.clear()
                self._least.clear()
                self._draws.clear()
            margins = _SAVING if self.settings.objective == "energy" else Margins()
            if demand.output_cv2 is not None:
                margins = replace(margins, output_cv2=demand.output_cv2)
            found = self._tables[key] = capacity(
                self.settings.engines[pool],
                self.settings.fleet.pools[pool].role,
                self.grids[pool],
                demand.mix,
                slo,
                servers=servers,
                margins=margins,
                derate=derate,
            )
        return found

    def rates_rps(
        self,
        pool: int,
        demand: Demand,
        servers: int,
        healthy: Capacity,
        speeds: tuple[float, ...],
        share: float,
        slo: Slo | None = None,
    ) -> tuple[float, ...]:
        """Mean rate of a replica per setting, times `share`; equal calls share one tuple.

        `healthy` is the pool's table for the targets `slo`; `speeds` holds the speed of every
        serving replica, and is empty when all are healthy.
        """
        prompts = self.settings.fleet.pools[pool].role is not Role.DECODE
        saving = prompts and self.settings.objective == "energy"
        if not speeds and share == 1.0 and not saving:
            return healthy.rate_rps
        key = (id(healthy), speeds, share)
        found = self._rates.get(key)
        if found is None:
            tables = [self.table(pool, demand, servers, speed, slo) for speed in speeds]
            tables = tables or [healthy]
            columns = zip(*(table.rate_rps for table in tables), strict=True)
            found = tuple(round(share * fsum(column) / len(tables), 9) for column in columns)
            if saving:
                fast = self._fast_enough(pool, demand)
                found = tuple(rate if ok else 0.0 for rate, ok in zip(found, fast, strict=True))
            self._rates[key] = found
        return found

    def corrected(
        self,
        pool: int,
        demand: Demand,
        servers: int,
        speeds: tuple[float, ...],
        share: float,
    ) -> tuple[tuple[float, ...], Capacity]:
        """Rates per setting on which a plan may stand, and the table they come from.

        A replica that is c times slower than its model meets a target where the model meets a c-th
        of it, at a c-th of the rate. Decode is also corrected by what its target was missed by
        (`core.correction`); of the two corrections the one that leaves less governs.
        """
        decode = self.settings.fleet.pools[pool].role is Role.DECODE
        plain = self.table(pool, demand, servers)
        own = 1.0 / demand.itl_factor if decode else share
        rates = self.rates_rps(pool, demand, servers, plain, speeds, own)
        factors = demand.factors_of(self.settings.fleet.pools[pool].role)
        slower = max(factors.ttft, factors.itl)
        if slower == 1.0:
            return rates, plain
        target = self.slo(pool)
        slo: Slo | None = Slo(target.ttft_s / factors.ttft, target.itl_s / factors.itl)
        table = self.table(pool, demand, servers, slo=slo)
        if table.relaxed > plain.relaxed:
            # No setting meets such a target: a lower rate says so better than next to none.
            table, slo = plain, None
        left = (1.0 if decode else share) / slower
        tight = self.rates_rps(pool, demand, servers, table, speeds, left, slo)
        key = (id(rates), id(tight))
        memo = self._least.get(key)
        if memo is None:
            # With what the key names, so that no other tuple can come to have its identity.
            memo = self._least[key] = (tuple(map(min, rates, tight)), rates, tight)
        return memo[0], table

    def draws(self, pool: int, table: Capacity, factor: float) -> Draws:
        """Watts per GPU of `table`, at its rates and as curves, `factor` times the model's.

        For what energy is expected to be spent, never for what is booked: no GPU draws more than
        its limit for long, whatever a model says.
        """
        if factor == 1.0:
            return table.draw_w, table.draw_curve_w
        key = (id(table), factor)
        memo = self._draws.get(key)
        if memo is None:
            most = [setting.cap_w for setting in self.grids[pool]]
            full = zip(table.draw_w, most, strict=True)
            curves = zip(table.draw_curve_w, most, strict=True)
            drawn = (
                tuple(_hungrier(watts, factor, cap_w) for watts, cap_w in full),
                tuple(tuple(_hungrier(w, factor, cap_w) for w in curve) for curve, cap_w in curves),
            )
            memo = self._draws[key] = (drawn, table)
        return memo[0]

    def _fast_enough(self, pool: int, demand: Demand) -> list[bool]:
        """Per setting: whether a long prompt behind another meets the TTFT target.

        Capacities are of mean prompts. Where demand is low, nothing else would keep the fewest
        joules from being those of a pool on which every long prompt comes late. If no setting is
        fast enough, the fastest ones are. The model is taken at its word here: this is all or
        nothing, and a correction must not leave a pool without any setting that fits its watts.
        """
        slo = self.slo(pool)
        engine, grid = self.settings.engines[pool], self.grids[pool]
        left_s = _TTFT_SHARE * slo.ttft_s - slo.itl_s
        tokens = max(1, round(_LONG_PROMPTS / 2.0 * demand.mix.computed_tokens))
        seconds = [round(2.0 * _prompt_s(engine, tokens, setting), 6) for setting in grid]
        return [taken_s <= max(left_s, 1.02 * min(seconds)) for taken_s in seconds]


def _grid(product: GpuProduct, settings: Settings) -> tuple[Setting, ...]:
    """List the settings that GPUs of `product` may get: caps by clock ceilings."""
    offered = settings.clock_steps
    if offered is None:
        offered = _ENERGY_CLOCKS if settings.objective == "energy" else (1.0,)
    lowest = 0.0
    if product.min_clock_mhz is not None and product.max_clock_mhz:
        lowest = product.min_clock_mhz / product.max_clock_mhz
    clocks = [clock for clock in offered if clock >= lowest] or [1.0]
    # Under a clock ceiling the cap is but a guarantee, for which coarse steps do.
    return tuple(
        Setting(cap_w, clock)
        for clock in clocks
        for cap_w in _caps(product, settings.cap_step_w * (1.0 if clock == 1.0 else _COARSE))
    )


def _caps(product: GpuProduct, step_w: float) -> list[float]:
    """List power limits from the lowest to the largest, `step_w` apart, both ends included."""
    low, high = product.min_limit_w, product.max_limit_w
    caps = [round(low + step * step_w, 3) for step in range(int((high - low) / step_w + 1e-9) + 1)]
    return caps if high - caps[-1] < 1e-6 else [*caps, high]


def _hungrier(watts: float, factor: float, cap_w: float) -> float:
    return round(min(factor * watts, max(cap_w, watts)), 3)


def _prompt_s(engine: EngineModel, tokens: int, setting: Setting) -> float:
    """Seconds to compute a prompt that comes alone, in passes as large as they may be."""
    seconds, done = 0.0, 0
    while done < tokens:
        chunk = min(tokens - done, engine.max_batched_tokens)
        work = ForwardPass(prefill_tokens=chunk, prefill_context=chunk * (done + 0.5 * chunk))
        seconds += engine.cost(work, setting).duration_s
        done += chunk
    return seconds


def replica_speeds(gpus: GpuArrays, pools: int) -> tuple[tuple[float, ...], ...]:
    """Per pool: speed of the slowest GPU of every serving replica; empty if all are healthy.

    A replica runs at the pace of its slowest GPU, so a derated one takes capacity, not watts.
    """
    healthy: tuple[tuple[float, ...], ...] = ((),) * pools
    serving = np.flatnonzero(gpus.ready)
    if not serving.size or not np.any(gpus.derate[serving] < 1.0):
        return healthy
    order = serving[np.lexsort((gpus.replica[serving], gpus.pool[serving]))]
    pool, replica = gpus.pool[order], gpus.replica[order]
    new = (pool[1:] != pool[:-1]) | (replica[1:] != replica[:-1])
    starts = np.concatenate([[0], np.flatnonzero(new) + 1])
    slowest = np.clip(np.round(np.minimum.reduceat(gpus.derate[order], starts), 2), 0.05, 1.0)
    speeds: list[list[float]] = [[] for _ in range(pools)]
    for owner, speed in zip(pool[starts].tolist(), slowest.tolist(), strict=True):
        speeds[owner].append(speed)
    return tuple(tuple(sorted(own)) if own and min(own) < 1.0 else () for own in speeds)


def backlog_rps(
    layout: Layout, deployment: int, demand: Demand, views: Sequence[PoolView]
) -> float:
    """Say by how many requests/s prefill has to beat demand to work its backlog off in time.

    Prompt tokens up to what the pools compute within the TTFT target are no backlog.
    """
    settings = layout.settings
    prompts = [
        pool
        for pool in layout.pools_of[deployment]
        if settings.fleet.pools[pool].role is not Role.DECODE
    ]
    tokens = [views[pool].queued_prefill_tokens for pool in prompts]
    queued = sum(count for count in tokens if count is not None and isfinite(count))
    if queued <= 0.0:
        return 0.0
    most = 0.0
    for pool in prompts:
        ready = views[pool].ready
        slower = demand.factors_of(settings.fleet.pools[pool].role).ttft
        rate = max(layout.table(pool, demand, max(1, ready)).rate_rps) / slower
        slo = settings.fleet.deployments[deployment].slo
        most += ready * rate * demand.mix.computed_tokens * slo.ttft_s
    excess = queued - most
    if excess <= 0.0:
        return 0.0
    return excess / max(1.0, demand.mix.computed_tokens) / settings.drain_s


def _whole_percents(value: float) -> float:
    """`value` to two significant digits: fewer distinct problems."""
    return float(f"{value:.2g}")


def held_rps(running: float | None, demand: Demand, itl_s: float) -> float:
    """Requests/s that a decode pool must be able to serve for what it holds now to be in time.

    By Little's law: its running sequences, at the target's pace.
    """
    if running is None or not isfinite(running):
        return 0.0
    return running / (demand.mix.output_tokens * itl_s)


def with_hold(rates_rps: tuple[float, ...], least_rps: float) -> tuple[float, ...]:
    """Rates, those below `least_rps` marked down by the square of what they lack.

    A setting that is too slow for the batch in flight makes all of its answers late until the batch
    has shrunk, so it is worth less than the rate that it would serve in the long run.
    """
    if least_rps <= min(rates_rps):
        return rates_rps
    return tuple(
        rate if rate >= least_rps else round(rate * (rate / least_rps) ** 2, 6)
        for rate in rates_rps
    )


def problem(
    layout: Layout,
    deployment: int,
    demand: Demand,
    present: Sequence[PoolPlan],
    views: Sequence[PoolView],
    speeds: Sequence[tuple[float, ...]],
    due: Sequence[int],
    *,
    replicas_too: bool,
) -> DeploymentProblem:
    """Allocation problem of one deployment.

    `present`, `views` and `due` (replicas about to serve) are per pool of the fleet. With
    `replicas_too` the replicas may change between floor and ceiling and the demand is the one
    ahead; otherwise they are those that serve or are due.
    """
    fleet = layout.settings.fleet
    rate_rps = demand.ahead_rps if replicas_too else demand.rate_rps
    if layout.settings.objective == "energy":
        rate_rps = round(rate_rps * (1.0 + _SAVING_ERRORS * demand.error), 6)
    backlog = backlog_rps(layout, deployment, demand, views)
    # A backlog is planned for as prompts that take longer, so that decode is not asked for more.
    pressure = round(rate_rps / (rate_rps + backlog), 1) if backlog > 0.0 else 1.0
    pools = []
    for index in layout.pools_of[deployment]:
        pool, ready, most = fleet.pools[index], views[index].ready, layout.most_replicas[index]
        servers = max(1, ready)
        share = max(_LEAST_SHARE, pressure)
        rates, table = layout.corrected(index, demand, servers, speeds[index], share)
        draw_w, curve_w = layout.draws(index, table, demand.factors_of(pool.role).power)
        if pool.role is Role.DECODE and not replicas_too:
            itl_s = fleet.deployments[deployment].slo.itl_s
            held = held_rps(views[index].running, demand, itl_s)
            rates = with_hold(rates, _whole_percents(held / servers))
        if layout.settings.objective == "energy" and not replicas_too:
            # Or those that serve would give up watts for a capacity that is not there yet.
            rates = without_those_due(rates, ready, due[index])
        pools.append(
            PoolProblem(
                role=pool.role,
                gpus=pool.gpus,
                gpus_per_replica=pool.gpus_per_replica,
                parked_w=float(layout.parked_w[index]),
                min_replicas=min(pool.min_replicas, most),
                max_replicas=most,
                settings=layout.grids[index],
                rate_rps=rates,
                draw_w=draw_w,
                idle_w=table.idle_w,
                current=present[index],
                fixed_replicas=None
                if replicas_too
                else min(ready + due[index], pool.gpus // pool.gpus_per_replica),
                draw_curve_w=curve_w,
            )
        )
    return DeploymentProblem(
        priority=fleet.deployments[deployment].priority, demand_rps=rate_rps, pools=tuple(pools)
    )
