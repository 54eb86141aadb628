"""Collects what a report draws of one run, tick by tick, and thins it out at the end."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil

import numpy as np
from numpy.typing import NDArray

from wattline.core.fleet import Fleet
from wattline.sim.plant.outcomes import COMPLETED, REJECTED, Totals
from wattline.sim.result import DeploymentSeries, PoolSeries, RunEvent, RunSeries

MOST_STEPS = 1500

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class TickPower:
    """Watts over one tick: budget and bookings at its start, means of limits and draw."""

    budget_w: float
    booked_w: float
    enforced_w: float
    draw_w: float
    draw_peak_1s_w: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TickPool:
    """One pool over one tick."""

    cap_w: float
    draw_w: float
    enforced_w: float
    ready: int
    starting: int
    queue_tokens: float


@dataclass(slots=True)
class SeriesBuilder:
    """Takes ticks of `tick_s` in and gives a `RunSeries` of at most `MOST_STEPS` steps."""

    fleet: Fleet
    tick_s: float
    events: list[RunEvent] = field(default_factory=list)
    _power: list[tuple[float, ...]] = field(default_factory=list)
    _pools: list[tuple[float, ...]] = field(default_factory=list)

    def add(self, power: TickPower, pools: Sequence[TickPool]) -> None:
        """Take one tick in."""
        self._power.append(
            (power.budget_w, power.booked_w, power.enforced_w, power.draw_w, power.draw_peak_1s_w)
        )
        row: list[float] = []
        for pool in pools:
            row += (
                pool.cap_w,
                pool.draw_w,
                pool.enforced_w,
                pool.ready,
                pool.starting,
                pool.queue_tokens,
            )
        self._pools.append(tuple(row))

    def finish(self, totals: Totals) -> RunSeries:
        """Thin out, and place every request's outcome on the time axis."""
        ticks = len(self._power)
        group = max(1, ceil(ticks / MOST_STEPS))
        steps = ceil(ticks / group)
        starts = np.arange(0, ticks, group)
        step_s = self.tick_s * group
        power = np.asarray(self._power)
        pools = np.asarray(self._pools)
        means = _grouped_mean(power, starts)
        # Of each group the tick on which least was left of the budget, so that thinning can neither
        # hide a crossing nor draw one that never was.
        over_w = power[:, 2] - power[:, 0]
        tightest = [
            first + int(np.argmax(over_w[first : first + group])) for first in starts.tolist()
        ]
        pool_means = _grouped_mean(pools, starts)
        return RunSeries(
            step_s=step_s,
            time_s=[round(step * step_s, 6) for step in range(steps)],
            budget_w=_watts(power[tightest, 0]),
            booked_w=_watts(power[tightest, 1]),
            enforced_w=_watts(power[tightest, 2]),
            draw_w=_watts(means[:, 3]),
            draw_peak_1s_w=_watts(np.maximum.reduceat(power[:, 4], starts)),
            pools=[
                PoolSeries(
                    name=pool.name,
                    role=pool.role.value,
                    deployment=pool.deployment,
                    cap_w=_watts(pool_means[:, 6 * index]),
                    draw_w=_watts(pool_means[:, 6 * index + 1]),
                    enforced_w=_watts(pool_means[:, 6 * index + 2]),
                    ready=[int(n) for n in pools[starts, 6 * index + 3]],
                    starting=[int(n) for n in pools[starts, 6 * index + 4]],
                    queue_tokens=_watts(pool_means[:, 6 * index + 5]),
                )
                for index, pool in enumerate(self.fleet.pools)
            ],
            deployments=[
                self._deployment(index, totals, steps, step_s)
                for index in range(len(self.fleet.deployments))
            ],
            events=sorted(self.events, key=lambda event: event.time_s),
        )

    def _deployment(
        self, index: int, totals: Totals, steps: int, step_s: float
    ) -> DeploymentSeries:
        deployment = self.fleet.deployments[index]
        slo = deployment.slo
        mine = totals.deployment == index
        done = mine & (totals.status == COMPLETED)
        good = done & meets(totals, slo.ttft_s, slo.itl_s)
        offered = _counts(totals.arrival_s[mine], steps, step_s)
        rejected = _counts(totals.arrival_s[mine & (totals.status == REJECTED)], steps, step_s)
        # A good request counts where it arrived, so that offered and good can be compared.
        goodput = _counts(totals.arrival_s[good], steps, step_s)
        ended = totals.finished_s[done]
        ttft = _grouped_percentiles(ended, totals.ttft_s[done], steps, step_s)
        itl = _grouped_percentiles(ended, totals.itl_s[done], steps, step_s)
        return DeploymentSeries(
            name=deployment.name,
            ttft_target_s=slo.ttft_s,
            itl_target_s=slo.itl_s,
            offered_rps=_rates(offered, step_s),
            goodput_rps=_rates(goodput, step_s),
            rejected_rps=_rates(rejected, step_s),
            ttft_p50_s=ttft[0],
            ttft_p99_s=ttft[1],
            itl_p50_s=itl[0],
            itl_p99_s=itl[1],
        )


def meets(totals: Totals, ttft_s: float, itl_s: float) -> NDArray[np.bool_]:
    """Requests within both targets; a request of one token has no ITL and meets that target."""
    itl = np.where(np.isnan(totals.itl_s), 0.0, totals.itl_s)
    with np.errstate(invalid="ignore"):
        return (totals.ttft_s <= ttft_s) & (itl <= itl_s)


def _grouped_mean(table: Floats, starts: NDArray[np.intp]) -> Floats:
    sums = np.add.reduceat(table, starts, axis=0)
    sizes = np.diff(np.append(starts, len(table)))
    means: Floats = sums / sizes[:, None]
    return means


def _watts(column: Floats) -> list[float]:
    return [float(value) for value in np.round(column, 1)]


def _counts(times_s: Floats, steps: int, step_s: float) -> Floats:
    places = np.minimum((times_s / step_s).astype(np.intp), steps - 1)
    return np.bincount(places, minlength=steps).astype(np.float64)


def _rates(counts: Floats, step_s: float) -> list[float]:
    return [float(value) for value in np.round(counts / step_s, 3)]


def _grouped_percentiles(
    times_s: Floats, values: Floats, steps: int, step_s: float
) -> tuple[list[float | None], list[float | None]]:
    """Median and 99th percentile of `values` per step; None for steps without any."""
    known = ~np.isnan(values)
    times_s, values = times_s[known], values[known]
    places = np.minimum((times_s / step_s).astype(np.intp), steps - 1)
    order = np.argsort(places, kind="stable")
    places, values = places[order], values[order]
    edges = np.searchsorted(places, np.arange(steps + 1))
    p50: list[float | None] = []
    p99: list[float | None] = []
    for first, last in itertools.pairwise(edges):
        if first == last:
            p50.append(None)
            p99.append(None)
        else:
            low, high = np.percentile(values[first:last], (50.0, 99.0))
            p50.append(round(float(low), 6))
            p99.append(round(float(high), 6))
    return p50, p99
