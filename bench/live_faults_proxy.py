"""Stand-ins between the controller and a server that is there: they refuse, lie, or take long."""

from __future__ import annotations

import http.client
import json
import threading
import time
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

_CALL_S = 10.0
SLOW_S = 30.0
"""How long a slow answer takes: longer than anybody waits."""


class Mode(StrEnum):
    """What a stand-in does."""

    PASS = "pass"
    REFUSE_POSTS = "refuse posts"
    NAN = "nan"
    STALE = "stale"
    SLOW = "slow"
    NO_PAGES = "no pages"


class Proxy(ThreadingHTTPServer):
    """One server's stand-in. `mode` may be changed; `posts_refused` counts."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, target: str, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.target = urlsplit(target)
        self.mode = Mode.PASS
        self.frozen_s = 0.0
        self.posts_refused = 0
        self.over = threading.Event()
        self._thread = threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True
        )
        self._thread.start()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def turn(self, mode: Mode) -> None:
        """Behave so from now on. STALE: answer as of now from now on."""
        self.frozen_s = time.time()
        self.mode = mode

    def again(self) -> Proxy:
        """After `close`: another one at the same address."""
        return Proxy(self.target.geturl(), self.server_address[1])

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that give up are what is wanted here."""

    def close(self) -> None:
        """Listen no more."""
        self.over.set()
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 60.0

    def do_GET(self) -> None:
        """Ask the server, and answer as the mode says."""
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        mode = self.server.mode
        if mode is Mode.REFUSE_POSTS and self.command == "POST":
            self.server.posts_refused += 1
            self._answer(500, b'{"error":"refused"}', "application/json")
            return
        if mode is Mode.NO_PAGES and self.path.startswith("/metrics"):
            self._answer(503, b"not now\n", "text/plain")
            return
        if mode is Mode.SLOW:
            self.server.over.wait(SLOW_S)
        path = _as_of(self.path, self.server.frozen_s) if mode is Mode.STALE else self.path
        target = self.server.target
        connection = http.client.HTTPConnection(target.netloc, timeout=_CALL_S)
        try:
            kind = self.headers.get("Content-Type", "application/json")
            sent = {"Content-Type": kind} if body else {}
            connection.request(self.command, path, body or None, sent)
            answer = connection.getresponse()
            status, content = answer.status, answer.read()
            kind = answer.getheader("Content-Type", "text/plain")
        except OSError:
            # As the server itself: nothing listens, or nothing answers.
            self.close_connection = True
            return
        finally:
            connection.close()
        self._answer(status, _without_numbers(content) if mode is Mode.NAN else content, kind)

    def do_POST(self) -> None:
        """As GET."""
        self.do_GET()

    def _answer(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing to say."""


def _as_of(path: str, at_s: float) -> str:
    """The same query as of another time: what a server that no longer takes samples would say."""
    parts = urlsplit(path)
    query = [(k, f"{at_s:.3f}" if k == "time" else v) for k, v in parse_qsl(parts.query)]
    return f"{parts.path}?{urlencode(query)}"


def _without_numbers(content: bytes) -> bytes:
    """An answer of the HTTP API with NaN for every value."""
    try:
        document = json.loads(content)
        result = document["data"]["result"]
    except (ValueError, KeyError, TypeError):
        return content
    for series in result:
        if not isinstance(series, dict):
            continue
        if "value" in series:
            series["value"] = _blank(series["value"])
        if "values" in series:
            series["values"] = [_blank(pair) for pair in series["values"]]
    return json.dumps(document).encode()


def _blank(pair: list[Any]) -> list[Any]:
    return [pair[0], "NaN"]
