"""Every metric of the controller, once: the collector, the reference page and its test read this.

The first part keeps names of Dynamo's power feature: `dynamo_planner_power_*` as Dynamo's planner
1.6.1 exports them, `dynamo_planner_admission_*` as that feature's design names them (NVIDIA Dynamo,
power-aware planner proposal). They say the same here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """Prometheus types that occur here."""

    GAUGE = "gauge"
    COUNTER = "counter"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric as it is exposed; `text` is its help line."""

    name: str
    kind: Kind
    text: str
    labels: tuple[str, ...] = ()


def _gauge(name: str, text: str, *labels: str) -> Metric:
    return Metric(name, Kind.GAUGE, text, labels)


def _counter(name: str, text: str, *labels: str) -> Metric:
    return Metric(name, Kind.COUNTER, text, labels)


_P = "wattline_controller_"

CATALOGUE = (
    _gauge("dynamo_planner_power_budget_total_watts", "Budget."),
    _gauge("dynamo_planner_power_projected_watts", "Booked watts: the most that may be drawn."),
    _gauge("dynamo_planner_power_budget_utilization", "Projected watts over the budget."),
    _gauge(
        "dynamo_planner_admission_implied_theta_decode",
        "Share of a worker's cache blocks above which it is busy, as decided.",
        "deployment",
    ),
    _gauge(
        "dynamo_planner_admission_implied_theta_prefill_frac",
        "Prompt tokens over the largest batch above which a worker is busy, as decided.",
        "deployment",
    ),
    _gauge(
        "dynamo_planner_admission_set_theta_decode",
        "The same as a frontend has it.",
        "deployment",
        "frontend",
    ),
    _gauge(
        "dynamo_planner_admission_set_theta_prefill_frac",
        "The same as a frontend has it.",
        "deployment",
        "frontend",
    ),
    _gauge(
        "dynamo_planner_admission_set_theta_prefill_abs",
        "Prompt tokens above which a worker is busy, as a frontend has it.",
        "deployment",
        "frontend",
    ),
    _counter(
        "dynamo_planner_admission_partial_success_total",
        "Times that some, but not all, frontends of a deployment took their thresholds.",
    ),
    _gauge(_P + "advisory", "1 while nothing is written anywhere."),
    _gauge(_P + "budget_watts", "Budget."),
    _gauge(_P + "budget_version", "Version of the budget."),
    _gauge(_P + "guard_watts", "Watts of the budget that are kept free."),
    _gauge(_P + "booked_watts", "Booked for a pool's GPUs.", "pool"),
    _gauge(_P + "enforced_watts", "Limits in force of a pool's GPUs that are known.", "pool"),
    _gauge(_P + "draw_watts", "Measured draw of a pool's GPUs that are known.", "pool"),
    _gauge(_P + "unknown_gpus", "GPUs of a pool whose limit is not known.", "pool"),
    _gauge(_P + "exposure_watts", "Booked above the budget, by nothing that was granted."),
    _gauge(_P + "cap_watts", "Planned limit of each of a pool's serving GPUs.", "pool"),
    _gauge(_P + "recommended_cap_watts", "The same before it was held steady.", "pool"),
    _gauge(_P + "replicas", "Replicas of a pool.", "pool", "phase"),
    _gauge(_P + "replicas_planned", "Replicas planned.", "pool"),
    _gauge(_P + "replicas_recommended", "The same before they were held steady.", "pool"),
    _gauge(_P + "reason", "1 for why a pool is where it is.", "pool", "reason"),
    _gauge(_P + "demand_rps", "Requests per second that the plan stands on.", "deployment"),
    _gauge(_P + "capacity_rps", "Requests per second that the plan can serve.", "deployment"),
    _gauge(_P + "outage", "1 while demand cannot be seen.", "deployment"),
    _gauge(_P + "admission_prefill_tokens", "As decided.", "deployment"),
    _gauge(_P + "frontend_failing", "1 while a frontend is not as wanted.", "frontend"),
    _gauge(_P + "node_report_age_seconds", "Age of a node's newest report.", "node"),
    _gauge(_P + "node_silent", "1 while a node's limits are not known.", "node"),
    _gauge(_P + "node_braked", "1 while a node's brake is on.", "node"),
    _gauge(_P + "orders", "Operators' orders in force.", "kind"),
    _gauge(_P + "missing", "Values that were missing in the newest tick."),
    _gauge(_P + "problems", "Things that need a person; /readyz lists them."),
    _gauge(_P + "tick_seconds", "Time that the newest tick took."),
    _gauge(_P + "recording", "1 while ticks are recorded."),
    _gauge(_P + "recording_bytes", "Size of all segments."),
    _counter(_P + "recording_lost_ticks_total", "Ticks that could not be recorded."),
    _counter(_P + "ticks_total", "Ticks."),
    _counter(_P + "failed_ticks_total", "Ticks without a decision."),
    _counter(_P + "late_ticks_total", "Ticks that took longer than there was time."),
    _counter(_P + "refused_grants_total", "Grants that could not be given.", "reason"),
    _counter(_P + "replica_starts_total", "Replicas started."),
    _counter(_P + "replica_drains_total", "Replicas asked to end."),
    _counter(_P + "replica_failures_total", "Starts and drains that failed."),
    _counter(_P + "reloads_refused_total", "Configurations that were not taken."),
)
