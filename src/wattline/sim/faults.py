"""What can go wrong in a scenario: one typed event per fault.

A fault starts at `at_s` (seconds from the start of the run) and holds for `duration_s`; without a
duration it holds until the end. What each kind does to the plant is said in its docstring.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from wattline.catalog.yaml_files import StrictModel, did_you_mean
from wattline.core.errors import InputError
from wattline.core.fleet import Fleet

Seconds = Annotated[float, Field(ge=0.0, le=366 * 86_400.0)]
Factor = Annotated[float, Field(gt=0.0, le=100.0)]


class Target(StrictModel):
    """Which GPUs a fault hits. Nothing given: all of them.

    With `pool`, `node` and `gpu` count within that pool; without, over the whole fleet. GPUs are
    numbered in the order of the pools; a node holds `gpus_per_node` GPUs of one pool.
    """

    pool: str | None = None
    """Name of a pool."""
    node: int | None = Field(default=None, ge=0, le=1_000_000)
    """Number of a node, from 0."""
    gpu: int | None = Field(default=None, ge=0, le=1_000_000)
    """Number of a GPU, from 0."""

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if self.node is not None and self.gpu is not None:
            raise ValueError("give node or gpu, not both")
        return self


class _Event(StrictModel):
    at_s: Seconds
    """When it starts, seconds from the start of the run."""


class _Lasting(_Event):
    duration_s: Annotated[float, Field(gt=0.0, le=366 * 86_400.0)] | None = None
    """How long it holds; left out: until the end of the run."""

    @property
    def until_s(self) -> float:
        """When it ends; infinity when it does not."""
        return float("inf") if self.duration_s is None else self.at_s + self.duration_s


class _Targeted(_Lasting):
    target: Target = Target()
    """Which GPUs it hits; left out: all."""


class MetricsOutage(_Lasting):
    """No demand, latency, queue or power measurement arrives: the values are missing."""

    kind: Literal["metrics_outage"]
    """Always `metrics_outage`."""


class MetricsStale(_Lasting):
    """Measurements stop moving: the last values are repeated, with their growing age."""

    kind: Literal["metrics_stale"]
    """Always `metrics_stale`."""


class MetricsNan(_Lasting):
    """The metrics server answers NaN, which must be read as missing and never as zero."""

    kind: Literal["metrics_nan"]
    """Always `metrics_nan`."""


class AgentSilent(_Targeted):
    """Agents of the target's nodes neither report nor obey; limits stay as they are."""

    kind: Literal["agent_silent"]
    """Always `agent_silent`."""


class WriteRefused(_Targeted):
    """Writes of a limit fail: the enforced limit stays, and the report says so."""

    kind: Literal["write_refused"]
    """Always `write_refused`."""


class WriteClamped(_Targeted):
    """Writes below `floor_w` come back as `floor_w`: the device obeys a range of its own."""

    kind: Literal["write_clamped"]
    """Always `write_clamped`."""
    floor_w: float = Field(gt=0.0, le=10_000.0)
    """Lowest limit that the device takes, watts."""


class RivalWriter(_Targeted):
    """Somebody else writes `limit_w`, at once and then every `every_s` seconds."""

    kind: Literal["rival_writer"]
    """Always `rival_writer`."""
    limit_w: float = Field(gt=0.0, le=10_000.0)
    """Limit that the rival writes, watts; clamped to the device's range."""
    every_s: float = Field(default=30.0, ge=1.0, le=86_400.0)
    """Seconds between two writes."""


class NodeLost(_Targeted):
    """The target's nodes go down; what they served starts again on other workers.

    After `duration_s` they are back, empty, at their default limits (a reboot forgets caps).
    """

    kind: Literal["node_lost"]
    """Always `node_lost`."""


class ReplicaNeverReady(_Lasting):
    """Replicas of `pool` that are started in this time load for ever and never serve."""

    kind: Literal["replica_never_ready"]
    """Always `replica_never_ready`."""
    pool: str
    """Name of the pool."""


class BudgetChange(_Event):
    """Common to cuts and restorations: exactly one of the three ways to say the new budget."""

    to_w: float | None = Field(default=None, gt=0.0, le=1e9)
    """New budget, watts."""
    to_percent: float | None = Field(default=None, gt=0.0, le=100.0)
    """New budget, percent of the sum of the GPUs' maximum limits."""
    to_fraction: float | None = Field(default=None, gt=0.0, le=10.0)
    """New budget as a fraction of the budget that the run started with."""

    def total_w(self, *, start_w: float, max_limit_w: float) -> float:
        """Return the new budget in watts, given the run's first budget and the sum of limits."""
        if self.to_w is not None:
            return self.to_w
        if self.to_percent is not None:
            return self.to_percent / 100.0 * max_limit_w
        return start_w if self.to_fraction is None else self.to_fraction * start_w

    @property
    def amounts(self) -> int:
        """How many of the three ways are used."""
        return sum(v is not None for v in (self.to_w, self.to_percent, self.to_fraction))


