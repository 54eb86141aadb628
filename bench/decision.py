"""Speed of the decision: allocation within watts, and the whole of `decide`.

    python bench/decision.py                  # all of it, about two minutes
    python bench/decision.py --quick          # up to 1,000 pools
    python bench/decision.py --json FILE      # also write the figures

Every deployment has a prefill and a decode pool of 10 H100s each, one GPU per replica, 50 settings
(power limits from 200 to 700 W), and its own demand and priority. There are eight kinds of
deployment (four models, two mean requests; rates and watts from their engine models); `kinds` rows
share those eight, in `distinct` rows the rates of every pool are scaled by a factor of its own, so
that no two pools are equal. The budget is 50 % of all maximum limits and demand exceeds what it can
serve. HiGHS solves the same problem (one binary per replica count and setting, one thread, 0.1 %
relative gap) until it takes over a tenth of `--patience` seconds.

Times are processor seconds (all of it is one thread), the best of several runs in this process;
wall time is printed beside them and depends on what else the machine does. Exit code 1 if a
decision for one deployment takes over 5 ms, or one for 10,000 pools a second or more, or its gap
exceeds 0.1 %.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import highspy
import numpy as np

from wattline import catalog
from wattline.core.allocate import DeploymentProblem, Objective, PoolProblem, allocate
from wattline.core.capacity import Capacity, capacity
from wattline.core.decide import decide
from wattline.core.decision import Decision, PoolPlan
from wattline.core.engine import EngineModel
from wattline.core.fleet import Deployment, Fleet, Pool, Role, Setting, Slo
from wattline.core.mix import Mix
from wattline.core.settings import Settings
from wattline.core.snapshot import (
    SCHEMA,
    Budget,
    DemandView,
    GpuTable,
    Phase,
    PoolView,
    Snapshot,
)

GPU = "H100-80GB-HBM3"
GPUS = 10
CAPS = 50
BUDGET = 0.5
MODELS = ("Llama-3.1-8B", "Qwen3-8B", "Qwen3-14B", "gpt-oss-20b")
MIXES = (Mix(1155.0, 211.0), Mix(2048.0, 256.0))
SLO = Slo(2.0, 0.05)
ROLES = (Role.PREFILL, Role.DECODE)
MOST_SINGLE_S = 5e-3
MOST_LARGE_S = 1.0
MOST_GAP = 1e-3


def grid() -> tuple[Setting, ...]:
    product = catalog.gpu(GPU)
    caps = np.linspace(product.min_limit_w, product.max_limit_w, CAPS)
    return tuple(Setting(round(float(cap), 3)) for cap in caps)


def deployment_of(number: int) -> Deployment:
    model = MODELS[number % len(MODELS)]
    priority = (1.0, 1.0, 2.0, 4.0)[number // 3 % 4]
    return Deployment(name=f"d{number}", model=model, slo=SLO, priority=priority)


def pool_of(number: int, role: Role) -> Pool:
    return Pool(
        name=f"d{number}-{role}",
        deployment=f"d{number}",
        role=role,
        gpu=GPU,
        gpus=GPUS,
        gpus_per_replica=1,
        min_replicas=1,
        max_replicas=GPUS,
        startup_s=60.0,
    )


def mix_of(number: int) -> Mix:
    return MIXES[number // len(MODELS) % len(MIXES)]


class Kinds:
    """Engines and tables of the eight kinds of deployment."""

    def __init__(self) -> None:
        self.settings = grid()
        count = len(MODELS) * len(MIXES)
        self.engines: list[tuple[EngineModel, ...]] = []
        self.tables: list[tuple[Capacity, ...]] = []
        for kind in range(count):
            owner = deployment_of(kind)
            # One engine object per model and role, as a catalog shares them.
            engines = (
                self.engines[kind - len(MODELS)]
                if kind >= len(MODELS)
                else tuple(catalog.engine(pool_of(kind, role), owner) for role in ROLES)
            )
            self.engines.append(engines)
            self.tables.append(
                tuple(
                    capacity(engine, role, self.settings, mix_of(kind), SLO)
                    for engine, role in zip(engines, ROLES, strict=True)
                )
            )

    def problem(self, deployments: int, distinct: bool) -> list[DeploymentProblem]:
        """Make many problems; demand from half to 1.5 of the most that each could serve."""
        rng = np.random.default_rng(20)
        made = []
        for number in range(deployments):
            tables = self.tables[number % len(self.tables)]
            top = min(max(table.rate_rps) for table in tables) * GPUS
            pools = []
            for role, table in zip(ROLES, tables, strict=True):
                rates = table.rate_rps
                if distinct:
                    factor = float(rng.uniform(0.8, 1.2))
                    rates = tuple(round(rate * factor, 9) for rate in rates)
                pools.append(
                    PoolProblem(
                        role=role,
                        gpus=GPUS,
                        gpus_per_replica=1,
                        parked_w=self.settings[0].cap_w,
                        min_replicas=1,
                        max_replicas=GPUS,
                        settings=self.settings,
                        rate_rps=rates,
                        draw_w=table.draw_w,
                        idle_w=table.idle_w,
                        draw_curve_w=table.draw_curve_w,
                        current=PoolPlan(GPUS, self.settings[CAPS // 2]),
                    )
                )
            made.append(
                DeploymentProblem(
                    priority=deployment_of(number).priority,
                    demand_rps=round(float(rng.uniform(0.5, 1.5)) * top, 6),
                    pools=tuple(pools),
                )
            )
        return made

    def fleet(self, deployments: int) -> Settings:
        """Make the settings of a fleet of the same deployments, for whole decisions."""
        owners = tuple(deployment_of(number) for number in range(deployments))
        numbers = range(deployments)
        step_w = (self.settings[-1].cap_w - self.settings[0].cap_w) / (CAPS - 1)
        return Settings(
            fleet=Fleet(
                products=(catalog.gpu(GPU),),
                deployments=owners,
                pools=tuple(pool_of(number, role) for number in numbers for role in ROLES),
            ),
            engines=tuple(
                engine for number in numbers for engine in self.engines[number % len(self.engines)]
            ),
            cap_step_w=step_w * (1.0 - 1e-12),
            clock_steps=(1.0,),
            expected=tuple(mix_of(number) for number in numbers),
        )


def usable_w(problem: Sequence[DeploymentProblem], settings: Sequence[Setting]) -> float:
    gpus = sum(pool.gpus for deployment in problem for pool in deployment.pools)
    return BUDGET * gpus * settings[-1].cap_w


def snapshot_of(problem: Sequence[DeploymentProblem], fleet: Fleet, watts: float) -> Snapshot:
    """All replicas ready at the middle setting; windows of one second with the demand wanted."""
    plan = problem[0].pools[0].current
    gpus = fleet.gpu_count
    cap = plan.setting.cap_w
    owner = [index for index, pool in enumerate(fleet.pools) for _ in range(pool.gpus)]
    table = GpuTable(
        uuid=tuple(f"GPU-{index}" for index in range(gpus)),
        pool=tuple(owner),
        replica=tuple(index % GPUS for index in range(gpus)),
        phase=(Phase.READY,) * gpus,
        enforced_w=(cap,) * gpus,
        granted_w=(cap,) * gpus,
        booked_w=(cap,) * gpus,
        draw_w=(cap * 0.8,) * gpus,
        clock=(1.0,) * gpus,
        derate=(1.0,) * gpus,
    )
    view = PoolView(
        ready=GPUS,
        starting=0,
        draining=0,
        setting=plan.setting,
        queued_prefill_tokens=0.0,
        active_kv_tokens=0.0,
        running=50.0,
    )
    demand = []
    for number, entry in enumerate(problem):
        arrivals = round(entry.demand_rps)
        mix = mix_of(number)
        demand.append(
            DemandView(
                window_s=1.0,
                arrivals=arrivals,
                input_tokens_sum=round(arrivals * mix.input_tokens),
                cached_tokens_sum=0,
                completions=arrivals,
                output_tokens_sum=round(arrivals * mix.output_tokens),
                rejected=0,
                ttft_p50_s=0.5,
                ttft_p99_s=1.0,
                itl_p50_s=0.03,
                itl_p99_s=0.04,
                age_s=0.0,
            )
        )
    return Snapshot(
        schema=SCHEMA,
        tick=0,
        time_s=0.0,
        budget=Budget(total_w=watts, guard_w=0.0, version=1),
        gpus=table,
        pools=(view,) * len(fleet.pools),
        demand=tuple(demand),
        missing=(),
        state=None,
    )


def fastest(work: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Least processor seconds and least wall seconds of `repeats` runs."""
    processor, wall = [], []
    for _ in range(repeats):
        began, started = time.process_time(), time.perf_counter()
        work()
        processor.append(time.process_time() - began)
        wall.append(time.perf_counter() - started)
    return min(processor), min(wall)


