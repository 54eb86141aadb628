"""In the closed loop: calibration helps where the model is too optimistic, and never harms."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from wattline.core.calibration.terms import CalibrationSettings
from wattline.core.decision import Decision, PoolPlan
from wattline.core.engine import EngineModel, ForwardPass, PassCost
from wattline.core.fleet import Role, Setting
from wattline.core.snapshot import Budget, Snapshot
from wattline.sim.experiment import Experiment, Traffic, prepare
from wattline.sim.loop import ClosedLoop
from wattline.sim.policies.registry import StartingPolicy, build
from wattline.sim.result import RunResult
from wattline.sim.scenario import load


@dataclass(frozen=True)
class SlowerEngine:
    """Passes take `time` times as long as those of `model`."""

    model: EngineModel
    time: float

    @property
    def kv_capacity_tokens(self) -> int:
        return self.model.kv_capacity_tokens

    @property
    def kv_bytes_per_token(self) -> float:
        return self.model.kv_bytes_per_token

    @property
    def max_num_seqs(self) -> int:
        return self.model.max_num_seqs

    @property
    def max_batched_tokens(self) -> int:
        return self.model.max_batched_tokens

    @property
    def idle_w(self) -> float:
        return self.model.idle_w

    def cost(self, work: ForwardPass, setting: Setting, derate: float = 1.0) -> PassCost:
        spent = self.model.cost(work, setting, derate)
        return replace(spent, duration_s=self.time * spent.duration_s)


class Watched:
    """A policy whose last decision is kept."""

    def __init__(self, policy: StartingPolicy) -> None:
        self._policy = policy
        self.name = policy.name
        self.interval_s = policy.interval_s
        self.uses_ledger = policy.uses_ledger
        self.last: Decision | None = None

    def initial_plan(self, budget: Budget) -> tuple[PoolPlan, ...]:
        return self._policy.initial_plan(budget)

    def decide(self, snapshot: Snapshot) -> Decision:
        self.last = self._policy.decide(snapshot)
        return self.last


def outcome(time: float, calibrated: bool) -> tuple[RunResult, Decision]:
    """The first minutes of the demo, on a plant that is `time` times as slow as modelled."""
    made: Experiment = prepare(load("demo"), Traffic(until_s=300.0))
    calibration = CalibrationSettings() if calibrated else None
    made = replace(
        made,
        settings=replace(made.settings, calibration=calibration),
        plant_engines=tuple(SlowerEngine(engine, time) for engine in made.plant_engines),
    )
    policy = Watched(build("wattline", made.settings, made.context))
    result = ClosedLoop(made, policy, budget_w=made.budget_w(None)).run().result
    assert policy.last is not None
    return result, policy.last


def figures(result: RunResult) -> tuple[float, ...]:
    return (result.slo_attainment, result.goodput_rps, result.energy_j, result.peak_booked_w)


def test_a_model_that_is_too_optimistic_is_made_up_for() -> None:
    without, _ = outcome(1.3, calibrated=False)
    with_it, decision = outcome(1.3, calibrated=True)
    assert with_it.slo_attainment > without.slo_attainment + 0.01
    assert with_it.over_budget_enforced_ws == 0.0
    assert decision.next_state is not None
    roles = {entry.role: entry for entry in decision.next_state.calibration[0].roles}
    assert roles[Role.DECODE].factors.itl == pytest.approx(1.3, abs=0.06)


@pytest.mark.parametrize("time", [1.0, 1.0 / 1.3])
def test_a_model_that_is_right_or_too_pessimistic_is_left_alone(time: float) -> None:
    without, _ = outcome(time, calibrated=False)
    with_it, decision = outcome(time, calibrated=True)
    assert figures(with_it) == figures(without)
    assert decision.next_state is not None
    assert max(entry.windows for entry in decision.next_state.calibration[0].roles) > 20
