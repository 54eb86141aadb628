"""The closed loop: plant, nodes, ledger and policy, one tick after the other.

Per tick: nodes read back and report, the ledger takes the reports in, a policy that is due sees a
snapshot and decides, what the ledger allows travels to the nodes, and the plant runs on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from wattline.core import snapshot as snapshot_module
from wattline.core.decision import Decision, PoolPlan
from wattline.core.snapshot import Budget, GpuTable, Phase, PoolView, Snapshot
from wattline.core.state import State
from wattline.recording.record import Recorder
from wattline.sim.actuation import Actuation
from wattline.sim.admission import AdmissionControl, first_gpus
from wattline.sim.draw import DrawMeter
from wattline.sim.experiment import Experiment
from wattline.sim.exposure import ExposureMeter
from wattline.sim.injector import Injector
from wattline.sim.outcome import run_result
from wattline.sim.plant.plant import Plant, PoolCounters
from wattline.sim.policies.registry import StartingPolicy
from wattline.sim.result import Run, RunEvent
from wattline.sim.scenario_build import BudgetChange
from wattline.sim.series import SeriesBuilder, TickPool, TickPower
from wattline.sim.telemetry import Load, Reading, Seen, Telemetry

TICK_S = 1.0
"""Nodes report, and policies may decide, once a second."""
DELIVERY_S = 0.1
"""From a decision to the write of a limit: API write, watch, NVML call (assumed, cautious)."""
REPAIR_S = 5.0
"""Stated time to detect and repair what outside events do to enforced limits."""
FUTURE_STEP_S = 2.0
FUTURE_STEPS = 90
"""What an oracle sees: arrivals ahead, in steps; long enough for the slowest start-up."""


class ClosedLoop:
    """One run of one policy on one experiment at one budget."""

    def __init__(
        self,
        experiment: Experiment,
        policy: StartingPolicy,
        *,
        budget_w: float,
        recorder: Recorder | None = None,
    ) -> None:
        self.experiment = experiment
        self._policy = policy
        self._recorder = recorder
        fleet = experiment.fleet
        self._fleet = fleet
        self.start_budget_w = budget_w
        self._budget = Budget(
            total_w=budget_w,
            guard_w=experiment.guard_w(budget_w),
            version=1,
            rise_w_per_s=experiment.scenario.budget.rise_w_per_s,
        )
        self._changes = list(experiment.budget_changes(budget_w))
        self._judged = sorted(self._changes, key=lambda change: change.effective_s)
        self._plan = policy.initial_plan(self._budget)
        self._plant = Plant(
            fleet,
            experiment.plant_engines,
            experiment.trace,
            seed=experiment.seed,
            config=experiment.plant_config,
            initial=self._plan,
        )
        self._first_gpu = first_gpus(fleet)
        self._columns = self._plant.gpu_columns()
        self._meter = ExposureMeter(
            budget_w=budget_w, enforced_w=sum(self._columns.enforced_w), repair_s=REPAIR_S
        )
        self.actuation = Actuation(
            plant=self._plant,
            fleet=fleet,
            budget=self._budget,
            meter=self._meter,
            columns=lambda: self._columns,
            uses_ledger=policy.uses_ledger,
        )
        self._admission = AdmissionControl(self._plant, experiment.settings)
        self._telemetry = self._new_telemetry()
        self._series = SeriesBuilder(fleet=fleet, tick_s=TICK_S)
        self._injector = Injector(
            experiment.scenario.faults,
            fleet=fleet,
            gpus_per_node=experiment.plant_config.gpus_per_node,
            plant=self._plant,
            nodes=self.actuation.nodes,
            telemetry=self._telemetry,
            meter=self._meter,
            events=self._series.events,
        )
        self._state: State | None = None
        self._tick = 0
        self._next_decision_s = 0.0
        self._seen_changes = 0
        self.replica_changes = 0
        self.peak_booked_w = 0.0
        self._reason_codes: dict[int, str] = {}
        self.draw = DrawMeter(experiment.plant_config.sample_s)

    def _new_telemetry(self) -> Telemetry:
        experiment, fleet = self.experiment, self._fleet
        return Telemetry(
            delay_s=experiment.scenario.telemetry.delay_s,
            power_noise=experiment.scenario.telemetry.power_noise,
            seed=experiment.seed,
            shape=(len(fleet.deployments), len(fleet.pools), fleet.gpu_count),
            future_rps=self._future_rps() if self._policy.name == "oracle" else None,
            future_step_s=FUTURE_STEP_S,
        )

    def _future_rps(self) -> Callable[[int, float], tuple[float, ...]]:
        trace = self.experiment.trace
        steps = int(trace.duration_s / FUTURE_STEP_S) + 1
        counts = [
            np.bincount(
                (trace.time_s[trace.deployment == index] / FUTURE_STEP_S).astype(np.intp),
                minlength=steps,
            )
            / FUTURE_STEP_S
            for index in range(len(self._fleet.deployments))
        ]

        def ahead(deployment: int, now_s: float) -> tuple[float, ...]:
            first = int(now_s / FUTURE_STEP_S)
            return tuple(counts[deployment][first : first + FUTURE_STEPS].tolist())

        return ahead

    # The run

    def run(self, progress: Callable[[float], None] | None = None) -> Run:
        """Run to the end; `progress` is told the share of the run that each step covers."""
        started_s = time.perf_counter()
        end_s = self.experiment.end_s
        while self._plant.now_s < end_s - 1e-9:
            before_s = self._plant.now_s
            self._one_tick(end_s)
            if progress is not None:
                progress((self._plant.now_s - before_s) / end_s)
        self._meter.advance(self._plant.now_s)
        totals = self._plant.totals()
        self._series.events += [
            RunEvent(
                time_s=event.time_s,
                kind="exposure",
                text=event.text,
                exposure_ws=round(event.exposure_ws, 1),
            )
            for event in self._meter.events
            if event.exposure_ws > 0.0
        ]
        return Run(
            result=run_result(self, totals, round(time.perf_counter() - started_s, 3)),
            series=self._series.finish(totals),
        )

    @property
    def policy_name(self) -> str:
        """Name of the policy that decides."""
        return self._policy.name

    @property
    def meter(self) -> ExposureMeter:
        """Enforced watts against the budget."""
        return self._meter

    def _one_tick(self, end_s: float) -> None:
        now_s = self._plant.now_s
        self._apply_budget_changes(now_s)
        self._columns = replace(self._columns, enforced_w=self._plant.enforced_w())
        self.actuation.collect_reports(now_s)
        # After the nodes have read back: what happens now is found in the next tick, not at once.
        self._injector.advance(now_s)
        if now_s + 1e-9 >= self._next_decision_s:
            self._next_decision_s = now_s + self._policy.interval_s
            self._decide(now_s, self._telemetry.see(now_s))
        self.actuation.send(now_s)
        self._admission.update(self._columns, self._plan)
        self._run_plant(min(now_s + DELIVERY_S, end_s))
        self.actuation.deliver()
        self._take_enforced_changes()
        tick_end_s = min(round((self._tick + 1) * TICK_S, 9), end_s)
        self._run_plant(tick_end_s)
        self._tick += 1
        self._measure()

    def _run_plant(self, until_s: float) -> None:
        """Advance the plant; the meter follows the limits and the budget on the way."""
        while self._judged and self._judged[0].effective_s <= until_s:
            change = self._judged.pop(0)
            self._plant.advance(max(change.effective_s, self._plant.now_s))
            self._take_enforced_changes()
            self._meter.budget_changed(
                self._plant.now_s, change.total_w, f"budget {change.cause}: {change.total_w:,.0f} W"
            )
        self._plant.advance(until_s)
        self._take_enforced_changes()

    def _take_enforced_changes(self) -> None:
        changes = self._plant.enforced_changes
        for time_s, total_w in changes[self._seen_changes :]:
            self._meter.enforced_changed(time_s, total_w)
        self._seen_changes = len(changes)
        self._meter.advance(self._plant.now_s)

    # Budget

    def _apply_budget_changes(self, now_s: float) -> None:
        while self._changes and self._changes[0].announced_s <= now_s + 1e-9:
            self._take_budget(self._changes.pop(0), now_s)

    def _take_budget(self, change: BudgetChange, now_s: float) -> None:
        self._budget = replace(
            self._budget,
            total_w=change.total_w,
            guard_w=self.experiment.guard_w(change.total_w),
            version=self._budget.version + 1,
        )
        self.actuation.set_budget(self._budget, now_s)
        self._series.events.append(
            RunEvent(
                time_s=now_s,
                kind="budget",
                text=f"budget {change.cause}: {change.total_w:,.0f} W",
            )
        )

    # Decision

    def _decide(self, now_s: float, seen: Seen) -> None:
        snapshot = self._snapshot(now_s, seen)
        decision = self._policy.decide(snapshot)
        if self._recorder is not None:
            self._recorder.append(snapshot, decision)
        self._note_plan(now_s, decision)
        self._state = decision.next_state
        self._plan = decision.plan
        self.actuation.act(decision.caps, now_s)
        for step in decision.replicas:
            if step.change > 0:
                self.replica_changes += self._plant.start_replicas(step.pool, step.change)
            elif step.change < 0:
                self.replica_changes += self._plant.stop_replicas(step.pool, -step.change)

    def _snapshot(self, now_s: float, seen: Seen) -> Snapshot:
        columns = self._columns
        silent = [node.silent for node in self.actuation.nodes]
        return Snapshot(
            schema=snapshot_module.SCHEMA,
            tick=self._tick,
            time_s=now_s,
            budget=self._budget,
            gpus=GpuTable(
                uuid=self.experiment.uuids,
                pool=tuple(columns.pool),
                replica=tuple(columns.replica),
                phase=tuple(columns.phase),
                enforced_w=tuple(
                    None if phase is Phase.LOST or silent[node] else watts
                    for watts, phase, node in zip(
                        columns.enforced_w, columns.phase, columns.node, strict=True
                    )
                ),
                granted_w=tuple(self.actuation.granted_w),
                booked_w=self.actuation.booked_w(),
                draw_w=seen.draw_w,
                clock=tuple(self.actuation.clock_sent),
                derate=tuple(columns.derate),
            ),
            pools=tuple(
                self._pool_view(self._plant.pool_view(index), plan, seen.loads[index])
                for index, plan in enumerate(self._plan)
            ),
            demand=seen.demand,
            missing=seen.missing,
            state=self._state,
        )

    def _pool_view(self, counters: PoolCounters, plan: PoolPlan, load: Load | None) -> PoolView:
        return PoolView(
            ready=counters.ready,
            starting=counters.starting,
            draining=counters.draining,
            setting=plan.setting,
            queued_prefill_tokens=None if load is None else load.queued_prefill_tokens,
            active_kv_tokens=None if load is None else load.active_kv_tokens,
            running=None if load is None else load.running,
            starts=counters.starts,
        )

    def _note_plan(self, now_s: float, decision: Decision) -> None:
        """Mark on the time axis where a pool's reason or its replicas change."""
        for reason in decision.reasons:
            before = self._reason_codes.get(reason.pool)
            self._reason_codes[reason.pool] = reason.code
            replicas_changed = (
                decision.plan[reason.pool].replicas != self._plan[reason.pool].replicas
            )
            if replicas_changed or (before is not None and before != reason.code):
                name = self._fleet.pools[reason.pool].name
                self._series.events.append(
                    RunEvent(time_s=now_s, kind="plan", text=f"{name}: {reason.sentence}")
                )

    # Measurement

    def _measure(self) -> None:
        """Read every sensor at the end of a tick."""
        now_s = self._plant.now_s
        self._columns = self._plant.gpu_columns()
        counters = tuple(
            self._plant.demand_view(index) for index in range(len(self._fleet.deployments))
        )
        self._admission.count(counters)
        pools = [self._plant.pool_view(index) for index in range(len(self._fleet.pools))]
        draw_w = self._columns.draw_w
        self._telemetry.add(
            Reading(
                time_s=now_s,
                counters=counters,
                loads=tuple(
                    Load(pool.queued_prefill_tokens, pool.active_kv_tokens, pool.running)
                    for pool in pools
                ),
                draw_w=tuple(draw_w) if draw_w is not None else (0.0,) * self._fleet.gpu_count,
            )
        )
        self._measure_power(pools)

    def _measure_power(self, pools: list[PoolCounters]) -> None:
        samples = self._plant.power_samples()
        budget_w = self._meter.budget_w
        fleet_w = samples.fleet_w
        peak_w = self.draw.add(fleet_w, budget_w)
        columns = self._columns
        pool_rows = []
        for index, (pool, first) in enumerate(zip(pools, self._first_gpu, strict=True)):
            count = self._fleet.pools[index].gpus
            enforced = columns.enforced_w[first : first + count]
            row_w = samples.pool_w[index]
            pool_rows.append(
                TickPool(
                    cap_w=sum(enforced) / count,
                    draw_w=float(row_w.mean()) if len(row_w) else 0.0,
                    enforced_w=sum(enforced),
                    ready=pool.ready,
                    starting=pool.starting,
                    queue_tokens=pool.queued_prefill_tokens,
                )
            )
        booked_w = round(sum(self.actuation.booked_w()), 3)
        self.peak_booked_w = max(self.peak_booked_w, booked_w)
        self._series.add(
            TickPower(
                budget_w=budget_w,
                booked_w=booked_w,
                enforced_w=sum(columns.enforced_w),
                draw_w=float(fleet_w.mean()) if len(fleet_w) else 0.0,
                draw_peak_1s_w=peak_w,
            ),
            pool_rows,
        )