def time_allocation(
    kinds: Kinds, deployments: int, objective: Objective, distinct: bool, fixed: bool, repeats: int
) -> dict[str, Any]:
    problem = kinds.problem(deployments, distinct)
    if fixed:
        problem = [
            replace(d, pools=tuple(replace(pool, fixed_replicas=GPUS) for pool in d.pools))
            for d in problem
        ]
    watts = usable_w(problem, kinds.settings)
    found = allocate(problem, watts, objective)
    seconds, wall_s = fastest(lambda: allocate(problem, watts, objective), repeats)
    options = sum(
        (high - low + 1) * len(pool.settings)
        for d in problem
        for pool in d.pools
        for low, high in [pool.replica_range]
    )
    return {
        "pools": 2 * deployments,
        "gpus": 2 * deployments * GPUS,
        "options": options,
        "loop": "watts" if fixed else "replicas and watts",
        "objective": objective,
        "pools_are": "distinct" if distinct else "kinds",
        "seconds": seconds,
        "wall_s": wall_s,
        "gap": found.gap,
        "value_rps": found.value,
        "bound_rps": found.bound,
        "booked_share": found.booked_w / watts,
    }


def time_highs(kinds: Kinds, deployments: int, patience_s: float) -> dict[str, Any]:
    """Processor seconds of HiGHS alone on the same problem, and the value it reached."""
    problem = kinds.problem(deployments, True)
    watts = usable_w(problem, kinds.settings)
    highs = highspy.Highs()  # type: ignore[no-untyped-call]
    for option, value in (
        ("output_flag", False),
        ("threads", 1),
        ("mip_rel_gap", MOST_GAP),
        ("time_limit", patience_s),
    ):
        highs.setOptionValue(option, value)
    columns = 0
    budget_columns: list[int] = []
    budget_watts: list[float] = []
    for entry in problem:
        rate = columns
        highs.addCol(-entry.priority, 0.0, entry.demand_rps, 0, [], [])
        columns += 1
        for pool in entry.pools:
            counts = np.arange(pool.min_replicas, pool.max_replicas + 1)
            rates = np.outer(counts, pool.rate_rps).ravel()
            caps = np.array([setting.cap_w - pool.parked_w for setting in pool.settings])
            picks = list(range(columns, columns + len(rates)))
            columns += len(rates)
            for pick in picks:
                highs.addCol(0.0, 0.0, 1.0, 0, [], [])
                highs.changeColIntegrality(pick, highspy.HighsVarType.kInteger)
            highs.addRow(1.0, 1.0, len(picks), picks, [1.0] * len(picks))
            infinity = highspy.kHighsInf
            highs.addRow(0.0, infinity, len(picks) + 1, [rate, *picks], [-1.0, *rates.tolist()])
            budget_columns += picks
            budget_watts += np.outer(counts, caps).ravel().tolist()
            watts -= pool.gpus * pool.parked_w
    highs.addRow(-highspy.kHighsInf, watts, len(budget_columns), budget_columns, budget_watts)
    started = time.process_time()
    highs.run()
    seconds = time.process_time() - started
    finished = highs.getModelStatus() == highspy.HighsModelStatus.kOptimal
    value = -float(highs.getInfo().objective_function_value)
    return {"seconds": seconds, "finished": finished, "value_rps": value}


