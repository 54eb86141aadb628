"""The newest tick as Prometheus metrics: one collector, names from the one catalogue."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from wattline.controller.metric_catalogue import ADMISSION, CATALOGUE, POWER, Kind, Metric
from wattline.controller.metrics_models import (
    Sample,
    calibration_samples,
    model_samples,
    source_samples,
)
from wattline.controller.view import TickView
from wattline.core.fleet import Fleet
from wattline.core.snapshot import GpuTable
from wattline.recording.orders import OrderKind

_P = "wattline_controller_"


class ControllerCollector(Collector):
    """Turns the newest tick into metrics at each scrape; before the first there are none."""

    def __init__(self, read: Callable[[], TickView | None], fleet: Fleet) -> None:
        self._read = read
        self._fleet = fleet

    def describe(self) -> Iterable[Family]:
        """Names, so that registering needs no tick."""
        return [_family(metric) for metric in CATALOGUE]

    def collect(self) -> Iterator[Family]:
        """All metrics that have a value now, in the order of the catalogue."""
        view = self._read()
        if view is None:
            return
        families = {metric.name: _family(metric) for metric in CATALOGUE}
        for name, labels, value in chain(
            _fleet_wide(view),
            _per_pool(view, self._fleet),
            _per_deployment(view, self._fleet),
            _nodes(view),
            calibration_samples(view, self._fleet),
            model_samples(view),
            source_samples(view, self._fleet),
            _counters(view),
        ):
            if value is not None:
                families[name].add_metric(labels, value)
        yield from (family for family in families.values() if family.samples)


def exposition(read: Callable[[], TickView | None], fleet: Fleet) -> Callable[[], bytes]:
    """A function that renders everything of this process in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(ControllerCollector(read, fleet))
    ProcessCollector(registry=registry)
    return lambda: generate_latest(registry)


def _family(metric: Metric) -> GaugeMetricFamily | CounterMetricFamily:
    if metric.kind is Kind.COUNTER:
        return CounterMetricFamily(metric.name, metric.text, labels=metric.labels)
    return GaugeMetricFamily(metric.name, metric.text, labels=metric.labels)


def _fleet_wide(view: TickView) -> Iterator[Sample]:
    budget = view.budget.budget
    booked_w = sum(view.caps.booked_w)
    yield POWER + "budget_total_watts", (), budget.total_w
    yield POWER + "projected_watts", (), booked_w
    yield POWER + "budget_utilization", (), booked_w / budget.total_w
    yield _P + "advisory", (), float(view.advisory)
    yield _P + "budget_watts", (), budget.total_w
    yield _P + "budget_version", (), float(budget.version)
    yield _P + "guard_watts", (), budget.guard_w
    yield _P + "exposure_watts", (), view.caps.exposure_w
    orders = () if view.carried is None else view.carried.orders
    for kind in OrderKind:
        yield _P + "orders", (kind.value,), float(sum(order.kind is kind for order in orders))
    yield _P + "missing", (), float(len(view.snapshot.missing))
    yield _P + "problems", (), float(len(view.problems))
    yield _P + "tick_seconds", (), view.took_s
    yield _P + "recording", (), float(view.recorder.why is None)
    yield _P + "recording_bytes", (), float(view.recorder.bytes_held)


def _per_pool(view: TickView, fleet: Fleet) -> Iterator[Sample]:
    gpus = view.snapshot.gpus
    reasons = reason_codes(view)
    for index, pool in enumerate(fleet.pools):
        label = (pool.name,)
        state = view.snapshot.pools[index]
        members = [gpu for gpu, owner in enumerate(gpus.pool) if owner == index]
        known = [watts for gpu in members if (watts := gpus.enforced_w[gpu]) is not None]
        yield _P + "booked_watts", label, sum(view.caps.booked_w[gpu] for gpu in members)
        yield _P + "enforced_watts", label, sum(known)
        yield _P + "draw_watts", label, _draw_w(gpus, members)
        yield _P + "unknown_gpus", label, float(len(members) - len(known))
        for phase in ("ready", "starting", "draining"):
            yield _P + "replicas", (pool.name, phase), float(getattr(state, phase))
        if view.decision is not None:
            plan, raw = view.decision.plan[index], view.decision.recommended[index]
            yield _P + "cap_watts", label, plan.setting.cap_w
            yield _P + "recommended_cap_watts", label, raw.setting.cap_w
            yield _P + "replicas_planned", label, float(plan.replicas)
            yield _P + "replicas_recommended", label, float(raw.replicas)
            yield _P + "reason", (pool.name, reasons[index][0]), 1.0


