"""What a scenario file may say: fleet, traffic, budget, plant, telemetry and faults.

Every key has its unit in its name and its meaning in the docstring below it; the reference page
docs/reference/scenario.md is rendered from them.
"""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from wattline.catalog.fleet_spec import DeploymentSpec, Name, PoolSpec
from wattline.catalog.yaml_files import StrictModel, did_you_mean, parse
from wattline.core.errors import InputError
from wattline.core.fleet import Role
from wattline.sim.faults import BudgetChange, BudgetCut, BudgetRestore, Fault
from wattline.sim.traffic import Span, Traffic

Sentence = Annotated[str, StringConstraints(pattern=r"^[^\r\n]{1,200}$")]
Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
Uncertainty = Annotated[float, Field(ge=0.1, le=10.0)]


class PlannedChange(BudgetChange):
    """A change of the budget that is planned: at `at_s`, the budget becomes what is given."""

    @model_validator(mode="after")
    def _one_amount(self) -> Self:
        if self.amounts != 1:
            raise ValueError("give exactly one of to_w, to_percent, to_fraction")
        return self


class BudgetSpec(StrictModel):
    """Watts that the fleet may book. Exactly one of `total_w` and `total_percent`."""

    total_w: float | None = Field(default=None, gt=0.0, le=1e9)
    """Budget, watts."""
    total_percent: float | None = Field(default=None, gt=0.0, le=100.0)
    """Budget, percent of the sum of the GPUs' maximum limits."""
    guard_percent: float = Field(default=2.0, ge=0.0, le=50.0)
    """Percent of the budget that is kept free, because a limit is not an instantaneous ceiling."""
    rise_w_per_s: float | None = Field(default=None, gt=0.0, le=1e9)
    """How fast booked watts may grow (UPS, generator); left out: no limit."""
    schedule: list[PlannedChange] = Field(default=[], max_length=1000)
    """Planned changes."""

    @model_validator(mode="after")
    def _one_amount(self) -> Self:
        if (self.total_w is None) == (self.total_percent is None):
            raise ValueError("give exactly one of total_w, total_percent")
        return self


class LimiterSpec(StrictModel):
    """How well a GPU's power limiter holds its limit."""

    noise: float = Field(default=1.0, ge=0.0, le=10.0)
    """Scale of the excursions above a cap: 1 as measured on H100, 0 a perfect limiter."""
    settle_s: float | None = Field(default=None, ge=0.0, le=60.0)
    """Seconds until the draw follows a new limit; left out: the product's figure."""


class PlantSpec(StrictModel):
    """How the simulated fleet differs from its defaults."""

    routing: Literal["round_robin", "least_loaded", "kv_aware"] = "least_loaded"
    """How a frontend picks a worker."""
    gpus_per_node: int = Field(default=8, ge=1, le=1024)
    """GPUs of a node; a node's GPUs belong to one pool."""
    network_gbytes_per_s: float | None = Field(default=None, gt=0.0, le=10_000.0)
    """Gigabytes per second and GPU between prefill and decode; left out: 50 (one 400 Gb/s port)."""
    limiter: LimiterSpec = LimiterSpec()
    """Power limiter of the GPUs."""
    exponent_factor: Uncertainty = 1.0
    """Plant / model: exponent of power over clock."""
    static_factor: Uncertainty = 1.0
    """Plant / model: share of power that does not depend on the clock."""
    floor_factor: Uncertainty = 1.0
    """Plant / model: cap below which memory slows down."""


class TelemetrySpec(StrictModel):
    """What the decision gets to see, and when."""

    delay_s: float = Field(default=1.0, ge=0.0, le=600.0)
    """Age of the newest measurement."""
    power_noise: float = Field(default=0.02, ge=0.0, le=0.5)
    """Relative error (standard deviation) of a power measurement."""


class StaticCaps(StrictModel):
    """Caps of the policy `static-caps`, as fractions of the maximum limit.

    The defaults are Dynamo's worked example: 500 W for prefill and 425 W for decode on 700 W parts;
    their mean for aggregated pools.
    """

    prefill: Fraction = 0.714
    """Prefill pools."""
    decode: Fraction = 0.607
    """Decode pools."""
    aggregated: Fraction = 0.661
    """Aggregated pools."""


