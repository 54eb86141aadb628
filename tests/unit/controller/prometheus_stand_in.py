"""A Prometheus that knows a handful of series, and can be stale, broken, silent or gone."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Rows = list[tuple[dict[str, str], str]]


class PrometheusStandIn(ThreadingHTTPServer):
    """`series`: rows by a part of the expression, first match counts; others have no rows.

    lag_s: age of all samples. mode: `well`, `nan` (every value), `silent` (never answers), `wrong`
    (answers 500). bins: values of the range query, newest last.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.series: dict[str, Rows] = {}
        self.bins: list[str | None] = []
        self.lag_s = 3.0
        self.mode = "well"
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.over = threading.Event()
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def end(self) -> None:
        self.over.set()
        self.shutdown()
        self.server_close()

    def rows(self, expr: str) -> Rows:
        found = next((rows for part, rows in self.series.items() if part in expr), [])
        if "timestamp(" in expr:
            return [(labels, f"{self.clock() - self.lag_s:.3f}") for labels, _ in found]
        return [(labels, "NaN" if self.mode == "nan" else value) for labels, value in found]

    def answer(self, path: str, params: dict[str, list[str]]) -> dict[str, Any]:
        expr = params["query"][0]
        if not path.endswith("query_range"):
            now = float(params["time"][0])
            result = [{"metric": m, "value": [now, value]} for m, value in self.rows(expr)]
            return {"resultType": "vector", "result": result}
        end, step = float(params["end"][0]), float(params["step"][0])
        points = [
            [end - step * (len(self.bins) - 1 - place), value]
            for place, value in enumerate(self.bins)
            if value is not None
        ]
        result = [{"metric": {"model": "chat"}, "values": points}] if points else []
        return {"resultType": "matrix", "result": result}


class _Handler(BaseHTTPRequestHandler):
    server: PrometheusStandIn
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        params = parse_qs(address.query)
        self.server.asked.append(params["query"][0])
        self.server.headers.append(dict(self.headers) | {"params": address.query})
        if self.server.mode == "silent":
            self.server.over.wait(30.0)
            self.close_connection = True
            return
        data = self.server.answer(address.path, params)
        body = json.dumps({"status": "success", "data": data}).encode()
        self.send_response(500 if self.server.mode == "wrong" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass
