"""The process behind `wattline dynamo-plugin`: state file, gRPC server, registration and page."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wattline import __version__
from wattline.core.errors import InputError
from wattline.drivers.dynamo.pages import PageError, parse_page
from wattline.drivers.dynamo.plugin.messages import Registration
from wattline.drivers.dynamo.plugin.registration import Registrar
from wattline.drivers.dynamo.plugin.server import PluginServer, split_address
from wattline.drivers.dynamo.plugin.service import PluginService
from wattline.drivers.dynamo.plugin.state_file import StateReader
from wattline.drivers.http_batch import Answer, Call, HttpBatch
from wattline.live.plugin_page import PluginPage, PluginView

log = logging.getLogger(__name__)

STALE_S = 15.0
_LOOK_S = 0.2
_ASK_PLANNER_S = 5.0
_PAGE_S = 2.0
_MAX_PAGE_BYTES = 8 * 1024 * 1024
_CIRCUIT = "dynamo_planner_plugin_circuit_state"
CONSTRAIN_PRIORITY = 50
"""Without effect for bounds, which merge by size; shown in the planner's list."""
PROPOSE_PRIORITY = 5
"""Smaller than the 10 and 20 of the planner's own, so that our SET wins."""
_LOOPBACK = ("127.", "localhost", "[::1]")


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginSettings:
    """What the command takes.

    listen: where the planner calls. endpoint: what the gateway is told, where that differs
    (`grpc://host:port`). gateway: to register at, None: the planner lists the plugin itself.
    stale_s: age of the plan above which nothing grows. planner_metrics: URL of the planner's
    metrics page, for its breaker. metrics: where our own page is, None: nowhere.
    """

    state: Path
    listen: str = "127.0.0.1:9095"
    endpoint: str | None = None
    gateway: str | None = None
    secret_file: Path | None = None
    plugin_id: str = "wattline"
    proposes: bool = False
    stale_s: float = STALE_S
    metrics: str | None = None
    planner_metrics: str | None = None

    def check(self) -> None:
        """InputError for what cannot be meant."""
        split_address(self.listen)
        if not 1 <= len(self.plugin_id) <= 100 or not self.plugin_id.isprintable():
            raise InputError("id", self.plugin_id, "must have 1 to 100 printable characters")
        if self.secret_file is not None and self.gateway is None:
            remedy = "is for --register; a static list of the planner needs no secret of ours"
            raise InputError("secret-file", str(self.secret_file), remedy)
        if self.endpoint is not None and not self.endpoint.startswith("grpc://"):
            raise InputError("endpoint", self.endpoint, "must be grpc://host:port")
        if self.endpoint is not None:
            split_address(self.endpoint.removeprefix("grpc://"))


class PluginProcess:
    """Everything of one plugin, from the start until `close`."""

    def __init__(self, settings: PluginSettings) -> None:
        """Start all parts. InputError where one cannot; what was started is stopped again."""
        settings.check()
        self._settings = settings
        self._stop = threading.Event()
        self._circuits: Mapping[str, float] = {}
        self._registrars: list[Registrar] = []
        self._threads: list[threading.Thread] = []
        self.page: PluginPage | None = None
        self.service = PluginService(stale_s=settings.stale_s, proposes=settings.proposes)
        self._reader = StateReader(settings.state)
        self._look()
        self.server = PluginServer(self.service, settings.listen)
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        log.info("listening", extra={"endpoint": self.server.endpoint, "version": __version__})
        if not settings.listen.startswith(_LOOPBACK):
            log.warning(
                "open to the network: the planner's protocol is plaintext and names no caller; "
                "let a network policy admit the planner only",
                extra={"listen": settings.listen},
            )

    def view(self) -> PluginView:
        """How everything stands."""
        return PluginView(
            service=self.service.view(),
            registrations=[registrar.view for registrar in self._registrars],
            circuits=dict(self._circuits),
            stale_s=self._settings.stale_s,
        )

    def close(self) -> None:
        """Unregister, and stop all parts: the planner goes on without the constraint."""
        self._stop.set()
        for registrar in self._registrars:
            registrar.stop()
        for thread in self._threads:
            thread.join()
        if self.page is not None:
            self.page.close()
        self.server.stop()

    def _start(self) -> None:
        settings = self._settings
        if settings.metrics is not None:
            self.page = PluginPage(settings.metrics, self.view)
        if settings.gateway is not None:
            stages = [(settings.plugin_id, "constrain", CONSTRAIN_PRIORITY)]
            if settings.proposes:
                stages.append((f"{settings.plugin_id}-propose", "propose", PROPOSE_PRIORITY))
            registrars = [
                Registrar(settings.gateway, self._registration(*stage), settings.secret_file)
                for stage in stages
            ]
            for registrar in registrars:
                registrar.start()
                self._registrars.append(registrar)
        self._thread(self._follow_state, "state")
        if settings.planner_metrics is not None:
            self._thread(self._follow_planner, "planner")

    def _registration(self, plugin_id: str, stage: str, priority: int) -> Registration:
        return Registration(
            plugin_id=plugin_id,
            plugin_type=stage,
            priority=priority,
            endpoint=self._settings.endpoint or self.server.endpoint,
            version=__version__,
            auth_token="",
        )

    def _thread(self, target: object, name: str) -> None:
        assert callable(target)
        thread = threading.Thread(target=target, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _follow_state(self) -> None:
        while not self._stop.wait(_LOOK_S):
            self._look()

    def _look(self) -> None:
        had = self._reader.fault
        if self._reader.look():
            self.service.update(self._reader.seen, self._reader.fault)
        if self._reader.fault is not None and self._reader.fault != had:
            log.warning("the plan cannot be read", extra={"why": self._reader.fault})

    def _follow_planner(self) -> None:
        """Copy the planner's own view of its breakers; nothing while it does not answer."""
        url = self._settings.planner_metrics
        assert url is not None
        with HttpBatch(limit_s=_PAGE_S, most_bytes=_MAX_PAGE_BYTES) as batch:
            next_s = time.monotonic()
            while not self._stop.wait(max(0.0, next_s - time.monotonic())):
                next_s = time.monotonic() + _ASK_PLANNER_S
                (answer,) = batch.run([Call(url)])
                self._circuits = self._circuits_in(answer, url)

    def _circuits_in(self, answer: object, url: str) -> Mapping[str, float]:
        if not isinstance(answer, Answer) or answer.status != 200:
            log.debug("the planner's page cannot be read", extra={"url": url})
            return {}
        try:
            page = parse_page(answer.body, url, [_CIRCUIT])
        except PageError as error:
            log.warning("the planner's page cannot be read", extra={"why": str(error)})
            return {}
        ours = (self._settings.plugin_id, f"{self._settings.plugin_id}-propose")
        return {
            sample.labels["plugin_id"]: sample.value
            for sample in page.select(_CIRCUIT)
            if sample.labels.get("plugin_id") in ours
        }
