"""Every metric of the agent, once: the collector, the reference page and its test read this."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """Prometheus types that occur here."""

    GAUGE = "gauge"
    COUNTER = "counter"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric as it is exposed. `unit` is a base unit or empty; `text` is its help line."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    unit: str
    text: str


APPLIED_LIMIT = "dynamo_power_agent_applied_limit_watts"
MULTI_POD_AGREE = 'dynamo_power_agent_multi_pod_gpu_total{disposition="agree"}'
MULTI_POD_CONFLICT = 'dynamo_power_agent_multi_pod_gpu_total{disposition="conflict"}'
APPLY_FAILURES = "dynamo_power_agent_apply_failures_total"
SAFE_DEFAULT_APPLIED = "dynamo_power_agent_safe_default_applied_total"
CLAMPED_TO_MIN = 'dynamo_power_agent_cap_clamped_total{direction="min"}'
CLAMPED_TO_MAX = 'dynamo_power_agent_cap_clamped_total{direction="max"}'
LIST_FAILURES = "dynamo_power_agent_k8s_list_failures_total"

DYNAMO_COUNTERS = (
    MULTI_POD_AGREE,
    MULTI_POD_CONFLICT,
    APPLY_FAILURES,
    SAFE_DEFAULT_APPLIED,
    CLAMPED_TO_MIN,
    CLAMPED_TO_MAX,
    LIST_FAILURES,
)
"""Shown from the start, at 0: alert rules written for Dynamo's agent must find them."""


def _gauge(name: str, unit: str, text: str, *labels: str) -> Metric:
    return Metric(name, Kind.GAUGE, labels, unit, text)


def _counter(name: str, text: str, *labels: str, unit: str = "") -> Metric:
    return Metric(name, Kind.COUNTER, labels, unit, text)


def _limit(which: str, text: str) -> Metric:
    return _gauge(f"wattline_agent_gpu_{which}_limit_watts", "watts", text, "gpu")


KEPT = (
    _gauge(APPLIED_LIMIT, "watts", "In-band limit of a GPU that the agent caps, by index.", "gpu"),
    _counter(
        "dynamo_power_agent_multi_pod_gpu_total",
        "Decisions about a GPU that several pods hold.",
        "disposition",
    ),
    _counter(APPLY_FAILURES, "Writes of a limit that failed."),
    _counter(SAFE_DEFAULT_APPLIED, "Decisions for the safe default."),
    _counter(
        "dynamo_power_agent_cap_clamped_total",
        "Decisions brought into the range that the GPU accepts.",
        "direction",
    ),
    _counter(LIST_FAILURES, "Failed calls for pods to the API server."),
)
"""Names and labels of Dynamo's Power Agent, kept so that dashboards and alerts go on working."""

GPU = (
    Metric(
        "wattline_agent_gpu_info",
        Kind.INFO,
        ("gpu", "index", "product"),
        "",
        "Which GPU a UUID is; the other series carry the UUID only.",
    ),
    _limit("enforced", "Limit that the hardware obeys."),
    _limit("requested", "Limit asked for in-band, by whomever."),
    _limit("wanted", "Limit that the agent wants enforced now."),
    _limit("granted", "Watts of the newest grant acted on."),
    _limit("held", "Largest limit that the agent may still write by itself."),
    _limit("original", "Limit found before the agent's first write."),
    _limit("default", "Limit after a reset or a reload of the driver."),
    _limit("smallest", "Smallest limit that the GPU accepts."),
    _limit("largest", "Largest limit that the GPU accepts."),
    _limit("pinned", "Limit that an operator has pinned."),
    _limit("rival", "Enforced limit that is not the agent's; absent in peace."),
    _gauge("wattline_agent_gpu_draw_watts", "watts", "Measured power.", "gpu"),
    _counter(
        "wattline_agent_gpu_energy_joules_total",
        "Energy since the driver was loaded.",
        "gpu",
        unit="joules",
    ),
    _gauge("wattline_agent_gpu_sm_clock_hertz", "hertz", "SM clock.", "gpu"),
    _gauge("wattline_agent_gpu_clock_ceiling_hertz", "hertz", "Our ceiling on it.", "gpu"),
    _gauge(
        "wattline_agent_gpu_reason",
        "",
        "1 for the reason of the GPU's present limit.",
        "gpu",
        "reason",
    ),
    _gauge(
        "wattline_agent_gpu_throttled",
        "",
        "1 for each reason that holds clocks back.",
        "gpu",
        "reason",
    ),
    _gauge("wattline_agent_gpu_persistence_mode", "", "0: default limit may come back.", "gpu"),
    _gauge("wattline_agent_gpu_mig_mode", "", "1: split into instances with one limit.", "gpu"),
    _gauge("wattline_agent_gpu_faulty", "", "1 while the last call to the GPU failed.", "gpu"),
    _gauge("wattline_agent_gpu_owner_pods", "", "Pods that hold the GPU.", "gpu"),
    _gauge("wattline_agent_gpu_read_age_seconds", "seconds", "Age of the readings.", "gpu"),
    _counter("wattline_agent_gpu_repairs_total", "Limits written again over a rival's.", "gpu"),
)

