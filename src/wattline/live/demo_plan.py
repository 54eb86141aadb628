"""What the live demonstration runs: one scenario, for processes and for the simulator alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from wattline.catalog.yaml_files import parse
from wattline.core.calibration.terms import CalibrationSettings
from wattline.core.decision import PoolPlan
from wattline.core.errors import InputError
from wattline.core.settings import Settings
from wattline.core.snapshot import Budget
from wattline.live.stack_spec import StackSpec
from wattline.sim.experiment import Experiment, Traffic, prepare
from wattline.sim.faults import BudgetCut, BudgetRestore
from wattline.sim.loop import ClosedLoop
from wattline.sim.policies.context import PolicyContext
from wattline.sim.policies.wattline import Wattline
from wattline.sim.result import Run
from wattline.sim.scenario import Scenario
from wattline.sim.scenario_build import BudgetChange

REPLICA_INTERVAL_S, REPLICA_HOLD_S = 5.0, 10.0
"""A run lasts a minute and a half: replicas are planned every 5 s, not every half minute."""
STREAM_STEPS = 1
LEAST_S, MOST_S = 15.0, 3600.0
SLICE, SLICE_S = "azure_2023_conv_300s.csv.gz", 300.0
"""Five busy minutes, 8 requests a second: the rows from 1,575 to 1,875 s of the 2023 conversation
trace of github.com/Azure/AzurePublicDataset (CC-BY-4.0)."""
_LEAST_DRAIN_S = 5.0
SIMULATED = "simulated"
"""The policy's name in the figures of the simulated run."""


@dataclass(frozen=True, slots=True)
class DemoPlan:
    """A scenario made ready, with the settings of the decision that both runs have."""

    experiment: Experiment

    @property
    def scenario(self) -> Scenario:
        """The scenario itself."""
        return self.experiment.scenario

    @property
    def budget_w(self) -> float:
        """The first budget."""
        return self.experiment.budget_w(None)

    @property
    def changes(self) -> tuple[BudgetChange, ...]:
        """Changes of the budget, in order."""
        return self.experiment.budget_changes(self.budget_w)

    @property
    def requests(self) -> list[tuple[float, int, int]]:
        """Arrival, prompt tokens and output tokens of every request."""
        return [(r.time_s, r.input_tokens, r.output_tokens) for r in self.experiment.trace]

    def stack(self) -> StackSpec:
        """The processes that it takes."""
        deployment = self.scenario.deployments[0]
        mix = self.experiment.settings.expected_mix(0)
        expected = {"input_tokens": mix.input_tokens, "output_tokens": mix.output_tokens}
        return StackSpec(
            deployment=deployment,
            budget_w=self.budget_w,
            guard_percent=self.scenario.budget.guard_percent,
            settle_s=self.scenario.plant.limiter.settle_s,
            stream_steps=STREAM_STEPS,
            changes={
                "decision": {
                    "replica_interval_s": REPLICA_INTERVAL_S,
                    "replica_hold_s": REPLICA_HOLD_S,
                    "expected": {deployment.name: expected},
                }
            },
        )


def load_plan(
    scenario: Scenario | None = None,
    *,
    seconds: float | None = None,
    trace: Path | None = None,
    seed: int | None = None,
) -> DemoPlan:
    """The plan of a scenario, the package's own by default.

    `seconds`: the length of the traffic; everything on the time axis is stretched to it. `trace`: a
    recorded trace, whose first seconds are the traffic; None: the slice in this package. `seed`:
    the traffic that the scenario itself generates, instead. InputError for what processes on one
    machine cannot show.
    """
    if trace is not None and seed is not None:
        raise InputError("seed", seed, "a recorded trace has none: give a trace or a seed")
    chosen = own_scenario() if scenario is None else scenario
    if seconds is not None:
        if not LEAST_S <= seconds <= MOST_S:
            raise InputError("seconds", seconds, f"give {LEAST_S:g} to {MOST_S:g}")
        chosen = stretched(chosen, seconds / chosen.duration_s)
    _check(chosen)
    if seed is not None:
        experiment = prepare(chosen, Traffic(), seed=seed)
    elif trace is not None:
        experiment = prepare(chosen, Traffic(trace=trace, until_s=chosen.duration_s))
    else:
        experiment = _of_the_slice(chosen)
    settings = replace(
        experiment.settings,
        replica_interval_s=REPLICA_INTERVAL_S,
        replica_hold_s=REPLICA_HOLD_S,
        calibration=CalibrationSettings(),  # as a controller has it unless told otherwise
    )
    return DemoPlan(replace(experiment, settings=settings))


def _of_the_slice(scenario: Scenario) -> Experiment:
    if scenario.duration_s > SLICE_S:
        remedy = f"the slice in this package has {SLICE_S:g} s: give a trace, or a seed"
        raise InputError("seconds", scenario.duration_s, remedy)
    with as_file(files("wattline.live").joinpath(SLICE)) as path:
        return prepare(scenario, Traffic(trace=path, until_s=scenario.duration_s))


def own_scenario() -> Scenario:
    """The scenario in this package."""
    text = files("wattline.live").joinpath("demo.yaml").read_bytes()
    return parse(Scenario, text, "demo.yaml")


def _check(scenario: Scenario) -> None:
    if len(scenario.deployments) != 1:
        raise InputError("deployments", len(scenario.deployments), "the demonstration has one")
    for fault in scenario.faults:
        if not isinstance(fault, BudgetCut | BudgetRestore):
            raise InputError("faults", fault.kind, "only budget_cut and budget_restore")


def stretched(scenario: Scenario, factor: float) -> Scenario:
    """The scenario with its time axis multiplied; rates and start-up times stay.

    The time in which requests may still finish shrinks with it, but does not grow.
    """
    document: dict[str, Any] = scenario.model_dump(mode="json", exclude_defaults=True)
    document["duration_s"] = scenario.duration_s * factor
    document["drain_s"] = max(_LEAST_DRAIN_S, scenario.drain_s * min(1.0, factor))
    for stream in document["traffic"]:
        for part in (stream.get("swing"), *stream.get("surges", [])):
            _stretch(part or {}, factor)
    for part in (*document["budget"].get("schedule", []), *document.get("faults", [])):
        _stretch(part, factor)
    return Scenario.model_validate(document)


def _stretch(part: dict[str, Any], factor: float) -> None:
    for key, value in part.items():
        if key.endswith("_s"):
            part[key] = value * factor


class _FromHere(Wattline):
    """The decision of this package, on a fleet that starts where another one was."""

    name = SIMULATED

    def __init__(
        self, settings: Settings, context: PolicyContext, start: Sequence[PoolPlan]
    ) -> None:
        super().__init__(settings, context)
        self._start = tuple(start)

    def initial_plan(self, budget: Budget) -> tuple[PoolPlan, ...]:
        """Replicas and caps that the live fleet had when its load began."""
        return self._start


def simulate(plan: DemoPlan, start: Sequence[PoolPlan]) -> Run:
    """The same scenario in the simulator, from the plan that was in force when the load began."""
    experiment = plan.experiment
    policy = _FromHere(experiment.settings, experiment.context, start)
    return ClosedLoop(experiment, policy, budget_w=plan.budget_w).run()
