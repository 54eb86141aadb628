"""What a live run was, in the words of a simulated one: the same figures and series, measured.

Budget, bookings, replicas, queues and reasons come from the controller's recording; enforced limits
from the observer of the GPUs' registers; draw and energy from the GPUs' energy counters; latencies
and outcomes from the client. Time 0 is the start of the load.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wattline.core.decision import Decision, PoolPlan
from wattline.core.snapshot import Snapshot
from wattline.live.demo_plan import DemoPlan
from wattline.live.load import OK, OVERLOADED, Row
from wattline.live.stack_watts import StackWatts
from wattline.sim.outcome import percentiles_ms
from wattline.sim.plant.outcomes import COMPLETED, REJECTED, WAITING, Totals
from wattline.sim.result import Run, RunEvent, RunResult
from wattline.sim.series import SeriesBuilder, TickPool, TickPower, meets
from wattline.virtual.judge import Verdict
from wattline.virtual.observer import Observer

TICK_S = 1.0
SAMPLE_S = 0.25


class EnergySampler:
    """Reads the energy counters of every pool four times a second, in a thread of its own."""

    def __init__(self, watts: StackWatts, pools: Sequence[str]) -> None:
        self._watts = watts
        self._pools = pools
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="energy", daemon=True)
        self.at_s: list[float] = []
        self.joules: list[list[float]] = []

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, after one more look; again is harmless."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        ending = False
        while not ending:
            ending = self._stop.wait(SAMPLE_S)
            self.at_s.append(time.monotonic())
            self.joules.append([self._watts.energy_j([pool]) for pool in self._pools])

    def means_w(self, edges_s: Sequence[float]) -> list[list[float]]:
        """Mean draw of each pool between neighbouring edges of the monotonic clock."""
        table = np.asarray(self.joules)
        columns = [np.interp(edges_s, self.at_s, table[:, i]) for i in range(table.shape[1])]
        spans = np.diff(np.asarray(edges_s))
        return [[float(w) for w in np.diff(column) / spans] for column in columns]

    def joules_between(self, start_s: float, end_s: float) -> float:
        """Energy of all pools."""
        totals = np.asarray(self.joules).sum(axis=1)
        first, last = np.interp([start_s, end_s], self.at_s, totals)
        return float(last - first)


class Levels:
    """Enforced limits over time: of the whole fleet and of each pool, as steps."""

    def __init__(self, observer: Observer, uuids: Sequence[Sequence[str]]) -> None:
        """`uuids`: of each pool."""
        pool_of = {uuid: pool for pool, members in enumerate(uuids) for uuid in members}
        now_mw = {uuid: observer.start_mw[uuid] for uuid in pool_of}
        sums_mw = [sum(now_mw[uuid] for uuid in members) for members in uuids]
        self.at_s = [observer.start_s]
        self.fleet_w = [sum(sums_mw) / 1000]
        self.pools_w = [[mw / 1000 for mw in sums_mw]]
        self.writes = 0
        self.reversals = 0
        rising: dict[str, bool] = {}
        for change in sorted(observer.changes, key=lambda change: change.at_s):
            step_mw = change.enforced_mw - now_mw[change.gpu]
            if step_mw == 0:
                continue
            sums_mw[pool_of[change.gpu]] += step_mw
            self.writes += 1
            self.reversals += rising.get(change.gpu, step_mw > 0) != (step_mw > 0)
            rising[change.gpu] = step_mw > 0
            now_mw[change.gpu] = change.enforced_mw
            self.at_s.append(change.at_s)
            self.fleet_w.append(sum(sums_mw) / 1000)
            self.pools_w.append([mw / 1000 for mw in sums_mw])

    def place(self, at_s: float) -> int:
        """Index of the step that holds at a moment."""
        return max(0, bisect_right(self.at_s, at_s) - 1)

    def most_w(self, start_s: float, end_s: float) -> float:
        """Largest sum within a span."""
        return max(self.fleet_w[self.place(start_s) : self.place(end_s) + 1])

    def under_after_s(self, start_s: float, end_s: float, watts: float) -> float | None:
        """From the start of a span until limits are under so many watts for good; None: never."""
        over_until_s = start_s
        for _, to_s, level_w in self.steps(start_s, end_s):
            if level_w > watts:
                over_until_s = to_s
        return None if over_until_s >= end_s else over_until_s - start_s

    def steps(self, start_s: float, end_s: float) -> list[tuple[float, float, float]]:
        """(from, to, watts) within a span."""
        first, last = self.place(start_s), self.place(end_s)
        edges = [start_s, *self.at_s[first + 1 : last + 1], end_s]
        levels = self.fleet_w[first : last + 1]
        return [(a, b, w) for a, b, w in zip(edges[:-1], edges[1:], levels, strict=True) if b > a]


@dataclass(frozen=True, slots=True)
class BudgetSpan:
    """A budget in force, on the monotonic clock."""

    start_s: float
    end_s: float
    total_w: float
    usable_w: float
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Everything that a live run left. start_s: monotonic; start_wall_s: since 1970."""

    plan: DemoPlan
    start_s: float
    start_wall_s: float
    rows: Sequence[Row]
    ticks: Sequence[tuple[Snapshot, Decision]]
    energy: EnergySampler
    levels: Levels
    budgets: Sequence[BudgetSpan]
    verdict: Verdict
    replica_changes: int
    wall_s: float

    @property
    def end_s(self) -> float:
        """Length of the window: traffic and drain."""
        return self.plan.experiment.end_s

    def plan_at_start(self) -> tuple[PoolPlan, ...]:
        """Replicas that served, and caps, when the load began."""
        snapshot, decision = self.ticks[self._tick_at(0.0)]
        return tuple(
            PoolPlan(max(1, view.ready), planned.setting)
            for view, planned in zip(snapshot.pools, decision.plan, strict=True)
        )

    def _tick_at(self, at_s: float) -> int:
        times = [snapshot.time_s for snapshot, _ in self.ticks]
        return max(0, bisect_right(times, self.start_wall_s + at_s) - 1)

    def run(self, policy: str = "wattline") -> Run:
        """Figures and series as a simulated run has them."""
        totals = self._totals()
        builder = SeriesBuilder(fleet=self.plan.experiment.fleet, tick_s=TICK_S)
        builder.events += self._events()
        draw_w = self._add_ticks(builder)
        return Run(result=self._result(policy, totals, draw_w), series=builder.finish(totals))

    def _totals(self) -> Totals:
        rows = self.rows
        missing = float("nan")

        def column(values: Sequence[float | None]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
            return np.array([missing if v is None else v for v in values], dtype=np.float64)

        done = [row.status == OK for row in rows]
        # A request whose connection broke counts as turned away: its client got no answer.
        status = [
            COMPLETED if row.status == OK else REJECTED if row.status != 0 else WAITING
            for row in rows
        ]
        return Totals(
            offered=len(rows),
            completed=sum(done),
            rejected=status.count(REJECTED),
            unfinished=status.count(WAITING),
            energy_j=self.energy.joules_between(self.start_s, self.start_s + self.end_s),
            generated_tokens=sum(row.output_tokens for row in rows if row.status == OK),
            preemptions=0,
            retried=0,
            arrival_s=column([row.sent_s for row in rows]),
            ttft_s=column([row.ttft_s for row in rows]),
            itl_s=column([row.itl_s for row in rows]),
            finished_s=column([row.last_s if row.status == OK else None for row in rows]),
            output_tokens=np.array([row.output_tokens for row in rows], dtype=np.int64),
            deployment=np.zeros(len(rows), dtype=np.int16),
            status=np.array(status, dtype=np.int8),
        )

    def _add_ticks(self, builder: SeriesBuilder) -> list[float]:
        """Fill the series; returns the fleet's mean draw per tick."""
        count = round(self.end_s / TICK_S)
        edges_s = [self.start_s + tick * TICK_S for tick in range(count + 1)]
        pools_w = self.energy.means_w(edges_s)
        fleet_w = [sum(watts) for watts in zip(*pools_w, strict=True)]
        pools = self.plan.experiment.fleet.pools
        for tick in range(count):
            snapshot, _ = self.ticks[self._tick_at((tick + 1) * TICK_S)]
            enforced_w, budget_w = self._tightest(edges_s[tick], edges_s[tick + 1])
            limits_w = self.levels.pools_w[self.levels.place(edges_s[tick + 1])]
            builder.add(
                TickPower(
                    budget_w=budget_w,
                    booked_w=sum(snapshot.gpus.booked_w),
                    enforced_w=enforced_w,
                    draw_w=fleet_w[tick],
                    draw_peak_1s_w=fleet_w[tick],
                ),
                [
                    TickPool(
                        cap_w=limits_w[index] / pool.gpus,
                        draw_w=pools_w[index][tick],
                        enforced_w=limits_w[index],
                        ready=snapshot.pools[index].ready,
                        starting=snapshot.pools[index].starting,
                        queue_tokens=snapshot.pools[index].queued_prefill_tokens or 0.0,
                    )
                    for index, pool in enumerate(pools)
                ],
            )
        return fleet_w

    def _tightest(self, start_s: float, end_s: float) -> tuple[float, float]:
        """Enforced and budget watts of the moment of a tick at which least was left.

        The fraction of a second in which a cut is being enforced is an event, not a point of the
        plot, unless it fills the tick.
        """
        found: list[tuple[float, float]] = []
        settled: list[tuple[float, float]] = []
        for span in self.budgets:
            first_s, last_s = max(start_s, span.start_s), min(end_s, span.end_s)
            if first_s >= last_s:
                continue
            under_s = self.levels.under_after_s(span.start_s, last_s, span.total_w)
            for _, to_s, watts in self.levels.steps(first_s, last_s):
                found.append((watts, span.total_w))
                if under_s is not None and to_s > span.start_s + under_s:
                    settled.append(found[-1])
        return max(settled or found, key=lambda pair: pair[0] - pair[1])

    def _events(self) -> list[RunEvent]:
        events = [
            RunEvent(
                time_s=round(span.start_s - self.start_s, 3),
                kind="budget",
                text=f"{span.cause}: {span.total_w:,.0f} W",
            )
            for span in self.budgets[1:]
        ]
        events += self._plan_events()
        offset_s = self.levels.at_s[0] - self.start_s
        events += [
            RunEvent(
                time_s=each.start_s + offset_s,
                kind="exposure",
                text=f"{each.kind}: {each.peak_w:,.0f} W for {each.over_s * 1000:,.0f} ms",
                exposure_ws=round(each.watt_seconds, 1),
            )
            for each in self.verdict.exposures
        ]
        return [event for event in events if 0.0 <= event.time_s <= self.end_s]

    def _plan_events(self) -> list[RunEvent]:
        """A mark where a pool's reason or its replicas change."""
        fleet = self.plan.experiment.fleet
        codes: dict[int, str] = {}
        replicas: dict[int, int] = {}
        events = []
        for snapshot, decision in self.ticks:
            for reason in decision.reasons:
                count = decision.plan[reason.pool].replicas
                before = codes.get(reason.pool)
                if before is not None and (before != reason.code or replicas[reason.pool] != count):
                    at_s = snapshot.time_s - self.start_wall_s
                    words = f"{fleet.pools[reason.pool].name}: {reason.sentence}"
                    events.append(RunEvent(time_s=round(at_s, 3), kind="plan", text=words))
                codes[reason.pool], replicas[reason.pool] = reason.code, count
        return events

    def _result(self, policy: str, totals: Totals, draw_w: Sequence[float]) -> RunResult:
        experiment = self.plan.experiment
        fleet = experiment.fleet
        slo = fleet.deployments[0].slo
        done = totals.status == COMPLETED
        good = int((done & meets(totals, slo.ttft_s, slo.itl_s)).sum())
        ttft_p50_ms, ttft_p99_ms = percentiles_ms(totals.ttft_s[done])
        itl_p50_ms, itl_p99_ms = percentiles_ms(totals.itl_s[done])
        tokens, hours = totals.generated_tokens, self.end_s / 3600.0
        over_draw_ws = sum(
            max(0.0, watts - self._budget_at(self.start_s + (tick + 0.5) * TICK_S)) * TICK_S
            for tick, watts in enumerate(draw_w)
        )
        return RunResult(
            policy=policy,
            budget_w=self.plan.budget_w,
            budget_fraction=round(self.plan.budget_w / fleet.max_limit_w, 6),
            seed=experiment.seed,
            requests=totals.offered,
            completed=totals.completed,
            rejected=totals.rejected,
            unfinished=totals.unfinished,
            goodput_rps=round(good / experiment.duration_s, 6),
            slo_attainment=round(good / totals.offered, 6) if totals.offered else 0.0,
            ttft_p50_ms=ttft_p50_ms,
            ttft_p99_ms=ttft_p99_ms,
            itl_p50_ms=itl_p50_ms,
            itl_p99_ms=itl_p99_ms,
            energy_j=round(totals.energy_j, 1),
            j_per_token=round(totals.energy_j / tokens, 6) if tokens else None,
            output_tokens=tokens,
            peak_booked_w=round(max(sum(s.gpus.booked_w) for s, _ in self._window()), 1),
            peak_enforced_w=round(self.levels.most_w(self.start_s, self.start_s + self.end_s), 1),
            peak_draw_1s_w=round(max(draw_w), 1),
            over_budget_enforced_ws=round(self.verdict.ours_watt_seconds, 3),
            exposure_enforced_ws=round(sum(e.watt_seconds for e in self.verdict.exposures), 3),
            over_budget_draw_ws=round(over_draw_ws, 3),
            cap_writes_per_hour=round(self.levels.writes / hours, 3),
            cap_reversals_per_hour=round(self.levels.reversals / hours, 3),
            replica_changes=self.replica_changes,
            gpus=fleet.gpu_count,
            wall_s=self.wall_s,
        )

    def _window(self) -> Sequence[tuple[Snapshot, Decision]]:
        return self.ticks[self._tick_at(0.0) :]

    def _budget_at(self, at_s: float) -> float:
        return next(s.total_w for s in reversed(self.budgets) if s.start_s <= at_s)

    @property
    def turned_away(self) -> int:
        """Requests that a frontend refused because all workers were busy."""
        return sum(row.status in OVERLOADED for row in self.rows)

    @property
    def broken(self) -> list[Row]:
        """Requests that got neither an answer nor a refusal."""
        return [row for row in self.rows if row.status not in (OK, 0, *OVERLOADED)]
