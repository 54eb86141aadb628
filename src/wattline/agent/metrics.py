"""The snapshot as metrics in Prometheus' text format, names from the one catalogue.

Written out here and not by prometheus_client: of that the agent would use this one format, for
0.7 MiB of its memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

from wattline.agent.metric_catalogue import (
    APPLIED_LIMIT,
    CATALOGUE,
    DYNAMO_COUNTERS,
    LOOP,
    Kind,
    Metric,
    split_counter,
)
from wattline.agent.process_metrics import PROCESS, process_values
from wattline.agent.snapshot import AgentSnapshot, GpuView

Sample = tuple[str, Sequence[str], float]
"""Metric's name, values of its labels, value."""

_HERTZ_PER_MHZ = 1e6
_LIMITS = {
    "enforced": "enforced_w",
    "requested": "requested_w",
    "wanted": "wanted_w",
    "granted": "granted_w",
    "held": "held_w",
    "original": "original_w",
    "default": "default_w",
    "smallest": "min_w",
    "largest": "max_w",
    "pinned": "pinned_w",
    "rival": "rival_w",
}


_LABELS = {metric.name: metric.labels for metric in CATALOGUE}


def exposition(
    read: Callable[[], AgentSnapshot | None], now: Callable[[], float]
) -> Callable[[], bytes]:
    """A function that renders everything of this process, in version 0.0.4 of the format.

    `read` gives the last snapshot, None before the first; `now` the monotonic clock it was made by.
    A GPU that is gone is named as faulty.
    """

    def render() -> bytes:
        snapshot = read()
        samples = () if snapshot is None else _samples(snapshot, now())
        process = ((name, (), value) for name, value in process_values())
        return "".join([*_page(CATALOGUE, samples), *_page(PROCESS, process)]).encode()

    return render


def _page(metrics: Iterable[Metric], samples: Iterable[Sample]) -> Iterator[str]:
    """Lines of all metrics that have a value now, in the order of `metrics`."""
    lines: dict[str, list[str]] = {}
    for name, labels, value in samples:
        lines.setdefault(name, []).append(_line(name, labels, value))
    for metric in metrics:
        if metric.name in lines:
            kind = Kind.GAUGE if metric.kind is Kind.INFO else metric.kind
            yield f"# HELP {metric.name} {metric.text}\n# TYPE {metric.name} {kind}\n"
            yield from lines.pop(metric.name)
    for name, rest in lines.items():  # counted by newer code: shown rather than lost
        yield f"# TYPE {name} {Kind.COUNTER}\n"
        yield from rest


def _line(name: str, labels: Sequence[str], value: float) -> str:
    pairs = zip(_LABELS.get(name, ()), labels, strict=True)
    inner = ",".join(f'{label}="{_escaped(text)}"' for label, text in pairs)
    return f"{name}{{{inner}}} {_number(value)}\n" if inner else f"{name} {_number(value)}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: float) -> str:
    if math.isfinite(value):
        return repr(float(value))
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"


def _samples(snapshot: AgentSnapshot, now_s: float) -> Iterator[Sample]:
    yield from _node(snapshot, now_s)
    for gpu in snapshot.gpus:
        yield from _gpu(gpu, now_s - snapshot.made_s)
    counts = dict.fromkeys((*DYNAMO_COUNTERS, *(m.name for m in LOOP if not m.labels)), 0)
    counts.update(snapshot.counters)
    for key, count in counts.items():
        name, labels = split_counter(key)
        wanted = _LABELS.get(name, ())
        yield name, [labels.get(label, "") for label in wanted], count


def _node(snapshot: AgentSnapshot, now_s: float) -> Iterator[Sample]:
    about = (snapshot.node, snapshot.version, snapshot.mode.value, snapshot.owner_method or "")
    yield "wattline_agent_info", about, 1.0
    for name, value in (
        ("ready", float(not snapshot.not_ready)),
        ("braked", float(snapshot.braked)),
        ("operator_hold", float(snapshot.operator_hold is not None)),
        ("journal_ok", float(snapshot.journal == "ok")),
        ("epoch", snapshot.epoch),
        ("budget_version", snapshot.budget_version),
        ("incarnation", snapshot.incarnation),
        ("snapshot_age_seconds", now_s - snapshot.made_s),
        ("reports_total", snapshot.report_sequence),
    ):
        if value is not None:
            yield f"wattline_agent_{name}", (), value
    for source, age_s in sorted(snapshot.sources.items()):
        if age_s is not None:
            age_now_s = age_s + now_s - snapshot.made_s
            yield "wattline_agent_source_age_seconds", (source,), age_now_s


def _gpu(gpu: GpuView, snapshot_age_s: float) -> Iterator[Sample]:
    yield "wattline_agent_gpu_info", (gpu.uuid, str(gpu.index), gpu.product), 1.0
    if not gpu.present:
        yield "wattline_agent_gpu_faulty", (gpu.uuid,), 1.0
        return
    applied_w = gpu.enforced_w if gpu.requested_w is None else gpu.requested_w
    if gpu.wanted_w is not None and applied_w is not None:
        yield APPLIED_LIMIT, (str(gpu.index),), applied_w
    own = (gpu.uuid,)
    for which, attribute in _LIMITS.items():
        watts: float | None = getattr(gpu, attribute)
        if watts is not None:
            yield f"wattline_agent_gpu_{which}_limit_watts", own, watts
    age_s = gpu.read_age_s
    for name, value in (
        ("draw_watts", gpu.draw_w),
        ("energy_joules_total", gpu.energy_j),
        ("sm_clock_hertz", _hertz(gpu.sm_clock_mhz)),
        ("clock_ceiling_hertz", _hertz(gpu.clock_ceiling_mhz)),
        ("persistence_mode", gpu.persistence),
        ("mig_mode", gpu.mig),
        ("faulty", gpu.fault is not None),
        ("owner_pods", len(gpu.owners)),
        ("read_age_seconds", None if age_s is None else age_s + snapshot_age_s),
        ("repairs_total", gpu.repairs),
    ):
        if value is not None:
            yield f"wattline_agent_gpu_{name}", own, float(value)
    yield "wattline_agent_gpu_reason", (gpu.uuid, gpu.reason.value), 1.0
    for reason in sorted(gpu.throttle_reasons):
        yield "wattline_agent_gpu_throttled", (gpu.uuid, reason), 1.0


def _hertz(mhz: int | None) -> float | None:
    return None if mhz is None else mhz * _HERTZ_PER_MHZ