def time_decide(kinds: Kinds, deployments: int, repeats: int) -> dict[str, Any]:
    """Seconds of whole ticks: one that plans watts only, and one that plans replicas too."""
    problem = kinds.problem(deployments, False)
    settings = kinds.fleet(deployments)
    watts = usable_w(problem, kinds.settings)
    first = snapshot_of(problem, settings.fleet, watts)
    state = decide(first, settings).next_state

    def tick(time_s: float) -> Decision:
        return decide(replace(first, tick=1, time_s=time_s, state=state), settings)

    watts_tick = fastest(lambda: tick(1.0), repeats)
    replica_tick = fastest(lambda: tick(settings.replica_interval_s), repeats)
    return {
        "pools": 2 * deployments,
        "gpus": 2 * deployments * GPUS,
        "watts_tick_s": watts_tick[0],
        "watts_tick_wall_s": watts_tick[1],
        "replica_tick_s": replica_tick[0],
        "replica_tick_wall_s": replica_tick[1],
    }


def allocation_rows(kinds: Kinds, quick: bool, patience_s: float) -> list[dict[str, Any]]:
    rows = []
    patient = True
    for deployments in (1, 5, 50, 500) if quick else (1, 5, 50, 500, 5000):
        repeats = 30 if deployments <= 5 else 3
        for objective, distinct, fixed in (
            ("throughput", False, True),
            ("throughput", False, False),
            ("throughput", True, False),
            ("energy", False, False),
            ("energy", True, False),
        ):
            aim: Objective = "energy" if objective == "energy" else "throughput"
            row = time_allocation(kinds, deployments, aim, distinct, fixed, repeats)
            if patient and distinct and aim == "throughput":
                row["highs"] = time_highs(kinds, deployments, patience_s)
                patient = row["highs"]["seconds"] < patience_s / 10.0
            rows.append(row)
            show_allocation(row)
    return rows


