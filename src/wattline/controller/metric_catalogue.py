"""Every metric of the controller, once: the collector, the reference page and its test read this.

The first part keeps the names of Dynamo's power feature, with its labels: `dynamo_planner_power_*`
as Dynamo's planner 1.6.1 exports them; `dynamo_planner_admission_*` and `dynamo_aic_*` as the
feature's design lists them (NVIDIA Dynamo, power-aware planner, names registry). They say the same
here, but for what `differs` says.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum


class Kind(StrEnum):
    """Prometheus types that occur here."""

    GAUGE = "gauge"
    COUNTER = "counter"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric as it is exposed; `text` is its help line.

    differs: of a name that others have as well, what it is here and not there.
    """

    name: str
    kind: Kind
    text: str
    labels: tuple[str, ...] = ()
    differs: str = ""


def _gauge(name: str, text: str, *labels: str) -> Metric:
    return Metric(name, Kind.GAUGE, text, labels)


def _counter(name: str, text: str, *labels: str) -> Metric:
    return Metric(name, Kind.COUNTER, text, labels)


def _but(metric: Metric, differs: str) -> Metric:
    return replace(metric, differs=differs)


POWER = "dynamo_planner_power_"
ADMISSION = "dynamo_planner_admission_"
AIC = "dynamo_aic_"
_P = "wattline_controller_"

_PER_DEPLOYMENT = "Has the labels `deployment` and `frontend`: there may be several."
_WORST = "The largest over deployments; each is in `wattline_controller_calibration_factor`."

DYNAMO = (
    _gauge(POWER + "budget_total_watts", "Budget."),
    _but(
        _gauge(POWER + "projected_watts", "Booked watts: the most that may be drawn."),
        "Booked watts by enforced limits, grants under way and settling included; there, requested "
        "caps times replicas that are ready.",
    ),
    _but(
        _gauge(POWER + "budget_utilization", "Projected watts over the budget."),
        "As the projected watts.",
    ),
    _but(
        _gauge(
            ADMISSION + "implied_theta_decode",
            "Share of a worker's cache blocks above which it is busy, as decided.",
            "deployment",
        ),
        "From the time that a step takes at the cap in force; there, concurrency times context "
        "over the cache. Has the label `deployment`.",
    ),
    _but(
        _gauge(
            ADMISSION + "implied_theta_prefill_frac",
            "Prompt tokens over the largest batch above which a worker is busy, as decided.",
            "deployment",
        ),
        "The threshold in tokens, which is what is decided and sent, over the engine's largest "
        "batch; may be above 1. Has the label `deployment`.",
    ),
    _but(
        _gauge(
            ADMISSION + "set_theta_decode",
            "The same as a frontend has it.",
            "deployment",
            "frontend",
        ),
        _PER_DEPLOYMENT,
    ),
    _but(
        _gauge(
            ADMISSION + "set_theta_prefill_frac",
            "The same as a frontend has it.",
            "deployment",
            "frontend",
        ),
        _PER_DEPLOYMENT + " Absent as long as nobody sets it: the threshold is sent in tokens.",
    ),
    _but(
        _gauge(
            ADMISSION + "set_theta_prefill_abs",
            "Prompt tokens above which a worker is busy, as a frontend has it.",
            "deployment",
            "frontend",
        ),
        _PER_DEPLOYMENT,
    ),
    _but(
        _counter(
            ADMISSION + "partial_success_total",
            "Times that some, but not all, frontends of a deployment took their thresholds.",
        ),
        "Counts rounds; the published draft counts failed frontends.",
    ),
    _but(
        _counter(
            ADMISSION + "max_batched_tokens_unavailable_total",
            "Ticks in which a deployment's threshold in prompt tokens could not be told.",
        ),
        "No worker's card is needed: the engine's largest batch is in the configuration. Counts "
        "deployments without a prefill worker that serves, per tick.",
    ),
    _but(
        _gauge(AIC + "c_ttft", "Correction factor of the time to the first token."),
        _WORST + " Of calibration, whatever the models come from.",
    ),
    _but(_gauge(AIC + "c_itl", "Correction factor of the time between tokens."), _WORST),
    _but(
        _gauge(AIC + "c_power", "Correction factor of a GPU's draw.", "component"),
        _WORST + " Never changes what is booked.",
    ),
    _counter(
        AIC + "correction_pegged_total",
        "Windows after which a correction factor stood at a bound (0.5 or 2).",
        "coefficient",
    ),
    _but(
        _gauge(AIC + "consecutive_failures", "Sweeps that failed in a row."),
        "The largest over deployments.",
    ),
    _counter(AIC + "optimizer_exceptions_total", "Sweeps that failed."),
    _but(
        _gauge(
            AIC + "optimizer_disabled_reason",
            "1 for why sweeps of some deployment are switched off, 0 for other reasons.",
            "reason",
        ),
        "Two reasons more: `consecutive_failures` and `operator`.",
    ),
    _counter(
        AIC + "throughput_regression_total",
        "Sweeps that found a lower throughput than the one before; taken all the same.",
    ),
    _but(
        _counter(
            AIC + "power_w_clamped_total",
            "Sweeps whose watts of a side were not credible.",
            "side",
        ),
        "The draft calls it `aic_power_w_clamped_total` and does not register it.",
    ),
    _but(
        _gauge(
            AIC + "advisory_alternative_tp_speedup",
            "Requests per GPU with the best other tensor-parallel size, over those with today's.",
        ),
        "The largest over pools; with `models.aic.alternatives` only.",
    ),
)

NOT_EXPORTED: dict[str, str] = {}
"""Names of the feature that nothing stands behind here."""

OWN = (
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
    _gauge(
        _P + "calibration_factor",
        "Correction factor as followed (0.5 to 2).",
        "deployment",
        "role",
        "kind",
    ),
    _gauge(
        _P + "calibration_factor_in_force",
        "The same as it is applied: 1 or more, it only tightens.",
        "deployment",
        "role",
        "kind",
    ),
    _counter(
        _P + "calibration_windows_total",
        "Windows from which a role's factors have learned.",
        "deployment",
        "role",
    ),
    _counter(_P + "drifts_total", "Times that the models had drifted.", "deployment"),
    _gauge(_P + "drift_violations", "Violating windows in a row.", "deployment"),
    _gauge(_P + "models_sweeping", "1 while a deployment's models are asked for.", "deployment"),
    _counter(_P + "models_sweeps_total", "Sweeps that gave an answer.", "deployment"),
    _gauge(_P + "models_age_seconds", "Age of the newest answer of a sweep.", "deployment"),
    _gauge(_P + "demand_age_seconds", "Age of the newest counts of demand.", "deployment"),
    _gauge(
        _P + "demand_source",
        "1 for where demand comes from: frontends or prometheus.",
        "deployment",
        "source",
    ),
    _gauge(_P + "draw_gpus", "GPUs whose draw is known, by who measured it.", "source"),
    _gauge(_P + "prometheus_up", "1 while Prometheus answers."),
    _gauge(_P + "prometheus_age_seconds", "Age of the newest batch of answers of Prometheus."),
)

CATALOGUE = (*DYNAMO, *OWN)
