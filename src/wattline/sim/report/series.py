"""Time series made small enough to travel inside a page, without hiding a peak.

Thinning keeps what a reader looks for: of each bucket of steps the one in which the fleet stood
closest to (or farthest above) its budget gives booked, enforced and budget watts, caps and replica
counts, all of the same instant; draw, rates and queues are means; peaks and 99th percentiles are
the largest of the bucket.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from wattline.sim.result import DeploymentSeries, PoolSeries, Run, RunEvent, RunSeries

MAX_VALUES = 900_000
"""Most numbers of all runs together: about 3 MB of text."""

MIN_POINTS, MAX_POINTS = 150, 1_500
MAX_EVENTS = 240
"""Most events of one run that are drawn; plan changes are thinned first."""

_STEP = {"w": 1.0, "cap": 1.0, "s": 0.001, "itl": 0.0001, "rps": 0.01, "tokens": 10.0, "count": 1.0}

Packed = dict[str, Any]
Column = Sequence[float | None]


def pack(values: Column, step: float) -> Packed:
    """Whole multiples of `step` as differences: `{"s": step, "d": [...]}`.

    In `d` a number is the difference to the value before, null a missing value, and `[n]` stands
    for n repetitions of the entry before it.
    """
    deltas: list[Any] = []
    previous = 0
    repeats = 0
    last: int | None = None
    for position, value in enumerate(values):
        number = None if value is None else round(value / step)
        if position and number == last:
            repeats += 1
            continue
        if repeats:
            deltas.append([repeats])
            repeats = 0
        deltas.append(None if number is None else number - previous)
        previous = previous if number is None else number
        last = number
    if repeats:
        deltas.append([repeats])
    return {"s": step, "d": deltas}


def points_per_run(runs: Sequence[Run]) -> int:
    """Points of time that each run may have so that all of them fit in `MAX_VALUES`."""
    columns = sum(5 + 4 * len(run.series.pools) + 7 * len(run.series.deployments) for run in runs)
    return max(MIN_POINTS, min(MAX_POINTS, MAX_VALUES // max(columns, 1)))


class Thinning:
    """Buckets of consecutive steps, and what one bucket of each kind of column becomes."""

    def __init__(self, series: RunSeries, points: int) -> None:
        steps = len(series.time_s)
        count = min(points, steps)
        edges = [bucket * steps // count for bucket in range(count + 1)] if count else [0]
        self.buckets = list(pairwise(edges))
        headroom = [b - e for b, e in zip(series.budget_w, series.enforced_w, strict=True)]
        self.tight = [min(range(a, b), key=headroom.__getitem__) for a, b in self.buckets]

    def instant(self, values: Column) -> Column:
        """The value at the step of the bucket in which the budget was tightest."""
        return [values[index] for index in self.tight]

    def mean(self, values: Column) -> Column:
        """Mean of what is known; None where nothing is."""
        return self._each(values, lambda known: sum(known) / len(known))

    def largest(self, values: Column) -> Column:
        """Largest of what is known; None where nothing is."""
        return self._each(values, max)

    def _each(self, values: Column, fold: Callable[[list[float]], float]) -> Column:
        folded: list[float | None] = []
        for start, stop in self.buckets:
            known = [value for value in values[start:stop] if value is not None]
            folded.append(fold(known) if known else None)
        return folded


def pack_run(run: Run, points: int) -> Packed:
    """Power, pools and deployments of one run on one thinned time axis."""
    series = run.series
    thin = Thinning(series, points)
    return {
        "time": pack([series.time_s[start] for start, _ in thin.buckets], 0.1),
        "power": {
            "budget": pack(thin.instant(series.budget_w), _STEP["w"]),
            "booked": pack(thin.instant(series.booked_w), _STEP["w"]),
            "enforced": pack(thin.instant(series.enforced_w), _STEP["w"]),
            "draw": pack(thin.mean(series.draw_w), _STEP["w"]),
            "peak": pack(thin.largest(series.draw_peak_1s_w), _STEP["w"]),
        },
        "pools": [_pack_pool(pool, thin) for pool in series.pools],
        "deployments": [_pack_deployment(served, thin) for served in series.deployments],
    }


def _pack_pool(pool: PoolSeries, thin: Thinning) -> Packed:
    return {
        "name": pool.name,
        "role": pool.role,
        "cap": pack(thin.instant(pool.cap_w), _STEP["cap"]),
        "ready": pack(thin.instant(pool.ready), _STEP["count"]),
        "starting": pack(thin.largest(pool.starting), _STEP["count"]),
        "queue": pack(thin.mean(pool.queue_tokens), _STEP["tokens"]),
    }


def _pack_deployment(served: DeploymentSeries, thin: Thinning) -> Packed:
    return {
        "name": served.name,
        "ttft_target_s": served.ttft_target_s,
        "itl_target_s": served.itl_target_s,
        "offered": pack(thin.mean(served.offered_rps), _STEP["rps"]),
        "goodput": pack(thin.mean(served.goodput_rps), _STEP["rps"]),
        "rejected": pack(thin.mean(served.rejected_rps), _STEP["rps"]),
        "ttft_p50": pack(thin.mean(served.ttft_p50_s), _STEP["s"]),
        "ttft_p99": pack(thin.largest(served.ttft_p99_s), _STEP["s"]),
        "itl_p50": pack(thin.mean(served.itl_p50_s), _STEP["itl"]),
        "itl_p99": pack(thin.largest(served.itl_p99_s), _STEP["itl"]),
    }


def drawn_events(events: Sequence[RunEvent]) -> list[RunEvent]:
    """At most about `MAX_EVENTS` events in order of time.

    Everything but plan and admission changes is kept; of those an even selection.
    """
    ordered = sorted(events, key=lambda event: event.time_s)
    kept = [event for event in ordered if event.kind not in ("plan", "admission")]
    routine = [event for event in ordered if event.kind in ("plan", "admission")]
    room = max(MAX_EVENTS - len(kept), MAX_EVENTS // 4)
    if len(routine) > room:
        routine = [routine[index * len(routine) // room] for index in range(room)]
    return sorted(kept + routine, key=lambda event: event.time_s)
