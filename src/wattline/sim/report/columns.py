"""The columns of a comparison with their definitions, and which policy answered best."""

from __future__ import annotations

from collections.abc import Sequence

from wattline.sim.report.text import Column
from wattline.sim.result import RunResult

OWN_POLICY = "wattline"
HINDSIGHT_POLICIES = frozenset({"oracle", "best-static", "dynamo-clamp-best"})
"""Policies that know the traffic to come: bounds to measure against, not ways to run a fleet."""

REFERENCE_POLICIES = ("dynamo-clamp", "uniform-cap", "static-caps", "uncapped")
"""What the first policy of this list that is present is compared with, best known first."""

COLUMNS: tuple[Column, ...] = (
    Column(
        key="goodput_rps",
        label="Goodput",
        unit="req/s",
        definition="Requests that met both the TTFT and the ITL target of their deployment, "
        "divided by the duration of the trace.",
        value=lambda r: r.goodput_rps,
        better="high",
    ),
    Column(
        key="slo_attainment",
        label="Attainment",
        unit="%",
        definition="The same requests as a share of all requests offered. A request that was "
        "rejected or did not finish missed its targets.",
        value=lambda r: 100 * r.slo_attainment,
        places=1,
        better="high",
    ),
    Column(
        key="over_budget_enforced_ws",
        label="Over budget",
        unit="W·s",
        definition="Sum of enforced limits above the budget, integrated over time, as far as the "
        "policy's own actions caused it or failed to mend it within the stated time. "
        "A policy holds its budget when this is 0.",
        value=lambda r: r.over_budget_enforced_ws,
        places=0,
    ),
    Column(
        key="exposure_enforced_ws",
        label="Exposure",
        unit="W·s",
        definition="The same integral for what outside events caused (a cut of the budget, a "
        "rival writer, a node back at default limits) until the time stated to mend it was up. "
        "Counted apart and listed by event.",
        value=lambda r: r.exposure_enforced_ws,
        places=0,
    ),
    Column(
        key="ttft_p50_ms",
        label="TTFT p50",
        unit="ms",
        definition="Time from the arrival of a request to its first output token: median over "
        "completed requests.",
        value=lambda r: r.ttft_p50_ms,
        places=0,
    ),
    Column(
        key="ttft_p99_ms",
        label="TTFT p99",
        unit="ms",
        definition="The same, 99th percentile.",
        value=lambda r: r.ttft_p99_ms,
        places=0,
        better="low",
    ),
    Column(
        key="itl_p50_ms",
        label="ITL p50",
        unit="ms",
        definition="Inter-token latency of a request: (time of its last token - time of its first) "
        "/ (output tokens - 1). Median over completed requests of two tokens or "
        "more; a request of one token has none and meets that target.",
        value=lambda r: r.itl_p50_ms,
        places=1,
    ),
    Column(
        key="itl_p99_ms",
        label="ITL p99",
        unit="ms",
        definition="The same, 99th percentile.",
        value=lambda r: r.itl_p99_ms,
        places=1,
        better="low",
    ),
    Column(
        key="j_per_token",
        label="Energy per token",
        unit="J",
        definition="Energy divided by all output tokens made in the same window. Less is better "
        "only between runs of about equal goodput.",
        value=lambda r: r.j_per_token,
        better="low",
    ),
    Column(
        key="energy_j",
        label="Energy",
        unit="kWh",
        definition="Integral of the power of all GPUs of the fleet, the idle, parked and loading "
        "ones included, over the window: the duration of the trace plus the stated drain.",
        value=lambda r: r.energy_j / 3.6e6,
    ),
    Column(
        key="peak_enforced_w",
        label="Peak enforced",
        unit="kW",
        definition="Largest sum of the power limits that the GPUs obeyed.",
        value=lambda r: r.peak_enforced_w / 1e3,
        places=2,
    ),
    Column(
        key="peak_booked_w",
        label="Peak booked",
        unit="kW",
        definition="Largest sum of booked watts: per GPU the larger of the limit it last reported "
        "and the largest limit it may have been granted since.",
        value=lambda r: r.peak_booked_w / 1e3,
        places=2,
    ),
    Column(
        key="peak_draw_1s_w",
        label="Peak draw (1 s)",
        unit="kW",
        definition="Largest power drawn by all GPUs together, as a mean over one second.",
        value=lambda r: r.peak_draw_1s_w / 1e3,
        places=2,
    ),
    Column(
        key="over_budget_draw_ws",
        label="Draw over budget",
        unit="W·s",
        definition="Power drawn above the budget, as means over one second, integrated over time: "
        "what a limit that is not an instantaneous ceiling lets through.",
        value=lambda r: r.over_budget_draw_ws,
        places=0,
    ),
    Column(
        key="cap_writes_per_hour",
        label="Cap writes",
        unit="1/h",
        definition="Power limits written to GPUs, per hour.",
        value=lambda r: r.cap_writes_per_hour,
        places=0,
    ),
    Column(
        key="cap_reversals_per_hour",
        label="Cap reversals",
        unit="1/h",
        definition="Caps sent that turn round the direction of the last change on the same GPU, "
        "per hour.",
        value=lambda r: r.cap_reversals_per_hour,
        places=0,
    ),
    Column(
        key="replica_changes",
        label="Replica changes",
        unit="count",
        definition="Replicas started plus replicas stopped.",
        value=lambda r: float(r.replica_changes),
        places=0,
    ),
    Column(
        key="completed",
        label="Completed",
        unit="requests",
        definition="Requests that got all their tokens within the window.",
        value=lambda r: float(r.completed),
        places=0,
    ),
    Column(
        key="rejected",
        label="Rejected",
        unit="requests",
        definition="Requests turned away by admission because all workers were busy.",
        value=lambda r: float(r.rejected),
        places=0,
    ),
    Column(
        key="unfinished",
        label="Unfinished",
        unit="requests",
        definition="Requests admitted but not finished when the window ended.",
        value=lambda r: float(r.unfinished),
        places=0,
    ),
)


