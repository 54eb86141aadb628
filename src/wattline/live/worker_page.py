"""The worker's own page: `/metrics`, `/healthz` and `/readyz` over HTTP on loopback."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from wattline.core.errors import InputError

log = logging.getLogger(__name__)

READ_S = 5.0


class Metric(NamedTuple):
    """One series without labels of its own."""

    name: str
    kind: str
    text: str
    value: float


class _Handler(BaseHTTPRequestHandler):
    server: Page
    server_version = "wattline-worker"
    sys_version = ""
    timeout = READ_S

    def do_GET(self) -> None:
        """Answer from what the worker says now."""
        path = self.path.partition("?")[0]
        if path == "/metrics":
            content = render(self.server.labels, self.server.metrics()).encode()
            self._answer(200, content, "text/plain; version=0.0.4; charset=utf-8")
        elif path == "/healthz":
            self._answer(200, b"alive\n")
        elif path == "/readyz":
            why = self.server.not_ready()
            self._answer(200 if why is None else 503, f"{why or 'ready'}\n".encode())
        else:
            self._answer(404, b"no such path: /metrics /healthz /readyz\n")

    def _answer(self, status: int, content: bytes, kind: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are no news."""


class Page(ThreadingHTTPServer):
    """Serves from threads of its own; `metrics` and `not_ready` must be safe to call from them."""

    daemon_threads = True

    def __init__(
        self,
        port: int,
        labels: dict[str, str],
        metrics: Callable[[], list[Metric]],
        not_ready: Callable[[], str | None],
    ) -> None:
        self.labels = labels
        self.metrics = metrics
        self.not_ready = not_ready
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            remedy = f"{error.strerror or error}: give another port, or 0"
            raise InputError("worker, metrics_port", port, remedy) from None
        self._thread = threading.Thread(target=self.serve_forever, name="page", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def close(self) -> None:
        """Stop to serve."""
        self.shutdown()
        self._thread.join()
        self.server_close()


def render(labels: dict[str, str], metrics: list[Metric]) -> str:
    """Prometheus' text format, version 0.0.4."""
    inside = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
    lines = []
    for metric in metrics:
        lines.append(f"# HELP {metric.name} {metric.text}")
        lines.append(f"# TYPE {metric.name} {metric.kind}")
        lines.append(f"{metric.name}{{{inside}}} {metric.value!r}")
    return "\n".join(lines) + "\n"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
