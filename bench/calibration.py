"""What calibration does where the models are wrong: closed loop, with and without it.

    python bench/calibration.py [--scenarios demo,...] [--json FILE]

The plant runs engines whose passes take `time` times as long, and draw `watts` times as much, as
those that the decision plans with. 1.3: the model is too optimistic; 0.77: too pessimistic, where
calibration has to change nothing. Admission thresholds of the simulator come from the model, with
and without calibration, so that only caps and replicas differ.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from wattline.core.calibration.state import RoleCalibration
from wattline.core.calibration.terms import CalibrationSettings
from wattline.core.decision import Decision, PoolPlan
from wattline.core.engine import EngineModel, ForwardPass, PassCost
from wattline.core.fleet import Setting
from wattline.core.snapshot import Budget, Snapshot
from wattline.sim.experiment import Experiment, Traffic, prepare
from wattline.sim.loop import ClosedLoop
from wattline.sim.policies.registry import StartingPolicy
from wattline.sim.runs import Job, build_policy
from wattline.sim.scenario import load


@dataclass(frozen=True)
class Cell:
    """What is run: `time` and `watts` are those of the plant over those of the model."""

    scenario: str
    objective: Literal["throughput", "energy"]
    time: float
    watts: float = 1.0
    load: float = 1.0
    budget: str | None = None
    seeds: tuple[int, ...] = (1, 2, 3)


CELLS = (
    Cell("demo", "throughput", 1.0),
    Cell("demo", "throughput", 1.3),
    Cell("demo", "throughput", 0.77),
    Cell("demo", "energy", 1.0),
    Cell("demo", "energy", 1.3),
    Cell("demo", "energy", 1.0, load=0.5),
    Cell("demo", "energy", 1.3, load=0.5),
    Cell("demo", "energy", 1.0, load=0.5, budget="100%"),
    Cell("demo", "energy", 1.0, watts=1.3, load=0.5, budget="100%"),
    Cell("flash-crowd", "throughput", 1.0, seeds=(1,)),
    Cell("flash-crowd", "throughput", 1.3, seeds=(1,)),
    Cell("flash-crowd", "throughput", 0.77, seeds=(1,)),
    Cell("agg-8b-l40s", "throughput", 1.3, seeds=(1,)),
    Cell("agg-8b-l40s", "energy", 1.0, seeds=(1,)),
    Cell("agg-8b-l40s", "energy", 1.3, seeds=(1,)),
)


@dataclass(frozen=True)
class OtherEngine:
    """An engine that is slower and hungrier than `model` by fixed factors."""

    model: EngineModel
    time: float
    watts: float

    @property
    def kv_capacity_tokens(self) -> int:
        """As the model has it."""
        return self.model.kv_capacity_tokens

    @property
    def kv_bytes_per_token(self) -> float:
        """As the model has it."""
        return self.model.kv_bytes_per_token

    @property
    def max_num_seqs(self) -> int:
        """As the model has it."""
        return self.model.max_num_seqs

    @property
    def max_batched_tokens(self) -> int:
        """As the model has it."""
        return self.model.max_batched_tokens

    @property
    def idle_w(self) -> float:
        """As the model has it."""
        return self.model.idle_w

    def cost(self, work: ForwardPass, setting: Setting, derate: float = 1.0) -> PassCost:
        """What the real thing takes; it obeys its limit as the model does."""
        spent = self.model.cost(work, setting, derate)
        watts = min(self.watts * spent.power_w, max(setting.cap_w, spent.power_w))
        return PassCost(spent.duration_s * self.time, watts, spent.clock)


class _Watched:
    """A policy whose calibration is looked at after every decision."""

    def __init__(self, policy: StartingPolicy) -> None:
        self._policy = policy
        self.name = policy.name
        self.interval_s = policy.interval_s
        self.uses_ledger = policy.uses_ledger
        self.ticks: list[tuple[RoleCalibration, ...]] = []
        self.drifts = 0

    def initial_plan(self, budget: Budget) -> tuple[PoolPlan, ...]:
        return self._policy.initial_plan(budget)

    def decide(self, snapshot: Snapshot) -> Decision:
        decision = self._policy.decide(snapshot)
        state = decision.next_state
        if state is not None and state.calibration:
            self.ticks.append(state.calibration[0].roles)
            self.drifts = state.calibration[0].drift.fired
        return decision


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenarios", help="only these, separated by commas")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    wanted = None if options.scenarios is None else options.scenarios.split(",")
    rows: list[dict[str, Any]] = []
    print(
        "| scenario | objective | budget | load | time | watts | seeds | attainment off | on |",
        end="",
    )
    print(" worst, best seed | J/token off | on | cap writes/h off | on | factors | drifts |")
    print(f"|{'---|' * 16}")
    for cell in CELLS:
        if wanted is not None and cell.scenario not in wanted:
            continue
        off = [measured(cell, seed, calibrated=False) for seed in cell.seeds]
        on = [measured(cell, seed, calibrated=True) for seed in cell.seeds]
        rows += [*off, *on]
        print(line(cell, off, on), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


def measured(cell: Cell, seed: int, *, calibrated: bool) -> dict[str, Any]:
    """One run in figures."""
    plain = prepare(load(cell.scenario), Traffic(scale_load=cell.load), seed=seed)
    experiment = other(plain, cell, calibrated)
    budget_w = experiment.budget_w(cell.budget)
    policy = _Watched(build_policy(experiment, Job("wattline", budget_w)))
    result = ClosedLoop(experiment, policy, budget_w=budget_w).run().result
    figures = asdict(result)
    return {
        **asdict(cell),
        "seed": seed,
        "calibrated": calibrated,
        **{key: figures[key] for key in FIGURES},
        "factors": factors(policy.ticks),
        "drifts": policy.drifts,
    }


def other(experiment: Experiment, cell: Cell, calibrated: bool) -> Experiment:
    """The experiment with a plant that is not as modelled."""
    settings = replace(
        experiment.settings,
        objective=cell.objective,
        calibration=CalibrationSettings() if calibrated else None,
    )
    engines: tuple[EngineModel, ...] = experiment.plant_engines
    if (cell.time, cell.watts) != (1.0, 1.0):
        engines = tuple(OtherEngine(engine, cell.time, cell.watts) for engine in engines)
    return replace(experiment, settings=settings, plant_engines=engines)


def factors(ticks: list[tuple[RoleCalibration, ...]]) -> dict[str, float]:
    """Mean over the run of each factor that a role has, as followed."""
    kinds = {"prefill": ("ttft", "power"), "decode": ("itl", "power")}
    return {
        f"{entry.role} {kind}": sum(getattr(t[index].factors, kind) for t in ticks) / len(ticks)
        for index, entry in enumerate(ticks[-1] if ticks else ())
        for kind in kinds.get(str(entry.role), ("ttft", "itl", "power"))
    }


def line(cell: Cell, off: list[dict[str, Any]], on: list[dict[str, Any]]) -> str:
    """A row of the table: means over the seeds."""
    changes = [
        100.0 * (b["slo_attainment"] - a["slo_attainment"]) for a, b in zip(off, on, strict=True)
    ]
    shown = ", ".join(
        f"{name} {fmean(run['factors'][name] for run in on):.2f}" for name in on[0]["factors"]
    )
    cells = [
        cell.scenario,
        cell.objective,
        cell.budget or "its own",
        f"{cell.load:g}",
        f"{cell.time:g}",
        f"{cell.watts:g}",
    ]
    cells.append(str(len(off)))
    cells += [f"{100.0 * fmean(run['slo_attainment'] for run in runs):.1f} %" for runs in (off, on)]
    cells.append(f"{min(changes):+.1f}, {max(changes):+.1f}")
    for key, form in (("j_per_token", ".3f"), ("cap_writes_per_hour", ".0f")):
        cells += [format(fmean(run[key] for run in runs), form) for runs in (off, on)]
    return f"| {' | '.join([*cells, shown, str(sum(run['drifts'] for run in on))])} |"


FIGURES = (
    "slo_attainment",
    "goodput_rps",
    "j_per_token",
    "cap_writes_per_hour",
    "rejected",
    "over_budget_enforced_ws",
)


if __name__ == "__main__":
    main()
