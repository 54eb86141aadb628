"""What a run yields: one row of figures, and the series that a report draws.

Definitions (also in docs/concepts/metrics.md). ITL of a request = (last - first token time)/(n-1).
Goodput = requests that met both targets / duration of the trace. Attainment = the same count over
*offered* requests: rejected and unfinished ones missed. Tokens and joules are over one fixed
window: the duration of the trace plus the drain that the scenario states.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """One policy at one budget on one trace: the columns of `wattline compare --json`."""

    policy: str
    budget_w: float
    budget_fraction: float
    seed: int
    requests: int
    completed: int
    rejected: int
    unfinished: int
    goodput_rps: float
    slo_attainment: float
    ttft_p50_ms: float | None
    ttft_p99_ms: float | None
    itl_p50_ms: float | None
    itl_p99_ms: float | None
    energy_j: float
    j_per_token: float | None
    output_tokens: int
    peak_booked_w: float
    peak_enforced_w: float
    peak_draw_1s_w: float
    over_budget_enforced_ws: float
    exposure_enforced_ws: float
    over_budget_draw_ws: float
    cap_writes_per_hour: float
    cap_reversals_per_hour: float
    replica_changes: int
    gpus: int
    wall_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSeries:
    """One pool over time; columns as long as `RunSeries.time_s`.

    cap_w is the mean enforced limit over the pool's GPUs, draw_w their summed draw.
    """

    name: str
    role: str
    deployment: str
    cap_w: list[float] = field(default_factory=list)
    draw_w: list[float] = field(default_factory=list)
    enforced_w: list[float] = field(default_factory=list)
    ready: list[int] = field(default_factory=list)
    starting: list[int] = field(default_factory=list)
    queue_tokens: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentSeries:
    """One deployment over time. Latencies are over requests that ended in the step, or None."""

    name: str
    ttft_target_s: float
    itl_target_s: float
    offered_rps: list[float] = field(default_factory=list)
    goodput_rps: list[float] = field(default_factory=list)
    rejected_rps: list[float] = field(default_factory=list)
    ttft_p50_s: list[float | None] = field(default_factory=list)
    ttft_p99_s: list[float | None] = field(default_factory=list)
    itl_p50_s: list[float | None] = field(default_factory=list)
    itl_p99_s: list[float | None] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEvent:
    """Something worth a mark on the time axis.

    kind: `fault`, `budget`, `plan`, `exposure`, `admission`. `exposure_ws` is what the event
    exposed, None where it exposed nothing.
    """

    time_s: float
    kind: str
    text: str
    exposure_ws: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSeries:
    """What a report draws of one run: at most about 1,500 steps of `step_s` seconds each."""

    step_s: float
    time_s: list[float]
    budget_w: list[float]
    booked_w: list[float]
    enforced_w: list[float]
    draw_w: list[float]
    draw_peak_1s_w: list[float]
    pools: list[PoolSeries]
    deployments: list[DeploymentSeries]
    events: list[RunEvent]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A finished run."""

    result: RunResult
    series: RunSeries