NODE = (
    Metric(
        "wattline_agent_info",
        Kind.INFO,
        ("node", "version", "mode", "owners"),
        "",
        "Which agent this is and how it finds the owners of GPUs.",
    ),
    _gauge("wattline_agent_ready", "", "1: ready; /readyz names what is missing."),
    _gauge("wattline_agent_braked", "", "1 while braked."),
    _gauge("wattline_agent_operator_hold", "", "1 while an operator holds the node."),
    _gauge("wattline_agent_journal_ok", "", "0: original limits cannot be written down."),
    _gauge("wattline_agent_epoch", "", "Coordinator's epoch; absent without grants."),
    _gauge("wattline_agent_budget_version", "", "Newest version of the budget seen."),
    _gauge("wattline_agent_incarnation", "", "Number of this start or brake, for grants."),
    _gauge("wattline_agent_snapshot_age_seconds", "seconds", "Since the loop last looked."),
    _gauge(
        "wattline_agent_source_age_seconds",
        "seconds",
        "Since an input was last good; absent: never.",
        "source",
    ),
    _counter("wattline_agent_reports_total", "Reports made in this incarnation."),
)

LOOP = (
    _counter("wattline_agent_limit_writes_total", "Writes of a limit.", "result"),
    _counter("wattline_agent_clock_writes_total", "Writes of a clock ceiling.", "result"),
    _counter("wattline_agent_grants_total", "Grants read, by what came of them.", "result"),
    _counter("wattline_agent_grant_files_refused_total", "Grant files that cannot be used."),
    _counter("wattline_agent_brakes_total", "Brakes, by who called.", "by"),
    _counter("wattline_agent_commands_total", "Commands of operators.", "command", "result"),
    _counter("wattline_agent_gpu_faults_total", "Failed calls to GPUs.", "fault"),
    _counter("wattline_agent_enumerations_total", "Times that the GPUs were looked for."),
    _counter("wattline_agent_owner_failures_total", "Failed looks at who holds which GPU."),
    _counter("wattline_agent_journal_failures_total", "Failed writes of the journal."),
    _counter("wattline_agent_orphans_total", "Limits of an earlier run, by outcome.", "result"),
)

CATALOGUE = (*KEPT, *NODE, *GPU, *LOOP)


def split_counter(key: str) -> tuple[str, dict[str, str]]:
    """Name and labels of a key of `AgentSnapshot.counters`; ValueError for one that is malformed.

    Label values are plain words there: no quotes, commas or backslashes.
    """
    name, brace, rest = key.partition("{")
    if not brace:
        return name, {}
    if not rest.endswith("}"):
        raise ValueError(f"{key!r} has no closing brace")
    labels = {}
    for pair in rest[:-1].split(","):
        label, equals, value = pair.partition("=")
        if not equals or len(value) < 2 or value[0] != '"' or value[-1] != '"':
            raise ValueError(f'{key!r} has no label="value"')
        labels[label] = value[1:-1]
    return name, labels


def counter_key(name: str, **labels: str) -> str:
    """The key of `AgentSnapshot.counters` for a counter and its labels, in catalogue order."""
    if not labels:
        return name
    inner = ",".join(f'{label}="{value}"' for label, value in labels.items())
    return f"{name}{{{inner}}}"


def markdown() -> str:
    """The reference page."""
    lines = [
        "# Metrics of the node agent",
        "",
        "<!-- Rendered from wattline.agent.metric_catalogue; a test compares. Do not edit. -->",
        "",
        "`GET /metrics` on the agent's `listen` address. Every series is read from one snapshot of"
        " the node; a",
        "quantity that is not known has no series, and of a GPU that is gone only"
        " `wattline_agent_gpu_info`",
        "and `wattline_agent_gpu_faulty` remain. `gpu` is the UUID, except in the names that are"
        " kept from",
        "Dynamo's Power Agent, where it is the index.",
    ]
    for title, note, metrics in (
        (
            "Kept from Dynamo's Power Agent",
            "Names and labels as there. Decisions are counted when they change, not in each"
            " pass: passes follow\nevents here, not a clock.",
            KEPT,
        ),
        ("Node", "", NODE),
        ("GPUs", "", GPU),
        ("Counters of the loop", "Since the start of the process.", LOOP),
    ):
        lines += ["", f"## {title}", ""]
        if note:
            lines += [note, ""]
        lines += ["| name | type | labels | meaning |", "|---|---|---|---|"]
        for metric in metrics:
            labels = ", ".join(f"`{label}`" for label in metric.labels)
            lines.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.text} |")
    lines += [
        "",
        "Beside them stand `process_*` (resident memory, CPU seconds, open files) of the agent's"
        " process.",
    ]
    return "\n".join(lines) + "\n"