def show_allocation(row: dict[str, Any]) -> None:
    peer = row.get("highs")
    against = ""
    if peer is not None:
        ratio = peer["seconds"] / row["seconds"]
        against = f"{peer['seconds']:9.2f} s = {ratio:,.0f} x, "
        if peer["finished"]:
            against += f"our value {row['value_rps'] / peer['value_rps'] - 1.0:+.3%}"
        else:
            against += "gave up"
    print(
        f"{row['pools']:>7,} {row['gpus']:>8,} {row['options']:>10,}  {row['objective']:<10} "
        f"{row['loop']:<19}{row['pools_are']:<9}{row['seconds'] * 1e3:>9.2f} "
        f"{row['wall_s'] * 1e3:>9.2f} {row['gap']:>9.1e} {row['booked_share']:>8.2%}  {against}",
        flush=True,
    )


def failures(results: dict[str, Any]) -> list[str]:
    """Say what falls short."""
    found = []
    for row in results["allocation"]:
        most_s = MOST_SINGLE_S if row["pools"] == 2 else MOST_LARGE_S
        if row["seconds"] >= most_s:
            found.append(f"allocation of {row['pools']:,} pools took {row['seconds']:.3f} s")
        if row["gap"] > MOST_GAP:
            found.append(f"gap of {row['pools']:,} pools is {row['gap']:.2%}")
    for row in results["decide"]:
        most_s = MOST_SINGLE_S if row["pools"] == 2 else MOST_LARGE_S
        for name in ("watts_tick_s", "replica_tick_s"):
            if row[name] >= most_s:
                found.append(f"{name} of {row['pools']:,} pools is {row[name]:.3f}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="up to 1,000 pools")
    parser.add_argument("--patience", type=float, default=30.0, help="seconds for HiGHS to solve")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    options = parser.parse_args()
    kinds = Kinds()
    print(
        f"{'pools':>7} {'GPUs':>8} {'options':>10}  {'objective':<10} {'chosen':<19}"
        f"{'pools are':<9}{'ms':>9} {'wall ms':>9} {'gap':>9} {'booked':>8}  HiGHS"
    )
    results: dict[str, Any] = {
        "allocation": allocation_rows(kinds, options.quick, options.patience),
        "decide": [],
    }
    print("\nWhole decision, ms (wall ms): a tick that plans watts, one that plans replicas too")
    for deployments in (1, 50, 500) if options.quick else (1, 50, 500, 5000):
        row = time_decide(kinds, deployments, 30 if deployments == 1 else 3)
        results["decide"].append(row)
        print(
            f"{row['pools']:>7,} {row['gpus']:>8,}"
            f"{row['watts_tick_s'] * 1e3:>10.2f} ({row['watts_tick_wall_s'] * 1e3:.2f})"
            f"{row['replica_tick_s'] * 1e3:>10.2f} ({row['replica_tick_wall_s'] * 1e3:.2f})",
            flush=True,
        )
    if options.json is not None:
        partial = options.json.with_name(options.json.name + ".partial")
        partial.write_text(json.dumps(results, indent=2) + "\n")
        partial.replace(options.json)
    for line in failures(results):
        print(line, file=sys.stderr)
    return 1 if failures(results) else 0


if __name__ == "__main__":
    sys.exit(main())