class Scenario(StrictModel):
    """One fleet, its traffic, its budget, and what goes wrong."""

    name: Name
    """Name of the scenario."""
    description: Sentence
    """One line on what it shows."""
    seed: int = Field(default=1, ge=0, le=2**53)
    """Seed of everything random."""
    duration_s: Span
    """Length of generated traffic; a trace has its own."""
    drain_s: float = Field(default=60.0, ge=0.0, le=3600.0)
    """Time after the last arrival in which requests may still finish; energy counts it too."""
    objective: Literal["throughput", "energy"] = "throughput"
    """`throughput`: most requests within their targets; `energy`: fewest joules that meet them."""
    deployments: list[DeploymentSpec] = Field(min_length=1, max_length=100)
    """What is served, and by which GPUs."""
    traffic: list[Traffic] = Field(min_length=1, max_length=100)
    """Streams of requests, added up."""
    budget: BudgetSpec
    """Watts."""
    static_caps: StaticCaps = StaticCaps()
    """Caps of the policy `static-caps`."""
    plant: PlantSpec = PlantSpec()
    """The simulated hardware."""
    telemetry: TelemetrySpec = TelemetrySpec()
    """Measurements."""
    faults: list[Fault] = Field(default=[], max_length=1000)
    """What goes wrong, and when."""

    @property
    def pools(self) -> list[PoolSpec]:
        """Pools of all deployments, in order."""
        return [pool for deployment in self.deployments for pool in deployment.pools]

    @model_validator(mode="after")
    def _names_meet(self) -> Self:
        deployments = [deployment.name for deployment in self.deployments]
        pools = [pool.name for pool in self.pools]
        for kind, names in (("deployment", deployments), ("pool", pools)):
            twice = [name for name in names if names.count(name) > 1]
            if twice:
                raise ValueError(f"two {kind}s are called {twice[0]}")
        for number, stream in enumerate(self.traffic):
            if stream.deployment is not None and stream.deployment not in deployments:
                remedy = did_you_mean(stream.deployment, deployments, "deployment")
                raise ValueError(f"traffic[{number}].deployment {stream.deployment}: {remedy}")
        for number, fault in enumerate(self.faults):
            target = getattr(fault, "target", None)
            pool = getattr(fault, "pool", None) or (target and target.pool)
            if pool is not None and pool not in pools:
                remedy = did_you_mean(pool, pools, "pool")
                raise ValueError(f"faults[{number}] pool {pool}: {remedy}")
        return self


def roles(scenario: Scenario) -> tuple[Role, ...]:
    """Return the role of each pool, in order."""
    return tuple(Role(pool.role) for pool in scenario.pools)


def budget_faults(scenario: Scenario) -> list[BudgetCut | BudgetRestore]:
    """Return the faults that change the budget."""
    return [f for f in scenario.faults if isinstance(f, BudgetCut | BudgetRestore)]


def _builtin_folder() -> Traversable:
    return resources.files("wattline.sim") / "scenarios"


def builtin_names() -> list[str]:
    """Names of the scenarios that ship with the package; `demo` first, the rest by name."""
    names = [f.name[:-5] for f in _builtin_folder().iterdir() if f.name.endswith(".yaml")]
    return sorted(names, key=lambda name: (name != "demo", name))


def builtin_text(name: str) -> str:
    """YAML of the built-in scenario `name`, comments included; InputError if there is none."""
    if name not in builtin_names():
        raise InputError(
            "scenario",
            name,
            did_you_mean(name, builtin_names(), "scenario") + "; or give a path to a YAML file",
        )
    return (_builtin_folder() / f"{name}.yaml").read_text(encoding="utf-8")


def load(name_or_path: str) -> Scenario:
    """Load a built-in scenario by name, or any by path (it has a slash or ends in .yaml or .yml).

    InputError: what is wrong, with file, line, field, value and remedy.
    """
    if "/" not in name_or_path and not name_or_path.endswith((".yaml", ".yml")):
        return parse(Scenario, builtin_text(name_or_path), f"{name_or_path}.yaml")
    try:
        text = Path(name_or_path).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(name_or_path, reason, "give a readable scenario file") from error
    return parse(Scenario, text, name_or_path)


def folder_of(name_or_path: str) -> Path:
    """Return the folder that paths inside the scenario are relative to: that of its file."""
    return Path(name_or_path).parent
