"""The snapshot as Prometheus metrics: one collector, names from the one catalogue."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from wattline.agent.metric_catalogue import (
    APPLIED_LIMIT,
    CATALOGUE,
    DYNAMO_COUNTERS,
    LOOP,
    Kind,
    Metric,
    split_counter,
)
from wattline.agent.snapshot import AgentSnapshot, GpuView

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

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


class AgentCollector(Collector):
    """Turns the last snapshot into metrics at each scrape. A GPU that is gone is named as faulty.

    `read` gives the last snapshot, None before the first; `now` the monotonic clock it was made by.
    """

    def __init__(self, read: Callable[[], AgentSnapshot | None], now: Callable[[], float]) -> None:
        self._read = read
        self._now = now

    def describe(self) -> Iterable[Family]:
        """Names without a look at the node, so that registering needs no snapshot."""
        return [_family(metric) for metric in CATALOGUE]

    def collect(self) -> Iterator[Family]:
        """All metrics that have a value now, in the order of the catalogue."""
        snapshot = self._read()
        if snapshot is None:
            return
        families = {metric.name: _family(metric) for metric in CATALOGUE}
        for name, labels, value in _samples(snapshot, self._now()):
            family = families.get(name)
            if family is None:  # counted by newer code: shown rather than lost
                text = "Not in the catalogue."
                family = families[name] = CounterMetricFamily(name, text, labels=[])
            _add(family, labels, value)
        yield from (family for family in families.values() if family.samples)


def exposition(
    read: Callable[[], AgentSnapshot | None], now: Callable[[], float]
) -> Callable[[], bytes]:
    """A function that renders everything of this process in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(AgentCollector(read, now))
    ProcessCollector(registry=registry)
    return lambda: generate_latest(registry)


def _family(metric: Metric) -> Family:
    if metric.kind is Kind.INFO:
        return InfoMetricFamily(metric.name.removesuffix("_info"), metric.text)
    if metric.kind is Kind.COUNTER:
        return CounterMetricFamily(metric.name, metric.text, labels=metric.labels)
    return GaugeMetricFamily(metric.name, metric.text, labels=metric.labels)


_LABELS = {metric.name: metric.labels for metric in CATALOGUE}


def _add(family: Family, labels: Sequence[str], value: float) -> None:
    if isinstance(family, InfoMetricFamily):
        names = _LABELS[f"{family.name}_info"]
        family.add_metric([], dict(zip(names, labels, strict=True)))
    else:
        assert isinstance(family, CounterMetricFamily | GaugeMetricFamily)
        family.add_metric(labels, value)


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