def by_key(key: str) -> Column:
    """The column named `key`; KeyError if there is none."""
    for column in COLUMNS:
        if column.key == key:
            return column
    raise KeyError(key)


def holds_budget(result: RunResult) -> bool:
    """True if no action of the policy put enforced limits above the budget."""
    return result.over_budget_enforced_ws == 0


def is_contender(result: RunResult) -> bool:
    """True for a run that can be named best: it held its budget without knowing the future."""
    return holds_budget(result) and result.policy not in HINDSIGHT_POLICIES


def budget_groups(results: Sequence[RunResult]) -> list[list[int]]:
    """Indices of the runs that share a budget, tightest budget first, in the given order inside."""
    budgets = sorted({result.budget_w for result in results})
    return [[i for i, r in enumerate(results) if r.budget_w == budget] for budget in budgets]


def winner(results: Sequence[RunResult], group: Sequence[int]) -> int | None:
    """Index of the contender of `group` with the most goodput, less energy first among equals."""
    contenders = [i for i in group if is_contender(results[i])]
    if not contenders:
        return None
    return max(contenders, key=lambda i: (results[i].goodput_rps, -results[i].energy_j, -i))


def best_cells(results: Sequence[RunResult]) -> set[tuple[int, str]]:
    """(run index, column key) of the best figure of each budget, where two contenders differ."""
    best: set[tuple[int, str]] = set()
    for group in budget_groups(results):
        for column in COLUMNS:
            if not column.better:
                continue
            known = {
                i: value
                for i in group
                if is_contender(results[i]) and (value := column.value(results[i])) is not None
            }
            if len(set(known.values())) < 2:
                continue
            pick = max if column.better == "high" else min
            target = pick(known.values())
            best.update((i, column.key) for i, value in known.items() if value == target)
    return best
