"""What the closed loop needs of a scenario: fleet, traffic, changes of the budget, plant."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from wattline.catalog import fleet_spec
from wattline.catalog.fleet_spec import AnyEngine
from wattline.core import profile
from wattline.core.errors import InputError
from wattline.core.fleet import Fleet
from wattline.sim.faults import BudgetCut, BudgetRestore, target_gpus
from wattline.sim.plant.config import PlantConfig, Routing
from wattline.sim.scenario import Scenario
from wattline.sim.trace_files import read_trace
from wattline.sim.traces import Trace
from wattline.sim.traffic import build_streams


def to_fleet(scenario: Scenario) -> Fleet:
    """Build the fleet: pools in the scenario's order, GPU products in order of first use.

    InputError for GPU products that the catalog does not hold.
    """
    where = f"scenario {scenario.name}"
    return fleet_spec.to_fleet(
        scenario.deployments, where, settle_s=scenario.plant.limiter.settle_s
    )


def to_engines(scenario: Scenario, fleet: Fleet, folder: Path = Path()) -> tuple[AnyEngine, ...]:
    """Build the engine of each pool, in the fleet's order, as the decision knows it.

    InputError for unknown models, models that do not fit their GPUs, and unusable profiles.
    """
    where = f"scenario {scenario.name}"
    return fleet_spec.to_engines(scenario.deployments, fleet, folder, where)


def plant_engines(scenario: Scenario, engines: tuple[AnyEngine, ...]) -> tuple[AnyEngine, ...]:
    """Build the engines of the plant: those of the decision, off by the scenario's factors."""
    plant = scenario.plant
    factors = (plant.exponent_factor, plant.static_factor, plant.floor_factor)
    if factors == (1.0, 1.0, 1.0):
        return engines
    return tuple(_perturbed(engine, factors) for engine in engines)


def _perturbed(engine: AnyEngine, factors: tuple[float, float, float]) -> AnyEngine:
    exponent, static, floor = factors
    response = engine.response.perturbed(exponent=exponent, static=static, floor=floor)
    if isinstance(engine, profile.ProfileEngine) and engine.roofline is not None:
        split = replace(engine.roofline, response=response)
        return replace(engine, response=response, roofline=split)
    return replace(engine, response=response)


def to_plant_config(scenario: Scenario) -> PlantConfig:
    """Build the plant's assumptions: its defaults, changed where the scenario says so."""
    spec, default = scenario.plant, PlantConfig()
    noise = default.noise
    network = spec.network_gbytes_per_s
    return replace(
        default,
        routing=Routing(spec.routing),
        gpus_per_node=spec.gpus_per_node,
        noise=replace(noise, sample_sigma=noise.sample_sigma * spec.limiter.noise),
        kv_bytes_per_s_per_gpu=(
            default.kv_bytes_per_s_per_gpu if network is None else network * 1e9
        ),
    )


def check_targets(scenario: Scenario, fleet: Fleet) -> None:
    """Raise InputError for a fault whose target the fleet does not have."""
    for number, fault in enumerate(scenario.faults):
        target = getattr(fault, "target", None)
        if target is not None:
            where = f"scenario {scenario.name}, faults[{number}].target"
            target_gpus(target, fleet, scenario.plant.gpus_per_node, where)


def build_traffic(
    scenario: Scenario,
    *,
    seed: int | None = None,
    trace: Path | None = None,
    from_s: float = 0.0,
    until_s: float | None = None,
    scale_load: float = 1.0,
    folder: Path = Path(),
) -> Trace:
    """Build the scenario's traffic, or read `trace` in its place; then cut it.

    `scale_load` multiplies the load: generated traffic by its rate, with its swings left as they
    are; a trace file by compressing time, after the cut. `folder` is where paths in the scenario
    are relative to. A trace's requests go to the deployment whose index they name, else the first.
    """
    seed = scenario.seed if seed is None else seed
    deployments = [deployment.name for deployment in scenario.deployments]
    if trace is not None:
        result = read_trace(trace, seed).cut(from_s, until_s).scaled(scale_load)
    else:
        result = build_streams(
            scenario.traffic,
            deployments,
            seed=seed,
            duration_s=scenario.duration_s,
            scale_load=scale_load,
            folder=folder,
        ).cut(from_s, until_s)
    highest = int(result.deployment.max())
    if highest >= len(deployments):
        raise InputError(
            f"{result.source}: deployment",
            highest,
            f"the scenario has deployments 0 to {len(deployments) - 1}",
        )
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetChange:
    """The budget becomes `total_w`: seen at `announced_s`, judged from `effective_s` on."""

    announced_s: float
    effective_s: float
    total_w: float
    cause: Literal["schedule", "cut", "restored"]


def first_budget_w(scenario: Scenario, max_limit_w: float) -> float:
    """Return the budget at the start; `max_limit_w` is the sum of the GPUs' maximum limits."""
    budget = scenario.budget
    if budget.total_w is not None:
        return budget.total_w
    assert budget.total_percent is not None  # checked when the scenario was read
    return round(budget.total_percent / 100.0 * max_limit_w, 6)


def budget_changes(
    scenario: Scenario, *, start_w: float, max_limit_w: float
) -> tuple[BudgetChange, ...]:
    """Return all changes of the budget in order of announcement.

    `start_w` is the run's first budget, which the command line may have set. A cut that ends gives
    `start_w` back.
    """
    changes: list[BudgetChange] = []

    def add(
        at_s: float, notice_s: float, total_w: float, cause: Literal["schedule", "cut", "restored"]
    ) -> None:
        changes.append(
            BudgetChange(
                announced_s=round(at_s, 6),
                effective_s=round(at_s + notice_s, 6),
                total_w=round(total_w, 6),
                cause=cause,
            )
        )

    for planned in scenario.budget.schedule:
        total_w = planned.total_w(start_w=start_w, max_limit_w=max_limit_w)
        add(planned.at_s, 0.0, total_w, "schedule")
    for fault in scenario.faults:
        if isinstance(fault, BudgetCut):
            total_w = fault.total_w(start_w=start_w, max_limit_w=max_limit_w)
            add(fault.at_s, fault.notice_s, total_w, "cut")
            if fault.duration_s is not None:
                add(fault.at_s + fault.notice_s + fault.duration_s, 0.0, start_w, "restored")
        elif isinstance(fault, BudgetRestore):
            total_w = fault.total_w(start_w=start_w, max_limit_w=max_limit_w)
            add(fault.at_s, 0.0, total_w, "restored")
    return tuple(sorted(changes, key=lambda change: change.announced_s))
