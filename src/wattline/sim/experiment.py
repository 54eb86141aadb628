"""One scenario made ready to run: fleet, engines, traffic, budget and its changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from wattline.core.capacity import Margins, fleet_capacity_rps
from wattline.core.engine import EngineModel
from wattline.core.errors import InputError
from wattline.core.fleet import Fleet, Role
from wattline.core.mix import Mix
from wattline.core.settings import Settings
from wattline.sim.plant.config import PlantConfig
from wattline.sim.policies.context import PolicyContext
from wattline.sim.scenario import Scenario
from wattline.sim.scenario_build import (
    BudgetChange,
    budget_changes,
    build_traffic,
    check_targets,
    first_budget_w,
    plant_engines,
    to_engines,
    to_fleet,
    to_plant_config,
)
from wattline.sim.traces import Trace

SATURATION = 1.1
"""Offered load under `--scale-load saturate`, over what the uncapped fleet can serve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What the command line says about traffic; the rest is the scenario's."""

    trace: Path | None = None
    from_s: float | None = None
    until_s: float | None = None
    scale_load: float | Literal["saturate"] = 1.0


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A scenario made ready.

    `settings.engines` are the models that decisions use, `plant_engines` those that the plant runs
    (the same unless the scenario perturbs the cap response). `duration_s` is the trace's, `end_s`
    adds the drain: the fixed window over which tokens and joules are counted. `load_factor` is what
    the traffic was scaled by.
    """

    scenario: Scenario
    settings: Settings
    plant_engines: tuple[EngineModel, ...]
    plant_config: PlantConfig
    context: PolicyContext
    trace: Trace
    load_factor: float
    seed: int

    @property
    def fleet(self) -> Fleet:
        """The fleet of the scenario."""
        return self.settings.fleet

    @cached_property
    def uuids(self) -> tuple[str, ...]:
        """Names of the simulated GPUs."""
        return tuple(f"GPU-{index:06d}" for index in range(self.fleet.gpu_count))

    @property
    def duration_s(self) -> float:
        """Length of the traffic."""
        return self.trace.duration_s

    @property
    def end_s(self) -> float:
        """End of the run."""
        return self.trace.duration_s + self.scenario.drain_s

    @property
    def notes(self) -> tuple[str, ...]:
        """What a report has to say about the traffic."""
        scaled = (f"Load scaled by {self.load_factor:.4g}.",) if self.load_factor != 1.0 else ()
        return (*self.trace.notes, *scaled)

    def budget_w(self, budget: str | None) -> float:
        """Watts of `budget`: `N%` of the sum of maximum limits, watts, or the scenario's (None).

        InputError if all GPUs at their lowest limits would book more.
        """
        budget_w = self._asked_w(budget)
        lowest_w = sum(
            pool.gpus * self.fleet.product_of(pool).min_limit_w for pool in self.fleet.pools
        )
        if lowest_w + self.guard_w(budget_w) > budget_w:
            raise InputError(
                "budget",
                f"{budget_w:g} W",
                f"{self.fleet.gpu_count} GPUs at their lowest limits and the guard take "
                f"{lowest_w + self.guard_w(budget_w):,.0f} W: give more, or fewer GPUs",
            )
        return budget_w

    def _asked_w(self, budget: str | None) -> float:
        max_limit_w = self.fleet.max_limit_w
        if budget is None:
            return first_budget_w(self.scenario, max_limit_w)
        text = budget.strip().removesuffix("W").removesuffix("w").strip()
        percent = text.endswith("%")
        try:
            number = float(text.removesuffix("%"))
        except ValueError:
            number = float("nan")
        watts = number / 100.0 * max_limit_w if percent else number
        if not 0.0 < watts <= 1e9:
            raise InputError("budget", budget, "give watts (13440) or a percentage (60%) above 0")
        return round(watts, 6)

    def budget_changes(self, start_w: float) -> tuple[BudgetChange, ...]:
        """Changes of the budget during the run, in order."""
        return budget_changes(self.scenario, start_w=start_w, max_limit_w=self.fleet.max_limit_w)

    def guard_w(self, budget_w: float) -> float:
        """Guard band of a budget."""
        return round(budget_w * self.scenario.budget.guard_percent / 100.0, 6)


def prepare(
    scenario: Scenario,
    traffic: Traffic,
    *,
    seed: int | None = None,
    folder: Path = Path(),
) -> Experiment:
    """Build everything that the runs of one scenario share; InputError names what is wrong."""
    seed = scenario.seed if seed is None else seed
    fleet = to_fleet(scenario)
    check_targets(scenario, fleet)
    engines = to_engines(scenario, fleet, folder)
    factor = 1.0 if traffic.scale_load == "saturate" else traffic.scale_load

    def build(load: float) -> Trace:
        return build_traffic(
            scenario,
            seed=seed,
            trace=traffic.trace,
            from_s=traffic.from_s or 0.0,
            until_s=traffic.until_s,
            scale_load=load,
            folder=folder,
        )

    trace = build(factor)
    expected = tuple(
        _expected_mix(trace, index, fleet, engines, scenario.plant.routing)
        for index in range(len(fleet.deployments))
    )
    settings = Settings(
        fleet=fleet, engines=engines, objective=scenario.objective, expected=expected
    )
    if traffic.scale_load == "saturate":
        factor = _saturating_factor(settings, trace)
        trace = build(factor)
    return Experiment(
        scenario=scenario,
        settings=settings,
        plant_engines=plant_engines(scenario, engines),
        plant_config=to_plant_config(scenario),
        context=PolicyContext(
            role_caps={
                Role.PREFILL: scenario.static_caps.prefill,
                Role.DECODE: scenario.static_caps.decode,
                Role.AGGREGATED: scenario.static_caps.aggregated,
            },
        ),
        trace=trace,
        load_factor=factor,
        seed=seed,
    )


def _expected_mix(
    trace: Trace,
    deployment: int,
    fleet: Fleet,
    engines: Sequence[EngineModel],
    routing: str,
) -> Mix:
    """What an operator knows beforehand: the mean request of this traffic."""
    rows = trace.deployment == deployment
    if not rows.any():
        return Mix(1024.0, 256.0)
    cached = 0.0
    if routing == "kv_aware":
        name = fleet.deployments[deployment].name
        room = sum(
            engine.kv_capacity_tokens * (pool.gpus // pool.gpus_per_replica)
            for pool, engine in zip(fleet.pools, engines, strict=True)
            if pool.deployment == name and pool.role is not Role.DECODE
        )
        cached = trace.cached_share(deployment, room)
    return Mix(
        round(float(trace.input_tokens[rows].mean()), 3),
        round(float(trace.output_tokens[rows].mean()), 3),
        cached,
    )


def _saturating_factor(settings: Settings, trace: Trace) -> float:
    """Factor that makes the offered load `SATURATION` times the uncapped fleet's capacity.

    With several deployments the one closest to its capacity sets the factor.
    """
    factors = []
    mix = trace.mix()
    spread = Margins(input_cv2=mix.input_cv2, output_cv2=mix.output_cv2)
    capacity_rps = fleet_capacity_rps(settings.fleet, settings.engines, settings.expected, spread)
    for index, served in enumerate(capacity_rps):
        offered = int((trace.deployment == index).sum()) / trace.duration_s
        if offered > 0.0 and served > 0.0:
            factors.append(SATURATION * served / offered)
    if not factors:
        raise InputError(
            "--scale-load", "saturate", "no deployment can meet its targets: relax the SLO"
        )
    return min(factors)
