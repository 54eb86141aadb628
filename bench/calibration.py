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
from typing import Any

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

CELLS = (
    ("demo", "throughput", 1.0, 1.0),
    ("demo", "throughput", 1.3, 1.0),
    ("demo", "throughput", 0.77, 1.0),
    ("demo", "throughput", 1.0, 1.3),
    ("demo", "energy", 1.0, 1.0),
    ("demo", "energy", 1.3, 1.0),
    ("demo", "energy", 0.77, 1.0),
    ("demo", "energy", 1.0, 1.3),
    ("flash-crowd", "throughput", 1.0, 1.0),
    ("flash-crowd", "throughput", 1.3, 1.0),
    ("flash-crowd", "throughput", 0.77, 1.0),
    ("agg-8b-l40s", "throughput", 1.0, 1.0),
    ("agg-8b-l40s", "throughput", 1.3, 1.0),
    ("agg-8b-l40s", "energy", 1.0, 1.0),
    ("agg-8b-l40s", "energy", 1.3, 1.0),
)
"""Scenario, objective, real time and real watts over those of the model."""


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
        "| scenario | objective | time | watts | attainment off | on | goodput/s off | on |", end=""
    )
    print(" J/token off | on | cap writes/h off | on | factors (mean) | drifts |")
    print(f"|{'---|' * 14}")
    for name, objective, time, watts in CELLS:
        if wanted is not None and name not in wanted:
            continue
        off = measured(name, objective, time, watts, calibrated=False)
        on = measured(name, objective, time, watts, calibrated=True)
        rows += [off, on]
        print(line(off, on), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


def measured(
    name: str, objective: str, time: float, watts: float, *, calibrated: bool
) -> dict[str, Any]:
    """One run in figures."""
    experiment = other(prepare(load(name), Traffic()), objective, time, watts, calibrated)
    budget_w = experiment.budget_w(None)
    policy = _Watched(build_policy(experiment, Job("wattline", budget_w)))
    result = ClosedLoop(experiment, policy, budget_w=budget_w).run().result
    figures = asdict(result)
    kept = (
        "slo_attainment",
        "goodput_rps",
        "j_per_token",
        "cap_writes_per_hour",
        "rejected",
        "over_budget_enforced_ws",
    )
    return {
        "scenario": name,
        "objective": objective,
        "time": time,
        "watts": watts,
        "calibrated": calibrated,
        **{key: figures[key] for key in kept},
        "factors": factors(policy.ticks),
        "drifts": policy.drifts,
    }


def other(
    experiment: Experiment, objective: str, time: float, watts: float, calibrated: bool
) -> Experiment:
    """The experiment with a plant that is not as modelled."""
    settings = replace(
        experiment.settings,
        objective=objective,  # type: ignore[arg-type]
        calibration=CalibrationSettings() if calibrated else None,
    )
    engines: tuple[EngineModel, ...] = experiment.plant_engines
    if (time, watts) != (1.0, 1.0):
        engines = tuple(OtherEngine(engine, time, watts) for engine in engines)
    return replace(experiment, settings=settings, plant_engines=engines)


def factors(ticks: list[tuple[RoleCalibration, ...]]) -> dict[str, dict[str, float]]:
    """Mean over the run of each factor that a role has, as followed."""
    kinds = {"prefill": ("ttft", "power"), "decode": ("itl", "power")}
    found = {}
    for index, entry in enumerate(ticks[-1] if ticks else ()):
        found[str(entry.role)] = {
            kind: round(sum(getattr(t[index].factors, kind) for t in ticks) / len(ticks), 3)
            for kind in kinds.get(str(entry.role), ("ttft", "itl", "power"))
        }
    return found


def line(off: dict[str, Any], on: dict[str, Any]) -> str:
    """A row of the table."""
    shown = "; ".join(
        f"{role} {', '.join(f'{kind} {value:.2f}' for kind, value in kinds.items())}"
        for role, kinds in on["factors"].items()
    )
    cells = [off["scenario"], off["objective"], f"{off['time']:g}", f"{off['watts']:g}"]
    for key, form in (
        ("slo_attainment", ".4f"),
        ("goodput_rps", ".3f"),
        ("j_per_token", ".4f"),
        ("cap_writes_per_hour", ".0f"),
    ):
        cells += [format(off[key], form), format(on[key], form)]
    return f"| {' | '.join([*cells, shown, str(on['drifts'])])} |"


if __name__ == "__main__":
    main()
