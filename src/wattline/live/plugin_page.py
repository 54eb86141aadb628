"""The plugin's page: `/metrics`, `/healthz` and `/readyz` over HTTP, from counts in memory."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from wattline import __version__
from wattline.core.errors import InputError
from wattline.drivers.dynamo.plugin.registration import RegistrationView
from wattline.drivers.dynamo.plugin.server import split_address
from wattline.drivers.dynamo.plugin.service import LATENCY_BUCKETS_S, ServiceView

log = logging.getLogger(__name__)

_READ_S = 5.0
_MOST_REQUESTS = 16
_METRICS = "text/plain; version=0.0.4; charset=utf-8"
_TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class PluginView:
    """All that the page shows.

    registrations: empty where the planner lists the plugin itself. circuits: the planner's own
    breaker by plugin id (0 closed, 0.5 half open, 1 open), empty while its page is not asked or
    does not answer.
    """

    service: ServiceView
    registrations: Sequence[RegistrationView]
    circuits: dict[str, float]
    stale_s: float

    def not_ready(self) -> list[str]:
        """What keeps the constraint from being in force; empty: nothing that we can see."""
        service = self.service
        reasons = [f"{v.plugin_id}: {v.why_not}" for v in self.registrations if not v.registered]
        if service.plan_age_s is None:
            reasons.append(f"plan: {service.plan_fault}")
        elif service.plan_age_s > self.stale_s:
            reasons.append(f"plan: {service.plan_age_s:.0f} s old, nothing grows")
        if service.silence_s is None:
            reasons.append("planner: has not called yet")
        elif service.silent:
            reasons.append(f"planner: silent for {service.silence_s:.0f} s, unconstrained or gone")
        for plugin_id, state in self.circuits.items():
            if state >= 1.0:
                reasons.append(f"{plugin_id}: the planner's breaker is open: unconstrained")
        return reasons


class PluginCollector(Collector):
    """A view as Prometheus metrics at each scrape."""

    def __init__(self, view: Callable[[], PluginView]) -> None:
        self._view = view

    def describe(self) -> list[Metric]:
        """Nothing in advance: registering must not ask the service."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All metrics that have a value now."""
        view = self._view()
        info = InfoMetricFamily("wattline_plugin", "Which plugin this is.")
        info.add_metric([], {"version": __version__})
        yield info
        yield _gauge("ready", "1: in force as far as we can see; /readyz.", not view.not_ready())
        yield from _calls(view.service)
        yield from _plan(view.service)
        yield from _planner(view)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"wattline_plugin_{name}", text, value=float(value))


def _calls(service: ServiceView) -> Iterator[Metric]:
    calls = CounterMetricFamily(
        "wattline_plugin_calls", "Calls of the planner.", labels=["method", "result"]
    )
    for (method, result), count in service.calls.items():
        calls.add_metric([method, result], count)
    yield calls
    verdicts = CounterMetricFamily(
        "wattline_plugin_verdicts", "Answers of CONSTRAIN by reason.", labels=["code"]
    )
    for code, count in service.codes.items():
        verdicts.add_metric([code.value], count)
    yield verdicts
    bounds = [str(bound) for bound in LATENCY_BUCKETS_S] + ["+Inf"]
    yield HistogramMetricFamily(
        "wattline_plugin_answer_seconds",
        "From a call's bytes to the answer's, without the transport.",
        buckets=list(zip(bounds, accumulate(service.latency_counts), strict=True)),
        sum_value=service.latency_sum_s,
    )


def _plan(service: ServiceView) -> Iterator[Metric]:
    if service.plan is not None and service.plan_age_s is not None:
        yield _gauge("plan_version", "Of the plan in use.", service.plan.version)
        yield _gauge("plan_age_seconds", "Since it was written.", service.plan_age_s)
        yield _gauge("usable_watts", "Budget less guard less elsewhere.", service.plan.usable_w)
    yield _gauge("plan_fault", "1: the file of now cannot be read.", service.plan_fault is not None)
    verdict = service.verdict
    if verdict is None:
        return
    ceilings = GaugeMetricFamily(
        "wattline_plugin_ceiling_replicas", "Of the last answer.", labels=["role"]
    )
    for role, count in verdict.ceilings.items():
        ceilings.add_metric([role], count)
    yield ceilings
    if verdict.charged_w is not None:
        yield _gauge("charged_watts", "Most booked under the last answer.", verdict.charged_w)


def _planner(view: PluginView) -> Iterator[Metric]:
    service = view.service
    if service.silence_s is not None:
        yield _gauge("silence_seconds", "Since CONSTRAIN was last called.", service.silence_s)
    if service.interval_s is not None:
        yield _gauge("interval_seconds", "Between calls, as seen.", service.interval_s)
    yield _gauge("planner_silent", "1: never called, or calls are overdue.", service.silent)
    yield CounterMetricFamily(
        "wattline_plugin_gaps", "Times that calls came back after a gap.", value=service.gaps
    )
    registered = GaugeMetricFamily(
        "wattline_plugin_registered", "1: known to the planner's gateway.", labels=["plugin_id"]
    )
    accepted = CounterMetricFamily(
        "wattline_plugin_registrations", "Accepted ones.", labels=["plugin_id"]
    )
    for one in view.registrations:
        registered.add_metric([one.plugin_id], float(one.registered))
        accepted.add_metric([one.plugin_id], one.accepted)
    yield registered
    yield accepted
    circuits = GaugeMetricFamily(
        "wattline_plugin_circuit_state",
        "The planner's breaker, from its page: 0 closed, 0.5 half open, 1 open.",
        labels=["plugin_id"],
    )
    for plugin_id, state in view.circuits.items():
        circuits.add_metric([plugin_id], state)
    yield circuits


class _Handler(BaseHTTPRequestHandler):
    server: PluginPage
    server_version = "wattline-plugin"
    sys_version = ""
    timeout = _READ_S

    def do_GET(self) -> None:
        """Answer from what is in memory."""
        path = self.path.partition("?")[0]
        if path == "/metrics":
            self._answer(200, generate_latest(self.server.registry), _METRICS)
        elif path == "/healthz":
            self._answer(200, b"alive\n")
        elif path == "/readyz":
            reasons = self.server.view().not_ready()
            self._answer(503 if reasons else 200, "\n".join(reasons or ["ready"]).encode() + b"\n")
        else:
            self._answer(404, b"no such path: /metrics /healthz /readyz\n")

    def _answer(self, status: int, content: bytes, kind: str = _TEXT) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are no news."""


class PluginPage(ThreadingHTTPServer):
    """Serves from threads of its own, a bounded number at a time."""

    daemon_threads = True

    def __init__(self, listen: str, view: Callable[[], PluginView]) -> None:
        """Listen at host:port. InputError when that cannot be."""
        self.view = view
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(PluginCollector(view))
        ProcessCollector(registry=self.registry)
        self._room = threading.BoundedSemaphore(_MOST_REQUESTS)
        try:
            super().__init__(split_address(listen), _Handler)
        except OSError as error:
            remedy = f"{error.strerror or error}: give another --metrics"
            raise InputError("metrics", listen, remedy) from None
        self._thread = threading.Thread(target=self.serve_forever, name="page", daemon=True)
        self._thread.start()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for the request, if there is room; else close it unanswered."""
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and make room."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log it: a client that went away is no news."""
        log.debug("a request failed", exc_info=True)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.server_address[1])

    def close(self) -> None:
        """Stop to serve."""
        self.shutdown()
        self._thread.join()
        self.server_close()