class BudgetCut(BudgetChange):
    """The budget falls; after `duration_s`, if given, the first budget is back."""

    kind: Literal["budget_cut"]
    """Always `budget_cut`."""
    notice_s: Seconds = 0.0
    """Seconds between the announcement at `at_s` and the moment from which the cut is judged."""
    duration_s: Annotated[float, Field(gt=0.0, le=366 * 86_400.0)] | None = None
    """How long the cut holds, from its effect; left out: until another change."""

    @model_validator(mode="after")
    def _one_amount(self) -> Self:
        if self.amounts != 1:
            raise ValueError("give exactly one of to_w, to_percent, to_fraction")
        return self


class BudgetRestore(BudgetChange):
    """The budget rises again: to the given value, or to the one the run started with."""

    kind: Literal["budget_restore"]
    """Always `budget_restore`."""

    @model_validator(mode="after")
    def _one_amount(self) -> Self:
        if self.amounts > 1:
            raise ValueError("give at most one of to_w, to_percent, to_fraction")
        return self


class _Bias(_Targeted):
    signal: Literal["prefill_time", "decode_time", "power"]
    """What the plant does otherwise than the model says: times of passes, or watts drawn."""

    @model_validator(mode="after")
    def _whole_pools(self) -> Self:
        if self.target.node is not None or self.target.gpu is not None:
            raise ValueError("a bias holds for whole pools: give target.pool, or no target")
        return self


class BiasStep(_Bias):
    """The plant's signal is `factor` x the model's."""

    kind: Literal["bias_step"]
    """Always `bias_step`."""
    factor: Factor
    """Plant / model; 1.2 means 20 % slower, or 20 % more watts."""


class BiasRamp(_Bias):
    """The factor goes in a straight line from 1 to `factor` in `ramp_s`, and stays there."""

    kind: Literal["bias_ramp"]
    """Always `bias_ramp`."""
    factor: Factor
    """Plant / model at the end of the ramp."""
    ramp_s: Annotated[float, Field(gt=0.0, le=366 * 86_400.0)]
    """Length of the ramp; `duration_s` counts ramp and plateau together."""


class BiasSine(_Bias):
    """The factor swings as 1 + `amplitude` x sin(2 pi (t - at_s) / `period_s`)."""

    kind: Literal["bias_sine"]
    """Always `bias_sine`."""
    amplitude: float = Field(gt=0.0, lt=1.0)
    """Largest deviation from 1."""
    period_s: float = Field(ge=1.0, le=86_400.0 * 7)
    """Seconds of one swing."""


class HeatDerate(_Targeted):
    """GPUs run at `speed` of their speed, whatever their cap: hot, or damaged."""

    kind: Literal["heat_derate"]
    """Always `heat_derate`."""
    speed: float = Field(gt=0.0, le=1.0)
    """Speed left; 1.0 is healthy."""


Fault = Annotated[
    MetricsOutage
    | MetricsStale
    | MetricsNan
    | AgentSilent
    | WriteRefused
    | WriteClamped
    | RivalWriter
    | NodeLost
    | ReplicaNeverReady
    | BudgetCut
    | BudgetRestore
    | BiasStep
    | BiasRamp
    | BiasSine
    | HeatDerate,
    Field(discriminator="kind"),
]
FAULT_TYPES: tuple[type[_Event], ...] = (
    MetricsOutage,
    MetricsStale,
    MetricsNan,
    AgentSilent,
    WriteRefused,
    WriteClamped,
    RivalWriter,
    NodeLost,
    ReplicaNeverReady,
    BudgetCut,
    BudgetRestore,
    BiasStep,
    BiasRamp,
    BiasSine,
    HeatDerate,
)


def node_of_gpus(fleet: Fleet, gpus_per_node: int) -> tuple[int, ...]:
    """Return the node of each GPU: nodes hold GPUs of one pool, the last of a pool maybe fewer."""
    nodes: list[int] = []
    first = 0
    for pool in fleet.pools:
        nodes.extend(first + gpu // gpus_per_node for gpu in range(pool.gpus))
        first = nodes[-1] + 1 if nodes else 0
    return tuple(nodes)


def target_gpus(
    target: Target, fleet: Fleet, gpus_per_node: int, where: str = "target"
) -> tuple[int, ...]:
    """Return the indices of the GPUs that `target` means; InputError if there are none such."""
    gpus = range(fleet.gpu_count)
    nodes = node_of_gpus(fleet, gpus_per_node)
    if target.pool is not None:
        names = [pool.name for pool in fleet.pools]
        if target.pool not in names:
            raise InputError(f"{where}.pool", target.pool, did_you_mean(target.pool, names, "pool"))
        index = names.index(target.pool)
        first = sum(pool.gpus for pool in fleet.pools[:index])
        gpus = range(first, first + fleet.pools[index].gpus)
    if target.gpu is not None:
        if target.gpu >= len(gpus):
            raise InputError(f"{where}.gpu", target.gpu, f"GPUs are 0 to {len(gpus) - 1}")
        return (gpus[target.gpu],)
    if target.node is not None:
        distinct = sorted({nodes[gpu] for gpu in gpus})
        if target.node >= len(distinct):
            raise InputError(f"{where}.node", target.node, f"nodes are 0 to {len(distinct) - 1}")
        return tuple(gpu for gpu in gpus if nodes[gpu] == distinct[target.node])
    return tuple(gpus)