def _draw_w(gpus: GpuTable, members: Sequence[int]) -> float | None:
    known = [watts for gpu in members if (watts := gpus.draw_w[gpu]) is not None]
    return sum(known) if known else None


def reason_codes(view: TickView) -> dict[int, tuple[str, str]]:
    """Code and sentence per pool; an operator's order comes before the decision's reason."""
    found: dict[int, tuple[str, str]] = {}
    if view.decision is not None:
        found |= {r.pool: (str(r.code), r.sentence) for r in view.decision.reasons}
    if view.carried is not None:
        found |= {r.pool: (r.code, r.sentence) for r in view.carried.reasons}
    return found


def _per_deployment(view: TickView, fleet: Fleet) -> Iterator[Sample]:
    names = [deployment.name for deployment in fleet.deployments]
    if view.decision is not None:
        facts = view.decision.facts
        for index, name in enumerate(names):
            wanted = view.decision.admission[index]
            label = (name,)
            if view.admission_mode != "off":
                decode, share = wanted.active_decode_blocks, wanted.active_prefill_tokens_frac
                tokens, batch = wanted.active_prefill_tokens, view.batch_tokens[index]
                if share is None and tokens is not None and batch is not None:
                    share = tokens / batch
                yield ADMISSION + "implied_theta_decode", label, decode
                yield ADMISSION + "implied_theta_prefill_frac", label, share
                yield _P + "admission_prefill_tokens", label, wanted.active_prefill_tokens
            if facts is not None:
                entry = facts.deployments[index]
                yield _P + "demand_rps", label, entry.demand_rps
                yield _P + "capacity_rps", label, entry.capacity_rps
                yield _P + "outage", label, float(entry.outage is not None)
    for frontend in view.frontends:
        both = (names[frontend.deployment], frontend.url)
        yield _P + "frontend_failing", (frontend.url,), float(frontend.why is not None)
        held = frontend.held
        if held is not None:
            yield ADMISSION + "set_theta_decode", both, held.active_decode_blocks
            yield ADMISSION + "set_theta_prefill_frac", both, held.active_prefill_tokens_frac
            yield ADMISSION + "set_theta_prefill_abs", both, held.active_prefill_tokens


def _nodes(view: TickView) -> Iterator[Sample]:
    for node in view.nodes:
        yield _P + "node_report_age_seconds", (node.name,), node.age_s
        yield _P + "node_silent", (node.name,), float(node.why is not None)
        yield _P + "node_braked", (node.name,), float(node.braked)


def _counters(view: TickView) -> Iterator[Sample]:
    counters = view.counters
    partial = ADMISSION + "partial_success_total"
    yield partial, (), float(counters.admission_partial_failures)
    untold = ADMISSION + "max_batched_tokens_unavailable_total"
    yield untold, (), float(counters.prefill_thresholds_untold)
    yield _P + "recording_lost_ticks_total", (), float(view.recorder.lost_ticks)
    yield _P + "ticks_total", (), float(counters.ticks)
    yield _P + "failed_ticks_total", (), float(counters.failed_ticks)
    yield _P + "late_ticks_total", (), float(counters.late_ticks)
    for reason, count in counters.refused:
        yield _P + "refused_grants_total", (reason,), float(count)
    yield _P + "replica_starts_total", (), float(counters.starts)
    yield _P + "replica_drains_total", (), float(counters.drains)
    yield _P + "replica_failures_total", (), float(counters.replica_failures)
    yield _P + "reloads_refused_total", (), float(counters.reloads_refused)
